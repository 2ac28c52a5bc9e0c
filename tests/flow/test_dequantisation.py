"""Noise within levels: it stays there, its density is right, and the bound is one."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from jaxgen.flow.dequantisation import Uniform, Variational, nearest
from jaxgen.nn.couplings import ConvNet
from tests.flow.check import shaken

LEVELS = 5
SHAPE = (2, 2, 1)
SMALL = Variational(num_layers=2, network=ConvNet(4))
IMAGE = jnp.float32([-1.0, -0.5, 0.5, 1.0]).reshape(1, *SHAPE)


def draws(dequantisation, params, count, key=1):
    """Of IMAGE, and their log-densities."""
    x = jnp.broadcast_to(IMAGE, (count, *SHAPE))
    return jax.jit(lambda key: dequantisation.draw(key, params, x, LEVELS))(jax.random.key(key))


@functools.cache
def params(scale):
    return shaken(jax.jit(lambda key: SMALL.init(key, SHAPE, LEVELS))(jax.random.key(0)), scale)


@pytest.mark.parametrize("kind", ["uniform", "variational"])
def test_noise_is_uniform_at_first(kind):
    dequantisation, own = {"uniform": (Uniform(), ()), "variational": (SMALL, params(0.0))}[kind]
    x, log_ratio = draws(dequantisation, own, 2000)
    np.testing.assert_allclose(log_ratio, 0, atol=1e-4)
    assert scipy.stats.kstest(np.ravel((x - IMAGE) / 0.5 + 0.5), "uniform").pvalue > 0.01


@pytest.mark.parametrize("scale", [0.3, 100.0])
def test_noise_stays_within_its_level(scale):
    x, log_ratio = draws(SMALL, params(scale), 500)
    assert jnp.abs(x - IMAGE).max() <= 0.25 + 1e-6
    np.testing.assert_allclose(nearest(x, LEVELS), jnp.broadcast_to(IMAGE, x.shape), atol=0.5 + 1e-6)
    assert not np.isnan(log_ratio).any()
    assert (x.std(0) > 0.01).all() or scale > 1


@pytest.mark.slow
def test_the_density_of_the_noise_is_that_of_its_jacobian():
    with jax.enable_x64(True):
        own = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), params(0.3))
        image, noise = jnp.float64(IMAGE), jax.random.normal(jax.random.key(3), (1, *SHAPE), jnp.float64)
        flow = SMALL._couplings(SHAPE)

        def place(noise):
            y = flow.inverse(own, noise.reshape(1, *SHAPE), image)[0]
            return jax.scipy.stats.norm.cdf(y).ravel()

        expected = jax.scipy.stats.norm.logpdf(noise).sum()
        expected -= jnp.linalg.slogdet(jax.jacfwd(place)(noise.ravel()))[1]
        x, log_ratio = SMALL.draw(jax.random.key(3), own, image, LEVELS)
        np.testing.assert_allclose(log_ratio, expected, rtol=1e-6)
        np.testing.assert_allclose((x - image).ravel() / 0.5 + 0.5, place(noise), rtol=1e-6)


def gaussian(x):
    """log p of dequantised images under a narrow normal, (N,)."""
    return jax.scipy.stats.norm.logpdf(x, 0.2, 0.3).sum((1, 2, 3))


def of_level():
    """log P of IMAGE exactly, as a density spread over the levels."""
    ends = np.asarray(IMAGE).ravel()
    share = scipy.stats.norm.cdf(ends + 0.25, 0.2, 0.3) - scipy.stats.norm.cdf(ends - 0.25, 0.2, 0.3)
    return np.log(share / 0.5).sum()


@pytest.mark.parametrize("scale", [0.0, 0.3])
def test_the_bound_is_below_the_probability_of_the_level_and_its_exponential_on_average_right(scale):
    x, log_ratio = draws(SMALL, params(scale), 20_000)
    bound = gaussian(x) - log_ratio
    np.testing.assert_allclose(np.log(np.exp(bound).mean()), of_level(), atol=0.1)
    assert bound.mean() < of_level() - 0.05


@pytest.mark.slow
def test_learned_noise_tightens_the_bound_and_stays_below():
    optimizer = optax.adam(1e-2)
    x = jnp.broadcast_to(IMAGE, (64, *SHAPE))

    def loss(own, key):
        noisy, log_ratio = SMALL.draw(key, own, x, LEVELS)
        return (log_ratio - gaussian(noisy)).mean()

    @jax.jit
    def train(own):
        def step(carry, key):
            own, state = carry
            updates, state = optimizer.update(jax.grad(loss)(own, key), state)
            return (optax.apply_updates(own, updates), state), None

        return jax.lax.scan(step, (own, optimizer.init(own)), jax.random.split(jax.random.key(0), 500))[0][0]

    means = []
    for own in (params(0.0), train(params(0.0))):
        noisy, log_ratio = draws(SMALL, own, 20_000)
        bound = gaussian(noisy) - log_ratio
        means.append(float(bound.mean()))
        assert means[-1] < of_level() + 3 * bound.std() / np.sqrt(len(bound))
    gap = of_level() - np.array(means)
    assert gap[1] < 0.2 * gap[0]


def test_data_set_the_scales_of_its_network_and_change_no_shape():
    x = jnp.float32(np.random.default_rng(0).normal(size=(30, *SHAPE)))
    given = jax.jit(lambda x: SMALL.init(jax.random.key(0), SHAPE, LEVELS, x))(x)
    assert jax.tree.map(jnp.shape, given) == jax.tree.map(jnp.shape, params(0.0))
    assert (given["ActNorm_0"]["log_scale"] != params(0.0)["ActNorm_0"]["log_scale"]).any()


def test_data_without_levels():
    x, log_ratio = Uniform().draw(jax.random.key(0), (), IMAGE, 0)
    np.testing.assert_array_equal(x, IMAGE)
    np.testing.assert_array_equal(log_ratio, 0)
    with pytest.raises(ValueError, match="variational dequantisation is for pixels"):
        SMALL.init(jax.random.key(0), SHAPE, 0)
    with pytest.raises(ValueError, match="must be at least 1"):
        dataclasses.replace(SMALL, num_layers=0).init(jax.random.key(0), SHAPE, LEVELS)


def test_the_nearest_level():
    x = jnp.float32([-1.3, -0.8, -0.7, 0.1, 0.9, 1.2])
    np.testing.assert_allclose(nearest(x, LEVELS), [-1, -1, -0.5, 0, 1, 1])
    np.testing.assert_array_equal(nearest(x, 0), x)
