"""Networks of an energy: data (B, *shape) and whether it is being trained, to one number an example, (B,).

They are smooth, since Langevin dynamics follows their gradient. With spectral normalization (Miyato et al.
2018) every layer is 1-Lipschitz, which bounds that gradient. Any Linen module with the same call may stand
for these.
"""

import math
from typing import Literal

import flax.linen as nn
from jax import Array

from jaxgen.fields import PositiveInt
from jaxgen.nn.conv import Conv
from jaxgen.nn.mlp import Activation
from jaxgen.nn.norm import SpectralNorm

Normalization = Literal["none", "spectral"]


class MLP(nn.Module):
    """Fully connected layers of the numbers of an example, of any shape."""

    widths: tuple[PositiveInt, ...] = (128, 128, 128)
    """Widths of the hidden layers."""
    activation: Activation = "silu"
    """Nonlinearity of the hidden layers."""
    normalization: Normalization = "none"
    """Whether the weights of all layers are spectrally normalized."""

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        del train
        x = x.reshape(x.shape[0], math.prod(x.shape[1:]))
        for width in self.widths:
            x = getattr(nn, self.activation)(_normalized(nn.Dense(width), self.normalization)(x))
        return _normalized(nn.Dense(1), self.normalization)(x)[:, 0]


class ConvNet(nn.Module):
    """A 3x3 convolution and, for each further width, a 4x4 one of stride 2, then a linear layer.

    Any image size will do. Raises ValueError for what is no image.
    """

    widths: tuple[PositiveInt, ...] = (32, 64, 128)
    """Channels from the largest images to the smallest."""
    activation: Activation = "silu"
    """Nonlinearity of the hidden layers."""
    normalization: Normalization = "none"
    """Whether the weights of all layers are spectrally normalized."""

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        del train
        if x.ndim != 4:
            raise ValueError(
                f"a ConvNet takes images (height, width, channels), got {x.shape[1:]}: use network mlp"
            )
        for index, width in enumerate(self.widths):
            size, stride = (4, 2) if index else (3, 1)
            layer = Conv(width, (size, size), (stride, stride))
            x = getattr(nn, self.activation)(_normalized(layer, self.normalization)(x))
        x = x.reshape(x.shape[0], math.prod(x.shape[1:]))
        return _normalized(nn.Dense(1), self.normalization)(x)[:, 0]


def _normalized(layer: nn.Module, normalization: str) -> nn.Module:
    return SpectralNorm(layer) if normalization == "spectral" else layer
