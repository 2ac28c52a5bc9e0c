"""Points in the plane, of densities that are known: mixtures, two interleaved moons, rings, a checkerboard.

The mixtures, whose modes can be counted, follow Lin et al. 2018 and have 100,000 training points, as have
rings and checkerboard.
"""

from collections.abc import Callable

import numpy as np

from jaxgen.data.dataset import Dataset, Modes

_SIZE = 10_000
_SIZES = {"train": 100_000, "test": 10_000}
_SEEDS = {"train": 0, "test": 1}

RING_STD = 0.01
"""Standard deviation of each of the ring's Gaussians."""
GRID_STD = 0.05
"""Standard deviation of each of the grid's Gaussians."""
MOONS_STD = 0.05
"""Standard deviation of the noise of the moons."""
RINGS_STD = 0.08
"""Standard deviation of the noise of the rings."""
RINGS_RADII = (3.0, 2.25, 1.5, 0.75)
"""Radii of the rings."""
CHECKERBOARD_ENTROPY = float(np.log(32))
"""Nats: the checkerboard is uniform on 8 squares of area 4."""

_NUM_ANGLES = 1000
_CHUNK = 500


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
    x = np.where(label[:, None] == 0, upper, [1.0, 0.5] - upper) + rng.normal(0, MOONS_STD, (_SIZE, 2))
    return Dataset(
        "moons",
        split,
        {"x": x, "label": label},
        num_classes=2,
        label_names=("upper", "lower"),
        log_density=_log_density_of_moons,
    )


def rings(split: str) -> Dataset:
    """Points on four concentric circles, noise 0.08; the label is the ring.

    The radii are 3, 2.25, 1.5 and 0.75, and each ring has the same probability (Grathwohl et al. 2019).
    """
    rng, size = _generator(split), _SIZES[split]
    label = rng.randint(len(RINGS_RADII), size=size)
    angle = rng.uniform(0, 2 * np.pi, size)
    circle = np.stack([np.cos(angle), np.sin(angle)], 1)
    x = np.array(RINGS_RADII)[label, None] * circle + rng.normal(0, RINGS_STD, (size, 2))
    return Dataset("rings", split, {"x": x, "label": label}, log_density=_log_density_of_rings)


def checkerboard(split: str) -> Dataset:
    """Points uniform on 8 of the 16 squares of side 2 in [-4, 4]^2; the label is the square."""
    rng, size = _generator(split), _SIZES[split]
    label = rng.randint(8, size=size)
    row, column = label // 2, 2 * (label % 2) + label // 2 % 2
    x = 2 * (np.stack([column, row], 1) + rng.uniform(size=(size, 2))) - 4
    return Dataset("checkerboard", split, {"x": x, "label": label}, log_density=_log_density_of_checkerboard)


def _mixture(name: str, split: str, centers: np.ndarray, std: float) -> Dataset:
    rng, size = _generator(split), _SIZES[split]
    label = rng.randint(len(centers), size=size)
    x = centers[label] + std * rng.normal(size=(size, 2))
    return Dataset(
        name,
        split,
        {"x": x, "label": label},
        num_classes=len(centers),
        modes=Modes(centers, std),
        log_density=_log_mixture(centers, std),
    )


def _log_mixture(points: np.ndarray, std: float) -> Callable[[np.ndarray], np.ndarray]:
    """The log-density (N, 2) -> (N,) of as many Gaussians of equal weights as there are points (K, 2)."""
    points = np.asarray(points, np.float64)

    def log_density(x: np.ndarray) -> np.ndarray:
        x = np.asarray(x, np.float64)
        parts = [x[start : start + _CHUNK] for start in range(0, len(x), _CHUNK)]
        squares = (((part[:, None] - points) ** 2).sum(-1) / (-2 * std**2) for part in parts)
        sums = np.concatenate([np.logaddexp.reduce(part, 1) for part in squares])
        return sums - np.log(len(points) * 2 * np.pi * std**2)

    return log_density


def _log_density_of_moons(x: np.ndarray) -> np.ndarray:
    # The integral over the angle by the midpoint rule, at steps that are small beside the noise.
    angle = np.pi * (np.arange(_NUM_ANGLES) + 0.5) / _NUM_ANGLES
    upper = np.stack([np.cos(angle), np.sin(angle)], 1)
    return _log_mixture(np.concatenate([upper, [1.0, 0.5] - upper]), MOONS_STD)(x)


def _log_density_of_rings(x: np.ndarray) -> np.ndarray:
    angle = 2 * np.pi * np.arange(_NUM_ANGLES) / _NUM_ANGLES
    circle = np.stack([np.cos(angle), np.sin(angle)], 1)
    # It depends on the radius alone.
    radius = np.linalg.norm(np.asarray(x, np.float64), axis=1)
    on_axis = np.stack([radius, np.zeros_like(radius)], 1)
    return _log_mixture(np.concatenate([radius * circle for radius in RINGS_RADII]), RINGS_STD)(on_axis)


def _log_density_of_checkerboard(x: np.ndarray) -> np.ndarray:
    column, row = np.floor((np.asarray(x, np.float64).T + 4) / 2)
    inside = (column >= 0) & (column < 4) & (row >= 0) & (row < 4) & ((column - row) % 2 == 0)
    return np.where(inside, -CHECKERBOARD_ENTROPY, -np.inf)


def _generator(split: str) -> np.random.RandomState:
    # RandomState, because NumPy keeps its streams from version to version and its Generator's not.
    return np.random.RandomState(_SEEDS[split])


BUILT_IN = {"ring": ring, "grid": grid, "moons": moons, "rings": rings, "checkerboard": checkerboard}
