"""Are samples copies of the training data? Nearest training examples, and a test against held-out data.

A nearest neighbour that looks close proves nothing: fresh data have close neighbours too. So the question is
whether samples are nearer to the training set than to held-out data of the same law (compare the data-copying
test of Meehan, Chaudhuri & Dasgupta 2020 and the authenticity of Alaa et al. 2022).
"""

from typing import Any

import numpy as np

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
    """{"fraction", "expected"}: how many samples (N, d) are nearer to train (M, d) than to held_out (H, d).

    "fraction" is the mean over samples of 1 where the nearest of `train` is strictly nearer than the nearest
    of `held_out`, and 1/2 where both are as near. "expected" is M / (M + H): if training and held-out
    examples are draws of one law, and the samples were made without either, each of the M + H is as likely
    the nearest. A fraction above it means that the model has kept something of its training examples; 1 is
    what copies get. Fresh data in place of samples is the control.

    Raises:
        ValueError: sets of different d, none of them, or values that are not finite.
    """
    train, samples, held_out = checks.features(train=train, samples=samples, held_out=held_out)
    train, samples, held_out = distances.centred(train, samples, held_out)
    to_train, to_held_out = (np.asarray(distances.nearest(samples, other)[0]) for other in (train, held_out))
    fraction = (to_train < to_held_out).mean() + 0.5 * (to_train == to_held_out).mean()
    return {"fraction": float(fraction), "expected": len(train) / (len(train) + len(held_out))}
