"""PixelRNN: Row LSTM and Diagonal BiLSTM (van den Oord, Kalchbrenner & Kavukcuoglu 2016).

    p(x) = prod_t p(x_t | x_1 ... x_{t-1}),

where LSTMs pass over an image, so that a pixel sees as far as they reach. In a row or diagonal i,

    [o, f, i, g] = [sigmoid, sigmoid, sigmoid, tanh](K_ss * h_{i-1} + K_is * x_i),
    c_i = f c_{i-1} + i g,    h_i = o tanh(c_i).

The Row LSTM goes down the rows, and sees a triangle above each pixel. The Diagonal BiLSTM goes along the
diagonals, from both upper corners, and sees all pixels before. K_is * x_i is computed for all pixels at once.
Sampling keeps the states of the last row, and takes the work of one position for each symbol.

Departs from the paper: the second direction of the Diagonal BiLSTM also reads the pixels themselves, without
masks, as what it says of a row goes to the row below. The features that it reads in the paper are of pixels
before, so that the last pixel of a row is unseen in all of the next row but its end. A label, if there is
one, is a bias of the first layer.
"""

import dataclasses
import functools
import math
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
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
from jaxgen.nn.image_lstm import DiagonalLayer, RowLayer, pointwise, skew, unskew
from jaxgen.nn.masked_conv import Reach, SymbolConv, degrees, place_of

__all__ = [
    "Config",
    "DiagonalBiLSTM",
    "RowLSTM",
    "State",
    "advance",
    "begin",
    "init",
    "log_prob",
    "loss",
    "measure",
    "sample",
    "skew",
    "train_step",
    "unskew",
]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["features", "pixels", "layers"],
    meta_fields=["num_symbols"],
)
@dataclasses.dataclass(frozen=True)
class Cache:
    """What is known of the positions before."""

    num_symbols: int
    """Symbols of a pixel."""
    features: Array
    """What the symbols before add to the features of the first convolution."""
    pixels: Array | None
    """Features of the pixels themselves, where the layers read these."""
    layers: tuple[Array, ...]
    """Rows of inputs and states of all layers, stacked."""


