"""The VAE against exact answers: a linear-Gaussian model, quadrature, and the identities of its objective."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxgen
from jaxgen import data, shard
from jaxgen.autoencoder import likelihoods, networks, vae
from tests.autoencoder.linear import LinearDecoder, LinearEncoder

NOISE_STD = 0.5
WEIGHT = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 2)))[0].T * np.array([[2.0], [0.7]])
"""(2, 5), rows orthogonal: the exact posterior then has a diagonal covariance, as the encoder has."""


@pytest.fixture(scope="module")
def linear():
    """Config and State of x = z W + 0.5 eps whose encoder is the exact posterior, and data."""
    cfg = vae.Config(
        shape=(5,),
        num_latents=2,
        likelihood="gaussian",
        noise_std=NOISE_STD,
        dequantize=False,
        encoder=LinearEncoder(),
        decoder=LinearDecoder(),
    )
    state = vae.init(jax.random.key(0), cfg)
    variance = 1 / (1 + (WEIGHT**2).sum(1) / NOISE_STD**2)
    params = {
        "decoder": {"Dense_0": {"kernel": jnp.asarray(WEIGHT), "bias": jnp.zeros(5)}},
        "encoder": {
            "Dense_0": {"kernel": jnp.asarray(WEIGHT.T * variance / NOISE_STD**2), "bias": jnp.zeros(2)},
            "log_variance": jnp.log(jnp.asarray(variance)),
        },
    }
    params = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    x = jax.random.normal(jax.random.key(1), (16, 5)) * 1.5
    return cfg, state._replace(params=params), x


def exact_log_prob(x):
    covariance = WEIGHT.T @ WEIGHT + NOISE_STD**2 * np.eye(5)
    return jax.scipy.stats.multivariate_normal.logpdf(x, jnp.zeros(5), jnp.asarray(covariance, jnp.float32))


@pytest.mark.parametrize("num_samples", [1, 3, 40])
def test_with_the_exact_posterior_every_weight_is_the_likelihood(linear, num_samples):
    cfg, state, x = linear
    bound = vae.iwae(jax.random.key(2), state, x, cfg, num_samples)
    np.testing.assert_allclose(bound, exact_log_prob(x), rtol=1e-4)


def test_the_elbo_at_the_exact_posterior_is_the_likelihood(linear):
    cfg, state, x = linear
    keys = jax.random.split(jax.random.key(3), 4000)
    draws = jax.vmap(lambda key: vae.elbo(key, state, x, cfg).mean())(keys)
    assert abs(draws.mean() - exact_log_prob(x).mean()) < 4 * draws.std() / np.sqrt(len(draws))


def test_bounds_are_ordered_and_approach_the_likelihood(linear):
    cfg, state, x = linear
    encoder = {**state.params["encoder"], "log_variance": state.params["encoder"]["log_variance"] + 1.0}
    state = state._replace(params={**state.params, "encoder": encoder})
    keys = jax.random.split(jax.random.key(4), 200)

    @functools.partial(jax.jit, static_argnums=0)
    def bound(num_samples):
        if num_samples == 0:
            return jax.vmap(lambda key: vae.elbo(key, state, x, cfg).mean())(keys)
        return jax.vmap(lambda key: vae.iwae(key, state, x, cfg, num_samples).mean())(keys)

    elbo, one, five, many = (float(bound(k).mean()) for k in (0, 1, 5, 200))
    exact = float(exact_log_prob(x).mean())
    error = float(bound(1).std()) / np.sqrt(len(keys))
    assert abs(elbo - one) < 5 * error
    assert one < five < many < exact + 1e-3
    assert many == pytest.approx(exact, abs=0.02)


def test_importance_weighting_agrees_with_quadrature():
    cfg = vae.Config(shape=(6,), num_latents=1, hidden=(8,), binarisation="threshold")
    state = vae.init(jax.random.key(5), cfg)
    params = jax.tree.map(lambda x: 3 * x, state.params)
    params["encoder"] = jax.tree.map(jnp.zeros_like, params["encoder"])  # the prior: covers every posterior
    state = state._replace(params=params)
    x = jnp.where(jax.random.bernoulli(jax.random.key(6), 0.5, (4, 6)), 1.0, -1.0)
    z = jnp.linspace(-8, 8, 4001)
    probability = (vae.decode(state, z[:, None], cfg) + 1) / 2
    likelihood = jnp.where(x[:, None] > 0, probability, 1 - probability).prod(-1)
    exact = np.log(np.trapezoid(likelihood * jax.scipy.stats.norm.pdf(z), z))
    np.testing.assert_allclose(vae.iwae(jax.random.key(7), state, x, cfg, 20_000), exact, atol=0.02)


def test_beta_weighs_the_kl_alone():
    cfg = vae.Config(shape=(6,), num_latents=2, hidden=(8,))
    params = vae.init(jax.random.key(0), cfg).params
    batch = {"x": jnp.linspace(-1, 1, 24).reshape(4, 6)}
    losses = [
        vae.loss(params, batch, jax.random.key(1), dataclasses.replace(cfg, beta=b)) for b in (1.0, 4.0)
    ]
    assert losses[1][0] - losses[0][0] == pytest.approx(3 * float(losses[0][1]["kl"]), rel=1e-4)
    assert losses[1][1]["elbo"] == pytest.approx(float(losses[0][1]["elbo"]))


def test_gaussian_beta_is_a_rescaled_noise():
    cfg = vae.Config(shape=(6,), num_latents=2, hidden=(8,), likelihood="gaussian", dequantize=False)
    params = vae.init(jax.random.key(0), cfg).params
    batch = {"x": jnp.linspace(-1, 1, 24).reshape(4, 6)}

    def gradient(**changes):
        changed = dataclasses.replace(cfg, **changes)
        return jax.grad(lambda p: vae.loss(p, batch, jax.random.key(1), changed)[0])(params)

    weighted, rescaled = gradient(beta=4.0, noise_std=0.3), gradient(beta=1.0, noise_std=0.6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, 4 * b, rtol=1e-4, atol=1e-5), weighted, rescaled)


def test_dynamic_bits_have_the_grey_value_as_mean():
    x = jnp.array([[-1.0, -0.5, 0.0, 0.8, 1.0]])
    bits = likelihoods.targets(jax.random.key(0), jnp.repeat(x, 20_000, 0), vae.Config(shape=(5,)))
    assert set(np.unique(bits)) == {-1.0, 1.0}
    np.testing.assert_allclose(bits.mean(0), x[0], atol=0.03)
    assert (bits[:, 0] == -1).all()
    assert (bits[:, 4] == 1).all()


def test_dequantisation_fills_the_gaps_between_levels():
    levels = jnp.arange(256) / 127.5 - 1
    cfg = vae.Config(shape=(256,), likelihood="gaussian")
    y = likelihoods.targets(jax.random.key(0), jnp.repeat(levels[None], 500, 0), cfg)
    np.testing.assert_array_equal(jnp.round((y + 1) * 127.5), jnp.broadcast_to(jnp.arange(256), y.shape))
    assert abs((y - levels).std() - likelihoods.PIXEL_STEP / np.sqrt(12)) < 1e-5


def test_bits_drawn_from_the_likelihood_have_its_mean():
    cfg = vae.Config(shape=(6,), num_latents=2, hidden=(8,))
    state = vae.init(jax.random.key(0), cfg)
    means, bits = (vae.sample(jax.random.key(1), state, 20_000, cfg, mean=mean) for mean in (True, False))
    assert set(np.unique(bits)) == {-1.0, 1.0}
    np.testing.assert_allclose(bits.mean(0), means.mean(0), atol=0.03)


def test_gaussian_draws_have_the_noise_asked_for():
    cfg = vae.Config(shape=(6,), num_latents=2, hidden=(8,), likelihood="gaussian", noise_std=0.3)
    state = vae.init(jax.random.key(0), cfg)
    means, draws = (vae.sample(jax.random.key(1), state, 5_000, cfg, mean=mean) for mean in (True, False))
    assert (draws - means).std() == pytest.approx(0.3, rel=0.02)


def test_learned_noise_settles_at_the_residual():
    cfg = vae.Config(shape=(2,), num_latents=1, hidden=(16,), likelihood="gaussian", dequantize=False)
    cfg = dataclasses.replace(cfg, noise="learned", noise_std=1.0, learning_rate=1e-2)
    x = jnp.array([[1.0, 0.0]]) + 0.2 * jax.random.normal(jax.random.key(0), (512, 2))
    state = vae.init(jax.random.key(1), cfg)
    step = jax.jit(lambda s: jax.lax.scan(lambda s, _: vae.train_step(s, {"x": x}, cfg), s, length=600)[0])
    assert jnp.exp(step(state).params["log_noise_std"]) == pytest.approx(0.2, abs=0.04)


def test_any_image_size_round_trips_through_the_convolutions():
    for shape in [(28, 28, 3), (32, 32, 1), (8, 9, 1), (11, 13, 3), (4, 7, 2), (15, 31, 1)]:
        cfg = vae.Config(shape=shape, network="conv", hidden=(8, 16), num_latents=4)
        state = jax.eval_shape(lambda cfg=cfg: vae.init(jax.random.key(0), cfg))
        x = jax.ShapeDtypeStruct((5, *shape), jnp.float32)
        rebuilt = jax.eval_shape(lambda state, x, cfg=cfg: vae.reconstruct(state, x, cfg), state, x)
        assert rebuilt.shape == x.shape
        sizes = networks.sizes(cfg)
        assert sizes == [tuple(n // 2**depth for n in shape[:2]) for depth in range(3)]
        codes = state.params["encoder"]["Dense_0"]["kernel"]
        assert codes.shape[0] == 16 * sizes[-1][0] * sizes[-1][1]


def test_every_pixel_of_an_odd_size_reaches_the_code_and_comes_back():
    cfg = vae.Config(shape=(7, 9, 1), network="conv", hidden=(4, 4), num_latents=3, activation="tanh")
    state = vae.init(jax.random.key(0), cfg)
    gradient = jax.jit(jax.grad(lambda x: vae.encode(state, x, cfg).sum()))(jnp.full((1, 7, 9, 1), 0.3))
    assert (gradient != 0).all()
    images = vae.decode(state, jnp.array([[0.3, -1.0, 0.5], [1.0, 0.4, -0.2]]), cfg)
    assert (images[0] != images[1]).all()


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((15, 28, 1), r"at least 16 pixels either way, got \(15, 28, 1\): 16x28 would fit"),
        ((8, 8, 1), "16x16 would fit, or fewer entries in `hidden`"),
        ((2,), "use network mlp"),
    ],
)
def test_convolutional_sizes_that_do_not_fit_are_named(shape, words):
    cfg = vae.Config(shape=shape, network="conv", hidden=(4, 8, 16, 32))
    with pytest.raises(ValueError, match=words):
        vae.init(jax.random.key(0), cfg)
    fitting = dataclasses.replace(cfg, shape=(16, 28, 1))
    assert jax.eval_shape(lambda: vae.init(jax.random.key(0), fitting)).step.shape == ()


def test_output_bias_starts_at_the_mean_of_the_data():
    cfg = vae.Config(shape=(4, 4, 1), num_latents=2, hidden=(8,))
    image = jnp.linspace(-0.9, 0.9, 16).reshape(1, 4, 4, 1)
    state = vae.init(jax.random.key(0), cfg, {"image": jnp.repeat(image, 8, 0)})
    out = state.params["decoder"]["out"]
    np.testing.assert_allclose(jax.nn.sigmoid(out["bias"]), (image.ravel() + 1) / 2, atol=1e-5)


@pytest.mark.slow
def test_bfloat16_computes_and_keeps_float32_parameters():
    cfg = vae.Config(shape=(8, 8, 1), network="conv", hidden=(8,), num_latents=4, dtype="bfloat16")
    state = vae.init(jax.random.key(0), cfg)
    batch = {"image": jnp.zeros((4, 8, 8, 1))}
    state, metrics = jax.jit(functools.partial(vae.train_step, cfg=cfg))(state, batch)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    assert all(value.dtype == jnp.float32 for value in metrics.values())
    exact = vae.elbo(jax.random.key(1), state, batch["image"], dataclasses.replace(cfg, dtype="float32"))
    rough = vae.elbo(jax.random.key(1), state, batch["image"], cfg)
    np.testing.assert_allclose(rough, exact, rtol=0.02)


def test_networks_and_optimizer_of_ones_own_train_sample_and_load(tmp_path):
    cfg = vae.Config(
        shape=(2,),
        num_latents=2,
        likelihood="gaussian",
        dequantize=False,
        encoder=vae.DenseEncoder(vae.Config(hidden=(7,), num_latents=2)),
        decoder=vae.DenseDecoder(vae.Config(hidden=(9,), shape=(2,))),
        optimizer=optax.sgd(1e-3),
    )
    ring = data.load("ring")
    options = {"batch_size": 32, "key": jax.random.key(0), "mesh": shard.mesh(1), "sample_every": 0}
    state = jaxgen.fit(vae, cfg, ring, steps=20, run_dir=tmp_path, **options)
    assert state.params["encoder"]["Dense_0"]["kernel"].shape == (2, 7)
    with pytest.raises(jaxgen.RunError, match="its own decoder, encoder, optimizer"):
        jaxgen.load(tmp_path)
    family, cfg, loaded = jaxgen.load(tmp_path, cfg=cfg)
    assert family.sample(jax.random.key(1), loaded, 3, cfg).shape == (3, 2)


def test_it_learns_digits():
    train, test = data.load("digits"), data.load("digits", "test")
    cfg = vae.Config(hidden=(64,), num_latents=8, learning_rate=3e-3)
    options = {"batch_size": 64, "key": jax.random.key(0), "mesh": shard.mesh(1), "sample_every": 0}
    state = jaxgen.fit(vae, cfg, train, steps=1500, **options)
    x = jnp.asarray(test[:]["image"])
    bits = jnp.where(x > 0, 1.0, -1.0)
    mean = (train[:]["image"].mean(0) + 1) / 2
    independent = (x + 1) / 2 * np.log(np.clip(mean, 1e-3, 1)) + (1 - x) / 2 * np.log(
        np.clip(1 - mean, 1e-3, 1)
    )
    elbo = vae.elbo(jax.random.key(1), state, x, cfg)
    assert elbo.mean() > independent.sum((1, 2, 3)).mean() + 2.5
    rebuilt = vae.reconstruct(state, bits, cfg)
    assert ((rebuilt - bits) ** 2).mean() < 0.6 * ((2 * mean - 1 - bits) ** 2).mean()
    assert vae.iwae(jax.random.key(2), state, x, cfg, 50).mean() > elbo.mean()
