"""Flax's convolutions, plain and transposed, with gradients as fast inside loops and conditionals as outside.

`trilinear.py` says how. Both modes of differentiation work, mixed and to any order.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax import Array, lax

from jaxgen.nn import trilinear

Padding = str | int | Sequence[int | tuple[int, int]]


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    *,
    precision: Any = None,
    **options: Any,
) -> Array:
    """`jax.lax.conv_general_dilated`, with fast gradients where the layout is channels-last.

    Args:
        lhs: (B, *space, C_in), with any number of spatial axes.
        rhs: (*kernel, C_in, C_out).
        dimension_numbers: with another layout than this, XLA's convolution is used as it is.
        options: the original's others, by name; likewise where one is set (feature groups, say).

    Returns:
        (B, *out, C_out); `output_size` says how large where nothing is dilated.
    """
    operands = lhs, rhs, window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers
    plain = functools.partial(lax.conv_general_dilated, *operands, precision=precision, **options)
    rank = lhs.ndim - 2
    layout = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    optional = any(value not in (None, 1) for value in options.values())
    # XLA's is left to refuse what it refuses, such as "SAME" padding of a dilated input.
    undefined = isinstance(padding, str) and max(lhs_dilation or (1,)) > 1
    if layout != trilinear.channels_last(rank) or optional or undefined:
        return plain()
    inputs = list(zip(lhs.shape[1:-1], lhs_dilation or (1,) * rank, strict=True))
    kernels = list(zip(rhs.shape[:-2], rhs_dilation or (1,) * rank, strict=True))
    if isinstance(padding, str):
        windows = [trilinear.extent(side) for side in kernels]
        padding = lax.padtype_to_pads(lhs.shape[1:-1], windows, window_strides, padding)
    axes = []
    for source, kernel, stride, pads in zip(inputs, kernels, window_strides, padding, strict=True):
        size = output_size(trilinear.extent(source), trilinear.extent(kernel), stride, pads)
        axes.append(trilinear.Axis(source, kernel, (size, stride), pads[0]))
    empty = lhs.size * rhs.size * math.prod(axis.output[0] for axis in axes) == 0
    return plain() if empty else trilinear.convolve(lhs, rhs, tuple(axes), precision)


def conv_transpose(
    x: Array, kernel: Array, strides: int | Sequence[int], padding: Padding = "SAME", precision: Any = None
) -> Array:
    """Transposed convolution: every entry of x lays down a copy of the kernel, `strides` apart.

    As in `flax.linen.ConvTranspose` the copy is flipped, so this is the adjoint of the convolution by the
    flipped kernel with its channels swapped: <conv(y, k), x> = <y, conv_transpose(x, flip(k)')>, at the same
    `padding`.

    Args:
        x: (B, *space, C_in).
        kernel: (*kernel, C_in, C_out).
        padding: "SAME", "VALID", or what PyTorch calls padding, an integer or a (low, high) pair an axis: as
            much comes off the output as a convolution adds to its input. (Linen's is kernel - 1 minus this.)

    Returns:
        (B, *out, C_out) with out = stride (n - 1) + kernel - low - high; as in Linen, "SAME" makes that
        stride n and "VALID" stride n + max(kernel - stride, 0).
    """
    rank = x.ndim - 2
    strides = [strides] * rank if isinstance(strides, int) else strides
    paddings: Sequence[Any] = [padding] * rank if isinstance(padding, str | int) else padding
    axes = []
    for n, k, stride, pads in zip(x.shape[1:-1], kernel.shape[:-2], strides, paddings, strict=True):
        low, high = _transposed_padding(k, stride, pads)
        size = stride * (n - 1) + k - low - high
        axes.append(trilinear.Axis((n, stride), (k, 1), (size, 1), k - 1 - low))
    return trilinear.convolve(x, kernel, tuple(axes), precision)


def upsample_conv(x: Array, kernel: Array, precision: Any = None) -> Array:
    """Convolution, "SAME", of an image twice as large as x: every entry is repeated along every axis.

    Where a kernel of k meets the same entry twice, its weights add up. So this is a transposed convolution of
    stride 2 by a kernel of k + 1: for k = 3, 4 products in place of 9.

    Args:
        x: (B, *space, C_in).
        kernel: (*kernel, C_in, C_out), of odd sizes.

    Returns:
        (B, *(2 n for n in space), C_out).
    """
    rank = x.ndim - 2
    if any(size % 2 == 0 for size in kernel.shape[:rank]):
        raise ValueError(f"upsample_conv takes kernels of odd sizes, got {kernel.shape[:rank]}")
    for axis in range(rank):
        pads = [[(low, 1 - low) if a == axis else (0, 0) for a in range(kernel.ndim)] for low in (0, 1)]
        kernel = jnp.pad(kernel, pads[0]) + jnp.pad(kernel, pads[1])
    return conv_transpose(x, kernel, 2, "SAME", precision)


def _upsampled(x, kernel, strides, padding, *, lhs_dilation, rhs_dilation, precision, **options):
    """`upsample_conv`, called as Linen calls a convolution."""
    geometry = {*strides, *lhs_dilation, *rhs_dilation, options["feature_group_count"]}
    if padding != "SAME" or geometry != {1}:
        raise ValueError('UpsampleConv has "SAME" padding, no strides, no dilation and no groups')
    return upsample_conv(x, kernel, precision)


def output_size(n: int, kernel: int, stride: int, padding: str | int | tuple[int, int]) -> int:
    """Entries along an axis of a convolution of n: floor((n + low + high - kernel) / stride) + 1."""
    if padding == "SAME":
        return -(-n // stride)
    low, high = (0, 0) if padding == "VALID" else _pair(padding)
    return max((n + low + high - kernel) // stride + 1, 0)


class Conv(nn.Conv):
    """`flax.linen.Conv`, its parameters and its values, with fast gradients."""

    conv_general_dilated: Callable[..., Array] | None = conv_general_dilated


class UpsampleConv(nn.Conv):
    """`upsample_conv` as a layer, "SAME" only: (..., *space, C_in) to (..., *2 space, features)."""

    conv_general_dilated: Callable[..., Array] | None = _upsampled


class ConvTranspose(nn.Module):
    """`conv_transpose` of (..., *space, C_in) by a learned kernel, plus a bias.

    Parameters and defaults are those of `flax.linen.ConvTranspose`, and so are the values, but numbers as
    `padding` mean PyTorch's, not Linen's.
    """

    features: int
    kernel_size: int | Sequence[int]
    strides: int | Sequence[int] | None = None
    padding: Padding = "SAME"
    use_bias: bool = True
    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: Any = None
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    bias_init: nn.initializers.Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Array) -> Array:
        size = (self.kernel_size,) if isinstance(self.kernel_size, int) else tuple(self.kernel_size)
        kernel = self.param("kernel", self.kernel_init, (*size, x.shape[-1], self.features), self.param_dtype)
        bias = None
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        batch = x.shape[: -len(size) - 1]
        x = x.reshape(-1, *x.shape[len(batch) :])
        y = conv_transpose(x, kernel, self.strides or 1, self.padding, self.precision)
        y = y if bias is None else y + bias
        return y.reshape(*batch, *y.shape[1:])


def _pair(padding):
    if isinstance(padding, str):
        raise ValueError(f'padding {padding!r} is neither "SAME" nor "VALID" nor (low, high) pairs')
    return (padding, padding) if isinstance(padding, int) else padding


def _transposed_padding(kernel, stride, padding):
    """What comes off either end of one axis of the full output."""
    excess = kernel - stride
    if padding == "SAME":
        low = max(excess, 0) // 2
        return low, excess - low
    if padding == "VALID":
        return 0, min(excess, 0)
    return _pair(padding)
