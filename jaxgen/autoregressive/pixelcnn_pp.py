"""PixelCNN++ (Salimans et al. 2017).

All channels of a pixel are predicted at once, under a mixture of logistics, by two stacks of convolutions:

    p(x) = prod_t p(x_t | x_1 ... x_{t-1}),     h <- h + a sigmoid(b),   (a, b) = conv(elu(+-conv(elu(+-h)))).

One reads the rows above, with kernels moved down, the other also the pixels to the left, with kernels moved
down and right, and is told at every layer what the first has found. Both have the shape of a U: strided
convolutions halve the picture and transposed ones double it again, and layers on the way up are given those
of the way down. A pixel of a halved picture sees what comes before the first of its four pixels, and so does
what is made of it. Sampling keeps the two last rows of every layer: the first stack is computed a row at a
time, a halved picture at every fourth pixel.

Departs from the paper: weights are not normalised, and the second convolution of a block begins a tenth as
large in their place; the two convolutions with which the second stack begins are one, of the same pixels;
sizes that cannot be halved are halved upwards, and what was added is cut off on the way up.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jaxgen import values
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
from jaxgen.fields import Decay, NonNegativeInt, PositiveInt
from jaxgen.likelihoods import Bernoulli, Categorical, Likelihood, LogisticMixture
from jaxgen.nn.shifted import Doubling, Entry, Place, ShiftedConv, seen

__all__ = [
    "Config",
    "PixelCNNPP",
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


class Memory(NamedTuple):
    """What sampling keeps of one stack at one resolution, and in `coarser` of those below it.

    A line is what a convolution is to read: in the first stack the row before, (n, 1, W, C), in the second
    two rows with a column of zeros before them, (n, 2, W + 1, C), of which row i is number i % 2.
    """

    lines: Any  # two of each block
    outputs: tuple[Array, ...]  # of each block of the first stack, (n, 1, W, width)
    halving: Any  # the line of the convolution that halves the picture
    halved: Any  # what the second stack has made of the halved picture, (n, 1, W / 2, width)
    coarser: Any


class Block(nn.Module):
    """Gated residual block of features (B, H, W, width), which is told what `others` have at the same place.

    `lines` are those of its two convolutions.
    """

    right: bool
    dropout: float

    @nn.compact
    def __call__(
        self, x: Array, others: Any, context: Any, train: bool, lines: Any = (None, None), place: Any = None
    ) -> tuple[Array, Any]:
        width = x.shape[-1]
        conv = functools.partial(ShiftedConv, width=2 if self.right else 3)
        h, first = seen(concat_elu(x), lines[0], place, self.right)
        h = conv(width, name="conv_1")(h)
        if others:
            h = h + nn.Dense(width, name="others")(concat_elu(jnp.concatenate(others, -1)))
        h = nn.Dropout(self.dropout, deterministic=not train)(concat_elu(h))
        h, second = seen(h, lines[1], place, self.right)
        h = conv(2 * width, scale=0.1, name="conv_2")(h)
        if context:
            of_all = nn.Dense(2 * width, use_bias=False, name="context")(jnp.concatenate(context, -1))
            h = h + of_all[:, None, None]
        a, b = jnp.split(h, 2, -1)
        return x + a * nn.sigmoid(b), (first, second)


class Stack(nn.Module):
    """One stack at one resolution, and those below it: features (B, H, W, width) to the same.

    `first` is the Memory of the first stack, whose outputs the second is told.
    """

    right: bool
    num_blocks: int
    num_downsamplings: int
    dropout: float

    @nn.compact
    def __call__(
        self, x: Array, first: Any, context: Any, train: bool, memory: Any = None, place: Any = None
    ) -> tuple[Array, Memory]:
        cached = memory is not None
        outputs: list[Array] = []
        lines: list[Any] = []

        def block(x, *skips):
            index = len(outputs)
            told = [*skips, *([] if first is None else [_at(first.outputs[index], place)])]
            kept = memory.lines[index] if cached else (None, None)
            layer = Block(self.right, self.dropout, name=f"block_{index}")
            x, kept = layer(x, told, context, train, kept, place)
            outputs.append(x)
            lines.append(kept)
            return x

        skips = [x]
        for _ in range(self.num_blocks):
            skips.append(block(skips[-1]))
        h, halving, halved, coarser = skips[-1], None, None, None
        if self.num_downsamplings:
            height, columns = x.shape[1:3]
            h, halving = seen(h, memory.halving if cached else None, place, self.right)
            below = None if first is None else first.coarser
            half: Any = None if place is None else Place(place.row // 2, place.column // 2)

            def down(module, h, coarser, below):
                conv = ShiftedConv(x.shape[-1], 2 if self.right else 3, 2, name="halving")
                options = self.num_blocks, self.num_downsamplings - 1, self.dropout
                stack = Stack(self.right, *options, name="coarser")
                return stack(conv(h), below, context, train, coarser, half)

            if not cached:
                h, coarser = down(self, h, None, below)
            else:
                due = place.row % 2 == 0
                if self.right:
                    due, kept = due & (place.column % 2 == 0), _at(memory.halved, half)
                else:
                    kept = memory.coarser.outputs[-1]
                keep = lambda module, h, coarser, below: (kept, coarser)
                h, coarser = nn.cond(due, down, keep, self, h, memory.coarser, below)
                if self.right:
                    halved = jax.lax.dynamic_update_slice_in_dim(memory.halved, h, half.column, 2)
            h = Doubling(self.right, name="doubling")(h, place)[:, :height, :columns]
        else:
            skips.pop()
        for skip in reversed(skips):
            h = block(h, skip)
        kept = () if cached and self.right else tuple(outputs)
        return h, Memory(tuple(lines), kept, halving, halved, coarser)

    def empty(self, count: int, columns: int, width: int, dtype: Any) -> Memory:
        """The Memory at the beginning."""
        zeros = lambda *shape: jnp.zeros((count, *shape), dtype)
        line = lambda channels: zeros(2, columns + 1, channels) if self.right else zeros(1, columns, channels)
        num_blocks = 2 * self.num_blocks + (self.num_downsamplings > 0)
        outputs = () if self.right else (zeros(1, columns, width),) * num_blocks
        lines = ((line(2 * width), line(2 * width)),) * num_blocks
        if not self.num_downsamplings:
            return Memory(lines, outputs, None, None, None)
        half = -(-columns // 2)
        coarser = self.clone(num_downsamplings=self.num_downsamplings - 1).empty(count, half, width, dtype)
        halved = zeros(1, half, width) if self.right else None
        return Memory(lines, outputs, line(width), halved, coarser)


class PixelCNNPP(nn.Module):
    """Pixels (B, H W, F), and contexts (B, C) that every block is given, to (B, H W, num_outputs).

    Raises ValueError for what is no image, for several symbols a pixel, and for no width or no block.
    """

    width: PositiveInt = 64
    """Channels of both stacks; the paper has 160."""
    num_blocks: PositiveInt = 2
    """Blocks at each resolution on the way down, and as many on the way up; the paper has 5."""
    num_downsamplings: NonNegativeInt = 2
    """How often the picture is halved."""
    dropout: Decay = 0.5
    """Share of the features dropped in training within every block."""
    shape: tuple[PositiveInt, ...] | None = None
    """Shape of an example; filled in from the Config."""
    num_outputs: PositiveInt | None = None
    """Numbers that it gives for a pixel; filled in by the model."""

    @nn.compact
    def __call__(
        self, x: Array, *context: Array, train: bool = False, cache: Any = None, place: Array | int = 0
    ) -> tuple[Array, Any]:
        height, columns = self._size(x.shape[1] if cache is None else None)
        context = tuple(given.astype(x.dtype) for given in context)
        x = jnp.concatenate([x, jnp.ones_like(x[..., :1])], -1)  # which tells the border from black
        entries = [Entry(self.width, right, name=f"entry_{i}") for i, right in enumerate((False, True))]
        first = lambda *args: self._stack(False, name="stack_0")(*args)
        second = self._stack(True, name="stack_1")
        last = nn.Dense(self.num_outputs or 1, name="last")
        if cache is None:
            x = x.reshape(len(x), height, columns, x.shape[-1])
            u, h = (entry(x)[0] for entry in entries)
            _, below = first(u, None, context, train)
            h, _ = second(h, below, context, train)
            return last(nn.elu(h)).reshape(len(x), height * columns, self.num_outputs or 1), None
        before = Place(*jnp.divmod(jnp.maximum(place - 1, 0), columns))
        here = Place(*jnp.divmod(place, columns))
        x = (x * (place > 0))[:, 0]
        (u, h), sums = zip(
            *(entry(x, kept, before, here) for entry, kept in zip(entries, cache[0], strict=True)),
            strict=True,
        )
        row = lambda module, u, memory: first(u, None, context, train, memory, here)[1]
        below = nn.cond(here.column == 0, row, lambda module, u, memory: memory, self, u, cache[1])
        h, memory = second(h, below, context, train, cache[2], here)
        return last(nn.elu(h))[:, 0], (sums, below, memory)

    def empty_cache(self, count: int, length: int, dtype: Any) -> Any:
        """Sums of the first layers, and the Memory of both stacks, of which nothing is known yet."""
        height, columns = self._size(length)
        sums = jnp.zeros((count, height + 2, columns + 2, self.width), dtype)
        memories = [
            self._stack(right, parent=None).empty(count, columns, self.width, dtype)
            for right in (False, True)
        ]
        return (sums, sums), *memories

    def _stack(self, right, **where):
        return Stack(right, self.num_blocks, self.num_downsamplings, self.dropout, **where)

    def _size(self, num_symbols):
        """Height and width of the picture."""
        shape = self.shape or ()
        if len(shape) != 3:
            raise ValueError(f"PixelCNN++ is of images (height, width, channels), not of {shape}")
        if num_symbols not in (None, shape[0] * shape[1]):
            raise ValueError(
                "PixelCNN++ predicts all channels of a pixel at once: take LogisticMixture, or one channel"
            )
        return shape[:2]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(sequential.Common):
    """Hyperparameters of PixelCNN++."""

    network: PixelCNNPP | nn.Module = PixelCNNPP()
    """Pixels to the likelihood's parameters."""
    likelihood: Bernoulli | Categorical | LogisticMixture | Likelihood = LogisticMixture()
    """p(x_t | x_1 ... x_{t-1}) of pixels."""
    average: values.Average = values.Average(0.9995)
    """Average of the parameters, by which is sampled and evaluated."""


def concat_elu(x: Array) -> Array:
    """elu of x and of -x, side by side: (..., C) to (..., 2 C)."""
    return nn.elu(jnp.concatenate([x, -x], -1))


def _at(rows, place):
    """An image as it is, or of one row the pixel at the place."""
    return rows if place is None else jax.lax.dynamic_slice_in_dim(rows, place.column, 1, 2)
