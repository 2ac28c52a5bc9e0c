"""Monotone rational-quadratic splines (Gregory & Delbourgo 1982; Durkan et al. 2019), elementwise.

In the bin between the knots (x_0, y_0) and (x_1, y_1), of slopes d_0 and d_1, with s = (y_1 - y_0) / (x_1 -
x_0), t = (x - x_0) / (x_1 - x_0), h = (y - y_0) / (y_1 - y_0), and t' = 1 - t, h' = 1 - h,

    h = (s t^2 + d_0 t t') / (s (t^2 + t'^2) + (d_0 + d_1) t t'),
    dy/dx = s^2 (d_1 t^2 + 2 s t t' + d_0 t'^2) / (s (t^2 + t'^2) + (d_0 + d_1) t t')^2,

and t / t' is the positive root r of s h' r^2 + (d_0 h' - d_1 h) r - s h = 0. In this form, which is that of
the paper rearranged, sums have terms of one sign alone, and float32 does for steep and flat bins. Outside of
the first and the last knot the function goes on as a line, with the slope it has there.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array


class Knots(NamedTuple):
    """K + 1 points of a monotone function for each number (...), in ascending order."""

    x: Array  # (..., K + 1)
    y: Array  # (..., K + 1)
    slope: Array  # (..., K + 1), positive


def forward(knots: Knots, x: Array) -> tuple[Array, Array]:
    """y and log(dy/dx) of x (...)."""
    inside = jnp.clip(x, knots.x[..., 0], knots.x[..., -1])
    x0, x1, y0, y1, d0, d1 = _bin(knots, knots.x, inside)
    width, height = x1 - x0, y1 - y0
    s, t, rest = height / width, (inside - x0) / width, (x1 - inside) / width
    y = y0 + height * t * (s * t + d0 * rest) / _denominator(s, t, rest, d0, d1)
    beyond, tail = _tail(knots, x, inside)
    slope = jnp.where(x == inside, _slope(s, t, rest, d0, d1), tail)
    return y + tail * beyond, jnp.log(slope)


def inverse(knots: Knots, y: Array) -> tuple[Array, Array]:
    """x and log(dx/dy) of y (...)."""
    inside = jnp.clip(y, knots.y[..., 0], knots.y[..., -1])
    x0, x1, y0, y1, d0, d1 = _bin(knots, knots.y, inside)
    width, height = x1 - x0, y1 - y0
    s, low, high = height / width, (inside - y0) / height, (y1 - inside) / height
    middle = d0 * high - d1 * low
    root = jnp.sqrt(middle**2 + 4 * s**2 * low * high)
    # t / rest, of the two forms of the root the one that does not cancel.
    t = jnp.where(middle > 0, 2 * s * low, root - middle)
    rest = jnp.where(middle > 0, middle + root, 2 * s * high)
    t, rest = t / (t + rest), rest / (t + rest)
    beyond, tail = _tail(knots, y, inside)
    slope = jnp.where(y == inside, _slope(s, t, rest, d0, d1), tail)
    return x0 + width * t + beyond / tail, -jnp.log(slope)


def _bin(knots: Knots, edges: Array, value: Array) -> list[Array]:
    """x, y and slope at both ends of the bin of `edges` that `value` is in, each (...)."""
    index = (value[..., None] >= edges[..., 1:-1]).sum(-1)
    # A sum over few bins vectorises better than a gather.
    chosen = index[..., None] == jnp.arange(edges.shape[-1] - 1)
    pick = lambda a: jnp.where(chosen, a, 0).sum(-1)
    return [pick(end) for a in knots for end in (a[..., :-1], a[..., 1:])]


def _denominator(s: Array, t: Array, rest: Array, d0: Array, d1: Array) -> Array:
    return s * (t**2 + rest**2) + (d0 + d1) * t * rest


def _slope(s: Array, t: Array, rest: Array, d0: Array, d1: Array) -> Array:
    """dy/dx at t."""
    ratio = s / _denominator(s, t, rest, d0, d1)
    return ratio**2 * (d1 * t**2 + 2 * s * t * rest + d0 * rest**2)


def _tail(knots: Knots, value: Array, inside: Array) -> tuple[Array, Array]:
    """How far a value lies beyond the knots, and the slope at the end where it does."""
    beyond = value - inside
    return beyond, jnp.where(beyond < 0, knots.slope[..., 0], knots.slope[..., -1])
