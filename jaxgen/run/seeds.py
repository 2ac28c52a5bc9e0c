"""Several seeds of a family trained at once, as one family: its steps are vectorised over the seeds.

    states = jaxgen.fit(Seeds(gan, 5), cfg, train, steps=1000, batch_size=5 * 64, key=key).states

Every seed has its own parameters and its own part of the batch: of N examples each seed sees N / count.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen.types import Batch, Metrics


class State(NamedTuple):
    """The States of all seeds."""

    step: Array
    key: Array
    states: Any  # one State of the family, whose arrays have the seeds as a leading axis


@dataclasses.dataclass(frozen=True)
class Seeds:
    """`count` independent models of a family with one Config."""

    family: Any
    count: int

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"there must be at least one seed, got {self.count}")

    @property
    def __name__(self) -> str:
        return f"{self.family.__name__} x {self.count}"

    @property
    def Config(self) -> type:
        """The family's Config."""
        return self.family.Config

    def init(self, key: Array, cfg: Any, batch: Batch | None = None) -> State:
        """Fresh states, each from a key of its own; `batch`, if given, is divided among them."""
        keys = jax.random.split(key, self.count)
        if batch is None:
            states = jax.vmap(lambda key: self.family.init(key, cfg))(keys)
        else:
            states = jax.vmap(lambda key, part: self.family.init(key, cfg, part))(keys, self._parts(batch))
        return State(jnp.zeros((), jnp.int32), key, states)

    def train_step(self, state: State, batch: Batch, cfg: Any) -> tuple[State, Metrics]:
        """One step of every seed on its part of the batch; metrics are means over the seeds.

        Raises ValueError for a batch that the seeds cannot share equally.
        """
        step = jax.vmap(lambda state, part: self.family.train_step(state, part, cfg))
        states, metrics = step(state.states, self._parts(batch))
        metrics = {name: value.mean(0) for name, value in metrics.items()}
        return State(state.step + 1, state.key, states), metrics

    def sample(self, key: Array, state: State, n: int, cfg: Any) -> Array:
        """n draws, (n, *shape), of all seeds in turn: n / count of each, rounded up, and cut to n."""
        each = -(-n // self.count)
        x = self.sample_each(key, state, each, cfg)
        return x.swapaxes(0, 1).reshape(each * self.count, *x.shape[2:])[:n]

    def sample_each(self, key: Array, state: State, n: int, cfg: Any) -> Array:
        """n draws of every seed, (count, n, *shape)."""
        keys = jax.random.split(key, self.count)
        return jax.vmap(lambda key, state: self.family.sample(key, state, n, cfg))(keys, state.states)

    def _parts(self, batch: Batch) -> Batch:
        size = len(next(iter(batch.values())))
        if size % self.count:
            raise ValueError(f"{self.count} seeds cannot share a batch of {size} equally")
        return {name: x.reshape(self.count, size // self.count, *x.shape[1:]) for name, x in batch.items()}
