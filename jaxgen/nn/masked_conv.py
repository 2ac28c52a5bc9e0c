"""Convolutions of which a position sees what is before it alone, of whole images or one position at a time.

A pixel has one or several symbols, which are in raster order, those of a pixel one after the other. Inside
of a pixel degrees say what is before, as in `masked.py`: symbol i has degree i = 1 ... G, and a feature of
degree d sees the first d symbols of its own pixel. What is said of symbol i sees features of degrees below i.

Layers keep what they need of the positions before in zero-padded maps, in which they read or write a window.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype
from jax import Array, lax

from jaxgen.nn.conv import conv_general_dilated
from jaxgen.nn.masked import sees

KERNEL = nn.initializers.lecun_normal()


class Reach(NamedTuple):
    """How far from its own a position sees: rows above, and columns to either side.

    In its own row it sees to the left alone.
    """

    above: int = 0
    left: int = 0
    right: int = 0


class Place(NamedTuple):
    """Where a symbol is: its pixel, and its number in it from 0 on."""

    row: Array
    column: Array
    symbol: Array


class MaskedConv(nn.Module):
    """Features (B, H, W, C) -> (B, H, W, features): of its own pixel a feature sees at most its own degree.

    With a cache x (B, C) are the features of one pixel, all pixels before being in it, and the result is
    (B, features). A kernel of one pixel needs no cache, and takes (..., C).
    """

    in_degrees: tuple[int, ...]
    """Degrees of the channels of x."""
    out_degrees: tuple[int, ...]
    """Degrees of the features."""
    reach: Reach = Reach()
    """Size of the kernel."""
    use_bias: bool = True
    """Whether a bias is added."""
    dtype: Any = None
    """Compute dtype; by default that of x and the parameters."""

    @nn.compact
    def __call__(
        self, x: Array, cache: Array | None = None, place: Place | None = None
    ) -> tuple[Array, Array | None]:
        mask = visible(self.reach, self.in_degrees, self.out_degrees)
        kernel = jnp.where(mask, self.param("kernel", KERNEL, mask.shape), 0)
        bias = self.param("bias", nn.initializers.zeros, mask.shape[-1:]) if self.use_bias else None
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        if kernel.shape[:2] == (1, 1):
            y = x @ kernel[0, 0]
        elif cache is None or place is None:
            y = convolved(x, kernel, self.reach)
        else:
            above, left, _ = self.reach
            # A kernel of one row needs one row, which is written over: it reads nothing to the right.
            row = place.row if above else 0
            cache = lax.dynamic_update_slice(
                cache, x[:, None, None].astype(cache.dtype), (0, row + above, place.column + left, 0)
            )
            window = lax.dynamic_slice(
                cache, (0, row, place.column, 0), (len(x), *kernel.shape[:2], x.shape[-1])
            )
            kernel = kernel.reshape(-1, kernel.shape[-1])
            y = window.reshape(len(x), len(kernel)).astype(kernel.dtype) @ kernel
        return y if bias is None else y + bias, cache

    def empty_cache(self, count: int, height: int, width: int, dtype: Any) -> Array:
        """Nothing known yet of `count` images of so many rows and columns."""
        above, left, right = self.reach
        rows = above + (height if above else 1)
        return jnp.zeros((count, rows, left + width + right, len(self.in_degrees)), dtype)


class SymbolConv(nn.Module):
    """Symbols (B, H, W, G F) -> features (B, H, W, features), without a bias, by the degrees of these.

    With a cache, the sums so far, x (B, F) is one symbol, and what it adds to them is laid down around its
    `place`: the result are the new sums, from which `pixel` and `row` read. So a symbol may be of any size.
    """

    num_symbols: int
    """Symbols of a pixel, G."""
    out_degrees: tuple[int, ...]
    """Degrees of the features."""
    reach: Reach
    """Size of the kernel."""
    whole_row: bool = False
    """Whether a feature sees to the right in its own row too, as what is only told to the rows below may."""
    dtype: Any = None
    """Compute dtype; by default that of x and the parameters."""

    @nn.compact
    def __call__(self, x: Array, cache: Array | None = None, place: Place | None = None) -> Array:
        size = x.shape[-1] // (self.num_symbols if cache is None else 1)
        mask = visible(self.reach, range(1, self.num_symbols + 1), self.out_degrees, self.whole_row)
        kernel = self.param("kernel", KERNEL, mask.repeat(size, 2).shape)
        x, kernel = promote_dtype(x, kernel, dtype=self.dtype)
        if cache is None or place is None:
            return convolved(x, jnp.where(mask.repeat(size, 2), kernel, 0), self.reach)
        kernel = lax.dynamic_slice_in_dim(kernel, place.symbol * size, size, 2)
        kernel = jnp.where(lax.dynamic_slice_in_dim(mask, place.symbol, 1, 2), kernel, 0)
        # What a position sees above and to the left, a symbol adds below and to the right.
        added = jnp.einsum("bf,ijfc->bijc", x, kernel[::-1, ::-1])
        start = (0, place.row, place.column, 0)
        window = lax.dynamic_slice(cache, start, (len(x), *added.shape[1:]))
        return lax.dynamic_update_slice(cache, window + added.astype(cache.dtype), start)

    def empty_cache(self, count: int, height: int, width: int, dtype: Any) -> Array:
        """Sums of nothing, at least float32, of `count` images of so many rows and columns."""
        above, left, right = self.reach
        shape = (count, height + above, right + width + left, len(self.out_degrees))
        return jnp.zeros(shape, jnp.promote_types(dtype, jnp.float32))

    def pixel(self, sums: Array, place: Place) -> Array:
        """The features of one pixel, (B, features)."""
        start = (0, place.row, place.column + self.reach.right, 0)
        return lax.dynamic_slice(sums, start, (len(sums), 1, 1, sums.shape[-1]))[:, 0, 0]

    def row(self, sums: Array, row: Array) -> Array:
        """The features of a row, (B, 1, W, features)."""
        _, left, right = self.reach
        width = sums.shape[2] - left - right
        return lax.dynamic_slice(sums, (0, row, right, 0), (len(sums), 1, width, sums.shape[-1]))


class RowConv(nn.Module):
    """Rows (B, n, W, C) -> (B, n, W, features), which see `size` // 2 rows above and their own; no bias.

    `above` (B, size // 2, W, C) are the rows above; those above the next ones are returned. So rows may come
    one by one or all at once.
    """

    features: int
    """Channels of the result."""
    size: int
    """Columns of the kernel, an odd number."""
    dtype: Any = None
    """Compute dtype; by default that of x and the parameters."""

    @nn.compact
    def __call__(self, x: Array, above: Array) -> tuple[Array, Array]:
        half = self.size // 2
        kernel = self.param("kernel", KERNEL, (half + 1, self.size, x.shape[-1], self.features))
        rows = jnp.concatenate([above, x.astype(above.dtype)], 1)
        x, kernel = promote_dtype(rows, kernel, dtype=self.dtype)
        return convolved(x, kernel, Reach(0, half, half)), rows[:, rows.shape[1] - half :]


def convolved(x: Array, kernel: Array, reach: Reach) -> Array:
    """x (B, H, W, C) by a kernel that lies at and before its place; without `above`, rows are not padded."""
    above, left, right = reach
    padding, layout = ((above, 0), (left, right)), ("NHWC", "HWIO", "NHWC")
    return conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=layout)


def visible(reach: Reach, in_degrees: Any, out_degrees: Any, whole_row: bool = False) -> np.ndarray:
    """What is not masked of a kernel, bool (above + 1, left + 1 + right, inputs, outputs)."""
    above, left, right = reach
    mask = np.ones((above + 1, left + 1 + right, len(in_degrees), len(out_degrees)), bool)
    mask[above, left] = sees(in_degrees, out_degrees)
    mask[above, left + 1 :] = whole_row
    return mask


def degrees(num_features: int, num_symbols: int) -> tuple[int, ...]:
    """Degrees 0 ... num_symbols - 1 of features, as many of each as can be."""
    return tuple(i * num_symbols // num_features for i in range(num_features))


def place_of(index: Array | int, width: int, num_symbols: int) -> Place:
    """Where the symbol of this number is in an image of `width` columns."""
    index = jnp.asarray(index).astype(int)  # of the type of the literal indices that stand beside it
    pixel = index // num_symbols
    return Place(pixel // width, pixel % width, index % num_symbols)
