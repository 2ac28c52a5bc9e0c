"""The inception score, for any classifier.

    exp(E_x KL(p(y|x) || p(y)))

Salimans et al. 2016. With a classifier other than Inception-v3 it is a "classifier score (name)". It is blind
to collapse within a class, and means nothing for a classifier of other classes than the data's.
"""

from typing import Any

import numpy as np

from jaxgen.evaluation import checks


def classifier_score(probabilities: Any, splits: int = 10) -> tuple[float, float]:
    """(mean, standard deviation) over `splits` of class probabilities (N, C), rows of which sum to 1.

    Splits are consecutive, as in the original: samples must not be sorted by class. Constant predictions
    give 1; predictions that are certain and evenly spread over the classes give C, the most there is.

    Raises:
        ValueError: rows that are not probabilities, or fewer of them than splits.
    """
    if splits < 1:
        raise ValueError(f"splits must be at least 1, not {splits}")
    (probabilities,) = checks.features(probabilities=probabilities, at_least=splits, why=f"{splits} splits")
    probabilities = np.asarray(probabilities, np.float64)
    if probabilities.min() < 0 or np.abs(probabilities.sum(1) - 1).max() > 1e-3:
        raise ValueError("probabilities must not be negative, and each row must sum to 1: are they logits?")
    scores = []
    for part in np.array_split(probabilities, splits):
        marginal = part.mean(0)
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = np.where(part > 0, part * (np.log(part) - np.log(marginal)), 0.0)
        scores.append(np.exp(terms.sum(1).mean()))
    return float(np.mean(scores)), float(np.std(scores))
