"""The VAE against exact answers: a linear-Gaussian model, quadrature, and the identities of its objective."""

import dataclasses
import functools
import json
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxgen
from jaxgen import data, shard, values
from jaxgen.autoencoder import networks, vae
from jaxgen.autoencoder.flows import Flow, GivenSteps, Steps
from jaxgen.autoencoder.objectives import ELBO, IWAE, DReG
from jaxgen.autoencoder.posteriors import Categorical, LogNormal
from jaxgen.likelihoods import Bernoulli, Gaussian, LogisticMixture
from jaxgen.run import directory
from tests.autoencoder.linear import LinearDecoder, LinearEncoder, convolutional, dense

SMALL = vae.Config(num_latents=4, **dense(32))
RANDOM = tuple(
    dataclasses.replace(SMALL, **parts)
    for parts in (
        {"objective": IWAE(5, backward=2), "conditional": True},
        {"objective": DReG(3), "posterior": LogNormal(), "likelihood": Gaussian()},
        {"posterior": Categorical(), "likelihood": LogisticMixture(2)},
        {"posterior": Flow(GivenSteps(2), Steps(2))},
    )
)


def init(cfg, batch=None, seed=0):
    return jax.jit(functools.partial(vae.init, cfg=cfg))(jax.random.key(seed), batch=batch)


NOISE_STD = 0.5
WEIGHT = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 2)))[0].T * np.array([[2.0], [0.7]])
"""(2, 5), rows orthogonal: the exact posterior then has a diagonal covariance, as the encoder has."""


@pytest.fixture(scope="module")
def linear():
    """Config and State of x = z W + 0.5 eps whose encoder is the exact posterior, and data."""
    cfg = vae.Config(
        shape=(5,),
        num_latents=2,
        levels=0,
        likelihood=Gaussian(std=NOISE_STD),
        encoder=LinearEncoder(),
        decoder=LinearDecoder(),
    )
    state = init(cfg)
    variance = 1 / (1 + (WEIGHT**2).sum(1) / NOISE_STD**2)
    params = {
        "decoder": {"Dense_0": {"kernel": jnp.asarray(WEIGHT), "bias": jnp.zeros(5)}},
        "encoder": {
            "Dense_0": {"kernel": jnp.asarray(WEIGHT.T * variance / NOISE_STD**2), "bias": jnp.zeros(2)},
            "log_variance": jnp.log(jnp.asarray(variance)),
        },
        "likelihood": {},
    }
    params = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    x = jax.random.normal(jax.random.key(1), (16, 5)) * 1.5
    return cfg, state._replace(params=params), x


def exact_log_prob(x):
    covariance = WEIGHT.T @ WEIGHT + NOISE_STD**2 * np.eye(5)
    return jax.scipy.stats.multivariate_normal.logpdf(x, jnp.zeros(5), jnp.asarray(covariance, jnp.float32))


def test_with_the_exact_posterior_every_weight_is_the_likelihood(linear):
    cfg, state, x = linear
    bounds = jax.jit(lambda key: [vae.iwae(key, state, x, cfg, k) for k in (1, 40)])(jax.random.key(2))
    for bound in bounds:
        np.testing.assert_allclose(bound, exact_log_prob(x), rtol=1e-4)


def test_the_elbo_at_the_exact_posterior_is_the_likelihood(linear):
    cfg, state, x = linear
    keys = jax.random.split(jax.random.key(3), 4000)
    draws = jax.jit(jax.vmap(lambda key: vae.elbo(key, state, x, cfg).mean()))(keys)
    assert abs(draws.mean() - exact_log_prob(x).mean()) < 4 * draws.std() / np.sqrt(len(draws))


def test_bounds_are_ordered_and_approach_the_likelihood(linear):
    cfg, state, x = linear
    encoder = {**state.params["encoder"], "log_variance": state.params["encoder"]["log_variance"] + 1.0}
    state = state._replace(params={**state.params, "encoder": encoder})
    keys = jax.random.split(jax.random.key(4), 200)

    @jax.jit
    def bounds(key):
        weighted = [vae.iwae(key, state, x, cfg, k).mean() for k in (1, 5, 200)]
        return jnp.stack([vae.elbo(key, state, x, cfg).mean(), *weighted])

    found = jax.vmap(bounds)(keys)
    elbo, one, five, many = map(float, found.mean(0))
    exact = float(exact_log_prob(x).mean())
    error = float(found[:, 1].std()) / np.sqrt(len(keys))
    assert abs(elbo - one) < 5 * error
    assert one < five < many < exact + 1e-3
    assert many == pytest.approx(exact, abs=0.02)


