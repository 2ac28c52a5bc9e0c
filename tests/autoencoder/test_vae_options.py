"""Posteriors, likelihoods and labels of the VAE against enumeration and models written another way."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import data, distributions, keys, values
from jaxgen.autoencoder import posteriors, vae
from jaxgen.autoencoder.networks import DenseDecoder
from jaxgen.autoencoder.objectives import ELBO, IWAE
from jaxgen.autoencoder.posteriors import Categorical, LogNormal
from jaxgen.likelihoods import Bernoulli, Gaussian, Likelihood, LogisticMixture
from tests.autoencoder.linear import convolutional, dense


def init(cfg, batch=None, seed=0):
    return jax.jit(functools.partial(vae.init, cfg=cfg))(jax.random.key(seed), batch=batch)


CATEGORICAL = vae.Config(
    shape=(6,),
    num_latents=1,
    posterior=Categorical(4),
    likelihood=Bernoulli("threshold"),
    **dense(8),
)


@pytest.fixture(scope="module")
def categorical():
    """State with weights that matter, bits, and by enumeration log p(x, z) and log q(z | x), each (B, K)."""
    state = init(CATEGORICAL)
    state = state._replace(params=jax.tree.map(lambda a: 2 * a, state.params))
    x = jnp.where(jax.random.bernoulli(jax.random.key(1), 0.5, (5, 6)), 1.0, -1.0)
    return state, x, *enumerate_latent(state.params, x)


def enumerate_latent(params, x):
    probability = (vae.decode(vae.State(0, 0, params, 0), jnp.eye(4)[:, None], CATEGORICAL) + 1) / 2
    likelihood = jnp.where(x[:, None] > 0, probability, 1 - probability).prod(-1)
    log_posterior = jnp.log(vae.encode(vae.State(0, 0, params, 0), x, CATEGORICAL)[:, 0])
    return jnp.log(likelihood / 4), log_posterior


@pytest.mark.slow
def test_categorical_bounds_are_those_of_enumeration(categorical):
    state, x, log_joint, log_posterior = categorical
    exact = float(jax.nn.logsumexp(log_joint, 1).mean())
    exact_elbo = (jnp.exp(log_posterior) * (log_joint - log_posterior)).sum(1)
    keys = jax.random.split(jax.random.key(2), 2000)
    elbo = jax.jit(jax.vmap(lambda key: vae.elbo(key, state, x, CATEGORICAL)))(keys)
    assert (abs(elbo.mean(0) - exact_elbo) < 4 * elbo.std(0) / np.sqrt(len(keys))).all()
    means = [float(exact_elbo.mean())]
    for k in (3, 1000):
        bound = jax.jit(jax.vmap(lambda key, k=k: vae.iwae(key, state, x, CATEGORICAL, k).mean()))(keys[:400])
        means.append(float(bound.mean()))
    assert means[0] < means[1] < means[2] < exact + 1e-3
    assert exact - means[0] > 0.1
    assert means[2] == pytest.approx(exact, abs=0.03)


@pytest.mark.slow
def test_the_gumbel_gradient_tends_to_the_enumerated_one(categorical):
    state, x, *_ = categorical

    def objective(encoder):
        log_joint, log_posterior = enumerate_latent({**state.params, "encoder": encoder}, x)
        return -(jnp.exp(log_posterior) * (log_joint - log_posterior)).sum(1).mean()

    flat = lambda tree: jnp.concatenate([a.ravel() for a in jax.tree.leaves(tree)])
    exact = flat(jax.grad(objective)(state.params["encoder"]))
    relaxed = Categorical(4, temperature=1.0, min_temperature=1e-3, temperature_decay=1.0)
    cfg = dataclasses.replace(CATEGORICAL, posterior=relaxed)
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
    hard = dataclasses.replace(CATEGORICAL, posterior=Categorical(4, straight_through=True))
    keys = jax.random.split(jax.random.key(4), 2000)
    metrics = jax.jit(jax.vmap(lambda key: vae.loss(state.params, {"x": x}, key, hard)[1]["elbo"]))(keys)
    exact = jax.vmap(lambda key: vae.elbo(key, state, x, CATEGORICAL).mean())(keys)
    error = np.sqrt((metrics.var() + exact.var()) / len(keys))
    assert abs(metrics.mean() - exact.mean()) < 4 * error


@pytest.mark.slow
def test_the_temperature_falls_with_the_step_of_the_state():
    falling = Categorical(4, temperature=2.0, temperature_decay=1e-2, min_temperature=0.5)
    cfg = dataclasses.replace(CATEGORICAL, posterior=falling)
    found = [float(falling.temperature_at(step)) for step in (0, 50, 10_000)]
    np.testing.assert_allclose(found, [2.0, 2.0 * np.exp(-0.5), 0.5], rtol=1e-5)
    low = Categorical(4, temperature=0.3, temperature_decay=1e-2, min_temperature=0.5)
    np.testing.assert_allclose(low.temperature_at(50), 0.3, rtol=1e-5)  # it does not rise
    state, batch = init(cfg), {"x": jnp.linspace(-1, 1, 24).reshape(4, 6)}
    later = state._replace(step=jnp.int32(50))
    key = jax.random.fold_in(state.key, 50)
    still = Categorical(4, temperature=2.0 * float(np.exp(-0.5)), temperature_decay=0.0)
    fixed = dataclasses.replace(cfg, posterior=still)

    @jax.jit
    def losses(state, later):
        metrics = vae.train_step(later, batch, cfg)[1]
        return metrics["loss"], *(vae.loss(state.params, batch, key, c)[0] for c in (fixed, cfg))

    value, wanted, first = losses(state, later)
    assert value == pytest.approx(float(wanted), rel=1e-5)
    assert value != pytest.approx(float(first), rel=1e-5)


@pytest.mark.slow
def test_one_hot_latents_are_sampled_decoded_and_reconstructed(categorical):
    state, x, *_ = categorical
    draw = jax.jit(lambda key: vae.sample(key, state, 4000, CATEGORICAL))
    images, of_each = draw(jax.random.key(0)), vae.decode(state, jnp.eye(4)[:, None], CATEGORICAL)
    nearest = abs(images[:, None] - of_each).max(-1)
    assert nearest.min(1).max() < 1e-6
    np.testing.assert_allclose(np.bincount(nearest.argmin(1)) / 4000, 0.25, atol=0.03)
    assert vae.reconstruct(state, x, CATEGORICAL).shape == x.shape


class ExponentialDecoder(nn.Module):
    @nn.compact
    def __call__(self, z):
        return DenseDecoder((8,), shape=(6,), name="inner")(jnp.exp(z))


@pytest.mark.slow
def test_a_lognormal_vae_is_a_normal_one_that_decodes_the_exponential():
    cfg = vae.Config(shape=(6,), num_latents=2, posterior=LogNormal(), **dense(8))
    cfg = dataclasses.replace(cfg, likelihood=Bernoulli("threshold"))
    normal = dataclasses.replace(cfg, posterior=posteriors.Gaussian(), decoder=ExponentialDecoder())
    state = init(cfg)
    params = {**state.params, "decoder": {"inner": state.params["decoder"]}}
    other = state._replace(params=params)
    x = jnp.where(jax.random.bernoulli(jax.random.key(1), 0.5, (5, 6)), 1.0, -1.0)
    key = jax.random.key(2)

    @jax.jit
    def both(key):
        found = [
            (vae.elbo(key, s, x, c), vae.iwae(key, s, x, c, 9), vae.sample(key, s, 3, c))
            for s, c in ((state, cfg), (other, normal))
        ]
        q = vae._posterior(state.params, x, (), cfg)
        draws = jax.vmap(LogNormal().sample, (0, None))(jax.random.split(key, 20_000), q)
        return found, draws, vae.encode(state, x, cfg)

    found, draws, mean = both(key)
    for first, second in zip(*found, strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-6)
    assert (draws > 0).all()
    error = draws.std(0) / np.sqrt(len(draws))
    assert (abs(draws.mean(0) - mean) < 5 * error).all()


@pytest.mark.slow
def test_lognormal_latents_stay_finite_under_wild_encoders():
    cfg = vae.Config(shape=(6,), num_latents=2, posterior=LogNormal(), **dense(8))
    params = init(cfg).params
    wild = {**params, "encoder": jax.tree.map(lambda a: 1e4 * (a + 1), params["encoder"])}
    batch = {"x": jnp.linspace(-1, 1, 24).reshape(4, 6)}
    loss = lambda p: vae.loss(p, batch, jax.random.key(1), cfg)[0]
    value, gradient = jax.jit(jax.value_and_grad(loss))(wild)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((value, gradient)))


@dataclasses.dataclass(frozen=True)
class Laplace(Likelihood):
    """A likelihood of one's own, with a learned scale for each dimension."""

    scale: float = 1.0
    shape: tuple[int, ...] | None = None

    measure = "density"

    def init(self):
        return {"log_scale": jnp.full(self.shape, jnp.log(self.scale))}

    def log_prob(self, params, output, x):
        log_scale = params["log_scale"]
        return (-jnp.abs(x - output) / jnp.exp(log_scale) - log_scale - jnp.log(2)).sum(1)

    def mean(self, params, output):
        return output

    def sample(self, key, params, output):
        return output + jnp.exp(params["log_scale"]) * jax.random.laplace(key, output.shape)


