"""Fully connected networks of vectors."""

import math
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxgen.fields import PositiveInt

Activation = Literal["relu", "silu", "tanh"]


class MLP(nn.Module):
    """Fully connected layers of the numbers of an example and of its context."""

    widths: tuple[PositiveInt, ...] = (128, 128)
    """Widths of the hidden layers."""
    activation: Activation = "silu"
    """Nonlinearity of the hidden layers."""
    zero_output: bool = True
    """Whether the output is 0 at first, so that a flow begins as the identity."""
    num_outputs: PositiveInt | None = None
    """Numbers that it gives for an example; filled in by the model."""

    @nn.compact
    def __call__(self, x: Array, *context: Array) -> Array:
        x = jnp.concatenate([x.reshape(x.shape[0], math.prod(x.shape[1:])), *context], -1)
        for width in self.widths:
            x = getattr(nn, self.activation)(nn.Dense(width)(x))
        start = nn.initializers.zeros if self.zero_output else nn.initializers.lecun_normal()
        return nn.Dense(self.num_outputs or 1, kernel_init=start)(x)
