"""Weights, means and scatter matrices of data that arrive in parts, merged without forming large sums.

    w = w1 + w2,   m = m1 + (w2 / w) (m2 - m1),   S = S1 + S2 + (w1 w2 / w) (m2 - m1)(m2 - m1)'

Chan, Golub & LeVeque 1983. Sums of squares are about the mean, so no large numbers are subtracted: the
variance of data far from the origin keeps its digits. Weights need not be whole numbers, so that averages
over time (stepwise EM) are merged likewise. NumPy and JAX arrays are both taken, and stay what they are.
"""

from typing import Any, Literal, NamedTuple

import jax

Covariance = Literal["full", "tied", "diagonal", "spherical"]
"""Of K Gaussians: any of each, one of all, axis-aligned of each, or a multiple of the identity of each."""


class Moments(NamedTuple):
    """Moments of one set (K left out), or of K sets."""

    weight: Any
    """(K,), number of examples or their total weight."""
    mean: Any
    """(K, D); any finite number where the weight is 0."""
    scatter: Any
    """Sum of (x - mean)(x - mean)': (K, D, D) full, (D, D) tied (summed over sets), (K, D) diagonal, and (K,)
    spherical (the mean over dimensions)."""


def merge(first: Moments, second: Moments, covariance: Covariance = "full") -> Moments:
    """The moments of two sets of examples together."""
    weight = first.weight + second.weight
    share = second.weight / (weight + (weight == 0))
    apart = second.mean - first.mean
    between = outer(first.weight * share, apart, covariance)
    mean = first.mean + share[..., None] * apart
    return Moments(weight, mean, first.scatter + second.scatter + between)


def outer(weight: Any, x: Any, covariance: Covariance) -> Any:
    """weight x x' of weights (K,) and vectors x (K, D), in the shape of a scatter."""
    if covariance == "spherical":
        return weight * (x**2).mean(-1)
    weighted = weight[..., None] * x
    if covariance == "diagonal":
        return weighted * x
    if covariance == "full":
        return weighted[..., :, None] * x[..., None, :]
    with jax.default_matmul_precision("highest"):
        return weighted.T @ x