@dataclasses.dataclass(frozen=True)
class Correlated(posteriors.Posterior):
    """A posterior of one's own: z ~ N(mean, L L^T) with a lower triangular L, in two dimensions."""

    def num_outputs(self, num_latents):
        return num_latents + num_latents**2

    def read(self, output, num_latents):
        factor = jnp.tril(output[:, num_latents:].reshape(-1, num_latents, num_latents))
        return output[:, :num_latents], factor + jnp.eye(num_latents)

    def sample(self, key, q):
        return q[0] + jnp.einsum("nij,nj->ni", q[1], jax.random.normal(key, q[0].shape))

    def log_prob(self, q, z):
        density = jax.vmap(jax.scipy.stats.multivariate_normal.logpdf)
        return density(z, q[0], q[1] @ q[1].swapaxes(1, 2))

    def kl(self, q):
        mean, factor = q
        log_determinant = jnp.log(jnp.abs(jnp.diagonal(factor, axis1=1, axis2=2))).sum(1)
        return 0.5 * ((factor**2).sum((1, 2)) + (mean**2).sum(1) - mean.shape[1]) - log_determinant

    def mean(self, q):
        return q[0]


@pytest.mark.slow
def test_a_likelihood_and_a_posterior_of_ones_own_train_and_are_read_back():
    """Data on a line with Laplace noise: both bounds hold, and the noise of each dimension is found."""
    cfg = vae.Config(shape=(2,), num_latents=2, likelihood=Laplace(0.5), posterior=Correlated(), **dense(8))
    cfg = dataclasses.replace(cfg, optimizer=values.Adam(1e-2), objective=IWAE(2))
    assert values.from_json(values.to_json(cfg.likelihood)) == cfg.likelihood
    assert values.from_json(values.to_json(cfg.posterior)) == cfg.posterior
    assert vae.measure(cfg) == "density"
    x = jnp.array([0.1, 0.4]) * jax.random.laplace(jax.random.key(0), (256, 2)) + 1.0
    state = init(cfg, {"x": x}, seed=1)
    np.testing.assert_allclose(state.params["decoder"]["out"]["bias"], x.mean(0), atol=1e-5)
    run = jax.jit(lambda s: jax.lax.scan(lambda s, _: vae.train_step(s, {"x": x}, cfg), s, length=400)[0])
    state = run(state)
    found = jnp.exp(state.params["likelihood"]["log_scale"])
    np.testing.assert_allclose(found, [0.1, 0.4], rtol=0.3)

    @jax.jit
    def evaluated(key):
        bounds = vae.elbo(key, state, x, cfg).mean(), vae.iwae(key, state, x, cfg, 50).mean()
        return bounds, vae.sample(key, state, 2000, cfg, mean=False)

    (elbo, iwae), draws = evaluated(jax.random.key(2))
    assert elbo < iwae
    assert jnp.abs(draws - 1).mean(0)[1] > 2 * jnp.abs(draws - 1).mean(0)[0]


