"""Shifted convolutions of PixelCNN++ (Salimans et al. 2017), of images, or of one row or pixel after another.

There are two stacks. In the first a row sees itself and those above, by kernels of 2 x 3; in the second,
`right`, a pixel sees itself, the one to the left and the two above these, by kernels of 2 x 2. The first
layer moves both, so that nothing sees itself. Row by row, and pixel by pixel, a line is kept of what a
convolution is to read again: in the first stack the row before, (B, 1, W, C), in the second two rows with a
column of zeros before them, (B, 2, W + 1, C), of which row i is number i % 2. Lines are zeros at first.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype
from jax import Array

from jaxgen.nn.conv import conv_general_dilated


class Place(NamedTuple):
    """A pixel of a picture, which may be a halved one."""

    row: Array
    column: Array


class Entry(nn.Module):
    """The first layer of a stack: it moves the first stack down, and the second one down or right.

    Images (B, H, W, F) to (B, H, W, width). With sums over what is known, the pixel x (B, F) at the place
    `before` is added wherever it will be seen, and the output is the row, or the pixel, at `place`.
    """

    width: int
    right: bool

    @nn.compact
    def __call__(
        self, x: Array, sums: Any = None, before: Any = None, place: Any = None
    ) -> tuple[Array, Any]:
        start = nn.initializers.lecun_normal()
        kernel = self.param("kernel", start, (2, 3, x.shape[-1], self.width), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.width,), jnp.float32)
        if self.right:
            kernel = kernel * np.array([[1, 1, 1], [1, 0, 0]], np.float32)[..., None, None]
        lift = 1 if self.right else 2
        if sums is None:
            return convolve(x, kernel, 1, [(lift, 0), (1, 1)])[:, : x.shape[1]] + bias, None
        added = jnp.einsum("bf,hwfc->bhwc", x, kernel[::-1, ::-1])
        corner = _indices(0, before.row + lift - 1, before.column, 0)
        window = jax.lax.dynamic_slice(sums, corner, added.shape)
        sums = jax.lax.dynamic_update_slice(sums, window + added, corner)
        first, width = (place.column + 1, 1) if self.right else (1, sums.shape[2] - 2)
        read = jax.lax.dynamic_slice(sums, _indices(0, place.row, first, 0), (len(x), 1, width, self.width))
        return read + bias, sums


class ShiftedConv(nn.Module):
    """Convolution of what `seen` gives: of this row and the one above, by kernels as wide as `width`."""

    features: int
    width: int
    stride: int = 1
    scale: float = 1.0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        start = nn.initializers.variance_scaling(self.scale**2, "fan_in", "truncated_normal")
        kernel = self.param("kernel", start, (2, self.width, x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        if x.shape[1] > 2:
            return convolve(x, kernel, self.stride) + bias
        # Two rows make one: a product is faster than a convolution, above all of one pixel.
        last = x.shape[2] - self.width + 1
        parts = [x[:, row, i : last + i : self.stride] for row in (0, 1) for i in range(self.width)]
        return (jnp.concatenate(parts, -1) @ kernel.reshape(-1, self.features))[:, None] + bias


class Doubling(nn.Module):
    """Transposed convolution of stride 2: a pixel lays down two rows of 2 or, in the first stack, 3 pixels.

    Images (B, H, W, C) to (B, 2 H, 2 W, C); with the `place` that is asked for a row of the halved picture to
    one row (B, 1, 2 W, C), or one pixel of it to one pixel.
    """

    right: bool

    @nn.compact
    def __call__(self, x: Array, place: Any = None) -> Array:
        batch, height, width, channels = x.shape
        start = nn.initializers.lecun_normal(
            batch_axis=(0, 1)
        )  # a pixel is of one entry of the kernel or two
        kernel = self.param("kernel", start, (2, 2 if self.right else 3, channels, channels), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        if place is not None:
            kernel = kernel[place.row % 2][None]
        if place is not None and self.right:
            return x @ kernel[0, place.column % 2] + bias
        rows = []
        for taps in kernel:
            if self.right:
                even, odd = x @ taps[0], x @ taps[1]
            else:
                even, odd = x @ taps[1], x @ taps[2]
                odd = odd + jnp.pad(x[:, :, 1:] @ taps[0], ((0, 0), (0, 0), (0, 1), (0, 0)))
            rows.append(jnp.stack([even, odd], 3).reshape(batch, height, 2 * width, channels))
        return jnp.stack(rows, 2).reshape(batch, len(rows) * height, 2 * width, channels) + bias


def seen(x: Array, line: Any, place: Any, right: bool) -> tuple[Array, Any]:
    """What a `ShiftedConv` reads of x, and the next line.

    That is an image (B, H, W, C) with a border of zeros; or, with a line, the two rows that it sees of a row
    (B, 1, W, C), or with `right` the two pixels of two rows that it sees of a pixel (B, 1, 1, C).
    """
    sides = (1, 0) if right else (1, 1)
    if line is None:
        return jnp.pad(x, ((0, 0), (1, 0), sides, (0, 0))), None
    if not right:
        return jnp.pad(jnp.concatenate([line, x], 1), ((0, 0), (0, 0), sides, (0, 0))), x
    line = jax.lax.dynamic_update_slice(line, x, _indices(0, place.row % 2, place.column + 1, 0))
    window = jax.lax.dynamic_slice_in_dim(line, place.column, 2, 2)
    return jnp.where(place.row % 2 == 0, window[:, ::-1], window), line


def convolve(x: Array, kernel: Array, stride: int, padding: Any = "VALID") -> Array:
    """Convolution of images (B, H, W, C_in) by a kernel (h, w, C_in, C_out)."""
    layout = ("NHWC", "HWIO", "NHWC")
    x, kernel = promote_dtype(x, kernel)
    return conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=layout)


def _indices(*indices):
    """Of one type, whatever that of Python's integers is."""
    return [jnp.int32(index) for index in indices]
