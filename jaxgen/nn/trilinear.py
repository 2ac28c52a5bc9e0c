"""A convolution as one trilinear form, so that its gradients of every order are convolutions XLA runs fast.

The form <x * kernel, g> is linear in x, in the kernel and in g. Leave one of them out and a map is left: the
convolution, the gradient of its input, the gradient of its kernel. Each has the other two as its gradients,
and each is itself a convolution,

    x * kernel        grad_x = g * flip(kernel)'        grad_kernel = x' * g'

with ' for channels swapped with the batch or with output channels. JAX writes the swaps as dimension numbers.
XLA's CPU backend has fast code for channels-last operands only; it brings others into that form in the entry
computation but not in the bodies of loops and conditionals, where they take up to hundreds of times as long
(https://github.com/jax-ml/jax/issues/12868). Here, on CPU, the operands themselves are swapped. On other
platforms each map is the one JAX has.
"""

import functools
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

BLOCK_BYTES = 2**21
"""Of the examples that are worked on at a time: about what a core's cache holds."""


class Axis(NamedTuple):
    """One spatial axis of a convolution; each side is (entries, step).

    Kernel entry t takes input i to output o where o step_o + t step_t = i step_i + low. The three sides enter
    alike, so one record describes all three maps.
    """

    input: tuple[int, int]
    kernel: tuple[int, int]
    output: tuple[int, int]
    low: int

    def adjoint(self) -> "Axis":
        """Output to input, by the flipped kernel."""
        return Axis(self.output, self.kernel, self.input, extent(self.kernel) - 1 - self.low)

    def correlation(self) -> "Axis":
        """Input to kernel, by the output."""
        return Axis(self.input, self.output, self.kernel, self.low)

    def padding(self) -> tuple[int, int]:
        """Of the input, (low, high), with none that no window reaches."""
        return self.low, extent(self.output) + extent(self.kernel) - 1 - extent(self.input) - self.low


def extent(side: tuple[int, int]) -> int:
    """From the first entry to the last, both counted."""
    entries, step = side
    return (entries - 1) * step + 1


def channels_last(rank: int) -> lax.ConvDimensionNumbers:
    """(B, *space, C_in) by (*kernel, C_in, C_out) to (B, *space, C_out)."""
    outer = (0, rank + 1, *range(1, rank + 1))
    return lax.ConvDimensionNumbers(outer, (rank + 1, rank, *range(rank)), outer)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve(x: Array, kernel: Array, axes: tuple[Axis, ...], precision: Any) -> Array:
    """x * kernel: (B, *input, C_in) by (*kernel, C_in, C_out) to (B, *output, C_out)."""
    plain = functools.partial(_xla, axes=axes, precision=precision)
    if not _overlap_add_wins(axes):
        return plain(x, kernel)
    fast = functools.partial(_overlap_add, axes=axes, precision=precision)
    return lax.platform_dependent(x, kernel, cpu=fast, default=plain)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def input_gradient(kernel: Array, g: Array, axes: tuple[Axis, ...], precision: Any) -> Array:
    """Gradient of <x * kernel, g> in x: (*kernel, C_in, C_out), (B, *output, C_out) to (B, *input, C_in)."""

    def fast(kernel, g):
        return convolve(g, _flip_and_swap(kernel), tuple(axis.adjoint() for axis in axes), precision)

    def plain(kernel, g):
        x = jax.ShapeDtypeStruct((len(g), *(axis.input[0] for axis in axes), kernel.shape[-2]), g.dtype)
        return jax.linear_transpose(lambda x: _xla(x, kernel, axes, precision), x)(g)[0]

    return lax.platform_dependent(kernel, g, cpu=fast, default=plain)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def kernel_gradient(x: Array, g: Array, axes: tuple[Axis, ...], precision: Any) -> Array:
    """Gradient of <x * kernel, g> in kernel: (B, *input, C_in), (B, *output, C_out) to kernel's shape."""

    def fast(x, g):
        """A sum over blocks of examples: their swapped copies stay in cache."""
        block = _block(len(x), (math.prod(x.shape[1:]) + math.prod(g.shape[1:])) * x.dtype.itemsize)
        if block == len(x):
            return gradient(x, g)
        blocks = [_blocks(a, block) for a in (x, g)]
        body = lambda index, total: total + gradient(*(_examples(a, index) for a in blocks))
        kernel = (*(axis.kernel[0] for axis in axes), x.shape[-1], g.shape[-1])
        zero = jnp.zeros(kernel, jnp.promote_types(x.dtype, jnp.float32))
        return lax.fori_loop(0, blocks[0].shape[1], body, zero).astype(x.dtype)

    def gradient(x, g):
        # Either may slide over the other: fewer channels slide cheaper, and dilation would slide over zeros.
        unit_strides = all(axis.output[1] == 1 for axis in axes)
        if unit_strides and (g.shape[-1] < x.shape[-1] or any(axis.input[1] > 1 for axis in axes)):
            return _flip_and_swap(correlate(g, x, [axis.adjoint() for axis in axes]))
        return correlate(x, g, axes)

    def correlate(x, g, axes):
        swapped = jnp.swapaxes(x, 0, -1), jnp.moveaxis(g, 0, -2)
        product = convolve(*swapped, tuple(axis.correlation() for axis in axes), precision)
        return jnp.moveaxis(product, 0, -2)

    def plain(x, g):
        size = (axis.kernel[0] for axis in axes)
        kernel = jax.ShapeDtypeStruct((*size, x.shape[-1], g.shape[-1]), g.dtype)
        return jax.linear_transpose(lambda kernel: _xla(x, kernel, axes, precision), kernel)(g)[0]

    return lax.platform_dependent(x, g, cpu=fast, default=plain)


