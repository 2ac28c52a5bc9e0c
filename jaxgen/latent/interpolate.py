"""Between codes and across them: lines, arcs, traversals of one dimension, and squares of a latent plane.

A line between two draws of N(0, I) in many dimensions passes points shorter than any draw, which the decoder
has not seen; an arc (slerp: Shoemake 1985; White 2016) keeps to the lengths of its ends. Where codes have no
such prior, as in a plain autoencoder, the line is as good.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

SMALLEST_SINE = 1e-6
"""Below this sine of the angle between its ends an arc is not defined, or no different from a line."""


def lerp(start: Array, end: Array, t: Array | float) -> Array:
    """(1 - t) start + t end, for codes (..., D) and t of their leading shape or a scalar."""
    t = jnp.asarray(t)[..., None]
    return (1 - t) * start + t * end


def slerp(start: Array, end: Array, t: Array | float) -> Array:
    """The point at t of the arc from `start` to `end`, codes (..., D); t of their leading shape or a scalar.

    With the angle A between them it is sin((1 - t) A) / sin A start + sin(t A) / sin A end: ends of equal
    length keep it, at a constant angular speed. Parallel or opposite codes, between which no arc is singled
    out, get the line.
    """
    first, second = (z / jnp.maximum(_norm(z), 1e-30) for z in (start, end))
    # The arccos of their product would lose half of the digits of a small angle.
    angle = 2 * jnp.arctan2(_norm(first - second), _norm(first + second))
    sine = jnp.sin(angle)
    line = jnp.abs(sine) < SMALLEST_SINE
    t = jnp.asarray(t)[..., None]
    before, after = (jnp.sin(part * angle) / jnp.where(line, 1.0, sine) for part in (1 - t, t))
    return jnp.where(line, 1 - t, before) * start + jnp.where(line, t, after) * end


def path(
    start: Array, end: Array, num_points: int, along: Callable[[Array, Array, Array], Array] = lerp
) -> Array:
    """`num_points` evenly spaced points from `start` to `end`, both included, (num_points, ..., D).

    `along` is `lerp` or `slerp`.
    """
    return jax.vmap(along, (None, None, 0))(start, end, jnp.linspace(0.0, 1.0, num_points))


def traverse(z: Array, dimension: int, values: Array) -> Array:
    """Codes z (..., D) with one coordinate set to each of `values` (S,) in turn, (S, ..., D)."""
    return jax.vmap(lambda value: z.at[..., dimension].set(value))(jnp.asarray(values))


def prior_quantiles(side: int, tail: float = 0.05) -> Array:
    """A square of codes at evenly spaced quantiles of the prior N(0, I), top row first, (side^2, 2).

    The outermost are the quantiles `tail` and 1 - `tail`.
    """
    quantiles = jax.scipy.stats.norm.ppf(np.linspace(tail, 1 - tail, side))
    return _square(quantiles, quantiles)


def bounding_square(codes: Array, side: int) -> Array:
    """Evenly spaced points of the square around codes (N, 2), top row first, (side^2, 2)."""
    low, high = codes.min(0), codes.max(0)
    centre, half = (low + high) / 2, (high - low).max() / 2
    ticks = jnp.linspace(-half, half, side)
    return _square(centre[0] + ticks, centre[1] + ticks)


def _norm(z: Array) -> Array:
    """Length of z (..., D), (..., 1), with gradient 0 at 0."""
    squares = (z**2).sum(-1, keepdims=True)
    positive = squares > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1.0)), 0.0)


def _square(x: Array, y: Array) -> Array:
    return jnp.stack(jnp.meshgrid(x, y[::-1]), -1).reshape(-1, 2)
