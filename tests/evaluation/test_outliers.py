import numpy as np
import pytest

from jaxgen.evaluation import outliers


@pytest.mark.parametrize("levels", [3, 10_000])
def test_areas_agree_with_their_definitions_with_and_without_ties(levels):
    rng = np.random.default_rng(levels)
    score_in, score_out = rng.integers(0, levels, 200) + levels // 4, rng.integers(0, levels, 150)
    found = outliers.evaluate(score_in, score_out)
    higher, tied = score_in[:, None] > score_out, score_in[:, None] == score_out
    assert found["auroc"] == pytest.approx((higher + 0.5 * tied).mean())
    assert found["aupr_in"] == pytest.approx(average_precision(score_in, score_out))
    assert found["aupr_out"] == pytest.approx(average_precision(-score_out, -score_in))


def average_precision(positive, negative):
    """The sum over thresholds of precision times the step in recall."""
    area, before = 0.0, 0.0
    for threshold in sorted({*positive, *negative}, reverse=True):
        hits, alarms = (positive >= threshold).sum(), (negative >= threshold).sum()
        recall = hits / len(positive)
        area, before = area + hits / (hits + alarms) * (recall - before), recall
    return area


def test_area_is_the_fraction_of_pairs_with_ties_half():
    score_in, score_out = np.array([1.0, 2.0, 2.0]), np.array([0.0, 2.0])
    pairs = np.mean([(a > b) + 0.5 * (a == b) for a in score_in for b in score_out])
    assert outliers.auroc(score_in, score_out) == pytest.approx(pairs)
    assert outliers.auroc(-score_in, -score_out) == pytest.approx(1 - pairs)
    assert outliers.auroc(score_in, score_in) == 0.5


def test_equal_laws_and_separated_ones():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 20_000))
    found = outliers.evaluate(x, y)
    assert found["auroc"] == pytest.approx(0.5, abs=0.02)
    assert found["aupr_in"] == pytest.approx(0.5, abs=0.02)
    assert found["fpr_at_95"] == pytest.approx(0.95, abs=0.02)
    apart = outliers.evaluate(x + 100, y)
    assert apart == {"auroc": 1.0, "aupr_in": 1.0, "aupr_out": 1.0, "fpr_at_95": 0.0}


def test_typicality_finds_what_is_too_likely():
    # In 100 dimensions a Gaussian's mode is its likeliest point and nowhere near a draw.
    rng = np.random.default_rng(1)
    log_prob = lambda x: -0.5 * (x**2).sum(1) - 50 * np.log(2 * np.pi)
    x, near_mode = rng.normal(size=(500, 100)), 0.1 * rng.normal(size=(500, 100))
    entropy = 50 * (1 + np.log(2 * np.pi))
    assert outliers.auroc(log_prob(x), log_prob(near_mode)) == 0.0
    typical = [outliers.typicality(log_prob(points), entropy) for points in (x, near_mode)]
    assert outliers.auroc(*typical) == 1.0


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="score_out is empty"):
        outliers.auroc([1.0], [])
    with pytest.raises(ValueError, match="score_in has 1 values that are not finite"):
        outliers.evaluate([1.0, np.nan], [0.0])
    with pytest.raises(ValueError, match=r"positive must hold one number an example, \(N,\), not \(2, 1\)"):
        outliers.aupr(np.zeros((2, 1)), [0.0])
