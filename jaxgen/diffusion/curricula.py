"""How `consistency` is trained: what from, on how many noise levels at a step, and how often on each."""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen import values
from jaxgen.fields import FiniteFloat, NonNegativeFloat, PositiveFloat, PositiveInt


@dataclasses.dataclass(frozen=True)
class Training(values.Value):
    """Learn from data alone: neighbours are the same data with the same noise at two levels."""

    has_teacher: ClassVar[bool] = False

    embedding_scale: PositiveFloat = 10.0
    """The network is told c_noise times this: the larger, the better it can tell levels apart."""


@dataclasses.dataclass(frozen=True)
class Distillation(values.Value):
    """Learn from the flow of a teacher, which `distil` puts into the state: neighbours lie on its path."""

    has_teacher: ClassVar[bool] = True
    embedding_scale: ClassVar[PositiveFloat] = 1000.0  # what the teacher's network was told


@dataclasses.dataclass(frozen=True)
class Doubling(values.Value):
    """The intervals between levels double in number, in stages of equal length (Song & Dhariwal 2024)."""

    first: PositiveInt = 10
    """Intervals between levels at first."""
    last: PositiveInt = 1280
    """Intervals between levels in the end."""
    steps: PositiveInt = 10_000
    """Training steps the curriculum takes, usually all of the run."""

    def __post_init__(self) -> None:
        _check(self.first, self.last)

    def __call__(self, step: Array | int) -> Array:
        """Intervals at a step of training, () int32: one fewer than the levels."""
        stage = max(int(self.steps / (math.log2(self.last // self.first) + 1)), 1)
        doublings = jnp.minimum(jnp.asarray(step) // stage, (self.last // self.first).bit_length())
        return jnp.minimum(self.first * 2**doublings, self.last).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class Root(values.Value):
    """The intervals between levels grow in number as the root of time (Song et al. 2023)."""

    first: PositiveInt = 1
    """Intervals between levels at first."""
    last: PositiveInt = 150
    """Intervals between levels in the end."""
    steps: PositiveInt = 10_000
    """Training steps the curriculum takes, usually all of the run."""

    def __post_init__(self) -> None:
        _check(self.first, self.last)

    def __call__(self, step: Array | int) -> Array:
        """Intervals at a step of training, () int32: one fewer than the levels."""
        share = jnp.minimum(jnp.asarray(step) / self.steps, 1.0)
        root = jnp.sqrt(share * ((self.last + 1) ** 2 - (self.first + 1) ** 2) + (self.first + 1) ** 2)
        return jnp.clip(jnp.ceil(root - 1), self.first, self.last).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class Fixed(values.Value):
    """The intervals between levels stay as many, as the first paper distils."""

    intervals: PositiveInt = 17
    """Intervals between levels."""

    def __post_init__(self) -> None:
        _check(self.intervals, self.intervals)

    @property
    def first(self) -> int:
        """Intervals at first."""
        return self.intervals

    @property
    def last(self) -> int:
        """Intervals in the end."""
        return self.intervals

    def __call__(self, step: Array | int) -> Array:
        """Intervals at a step of training, () int32: one fewer than the levels."""
        return jnp.full(jnp.shape(step), self.intervals, jnp.int32)


@dataclasses.dataclass(frozen=True)
class LogNormal(values.Value):
    """Levels are met as often as those of a log-normal distribution (Song & Dhariwal 2024)."""

    mean: FiniteFloat = -1.1
    """Mean of the logarithm of the level."""
    std: NonNegativeFloat = 2.0
    """Standard deviation of the logarithm of the level."""

    def __call__(
        self, key: Array, n: int, intervals: Any, smallest: float, largest: float, exponent: float
    ) -> Array:
        """Indices of the lower of two neighbouring levels, (n,) int32.

        Those of a log-normal level within the range, rounded down to the levels there are: as likely as the
        distribution has mass between the neighbours.
        """
        low, high = ((math.log(end) - self.mean) / self.std for end in (smallest, largest))
        log_level = self.mean + self.std * jax.random.truncated_normal(key, low, high, (n,))
        small, large = (level ** (1 / exponent) for level in (smallest, largest))
        position = (jnp.exp(log_level / exponent) - small) / (large - small)
        return jnp.clip((position * intervals).astype(jnp.int32), 0, intervals - 1)


@dataclasses.dataclass(frozen=True)
class Uniform(values.Value):
    """All levels are met equally often."""

    def __call__(
        self, key: Array, n: int, intervals: Any, smallest: float, largest: float, exponent: float
    ) -> Array:
        """Indices of the lower of two neighbouring levels, (n,) int32."""
        del smallest, largest, exponent
        return jax.random.randint(key, (n,), 0, intervals)


def _check(first: int, last: int) -> None:
    if not 1 <= first <= last:
        raise ValueError(f"levels grow in number, from {first} intervals to {last} they do not")
