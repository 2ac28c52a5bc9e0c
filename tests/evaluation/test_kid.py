import jax
import numpy as np
import pytest

from jaxgen import shard
from jaxgen.evaluation import kid
from jaxgen.evaluation.kid import kernel_distance


def direct(x, y):
    """The double sums of the definition, in float64."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    kernel = lambda a, b: (a @ b.T / a.shape[1] + 1) ** 3
    n, m = len(x), len(y)
    xx, yy = kernel(x, x), kernel(y, y)
    within = (xx.sum() - xx.trace()) / (n * (n - 1)) + (yy.sum() - yy.trace()) / (m * (m - 1))
    return within - 2 * kernel(x, y).mean()


@pytest.mark.parametrize("offset", [0.0, 5.0, 1e3])
def test_whole_sets_agree_with_the_double_sums(offset):
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(400, 64)) + offset).astype(np.float32), rng.uniform(size=(400, 64)) + offset
    value, error = kernel_distance(x, y, subsets=2, subset_size=1000)
    assert value == pytest.approx(direct(x, y), rel=1e-4, abs=1e-6)
    assert error > 0


@pytest.mark.slow
def test_closed_form_of_a_shift():
    # The kernel is a cubic in each argument: four Gauss-Hermite nodes integrate it exactly.
    nodes, weights = np.polynomial.hermite_e.hermegauss(4)
    weights = weights / weights.sum()
    shift = 0.7
    expected_kernel = lambda a, b: weights @ ((nodes[:, None] + a) * (nodes + b) + 1) ** 3 @ weights
    expected = expected_kernel(shift, shift) + expected_kernel(0, 0) - 2 * expected_kernel(shift, 0)
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 20_000, 1))
    value, error = kernel_distance(x + shift, y, subsets=40, subset_size=500)
    assert abs(value - expected) < 4 * error
    assert error < 0.1 * expected


def test_unbiased_and_honest_about_its_error_under_equal_laws():
    rng = np.random.default_rng(2)
    results = []
    for seed in range(60):
        x, y = rng.normal(size=(2, 200, 16))
        results.append(kernel_distance(x, y, subsets=20, subset_size=100, key=jax.random.key(seed)))
    values, errors = np.array(results).T
    assert abs(values.mean()) < 4 * values.std() / np.sqrt(len(values))
    assert values.min() < 0
    assert 0.8 * values.std() < errors.mean() < 2 * values.std()


@pytest.mark.slow
def test_standard_error_is_the_spread_over_data_sets():
    rng = np.random.default_rng(3)
    results = []
    for seed in range(40):
        x, y = rng.normal(size=(200, 8)), 1.5 * rng.normal(size=(200, 8))
        results.append(kernel_distance(x, y, subsets=30, subset_size=50, key=jax.random.key(seed)))
        results.append(kernel_distance(x, y, subsets=30, subset_size=200, key=jax.random.key(seed)))
    for values, errors in (np.array(results[0::2]).T, np.array(results[1::2]).T):
        assert 0.6 < errors.mean() / values.std() < 1.7


@pytest.mark.slow
def test_split_over_devices():
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(2, 320, 24)).astype(np.float32)
    mesh = shard.mesh()
    placed = [shard.put_batch({"x": a}, mesh)["x"] for a in (x, y)]
    one = kernel_distance(x, y, subsets=5, subset_size=100)
    np.testing.assert_allclose(
        kernel_distance(*placed, subsets=5, subset_size=100), one, rtol=1e-4, atol=1e-7
    )


def test_compiled_once_for_a_shape():
    x = np.random.default_rng(5).normal(size=(50, 4))
    before = kid._row_sums._cache_size()
    for seed in range(3):
        kernel_distance(x, x + 1, subsets=3, subset_size=20, key=jax.random.key(seed))
    assert kid._row_sums._cache_size() == before + 1


def test_bad_input_is_named():
    x = np.zeros((10, 4))
    with pytest.raises(ValueError, match="f1 has 4 features and f2 has 5"):
        kernel_distance(x, np.zeros((10, 5)))
    with pytest.raises(ValueError, match="f2 has 3 examples, at least 4"):
        kernel_distance(x, x[:3])
    with pytest.raises(ValueError, match="f2 has 4 values that are not finite"):
        kernel_distance(x, np.where(np.arange(10)[:, None] == 3, np.nan, x))
    with pytest.raises(ValueError, match="at least 1 subset of 2 examples"):
        kernel_distance(x, x, subset_size=1)