def test_a_mixture_of_logistics_takes_the_levels_of_the_data():
    """Of 17 levels spread over 0 .. 255 and rounded, as digits has them, the probabilities sum to one."""
    cfg = vae.Config(shape=(1, 1, 1), levels=17, likelihood=LogisticMixture(2), num_latents=1, **dense(4))
    x = np.round(np.arange(17) * 255 / 16).reshape(17, 1, 1, 1).astype(np.float32) / 127.5 - 1

    @jax.jit
    def evaluated(key):
        state = vae.init(key, cfg)
        at = vae._likelihood(cfg).targets(key, x)
        total = lambda x: jnp.exp(vae._log_likelihood(state.params, jnp.zeros((17, 1)), x, (), cfg)).sum()
        return total(at), total(x), vae.sample(key, state, 100, cfg, mean=False)

    total, beside, draws = evaluated(jax.random.key(0))
    assert total == pytest.approx(1.0, abs=1e-5)
    assert beside != pytest.approx(1.0, abs=1e-5)
    np.testing.assert_allclose((draws + 1) * 8, jnp.round((draws + 1) * 8), atol=1e-5)
    assert vae.measure(cfg) == "levels"
    with pytest.raises(ValueError, match="not for real numbers"):
        vae.init(jax.random.key(0), dataclasses.replace(cfg, levels=0))


