"""Pictures of bars, whose causes are known."""

import numpy as np

from jaxgen import data

SIDE = 4


def one_way(n, seed):
    """Bars all horizontal or all vertical, each there with probability 1/2 (Hinton et al. 1995)."""
    rng = np.random.default_rng(seed)
    rows = np.repeat(rng.random((n, SIDE, 1)) < 0.5, SIDE, 2)
    return dataset(np.where(rng.random((n, 1, 1)) < 0.5, rows, rows.swapaxes(1, 2)))


def both_ways(n, seed, probability=0.25):
    """Horizontal and vertical bars, each there with a probability, on top of each other (Foldiak 1990)."""
    rng = np.random.default_rng(seed)
    on = rng.random((2, n, SIDE, 1)) < probability
    return dataset(on[0] | on[1].swapaxes(1, 2))


def dataset(on):
    pictures = np.where(on, 255, 0).astype(np.uint8)[..., None]
    return data.Dataset("bars", "train", {"image": pictures}, levels=2)


def filters():
    """Each bar as a picture of ones and zeros, (8, 16)."""
    rows = np.repeat(np.eye(SIDE)[:, :, None], SIDE, 2)
    return np.concatenate([rows, rows.swapaxes(1, 2)]).reshape(2 * SIDE, -1)
