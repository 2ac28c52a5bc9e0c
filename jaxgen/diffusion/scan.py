"""The loop under all samplers: one `lax.scan` over rows of coefficients, which may keep states on the way."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

Model = Callable[[Array, Array], Any]
"""model(x, t) of a batch and its times (B,)."""


def run(
    step: Callable[..., Any],
    carry: Any,
    rows: Mapping[str, Any],
    frames: int,
    last: Callable[..., Any] | None = None,
) -> Any:
    """Scan step(carry, row, index) over rows of S coefficients; the state is the carry, or its first entry.

    `last` stands for the step of the last row. Returns the last state, and with `frames` as many states on
    the way, (frames, B, ...). Raises ValueError for more frames than steps.
    """
    state = lambda carry: carry[0] if isinstance(carry, tuple) else carry
    dtype = state(carry).dtype
    count = len(rows["sigma"])
    if not 0 <= frames <= count:
        raise ValueError(f"{frames} frames of {count} steps: take at most as many")
    cast = lambda row: jnp.asarray(row, jnp.int32 if jnp.issubdtype(row.dtype, jnp.integer) else dtype)
    rows = {name: cast(row) for name, row in rows.items()}
    # Step i is frame `slot`, or goes to a slot that is thrown away.
    slots = np.full(count, frames)
    slots[np.arange(1, frames + 1) * count // max(frames, 1) - 1] = np.arange(frames)
    kept = jnp.zeros((frames + 1 if frames else 0, *state(carry).shape), dtype)

    def keep(kept, carry, slot):
        return kept.at[slot].set(state(carry)) if frames else kept

    def body(both, inputs):
        (carry, kept), (row, index, slot) = both, inputs
        carry = step(carry, row, index)
        return (carry, keep(kept, carry, slot)), None

    looped = count if last is None else count - 1
    inputs = rows, jnp.arange(count), jnp.asarray(slots)
    (carry, kept), _ = lax.scan(body, (carry, kept), jax.tree.map(lambda row: row[:looped], inputs))
    if last is not None:
        row, index, slot = jax.tree.map(lambda row: row[-1], inputs)
        carry = last(carry, row, index)
        kept = keep(kept, carry, slot)
    return (state(carry), kept[:frames]) if frames else state(carry)


def times(value: Array, x: Array) -> Array:
    """One time for all, (B,)."""
    return jnp.full(x.shape[0], value)


def noise(key: Array, index: Array, x: Array) -> Array:
    """Standard normal numbers of step `index`, shaped as x."""
    return jax.random.normal(jax.random.fold_in(key, index), x.shape, x.dtype)


def check_key(key: Array | None, amount: Array | float, name: str) -> None:
    """Raises ValueError for a sampler that is to draw noise and has no key."""
    if key is None and (isinstance(amount, jax.core.Tracer) or np.any(amount)):
        raise ValueError(f"{name} other than 0 draws noise: give the sampler a key")
