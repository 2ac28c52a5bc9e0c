"""Can a classifier tell real from fake? Two tests of the hypothesis that both come from one law.

`classifier_test` trains on half of each set and counts right answers on the other (Lopez-Paz & Oquab 2017).
`nearest_neighbour_accuracy` asks of every point whether its nearest neighbour is of its own set (Xu et al.
2018): 0.5 is ideal, near 1 the sets lie apart, well below 0.5 the fakes are copies.
"""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxgen.evaluation import checks, distances


def classifier_test(real: Any, fake: Any, classifier: Any = None, seed: int = 0) -> dict[str, float]:
    """{"accuracy", "p_value"} of telling real (N, d) from fake (M, d).

    Both sets are shuffled, cut to the smaller one's size and halved; features are standardised by the
    training half. `classifier` is anything with scikit-learn's `fit` and `predict`; by default k nearest
    neighbours with k = sqrt(training examples), which, unlike a linear one, also sees differences of shape.
    The p-value is the probability that fair coins are right as often: under one law the accuracy of n test
    examples is about N(1/2, 1/(4 n)).

    Raises:
        ValueError: sets of different d, of fewer than 4 examples, or with values that are not finite.
    """
    import scipy.stats
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.preprocessing import StandardScaler

    real, fake = checks.features(real=real, fake=fake, at_least=4, why="halves to train and test on")
    rng = np.random.default_rng(seed)
    half = min(len(real), len(fake)) // 2
    train, test = [], []
    for features in (real, fake):
        shuffled = np.asarray(features)[rng.permutation(len(features))]
        train.append(shuffled[:half])
        test.append(shuffled[half : 2 * half])
    is_fake = np.repeat([0, 1], half)
    if classifier is None:
        classifier = KNeighborsClassifier(max(1, math.isqrt(2 * half)))
    scaler = StandardScaler().fit(np.concatenate(train))
    classifier.fit(scaler.transform(np.concatenate(train)), is_fake)
    right = int((classifier.predict(scaler.transform(np.concatenate(test))) == is_fake).sum())
    p_value = scipy.stats.binom.sf(right - 1, 2 * half, 0.5)
    return {"accuracy": right / (2 * half), "p_value": float(p_value)}


def nearest_neighbour_accuracy(real: Any, fake: Any) -> dict[str, float]:
    """{"accuracy", "real", "fake"}: of all, real and fake points, the fraction with a neighbour of their own.

    The neighbour is the nearest other point of both sets, real (N, d) and fake (N, d), taken together.

    The halves apart tell more than their mean: fakes inside a few modes give a high "fake" and a low "real",
    copies with noise a low "fake". Under one law the expectation is (N - 1) / (2 N - 1).

    Raises:
        ValueError: sets of different size or d, of fewer than 2 examples, or with values that are not finite.
    """
    real, fake = checks.features(real=real, fake=fake, at_least=2, why="a nearest other point")
    if len(real) != len(fake):
        raise ValueError(
            f"real has {len(real)} and fake {len(fake)} examples: only of equal numbers is 0.5 the ideal"
        )
    pooled = jnp.concatenate(distances.centred(real, fake))
    _, index = distances.nearest(pooled, pooled, exclude_self=True)
    is_fake = np.arange(len(pooled)) >= len(real)
    right = is_fake == is_fake[np.asarray(index)]
    return {
        "accuracy": float(right.mean()),
        "real": float(right[: len(real)].mean()),
        "fake": float(right[len(real) :].mean()),
    }
