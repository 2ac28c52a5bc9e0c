"""Residual networks with spectral or no normalization in the discriminator (Miyato et al. 2018).

For 32x32 images the paper's are generator widths (256, 256, 256) and discriminator widths (128, 128, 128,
128). Weights start as Glorot's, sqrt 2 larger inside the blocks.
"""

from typing import Literal

import flax.linen as nn
from jax import Array

from jaxgen.fields import NonNegativeInt, PositiveInt
from jaxgen.gan.networks import layers
from jaxgen.nn import conv, norm

SMALLEST_HALVED = 8
"""The discriminator's blocks halve images that are larger than this."""


class Generator(nn.Module):
    """A linear layer to `widths[0]` channels, then for each width a block that doubles the size.

    Raises ValueError for images whose size is not divisible by 2^len(widths).
    """

    widths: tuple[PositiveInt, ...] = (128, 128)
    """Channels from the smallest images to the largest."""
    normalization: Literal["none", "batch", "conditional"] = "batch"
    """Normalization of the hidden layers; the conditional one has scales and biases of each class."""
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
        size = layers.first_size(self.shape, len(self.widths))
        init = nn.initializers.glorot_uniform()
        x = nn.Dense(size[0] * size[1] * self.widths[0], dtype=self.dtype, kernel_init=init)(codes)
        x = x.reshape(-1, *size, self.widths[0])
        normalize = lambda x: nn.relu(layers.normalize(x, self.normalization, train, 0.0, label))
        for width in self.widths:
            y = _convolution(width, 3, 2.0, self.normalization, self.dtype, conv.UpsampleConv)(normalize(x))
            y = _convolution(width, 3, 2.0, "none", self.dtype)(normalize(y))
            # The shortcut's 1x1 convolution and the repetition of pixels commute: the smaller image first.
            x = layers.nearest(_convolution(width, 1, 1.0, "none", self.dtype)(x)) + y
        return nn.tanh(_convolution(self.shape[-1], 3, 1.0, "none", self.dtype)(normalize(x)))


class Discriminator(nn.Module):
    """A block for each width, which halves images larger than 8 pixels; features are sums over space.

    `normalization` is "spectral", "layer" or "none". Images of odd size are not halved.
    """

    widths: tuple[PositiveInt, ...] = (128, 128, 128)
    """Channels from the largest images to the smallest."""
    normalization: Literal["none", "layer", "spectral"] = "spectral"
    """Normalization of the hidden layers, or of the weights of all layers (spectral)."""
    dtype: str | None = None
    """Compute dtype; filled in from the Config."""

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        for index, width in enumerate(self.widths):
            halve = min(x.shape[1:3]) > SMALLEST_HALVED and not any(size % 2 for size in x.shape[1:3])
            pool = (lambda a: nn.avg_pool(a, (2, 2), (2, 2))) if halve else (lambda a: a)
            normalize = lambda y: nn.relu(layers.normalize(y, self.normalization, train, 0.0))
            y = _convolution(width, 3, 2.0, self.normalization, self.dtype)(normalize(x) if index else x)
            y = _convolution(width, 3, 2.0, self.normalization, self.dtype)(normalize(y))
            if halve or width != x.shape[-1] or not index:
                # The shortcut's 1x1 convolution and the mean commute: the smaller image first.
                x = _convolution(width, 1, 1.0, self.normalization, self.dtype)(pool(x))
            x = x + pool(y)
            self.sow("intermediates", "maps", x)
        return nn.relu(x).sum((1, 2))


def _convolution(width, size, gain, normalization, dtype, kind=conv.Conv):
    init = nn.initializers.variance_scaling(gain, "fan_avg", "uniform")
    layer = kind(width, (size, size), dtype=dtype, kernel_init=init)
    return norm.SpectralNorm(layer) if normalization == "spectral" else layer
