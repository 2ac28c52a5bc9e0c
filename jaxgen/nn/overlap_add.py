"""Transposed convolution on CPU, a few examples at a time, and what else works on a few at a time.

XLA's CPU backend multiplies the zeros that a transposed convolution inserts. Where the kernel's sizes are
multiples of the strides, one matrix product gives the copies of the kernel that every entry lays down, and
what is left is to add them up.
"""

import functools
import itertools
import math
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

BLOCK_BYTES = 2**21
"""The size of the examples that are worked on at a time: about what a core's cache holds."""


def wins(axes: tuple[Any, ...]) -> bool:
    """Whether `convolve` takes these axes, with some zeros to save."""
    whole = all(
        axis.output[1] == axis.kernel[1] == 1 and axis.kernel[0] % axis.input[1] == 0 for axis in axes
    )
    return whole and any(axis.input[1] > 1 for axis in axes)


def convolve(x: Array, kernel: Array, axes: tuple[Any, ...], precision: Any) -> Array:
    """x * kernel for dilated x, as products and sums of shifted pieces: nothing times zero.

    A loop takes a few examples at a time. Their pieces, four times what x or the result hold, stay in cache,
    and are summed once: XLA sums them anew in each fusion that reads a result outside of a loop.
    """
    copies = jnp.moveaxis(jnp.flip(kernel, range(len(axes))), -2, 0)
    block = block_size(len(x), math.prod((*x.shape[1:-1], *copies.shape[1:])) * x.dtype.itemsize)
    if block == len(x):
        return _products(x, copies, axes, precision)
    blocks = blocks_of(x, block)

    def body(index, y):
        piece = _products(examples(blocks, index), copies, axes, precision)
        return lax.dynamic_update_index_in_dim(y, piece, index, 1)

    output = (axis.output[0] for axis in axes)
    y = lax.full_like(x, 0, shape=(*blocks.shape[:2], *output, kernel.shape[-1]))
    y = lax.fori_loop(0, blocks.shape[1], body, y)
    return y.reshape(len(x), *y.shape[2:])


def block_size(n: int, example_bytes: int) -> int:
    """How many of n examples to work on at a time."""
    largest = max(BLOCK_BYTES // max(example_bytes, 1), 1)
    return max((size for size in range(1, min(n, largest) + 1) if n % size == 0), default=n)


def blocks_of(x: Array, block: int) -> Array:
    """(B, ...) to (block, blocks, ...): where devices split the batch, they split the first factor of it."""
    return x.reshape(block, -1, *x.shape[1:])


def examples(blocks: Array, index: Array) -> Array:
    """One block of `blocks_of`."""
    return lax.dynamic_index_in_dim(blocks, index, 1, keepdims=False)


def _products(x, copies, axes, precision):
    """The transposed convolution of one block; copies: (C_in, *kernel, C_out), the kernel flipped."""
    rank = len(axes)
    steps = [axis.input[1] for axis in axes]
    taps = [axis.kernel[0] // axis.input[1] for axis in axes]
    pieces = jnp.tensordot(x, copies, 1, precision=precision)
    pieces = pieces.reshape(*x.shape[:-1], *itertools.chain(*zip(taps, steps, strict=True)), copies.shape[-1])
    zero, keep = jnp.zeros((), x.dtype), (0, 0, 0)

    def shifted(tap):
        piece = pieces[(..., *itertools.chain(*((t, slice(None)) for t in tap)), slice(None))]
        shifts = [(t, n - 1 - t, 0) for t, n in zip(tap, taps, strict=True)]
        return lax.pad(piece, zero, [keep, *shifts, *[keep] * (rank + 1)])

    total = functools.reduce(jnp.add, map(shifted, itertools.product(*map(range, taps))))
    total = total.transpose(0, *itertools.chain(*((a, a + rank) for a in range(1, rank + 1))), 2 * rank + 1)
    full = [axis.input[0] * axis.input[1] + axis.kernel[0] - axis.input[1] for axis in axes]
    margins = [[side - axis.kernel[0] + 1 for side in axis.padding()] for axis in axes]
    total = total.reshape(len(x), *full, copies.shape[-1])
    return lax.pad(total, zero, [keep, *((low, high, 0) for low, high in margins), keep])
