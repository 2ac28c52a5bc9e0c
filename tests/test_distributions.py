import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxgen import distributions


def test_bernoulli_sums_to_one_over_all_images():
    logits = jnp.array([[3.0, -1.0, 0.2, -50.0, 8.0]])
    x = jnp.array(list(itertools.product([0.0, 1.0], repeat=5)))
    total = jnp.exp(distributions.bernoulli_log_prob(x, jnp.broadcast_to(logits, x.shape))).sum()
    assert total == pytest.approx(1.0, abs=1e-5)


def test_bernoulli_is_finite_at_extreme_logits():
    value, gradient = jax.value_and_grad(
        lambda a: distributions.bernoulli_log_prob(jnp.array([[0.0, 1.0]]), a).sum()
    )(jnp.array([[100.0, -100.0]]))
    assert value == pytest.approx(-200.0)
    np.testing.assert_allclose(gradient, [[-1.0, 1.0]])


def test_normal_agrees_with_scipy():
    rng = np.random.default_rng(0)
    x, mean, log_variance = rng.normal(size=(3, 4, 2, 3))
    expected = scipy.stats.norm.logpdf(x, mean, np.exp(log_variance / 2)).sum((1, 2))
    np.testing.assert_allclose(distributions.normal_log_prob(x, mean, log_variance), expected, rtol=1e-5)
    np.testing.assert_allclose(
        distributions.normal_log_prob(x), scipy.stats.norm.logpdf(x).sum((1, 2)), rtol=1e-5
    )


def test_kl_agrees_with_monte_carlo_and_quadrature():
    mean, log_variance = jnp.array([[0.7, -1.2]]), jnp.array([[-1.0, 0.4]])
    closed = distributions.kl_normal(mean, log_variance)[0]
    z = mean + jnp.exp(0.5 * log_variance) * jax.random.normal(jax.random.key(0), (200_000, 2))
    ratio = distributions.normal_log_prob(z, mean, log_variance) - distributions.normal_log_prob(z)
    assert abs(ratio.mean() - closed) < 4 * ratio.std() / np.sqrt(len(ratio))
    grid = np.linspace(-12, 12, 20_001)
    quadrature = 0.0
    for m, v in zip(mean[0], log_variance[0], strict=True):
        q = scipy.stats.norm(float(m), float(np.exp(v / 2)))
        integrand = q.pdf(grid) * (q.logpdf(grid) - scipy.stats.norm.logpdf(grid))
        quadrature += np.trapezoid(integrand, grid)
    assert closed == pytest.approx(quadrature, rel=1e-5)


def test_bfloat16_inputs_are_summed_in_float32():
    logits = jnp.zeros((1, 4096), jnp.bfloat16)
    value = distributions.bernoulli_log_prob(jnp.zeros((1, 4096)), logits)
    assert value.dtype == jnp.float32
    assert value[0] == pytest.approx(-4096 * np.log(2), rel=1e-4)


def test_bernoulli_draws_have_their_probability():
    probability = jnp.broadcast_to(jnp.array([0.0, 0.001, 0.3, 0.999, 1.0]), (40_000, 5))
    bits = distributions.bernoulli(jax.random.key(0), probability)
    share, expected = bits.mean(0), probability[0]
    assert bits.dtype == bool
    assert share[0] == 0
    assert share[-1] == 1
    assert jnp.all(jnp.abs(share - expected) <= 4 * jnp.sqrt(expected * (1 - expected) / len(bits)))
    assert abs(jnp.corrcoef(bits[:, 1:4].T)[0, 1]) < 0.02
