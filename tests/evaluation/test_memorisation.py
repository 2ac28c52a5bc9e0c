import numpy as np
import pytest

from jaxgen.evaluation.memorisation import closer_to_training, nearest_training


@pytest.mark.parametrize("d", [3, 100])
def test_nearest_agrees_with_all_distances(d):
    rng = np.random.default_rng(0)
    samples, train = rng.normal(size=(50, d)) + 9, rng.normal(size=(200, d)) + 9
    train[17] = samples[3]
    index, distance = nearest_training(samples, train)
    exact = np.sqrt(((samples[:, None] - train) ** 2).sum(-1))
    np.testing.assert_array_equal(index, exact.argmin(1))
    np.testing.assert_allclose(distance, exact.min(1), rtol=1e-5, atol=1e-6)
    assert (index[3], distance[3]) == (17, 0.0)


@pytest.mark.slow
def test_fresh_samples_are_as_near_to_either_set():
    rng = np.random.default_rng(1)
    fractions = []
    for _ in range(20):
        samples, train, held_out = (rng.normal(size=(n, 4)) for n in (300, 400, 100))
        found = closer_to_training(samples, train, held_out)
        fractions.append(found["fraction"])
    assert found["expected"] == 0.8
    assert abs(np.mean(fractions) - 0.8) < 4 * np.std(fractions) / np.sqrt(20)


def test_copies_are_nearer_to_training():
    rng = np.random.default_rng(2)
    train, held_out = rng.normal(size=(2, 300, 10))
    copies = train[rng.integers(0, 300, 100)] + 1e-3 * rng.normal(size=(100, 10))
    assert closer_to_training(copies, train, held_out)["fraction"] == 1.0
    assert closer_to_training(held_out, train, held_out)["fraction"] == 0.0
    assert closer_to_training(copies, train, train)["fraction"] == 0.5


def test_held_out_examples_get_what_fresh_data_get():
    rng = np.random.default_rng(3)
    train, held_out = rng.normal(size=(400, 4)), rng.normal(size=(100, 4))
    found = closer_to_training(train, train, held_out)
    exact = np.sqrt(((held_out[:, None] - held_out) ** 2).sum(-1)) + 1e9 * np.eye(100)
    nearer = np.sqrt(((held_out[:, None] - train) ** 2).sum(-1)).min(1) < exact.min(1)
    assert found == {"fraction": 1.0, "expected": 0.8, "held_out": pytest.approx(nearer.mean())}
    assert abs(found["held_out"] - 0.8) < 0.15
    assert np.isnan(closer_to_training(train, train, held_out[:1])["held_out"])


def test_bad_input_is_named():
    x = np.zeros((4, 2))
    with pytest.raises(ValueError, match="train has 2 features and samples has 3"):
        nearest_training(np.zeros((4, 3)), x)
    with pytest.raises(ValueError, match="held_out has 0 examples"):
        closer_to_training(x, x, x[:0])
    with pytest.raises(ValueError, match="samples has 8 values that are not finite"):
        nearest_training(x + np.nan, x)
