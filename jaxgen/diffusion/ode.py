"""Ordinary differential equations of samples, and the densities they carry.

`Euler`, `Midpoint`, `Heun` and `RK4` are the values that the Config of `flow_matching` holds.

A velocity f(x, t) -> (B, ...), t (), moves each example of x (B, ...) by itself. Along its paths a density
changes by its divergence (Chen et al. 2018; Grathwohl et al. 2019),

    log p(x(0)) = log p(x(1)) + integral of div f(x(t), t) dt from 0 to 1.

The divergence is taken in reverse mode, one row of the Jacobian at a time, or estimated without bias by
random probes e as e' J e (Hutchinson), the same throughout a solution.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxgen import distributions
from jaxgen.diffusion import scan
from jaxgen.fields import PositiveInt

Velocity = Callable[[Array, Array], Array]

METHODS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "euler": ((0.0,), (1.0,)),
    "midpoint": ((0.0, 0.5), (0.0, 1.0)),
    "heun": ((0.0, 1.0), (0.5, 0.5)),
    "rk4": ((0.0, 0.5, 0.5, 1.0), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
}
"""Explicit methods: where each slope is taken, from the one before it, and its weight. Orders 1, 2, 2, 4."""


def path(velocity: Callable[[Any, Array], Any], x: Any, times: Any, method: str = "heun") -> scan.Path:
    """The steps from x at the first of `times` (S + 1,) to the last; x may be a tuple, its first the state.

    Raises ValueError for an unknown method, and for less than one step.
    """
    if method not in METHODS:
        raise ValueError(f"no method {method!r}: there are {', '.join(METHODS)}")
    scan.check_steps(len(times) - 1)
    nodes, weights = METHODS[method]
    times = jnp.asarray(times, jnp.result_type(*jax.tree.leaves(x)))

    def move(x, slopes, amounts):
        total = lambda x, *ks: x + sum(a * k for a, k in zip(amounts, ks, strict=True))
        return jax.tree.map(total, x, *slopes)

    def step(x, row, index):
        del index
        start = row["start"]
        h = row["end"] - start
        slopes: list[Any] = []
        for node in nodes:
            there = move(x, slopes[-1:], [node * h]) if slopes else x
            slopes.append(velocity(there, start + node * h))
        return move(x, slopes, [weight * h for weight in weights])

    return scan.Path(step, x, {"start": times[:-1], "end": times[1:]})


def solve(velocity: Callable[[Any, Array], Any], x: Any, times: Any, method: str = "heun") -> Any:
    """x at the last of `times` (S + 1,), from x at the first, in S steps, as `path` takes them."""
    return path(velocity, x, times, method).run()


@dataclasses.dataclass(frozen=True)
class Solver(scan.Steps):
    """One of METHODS in equal steps from t = 0, noise, to t = 1, data."""

    method: ClassVar[str]

    def __call__(self, velocity: Velocity, x: Array) -> scan.Path:
        """The path from noise x (B, ...) to data."""
        return path(velocity, x, jnp.linspace(0.0, 1.0, self.steps + 1), self.method)


@dataclasses.dataclass(frozen=True)
class Euler(Solver):
    """Euler's method, of first order."""

    method: ClassVar[str] = "euler"

    steps: PositiveInt = 50
    """Steps from noise to data, with one call of the network each."""


@dataclasses.dataclass(frozen=True)
class Midpoint(Solver):
    """The midpoint method, of second order."""

    method: ClassVar[str] = "midpoint"

    steps: PositiveInt = 50
    """Steps from noise to data, with two calls of the network each."""


@dataclasses.dataclass(frozen=True)
class Heun(Solver):
    """Heun's method, of second order."""

    method: ClassVar[str] = "heun"

    steps: PositiveInt = 50
    """Steps from noise to data, with two calls of the network each."""


@dataclasses.dataclass(frozen=True)
class RK4(Solver):
    """The classical Runge-Kutta method, of fourth order."""

    method: ClassVar[str] = "rk4"

    steps: PositiveInt = 50
    """Steps from noise to data, with four calls of the network each."""


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
    size = math.prod(x.shape[1:])
    inner = lambda a, b: distributions.sum_per_example(a * b)
    if probes is None:
        row = lambda unit: jnp.broadcast_to(unit.reshape(x.shape[1:]), x.shape)
        rows = lambda unit: inner(pull(row(unit))[0], row(unit))
        return slope, lax.map(rows, jnp.eye(size, dtype=x.dtype)).sum(0)
    return slope, lax.map(lambda probe: inner(pull(probe)[0], probe), probes).mean(0)
