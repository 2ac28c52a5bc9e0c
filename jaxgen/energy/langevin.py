"""Langevin dynamics: draws from a density p by the gradient of its logarithm, the score.

    x_{k+1} = x_k + step_size / 2 score(x_k) + noise eps_k,     eps_k ~ N(0, I),     noise^2 = step_size.

As step_size goes to 0 the chain tends to p (Parisi 1981; Roberts & Tweedie 1996). Nothing corrects for steps
of finite size: of N(0, s^2) the chain has the variance s^2 / (1 - step_size / (4 s^2)), and from
step_size = 4 s^2 on it diverges. Less noise than that is a lower temperature: the chain then tends to
p^(step_size / noise^2).

`annealed` follows the scores of data under ever less noise (Song & Ermon 2019), so that chains find modes far
apart in the right proportions, between which a plain chain would not cross.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

Score = Callable[[Array], Array]
"""x (B, ...) -> the gradient of log p at each example, (B, ...)."""


def step(key: Array, score: Score, x: Array, step_size: Any, noise: Any = None) -> Array:
    """x (B, ...) after one step. `noise` is its standard deviation, by default sqrt(step_size)."""
    noise = jnp.sqrt(step_size) if noise is None else noise
    moved = x + 0.5 * step_size * score(x) + noise * jax.random.normal(key, x.shape, x.dtype)
    return moved.astype(x.dtype)


def chain(
    key: Array,
    score: Score,
    x: Array,
    num_steps: int,
    step_size: Any,
    noise: Any = None,
    project: Callable[[Array], Array] | None = None,
) -> Array:
    """x (B, ...) after `num_steps` steps, step k with the key fold_in(key, k).

    Args:
        step_size, noise: as those of `step`.
        project: applied to x after each step, to keep it in the space of the data.

    Raises:
        ValueError: a negative number of steps.
    """
    if num_steps < 0:
        raise ValueError(f"num_steps must not be negative, got {num_steps}")

    def move(x: Array, index: Array) -> tuple[Array, None]:
        x = step(jax.random.fold_in(key, index), score, x, step_size, noise)
        return (x if project is None else project(x)), None

    return jax.lax.scan(move, x, jnp.arange(num_steps))[0]


def annealed(
    key: Array,
    score: Callable[[Array, Array], Array],
    x: Array,
    levels: Any,
    epsilon: Any,
    steps_per_level: int,
) -> Array:
    """x (B, ...) after `steps_per_level` steps at each of the noise levels (Song & Ermon 2019, algorithm 1).

    Args:
        score: (x, level) -> the gradient of the log-density of data with noise of standard deviation
            `level`, (); x (B, ...) -> (B, ...).
        x: draws at the first level.
        levels: decreasing standard deviations, (L,).
        epsilon: step size at the last level; at the others it is proportional to level^2.

    Raises:
        ValueError: a negative number of steps.
    """
    levels = jnp.asarray(levels, x.dtype)
    sizes = epsilon * (levels / levels[-1]) ** 2

    def at_level(x: Array, row: tuple[Array, Array, Array]) -> tuple[Array, None]:
        index, level, size = row
        own_key = jax.random.fold_in(key, index)
        return chain(own_key, lambda x: score(x, level), x, steps_per_level, size), None

    return jax.lax.scan(at_level, x, (jnp.arange(len(levels)), levels, sizes))[0]
