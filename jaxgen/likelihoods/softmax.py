"""Likelihoods of finitely many values, of which any may be likely: levels, symbols, and codes of sound."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen import distributions
from jaxgen.arguments import symbols
from jaxgen.fields import NonNegativeInt, PositiveInt
from jaxgen.likelihoods.base import Likelihood, sharpened


class Softmax(Likelihood):
    """One of finitely many values for each channel; the output are the logits of all values, by channel."""

    @property
    def num_values(self) -> int:
        """Values that there are. Raises ValueError if that is not known."""
        raise NotImplementedError

    def index(self, x: Array) -> Array:
        """The number 0 ... num_values - 1 of each value, int32."""
        raise NotImplementedError

    def value(self, index: Array) -> Array:
        """The value of each number, as the data have it."""
        raise NotImplementedError

    def num_outputs(self, num_channels: int) -> int:
        """The logits of all values of each channel."""
        return num_channels * self.num_values

    def first_bias(self, mean: Array) -> Array:
        """All values as likely."""
        return jnp.zeros((*mean.shape[:-1], self.num_outputs(mean.shape[-1])))

    def targets(self, key: Array | None, x: Array) -> Array:
        """The nearest of the values."""
        del key
        return self.value(self.index(x))

    def log_prob(self, params: Any, output: Array, x: Array) -> Array:
        """log P(x | z), (B,); -inf of what is none of the values."""
        log_p, index = jax.nn.log_softmax(self._logits(output)), self.index(x)
        known = (index >= 0) & (index < self.num_values)
        chosen = jnp.take_along_axis(log_p, jnp.where(known, index, 0)[..., None], -1)[..., 0]
        return distributions.sum_per_example(jnp.where(known, chosen, -jnp.inf))

    def mean(self, params: Any, output: Array) -> Array:
        """E[x | z]."""
        values = jnp.float32(self.value(jnp.arange(self.num_values)))
        return jax.nn.softmax(self._logits(output)) @ values

    def sample(self, key: Array, params: Any, output: Array) -> Array:
        """Values."""
        return self.value(jax.random.categorical(key, self._logits(output)).astype(jnp.int32))

    def sharpened(
        self, output: Array, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
    ) -> Array:
        """Logits over the temperature, -inf for what is never to be drawn."""
        return sharpened(self._logits(output), temperature, top_k, top_p).reshape(output.shape)

    def _logits(self, output: Array) -> Array:
        """(..., C, num_values)."""
        return output.reshape(*output.shape[:-1], output.shape[-1] // self.num_values, self.num_values)


@dataclasses.dataclass(frozen=True)
class Categorical(Softmax):
    """Levels of pixels, spread evenly over [-1, 1], of which any may be likely."""

    one_hot: bool = False
    """Give a network the levels one-hot, not as numbers on [-1, 1]."""
    levels: NonNegativeInt | None = None
    """Values that a pixel of the data has; filled in from the Config."""

    measure = "levels"

    @property
    def num_values(self) -> int:
        """The levels."""
        return self.levels or 256

    def check(self, shape: tuple[int, ...]) -> None:
        """Raises ValueError for data without levels."""
        if not self.levels or self.levels < 2:
            raise ValueError("levels are of pixels, not of real numbers: try a model of a density, or bits")

    def index(self, x: Array) -> Array:
        """The nearest level."""
        last = self.num_values - 1
        return jnp.clip(jnp.round((x + 1) * (last / 2)), 0, last).astype(jnp.int32)

    def value(self, index: Array) -> Array:
        """Numbers on [-1, 1]."""
        return index / ((self.num_values - 1) / 2) - 1

    def inputs(self, x: Array) -> Array:
        """Numbers on [-1, 1], or one-hot levels, those of a channel side by side."""
        return one_hot(self.index(x), self.num_values) if self.one_hot else x


@dataclasses.dataclass(frozen=True)
class Symbols(Softmax):
    """Symbols 0 ... num_symbols - 1, int32; a network is given them one-hot."""

    num_symbols: PositiveInt | None = None
    """Size of the alphabet; by default that of the training data."""

    measure = "symbols"

    @property
    def num_values(self) -> int:
        """The size of the alphabet."""
        if not self.num_symbols:
            raise ValueError("the size of the alphabet is not known: set num_symbols, or use `from_data`")
        return self.num_symbols

    def index(self, x: Array) -> Array:
        """x. Raises ValueError for what are no integers."""
        return symbols(x)

    def value(self, index: Array) -> Array:
        """index."""
        return index

    def targets(self, key: Array | None, x: Array) -> Array:
        """x. Raises ValueError for symbols that are not in the alphabet, unless they are being traced."""
        del key
        if not isinstance(x, jax.core.Tracer):
            known = np.asarray(x)
            if ((known < 0) | (known >= self.num_values)).any():
                raise ValueError(f"symbols must be in 0..{self.num_values - 1}")
        return self.index(x)

    def inputs(self, x: Array) -> Array:
        """One-hot symbols."""
        return one_hot(self.index(x), self.num_values)


@dataclasses.dataclass(frozen=True)
class MuLaw(Softmax):
    """Sound on [-1, 1] as codes, finer where it is quiet (ITU-T G.711; van den Oord et al. 2016).

    x is companded to sign(x) log(1 + mu |x|) / log(1 + mu), mu = num_codes - 1, and that rounded to the
    nearest of num_codes numbers spread over [-1, 1]. A network is given the codes one-hot.
    """

    num_codes: PositiveInt = 256
    """Codes."""

    measure = "symbols"

    @property
    def num_values(self) -> int:
        """The codes."""
        return self.num_codes

    def check(self, shape: tuple[int, ...]) -> None:
        """Raises ValueError for fewer than two codes."""
        if self.num_codes < 2:
            raise ValueError(f"sound takes two codes or more, not {self.num_codes}")

    def index(self, x: Array) -> Array:
        """Codes of sound; what is outside of [-1, 1] has the nearest."""
        mu = self.num_codes - 1
        x = jnp.clip(x, -1.0, 1.0)
        companded = jnp.sign(x) * jnp.log1p(mu * jnp.abs(x)) / math.log1p(mu)
        return jnp.floor((companded + 1) / 2 * mu + 0.5).astype(jnp.int32)

    def value(self, index: Array) -> Array:
        """Sound of codes, of a table: the same bits compiled or not, so that a prefix stays as it is."""
        mu = self.num_codes - 1
        companded = 2 * np.arange(self.num_codes) / mu - 1
        table = np.sign(companded) * np.expm1(np.abs(companded) * math.log1p(mu)) / mu
        return jnp.asarray(table, float)[index]

    def inputs(self, x: Array) -> Array:
        """One-hot codes."""
        return one_hot(self.index(x), self.num_codes)


def one_hot(index: Array, size: int) -> Array:
    """(..., C) integers -> (..., C size), those of a channel side by side."""
    return jax.nn.one_hot(index, size, dtype=jnp.float32).reshape(*index.shape[:-1], index.shape[-1] * size)
