"""Fully connected networks, for points and small images (Goodfellow et al. 2014)."""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxgen.gan.networks import layers

MAXOUT_PIECES = 5


class Generator(nn.Module):
    """ReLU layers of the given widths; images end in tanh, anything else in no nonlinearity."""

    shape: tuple[int, ...]
    widths: tuple[int, ...]
    normalization: str = "none"
    std: float = 0.0
    num_labels: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, codes: Array, train: bool) -> Array:
        label = layers.label_of(codes, self.num_labels)
        x = codes
        for width in self.widths:
            x = layers.dense(width, self.normalization, self.std, self.dtype)(x)
            x = nn.relu(layers.normalize(x, self.normalization, train, self.std, label))
        x = layers.dense(math.prod(self.shape), "none", self.std, self.dtype)(x)
        x = x.reshape(-1, *self.shape)
        return nn.tanh(x) if len(self.shape) == 3 else x


class Discriminator(nn.Module):
    """Layers of the given widths, with LeakyReLU, ReLU or the largest of five linear pieces."""

    widths: tuple[int, ...]
    normalization: str = "none"
    activation: str = "leaky_relu"
    dropout: float = 0.0
    std: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = x.reshape(len(x), -1)
        for width in self.widths:
            pieces = MAXOUT_PIECES if self.activation == "maxout" else 1
            x = layers.dense(pieces * width, self.normalization, self.std, self.dtype)(x)
            x = layers.normalize(x, self.normalization, train, self.std)
            if self.activation == "maxout":
                x = x.reshape(len(x), width, pieces).max(-1)
            else:
                x = nn.relu(x) if self.activation == "relu" else layers.leaky_relu(x)
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return x
