"""Laws of the columns of naive Bayes: what a column of an example is, given its class.

A law is a value of `naive_bayes.Config`. Columns with equal laws are computed together, as a part (B, D) of
the example: K classes, D columns, V categories. Its counts are sums over the examples of each class, and its
parameters follow from them.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen import moments, values
from jaxgen.classical import documents, gaussians
from jaxgen.classical.gaussians import matmul
from jaxgen.fields import FiniteFloat, NonNegativeFloat, PositiveInt
from jaxgen.moments import Moments

Arrays = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Gaussian(values.Value):
    """A normal number. Classes without examples have a standard normal one."""

    variance_smoothing: NonNegativeFloat = 1e-9
    """Added to every variance, in units of the largest variance of a column."""

    name = "gaussian"
    measure = "density"

    def part(self, flat: Array, shape: tuple[int, ...]) -> Array:
        """The columns (B, D) as they are counted."""
        return flat

    def zero_counts(self, num_classes: int, num_columns: int, dtype: Any) -> Arrays:
        """The counts of no examples."""
        return {name: jnp.zeros((num_classes, num_columns), dtype) for name in ("mean", "squares")}

    def counts(self, part: Array, member: Array) -> Arrays:
        """Means and sums of squares about them, (K, D), of the examples of each class, `member` (B, K)."""
        found = gaussians.of_classes(part, member, "diagonal")
        return {"mean": found.mean, "squares": found.scatter}

    def merged(self, first: Arrays, second: Arrays, before: Array, added: Array) -> Arrays:
        """The counts of two sets of examples together, of `before` and `added` examples a class."""
        sets = (before, first), (added, second)
        one, other = (Moments(weight, found["mean"], found["squares"]) for weight, found in sets)
        together = moments.merge(one, other, "diagonal")
        return {"mean": together.mean, "squares": together.scatter}

    def params(self, counts: Arrays, examples: Array, smoothing: float) -> Arrays:
        """Means and variances, (K, D)."""
        mean, squares, total = counts["mean"], counts["squares"], examples.sum()
        weights = jnp.where(total > 0, examples / jnp.maximum(total, 1), 1 / len(examples))
        between = matmul(weights, (mean - weights @ mean) ** 2)
        largest = (squares.sum(0) / jnp.maximum(total, 1) + between).max()
        variance = squares / jnp.maximum(examples, 1)[:, None] + self.variance_smoothing * largest
        seen = (examples[:, None] > 0) & (largest > 0)
        return {"mean": jnp.copy(mean), "variance": jnp.where(seen, variance, 1.0)}

    def log_prob(self, part: Array, given: Arrays) -> Array:
        """log p(part | class), (B, K)."""
        squares = (part[:, None] - given["mean"]) ** 2 / given["variance"]
        return -0.5 * (squares + jnp.log(2 * math.pi * given["variance"])).sum(-1)

    def sample(self, key: Array, given: Arrays, shape: tuple[int, ...]) -> Array:
        """A draw of the columns given parameters with a row an example, (B, D)."""
        noise = jax.random.normal(key, given["mean"].shape, given["mean"].dtype)
        return given["mean"] + jnp.sqrt(given["variance"]) * noise

    def check(self, flat: Array, shape: tuple[int, ...]) -> None:
        """Raises ValueError for columns (B, D) that the law cannot be of."""


class _Counted(values.Value):
    """Laws whose counts are sums over the examples of each class."""

    def zero_counts(self, num_classes: int, num_columns: int, dtype: Any) -> Arrays:
        """The counts of no examples."""
        return {"count": jnp.zeros((num_classes, num_columns), dtype)}

    def counts(self, part: Array, member: Array) -> Arrays:
        """Bits or words of each class, (K, D)."""
        return {"count": matmul(member.T, part)}

    def merged(self, first: Arrays, second: Arrays, before: Array, added: Array) -> Arrays:
        """The counts of two sets of examples together."""
        return jax.tree.map(jnp.add, first, second)


@dataclasses.dataclass(frozen=True)
class Bernoulli(_Counted):
    """A bit: whether the value is above a threshold."""

    threshold: FiniteFloat = 0.0
    """A larger value is a set bit."""

    name = "bernoulli"
    measure = "bits"

    def part(self, flat: Array, shape: tuple[int, ...]) -> Array:
        """Bits, 0 and 1."""
        return (flat > self.threshold).astype(flat.dtype)

    def params(self, counts: Arrays, examples: Array, smoothing: float) -> Arrays:
        """Probabilities of a set bit, (K, D)."""
        return {"probability": (counts["count"] + smoothing) / (examples[:, None] + 2 * smoothing)}

    def log_prob(self, part: Array, given: Arrays) -> Array:
        """log P(part | class), (B, K)."""
        log_probability, log_other = jnp.log(given["probability"]), jnp.log1p(-given["probability"])
        return matmul(part, (log_probability - log_other).T) + log_other.sum(1)

    def sample(self, key: Array, given: Arrays, shape: tuple[int, ...]) -> Array:
        """Bits, 0 and 1, of pictures -1 and 1."""
        bits = jax.random.bernoulli(key, given["probability"]).astype(given["probability"].dtype)
        return 2 * bits - 1 if len(shape) == 3 else bits

    def check(self, flat: Array, shape: tuple[int, ...]) -> None:
        """Every number is above the threshold or not."""


@dataclasses.dataclass(frozen=True)
class Multinomial(_Counted):
    """Counts of words: all columns of this law share the words of a document."""

    num_levels: PositiveInt = 16
    """Words that a white pixel of a picture counts for; a black one has none."""

    name = "multinomial"
    measure = "counts"

    def part(self, flat: Array, shape: tuple[int, ...]) -> Array:
        """Words of each kind."""
        return documents.words_of(flat, shape, self.num_levels)

    def params(self, counts: Arrays, examples: Array, smoothing: float) -> Arrays:
        """Probabilities of a word (K, D), and words in a document (K,)."""
        smooth = counts["count"] + smoothing
        length = counts["count"].sum(1) / jnp.maximum(examples, 1)
        return {"probability": smooth / smooth.sum(1, keepdims=True), "length": length}

    def log_prob(self, part: Array, given: Arrays) -> Array:
        """log P(part | class, number of words), (B, K)."""
        log_probability = jnp.log(given["probability"])
        return matmul(part, log_probability.T) + documents.log_orders(part)[:, None]

    def sample(self, key: Array, given: Arrays, shape: tuple[int, ...]) -> Array:
        """Words, or pictures whose pixels they are."""
        words = documents.draw(key, given["probability"], given["length"][:, None])
        return documents.picture_of(words, shape, self.num_levels)

    def check(self, flat: Array, shape: tuple[int, ...]) -> None:
        """Raises ValueError for what is no number of words."""
        documents.check_counts(documents.words_of(flat, shape, self.num_levels))


@dataclasses.dataclass(frozen=True)
class Categorical(_Counted):
    """A category, 0, 1, ..."""

    num_categories: PositiveInt = 2
    """Categories of the column."""

    name = "categorical"
    measure = "symbols"

    def part(self, flat: Array, shape: tuple[int, ...]) -> Array:
        """One-hot categories, (B, D, V)."""
        return jax.nn.one_hot(flat.astype(jnp.int32), self.num_categories, dtype=flat.dtype)

    def zero_counts(self, num_classes: int, num_columns: int, dtype: Any) -> Arrays:
        """The counts of no examples."""
        return {"count": jnp.zeros((num_classes, num_columns, self.num_categories), dtype)}

    def counts(self, part: Array, member: Array) -> Arrays:
        """Examples of each class and category, (K, D, V)."""
        return {"count": jnp.einsum("nk,ndv->kdv", member, part, precision="highest")}

    def params(self, counts: Arrays, examples: Array, smoothing: float) -> Arrays:
        """Probabilities of a category, (K, D, V)."""
        smooth = counts["count"] + smoothing
        return {"probability": smooth / smooth.sum(2, keepdims=True)}

    def log_prob(self, part: Array, given: Arrays) -> Array:
        """log P(part | class), (B, K)."""
        return jnp.einsum("ndv,kdv->nk", part, jnp.log(given["probability"]), precision="highest")

    def sample(self, key: Array, given: Arrays, shape: tuple[int, ...]) -> Array:
        """Categories as numbers."""
        logits = jnp.log(given["probability"])
        return jax.random.categorical(key, logits).astype(given["probability"].dtype)

    def check(self, flat: Array, shape: tuple[int, ...]) -> None:
        """Raises ValueError for what is no category."""
        if bool(((flat < 0) | (flat != jnp.floor(flat)) | (flat >= self.num_categories)).any()):
            raise ValueError("categories must be integers from 0, below num_categories")


Law = Gaussian | Bernoulli | Multinomial | Categorical
