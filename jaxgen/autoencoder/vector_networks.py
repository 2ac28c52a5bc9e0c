"""Encoders that make several vectors of an example, and decoders of these: the networks of the VQ-VAE."""

import flax.linen as nn
from jax import Array

from jaxgen.autoencoder import networks
from jaxgen.autoencoder.networks import Activation
from jaxgen.fields import NonNegativeInt, PositiveInt
from jaxgen.nn import conv


class DenseEncoder(nn.Module):
    """Fully connected layers: (B, *shape) -> (B, num_positions, num_outputs)."""

    num_positions: PositiveInt = 8
    """Codes that an example becomes."""
    widths: tuple[PositiveInt, ...] = (256, 256)
    """Widths of the hidden layers; without any the encoder is linear."""
    activation: Activation = "relu"
    """Nonlinearity of the hidden layers."""
    num_outputs: PositiveInt | None = None
    """Dimensions of a code; filled in by the model."""
    dtype: str | None = None
    """Compute dtype; filled in by the model."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        size = self.num_outputs or 1
        x = networks.hidden_layers(networks.flat(x), self)
        return networks.dense(self.num_positions * size, self)(x).reshape(-1, self.num_positions, size)


class ResidualEncoder(nn.Module):
    """4x4 convolutions of stride 2, then residual blocks: (B, H, W, C) -> (B, h, w, num_outputs)."""

    channels: tuple[PositiveInt, ...] = (32, 64)
    """Channels of the convolutions, each of which halves height and width, rounding down."""
    num_blocks: NonNegativeInt = 2
    """Residual blocks on the smallest map."""
    block_channels: PositiveInt = 32
    """Channels inside a residual block."""
    num_outputs: PositiveInt | None = None
    """Dimensions of a code; filled in by the model."""
    dtype: str | None = None
    """Compute dtype; filled in by the model."""

    activation = "relu"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        networks.sizes(x.shape[1:], len(self.channels))
        x = networks.halving_layers(x, self)
        x = ResidualStack(self.num_blocks, self.block_channels, self.dtype)(x)
        return conv.Conv(self.num_outputs or 1, (1, 1), dtype=self.dtype)(x)


class ResidualDecoder(nn.Module):
    """Residual blocks, then 4x4 transposed convolutions of stride 2: (B, h, w, D) -> (B, H, W, C)."""

    channels: tuple[PositiveInt, ...] = (64, 32)
    """Channels that the transposed convolutions take; the last one gives the data."""
    num_blocks: NonNegativeInt = 2
    """Residual blocks on the smallest map."""
    block_channels: PositiveInt = 32
    """Channels inside a residual block."""
    shape: tuple[PositiveInt, ...] | None = None
    """Shape of what it gives for an example; filled in by the model."""
    dtype: str | None = None
    """Compute dtype; filled in by the model."""

    activation = "relu"

    @nn.compact
    def __call__(self, z: Array) -> Array:
        x = conv.Conv(self.channels[0], (3, 3), dtype=self.dtype)(z)
        x = ResidualStack(self.num_blocks, self.block_channels, self.dtype)(x)
        return networks.doubling_layers(x, self)


class ResidualStack(nn.Module):
    """x + Conv1x1(relu(Conv3x3(relu(x)))), num_blocks times; (B, h, w, C) to the same."""

    num_blocks: int
    """How many blocks there are."""
    block_channels: int
    """Channels inside a block."""
    dtype: str | None = None
    """Compute dtype."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for _ in range(self.num_blocks):
            y = conv.Conv(self.block_channels, (3, 3), dtype=self.dtype)(nn.relu(x))
            x = x + conv.Conv(x.shape[-1], (1, 1), dtype=self.dtype)(nn.relu(y))
        return nn.relu(x)
