import numpy as np
import pytest

from jaxgen import data
from jaxgen.data import points
from jaxgen.evaluation.modes import mode_statistics, stacked_mode_statistics


@pytest.mark.parametrize(
    ("name", "centers", "std"),
    [("ring", data.ring_centers(), points.RING_STD), ("grid", data.grid_centers(), points.GRID_STD)],
)
def test_true_samples_reach_every_mode_and_stray_as_gaussians_do(name, centers, std):
    dataset = data.load(name)
    found = mode_statistics(dataset[:]["x"], centers, std)
    assert list(found) == ["modes", "high_quality", "reverse_kl"]
    assert found["modes"] == len(centers)
    expected = 1 - np.exp(-4.5)
    assert abs(found["high_quality"] - expected) < 4 * np.sqrt(expected * (1 - expected) / len(dataset))
    x, label = dataset[:]["x"], dataset[:]["label"]
    close = np.linalg.norm(x - np.asarray(centers)[label], axis=1) <= 3 * std
    counts = np.bincount(label[close]) / close.sum()
    assert found["reverse_kl"] == pytest.approx((counts * np.log(counts * len(centers))).sum(), rel=1e-9)


def test_collapse_is_one_mode_and_log_k():
    centers = data.grid_centers()
    found = mode_statistics(np.tile(centers[7], (100, 1)), centers, 0.05)
    assert found == {"modes": 1, "high_quality": 1.0, "reverse_kl": pytest.approx(np.log(25))}


def test_samples_between_modes_hit_none():
    centers = data.ring_centers()
    found = mode_statistics(np.zeros((10, 2)), centers, 0.02)
    assert found == {"modes": 0, "high_quality": 0.0, "reverse_kl": pytest.approx(np.log(8))}


def test_divergence_counts_only_samples_of_quality():
    centers = data.ring_centers()
    samples = np.concatenate([centers, np.repeat(centers[:1] * 1.1, 50, 0)])
    assert mode_statistics(samples, centers, 0.02)["reverse_kl"] == pytest.approx(0, abs=1e-12)


def test_hits_asked_for():
    samples = np.repeat(data.ring_centers(), [1, 2, 3, 4, 5, 6, 7, 20], 0)
    assert mode_statistics(samples, data.ring_centers(), 0.02, min_hits=20)["modes"] == 1
    assert mode_statistics(samples, data.ring_centers(), 0.02, min_hits=4)["modes"] == 5


def test_three_sigma_is_inside_in_any_dimension():
    center = np.zeros((1, 4))
    samples = np.array([[0.29, 0, 0, 0], [0.31, 0, 0, 0], [0.2, 0.2, 0.2, 0]])
    assert mode_statistics(samples, center, 0.1)["high_quality"] == pytest.approx(1 / 3)


def test_stacked_digits():
    every = np.stack(np.meshgrid(*[np.arange(10)] * 3, indexing="ij"), -1).reshape(-1, 3)
    assert stacked_mode_statistics(every) == {"modes": 1000, "reverse_kl": pytest.approx(0.0, abs=1e-12)}
    assert stacked_mode_statistics(every[:1]) == {"modes": 1, "reverse_kl": pytest.approx(np.log(1000))}
    half = stacked_mode_statistics(every[every[:, 1] < 5])
    assert half == {"modes": 500, "reverse_kl": pytest.approx(np.log(2))}
    swapped = stacked_mode_statistics(np.array([[1, 2, 3], [3, 2, 1]]))
    assert swapped["modes"] == 2


def test_divergence_of_true_digits_is_as_documented():
    digits = np.random.default_rng(0).integers(0, 10, (25_600, 3))
    assert stacked_mode_statistics(digits)["reverse_kl"] == pytest.approx(999 / 51_200, rel=0.2)


def test_bad_input_is_named():
    centers = data.ring_centers()
    with pytest.raises(ValueError, match="samples has 3 features and centers has 2"):
        mode_statistics(np.zeros((5, 3)), centers, 0.1)
    with pytest.raises(ValueError, match="samples has 0 examples"):
        mode_statistics(np.zeros((0, 2)), centers, 0.1)
    with pytest.raises(ValueError, match="samples has 2 values that are not finite"):
        mode_statistics(np.full((1, 2), np.nan), centers, 0.1)
    with pytest.raises(ValueError, match="std must be positive, not 0"):
        mode_statistics(np.zeros((5, 2)), centers, 0)
    with pytest.raises(ValueError, match=r"digits must lie in 0..9, not in 0..10"):
        stacked_mode_statistics([[0, 1, 10]])
    with pytest.raises(ValueError, match="integers, not float64"):
        stacked_mode_statistics(np.zeros((2, 3)))
