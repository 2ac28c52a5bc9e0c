"""Distributions of the columns of a table given the class: what a naive Bayes model assumes of each.

With N_c examples of class c and a pseudo-count a:

    Gaussian      N(x_j; m_cj, v_cj), mean and variance of the class
    Bernoulli     p_cj = (N_cj + a) / (N_c + 2 a), N_cj examples with the bit set
    Multinomial   all such columns together are counts of words, p_cj = (N_cj + a) / sum_i (N_ci + a)
    Categorical   p_cjv = (N_cjv + a) / (N_c + a V), V values
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen import moments
from jaxgen.classical import documents
from jaxgen.classical.gaussians import matmul, no_moments, of_classes
from jaxgen.moments import Moments
from jaxgen.values import Value

Params = dict[str, Array]
"""Arrays by name, each with the class as its first axis."""


class Columns(Value):
    """D columns of one kind, independent of the others given the class."""

    measure: str
    """What their likelihood is of."""

    def read(self, x: Array) -> Array:
        """Columns (B, D) as the other functions take them, (B, D, ...)."""
        return x

    def check(self, x: Array) -> None:
        """Raises ValueError for columns (B, D) that are not of this kind."""

    def no_counts(self, num_classes: int, num_columns: int, dtype: Any) -> Any:
        """The counts of no data."""
        return jnp.zeros((num_classes, num_columns), dtype)

    def counts(self, part: Array, member: Array) -> Any:
        """Statistics of a part (B, D, ...) whose rows belong to classes, member (B, K) of 0 and 1."""
        return matmul(member.T, part)

    def merge(self, first: Any, second: Any) -> Any:
        """The counts of two sets of examples together."""
        return first + second

    def params(self, count: Any, examples: Array) -> Params:
        """The parameters that counts of classes with `examples` (K,) determine."""
        raise NotImplementedError

    def log_prob(self, part: Array, params: Params) -> Array:
        """log p(columns | class) of a part (B, D, ...), (B, K)."""
        raise NotImplementedError

    def draw(self, key: Array, given: Params) -> Array:
        """Columns (n, D), of parameters whose first axis is n examples."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Smoothed(Columns):
    """Columns of frequencies, which are smoothed by pseudo-counts."""

    smoothing: float = 1.0
    """Pseudo-counts of every value, above 0."""

    def __post_init__(self) -> None:
        if not self.smoothing > 0:
            raise ValueError("smoothing must be above 0, or values without examples have probability 0")


@dataclasses.dataclass(frozen=True)
class Gaussian(Columns):
    """Real numbers with a mean and a variance per class."""

    variance_smoothing: float = 1e-9
    """Number added to every variance, in units of the largest variance of a column."""

    measure = "density"

    def __post_init__(self) -> None:
        if self.variance_smoothing < 0:
            raise ValueError(f"variance_smoothing must not be negative, not {self.variance_smoothing}")

    def no_counts(self, num_classes: int, num_columns: int, dtype: Any) -> Moments:
        return no_moments(num_classes, num_columns, "diagonal", dtype)

    def counts(self, part: Array, member: Array) -> Moments:
        return of_classes(part, member, "diagonal")

    def merge(self, first: Moments, second: Moments) -> Moments:
        return moments.merge(first, second, "diagonal")

    def params(self, count: Moments, examples: Array) -> Params:
        """Standard normals for a class without examples."""
        total, mean, squares = examples.sum(), count.mean, count.scatter
        weights = examples / jnp.maximum(total, 1)
        between = matmul(weights, (mean - weights @ mean) ** 2)
        largest = (squares.sum(0) / jnp.maximum(total, 1) + between).max()
        variance = squares / jnp.maximum(examples, 1)[:, None] + self.variance_smoothing * largest
        seen = examples[:, None] > 0
        variance = jnp.where(seen & (largest > 0), variance, 1.0)
        return {"mean": jnp.copy(mean), "variance": variance}

    def log_prob(self, part: Array, params: Params) -> Array:
        mean, variance = params["mean"], params["variance"]
        squares = (part[:, None] - mean) ** 2 / variance
        return -0.5 * (squares + jnp.log(2 * math.pi * variance)).sum(-1)

    def draw(self, key: Array, given: Params) -> Array:
        noise = jax.random.normal(key, given["mean"].shape, given["mean"].dtype)
        return given["mean"] + jnp.sqrt(given["variance"]) * noise


