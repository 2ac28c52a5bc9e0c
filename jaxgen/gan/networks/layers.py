"""What the networks share: layers with one initialization and normalization, and a check of sizes."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jaxgen.nn import conv, norm

MOMENTUM = 0.9
"""Of the running statistics of batch normalization."""


def initializer(std: float) -> nn.initializers.Initializer:
    """N(0, std^2), or He's where std is 0."""
    return nn.initializers.normal(std) if std else nn.initializers.he_normal()


def dense(width: int, normalization: str, std: float, dtype: Any) -> nn.Module:
    """A linear layer, spectrally normalized if that is asked for, without a bias that statistics cancel."""
    bias = normalization in ("none", "spectral")
    layer = nn.Dense(width, use_bias=bias, dtype=dtype, kernel_init=initializer(std))
    return norm.SpectralNorm(layer) if normalization == "spectral" else layer


def convolution(
    width: int, size: int, normalization: str, std: float, dtype: Any, stride: int = 1, upsample: bool = False
) -> nn.Module:
    """As `dense`, a convolution by a square kernel whose output is 1 / `stride` of the input's size.

    With `upsample` it is the convolution of an image twice as large, every pixel four times.
    """
    layer = (conv.UpsampleConv if upsample else conv.Conv)(
        width,
        (size, size),
        (stride, stride),
        padding="SAME",
        use_bias=normalization in ("none", "spectral"),
        dtype=dtype,
        kernel_init=initializer(std),
    )
    return norm.SpectralNorm(layer) if normalization == "spectral" else layer


def normalize(
    x: Array, normalization: str, train: bool, std: float = 0.0, label: Array | None = None
) -> Array:
    """x (B, ..., C) under "batch", "conditional" or "layer" normalization; else as it is.

    "conditional" is batch normalization whose scale and bias are those of the class, `label` (B, K) one-hot
    (Dumoulin et al. 2017). Batch normalization's scales start from N(1, std^2).

    Raises ValueError for a conditional normalization without a label.
    """
    if normalization == "conditional":
        if label is None:
            raise ValueError('normalization "conditional" of the generator needs a conditioning by labels')
        x = norm.BatchNorm(not train, MOMENTUM, dtype=x.dtype, use_scale=False, use_bias=False)(x)
        per_class = lambda init: nn.Dense(x.shape[-1], use_bias=False, dtype=x.dtype, kernel_init=init)(label)
        scale, bias = (
            per_class(init).reshape(len(x), *(1,) * (x.ndim - 2), -1)
            for init in (nn.initializers.ones, nn.initializers.zeros)
        )
        return x * scale + bias
    scale_init = lambda key, shape, dtype: 1 + std * jax.random.normal(key, shape, dtype)
    if normalization == "batch":
        layer = norm.BatchNorm(
            not train, MOMENTUM, dtype=x.dtype, scale_init=scale_init, param_dtype=jnp.float32
        )
        return layer(x)
    return norm.GroupNorm(1, dtype=x.dtype)(x) if normalization == "layer" else x


def label_of(codes: Array, num_labels: int | None) -> Array | None:
    """The one-hot label (B, K) at the end of codes (B, L), if they have one."""
    return codes[:, -num_labels:] if num_labels else None


def leaky_relu(x: Array) -> Array:
    """max(x, 0.2 x)."""
    return nn.leaky_relu(x, 0.2)


def nearest(x: Array) -> Array:
    """(B, H, W, C) -> (B, 2H, 2W, C), every pixel four times."""
    return x.repeat(2, 1).repeat(2, 2)


def first_size(shape: Sequence[int], doublings: int) -> tuple[int, int]:
    """Height and width that become those of an image of `shape` after so many doublings.

    Raises:
        ValueError: a shape that is no image, or cannot be halved that often; it names the nearest that can.
    """
    scale = 2**doublings
    if len(shape) != 3 or any(size % scale or not size for size in shape[:2]):
        fitting = [max(1, round(size / scale)) * scale for size in shape[:2]]
        raise ValueError(
            f"a network that doubles the size {doublings} times makes (height, width, channels) with height"
            f" and width divisible by {scale}, not {tuple(shape)}: {fitting} would fit, or fewer widths"
        )
    return shape[0] // scale, shape[1] // scale