@pytest.mark.slow
def test_importance_weighting_agrees_with_quadrature():
    cfg = vae.Config(shape=(6,), num_latents=1, likelihood=Bernoulli("threshold"), **dense(8))
    state = init(cfg, seed=5)
    params = jax.tree.map(lambda x: 3 * x, state.params)
    params["encoder"] = jax.tree.map(jnp.zeros_like, params["encoder"])  # the prior: covers every posterior
    state = state._replace(params=params)
    x = jnp.where(jax.random.bernoulli(jax.random.key(6), 0.5, (4, 6)), 1.0, -1.0)
    z = jnp.linspace(-8, 8, 4001)
    probability = (jax.jit(lambda z: vae.decode(state, z, cfg))(z[:, None]) + 1) / 2
    likelihood = jnp.where(x[:, None] > 0, probability, 1 - probability).prod(-1)
    exact = np.log(np.trapezoid(likelihood * jax.scipy.stats.norm.pdf(z), z))
    bound = jax.jit(lambda key: vae.iwae(key, state, x, cfg, 20_000))(jax.random.key(7))
    np.testing.assert_allclose(bound, exact, atol=0.02)


def test_beta_weighs_the_kl_alone():
    cfg = vae.Config(shape=(6,), num_latents=2, likelihood=Bernoulli(), **dense(8))
    params = init(cfg).params
    batch = {"x": jnp.linspace(-1, 1, 24).reshape(4, 6)}
    objectives = ELBO(), ELBO(beta=4.0)
    configs = [dataclasses.replace(cfg, objective=objective) for objective in objectives]
    losses = jax.jit(lambda key: [vae.loss(params, batch, key, c) for c in configs])(jax.random.key(1))
    assert losses[1][0] - losses[0][0] == pytest.approx(3 * float(losses[0][1]["kl"]), rel=1e-4)
    assert losses[1][1]["elbo"] == pytest.approx(float(losses[0][1]["elbo"]))


def test_gaussian_beta_is_a_rescaled_noise():
    cfg = vae.Config(shape=(6,), num_latents=2, levels=0, **dense(8))
    params = init(cfg).params
    batch = {"x": jnp.linspace(-1, 1, 24).reshape(4, 6)}

    def gradient(beta, std):
        changed = dataclasses.replace(cfg, objective=ELBO(beta), likelihood=Gaussian(std=std))
        return jax.jit(jax.grad(lambda p: vae.loss(p, batch, jax.random.key(1), changed)[0]))(params)

    weighted, rescaled = gradient(4.0, 0.3), gradient(1.0, 0.6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, 4 * b, rtol=1e-4, atol=1e-5), weighted, rescaled)


def test_dynamic_bits_have_the_grey_value_as_mean():
    x = jnp.array([[-1.0, -0.5, 0.0, 0.8, 1.0]])
    bits = Bernoulli().targets(jax.random.key(0), jnp.repeat(x, 20_000, 0))
    assert set(np.unique(bits)) == {-1.0, 1.0}
    np.testing.assert_allclose(bits.mean(0), x[0], atol=0.03)
    assert (bits[:, 0] == -1).all()
    assert (bits[:, 4] == 1).all()


@pytest.mark.parametrize("levels", [256, 17])
def test_dequantisation_fills_the_gaps_between_levels(levels):
    x = jnp.repeat(jnp.linspace(-1, 1, levels)[None], 500, 0)
    y = Gaussian(levels=levels).training_targets(jax.random.key(0), x)
    half = (levels - 1) / 2
    np.testing.assert_array_equal(jnp.round((y + 1) * half), jnp.broadcast_to(jnp.arange(levels), y.shape))
    assert (y - x).std() == pytest.approx(1 / half / np.sqrt(12), rel=0.02)
    for off in (Gaussian(levels=0), Gaussian(levels=levels, dequantize=False)):
        np.testing.assert_array_equal(off.training_targets(jax.random.key(0), x), x)