convolve.defvjp(
    lambda x, kernel, *static: (convolve(x, kernel, *static), (x, kernel)),
    lambda axes, precision, operands, g: (
        input_gradient(operands[1], g, axes, precision),
        kernel_gradient(operands[0], g, axes, precision),
    ),
)
input_gradient.defvjp(
    lambda kernel, g, *static: (input_gradient(kernel, g, *static), (kernel, g)),
    lambda axes, precision, operands, x: (
        kernel_gradient(x, operands[1], axes, precision),
        convolve(x, operands[0], axes, precision),
    ),
)
kernel_gradient.defvjp(
    lambda x, g, *static: (kernel_gradient(x, g, *static), (x, g)),
    lambda axes, precision, operands, kernel: (
        input_gradient(kernel, operands[1], axes, precision),
        convolve(operands[0], kernel, axes, precision),
    ),
)


def _xla(x, kernel, axes, precision):
    return lax.conv_general_dilated(
        x,
        kernel,
        [axis.output[1] for axis in axes],
        [axis.padding() for axis in axes],
        [axis.input[1] for axis in axes],
        [axis.kernel[1] for axis in axes],
        channels_last(len(axes)),
        precision=precision,
    )


def _flip_and_swap(kernel):
    return jnp.flip(kernel, range(kernel.ndim - 2)).swapaxes(-1, -2)


def _overlap_add_wins(axes):
    whole = all(
        axis.output[1] == axis.kernel[1] == 1 and axis.kernel[0] % axis.input[1] == 0 for axis in axes
    )
    return whole and any(axis.input[1] > 1 for axis in axes)


def _overlap_add(x, kernel, axes, precision):
    """x * kernel for dilated x, as products and sums of shifted pieces: nothing times zero.

    A loop takes a few examples at a time. Their pieces, four times what x or the result hold, stay in cache,
    and are summed once: XLA sums them anew in each fusion that reads a result outside of a loop.
    """
    copies = jnp.moveaxis(jnp.flip(kernel, range(len(axes))), -2, 0)
    block = _block(len(x), math.prod((*x.shape[1:-1], *copies.shape[1:])) * x.dtype.itemsize)
    if block == len(x):
        return _overlap_add_block(x, copies, axes, precision)
    blocks = _blocks(x, block)

    def body(index, y):
        piece = _overlap_add_block(_examples(blocks, index), copies, axes, precision)
        return lax.dynamic_update_index_in_dim(y, piece, index, 1)

    output = (axis.output[0] for axis in axes)
    y = jnp.zeros((*blocks.shape[:2], *output, kernel.shape[-1]), x.dtype)
    y = lax.fori_loop(0, blocks.shape[1], body, y)
    return y.reshape(len(x), *y.shape[2:])


def _block(n, example_bytes):
    """How many of n examples to work on at a time."""
    largest = max(BLOCK_BYTES // max(example_bytes, 1), 1)
    return max((size for size in range(1, min(n, largest) + 1) if n % size == 0), default=n)


def _blocks(x, block):
    """(B, ...) to (block, blocks, ...): where devices split the batch, they split the first factor of it."""
    return x.reshape(block, -1, *x.shape[1:])


def _examples(blocks, index):
    return lax.dynamic_index_in_dim(blocks, index, 1, keepdims=False)


def _overlap_add_block(x, copies, axes, precision):
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
