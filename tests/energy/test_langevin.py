"""Langevin dynamics: its variance on a Gaussian in closed form, and modes far apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.energy import langevin

KEY = jax.random.key(0)
NUM_CHAINS = 20_000
WEIGHTS, MEANS, STD = np.array([0.25, 0.75]), np.array([-4.0, 4.0]), 0.5


def mixture(x, level=0.0):
    """The score of two Gaussians far apart, with noise of this level."""
    variance = STD**2 + level**2
    logits = jnp.log(WEIGHTS) - 0.5 * (x - MEANS) ** 2 / variance
    return (jax.nn.softmax(logits) * (MEANS - x)).sum(-1, keepdims=True) / variance


@jax.jit
def on_a_gaussian(variance, step_size, noise):
    """The mean and the variance of chains, whose correlations with their starts are below 1e-8."""
    zeros = jnp.zeros((NUM_CHAINS, 1))
    x = langevin.chain(KEY, lambda x: -x / variance, zeros, 40, step_size, noise)
    return x.mean(), x.var()


@pytest.mark.parametrize(("std", "step_size"), [(1.0, 1.0), (0.5, 0.2), (2.0, 12.0)])
def test_a_chain_on_a_gaussian_has_the_variance_of_its_discretisation(std, step_size):
    """s^2 / (1 - step_size / (4 s^2)): more than the density's, and in proportion to that of the noise."""
    wanted = std**2 / (1 - step_size / (4 * std**2))
    for share in (1.0, 0.5):
        mean, variance = on_a_gaussian(std**2, step_size, share * step_size**0.5)
        assert float(variance) == pytest.approx(share**2 * wanted, rel=0.05)  # its error is 0.01
        assert float(mean) == pytest.approx(0.0, abs=5 * np.sqrt(wanted / NUM_CHAINS))


def test_steps_are_those_of_the_equation():
    """With fresh noise at each of them, and back in the space of the data after each."""
    with jax.enable_x64(True):
        start = jnp.array([[0.3, -0.2], [1.5, 0.1]])
        inside = lambda x: jnp.clip(x, -0.4, 0.4)
        for noise in (None, 0.05):
            x = np.asarray(start)
            for k in range(3):
                eps = np.asarray(jax.random.normal(jax.random.fold_in(KEY, k), (2, 2)))
                x = x - 0.5 * 0.1 * np.sinh(x) + (0.1**0.5 if noise is None else noise) * eps
                x = np.clip(x, -0.4, 0.4)
            found = langevin.chain(KEY, lambda x: -jnp.sinh(x), start, 3, 0.1, noise, inside)
            np.testing.assert_allclose(found, x, rtol=1e-12)
        np.testing.assert_array_equal(langevin.chain(KEY, jnp.sinh, start, 0, 0.1), start)
    with pytest.raises(ValueError, match="num_steps must not be negative, got -1"):
        langevin.chain(KEY, jnp.sinh, start, -1, 0.1)


def test_annealed_steps_are_those_of_the_algorithm():
    """alpha_i = epsilon sigma_i^2 / sigma_L^2, at each level so many, by the score at that level."""
    with jax.enable_x64(True):
        start, levels, epsilon = jnp.array([[0.3, -0.2], [1.5, 0.1]]), np.array([2.0, 0.7, 0.1]), 0.01
        x = np.asarray(start)
        for index, level in enumerate(levels):
            size = epsilon * level**2 / levels[-1] ** 2
            for k in range(2):
                key = jax.random.fold_in(jax.random.fold_in(KEY, index), k)
                eps = np.asarray(jax.random.normal(key, x.shape))
                x = x - 0.5 * size * np.tanh(x) / (1 + level**2) + np.sqrt(size) * eps
        score = lambda x, level: -jnp.tanh(x) / (1 + level**2)
        found = langevin.annealed(KEY, score, start, levels, epsilon, 2)
        np.testing.assert_allclose(found, x, rtol=1e-12)


def test_annealing_finds_the_weights_of_modes_that_a_chain_does_not():
    levels, start = np.geomspace(8.0, 0.1, 10), 8.0 * jax.random.normal(KEY, (2000, 1))
    annealed = jax.jit(lambda x: langevin.annealed(jax.random.key(1), mixture, x, levels, 2e-3, 30))
    plain = jax.jit(lambda x: langevin.chain(jax.random.key(1), mixture, x, 300, 0.02))
    x = np.asarray(annealed(start))
    assert (x > 0).mean() == pytest.approx(0.75, abs=0.05)  # its error is 0.01
    assert x[x > 0].mean() == pytest.approx(4.0, abs=0.05)
    assert STD < x[x > 0].std() < 1.2 * STD  # a little of the levels before is left
    assert (plain(start) > 0).mean() < 0.6


def test_chains_have_forward_derivatives():
    """Along a direction, by differences."""
    with jax.enable_x64(True):
        run = lambda x: langevin.chain(KEY, lambda x: -jnp.sinh(x), x, 4, 0.1)
        x, direction = jnp.array([[0.3, -0.2]]), jnp.array([[1.0, 2.0]])
        _, tangent = jax.jvp(run, (x,), (direction,))
        difference = (run(x + 1e-6 * direction) - run(x - 1e-6 * direction)) / 2e-6
        np.testing.assert_allclose(tangent, difference, rtol=1e-7)
