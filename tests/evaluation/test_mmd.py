import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxgen.evaluation import mmd


def closed_form(shift, s, t, d):
    """MMD^2 of N(m1, s I) and N(m2, s I) under exp(-|x - y|^2 / (2 t)), shift = m1 - m2."""
    return 2 * (t / (t + 2 * s)) ** (d / 2) * (1 - np.exp(-(shift @ shift) / (2 * (t + 2 * s))))


@pytest.mark.parametrize(("s", "t"), [(1.0, 2.0), (0.25, 5.0)])
def test_closed_form_of_gaussians(s, t):
    shift, rng = np.array([0.8, -0.3, 0.5]), np.random.default_rng(0)
    estimate = jax.jit(functools.partial(mmd.mmd2, kernel=functools.partial(mmd.gaussian, variance=t)))
    values = [
        float(estimate(*(np.sqrt(s) * rng.normal(size=(2, 300, 3)) + [[shift], [0 * shift]])))
        for _ in range(40)
    ]
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    assert abs(np.mean(values) - closed_form(shift, s, t, 3)) < 4 * error


@pytest.mark.slow
def test_unbiased_has_mean_zero_and_biased_is_above_it():
    rng = np.random.default_rng(1)
    pairs = [rng.normal(size=(2, 50, 4)) for _ in range(100)]
    unbiased = np.array([float(mmd.mmd2(*pair)) for pair in pairs])
    biased = np.array([float(mmd.mmd2(*pair, unbiased=False)) for pair in pairs[:20]])
    assert abs(unbiased.mean()) < 4 * unbiased.std() / 10
    assert (biased > 0).all()
    assert (biased > unbiased[:20]).all()


@pytest.mark.slow
@pytest.mark.parametrize("unbiased", [True, False])
def test_agrees_with_the_double_sums(unbiased):
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(60, 20)) + 100, rng.normal(size=(40, 20)) + 100.1
    kernel = lambda a, b: sum(
        (1 + ((a[:, None] - b) ** 2).sum(-1) / (2 * s)) ** -s for s in (0.2, 0.5, 1, 2, 5)
    )
    means = [
        (k.sum() - k.trace()) / (len(k) * (len(k) - 1)) if unbiased else k.mean()
        for k in (kernel(x, x), kernel(y, y))
    ]
    expected = sum(means) - 2 * kernel(x, y).mean()
    assert float(mmd.mmd2(x, y, unbiased=unbiased)) == pytest.approx(expected, rel=1e-3, abs=1e-6)
    observed, _ = mmd.permutation_test(jax.random.key(0), x, y, permutations=3, unbiased=unbiased)
    assert observed == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_biased_estimate_of_a_set_and_itself_is_zero():
    x = np.random.default_rng(3).normal(size=(50, 30))
    assert float(mmd.mmd2(x, x, unbiased=False)) == pytest.approx(0.0, abs=1e-6)


def test_variances_are_summed():
    squared = jnp.array([0.0, 3.0])
    total = mmd.gaussian(squared, [2.0, 5.0])
    np.testing.assert_allclose(total, mmd.gaussian(squared, 2.0) + mmd.gaussian(squared, 5.0))
    np.testing.assert_allclose(mmd.gaussian(squared, 2.0), np.exp([0, -0.75]), rtol=1e-6)


def test_median_heuristic_is_the_median_of_squared_distances():
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(2, 30, 5)) + 7
    pooled = np.concatenate([x, y])
    squared = [((a - b) ** 2).sum() for i, a in enumerate(pooled) for b in pooled[:i]]
    assert mmd.median_heuristic(x, y) == pytest.approx(np.median(squared), rel=1e-5)


def test_gradient_pulls_the_sets_together():
    rng = np.random.default_rng(5)
    x, y = jnp.asarray(rng.normal(size=(2, 80, 2)), jnp.float32)
    loss = jax.jit(jax.value_and_grad(lambda shift: mmd.mmd2(x + shift, y)))
    value, gradient = loss(jnp.array([1.0, 0.0]))
    step = 1e-2
    numeric = (loss(jnp.array([1 + step, 0.0]))[0] - loss(jnp.array([1 - step, 0.0]))[0]) / (2 * step)
    assert value > 0
    assert gradient[0] > 0
    assert gradient[0] == pytest.approx(float(numeric), rel=1e-2)


@pytest.mark.slow
def test_permutation_test_has_its_size_and_power():
    rng = np.random.default_rng(6)
    trials, level = 200, 0.05

    def rejections(scale):
        p_values = [
            mmd.permutation_test(
                jax.random.key(trial),
                rng.normal(size=(20, 3)),
                scale * rng.normal(size=(25, 3)),
                permutations=99,
            )[1]
            for trial in range(trials)
        ]
        return sum(p <= level for p in p_values)

    low, high = scipy.stats.binom.ppf([0.001, 0.999], trials, level)
    assert low <= rejections(1.0) <= high
    assert rejections(2.5) > 0.9 * trials


def test_permutation_test_of_one_point_repeated_sees_nothing():
    x = np.ones((10, 2))
    assert mmd.permutation_test(jax.random.key(0), x, x, permutations=20)[1] == 1.0


def test_bad_input_is_named():
    x = np.zeros((5, 2))
    for call in (mmd.mmd2, functools.partial(mmd.permutation_test, jax.random.key(0))):
        with pytest.raises(ValueError, match="x has 2 features and y has 3"):
            call(x, np.zeros((5, 3)))
        with pytest.raises(ValueError, match="y has 1 examples, at least 2 are needed for pairs"):
            call(x, x[:1])
        with pytest.raises(ValueError, match="y has 10 values that are not finite"):
            call(x, x + np.nan)
    with pytest.raises(ValueError, match="median distance is 0"):
        mmd.median_heuristic(x, x)
    with pytest.raises(ValueError, match="permutations must be at least 1"):
        mmd.permutation_test(jax.random.key(0), x, x, permutations=0)


@pytest.mark.slow
@pytest.mark.parametrize("apart", [0.0, 1e4])
def test_sets_far_from_the_origin_and_from_each_other_agree_with_float64(apart):
    """Thirty dimensions, so that distances are a matrix product."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 30)) + 1e5, 1.2 * rng.normal(size=(50, 30)) + 1e5 + apart
    kernel = lambda a, b: np.exp(-((a[:, None] - b) ** 2).sum(-1) / 60)
    off_diagonal = lambda k: (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))
    exact = off_diagonal(kernel(x, x)) + off_diagonal(kernel(y, y)) - 2 * kernel(x, y).mean()
    gaussian = functools.partial(mmd.gaussian, variance=30.0)
    assert float(mmd.mmd2(x, y, gaussian)) == pytest.approx(exact, rel=1e-4)
    assert mmd.permutation_test(jax.random.key(0), x, y, gaussian, 5)[0] == pytest.approx(exact, rel=1e-4)