@pytest.mark.slow
def test_predicted_noise_finds_the_noise_of_each_dimension():
    noise = jnp.array([0.05, 0.5])
    x = 0.3 + noise * jax.random.normal(jax.random.key(0), (512, 2))
    cfg = vae.Config(shape=(2,), num_latents=1, levels=0, **dense(16))
    likelihood = Gaussian("predicted", std=1.0)
    cfg = dataclasses.replace(cfg, likelihood=likelihood, optimizer=values.Adam(1e-2))
    state = init(cfg, {"x": x}, seed=1)
    start = vae._output(state.params, jnp.zeros((1, 1)), (), cfg)
    np.testing.assert_allclose(start, [[*x.mean(0), 0, 0]], atol=0.01)
    given = likelihood.log_prob({}, start, x[:1])
    np.testing.assert_allclose(given, distributions.normal_log_prob(x[:1], start[:, :2]), rtol=1e-5)
    step = jax.jit(lambda s: jax.lax.scan(lambda s, _: vae.train_step(s, {"x": x}, cfg), s, length=600)[0])
    draws = vae.sample(jax.random.key(2), step(state), 4000, cfg, mean=False)
    np.testing.assert_allclose(draws.std(0), noise, rtol=0.25)
    np.testing.assert_allclose(draws.mean(0), 0.3, atol=0.05)


@pytest.mark.slow
def test_a_mixture_of_logistics_learns_digits():
    """Against the same decoder with latents that a heavy KL has emptied, which leaves independent pixels."""
    train, test = (jnp.asarray(data.load("digits", split)[:]["image"]) for split in ("train", "test"))
    base = vae.Config(shape=(8, 8, 1), levels=17, likelihood=LogisticMixture(5), **dense(64))
    bounds, states = {}, {}
    for beta in (1.0, 300.0):
        cfg = dataclasses.replace(base, num_latents=8, optimizer=values.Adam(3e-3), objective=ELBO(beta))

        def step(state, _, cfg=cfg):
            rows = jax.random.randint(jax.random.fold_in(jax.random.key(1), state.step), (64,), 0, len(train))
            return vae.train_step(state, {"image": train[rows]}, cfg)[0], None

        state = vae.init(jax.random.key(0), cfg, {"image": train})
        state = states[beta] = jax.jit(functools.partial(jax.lax.scan, step, length=400))(state)[0]
        bounds[beta] = float(vae.elbo(jax.random.key(2), state, test, cfg).mean())
    assert bounds[1.0] > bounds[300.0] + 5
    draws = vae.sample(jax.random.key(3), states[1.0], 20, cfg, mean=False)
    np.testing.assert_allclose((draws + 1) * 8, jnp.round((draws + 1) * 8), atol=1e-4)
    rebuilt = vae.reconstruct(states[1.0], test, cfg)
    assert ((rebuilt - test) ** 2).mean() < 0.7 * ((train.mean(0) - test) ** 2).mean()


@pytest.mark.slow
def test_colour_mixtures_train_and_fit_convolutions():
    cfg = vae.Config(shape=(5, 6, 3), likelihood=LogisticMixture(2), **dense(8))
    batch = {"image": jnp.round(jnp.linspace(0, 255, 4 * 90)).reshape(4, 5, 6, 3) / 127.5 - 1}
    state = init(cfg, batch)
    step = jax.jit(functools.partial(vae.train_step, cfg=cfg))
    losses = []
    for _ in range(30):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] - 5
    mapped = dataclasses.replace(cfg, **convolutional(8))
    state = jax.eval_shape(lambda: vae.init(jax.random.key(0), mapped, batch))
    draw = lambda state: vae.sample(jax.random.key(1), state, 2, mapped, mean=False)
    assert jax.eval_shape(draw, state).shape == (2, 5, 6, 3)


