"""Ordinary differential equations of samples, and the densities they carry.

A velocity f(x, t) -> (B, ...), t (), moves each example of x (B, ...) by itself. Along its paths a density
changes by its divergence (Chen et al. 2018; Grathwohl et al. 2019),

    log p(x(0)) = log p(x(1)) + integral of div f(x(t), t) dt from 0 to 1.

The divergence is taken in reverse mode, one row of the Jacobian at a time, or estimated without bias by
random probes e as e' J e (Hutchinson), the same throughout a solution.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

Velocity = Callable[[Array, Array], Array]

METHODS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "euler": ((0.0,), (1.0,)),
    "midpoint": ((0.0, 0.5), (0.0, 1.0)),
    "heun": ((0.0, 1.0), (0.5, 0.5)),
    "rk4": ((0.0, 0.5, 0.5, 1.0), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
}
"""Explicit methods: where each slope is taken, from the one before it, and its weight. Orders 1, 2, 2, 4."""


def solve(
    velocity: Callable[[Any, Array], Any], x: Any, times: Any, method: str = "heun", frames: bool = False
) -> Any:
    """x at the last of `times` (S + 1,), from x at the first, in S steps; x may be a tree of arrays.

    With `frames` also x after every step, (S, ...). Raises ValueError for an unknown method.
    """
    if method not in METHODS:
        raise ValueError(f"no method {method!r}: there are {', '.join(METHODS)}")
    nodes, weights = METHODS[method]
    times = jnp.asarray(times, jnp.result_type(*jax.tree.leaves(x)))

    def move(x, slopes, amounts):
        total = lambda x, *ks: x + sum(a * k for a, k in zip(amounts, ks, strict=True))
        return jax.tree.map(total, x, *slopes)

    def step(x, ends):
        start, end = ends
        h = end - start
        slopes: list[Any] = []
        for node in nodes:
            there = move(x, slopes[-1:], [node * h]) if slopes else x
            slopes.append(velocity(there, start + node * h))
        x = move(x, slopes, [weight * h for weight in weights])
        return x, (x if frames else None)

    x, steps = lax.scan(step, x, (times[:-1], times[1:]))
    return (x, steps) if frames else x


def log_prob(
    velocity: Velocity,
    x: Array,
    times: Any,
    end_log_prob: Callable[[Array], Array],
    probes: Array | None = None,
    method: str = "rk4",
) -> Array:
    """log p(x) in nats, (B,), of data x (B, ...) at the first of `times` (S + 1,).

    Args:
        end_log_prob: log-density at the last of the times, (B, ...) -> (B,).
        probes: (K, B, ...) of mean 0 and covariance I, for the estimated divergence; exact without them.
    """

    def both(state, t):
        return with_divergence(velocity, state[0], t, probes)

    x, change = solve(both, (x, jnp.zeros(x.shape[0], x.dtype)), times, method)
    return end_log_prob(x) + change


def with_divergence(velocity: Velocity, x: Array, t: Array, probes: Array | None) -> tuple[Array, Array]:
    """The velocity (B, ...) and its divergence (B,), exact or by `probes`, as in `log_prob`."""
    slope, pull = jax.vjp(lambda x: velocity(x, t), x)
    size = x[0].size
    inner = lambda a, b: (a * b).reshape(x.shape[0], -1).sum(-1)
    if probes is None:
        row = lambda unit: jnp.broadcast_to(unit.reshape(x.shape[1:]), x.shape)
        rows = lambda unit: inner(pull(row(unit))[0], row(unit))
        return slope, lax.map(rows, jnp.eye(size, dtype=x.dtype)).sum(0)
    return slope, lax.map(lambda probe: inner(pull(probe)[0], probe), probes).mean(0)
