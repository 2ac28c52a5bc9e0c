"""Dequantisation, and what a preprocessing is of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.flow.preprocessing import Logit, Standardize, dequantised


def test_noise_is_uniform_and_one_level_wide():
    x = jnp.float32(np.repeat([-1.0, 0.0, 1.0], 1000)[:, None])
    noisy = dequantised(jax.random.key(0), x, levels=17)
    noise = np.asarray(noisy - x)
    assert np.abs(noise).max() <= 1 / 16
    assert noise.std() == pytest.approx(2 / 16 / np.sqrt(12), rel=0.02)
    assert noise.mean() == pytest.approx(0, abs=1e-3)
    np.testing.assert_array_equal(dequantised(jax.random.key(0), x, levels=0), x)


def test_preprocessing_of_either_kind():
    x = jnp.float32(np.random.default_rng(0).uniform(-1, 1, (500, 2)))
    for preprocessing in (Standardize(), Logit(0.05)):
        bijector = preprocessing.bijector(2, 256)
        y, _ = jax.jit(lambda x, b=bijector: b.forward(b.init(jax.random.key(0), x), x))(x)
        np.testing.assert_allclose(y.mean(0), 0, atol=1e-4)
        np.testing.assert_allclose(y.std(0), 1, atol=1e-3)
    # Standardised data are a line of x, and their logit is not.
    slopes = np.gradient(np.asarray(y)[np.argsort(x[:, 0]), 0], np.sort(x[:, 0]))
    assert slopes.max() > 1.5 * slopes.min()


def test_alpha_sets_how_far_the_ends_are_moved_in():
    params = ((), {"shift": jnp.zeros(1), "log_scale": jnp.zeros(1)})
    end = lambda alpha: Logit(alpha).bijector(1, 256).inverse(params, jnp.full((1, 1), 30.0))[0][0, 0]
    assert end(0.05) > end(0.01) > 1 + 1 / 255
    for alpha in (0.0, 0.5, -1.0):
        with pytest.raises(ValueError, match=r"alpha must be above 0 and below 0\.5"):
            Logit(alpha)


def test_data_without_levels_have_no_logit():
    with pytest.raises(ValueError, match="logit preprocessing is for pixels, and these data have 0 levels"):
        Logit().bijector(2, 0)
