"""Fully connected networks, for points and small images (Goodfellow et al. 2014)."""

import math
from typing import Literal

import flax.linen as nn
from jax import Array

from jaxgen.fields import Decay, NonNegativeFloat, NonNegativeInt, PositiveInt
from jaxgen.gan.networks import layers

MAXOUT_PIECES = 5


class Generator(nn.Module):
    """ReLU layers of the given widths; images end in tanh, anything else in no nonlinearity."""

    widths: tuple[PositiveInt, ...] = (128, 128)
    """Widths of the hidden layers."""
    normalization: Literal["none", "batch", "conditional"] = "none"
    """Normalization of the hidden layers; the conditional one has scales and biases of each class."""
    std: NonNegativeFloat = 0.0
    """Standard deviation of the initial weights; 0 for He's."""
    shape: tuple[PositiveInt, ...] | None = None
    """Shape of one example; filled in from the Config."""
    num_labels: NonNegativeInt | None = None
    """Classes whose one-hot label is the end of the codes; filled in from the Config."""
    dtype: str | None = None
    """Compute dtype; filled in from the Config."""

    @nn.compact
    def __call__(self, codes: Array, train: bool) -> Array:
        assert self.shape is not None
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

    widths: tuple[PositiveInt, ...] = (128, 128)
    """Widths of the hidden layers."""
    normalization: Literal["none", "batch", "layer", "spectral"] = "none"
    """Normalization of the hidden layers, or of the weights of all layers (spectral)."""
    activation: Literal["leaky_relu", "relu", "maxout"] = "leaky_relu"
    """Nonlinearity of the hidden layers."""
    dropout: Decay = 0.0
    """Share of the hidden units that are dropped in training."""
    std: NonNegativeFloat = 0.0
    """Standard deviation of the initial weights; 0 for He's."""
    dtype: str | None = None
    """Compute dtype; filled in from the Config."""

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