class PixelRNN(nn.Module):
    """What the two networks share: all but the layers."""

    depth: PositiveInt = 7
    """LSTM layers, one upon the other."""
    width: PositiveInt = 16
    """Channels of the states; the features between layers have twice as many."""
    first_kernel: PositiveInt = 7
    """Size of the convolution of the pixels, an odd number from 3 on."""
    head_width: PositiveInt = 32
    """Channels of the two layers before the output."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Compute dtype; by default that of the parameters. The cells of the LSTMs are float32 at least."""
    shape: tuple[PositiveInt, ...] | None = None
    """Shape of an example; filled in from the Config."""
    num_outputs: PositiveInt | None = None
    """Numbers that it gives for a symbol; filled in by the model."""

    layer: ClassVar[Any]

    @nn.compact
    def __call__(
        self, x: Array, *context: Array, train: bool = False, cache: Cache | None = None, place: Any = 0
    ) -> tuple[Array, Cache | None]:
        del train
        height, width = self.image_size()
        num_symbols = self.symbols_of_a_pixel(x.shape[1]) if cache is None else cache.num_symbols
        first, pixel = self.first(num_symbols, name="first"), self.pixel(num_symbols, name="pixel")
        own = known = pixels = sums = None
        if cache is None:
            x = x.reshape(len(x), height, width, num_symbols * x.shape[-1])
            h = first(x)
            if self.layer.reads_pixels:
                pixels = pixel(x)
        else:
            own, before = (place_of(jnp.maximum(place - back, 0), width, num_symbols) for back in (0, 1))
            known, x = cache.layers, jnp.where(place > 0, x[:, 0], 0)
            features = first(x, cache.features, before)
            h = first.pixel(features, own)
            if self.layer.reads_pixels:
                sums = pixel(x, cache.pixels, before)
                pixels = pixel.row(sums, jnp.maximum(own.row - 1, 0))
        bias = self.param("bias", nn.initializers.zeros, h.shape[-1:]).astype(h.dtype)
        for given in context:
            added = nn.Dense(h.shape[-1], use_bias=False, dtype=self.dtype, name="label")(given)
            bias = bias + added.reshape(len(added), *(1,) * (h.ndim - 2), h.shape[-1])
        layers = nn.scan(
            self.layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast),
            length=self.depth,
        )
        h, known = layers(self.width, num_symbols, self.dtype, name="layers")(h + bias, known, pixels, own)
        layer = functools.partial(pointwise, num_symbols=num_symbols, dtype=self.dtype)
        for i in range(2):
            h = layer(nn.relu(h), self.head_width, name=f"head_{i}")
        num_outputs = self.num_outputs or 1
        h = layer(nn.relu(h), num_symbols * num_outputs, name="outputs")
        if cache is None or own is None:
            return h.reshape(len(h), height * width * num_symbols, num_outputs), None
        h = jax.lax.dynamic_slice_in_dim(h.reshape(len(h), num_symbols, num_outputs), own.symbol, 1, 1)
        return h, Cache(num_symbols, features, sums, known)

    def empty_cache(self, count: int, length: int, dtype: Any) -> Cache:
        """Nothing known yet of `count` images of `length` symbols."""
        height, width = self.image_size()
        num_symbols, sizes = self.symbols_of_a_pixel(length), (count, height, width, self.dtype or dtype)
        features = self.first(num_symbols, parent=None).empty_cache(*sizes)
        pixels = None
        if self.layer.reads_pixels:
            pixels = self.pixel(num_symbols, parent=None).empty_cache(*sizes)
        layer = self.layer(self.width, num_symbols, parent=None)
        rows = layer.empty_cache(count, width, self.dtype or dtype)
        stacked = tuple(jnp.zeros((self.depth, *each.shape), each.dtype) for each in rows)
        return Cache(num_symbols, features, pixels, stacked)

    def first(self, num_symbols: int, **options: Any) -> SymbolConv:
        """The convolution of the pixels, of mask A."""
        half = self.first_kernel // 2
        own = degrees(2 * self.width, num_symbols)
        return SymbolConv(num_symbols, own, Reach(half, half, half), dtype=self.dtype, **options)

    def pixel(self, num_symbols: int, **options: Any) -> SymbolConv:
        """Features of each pixel itself, of all its symbols."""
        own = (num_symbols,) * 2 * self.width
        return SymbolConv(num_symbols, own, Reach(), dtype=self.dtype, **options)

    def image_size(self) -> tuple[int, int]:
        """Height and width. Raises ValueError for what is no image."""
        if self.shape is None or len(self.shape) != 3:
            name = type(self).__name__
            raise ValueError(
                f"{name} is of images (height, width, channels), not of {self.shape}: try a Transformer"
            )
        return self.shape[0], self.shape[1]

    def symbols_of_a_pixel(self, length: int) -> int:
        """How many they are of `length` symbols. Raises ValueError for what the network cannot be."""
        name, num_symbols = type(self).__name__, length // math.prod(self.image_size())
        if self.first_kernel < 3 or self.first_kernel % 2 == 0:
            raise ValueError(f"{name}: first_kernel must be an odd number from 3 on, got {self.first_kernel}")
        for option in ("width", "head_width"):
            if getattr(self, option) < num_symbols:
                raise ValueError(
                    f"{name}: {option} must be at least {num_symbols}, a channel for each symbol of a pixel, "
                    f"got {getattr(self, option)}"
                )
        return num_symbols


class RowLSTM(PixelRNN):
    """Goes down the rows: a pixel sees a triangle, of two pixels more in each row further up."""

    layer = RowLayer


class DiagonalBiLSTM(PixelRNN):
    """Goes along the diagonals, from both upper corners: a pixel sees all pixels before."""

    layer = DiagonalLayer


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(sequential.Common):
    """Hyperparameters of PixelRNN."""

    network: DiagonalBiLSTM | RowLSTM | nn.Module = DiagonalBiLSTM()
    """Network that gives the likelihood's parameters, as `sequential` says."""
