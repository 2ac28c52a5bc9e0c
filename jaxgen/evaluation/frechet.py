"""Frechet distance between Gaussians fitted to two sets of features, and the streaming moments it needs.

    |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)

Dowson & Landau 1982; on features of a network Heusel et al. 2017. Only on Inception-v3 pool features of
images resized the standard way is it called FID. It is biased by about const/N, with a constant that depends
on the model: compare at equal N, much larger than d.

Everything is float64 on the host, whatever the device has.
"""

from typing import Any

import numpy as np

from jaxgen import moments
from jaxgen.evaluation import checks

_ROWS = 4096  # of a batch that are turned to float64 at a time


class Moments:
    """Mean and covariance of features that arrive in batches, whose sums are never formed.

    `count`, `mean` (d,) and `scatter` (d, d), the sum of squares about the mean, are all there is:
    accumulators of other processes are rebuilt from them, and merged. Any split gives the same answer to
    rounding (pairwise update of Chan, Golub & LeVeque 1983).

    Example:
        moments = Moments()
        for batch in batches:
            moments.update(extract(batch))
        frechet_distance(moments.mean, moments.covariance, *reference)
    """

    def __init__(self, count: int = 0, mean: Any = (), scatter: Any = ()):
        self.count = count
        self.mean = np.array(mean, np.float64)
        self.scatter = np.array(scatter, np.float64)

    def update(self, features: Any) -> "Moments":
        """Take in features (B, d); returns itself.

        Raises:
            ValueError: features that are not (B, d), not finite, or of another d than those before.
        """
        (features,) = checks.features(features=features)
        features = np.asarray(features)
        self._check_dimensions(features.shape[1])
        for start in range(0, len(features), _ROWS):
            rows = features[start : start + _ROWS].astype(np.float64)
            mean = rows.mean(0)
            rows -= mean
            self._add(len(rows), mean, rows.T @ rows)
        return self

    def merge(self, other: "Moments") -> "Moments":
        """Take in what another accumulator has seen; returns itself.

        Raises:
            ValueError: moments of another d.
        """
        if other.count:
            self._check_dimensions(len(other.mean))
            self._add(other.count, other.mean, other.scatter)
        return self

    @property
    def covariance(self) -> np.ndarray:
        """(d, d), the sum of squares divided by count - 1.

        Raises:
            ValueError: fewer than two examples so far.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 examples, not {self.count}")
        return self.scatter / (self.count - 1)

    def _add(self, count: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        if not self.count:
            self.count, self.mean, self.scatter = count, mean.copy(), scatter.copy()
            return
        one = moments.Moments(np.float64(self.count), self.mean, self.scatter)
        together = moments.merge(one, moments.Moments(np.float64(count), mean, scatter))
        self.count, self.mean, self.scatter = self.count + count, together.mean, together.scatter

    def _check_dimensions(self, dimensions: int) -> None:
        if self.count and dimensions != len(self.mean):
            raise ValueError(
                f"these features have {dimensions} dimensions, those before had {len(self.mean)}"
            )


def frechet_distance(mean1: Any, cov1: Any, mean2: Any, cov2: Any) -> float:
    """Squared Frechet distance of N(mean1, cov1) and N(mean2, cov2); means (d,), covariances (d, d).

    The trace of (S1 S2)^(1/2) is the sum of the singular values of L1' L2 with S = L L', L from a Cholesky
    factorisation with pivoting. It stops at the rank of S, so that singular covariances, those of fewer
    examples than dimensions, lose no digits: a root of eigenvalues that are zero up to rounding has half of
    them. Exactly 0 for equal inputs, and never negative.

    Raises:
        ValueError: shapes that do not fit each other, or values that are not finite.
    """
    mean1, mean2 = (np.atleast_1d(np.asarray(mean, np.float64)) for mean in (mean1, mean2))
    cov1, cov2 = (np.atleast_2d(np.asarray(cov, np.float64)) for cov in (cov1, cov2))
    for mean, cov, which in ((mean1, cov1, 1), (mean2, cov2, 2)):
        if mean.ndim != 1 or cov.shape != (len(mean), len(mean)):
            raise ValueError(
                f"mean{which} must be (d,) and cov{which} (d, d), not {mean.shape} and {cov.shape}"
            )
        checks.finite(**{f"mean{which}": mean, f"cov{which}": cov})
    if len(mean1) != len(mean2):
        raise ValueError(
            f"moments of {len(mean1)} and of {len(mean2)} features: they must come from one extractor"
        )
    if np.array_equal(mean1, mean2) and np.array_equal(cov1, cov2):
        return 0.0
    means = ((mean1 - mean2) ** 2).sum()
    return float(max(means + np.trace(cov1) + np.trace(cov2) - 2 * _trace_of_root(cov1, cov2), 0.0))


def _trace_of_root(cov1: np.ndarray, cov2: np.ndarray) -> float:
    """tr (S1 S2)^(1/2) of two covariances."""
    import scipy.linalg

    def factor(cov):
        packed, pivots, rank, _ = scipy.linalg.lapack.dpstrf(cov, lower=1)
        rows = np.empty((len(cov), rank))
        rows[pivots - 1] = np.tril(packed)[:, :rank]
        return rows

    product = factor(cov1).T @ factor(cov2)
    return scipy.linalg.svdvals(product).sum() if product.size else 0.0