CENTERS = np.array([[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]], np.float32)


@pytest.fixture(scope="module")
def conditional():
    """A small conditional VAE trained on three clusters in the plane, the label being the cluster."""
    label = jnp.arange(600) % 3
    x = jnp.asarray(CENTERS)[label] + 0.2 * jax.random.normal(jax.random.key(0), (600, 2))
    cfg = vae.Config(shape=(2,), num_latents=1, levels=0, num_classes=3, conditional=True, **dense(16))
    cfg = dataclasses.replace(cfg, likelihood=Gaussian(std=0.2), optimizer=values.Adam(1e-2))
    state = init(cfg, {"x": x, "label": label}, seed=1)
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


@pytest.mark.slow
def test_a_bound_without_a_label_is_on_the_mixture_over_labels(conditional):
    cfg, state, x, label = conditional
    key = jax.random.key(5)

    @jax.jit
    def bounds(key):
        own = lambda c: jax.random.fold_in(keys.named(key, "latents"), c)  # every class has its draws
        given = jnp.stack([vae._iwae(own(c), state, x, cfg, 5, jnp.full(len(x), c)) for c in range(3)])
        whole = vae.iwae(key, state, x, cfg, 5)
        return given, whole, vae.elbo(key, state, x, cfg), vae.iwae(key, state, x, cfg, 1)

    given, whole, elbo, one = bounds(key)
    np.testing.assert_allclose(
        whole, np.logaddexp.reduce(np.asarray(given)) - np.log(3), rtol=1e-4, atol=1e-4
    )
    # The clusters lie so far apart that only the right label counts, at the cost of naming it.
    np.testing.assert_allclose(whole, given[label, jnp.arange(len(x))] - np.log(3), atol=1e-2)
    np.testing.assert_allclose(elbo, one, rtol=1e-5)


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
        levels=0,
        likelihood=Gaussian(std=0.5),
        conditional=True,
        num_classes=2,
        encoder=LabelledLinearEncoder(),
        decoder=LabelledLinearDecoder(),
    )
    state = init(cfg)
    x, label = jnp.linspace(-2, 4, 7)[:, None], jnp.array([0, 1, 0, 1, 0, 1, 0])
    log_density = lambda mean: jax.scipy.stats.norm.logpdf(x[:, 0], mean, np.sqrt(0.8**2 + 0.25))
    bounds = lambda key: [vae.iwae(key, state, x, cfg, 3, y) for y in (label, None)]
    given, whole, elbo = jax.jit(lambda key: [*bounds(key), vae.elbo(key, state, x, cfg)])(jax.random.key(1))
    np.testing.assert_allclose(given, log_density(2.0 * label), rtol=1e-4, atol=1e-5)
    mixture = jnp.logaddexp(log_density(0.0), log_density(2.0)) - np.log(2)
    for bound in (whole, elbo):
        np.testing.assert_allclose(bound, mixture, rtol=1e-4, atol=1e-5)


def test_convolutions_take_the_label_into_both_networks():
    cfg = vae.Config(shape=(8, 8, 1), num_latents=3, conditional=True, num_classes=5, **convolutional(4))
    state = init(cfg)
    x = jnp.zeros((2, 8, 8, 1))
    label = jnp.array([0, 3])
    both = lambda z: (vae.encode(state, x, cfg, label), vae.decode(state, z, cfg, label))
    codes, images = jax.jit(both)(jnp.zeros((2, 3)))
    assert (codes[0] != codes[1]).all()
    assert (images[0] != images[1]).mean() > 0.9


def test_a_conditional_model_asks_for_the_label():
    cfg = vae.Config(shape=(2,), num_classes=3, conditional=True, **dense(4))
    state, x = init(cfg), jnp.zeros((5, 2))
    for call in (vae.encode, vae.reconstruct):
        with pytest.raises(ValueError, match="give the label"):
            call(state, x, cfg)
    with pytest.raises(ValueError, match="trained on labels"):
        vae.train_step(state, {"x": x}, cfg)
