"""The residual networks of R3GAN (Huang et al. 2024): grouped convolutions and no normalization anywhere.

A block adds to x a 1x1 convolution to twice the width, a grouped 3x3, and a 1x1 back, each of the first two
with a bias and LeakyReLU after it. The last starts at zero, so that at first generator and discriminator are
linear maps; the others start with standard deviation sqrt(2 / 1.04) L^(-1/4) / sqrt(fan in) for L blocks.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array, lax

from jaxgen.fields import PositiveInt
from jaxgen.gan.networks import layers
from jaxgen.nn import conv

GROUP_SIZE = 16
"""Channels of each group of the 3x3 convolutions, where they divide."""


class Generator(nn.Module):
    """Learned pictures at the lowest size, scaled by the code; then a stage of blocks for each width, every
    one at twice the size of the one before.

    Raises ValueError for images whose size is not divisible by 2^(len(widths) - 1).
    """

    widths: tuple[PositiveInt, ...] = (64, 64, 64)
    """Channels from the smallest images to the largest."""
    blocks: PositiveInt = 2
    """Residual blocks at each size."""
    shape: tuple[PositiveInt, ...] | None = None
    """Shape of one example; filled in from the Config."""
    dtype: str | None = None
    """Compute dtype; filled in from the Config."""

    @nn.compact
    def __call__(self, codes: Array, train: bool) -> Array:
        del train
        assert self.shape is not None
        size = layers.first_size(self.shape, len(self.widths) - 1)
        basis = self.param("basis", nn.initializers.normal(1.0), (*size, self.widths[0]))
        scales = nn.Dense(self.widths[0], use_bias=False, dtype=self.dtype)(codes)
        x = basis.astype(scales.dtype) * scales[:, None, None]
        for index, width in enumerate(self.widths):
            if index:
                x = double(_pointwise(width, self.dtype)(x) if width != x.shape[-1] else x)
            for _ in range(self.blocks):
                x = x + Branch(width, self.blocks * len(self.widths), self.dtype)(x)
        return _pointwise(self.shape[-1], self.dtype)(x)


class Discriminator(nn.Module):
    """The generator's mirror image: stages of blocks, each at half the size of the one before, and at the end
    one weight for each pixel and channel, summed over the pixels.

    Raises ValueError for images whose size is not divisible by 2^(len(widths) - 1).
    """

    widths: tuple[PositiveInt, ...] = (64, 64, 64)
    """Channels from the largest images to the smallest."""
    blocks: PositiveInt = 2
    """Residual blocks at each size."""
    dtype: str | None = None
    """Compute dtype; filled in from the Config."""

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        del train
        layers.first_size(x.shape[1:], len(self.widths) - 1)
        x = _pointwise(self.widths[0], self.dtype)(x)
        for index, width in enumerate(self.widths):
            for _ in range(self.blocks):
                x = x + Branch(x.shape[-1], self.blocks * len(self.widths), self.dtype)(x)
            self.sow("intermediates", "maps", x)
            if index < len(self.widths) - 1:
                following = self.widths[index + 1]
                x = halve(x)
                x = _pointwise(following, self.dtype)(x) if following != width else x
        std = 1 / math.sqrt(math.prod(x.shape[1:3]))
        weight = self.param("weight", nn.initializers.normal(std), x.shape[1:])
        return (x * weight.astype(x.dtype)).sum((1, 2))


class Branch(nn.Module):
    """What a block adds to x (B, H, W, width); `total` blocks there are in the network."""

    width: int
    total: int
    dtype: str | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        wide = 2 * self.width
        groups = wide // GROUP_SIZE if wide % GROUP_SIZE == 0 else 1
        init = nn.initializers.variance_scaling(2 / 1.04 / math.sqrt(self.total), "fan_in", "normal")
        options: dict[str, Any] = {"dtype": self.dtype, "kernel_init": init}
        x = layers.leaky_relu(conv.Conv(wide, (1, 1), **options)(x))
        grouped = nn.Conv(
            wide, (3, 3), feature_group_count=groups, conv_general_dilated=grouped_conv, **options
        )
        x = layers.leaky_relu(grouped(x))
        zeros = nn.initializers.zeros
        return conv.Conv(self.width, (1, 1), use_bias=False, dtype=self.dtype, kernel_init=zeros)(x)


def grouped_conv(
    x: Array,
    kernel: Array,
    strides: Any,
    padding: Any,
    *,
    dimension_numbers: Any,
    feature_group_count: int,
    precision: Any = None,
    **options: Any,
) -> Array:
    """`jax.lax.conv_general_dilated` of an undilated (B, H, W, C) by (h, w, C / groups, C_out).

    On CPU a loop takes the groups one at a time: XLA's grouped convolution has no fast gradients there.
    """
    plain = functools.partial(
        lax.conv_general_dilated,
        window_strides=strides,
        padding=padding,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        precision=precision,
        **options,
    )

    def looped(x, kernel):
        grouped = lambda a: (*a.shape[:-1], feature_group_count, a.shape[-1] // feature_group_count)
        split = lambda a: jnp.moveaxis(a.reshape(grouped(a)), -2, 0)
        options = {"dimension_numbers": dimension_numbers, "precision": precision}
        single = lambda pair: conv.conv_general_dilated(pair[0], pair[1], strides, padding, **options)
        y = jnp.moveaxis(lax.map(single, (split(x), split(kernel))), 0, -2)
        return y.reshape(*y.shape[:-2], y.shape[-2] * y.shape[-1])

    return lax.platform_dependent(x, kernel, cpu=looped, default=plain)


def halve(x: Array) -> Array:
    """(B, 2H, 2W, C) -> (B, H, W, C): every second pixel of x smoothed by [1, 2, 1] / 4 along both axes."""
    for axis in (1, 2):
        pads = [(1, 0) if a == axis else (0, 0) for a in range(4)]
        even, odd = (_every_second(x, axis, start) for start in (0, 1))
        before = _slice(jnp.pad(odd, pads), axis, odd.shape[axis])
        x = (before + 2 * even + odd) / 4
    return x


def double(x: Array) -> Array:
    """(B, H, W, C) -> (B, 2H, 2W, C), linear in between: 4 times the transpose of `halve`."""
    for axis in (1, 2):
        pads = [(0, 1) if a == axis else (0, 0) for a in range(4)]
        after = _slice(jnp.pad(x, pads), axis, x.shape[axis], start=1)
        pairs = jnp.stack([x, (x + after) / 2], axis + 1)
        x = pairs.reshape(*x.shape[:axis], 2 * x.shape[axis], *x.shape[axis + 1 :])
    return x


def _every_second(x, axis, start):
    return x[(slice(None),) * axis + (slice(start, None, 2),)]


def _slice(x, axis, size, start=0):
    return x[(slice(None),) * axis + (slice(start, start + size),)]


def _pointwise(width, dtype):
    return conv.Conv(width, (1, 1), use_bias=False, dtype=dtype)
