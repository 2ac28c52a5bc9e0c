"""Filling in, redrawing and interpolating with the exact model of correlated Gaussian data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.diffusion import editing, processes, samplers, schedules

PROCESS = processes.gaussian(schedules.betas("linear", 200))
COVARIANCE = np.array([[1.0, 0.8], [0.8, 1.0]])
TIMES = samplers.spaced(200, 200)


def model(x, t):
    """E[eps | x_t] of data N(0, COVARIANCE)."""
    alpha, sigma = (jnp.float32(level)[t] for level in processes.levels(PROCESS, np.arange(200)))
    covariance = alpha[:, None, None] ** 2 * COVARIANCE + sigma[:, None, None] ** 2 * jnp.eye(2)
    return sigma[:, None] * jnp.linalg.solve(covariance, x[..., None])[..., 0]


def test_inpainting_keeps_what_is_known_and_fills_in_what_goes_with_it():
    known, mask = jnp.array([1.5, 0.0]), jnp.array([1, 0])
    filled = editing.inpainting(model, known, mask, PROCESS)
    x = jax.random.normal(jax.random.key(0), (4000, 2))
    sample = samplers.ddpm(filled, x, PROCESS, TIMES, jax.random.key(1), variance="fixed_large")
    np.testing.assert_allclose(sample[:, 0], 1.5, atol=1e-4)
    # The model sees the known part at its noise alone, so it falls short of the conditional mean.
    assert 0.5 < float(sample[:, 1].mean()) <= 0.8 * 1.5 + 0.05
    assert 0.5 < float(sample[:, 1].std()) < 1.0


@pytest.mark.slow
def test_redrawing_changes_more_the_stronger_it_is():
    x0 = jnp.asarray(np.random.default_rng(0).multivariate_normal(np.zeros(2), COVARIANCE, 5000), jnp.float32)
    changes, samples = [], []
    for strength in (0.05, 0.4, 1.0):
        x = editing.redraw(model, x0, PROCESS, TIMES, strength, jax.random.key(0))
        changes.append(float(((x - x0) ** 2).mean()))
        samples.append(x)
    assert changes[0] < 0.1 < changes[1] < changes[2]
    assert changes[2] == pytest.approx(2.0, rel=0.1)  # independent of the picture
    for x in samples:
        np.testing.assert_allclose(np.cov(x.T), COVARIANCE, atol=0.1)
    with pytest.raises(ValueError, match="in \\(0, 1\\]"):
        editing.redraw(model, x0, PROCESS, TIMES, 0.0, jax.random.key(0))


@pytest.mark.slow
def test_a_path_through_noise_joins_its_ends():
    first, second = jnp.array([[1.0, 0.5], [0.0, 1.0]]), jnp.array([[-1.0, 0.2], [0.3, -1.2]])
    path = editing.between(model, first, second, PROCESS, TIMES, 5, iterations=8)
    assert path.shape == (5, 2, 2)
    np.testing.assert_allclose(path[0], first, atol=1e-3)
    np.testing.assert_allclose(path[-1], second, atol=1e-3)
    assert (
        np.linalg.norm(np.diff(path, axis=0), axis=-1).max() < np.linalg.norm(first - second, axis=-1).max()
    )
