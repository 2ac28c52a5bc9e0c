"""Corruptions C(y | x) that a denoising autoencoder is to undo: called with a key and x, they draw y."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen.fields import FiniteFloat, Fraction, NonNegativeFloat
from jaxgen.values import Value


class Corruption(Value):
    """What a corruption of one's own derives from, as a frozen dataclass."""

    def __call__(self, key: Array, x: Array) -> Array:
        """A draw of y given x (B, *shape), of the same shape."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class GaussianNoise(Corruption):
    """Every entry gets independent normal noise."""

    std: NonNegativeFloat = 0.3
    """Standard deviation of the noise."""

    def __call__(self, key: Array, x: Array) -> Array:
        """x plus noise, which is not clipped."""
        return x + self.std * jax.random.normal(key, x.shape)


@dataclasses.dataclass(frozen=True)
class Masking(Corruption):
    """Random entries are replaced by one value."""

    share: Fraction = 0.3
    """Fraction of the entries that are replaced."""
    value: FiniteFloat = -1.0
    """What replaces them; -1 is black."""

    def __call__(self, key: Array, x: Array) -> Array:
        """x with entries replaced, each independently."""
        return jnp.where(jax.random.uniform(key, x.shape) < self.share, self.value, x)


@dataclasses.dataclass(frozen=True)
class SaltAndPepper(Corruption):
    """Random entries become -1 or 1."""

    share: Fraction = 0.3
    """Fraction of the entries that are replaced, half of them by -1 and half by 1."""

    def __call__(self, key: Array, x: Array) -> Array:
        """x with entries replaced, each independently."""
        uniform = jax.random.uniform(key, x.shape)
        extreme = jnp.where(uniform < self.share / 2, -1.0, 1.0)
        return jnp.where(uniform < self.share, extreme, x)
