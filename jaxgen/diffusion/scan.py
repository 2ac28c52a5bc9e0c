"""The loop under all samplers: one `lax.scan` over rows of coefficients, and the states on its way.

A sampler first describes its loop, a `Path`; what is done with it is another matter: `end()` runs it for the
last state, `frames(count)` for states on the way. A function decorated with `Sampler` returns the last state,
and its attribute `path`, of the same arguments, the path itself:

    x0 = samplers.ddim(model, x, process, timesteps)
    frames = samplers.ddim.path(model, x, process, timesteps).frames(10)
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Generic, NamedTuple, ParamSpec

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxgen import values
from jaxgen.fields import PositiveInt

Model = Callable[[Array, Array], Any]
"""model(x, t) of a batch and its times (B,)."""

P = ParamSpec("P")


class Path(NamedTuple):
    """step(carry, row, index) over rows of S coefficients; the state is the carry, or its first entry."""

    step: Callable[..., Any]
    carry: Any
    rows: Mapping[str, Any]
    last: Callable[..., Any] | None = None
    """What stands for `step` in the last row, if it is another."""

    def run(self) -> Any:
        """The last carry."""
        return self._scan(0)[0]

    def end(self) -> Array:
        """The last state, (B, ...)."""
        return _state(self.run())

    def frames(self, count: int) -> Array:
        """`count` states on the way, evenly spaced, the last of which is `end()`, (count, B, ...).

        Raises ValueError for more frames than steps, and for none.
        """
        if not 1 <= count <= self.num_steps:
            raise ValueError(
                f"{count} frames of {self.num_steps} steps: take 1 to as many as there are steps"
            )
        return self._scan(count)[1][:count]

    @property
    def num_steps(self) -> int:
        """Rows, S."""
        return len(next(iter(self.rows.values())))

    def _scan(self, frames: int) -> tuple[Any, Array]:
        count, carry = self.num_steps, self.carry
        dtype = _state(carry).dtype
        cast = lambda row: jnp.asarray(row, jnp.int32 if jnp.issubdtype(row.dtype, jnp.integer) else dtype)
        rows = {name: cast(row) for name, row in self.rows.items()}
        # Step i is frame `slot`, or goes to a slot that is thrown away.
        slots = np.full(count, frames)
        slots[np.arange(1, frames + 1) * count // max(frames, 1) - 1] = np.arange(frames)
        kept = jnp.zeros((frames + 1 if frames else 0, *_state(carry).shape), dtype)

        def keep(kept, carry, slot):
            return kept.at[slot].set(_state(carry)) if frames else kept

        def body(both, inputs):
            (carry, kept), (row, index, slot) = both, inputs
            carry = self.step(carry, row, index)
            return (carry, keep(kept, carry, slot)), None

        looped = count if self.last is None else count - 1
        inputs = rows, jnp.arange(count), jnp.asarray(slots)
        (carry, kept), _ = lax.scan(body, (carry, kept), jax.tree.map(lambda row: row[:looped], inputs))
        if self.last is not None:
            row, index, slot = jax.tree.map(lambda row: row[-1], inputs)
            carry = self.last(carry, row, index)
            kept = keep(kept, carry, slot)
        return carry, kept


class Sampler(Generic[P]):
    """Decorator of a function that returns a path: it then returns the path's last state.

    The attribute `path` is the function itself.
    """

    def __init__(self, path: Callable[P, Path]):
        self.path = path
        functools.update_wrapper(self, path)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Array:
        return self.path(*args, **kwargs).end()


@dataclasses.dataclass(frozen=True)
class Steps(values.Value):
    """What the samplers that a Config holds have in common."""

    steps: PositiveInt = 50
    """Steps from noise to data."""


def check_steps(steps: int) -> None:
    """Raises ValueError for a number of steps below 1."""
    if steps < 1:
        raise ValueError(f"a sampler takes at least 1 step, not {steps}")


def with_steps(sampler: Any, steps: int | None) -> Any:
    """A Config's sampler, with another number of steps unless that is None."""
    return sampler if steps is None else dataclasses.replace(sampler, steps=steps)


def times(value: Array, x: Array) -> Array:
    """One time for all, (B,)."""
    return jnp.full(x.shape[0], value)


def noise(key: Array, index: Array, x: Array) -> Array:
    """Standard normal numbers of step `index`, shaped as x."""
    return jax.random.normal(jax.random.fold_in(key, index), x.shape, x.dtype)


def is_not_zero(amount: Array | float) -> bool:
    """Whether an amount of noise is other than 0, or traced, so that it may be."""
    return isinstance(amount, jax.core.Tracer) or bool(np.any(amount))


def check_key(key: Array | None, amount: Array | float, name: str) -> None:
    """Raises ValueError for a sampler that is to draw noise and has no key."""
    if key is None and is_not_zero(amount):
        raise ValueError(f"{name} other than 0 draws noise: give the sampler a key")


def _state(carry):
    return carry[0] if isinstance(carry, tuple) else carry
