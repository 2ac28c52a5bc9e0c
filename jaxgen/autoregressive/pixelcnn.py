"""PixelCNN and Gated PixelCNN (van den Oord, Kalchbrenner & Kavukcuoglu 2016; van den Oord et al. 2016).

    p(x) = prod_t p(x_t | x_1 ... x_{t-1}),

where all factors are computed at once by convolutions whose kernels are masked: a position sees rows above,
what is left of it, and of its own pixel the channels before (R, then G, then B).

PixelCNN stacks such layers: a first one that sees its own pixel's channels before (mask A), and residual
blocks that also see their own (mask B). However many there are, they do not see all that is above and to the
right, the blind spot. The Gated PixelCNN has none: a vertical stack reads all rows above, and tells a
horizontal one, which reads what is to the left in the own row. Its units are, given a label c,

    y = tanh(W_f * x + V_f c) sigmoid(W_g * x + V_g c).

Sampling takes the work of one position for each symbol, and computes the vertical stack by rows.

Departs from the papers: kernels have no entries for the rows below, which would all be masked. PixelCNN can
be given a label too, as a bias of its first layer. A horizontal layer is told of the row above by what the
vertical one makes of it, at every layer, before the label is added.
"""

import dataclasses
import functools
import math
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax import Array

from jaxgen.autoregressive import sequential
from jaxgen.autoregressive.sequential import (
    State,
    advance,
    begin,
    init,
    log_prob,
    loss,
    measure,
    sample,
    train_step,
)
from jaxgen.fields import PositiveInt
from jaxgen.nn.masked_conv import MaskedConv, Place, Reach, RowConv, SymbolConv, degrees, place_of

__all__ = [
    "Config",
    "GatedPixelCNN",
    "PixelCNN",
    "State",
    "advance",
    "begin",
    "init",
    "log_prob",
    "loss",
    "measure",
    "sample",
    "train_step",
]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["sums", "maps", "above", "told"],
    meta_fields=["num_symbols"],
)
@dataclasses.dataclass(frozen=True)
class Cache:
    """What is known of the positions before."""

    num_symbols: int
    """Symbols of a pixel."""
    sums: tuple[Array | None, ...]
    """Of the convolutions of symbols, what the symbols before add to them."""
    maps: tuple[Array | None, ...]
    """Of the later convolutions, what they read of the features of the pixels before."""
    above: tuple[Array, ...] = ()
    """Of the later convolutions of the vertical stack, the last rows that they read."""
    told: tuple[Array, ...] = ()
    """Of each layer, what the vertical stack tells of the rows above, (B, 1, W, 2 width)."""


class LabelBias(nn.Module):
    """A bias of features (B, ..., C), and one by the label at all positions, if there is a label."""

    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, *context: Array) -> Array:
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        x, bias = promote_dtype(x, bias, dtype=self.dtype)
        if context:
            dense = nn.Dense(x.shape[-1], use_bias=False, dtype=self.dtype, name="label")
            own = dense(jnp.concatenate(context, -1))
            bias = bias + own.reshape(len(own), *(1,) * (x.ndim - 2), x.shape[-1])
        return x + bias


