"""Posteriors, likelihoods and labels of the VAE against enumeration and models written another way."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import data
from jaxgen.autoencoder import likelihoods, vae

CATEGORICAL = vae.Config(
    shape=(6,),
    num_latents=1,
    num_categories=4,
    posterior="categorical",
    hidden=(8,),
    binarisation="threshold",
)


@pytest.fixture(scope="module")
def categorical():
    """State with weights that matter, bits, and by enumeration log p(x, z) and log q(z | x), each (B, K)."""
    state = vae.init(jax.random.key(0), CATEGORICAL)
    state = state._replace(params=jax.tree.map(lambda a: 2 * a, state.params))
    x = jnp.where(jax.random.bernoulli(jax.random.key(1), 0.5, (5, 6)), 1.0, -1.0)
    return state, x, *enumerate_latent(state.params, x)


def enumerate_latent(params, x):
    probability = (vae.decode(vae.State(0, 0, params, 0), jnp.eye(4)[:, None], CATEGORICAL) + 1) / 2
    likelihood = jnp.where(x[:, None] > 0, probability, 1 - probability).prod(-1)
    log_posterior = jnp.log(vae.encode(vae.State(0, 0, params, 0), x, CATEGORICAL)[:, 0])
    return jnp.log(likelihood / 4), log_posterior


def test_categorical_bounds_are_those_of_enumeration(categorical):
    state, x, log_joint, log_posterior = categorical
    exact = float(jax.nn.logsumexp(log_joint, 1).mean())
    exact_elbo = (jnp.exp(log_posterior) * (log_joint - log_posterior)).sum(1)
    keys = jax.random.split(jax.random.key(2), 2000)
    elbo = jax.jit(jax.vmap(lambda key: vae.elbo(key, state, x, CATEGORICAL)))(keys)
    assert (abs(elbo.mean(0) - exact_elbo) < 4 * elbo.std(0) / np.sqrt(len(keys))).all()
    means = [float(exact_elbo.mean())]
    for k in (2, 10, 300):
        bound = jax.jit(jax.vmap(lambda key, k=k: vae.iwae(key, state, x, CATEGORICAL, k).mean()))(keys[:400])
        means.append(float(bound.mean()))
    assert means[0] < means[1] < means[2] < means[3] < exact + 1e-3
    assert exact - means[0] > 0.1
    assert means[3] == pytest.approx(exact, abs=0.03)


def test_the_gumbel_gradient_tends_to_the_enumerated_one(categorical):
    state, x, *_ = categorical

    def objective(encoder):
        log_joint, log_posterior = enumerate_latent({**state.params, "encoder": encoder}, x)
        return -(jnp.exp(log_posterior) * (log_joint - log_posterior)).sum(1).mean()

    flat = lambda tree: jnp.concatenate([a.ravel() for a in jax.tree.leaves(tree)])
    exact = flat(jax.grad(objective)(state.params["encoder"]))
    cfg = dataclasses.replace(CATEGORICAL, temperature=1.0, min_temperature=0.0, temperature_decay=1.0)
    keys = jax.random.split(jax.random.key(3), 20_000)

    @jax.jit
    def gradient(step):
        loss = lambda p, key: vae.loss(p, {"x": x}, key, cfg, step)[0]
        draws = jax.vmap(lambda key: flat(jax.grad(loss)(state.params, key)["encoder"]))(keys)
        return draws.mean(0)

    errors = []
    for temperature in (2.0, 0.7, 0.1):
        errors.append(jnp.linalg.norm(gradient(-np.log(temperature)) - exact) / jnp.linalg.norm(exact))
    assert errors[0] > errors[1] > 2 * errors[2]
    assert errors[2] < 0.15


@pytest.mark.slow
def test_relaxed_training_claims_no_bound_and_exact_draws_do(categorical):
    state, x, *_ = categorical
    soft = vae.loss(state.params, {"x": x}, jax.random.key(0), CATEGORICAL)[1]
    assert set(soft) == {"loss", "relaxed_elbo", "reconstruction", "kl"}
    hard = dataclasses.replace(CATEGORICAL, straight_through=True)
    keys = jax.random.split(jax.random.key(4), 2000)
    metrics = jax.jit(jax.vmap(lambda key: vae.loss(state.params, {"x": x}, key, hard)[1]["elbo"]))(keys)
    exact = jax.vmap(lambda key: vae.elbo(key, state, x, CATEGORICAL).mean())(keys)
    error = np.sqrt((metrics.var() + exact.var()) / len(keys))
    assert abs(metrics.mean() - exact.mean()) < 4 * error


def test_the_temperature_falls_with_the_step_of_the_state():
    cfg = dataclasses.replace(CATEGORICAL, temperature=2.0, temperature_decay=1e-2, min_temperature=0.5)
    found = [float(vae.temperature(step, cfg)) for step in (0, 50, 10_000)]
    np.testing.assert_allclose(found, [2.0, 2.0 * np.exp(-0.5), 0.5], rtol=1e-5)
    state, batch = vae.init(jax.random.key(0), cfg), {"x": jnp.linspace(-1, 1, 24).reshape(4, 6)}
    later = state._replace(step=jnp.int32(50))
    key = jax.random.fold_in(state.key, 50)
    fixed = dataclasses.replace(cfg, temperature=2.0 * np.exp(-0.5), temperature_decay=0.0)
    metrics = vae.train_step(later, batch, cfg)[1]
    assert metrics["loss"] == pytest.approx(float(vae.loss(state.params, batch, key, fixed)[0]), rel=1e-5)
    assert metrics["loss"] != pytest.approx(float(vae.loss(state.params, batch, key, cfg)[0]), rel=1e-5)


def test_one_hot_latents_are_sampled_decoded_and_reconstructed(categorical):
    state, x, *_ = categorical
    images = vae.sample(jax.random.key(0), state, 4000, CATEGORICAL)
    of_each = vae.decode(state, jnp.eye(4)[:, None], CATEGORICAL)
    nearest = abs(images[:, None] - of_each).max(-1)
    assert nearest.min(1).max() < 1e-6
    np.testing.assert_allclose(np.bincount(nearest.argmin(1)) / 4000, 0.25, atol=0.03)
    assert vae.reconstruct(state, x, CATEGORICAL).shape == x.shape


class ExponentialDecoder(nn.Module):
    cfg: vae.Config

    @nn.compact
    def __call__(self, z):
        return vae.DenseDecoder(self.cfg, name="inner")(jnp.exp(z))


def test_a_lognormal_vae_is_a_normal_one_that_decodes_the_exponential():
    cfg = vae.Config(shape=(6,), num_latents=2, hidden=(8,), posterior="lognormal", binarisation="threshold")
    normal = dataclasses.replace(cfg, posterior="gaussian", decoder=ExponentialDecoder(cfg))
    state = vae.init(jax.random.key(0), cfg)
    params = {**state.params, "decoder": {"inner": state.params["decoder"]}}
    other = state._replace(params=params)
    x = jnp.where(jax.random.bernoulli(jax.random.key(1), 0.5, (5, 6)), 1.0, -1.0)
    key = jax.random.key(2)
    np.testing.assert_allclose(vae.elbo(key, state, x, cfg), vae.elbo(key, other, x, normal), rtol=1e-5)
    np.testing.assert_allclose(vae.iwae(key, state, x, cfg, 9), vae.iwae(key, other, x, normal, 9), rtol=1e-4)
    images = [vae.sample(key, *pair) for pair in ((state, 3, cfg), (other, 3, normal))]
    np.testing.assert_allclose(*images, rtol=1e-4, atol=1e-6)
    posterior = vae._posterior(state.params, x, (), cfg)
    draws = jax.vmap(posterior.sample)(jax.random.split(key, 20_000))
    assert (draws > 0).all()
    error = draws.std(0) / np.sqrt(len(draws))
    assert (abs(draws.mean(0) - vae.encode(state, x, cfg)) < 5 * error).all()


def test_lognormal_latents_stay_finite_under_wild_encoders():
    cfg = vae.Config(shape=(6,), num_latents=2, hidden=(8,), posterior="lognormal")
    params = vae.init(jax.random.key(0), cfg).params
    wild = {**params, "encoder": jax.tree.map(lambda a: 1e4 * (a + 1), params["encoder"])}
    batch = {"x": jnp.linspace(-1, 1, 24).reshape(4, 6)}
    value, gradient = jax.value_and_grad(lambda p: vae.loss(p, batch, jax.random.key(1), cfg)[0])(wild)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((value, gradient)))


def test_static_bits_belong_to_the_picture():
    grey = jnp.array([-1.0, 127, 0.2, 0.6, 1.0]).at[1].set(-0.5)
    index = jnp.arange(20_000)
    stamp = jnp.stack([index % 256, index // 256], 1) / 127.5 - 1
    pictures = jnp.concatenate([jnp.broadcast_to(grey, (20_000, 5)), stamp], 1)
    cfg = vae.Config(shape=(7,), binarisation="static")
    bits = likelihoods.targets(jax.random.key(0), pictures, cfg)
    assert set(np.unique(bits)) == {-1.0, 1.0}
    np.testing.assert_allclose(bits[:, :5].mean(0), grey, atol=0.03)
    assert abs(np.corrcoef(bits[:, 1:4].T)[np.triu_indices(3, 1)]).max() < 0.03
    some = likelihoods.targets(jax.random.key(1), pictures[300:200:-7], cfg)
    np.testing.assert_array_equal(some, bits[300:200:-7])


def test_predicted_noise_finds_the_noise_of_each_dimension():
    noise = jnp.array([0.05, 0.5])
    x = 0.3 + noise * jax.random.normal(jax.random.key(0), (512, 2))
    cfg = vae.Config(shape=(2,), num_latents=1, hidden=(16,), likelihood="gaussian", dequantize=False)
    cfg = dataclasses.replace(cfg, noise="predicted", noise_std=1.0, learning_rate=1e-2)
    state = vae.init(jax.random.key(1), cfg, {"x": x})
    start = vae._likelihood(state.params, jnp.zeros((1, 1)), (), cfg)
    np.testing.assert_allclose(start.location, x.mean(0, keepdims=True), atol=0.01)
    np.testing.assert_allclose(start.log_variance, 0, atol=1e-6)
    step = jax.jit(lambda s: jax.lax.scan(lambda s, _: vae.train_step(s, {"x": x}, cfg), s, length=600)[0])
    draws = vae.sample(jax.random.key(2), step(state), 4000, cfg, mean=False)
    np.testing.assert_allclose(draws.std(0), noise, rtol=0.25)
    np.testing.assert_allclose(draws.mean(0), 0.3, atol=0.05)


@pytest.mark.slow
def test_a_mixture_of_logistics_learns_digits():
    """Against the same decoder with latents that a heavy KL has emptied, which leaves independent pixels."""
    train, test = (jnp.asarray(data.load("digits", split)[:]["image"]) for split in ("train", "test"))
    base = vae.Config(shape=(8, 8, 1), likelihood="logistic_mixture", num_components=5, hidden=(64,))
    bounds, states = {}, {}
    for beta in (1.0, 300.0):
        cfg = dataclasses.replace(base, num_latents=8, learning_rate=3e-3, beta=beta)

        def step(state, _, cfg=cfg):
            rows = jax.random.randint(jax.random.fold_in(jax.random.key(1), state.step), (64,), 0, len(train))
            return vae.train_step(state, {"image": train[rows]}, cfg)[0], None

        state = vae.init(jax.random.key(0), cfg, {"image": train})
        state = states[beta] = jax.jit(functools.partial(jax.lax.scan, step, length=400))(state)[0]
        bounds[beta] = float(vae.elbo(jax.random.key(2), state, test, cfg).mean())
    assert bounds[1.0] > bounds[300.0] + 5
    draws = vae.sample(jax.random.key(3), states[1.0], 20, cfg, mean=False)
    np.testing.assert_allclose((draws + 1) * 127.5, jnp.round((draws + 1) * 127.5), atol=1e-3)
    rebuilt = vae.reconstruct(states[1.0], test, cfg)
    assert ((rebuilt - test) ** 2).mean() < 0.7 * ((train.mean(0) - test) ** 2).mean()


def test_colour_mixtures_train_and_fit_convolutions():
    cfg = vae.Config(shape=(5, 6, 3), hidden=(8,), likelihood="logistic_mixture", num_components=2)
    batch = {"image": jnp.round(jnp.linspace(0, 255, 4 * 90)).reshape(4, 5, 6, 3) / 127.5 - 1}
    state = vae.init(jax.random.key(0), cfg, batch)
    step = jax.jit(functools.partial(vae.train_step, cfg=cfg))
    losses = []
    for _ in range(30):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] - 5
    convolutional = dataclasses.replace(cfg, network="conv")
    state = jax.eval_shape(lambda: vae.init(jax.random.key(0), convolutional, batch))
    draw = lambda state: vae.sample(jax.random.key(1), state, 2, convolutional, mean=False)
    assert jax.eval_shape(draw, state).shape == (2, 5, 6, 3)


CENTERS = np.array([[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]], np.float32)


@pytest.fixture(scope="module")
def conditional():
    """A small conditional VAE trained on three clusters in the plane, the label being the cluster."""
    label = jnp.arange(600) % 3
    x = jnp.asarray(CENTERS)[label] + 0.2 * jax.random.normal(jax.random.key(0), (600, 2))
    cfg = vae.Config(shape=(2,), num_latents=1, hidden=(16,), likelihood="gaussian", dequantize=False)
    cfg = dataclasses.replace(cfg, conditional=True, num_classes=3, noise_std=0.2, learning_rate=1e-2)
    state = vae.init(jax.random.key(1), cfg, {"x": x, "label": label})
    step = lambda state, _: vae.train_step(state, {"x": x, "label": label}, cfg)
    return cfg, jax.jit(lambda state: jax.lax.scan(step, state, length=500))(state)[0], x, label


@pytest.mark.slow
def test_a_conditional_vae_obeys_its_label(conditional):
    cfg, state, x, label = conditional
    for c in range(3):
        draws = vae.sample(jax.random.key(2), state, 500, cfg, label=c, mean=False)
        np.testing.assert_allclose(draws.mean(0), CENTERS[c], atol=0.15)
    each = vae.sample(jax.random.key(2), state, 600, cfg, label=label)
    assert (jnp.linalg.norm(each - CENTERS[label], axis=1) < 1).all()
    drawn = vae.sample(jax.random.key(3), state, 3000, cfg)
    nearest = jnp.linalg.norm(drawn[:, None] - CENTERS, axis=-1).argmin(1)
    np.testing.assert_allclose(np.bincount(nearest) / 3000, 1 / 3, atol=0.04)
    right, wrong = (vae.elbo(jax.random.key(4), state, x, cfg, y).mean() for y in (label, (label + 1) % 3))
    assert right > wrong + 20
    rebuilt = vae.reconstruct(state, x, cfg, label)
    assert jnp.linalg.norm(rebuilt - x, axis=1).mean() < 0.4


def test_a_bound_without_a_label_is_on_the_mixture_over_labels(conditional):
    cfg, state, x, label = conditional
    key = jax.random.key(5)
    given = jnp.stack([vae.iwae(key, state, x, cfg, 5, jnp.full(len(x), c)) for c in range(3)])
    whole = vae.iwae(key, state, x, cfg, 5)
    np.testing.assert_allclose(
        whole, np.logaddexp.reduce(np.asarray(given)) - np.log(3), rtol=1e-4, atol=1e-4
    )
    # The clusters lie so far apart that only the right label counts, at the cost of naming it.
    right = vae.iwae(key, state, x, cfg, 5, label)
    np.testing.assert_allclose(whole, right - np.log(3), atol=1e-2)
    elbo = vae.elbo(key, state, x, cfg)
    np.testing.assert_allclose(elbo, vae.iwae(key, state, x, cfg, 1), rtol=1e-5)


class LabelledLinearEncoder(nn.Module):
    """The exact posterior of x = 0.8 z + 2 label + 0.5 eps, in one dimension."""

    @nn.compact
    def __call__(self, x, label):
        self.param("unused", nn.initializers.zeros, (1,))
        precision = 1 + 0.8**2 / 0.25
        mean = 0.8 / 0.25 / precision * (x - 2 * label[:, 1:])
        return mean, jnp.full_like(mean, -np.log(precision))


class LabelledLinearDecoder(nn.Module):
    @nn.compact
    def __call__(self, z, label):
        self.param("unused", nn.initializers.zeros, (1,))
        return 0.8 * z + 2 * label[:, 1:]


def test_the_exact_conditional_posterior_gives_both_likelihoods():
    cfg = vae.Config(
        shape=(1,),
        num_latents=1,
        likelihood="gaussian",
        noise_std=0.5,
        dequantize=False,
        conditional=True,
        num_classes=2,
        encoder=LabelledLinearEncoder(),
        decoder=LabelledLinearDecoder(),
    )
    state = vae.init(jax.random.key(0), cfg)
    x, label = jnp.linspace(-2, 4, 7)[:, None], jnp.array([0, 1, 0, 1, 0, 1, 0])
    log_density = lambda mean: jax.scipy.stats.norm.logpdf(x[:, 0], mean, np.sqrt(0.8**2 + 0.25))
    given, whole = (vae.iwae(jax.random.key(1), state, x, cfg, 3, y) for y in (label, None))
    np.testing.assert_allclose(given, log_density(2.0 * label), rtol=1e-4, atol=1e-5)
    mixture = jnp.logaddexp(log_density(0.0), log_density(2.0)) - np.log(2)
    np.testing.assert_allclose(whole, mixture, rtol=1e-4, atol=1e-5)


def test_convolutions_take_the_label_into_both_networks():
    cfg = vae.Config(
        shape=(8, 8, 1), network="conv", hidden=(4,), num_latents=3, conditional=True, num_classes=5
    )
    state = vae.init(jax.random.key(0), cfg)
    x = jnp.zeros((2, 8, 8, 1))
    codes = vae.encode(state, x, cfg, jnp.array([0, 3]))
    images = vae.decode(state, jnp.zeros((2, 3)), cfg, jnp.array([0, 3]))
    assert (codes[0] != codes[1]).all()
    assert (images[0] != images[1]).mean() > 0.9


def test_a_conditional_model_asks_for_the_label(conditional):
    cfg, state, x, _ = conditional
    for call in (vae.encode, vae.reconstruct):
        with pytest.raises(ValueError, match="give the label"):
            call(state, x, cfg)
    with pytest.raises(ValueError, match="give the label"):
        vae.train_step(state, {"x": x}, cfg)
