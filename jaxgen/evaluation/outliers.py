"""Telling data of the training law ("in") from other data ("out") by a score, higher for typical examples.

Scores in use: log p(x), `typicality`, minus a reconstruction error. Likelihood prefers smooth images, also
foreign ones (Nalisnick et al. 2019): report both directions, each set once as "in".
"""

from typing import Any

import numpy as np

from jaxgen.evaluation import checks


def auroc(score_in: Any, score_out: Any) -> float:
    """Probability that an "in" score (N,) is higher than an "out" score (M,), ties counted half.

    The area under the ROC curve, as the Mann-Whitney statistic divided by N M. 0.5 for equal laws.

    Raises:
        ValueError: an empty set, or scores that are not finite.
    """
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(*_labelled(score_in=score_in, score_out=score_out)))


def aupr(positive: Any, negative: Any) -> float:
    """Average precision of finding `positive` examples (N,) among `negative` ones (M,) by higher scores.

    The sum over thresholds of precision times the step in recall; equal scores share one threshold. Equal
    laws give about N / (N + M).

    Raises:
        ValueError: an empty set, or scores that are not finite.
    """
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(*_labelled(positive=positive, negative=negative)))


def _labelled(**sets: Any) -> tuple[np.ndarray, np.ndarray]:
    """1 for each score of the first of two sets and 0 for each of the second, and the scores."""
    first, second = checks.scores(**sets)
    return np.repeat([1, 0], [len(first), len(second)]), np.concatenate([first, second])


def typicality(log_prob: Any, entropy: float) -> np.ndarray:
    """-|log p(x) + H| of log-densities (N,), for the entropy H of the model; nats or bits, but the same.

    Estimate H by the mean of -log p over training or validation data. Penalises examples that are too likely
    as well, where log p alone prefers them (Nalisnick et al. 2019).

    Raises:
        ValueError: log-densities that are not finite.
    """
    (log_prob,) = checks.scores(log_prob=log_prob)
    return -np.abs(log_prob + entropy)


def evaluate(score_in: Any, score_out: Any) -> dict[str, float]:
    """{"auroc", "aupr_in", "aupr_out", "fpr_at_95"} of scores (N,) and (M,), higher for typical examples.

    "aupr_in" finds "in" by high scores and "aupr_out" finds "out" by low ones; "fpr_at_95" is the fraction
    of "out" that passes where 95 % of "in" do.

    Raises:
        ValueError: an empty set, or scores that are not finite.
    """
    score_in, score_out = checks.scores(score_in=score_in, score_out=score_out)
    threshold = np.quantile(score_in, 0.05, method="lower")
    return {
        "auroc": auroc(score_in, score_out),
        "aupr_in": aupr(score_in, score_out),
        "aupr_out": aupr(-score_out, -score_in),
        "fpr_at_95": float((score_out >= threshold).mean()),
    }
