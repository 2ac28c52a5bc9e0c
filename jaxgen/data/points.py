"""Points in the plane: mixtures whose modes can be counted, and two interleaved moons.

The mixtures follow Lin et al. 2018 and have 100,000 training points.
"""

import numpy as np

from jaxgen.data.dataset import Dataset, Modes

_SIZE = 10_000
_MIXTURE_SIZES = {"train": 100_000, "test": 10_000}
_SEEDS = {"train": 0, "test": 1}

RING_STD = 0.01
"""Standard deviation of each of the ring's Gaussians."""
GRID_STD = 0.05
"""Standard deviation of each of the grid's Gaussians."""


def ring_centers() -> np.ndarray:
    """Means of the ring's 8 Gaussians, on the unit circle: (8, 2) float32."""
    angles = 2 * np.pi * np.arange(8) / 8
    return np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)


def grid_centers() -> np.ndarray:
    """Means of the grid's 25 Gaussians, 2 apart and centred on the origin: (25, 2) float32."""
    ticks = np.arange(-4.0, 5.0, 2.0)
    return np.stack(np.meshgrid(ticks, ticks, indexing="ij"), -1).reshape(-1, 2).astype(np.float32)


def ring(split: str) -> Dataset:
    """Draws from 8 Gaussians on the unit circle with std 0.01; the label is the component."""
    return _mixture("ring", split, ring_centers(), RING_STD)


def grid(split: str) -> Dataset:
    """Draws from 25 Gaussians on a 5 x 5 grid of spacing 2 with std 0.05; the label is the component."""
    return _mixture("grid", split, grid_centers(), GRID_STD)


def moons(split: str) -> Dataset:
    """10,000 points on two interleaved half circles of radius 1, noise 0.05; the label is the moon."""
    rng = _generator(split)
    label = rng.randint(2, size=_SIZE)
    angle = rng.uniform(0, np.pi, _SIZE)
    upper = np.stack([np.cos(angle), np.sin(angle)], 1)
    x = np.where(label[:, None] == 0, upper, [1.0, 0.5] - upper) + rng.normal(0, 0.05, (_SIZE, 2))
    return Dataset("moons", split, {"x": x, "label": label}, num_classes=2, label_names=("upper", "lower"))


def _mixture(name: str, split: str, centers: np.ndarray, std: float) -> Dataset:
    rng, size = _generator(split), _MIXTURE_SIZES[split]
    label = rng.randint(len(centers), size=size)
    x = centers[label] + std * rng.normal(size=(size, 2))
    modes = Modes(centers, std)
    return Dataset(name, split, {"x": x, "label": label}, num_classes=len(centers), modes=modes)


def _generator(split: str) -> np.random.RandomState:
    # RandomState, because NumPy keeps its streams from version to version and its Generator's not.
    return np.random.RandomState(_SEEDS[split])


BUILT_IN = {"ring": ring, "grid": grid, "moons": moons}
