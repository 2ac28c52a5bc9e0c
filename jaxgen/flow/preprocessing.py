"""What happens to data before the layers of a flow: dequantisation, and a first bijector.

Pixels have levels, and a density of levels has no bound: it can rise without end at each of them. So noise
one level wide is added in training, and in evaluation (`evaluation.likelihood.reported`), which makes the
density of dequantised pixels a lower bound on the probability of their levels (Theis et al. 2016). The first
bijector's change of volume counts as any other's, and the density stays one of x as it is given.
"""

import dataclasses
from typing import Annotated

import jax
from jax import Array

from jaxgen.fields import Range
from jaxgen.flow import bijectors
from jaxgen.values import Value


def dequantised(key: Array, x: Array, levels: int) -> Array:
    """Pixels x on [-1, 1] with uniform noise as wide as their levels are apart; x itself without `levels`."""
    if not levels:
        return x
    return x + 2 / (levels - 1) * (jax.random.uniform(key, x.shape, x.dtype) - 0.5)


class Preprocessing(Value):
    """A kind of first bijectors of vectors."""

    def bijector(self, num_dims: int, levels: int) -> bijectors.Bijector:
        """The bijector of vectors of `num_dims` numbers, which have so many `levels`, 0 for real numbers."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Standardize(Preprocessing):
    """Each dimension is shifted and scaled, at first to mean 0 and variance 1, and then as is learned."""

    def bijector(self, num_dims: int, levels: int) -> bijectors.Bijector:
        """`bijectors.diagonal`."""
        del levels
        return bijectors.diagonal(num_dims)


@dataclasses.dataclass(frozen=True)
class Logit(Preprocessing):
    """Pixels go from their interval to all real numbers by the logit, and are standardised there."""

    alpha: Annotated[float, Range(above=0, below=0.5)] = 0.05
    """How far the ends of the interval are moved inwards before the logit, as a share of it."""

    def bijector(self, num_dims: int, levels: int) -> bijectors.Bijector:
        """`bijectors.logit`, then `bijectors.diagonal`. Raises ValueError for data without levels."""
        if levels < 2:
            raise ValueError(
                f"logit preprocessing is for pixels, and these data have {levels} levels: use standardize"
            )
        return bijectors.chain(bijectors.logit(self.alpha, levels), bijectors.diagonal(num_dims))