def test_levels_of_the_data_reach_the_loss_and_not_the_bound():
    cfg = vae.Config(shape=(6,), num_latents=2, likelihood=Gaussian(), **dense(8))
    state = init(cfg)
    x = jnp.linspace(-1, 1, 24).reshape(4, 6)
    configs = [dataclasses.replace(cfg, levels=levels) for levels in (256, 17, 0)]

    @jax.jit
    def evaluated(key):
        losses = [vae.loss(state.params, {"x": x}, key, c)[0] for c in configs]
        bounds = [(vae.elbo(key, state, x, c), vae.iwae(key, state, x, c, 2)) for c in configs]
        return losses, bounds

    losses, bounds = evaluated(jax.random.key(1))
    assert len(set(map(float, losses))) == 3
    np.testing.assert_array_equal(bounds[0], bounds[1])
    np.testing.assert_array_equal(bounds[0], bounds[2])
    assert [vae.measure(c) for c in (cfg, SMALL)] == ["density", "bits"]


def test_bits_drawn_from_the_likelihood_have_its_mean():
    cfg = vae.Config(shape=(6,), num_latents=2, likelihood=Bernoulli(), **dense(8))
    state = init(cfg)
    draw = lambda key: [vae.sample(key, state, 20_000, cfg, mean=mean) for mean in (True, False)]
    means, bits = jax.jit(draw)(jax.random.key(1))
    assert set(np.unique(bits)) == {-1.0, 1.0}
    np.testing.assert_allclose(bits.mean(0), means.mean(0), atol=0.03)


def test_pictures_are_bits_and_other_data_real_numbers_by_default():
    chosen = {
        (8, 8, 1): Bernoulli(),
        (6,): Gaussian("learned", std=1.0),
        (5, 3): Gaussian("learned", std=1.0),
    }
    batch = jax.random.normal(jax.random.key(0), (4, 64))
    for shape, likelihood in chosen.items():
        cfg = vae.Config(shape=shape, num_latents=2, levels=0, **dense(8))
        told = dataclasses.replace(cfg, likelihood=likelihood)
        assert vae.measure(cfg) == vae.measure(told) == likelihood.measure
        x = jnp.tanh(batch[:, : math.prod(shape)]).reshape(4, *shape)
        state = init(cfg)
        assert ("log_std" in state.params["likelihood"]) == (likelihood.measure == "density")
        bounds = [vae.elbo(jax.random.key(1), state, x, each) for each in (cfg, told)]
        np.testing.assert_array_equal(*bounds)


def test_gaussian_draws_have_the_noise_asked_for():
    cfg = vae.Config(shape=(6,), num_latents=2, likelihood=Gaussian(std=0.3), **dense(8))
    state = init(cfg)
    draw = lambda key: [vae.sample(key, state, 5_000, cfg, mean=mean) for mean in (True, False)]
    means, draws = jax.jit(draw)(jax.random.key(1))
    assert (draws - means).std() == pytest.approx(0.3, rel=0.02)


def test_any_image_size_round_trips_through_the_convolutions():
    for shape in [(28, 28, 3), (32, 32, 1), (8, 9, 1), (11, 13, 3), (4, 7, 2), (15, 31, 1)]:
        cfg = vae.Config(shape=shape, num_latents=4, **convolutional(8, 16))
        state = jax.eval_shape(lambda cfg=cfg: vae.init(jax.random.key(0), cfg))
        x = jax.ShapeDtypeStruct((5, *shape), jnp.float32)
        rebuilt = jax.eval_shape(lambda state, x, cfg=cfg: vae.reconstruct(state, x, cfg), state, x)
        assert rebuilt.shape == x.shape
        sizes = networks.sizes(shape, 2)
        assert sizes == [tuple(n // 2**depth for n in shape[:2]) for depth in range(3)]
        codes = state.params["encoder"]["Dense_0"]["kernel"]
        assert codes.shape[0] == 16 * sizes[-1][0] * sizes[-1][1]


@pytest.mark.slow
def test_every_pixel_of_an_odd_size_reaches_the_code_and_comes_back():
    cfg = vae.Config(shape=(7, 9, 1), num_latents=3, **convolutional(4, 4, activation="tanh"))
    state = init(cfg)
    gradient = jax.jit(jax.grad(lambda x: vae.encode(state, x, cfg).sum()))(jnp.full((1, 7, 9, 1), 0.3))
    assert (gradient != 0).all()
    decode = jax.jit(lambda z: vae.decode(state, z, cfg))
    images = decode(jnp.array([[0.3, -1.0, 0.5], [1.0, 0.4, -0.2]]))
    assert (images[0] != images[1]).all()


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((15, 28, 1), r"at least 16 pixels either way, got \(15, 28, 1\): 16x28 would fit"),
        ((8, 8, 1), "16x16 would fit, or fewer entries in `channels`"),
        ((2,), "use dense networks"),
    ],
)
def test_convolutional_sizes_that_do_not_fit_are_named(shape, words):
    cfg = vae.Config(shape=shape, **convolutional(4, 8, 16, 32))
    with pytest.raises(ValueError, match=words):
        vae.init(jax.random.key(0), cfg)
    fitting = dataclasses.replace(cfg, shape=(16, 28, 1))
    assert jax.eval_shape(lambda: vae.init(jax.random.key(0), fitting)).step.shape == ()


