"""The layers of Inception-v3 as the Frechet inception distance uses it, named as in the PyTorch port.

The 1xn and nx1 convolutions, the parallel branches and their widths are those of Szegedy et al. 2016,
"Rethinking the Inception architecture for computer vision"; `inception.py` says where the graph differs.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxgen.nn import conv


class Unit(nn.Module):
    """A convolution and ReLU."""

    channels: int
    kernel: tuple[int, int]
    stride: int = 1
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        strides = self.stride, self.stride
        return nn.relu(conv.Conv(self.channels, self.kernel, strides, padding=self.padding, name="conv")(x))


class MixedA(nn.Module):
    """35x35: Mixed_5b to 5d."""

    pooled: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        five = Unit(48, (1, 1), name="branch5x5_1")(x)
        three = Unit(64, (1, 1), name="branch3x3dbl_1")(x)
        three = Unit(96, (3, 3), name="branch3x3dbl_2")(three)
        outputs = [
            Unit(64, (1, 1), name="branch1x1")(x),
            Unit(64, (5, 5), name="branch5x5_2")(five),
            Unit(96, (3, 3), name="branch3x3dbl_3")(three),
            Unit(self.pooled, (1, 1), name="branch_pool")(average_pool(x)),
        ]
        return jnp.concatenate(outputs, -1)


class MixedB(nn.Module):
    """35x35 to 17x17: Mixed_6a."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        three = Unit(64, (1, 1), name="branch3x3dbl_1")(x)
        three = Unit(96, (3, 3), name="branch3x3dbl_2")(three)
        outputs = [
            Unit(384, (3, 3), 2, "VALID", name="branch3x3")(x),
            Unit(96, (3, 3), 2, "VALID", name="branch3x3dbl_3")(three),
            nn.max_pool(x, (3, 3), (2, 2)),
        ]
        return jnp.concatenate(outputs, -1)


class MixedC(nn.Module):
    """17x17, 7x7 windows as rows after columns: Mixed_6b to 6e."""

    width: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        once = Unit(self.width, (1, 1), name="branch7x7_1")(x)
        once = Unit(self.width, (1, 7), name="branch7x7_2")(once)
        twice = Unit(self.width, (1, 1), name="branch7x7dbl_1")(x)
        twice = Unit(self.width, (7, 1), name="branch7x7dbl_2")(twice)
        twice = Unit(self.width, (1, 7), name="branch7x7dbl_3")(twice)
        twice = Unit(self.width, (7, 1), name="branch7x7dbl_4")(twice)
        outputs = [
            Unit(192, (1, 1), name="branch1x1")(x),
            Unit(192, (7, 1), name="branch7x7_3")(once),
            Unit(192, (1, 7), name="branch7x7dbl_5")(twice),
            Unit(192, (1, 1), name="branch_pool")(average_pool(x)),
        ]
        return jnp.concatenate(outputs, -1)


class MixedD(nn.Module):
    """17x17 to 8x8: Mixed_7a."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        three = Unit(192, (1, 1), name="branch3x3_1")(x)
        seven = Unit(192, (1, 1), name="branch7x7x3_1")(x)
        seven = Unit(192, (1, 7), name="branch7x7x3_2")(seven)
        seven = Unit(192, (7, 1), name="branch7x7x3_3")(seven)
        outputs = [
            Unit(320, (3, 3), 2, "VALID", name="branch3x3_2")(three),
            Unit(192, (3, 3), 2, "VALID", name="branch7x7x3_4")(seven),
            nn.max_pool(x, (3, 3), (2, 2)),
        ]
        return jnp.concatenate(outputs, -1)


class MixedE(nn.Module):
    """8x8: Mixed_7b, and 7c whose pooling branch takes the maximum."""

    maximum: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        three = Unit(384, (1, 1), name="branch3x3_1")(x)
        double = Unit(448, (1, 1), name="branch3x3dbl_1")(x)
        double = Unit(384, (3, 3), name="branch3x3dbl_2")(double)
        pooled = nn.max_pool(x, (3, 3), padding="SAME") if self.maximum else average_pool(x)
        outputs = [
            Unit(320, (1, 1), name="branch1x1")(x),
            Unit(384, (1, 3), name="branch3x3_2a")(three),
            Unit(384, (3, 1), name="branch3x3_2b")(three),
            Unit(384, (1, 3), name="branch3x3dbl_3a")(double),
            Unit(384, (3, 1), name="branch3x3dbl_3b")(double),
            Unit(192, (1, 1), name="branch_pool")(pooled),
        ]
        return jnp.concatenate(outputs, -1)


class Network(nn.Module):
    """(B, 299, 299, 3) in [-1, 1] -> features (B, 2048), logits (B, 1008) without their bias."""

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        x = Unit(32, (3, 3), 2, "VALID", name="Conv2d_1a_3x3")(x)
        x = Unit(32, (3, 3), 1, "VALID", name="Conv2d_2a_3x3")(x)
        x = Unit(64, (3, 3), name="Conv2d_2b_3x3")(x)
        x = nn.max_pool(x, (3, 3), (2, 2))
        x = Unit(80, (1, 1), name="Conv2d_3b_1x1")(x)
        x = Unit(192, (3, 3), 1, "VALID", name="Conv2d_4a_3x3")(x)
        x = nn.max_pool(x, (3, 3), (2, 2))
        for letter, pooled in zip("bcd", (32, 64, 64), strict=True):
            x = MixedA(pooled, name=f"Mixed_5{letter}")(x)
        x = MixedB(name="Mixed_6a")(x)
        for letter, width in zip("bcde", (128, 160, 160, 192), strict=True):
            x = MixedC(width, name=f"Mixed_6{letter}")(x)
        x = MixedD(name="Mixed_7a")(x)
        x = MixedE(maximum=False, name="Mixed_7b")(x)
        x = MixedE(maximum=True, name="Mixed_7c")(x)
        x = x.mean((1, 2))
        return x, nn.Dense(1008, use_bias=False, name="fc")(x)


def average_pool(x: Array) -> Array:
    """Mean over 3x3 windows, of the entries inside the picture alone."""
    return nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)