@dataclasses.dataclass(frozen=True)
class Bernoulli(Smoothed):
    """Bits: whether a number is above a threshold. They are drawn as 0 and 1, in pictures as -1 and 1."""

    threshold: float = 0.0
    """A larger value is a set bit."""
    shape: tuple[int, ...] | None = None
    """Shape of one example."""

    measure = "bits"

    def read(self, x: Array) -> Array:
        return (x > self.threshold).astype(x.dtype)

    def params(self, count: Array, examples: Array) -> Params:
        return {"probability": (count + self.smoothing) / (examples[:, None] + 2 * self.smoothing)}

    def log_prob(self, part: Array, params: Params) -> Array:
        log_one, log_zero = jnp.log(params["probability"]), jnp.log1p(-params["probability"])
        return matmul(part, (log_one - log_zero).T) + log_zero.sum(1)

    def draw(self, key: Array, given: Params) -> Array:
        bits = jax.random.bernoulli(key, given["probability"]).astype(given["probability"].dtype)
        return 2 * bits - 1 if len(self.shape or ()) == 3 else bits


@dataclasses.dataclass(frozen=True)
class Multinomial(Smoothed):
    """Counts of words given their number, or pictures, whose pixels are words and whose levels are counts."""

    shape: tuple[int, ...] | None = None
    """Shape of one example."""
    levels: int | None = None
    """Number of values of a pixel; 0 if the columns are counts."""

    measure = "counts"

    def read(self, x: Array) -> Array:
        return documents.words_of(x, self.shape or (), self.levels or 0)

    def check(self, x: Array) -> None:
        documents.check_counts(self.read(x))

    def params(self, count: Array, examples: Array) -> Params:
        smooth = count + self.smoothing
        length = count.sum(1) / jnp.maximum(examples, 1)
        return {"probability": smooth / smooth.sum(1, keepdims=True), "length": length}

    def log_prob(self, part: Array, params: Params) -> Array:
        return matmul(part, jnp.log(params["probability"]).T) + documents.log_orders(part)[:, None]

    def draw(self, key: Array, given: Params) -> Array:
        words = documents.draw(key, given["probability"], given["length"][:, None])
        return documents.picture_of(words, self.shape or (), self.levels or 0)


@dataclasses.dataclass(frozen=True)
class Categorical(Smoothed):
    """Integers from 0. A value out of range counts as missing."""

    num_categories: int = 2
    """Number of values of each column."""

    measure = "symbols"

    def read(self, x: Array) -> Array:
        return jax.nn.one_hot(x.astype(jnp.int32), self.num_categories, dtype=x.dtype)

    def check(self, x: Array) -> None:
        value = np.asarray(x)
        if (value < 0).any() or (value != np.floor(value)).any() or (value >= self.num_categories).any():
            raise ValueError("categories must be integers from 0, below num_categories")

    def no_counts(self, num_classes: int, num_columns: int, dtype: Any) -> Array:
        return jnp.zeros((num_classes, num_columns, self.num_categories), dtype)

    def counts(self, part: Array, member: Array) -> Array:
        return jnp.einsum("nk,ndv->kdv", member, part, precision="highest")

    def params(self, count: Array, examples: Array) -> Params:
        del examples
        smooth = count + self.smoothing
        return {"probability": smooth / smooth.sum(2, keepdims=True)}

    def log_prob(self, part: Array, params: Params) -> Array:
        return jnp.einsum("ndv,kdv->nk", part, jnp.log(params["probability"]), precision="highest")

    def draw(self, key: Array, given: Params) -> Array:
        drawn = jax.random.categorical(key, jnp.log(given["probability"]))
        return drawn.astype(given["probability"].dtype)


@dataclasses.dataclass(frozen=True)
class Mixed(Value):
    """Columns of several kinds."""

    kinds: tuple[Columns, ...] = ()
    """The kind of each column; equal kinds are handled together."""
