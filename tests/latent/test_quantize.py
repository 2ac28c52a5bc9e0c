"""Quantisation of codes: the error of rounding, and lengths that are those of a code."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.latent import quantize


@pytest.fixture(scope="module")
def codes():
    scale = jnp.array([1.0, 0.1, 5.0])
    return scale * jax.random.normal(jax.random.key(0), (4000, 3)) + jnp.array([0.0, 3.0, -2.0])


@pytest.mark.slow
def test_an_error_is_at_most_half_a_level(codes):
    quantizer = quantize.fit(codes, 9)
    levels = quantize.quantize(quantizer, codes)
    assert levels.min() == 0
    assert levels.max() == 8
    error = abs(quantize.dequantize(quantizer, levels) - codes)
    half = (codes.max(0) - codes.min(0)) / 16
    assert (error <= half * (1 + 1e-5)).all()
    assert (error.max(0) > 0.9 * half).all()
    np.testing.assert_array_equal(
        quantize.quantize(quantizer, quantize.dequantize(quantizer, levels)), levels
    )


def test_codes_out_of_range_get_the_outermost_level(codes):
    quantizer = quantize.fit(codes, 4)
    far = jnp.array([[1e6, -1e6, 0.0]])
    np.testing.assert_array_equal(quantize.quantize(quantizer, far)[0, :2], [3, 0])


def test_lengths_belong_to_a_code_near_the_entropy(codes):
    """Kraft: the sum of 2^-length over everything there is to send is 1."""
    quantizer = quantize.fit(codes, 5)
    everything = jnp.array(list(itertools.product(range(5), repeat=3)))
    assert (2.0 ** -quantize.code_length(quantizer, everything)).sum() == pytest.approx(1, abs=1e-5)
    levels = np.asarray(quantize.quantize(quantizer, codes))
    shares = [np.bincount(column, minlength=5) / len(column) for column in levels.T]
    entropy = -sum((p[p > 0] * np.log2(p[p > 0])).sum() for p in shares)
    assert entropy <= quantize.code_length(quantizer, levels).mean() < entropy + 0.01


@pytest.mark.slow
def test_a_constant_dimension_costs_nothing_and_one_level_is_refused():
    codes = jnp.concatenate([jnp.linspace(0, 1, 1000)[:, None], jnp.full((1000, 1), 7.0)], 1)
    quantizer = quantize.fit(codes, 4)
    levels = quantize.quantize(quantizer, codes)
    np.testing.assert_allclose(quantize.dequantize(quantizer, levels)[:, 1], 7.0)
    ends_are_half = np.log2(6) / 3 + np.log2(3) * 2 / 3
    assert quantize.code_length(quantizer, levels).mean() == pytest.approx(ends_are_half, abs=0.02)
    with pytest.raises(ValueError, match="at least 2"):
        quantize.fit(codes, 1)
