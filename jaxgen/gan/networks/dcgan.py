"""The all-convolutional networks of DCGAN (Radford et al. 2016): strides in place of pooling.

Departs from the paper: kernels of 4x4 in place of 5x5, which at stride 2 cover every pixel equally often.
"""

from typing import Literal

import flax.linen as nn
from jax import Array

from jaxgen.fields import Decay, NonNegativeFloat, NonNegativeInt, PositiveInt
from jaxgen.gan.networks import layers
from jaxgen.nn import conv


class Generator(nn.Module):
    """A linear layer to `widths[0]` channels, then as many doublings of the size as there are widths.

    A doubling is a transposed convolution or, with `upsampling="nearest"`, a repetition of every pixel and a
    3x3 convolution, which leaves no checkerboard.

    Raises ValueError for images whose size is not divisible by 2^len(widths).
    """

    widths: tuple[PositiveInt, ...] = (128, 64)
    """Channels from the smallest images to the largest."""
    normalization: Literal["none", "batch", "conditional"] = "batch"
    """Normalization of the hidden layers; the conditional one has scales and biases of each class."""
    upsampling: Literal["transposed", "nearest"] = "transposed"
    """How the size is doubled."""
    std: NonNegativeFloat = 0.02
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
        size = layers.first_size(self.shape, len(self.widths))
        first, *rest = self.widths
        x = layers.dense(size[0] * size[1] * first, self.normalization, self.std, self.dtype)(codes)
        x = x.reshape(-1, *size, first)
        for width in rest:
            x = nn.relu(layers.normalize(x, self.normalization, train, self.std, label))
            x = self._double(x, width, self.normalization)
        x = nn.relu(layers.normalize(x, self.normalization, train, self.std, label))
        return nn.tanh(self._double(x, self.shape[-1], "none"))

    def _double(self, x, width, normalization):
        if self.upsampling == "nearest":
            return layers.convolution(width, 3, normalization, self.std, self.dtype, upsample=True)(x)
        return conv.ConvTranspose(
            width,
            (4, 4),
            (2, 2),
            use_bias=normalization == "none",
            dtype=self.dtype,
            kernel_init=layers.initializer(self.std),
        )(x)


class Discriminator(nn.Module):
    """A 4x4 convolution of stride 2 for each width, LeakyReLU after each; normalized from the second on.

    Spectral normalization takes in the first as well. Any image size will do.
    """

    widths: tuple[PositiveInt, ...] = (64, 128)
    """Channels from the largest images to the smallest."""
    normalization: Literal["none", "batch", "layer", "spectral"] = "batch"
    """Normalization of the hidden layers, or of the weights of all layers (spectral)."""
    dropout: Decay = 0.0
    """Share of the hidden units that are dropped in training."""
    std: NonNegativeFloat = 0.02
    """Standard deviation of the initial weights; 0 for He's."""
    dtype: str | None = None
    """Compute dtype; filled in from the Config."""

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        for index, width in enumerate(self.widths):
            plain = index == 0 and self.normalization != "spectral"
            normalization = "none" if plain else self.normalization
            x = layers.convolution(width, 4, normalization, self.std, self.dtype, stride=2)(x)
            x = layers.leaky_relu(layers.normalize(x, normalization, train, self.std))
            self.sow("intermediates", "maps", x)
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return x.reshape(len(x), -1)
