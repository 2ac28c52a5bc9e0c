import numpy as np
import pytest
from scipy.special import logsumexp

from jaxgen.evaluation import parzen


@pytest.mark.parametrize(("d", "sigma"), [(2, 0.3), (50, 1.7)])
def test_agrees_with_the_definition(d, sigma):
    rng = np.random.default_rng(0)
    x, samples = rng.normal(size=(30, d)) + 5, rng.normal(size=(200, d)) + 5
    squared = ((x[:, None] - samples) ** 2).sum(-1)
    expected = logsumexp(-squared / (2 * sigma**2), 1) - np.log(200) - d / 2 * np.log(2 * np.pi * sigma**2)
    np.testing.assert_allclose(parzen.log_likelihood(x, samples, sigma), expected, rtol=1e-4)


def test_density_integrates_to_one():
    grid = np.linspace(-12, 12, 4001)
    samples = np.random.default_rng(1).normal(size=(50, 1))
    density = np.exp(parzen.log_likelihood(grid[:, None], samples, 0.5))
    assert np.trapezoid(density, grid) == pytest.approx(1.0, abs=1e-4)


def test_one_sample_is_a_gaussian():
    value = parzen.log_likelihood(np.array([[1.0, 2.0]]), np.zeros((1, 2)), 2.0)
    assert value[0] == pytest.approx(-5 / 8 - np.log(2 * np.pi * 4))


def test_sigma_is_the_best_on_validation_data():
    rng = np.random.default_rng(2)
    test, validation, samples = rng.normal(size=(3, 300, 2))
    sigmas = [0.01, 0.3, 5.0]
    found = parzen.evaluate(test, validation, samples, sigmas)
    assert found["sigma"] == 0.3
    values = parzen.log_likelihood(test, samples, 0.3)
    assert found["log_likelihood"] == pytest.approx(values.mean())
    assert found["standard_error"] == pytest.approx(values.std(ddof=1) / np.sqrt(300))
    assert found["log_likelihood"] == pytest.approx(-np.log(2 * np.pi * np.e), abs=0.3)


def test_bad_input_is_named():
    x = np.zeros((4, 2))
    with pytest.raises(ValueError, match="sigma must be positive"):
        parzen.log_likelihood(x, x, 0.0)
    with pytest.raises(ValueError, match="samples has 3 features and x has 2"):
        parzen.log_likelihood(x, np.zeros((4, 3)), 1.0)
    with pytest.raises(ValueError, match="x has 8 values that are not finite"):
        parzen.evaluate(x + np.nan, x, x)
