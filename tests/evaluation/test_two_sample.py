import numpy as np
import pytest
import scipy.stats

from jaxgen.evaluation.two_sample import classifier_test, nearest_neighbour_accuracy


def test_classifier_test_has_its_size():
    rng = np.random.default_rng(0)
    results = [classifier_test(*rng.normal(size=(2, 100, 3)), seed=seed) for seed in range(200)]
    assert sum(r["p_value"] <= 0.05 for r in results) <= scipy.stats.binom.ppf(0.999, 200, 0.05)
    accuracies = np.array([r["accuracy"] for r in results])
    assert abs(accuracies.mean() - 0.5) < 4 * accuracies.std() / np.sqrt(200)
    assert accuracies.std() == pytest.approx(np.sqrt(1 / (4 * 100)), rel=0.2)


def test_classifier_test_sees_a_shift_and_a_change_of_shape():
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 600, 4))
    shifted = classifier_test(x, y + [0.8, 0, 0, 0], LogisticRegression())
    expected = scipy.stats.norm.cdf(0.4)
    assert abs(shifted["accuracy"] - expected) < 4 * np.sqrt(expected * (1 - expected) / 600)
    assert shifted["p_value"] < 1e-4
    assert classifier_test(x, 2.5 * y)["p_value"] < 1e-4
    assert classifier_test(x, 2.5 * y, LogisticRegression())["p_value"] > 1e-4


def test_classifier_test_is_fair_to_sets_of_different_size():
    rng = np.random.default_rng(2)
    assert classifier_test(rng.normal(size=(1000, 2)), rng.normal(size=(100, 2)))["accuracy"] < 0.7


def test_nearest_neighbours_of_equal_laws_are_anyones():
    rng = np.random.default_rng(3)
    found = nearest_neighbour_accuracy(*rng.normal(size=(2, 2000, 3)))
    assert list(found) == ["accuracy", "real", "fake"]
    for value in found.values():
        assert value == pytest.approx(0.5, abs=0.05)


def test_nearest_neighbours_tell_copies_apart_sets_and_collapse():
    rng = np.random.default_rng(4)
    real = rng.normal(size=(400, 5))
    apart = nearest_neighbour_accuracy(real, rng.normal(size=(400, 5)) + 50)
    assert apart == {"accuracy": 1.0, "real": 1.0, "fake": 1.0}
    copies = nearest_neighbour_accuracy(real, real + 1e-4 * rng.normal(size=real.shape))
    assert copies == {"accuracy": 0.0, "real": 0.0, "fake": 0.0}
    collapsed = nearest_neighbour_accuracy(real, real[:1] + 1e-3 * rng.normal(size=real.shape))
    assert collapsed["fake"] > 0.99
    assert collapsed["real"] > 0.9


def test_bad_input_is_named():
    x = np.zeros((10, 2))
    with pytest.raises(ValueError, match="real has 10 and fake 9 examples"):
        nearest_neighbour_accuracy(x, x[:9])
    for test in (classifier_test, nearest_neighbour_accuracy):
        with pytest.raises(ValueError, match="real has 2 features and fake has 3"):
            test(x, np.zeros((10, 3)))
        with pytest.raises(ValueError, match="fake has 1 examples, at least"):
            test(x, x[:1])
        with pytest.raises(ValueError, match="fake has 20 values that are not finite"):
            test(x, x + np.nan)
