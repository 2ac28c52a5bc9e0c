"""Kernel distance: the squared maximum mean discrepancy of two sets of features under a cubic kernel.

    k(x, y) = (x'y / d + 1)^3
    MMD^2 = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_ij k(x_i, y_j)

averaged over random subsets. Binkowski et al. 2018; on Inception-v3 features it is called KID. Unlike the
Frechet distance it is unbiased at any N, so it may be negative, and is to be preferred where N < 5 d.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen.evaluation import checks, distances


def kernel_distance(
    f1: Any, f2: Any, subsets: int = 100, subset_size: int = 1000, key: Array | None = None
) -> tuple[float, float]:
    """(mean, standard error) of the unbiased MMD^2 between features f1 (N, d) and f2 (M, d).

    Each of the `subsets` draws `subset_size` examples from each set without replacement; sizes above the
    smaller set's are cut to it. `key` is `jax.random.key(0)` if not given.

    The standard error is that of the mean as an estimate for the two laws, not only of the draw of subsets:
    with S subsets of m out of N examples and variance v between them it is sqrt(v (1/S + m/(N - m))), the
    delete-d jackknife (Shao & Wu 1989). For N >> S m that is the usual sqrt(v/S); under equal laws it errs
    on the large side. Where m is all N examples, v is taken from subsets of half of them. It is NaN for a
    single subset.

    Raises:
        ValueError: sets of different d, of fewer than 4 examples, or with values that are not finite; fewer
            than 1 subset, or a subset of fewer than 2.
    """
    if subsets < 1 or subset_size < 2:
        raise ValueError(f"at least 1 subset of 2 examples is needed, not {subsets} of {subset_size}")
    f1, f2 = checks.features(f1=f1, f2=f2, at_least=4, why="subsets of 2")
    centred = distances.centred(f1, f2)
    origin = jnp.asarray((f1 - centred[0]).mean(0), jnp.float32)
    f1, f2 = map(distances.on_every_device, centred)
    key = jax.random.key(0) if key is None else key
    smaller = min(len(f1), len(f2))
    size = min(subset_size, smaller)
    values = _over_subsets(key, f1, f2, origin, subsets, size)
    if subsets == 1:
        return float(values[0]), float("nan")
    drawn = size
    spread = values
    if size == smaller:
        drawn = smaller // 2
        spread = _over_subsets(jax.random.fold_in(key, 1), f1, f2, origin, subsets, drawn)
    variance = spread.var(ddof=1) * ((size < smaller) / subsets + drawn / (smaller - drawn))
    return float(values.mean()), float(np.sqrt(variance))


def _over_subsets(key: Array, f1: Array, f2: Array, origin: Array, subsets: int, size: int) -> np.ndarray:
    """MMD^2 of each subset, (S,) float64, of features less their `origin` (d,)."""
    sums = np.asarray(_row_sums(key, f1, f2, origin, subsets, size), np.float64)
    within1, within2, across = sums.sum(-1).T
    return (within1 + within2) / (size * (size - 1)) - 2 * across / size**2


@functools.partial(jax.jit, static_argnames=("subsets", "size"))
def _row_sums(key: Array, f1: Array, f2: Array, origin: Array, subsets: int, size: int) -> Array:
    """Sums of k - c over the rows of the three kernel matrices of each subset, (S, 3, size).

    The weights of all kernel values sum to 0, so the constant c, their mean, changes nothing but keeps
    float32 sums of near equal numbers small; the host adds up the rows.
    """

    def subset(key):
        x, y = (
            features[jax.random.choice(part, len(features), (size,), replace=False)]
            for part, features in zip(jax.random.split(key), (f1, f2), strict=True)
        )
        xx, yy, xy = (_cubic(a, b, origin) for a, b in ((x, x), (y, y), (x, y)))
        constant = xy.mean()
        others = ~jnp.eye(size, dtype=bool)
        within = [jnp.where(others, k - constant, 0.0).sum(1) for k in (xx, yy)]
        return jnp.stack([*within, (xy - constant).sum(1)])

    return jax.lax.map(subset, jax.random.split(key, subsets))


def _cubic(x: Array, y: Array, origin: Array) -> Array:
    """(x'y / d + 1)^3 of x + origin and y + origin, less terms of one of them alone, which cancel in MMD^2.

    Far from zero these terms are so large that float32 would lose the rest: with c = |origin|^2 / d + 1 and
    c + u the product, what is left of (c + u)^3 is 3 c^2 x'y / d + 3 c u^2 + u^3.
    """
    d = x.shape[1]
    product = functools.partial(jnp.matmul, precision="highest")
    xy = product(x, y.T) / d
    u = xy + (product(x, origin)[:, None] + product(y, origin)) / d
    c = (origin @ origin) / d + 1.0
    return 3.0 * c**2 * xy + 3.0 * c * u**2 + u**3
