"""Are samples copies of the training data? Nearest training examples, and a test against held-out data.

A nearest neighbour that looks close proves nothing: fresh data have close neighbours too. So the question is
whether samples are nearer to the training set than to held-out data of the same law (compare the data-copying
test of Meehan, Chaudhuri & Dasgupta 2020 and the authenticity of Alaa et al. 2022).
"""

from typing import Any

import numpy as np
from jax import Array

from jaxgen.evaluation import checks, distances


def nearest_training(samples: Any, train: Any) -> tuple[np.ndarray, np.ndarray]:
    """(indices, distances) of the training example (M, d) nearest to each sample (N, d), both (N,).

    Features, or pixels flattened; distances are Euclidean, and exactly 0 for an exact copy.

    Raises:
        ValueError: sets of different d, none of them, or values that are not finite.
    """
    train, samples = checks.features(train=train, samples=samples)
    train, samples = distances.centred(train, samples)
    found, index = distances.nearest(samples, train)
    return np.asarray(index), np.asarray(found)


def closer_to_training(samples: Any, train: Any, held_out: Any) -> dict[str, float]:
    """{"fraction", "expected", "held_out"}: how many samples (N, d) are nearer to train than to held_out.

    "fraction" is the mean over samples of 1 where the nearest of `train` (M, d) is strictly nearer than the
    nearest of `held_out` (H, d), and 1/2 where both are as near. "expected" is M / (M + H): if training and
    held-out examples are draws of one law, and the samples were made without either, each of the M + H is as
    likely the nearest. "held_out" is what the held-out examples themselves get, each compared with the
    others; NaN for a single one. A fraction above these means that the model has kept something of its
    training examples; 1 is what copies get. `train` must be all that the model has seen: of a part, copies of
    the other examples are not known for such.

    Raises:
        ValueError: sets of different d, none of them, or values that are not finite.
    """
    train, samples, held_out = checks.features(train=train, samples=samples, held_out=held_out)
    train, samples, held_out = distances.centred(train, samples, held_out)
    alone = len(held_out) == 1
    return {
        "fraction": _fraction(samples, train, held_out),
        "expected": len(train) / (len(train) + len(held_out)),
        "held_out": float("nan") if alone else _fraction(held_out, train, held_out, exclude_self=True),
    }


def _fraction(samples: Array, train: Array, held_out: Array, exclude_self: bool = False) -> float:
    to_train = np.asarray(distances.nearest(samples, train)[0])
    to_held_out = np.asarray(distances.nearest(samples, held_out, exclude_self)[0])
    return float((to_train < to_held_out).mean() + 0.5 * (to_train == to_held_out).mean())
