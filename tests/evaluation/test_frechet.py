import numpy as np
import pytest
import scipy.linalg

from jaxgen.evaluation.frechet import Moments, frechet_distance


def moments_of(x):
    return x.mean(0), np.cov(x.T)


def covariance(rng, eigenvalues):
    rotation = np.linalg.qr(rng.normal(size=(len(eigenvalues), len(eigenvalues))))[0]
    return (rotation * eigenvalues) @ rotation.T, rotation


def test_agrees_with_the_matrix_square_root():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(500, 60)) @ rng.normal(size=(60, 60)), rng.uniform(size=(300, 60)) + 1
    (m1, s1), (m2, s2) = moments_of(x), moments_of(y)
    root = scipy.linalg.sqrtm(s1 @ s2)
    expected = ((m1 - m2) ** 2).sum() + np.trace(s1 + s2 - 2 * root.real)
    assert frechet_distance(m1, s1, m2, s2) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("scale", [0.1, 1.0, 7.0])
def test_closed_form_of_spherical_gaussians(scale):
    mean = np.linspace(-1, 2, 50)
    value = frechet_distance(mean, np.eye(50), np.zeros(50), scale**2 * np.eye(50))
    assert value == pytest.approx((mean**2).sum() + 50 * (1 - scale) ** 2, rel=1e-12)


def test_singular_covariances_that_commute_have_a_closed_form():
    rng = np.random.default_rng(1)
    a, b = np.zeros((2, 120))
    a[:40], b[20:90] = rng.uniform(0.5, 2, 40), rng.uniform(0.5, 2, 70)
    s1, rotation = covariance(rng, a)
    s2 = (rotation * b) @ rotation.T
    mean = np.zeros(120)
    value = frechet_distance(mean, s1, mean, s2)
    assert value == pytest.approx(((np.sqrt(a) - np.sqrt(b)) ** 2).sum(), rel=1e-12)


def test_point_masses_are_as_far_apart_as_their_means():
    assert frechet_distance([0.0, 3.0], np.zeros((2, 2)), [4.0, 0.0], np.zeros((2, 2))) == 25.0
    assert frechet_distance([1.0], [[4.0]], [0.0], [[0.0]]) == pytest.approx(5.0)


def test_fewer_examples_than_dimensions():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(20, 100)), rng.normal(size=(30, 100))
    value = frechet_distance(*moments_of(x), *moments_of(y))
    # tr (S1 S2)^(1/2) is the nuclear norm of the product of the centred data themselves.
    product = (x - x.mean(0)) @ (y - y.mean(0)).T / np.sqrt(19 * 29)
    traces = np.cov(x.T).trace() + np.cov(y.T).trace() - 2 * np.linalg.svd(product, compute_uv=False).sum()
    assert value == pytest.approx(((x.mean(0) - y.mean(0)) ** 2).sum() + traces, rel=1e-10)


def test_zero_at_equality_symmetric_and_invariant_under_rotation():
    rng = np.random.default_rng(3)
    first = moments_of(rng.normal(size=(40, 30)))
    second = moments_of(2 * rng.normal(size=(50, 30)) + 0.3)
    assert frechet_distance(*first, *(m.copy() for m in first)) == 0.0
    assert frechet_distance(first[0], first[1], first[0], first[1] * (1 + 1e-15)) == pytest.approx(
        0, abs=1e-12
    )
    value = frechet_distance(*first, *second)
    assert value == pytest.approx(frechet_distance(*second, *first), rel=1e-12)
    q = np.linalg.qr(rng.normal(size=(30, 30)))[0]
    rotated = [m for mean, cov in (first, second) for m in (q @ mean, q @ cov @ q.T)]
    assert frechet_distance(*rotated) == pytest.approx(value, rel=1e-11)


def test_moments_do_not_depend_on_the_split():
    rng = np.random.default_rng(4)
    x = (rng.normal(size=(9000, 12)) + 1e4).astype(np.float32)
    whole = Moments().update(x)
    batches = Moments()
    for start in range(0, len(x), 700):
        batches.update(x[start : start + 700])
    merged = Moments().merge(Moments())
    for part in np.split(x, [1, 2, 8000]):
        seen = Moments().update(part)
        merged.merge(Moments(seen.count, seen.mean, seen.scatter))
    for moments in (whole, batches, merged):
        assert moments.count == 9000
        np.testing.assert_allclose(moments.mean, x.mean(0, dtype=np.float64), rtol=1e-13)
        np.testing.assert_allclose(moments.covariance, np.cov(x.T.astype(np.float64)), rtol=1e-9, atol=1e-10)


def test_merging_leaves_the_other_accumulator_alone():
    first, second = Moments(), Moments().update(np.eye(3))
    first.merge(second).update(np.ones((2, 3)))
    assert second.count == 3
    np.testing.assert_allclose(second.covariance, np.cov(np.eye(3)))


def test_bad_input_is_named():
    good = np.zeros(3), np.eye(3)
    with pytest.raises(ValueError, match="3 and of 2 features"):
        frechet_distance(*good, np.zeros(2), np.eye(2))
    with pytest.raises(ValueError, match=r"mean2 must be \(d,\) and cov2"):
        frechet_distance(*good, np.zeros(3), np.eye(2))
    with pytest.raises(ValueError, match="cov1 has 9 values that are not finite"):
        frechet_distance(np.zeros(3), np.full((3, 3), np.nan), *good)
    with pytest.raises(ValueError, match="features has 2 values that are not finite"):
        Moments().update(np.array([[1.0, np.nan], [np.inf, 0.0]]))
    with pytest.raises(ValueError, match="4 dimensions, those before had 3"):
        Moments().update(np.eye(3)).update(np.eye(4))
    with pytest.raises(ValueError, match="4 dimensions, those before had 3"):
        Moments().update(np.eye(3)).merge(Moments().update(np.eye(4)))
    with pytest.raises(ValueError, match="at least 2 examples, not 1"):
        _ = Moments().update(np.ones((1, 3))).covariance
