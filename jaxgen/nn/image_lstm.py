"""LSTMs that pass over images (van den Oord, Kalchbrenner & Kavukcuoglu 2016): down rows, or along diagonals.

Features have degrees as in `masked_conv.py`: of its own pixel one sees at most its own degree, and otherwise
what lies before the pixel. A layer reads a whole image, or one pixel with a cache of rows.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax import Array, lax

from jaxgen.nn.masked_conv import KERNEL, MaskedConv, Place, Reach, degrees


class RowLayer(nn.Module):
    """A layer of the Row LSTM, and its residual connection: features (B, H, W, 2 width) to the same shape.

    With a cache x (B, 2 width) are the features of one pixel. No layer reads `pixels`.
    """

    width: int
    """Channels of the states."""
    num_symbols: int
    """Symbols of a pixel."""
    dtype: Any = None
    """Compute dtype; by default that of x and the parameters. c is float32 at least."""
    reads_pixels = False

    @nn.compact
    def __call__(self, x: Array, cache: Any, pixels: Array | None, place: Place | None) -> tuple[Array, Any]:
        known: Any = (None, None, None) if cache is None else cache
        inputs, hs, cs = known
        gates, inputs = self.input_to_state(name="input_to_state")(x, inputs, place)
        kernel = self.param("state_to_state", KERNEL, (3 * self.width, 4 * self.width))
        (kernel,) = promote_dtype(kernel, dtype=self.dtype)
        if place is None:

            def step(state, gates):
                h, c = state
                around = jnp.concatenate([moved(h, 1), h, moved(h[:, ::-1], 1)[:, ::-1]], -1)
                state = cell(gates + around @ kernel, c)
                return state, state[0]

            h = lax.scan(step, start(gates[:, 0]), gates.swapaxes(0, 1))[1].swapaxes(0, 1)
        else:
            above, here = (place.row + 1) % 2, place.row % 2
            around = take(hs, above, place.column, 3)  # a column of zeros is at either end
            h, c = cell(gates + around @ kernel, take(cs, above, place.column))
            cache = inputs, put(hs, here, place.column + 1, h), put(cs, here, place.column, c)
        return x + pointwise(h, x.shape[-1], self.num_symbols, self.dtype, "widen"), cache

    def input_to_state(self, **options: Any) -> MaskedConv:
        """The convolution K_is, 1x3 with mask B: a pixel sees itself and the one to the left."""
        own = degrees(2 * self.width, self.num_symbols), 4 * degrees(self.width, self.num_symbols)
        return MaskedConv(*own, Reach(0, 1, 0), dtype=self.dtype, **options)

    def empty_cache(self, count: int, num_columns: int, dtype: Any) -> tuple[Array, ...]:
        """Inputs of one row, and h and c of two, of the last one and of this one, in turn."""
        inputs = self.input_to_state(parent=None).empty_cache(count, 1, num_columns, dtype)
        hs = jnp.zeros((count, 2, num_columns + 2, self.width), dtype)
        cs = jnp.zeros((count, 2, num_columns, self.width), wide(dtype))
        return inputs, hs, cs


class DiagonalLayer(nn.Module):
    """A layer of the Diagonal BiLSTM, and its residual connection: (B, H, W, 2 width) to the same shape.

    The second direction comes from the upper right corner, and what it says of a row goes to the row below.
    So it needs no masks, and also reads `pixels` (B, H, W, 2 width), features of the pixels themselves. With
    a cache x (B, 2 width) are the features of one pixel, and `pixels` (B, 1, W, 2 width) the row above; the
    second direction passes over that row at once, from right to left, when it is complete.
    """

    width: int
    """Channels of the states of each direction."""
    num_symbols: int
    """Symbols of a pixel."""
    dtype: Any = None
    """Compute dtype; by default that of x and the parameters. c is float32 at least."""
    reads_pixels = True

    @nn.compact
    def __call__(self, x: Array, cache: Any, pixels: Array, place: Place | None) -> tuple[Array, Any]:
        own = degrees(x.shape[-1], self.num_symbols), 4 * degrees(self.width, self.num_symbols)
        gates, _ = MaskedConv(*own, dtype=self.dtype, name="input_to_state")(x)
        # Arrays and not layers, as they are used in a conditional.
        kernel = self.param("state_to_state", KERNEL, (2 * self.width, 4 * self.width))
        back_input = self.param("back_input_to_state", KERNEL, (x.shape[-1], 4 * self.width))
        back_bias = self.param("back_bias", nn.initializers.zeros, (4 * self.width,))
        back_kernel = self.param("back_state_to_state", KERNEL, (2 * self.width, 4 * self.width))
        arrays = promote_dtype(kernel, back_input, back_bias, back_kernel, dtype=self.dtype)
        kernel, back_input, back_bias, back_kernel = arrays
        back_gates = lambda x, pixels: (x + pixels).astype(x.dtype) @ back_input + back_bias
        if place is None:
            back = along_diagonals(back_gates(x, pixels)[:, :, ::-1], back_kernel)[:, :, ::-1]
            h = along_diagonals(gates, kernel) + moved(back, 1)
        else:
            inputs, hs, cs, back = cache
            pass_back = lambda: leftwards(back_gates(inputs, pixels), back, back_kernel).astype(back.dtype)
            complete = (place.row > 0) & (place.column == 0) & (place.symbol == 0)
            back = lax.cond(complete, pass_back, lambda: back)
            above, here = (place.row + 1) % 2, place.row % 2  # columns of zeros are on the left
            around = jnp.concatenate([take(hs, above, place.column + 1), take(hs, here, place.column)], -1)
            h, c = cell(gates + around @ kernel, take(cs, 0, place.column))
            inputs, hs = put(inputs, 0, place.column, x), put(hs, here, place.column + 1, h)
            cache = inputs, hs, put(cs, 0, place.column + 1, c), back
            h = h + take(back, 0, place.column)
        return x + pointwise(h, x.shape[-1], self.num_symbols, self.dtype, "widen"), cache

    def empty_cache(self, count: int, num_columns: int, dtype: Any) -> tuple[Array, ...]:
        """Inputs and c of one row, h of two, the last one and this one in turn, and h of the way back."""
        inputs = jnp.zeros((count, 1, num_columns, 2 * self.width), dtype)
        hs = jnp.zeros((count, 2, num_columns + 1, self.width), dtype)
        cs = jnp.zeros((count, 1, num_columns + 1, self.width), wide(dtype))
        return inputs, hs, cs, jnp.zeros((count, 1, num_columns, self.width), dtype)


def cell(gates: Array, c: Array) -> tuple[Array, Array]:
    """h and c (..., width), of the gates (..., 4 width) before their nonlinearities and the c before.

    The forget gate has 1 added, so that the cell remembers at first.
    """
    output, forget, write, value = jnp.split(gates.astype(wide(gates.dtype)), 4, -1)
    c = nn.sigmoid(forget + 1) * c + nn.sigmoid(write) * jnp.tanh(value)
    return (nn.sigmoid(output) * jnp.tanh(c)).astype(gates.dtype), c


def along_diagonals(gates: Array, kernel: Array) -> Array:
    """States h (B, H, W, width) of an LSTM that goes along the diagonals, from the upper left corner.

    `gates` (B, H, W, 4 width) are K_is * x; the kernel K_ss (2 width, 4 width) is of the h above and of the h
    to the left. Beyond the left edge the skewed gates are 0, and so the states stay 0; what is made of them
    beyond the right edge is not read.
    """

    def step(state, gates):
        h, c = state
        state = cell(gates + jnp.concatenate([moved(h, 1), h], -1) @ kernel, c)
        return state, state[0]

    h = lax.scan(step, start(gates[:, :, 0]), jnp.moveaxis(skew(gates), 2, 0))[1]
    return unskew(jnp.moveaxis(h, 0, 2))


def leftwards(gates: Array, above: Array, kernel: Array) -> Array:
    """States h (B, 1, W, width) of a row of the same from the upper right corner, by those of the row above.

    `gates` (B, 1, W, 4 width) are K_is * x of this row, and `above` (B, 1, W, width) the states.
    """

    def step(state, pixel):
        h, c = state
        gates, above = pixel
        state = cell(gates + jnp.concatenate([above.astype(h.dtype), h], -1) @ kernel, c)
        return state, state[0]

    pixels = jnp.moveaxis(gates, 2, 0), jnp.moveaxis(above, 2, 0)
    h = lax.scan(step, start(gates[:, :, 0]), pixels, reverse=True)[1]
    return jnp.moveaxis(h, 0, 2)


def skew(x: Array) -> Array:
    """(B, H, W, C) -> (B, H, W + H - 1, C): row r moved right by r, so that diagonals become columns."""
    batch, num_rows, num_columns, channels = x.shape
    x = jnp.pad(x, ((0, 0), (0, 0), (0, num_rows), (0, 0)))
    x = x.reshape(batch, num_rows * (num_columns + num_rows), channels)[:, :-num_rows]
    return x.reshape(batch, num_rows, num_columns + num_rows - 1, channels)


def unskew(x: Array) -> Array:
    """(B, H, W + H - 1, C) -> (B, H, W, C): the inverse of `skew`."""
    batch, num_rows, length, channels = x.shape
    x = jnp.pad(x.reshape(batch, num_rows * length, channels), ((0, 0), (0, num_rows), (0, 0)))
    return x.reshape(batch, num_rows, length + 1, channels)[:, :, : length + 1 - num_rows]


def pointwise(x: Array, features: int, num_symbols: int, dtype: Any, name: str) -> Array:
    """A convolution by a kernel of one pixel with mask B, (..., C) -> (..., features)."""
    own = degrees(x.shape[-1], num_symbols), degrees(features, num_symbols)
    return MaskedConv(*own, dtype=dtype, name=name)(x)[0]


def start(gates: Array) -> tuple[Array, Array]:
    """h and c before the first step, zeros, for gates (..., 4 width)."""
    shape = *gates.shape[:-1], gates.shape[-1] // 4
    return jnp.zeros(shape, gates.dtype), jnp.zeros(shape, wide(gates.dtype))


def moved(x: Array, axis: int) -> Array:
    """x with its entries one place on along an axis, and a zero in the first place."""
    pads = [(int(axis == a), 0) for a in range(x.ndim)]
    return lax.slice_in_dim(jnp.pad(x, pads), 0, x.shape[axis], axis=axis)


def take(rows: Array, row: Any, column: Any, size: int = 1) -> Array:
    """So many columns from a place on, side by side, (B, size C), of rows (B, R, n, C)."""
    batch, channels = rows.shape[0], rows.shape[3]
    found = lax.dynamic_slice(rows, (0, row, column, 0), (batch, 1, size, channels))
    return found.reshape(batch, size * channels)


def put(rows: Array, row: Any, column: Any, value: Array) -> Array:
    """Rows (B, R, n, C) with another value (B, C) at a place."""
    return lax.dynamic_update_slice(rows, value[:, None, None].astype(rows.dtype), (0, row, column, 0))


def wide(dtype: Any) -> Any:
    """Float32 at least."""
    return jnp.promote_types(dtype, jnp.float32)