def test_output_bias_starts_at_the_mean_of_the_data():
    cfg = vae.Config(shape=(4, 4, 1), num_latents=2, **dense(8))
    image = jnp.linspace(-0.9, 0.9, 16).reshape(1, 4, 4, 1)
    state = init(cfg, {"image": jnp.repeat(image, 8, 0)})
    out = state.params["decoder"]["out"]
    np.testing.assert_allclose(jax.nn.sigmoid(out["bias"]), (image.ravel() + 1) / 2, atol=1e-5)


@pytest.mark.slow
def test_bfloat16_computes_and_keeps_float32_parameters():
    cfg = vae.Config(shape=(8, 8, 1), num_latents=4, dtype="bfloat16", **convolutional(8))
    state = init(cfg)
    batch = {"image": jnp.zeros((4, 8, 8, 1))}
    state, metrics = jax.jit(functools.partial(vae.train_step, cfg=cfg))(state, batch)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    assert all(value.dtype == jnp.float32 for value in metrics.values())
    exact = vae.elbo(jax.random.key(1), state, batch["image"], dataclasses.replace(cfg, dtype="float32"))
    rough = vae.elbo(jax.random.key(1), state, batch["image"], cfg)
    np.testing.assert_allclose(rough, exact, rtol=0.02)


class Encoder(nn.Module):
    """A network of one's own: a pair, and no field that a Config could fill in."""

    width: int = 7

    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Dense(self.width)(x))
        return nn.Dense(2)(x), nn.Dense(2)(x)


OWN = vae.Config(
    shape=(2,),
    num_latents=2,
    levels=0,
    likelihood=Gaussian(),
    encoder=Encoder(5),
    decoder=networks.DenseDecoder((9,)),
    optimizer=values.SGD(1e-3),
)


def test_networks_of_ones_own_are_read_back_and_an_optax_optimizer_is_asked_for(tmp_path):
    directory.write_text(tmp_path / "config.json", json.dumps(directory.describe(vae, OWN)))
    assert directory.read_config(vae, tmp_path) == OWN
    params = jax.eval_shape(lambda: vae.init(jax.random.key(0), OWN)).params
    assert params["encoder"]["Dense_0"]["kernel"].shape == (2, 5)
    cfg = dataclasses.replace(OWN, optimizer=optax.sgd(1e-3))
    directory.write_text(tmp_path / "config.json", json.dumps(directory.describe(vae, cfg)))
    with pytest.raises(jaxgen.RunError, match="its own optimizer"):
        directory.read_config(vae, tmp_path)


@pytest.mark.slow
def test_a_run_with_an_optax_optimizer_loads_with_its_config(tmp_path):
    cfg = dataclasses.replace(OWN, optimizer=optax.sgd(1e-3))
    options = {"batch_size": 32, "key": jax.random.key(0), "mesh": shard.mesh(1), "sample_every": 0}
    state = jaxgen.fit(vae, cfg, data.load("ring"), steps=3, run_dir=tmp_path, **options)
    with pytest.raises(jaxgen.RunError, match="its own optimizer"):
        jaxgen.load(tmp_path)
    family, cfg, loaded = jaxgen.load(tmp_path, cfg=cfg)
    np.testing.assert_array_equal(*(s.params["decoder"]["out"]["bias"] for s in (state, loaded)))
    assert family.sample(jax.random.key(1), loaded, 3, cfg).shape == (3, 2)


@pytest.mark.slow
def test_it_learns_digits():
    train, test = data.load("digits"), data.load("digits", "test")
    cfg = vae.Config(num_latents=8, optimizer=values.Adam(3e-3), **dense(64))
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
