import numpy as np
import pytest

from jaxgen.evaluation.disentangle import dci, mutual_information_gap

PREDICTORS = ["gradient_boosting", "lasso"]


@pytest.fixture(scope="module")
def factors():
    rng = np.random.default_rng(0)
    return np.stack([rng.integers(0, size, 1500) for size in (3, 4, 6)], 1)


def test_gap_of_two_codes_agrees_with_the_definition(factors):
    factor = factors[:, 0]
    noisy = (factor + (np.arange(1500) % 5 == 0)) % 3
    noisier = (factor + (np.arange(1500) % 2 == 0)) % 3
    entropy = lambda *columns: (
        -sum(
            share * np.log(share)
            for share in np.unique(np.stack(columns), axis=1, return_counts=True)[1] / 1500
        )
    )
    information = [entropy(code) + entropy(factor) - entropy(code, factor) for code in (noisy, noisier)]
    found = mutual_information_gap(np.stack([noisier, noisy], 1), factor[:, None])
    assert found == pytest.approx((information[0] - information[1]) / entropy(factor))


def test_perfect_code_in_another_order_and_scale_is_one(factors):
    perfect = np.concatenate([-3.0 * factors[:, [2, 0, 1]] + 7, np.zeros((1500, 1))], 1)
    assert mutual_information_gap(perfect, factors) == pytest.approx(1.0, abs=0.02)
    for predictor in PREDICTORS:
        found = dci(perfect, factors, predictor)
        assert found["disentanglement"] > 0.98
        assert found["completeness"] > 0.98
        assert found["informativeness"] < 0.01
        assert found["predictor"] == predictor


@pytest.mark.slow
def test_random_code_is_zero(factors):
    random = np.random.default_rng(1).normal(size=(1500, 5))
    assert mutual_information_gap(random, factors) < 0.02
    found = dci(random, factors)
    assert found["disentanglement"] < 0.15
    assert found["completeness"] < 0.15
    assert found["informativeness"] == pytest.approx(1 - (1 / 3 + 1 / 4 + 1 / 6) / 3, abs=0.05)
    assert dci(random, factors, "lasso")["informativeness"] == pytest.approx(1.0, abs=0.05)


def test_rotated_code_informs_but_does_not_disentangle(factors):
    rotation = np.array([[2, 2, 1], [-2, 1, 2], [1, -2, 2]]) / 3
    standard = (factors - factors.mean(0)) / factors.std(0)
    found = dci(standard @ rotation, factors, "lasso")
    assert found["informativeness"] < 0.01
    assert found["disentanglement"] < 0.6
    assert mutual_information_gap(standard @ rotation, factors) < 0.3


def test_a_factor_told_twice_is_disentangled_but_not_complete(factors):
    twice = np.concatenate([factors, factors], 1) + 0.01 * np.random.default_rng(3).normal(size=(1500, 6))
    assert mutual_information_gap(twice, factors) < 0.05
    found = dci(twice, factors, "lasso")
    assert found["disentanglement"] > 0.95


def test_a_code_of_several_factors_is_complete_but_not_disentangled(factors):
    merged = np.stack([factors[:, 0] * 4 + factors[:, 1], factors[:, 2]], 1).astype(float)
    found = dci(merged, factors)
    assert found["completeness"] > 0.9
    assert found["disentanglement"] < 0.75


def test_bad_input_is_named(factors):
    codes = np.zeros((1500, 3))
    for metric in (mutual_information_gap, dci):
        with pytest.raises(
            ValueError, match=r"factors must be \(1500, factors\), as many as codes, not \(5, 3\)"
        ):
            metric(codes, factors[:5])
        with pytest.raises(ValueError, match="at least 2 codes are needed"):
            metric(codes[:, :1], factors)
        with pytest.raises(ValueError, match="factor 1 has the single value 0"):
            metric(codes, factors * [1, 0, 1])
        with pytest.raises(ValueError, match="factor 0 must be integers from 0"):
            metric(codes, factors - 0.5)
        with pytest.raises(ValueError, match="codes has 4500 values that are not finite"):
            metric(codes + np.nan, factors)
    with pytest.raises(ValueError, match="gradient_boosting, lasso, not 'tree'"):
        dci(codes, factors, "tree")
    with pytest.raises(ValueError, match="at least 2 factors"):
        dci(codes, factors[:, :1])