class Masked(nn.Module):
    """What the two networks share: their sizes, where they are, and the last layers."""

    width: PositiveInt = 32
    """Channels of a layer, twice as many between the residual blocks of PixelCNN."""
    depth: PositiveInt = 6
    """Residual blocks of PixelCNN after the first layer; gated layers, the first one among them."""
    kernel: PositiveInt = 3
    """Size of the kernels of all layers but the first, an odd number."""
    first_kernel: PositiveInt = 7
    """Size of the kernel of the first layer, an odd number."""
    head_width: PositiveInt = 64
    """Channels of the layer before the output."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Compute dtype; by default that of the parameters."""
    shape: tuple[PositiveInt, ...] | None = None
    """Shape of an example; filled in from the Config."""
    num_outputs: PositiveInt | None = None
    """Numbers that it gives for a symbol; filled in by the model."""

    def located(
        self, x: Array, cache: Cache | None, place: Array | int
    ) -> tuple[Array, int, Place | None, Place | None]:
        """x as an image, or one symbol (B, F); symbols of a pixel; places of the symbol given and asked for.

        Raises ValueError for what the network cannot be or take.
        """
        name = type(self).__name__
        if self.shape is None or len(self.shape) != 3:
            raise ValueError(
                f"{name} is of images (height, width, channels), not of {self.shape}: try a Transformer"
            )
        height, width, _ = self.shape
        if cache is not None:
            at = lambda index: place_of(index, width, cache.num_symbols)
            known = jnp.where(place > 0, x[:, 0], 0)
            return known, cache.num_symbols, at(jnp.maximum(place - 1, 0)), at(place)
        num_symbols = x.shape[1] // (height * width)
        for option in ("kernel", "first_kernel"):
            if getattr(self, option) % 2 == 0:
                raise ValueError(f"{name}: {option} must be an odd number, got {getattr(self, option)}")
        for option in ("width", "head_width"):
            if getattr(self, option) < num_symbols:
                raise ValueError(
                    f"{name}: {option} must be at least {num_symbols}, a channel for each symbol of a pixel,"
                    f" got {getattr(self, option)}"
                )
        image = x.reshape(len(x), height, width, num_symbols * x.shape[2])
        return image, num_symbols, None, None

    def pointwise(self, num_symbols: int, x: Array, features: int, name: str) -> Array:
        """A masked convolution by a kernel of one pixel, x (B, ..., C) -> (B, ..., features)."""
        own = degrees(x.shape[-1], num_symbols), degrees(features, num_symbols)
        return MaskedConv(*own, dtype=self.dtype, name=name)(x)[0]

    def head(self, h: Array, num_symbols: int, own: Place | None) -> Array:
        """The outputs by the last features, (B, T, num_outputs), or of one symbol, (B, 1, num_outputs)."""
        num_outputs = self.num_outputs or 1
        h = self.pointwise(num_symbols, nn.relu(h), self.head_width, "head")
        h = self.pointwise(num_symbols, nn.relu(h), num_outputs * num_symbols, "outputs")
        h = h.reshape(len(h), math.prod(h.shape[1:]) // num_outputs, num_outputs)
        return h if own is None else jax.lax.dynamic_slice_in_dim(h, own.symbol, 1, 1)


class PixelCNN(Masked):
    """The network of 2016a: masked convolutions and residual blocks. It has a blind spot."""

    @nn.compact
    def __call__(
        self, x: Array, *context: Array, train: bool = False, cache: Cache | None = None, place: Any = 0
    ) -> tuple[Array, Cache | None]:
        x, num_symbols, before, own = self.located(x, cache, place)
        known = cache or Cache(num_symbols, (None,), (None,) * self.depth)
        layer = functools.partial(self.pointwise, num_symbols)
        first = self.first(num_symbols, name="first")
        sums = first(x, known.sums[0], before)
        h = sums if own is None else first.pixel(sums, own)
        h = LabelBias(self.dtype, name="first_bias")(h, *context)
        maps = []
        for i, each in enumerate(known.maps):
            inner = nn.relu(layer(nn.relu(h), self.width, name=f"narrow_{i}"))
            inner, each = self.inner(num_symbols, name=f"block_{i}")(inner, each, own)
            h = h + layer(nn.relu(inner), 2 * self.width, name=f"widen_{i}")
            maps.append(each)
        outputs = self.head(h, num_symbols, own)
        return outputs, None if cache is None else Cache(num_symbols, (sums,), tuple(maps))

    def empty_cache(self, count: int, length: int, dtype: Any) -> Cache:
        """Nothing known yet of `count` images of `length` symbols."""
        height, width, _ = self.shape or ()
        num_symbols = length // (height * width)
        sizes = count, height, width, self.dtype or dtype
        sums = self.first(num_symbols, parent=None).empty_cache(*sizes)
        maps = self.inner(num_symbols, parent=None).empty_cache(*sizes)
        return Cache(num_symbols, (sums,), (maps,) * self.depth)

    def first(self, num_symbols: int, **options: Any) -> SymbolConv:
        """The first layer, of mask A."""
        half = self.first_kernel // 2
        own = degrees(2 * self.width, num_symbols)
        return SymbolConv(num_symbols, own, Reach(half, half, half), dtype=self.dtype, **options)

    def inner(self, num_symbols: int, **options: Any) -> MaskedConv:
        """The convolution of a residual block, of mask B."""
        half = self.kernel // 2
        own = degrees(self.width, num_symbols)
        return MaskedConv(own, own, Reach(half, half, half), dtype=self.dtype, **options)


class Vertical(nn.Module):
    """The vertical stack: rows (B, n, W, 2 width) of its first convolution -> what it tells at each layer.

    What it tells of a row is for the row below. `above` are what its later convolutions read of the rows
    above, and those above the next rows are returned.
    """

    width: int
    kernel: int
    dtype: Any

    @nn.compact
    def __call__(
        self, rows: Array, above: tuple[Array, ...], *context: Array
    ) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        told, after = [], []
        for i in range(len(above) + 1):
            if i:
                features = gated(LabelBias(self.dtype, name=f"bias_{i - 1}")(rows, *context))
                conv = RowConv(2 * self.width, self.kernel, self.dtype, name=f"conv_{i}")
                rows, each = conv(features, above[i - 1])
                after.append(each)
            told.append(nn.Dense(2 * self.width, use_bias=False, dtype=self.dtype, name=f"tell_{i}")(rows))
        return tuple(told), tuple(after)


class GatedPixelCNN(Masked):
    """The network of 2016b: a vertical and a horizontal stack of gated layers. It has no blind spot."""

    @nn.compact
    def __call__(
        self, x: Array, *context: Array, train: bool = False, cache: Cache | None = None, place: Any = 0
    ) -> tuple[Array, Cache | None]:
        x, num_symbols, before, own = self.located(x, cache, place)
        known = cache or Cache(num_symbols, (None, None), (None,) * (self.depth - 1))
        first = [self.first(i, num_symbols, name=f"first_{i}") for i in range(2)]
        sums = tuple(f(x, known_sums, before) for f, known_sums in zip(first, known.sums, strict=True))
        vertical = Vertical(self.width, self.kernel, self.dtype, name="vertical")
        if own is None:
            above = self.nothing_above(len(x), sums[0].dtype)
            told, above = vertical(sums[0], above, *context)
            told_here = [jnp.pad(each[:, :-1], ((0, 0), (1, 0), (0, 0), (0, 0))) for each in told]
            h = sums[1]
        else:
            # A row is whole when the next one begins.
            finished = (own.row > 0) & (own.column == 0) & (own.symbol == 0)
            take = lambda stack, sums, told, above: stack(first[0].row(sums, own.row - 1), above, *context)
            keep = lambda stack, sums, told, above: (told, above)
            told, above = nn.cond(finished, take, keep, vertical, sums[0], known.told, known.above)
            at_column = functools.partial(
                jax.lax.dynamic_index_in_dim, index=own.column, axis=2, keepdims=False
            )
            told_here = [at_column(each)[:, 0] for each in told]
            h = first[1].pixel(sums[1], own)
        layer = functools.partial(self.pointwise, num_symbols)
        maps = []
        for i, hint in enumerate(told_here):
            if i:
                inner, each = self.horizontal(num_symbols, name=f"horizontal_{i}")(h, known.maps[i - 1], own)
                maps.append(each)
            else:
                inner = h
            inner = gated(LabelBias(self.dtype, name=f"bias_{i}")(inner + hint, *context))
            out = layer(inner, self.width, name=f"out_{i}")
            h = h + out if i else out  # there are no features yet that the first layer could be added to
        outputs = self.head(h, num_symbols, own)
        return outputs, None if cache is None else Cache(num_symbols, sums, tuple(maps), above, told)

    def empty_cache(self, count: int, length: int, dtype: Any) -> Cache:
        """Nothing known yet of `count` images of `length` symbols."""
        height, width, _ = self.shape or ()
        num_symbols = length // (height * width)
        sizes = count, height, width, self.dtype or dtype
        sums = tuple(self.first(i, num_symbols, parent=None).empty_cache(*sizes) for i in range(2))
        maps = self.horizontal(num_symbols, parent=None).empty_cache(*sizes)
        told = jnp.zeros((count, 1, width, 2 * self.width), sizes[-1])
        above = self.nothing_above(count, sizes[-1])
        return Cache(num_symbols, sums, (maps,) * (self.depth - 1), above, (told,) * self.depth)

    def nothing_above(self, count: int, dtype: Any) -> tuple[Array, ...]:
        """What later vertical convolutions read above the first row."""
        _, width, _ = self.shape or ()
        zeros = jnp.zeros((count, self.kernel // 2, width, self.width), self.dtype or dtype)
        return (zeros,) * (self.depth - 1)

    def first(self, stack: int, num_symbols: int, **options: Any) -> SymbolConv:
        """The first convolution of the vertical stack, 0, or of the horizontal one, 1."""
        half = self.first_kernel // 2
        own = (num_symbols,) * 2 * self.width if stack == 0 else 2 * degrees(self.width, num_symbols)
        reach = Reach(half, half, half) if stack == 0 else Reach(0, half, 0)
        return SymbolConv(num_symbols, own, reach, whole_row=stack == 0, dtype=self.dtype, **options)

    def horizontal(self, num_symbols: int, **options: Any) -> MaskedConv:
        """A later convolution of the horizontal stack."""
        own = degrees(self.width, num_symbols)
        reach = Reach(0, self.kernel // 2, 0)
        return MaskedConv(own, 2 * own, reach, use_bias=False, dtype=self.dtype, **options)


def gated(x: Array) -> Array:
    """tanh of the first half of the channels times the sigmoid of the second half."""
    signal, gate = jnp.split(x, 2, -1)
    return jnp.tanh(signal) * jax.nn.sigmoid(gate)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(sequential.Common):
    """Hyperparameters of PixelCNN."""

    network: GatedPixelCNN | PixelCNN | nn.Module = GatedPixelCNN()
    """Network that gives the likelihood's parameters, as `sequential` says."""
