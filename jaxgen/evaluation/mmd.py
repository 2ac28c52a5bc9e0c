"""Maximum mean discrepancy of two sets of points, and the permutation test it gives.

    MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y)

The biased estimate keeps the pairs of a point with itself and is never negative; the unbiased one leaves them
out and has mean 0 under equal laws. Gretton et al. 2012. For N(m1, s I) against N(m2, s I) in d dimensions
and a Gaussian kernel of variance t it is 2 (t / (t + 2s))^(d/2) (1 - exp(-|m1 - m2|^2 / (2 (t + 2s)))).

A kernel is a function of squared distances: `functools.partial(gaussian, variance=2.0)`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen.evaluation import checks, distances

Kernel = Callable[[Array], Array]
"""Squared distances, of any shape, to kernel values."""

_PERMUTATIONS_AT_ONCE = 64


def gaussian(squared_distances: Array, variance: float | Sequence[float] = 1.0) -> Array:
    """exp(-|x - y|^2 / (2 variance)), summed over several variances.

    The scales {2, 5, 10, 20, 40, 80} of Li et al. 2015 are variances in this sense, not standard deviations.
    """
    return sum(jnp.exp(-squared_distances / (2.0 * t)) for t in _several(variance))  # type: ignore[return-value]


def rational_quadratic(
    squared_distances: Array, alpha: float | Sequence[float] = (0.2, 0.5, 1.0, 2.0, 5.0)
) -> Array:
    """(1 + |x - y|^2 / (2 alpha))^-alpha, summed over several alphas; for points of about unit scale.

    A mixture of Gaussian kernels of all variances.
    """
    return sum((1.0 + squared_distances / (2.0 * a)) ** -a for a in _several(alpha))  # type: ignore[return-value]


def median_heuristic(x: Any, y: Any, most: int = 1000) -> float:
    """The median squared distance between distinct points of x (N, d) and y (M, d) pooled.

    As the variance of a Gaussian kernel it makes the standard deviation the median distance. Taken from the
    first `most` points of each set.

    Raises:
        ValueError: sets of different d or with values that are not finite; a median of 0.
    """
    x, y = checks.features(x=x, y=y)
    xx, yy, xy = map(np.asarray, _squared_distances(x[:most], y[:most]))
    within = [squared[np.triu_indices(len(squared), 1)] for squared in (xx, yy)]
    median = float(np.median(np.concatenate([*within, xy.ravel()])))
    if median == 0.0:
        raise ValueError("the median distance is 0: most points are equal, give a variance instead")
    return median


def mmd2(x: Any, y: Any, kernel: Kernel = rational_quadratic, unbiased: bool = True) -> Array:
    """MMD^2 between x (N, d) and y (M, d), a scalar, by the unbiased or the biased estimate.

    A pure function that may be jitted and differentiated. It holds N x N, M x M and N x M matrices: for more
    than some ten thousand points use subsets, as `kid.kernel_distance` does.

    Raises:
        ValueError: sets of different d, of fewer than 2 points, or with values that are not finite.
    """
    x, y = checks.features(x=x, y=y, at_least=2, why="pairs")
    n, m = len(x), len(y)
    xx, yy, xy = (kernel(squared) for squared in _squared_distances(x, y))
    # The weights of all kernel values sum to 0: a constant taken off them all keeps float32 sums small.
    constant = jax.lax.stop_gradient(xy.mean())
    if unbiased:
        xx, yy = (jnp.where(jnp.eye(len(k), dtype=bool), constant, k) for k in (xx, yy))
    pairs_x, pairs_y = (n * (n - 1), m * (m - 1)) if unbiased else (n * n, m * m)
    xx, yy, xy = ((k - constant).sum(1).sum() for k in (xx, yy, xy))
    return xx / pairs_x + yy / pairs_y - 2.0 * xy / (n * m)


def permutation_test(
    key: Array,
    x: Any,
    y: Any,
    kernel: Kernel = rational_quadratic,
    permutations: int = 1000,
    unbiased: bool = True,
) -> tuple[float, float]:
    """(MMD^2, p-value) of the hypothesis that x (N, d) and y (M, d) come from one law.

    The points are pooled and dealt out anew; p = (1 + number of deals with MMD^2 no smaller) / (1 + deals).
    Rejecting at p <= a errs with probability at most a, whatever the sizes and the kernel, as long as the
    kernel was not tuned to tell these x from these y (`median_heuristic` is not). The pooled kernel matrix of
    (N + M)^2 float32 is held.

    Raises:
        ValueError: sets of different d, of fewer than 2 points, or with values that are not finite; no deals.
    """
    if permutations < 1:
        raise ValueError(f"permutations must be at least 1, not {permutations}")
    x, y = checks.features(x=x, y=y, at_least=2, why="pairs")
    xx, yy, xy = _squared_distances(x, y)
    pooled = jnp.block([[xx, xy], [xy.T, yy]])
    statistics = _dealt(key, kernel(pooled), len(x), permutations, unbiased)
    observed, *dealt = np.asarray(statistics)
    return float(observed), float((1 + (np.array(dealt) >= observed).sum()) / (1 + permutations))


@functools.partial(jax.jit, static_argnames=("n", "permutations", "unbiased"))
def _dealt(key: Array, kernel: Array, n: int, permutations: int, unbiased: bool) -> Array:
    """MMD^2 of the points as they are, first n against the rest, then of each deal: (1 + permutations,)."""
    m = len(kernel) - n
    kernel = kernel - kernel.mean()
    diagonal = jnp.diag(kernel)
    kernel = jnp.where(jnp.eye(n + m, dtype=bool), 0.0, kernel)
    rows = kernel.sum(1)
    first = jnp.arange(n + m) < n
    deals = jax.vmap(lambda key: jax.random.permutation(key, first))(jax.random.split(key, permutations))

    def statistic(in_x):
        in_x = in_x.astype(jnp.float32)
        xx = in_x @ jnp.matmul(kernel, in_x, precision="highest")
        xy = in_x @ rows - xx
        yy = rows.sum() - xx - 2.0 * xy
        if unbiased:
            return xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2.0 * xy / (n * m)
        xx, yy = xx + in_x @ diagonal, yy + (1.0 - in_x) @ diagonal
        return xx / n**2 + yy / m**2 - 2.0 * xy / (n * m)

    return jax.lax.map(statistic, jnp.concatenate([first[None], deals]), batch_size=_PERMUTATIONS_AT_ONCE)


def _squared_distances(x: Any, y: Any) -> tuple[Array, Array, Array]:
    """Within x (N, d), within y (M, d), and between them; each is centred alone, as they may lie apart."""
    (own_x,), (own_y,) = distances.centred(x), distances.centred(y)
    x, y = distances.centred(x, y)
    return distances.squared(own_x, own_x), distances.squared(own_y, own_y), distances.squared(x, y)


def _several(scales: float | Sequence[float]) -> Sequence[float]:
    return scales if isinstance(scales, Sequence | np.ndarray) else (scales,)
