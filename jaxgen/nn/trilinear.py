"""A convolution as one trilinear form, so that its derivatives of every order are convolutions XLA runs fast.

The form <x * kernel, g> is linear in x, in the kernel and in g. Leave one of them out and a map is left: the
convolution, the gradient of its input, the gradient of its kernel. Each is linear in either operand, with one
of the other two as its transpose, and each is itself a convolution,

    x * kernel        grad_x = g * flip(kernel)'        grad_kernel = x' * g'

with ' for channels swapped with the batch or with output channels. So they are three primitives of JAX, and
their tangents and gradients, mixed and to any order, are these three again.

JAX writes the swaps as dimension numbers. XLA's CPU backend has fast code for channels-last operands only; it
brings others into that form in the entry computation but not in the bodies of loops and conditionals, where
they take up to hundreds of times as long (https://github.com/jax-ml/jax/issues/12868). Here, on CPU, the
operands themselves are swapped. On other platforms each map is the one JAX has.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.interpreters import ad, batching

from jaxgen.nn import overlap_add, primitives


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


def convolve(x: Array, kernel: Array, axes: tuple[Axis, ...], precision: Any) -> Array:
    """x * kernel: (B, *input, C_in) by (*kernel, C_in, C_out) to (B, *output, C_out).

    Raises TypeError where the two differ in their dtype or in C_in.
    """
    jax.eval_shape(functools.partial(_xla, axes=axes, precision=precision), x, kernel)
    return CONVOLVE.bind(*primitives.vary_alike(x, kernel), axes=axes, precision=precision, mapped=0)


def _convolve(x, kernel, *, axes, precision):
    plain = functools.partial(_xla, axes=axes, precision=precision)
    if not overlap_add.wins(axes):
        return plain(x, kernel)
    fast = functools.partial(overlap_add.convolve, axes=axes, precision=precision)
    return lax.platform_dependent(x, kernel, cpu=fast, default=plain)


def _input_gradient(kernel, g, *, axes, precision):
    """Gradient of <x * kernel, g> in x: (*kernel, C_in, C_out), (B, *output, C_out) to (B, *input, C_in)."""

    def fast(kernel, g):
        adjoint = tuple(axis.adjoint() for axis in axes)
        return _convolve(g, _flip_and_swap(kernel), axes=adjoint, precision=precision)

    def plain(kernel, g):
        x = lax.full_like(g, 0, shape=(len(g), *(axis.input[0] for axis in axes), kernel.shape[-2]))
        return jax.linear_transpose(lambda x: _xla(x, kernel, axes, precision), x)(g)[0]

    return lax.platform_dependent(kernel, g, cpu=fast, default=plain)


def _kernel_gradient(x, g, *, axes, precision):
    """Gradient of <x * kernel, g> in kernel: (B, *input, C_in), (B, *output, C_out) to kernel's shape."""
    shape = (*(axis.kernel[0] for axis in axes), x.shape[-1], g.shape[-1])

    def fast(x, g):
        """A sum over blocks of examples: their swapped copies stay in cache."""
        example_bytes = (math.prod(x.shape[1:]) + math.prod(g.shape[1:])) * x.dtype.itemsize
        block = overlap_add.block_size(len(x), example_bytes)
        if block == len(x):
            return gradient(x, g)
        blocks = [overlap_add.blocks_of(a, block) for a in (x, g)]
        body = lambda index, total: total + gradient(*(overlap_add.examples(a, index) for a in blocks))
        zero = lax.full_like(x, 0, jnp.promote_types(x.dtype, jnp.float32), shape)
        return lax.fori_loop(0, blocks[0].shape[1], body, zero).astype(x.dtype)

    def gradient(x, g):
        # Either may slide over the other: fewer channels slide cheaper, and dilation would slide over zeros.
        unit_strides = all(axis.output[1] == 1 for axis in axes)
        if unit_strides and (g.shape[-1] < x.shape[-1] or any(axis.input[1] > 1 for axis in axes)):
            return _flip_and_swap(correlate(g, x, [axis.adjoint() for axis in axes]))
        return correlate(x, g, axes)

    def correlate(x, g, axes):
        swapped = jnp.swapaxes(x, 0, -1), jnp.moveaxis(g, 0, -2)
        sliding = tuple(axis.correlation() for axis in axes)
        return jnp.moveaxis(_convolve(*swapped, axes=sliding, precision=precision), 0, -2)

    def plain(x, g):
        kernel = lax.full_like(g, 0, shape=shape)
        return jax.linear_transpose(lambda kernel: _xla(x, kernel, axes, precision), kernel)(g)[0]

    return lax.platform_dependent(x, g, cpu=fast, default=plain)


def _bilinear(name, function, free):
    """A primitive of two operands.

    Each operand has one free axis, over which the map does not sum: the first (examples) or one of the last
    two (channels). `free` says for each operand where that axis is, in the operand and in the result.
    """
    new = primitives.primitive(name, function, ("axes", "precision"))

    def batch(operands, batched, *, mapped, **options):
        """If one operand alone is mapped over, its new axis becomes a part of its free axis."""
        if None not in batched:
            return primitives.batch_all(new, operands, batched, mapped=mapped, **options)
        index = 0 if batched[1] is None else 1
        x, (source, target) = operands[index], free[index]
        # Devices may split the examples, and a split survives only if the new axis is inside of theirs.
        inner = source == 0
        axis = mapped if inner else x.ndim - 1 + source
        x = jnp.moveaxis(x, batched[index], axis + inner)
        size = x.shape[axis : axis + 2]
        x = x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])
        both = (x, operands[1]) if index == 0 else (operands[0], x)
        y = new.bind(*both, mapped=mapped, **options)
        axis = mapped if inner else y.ndim + target
        return y.reshape(*y.shape[:axis], *size, *y.shape[axis + 1 :]), axis + inner

    batching.primitive_batchers[new] = batch
    return new


CONVOLVE = _bilinear("convolve", _convolve, ((0, 0), (-1, -1)))
INPUT_GRADIENT = _bilinear("convolve_input_gradient", _input_gradient, ((-2, -1), (0, 0)))
KERNEL_GRADIENT = _bilinear("convolve_kernel_gradient", _kernel_gradient, ((-1, -2), (-1, -1)))

# Every rule is given the cotangent of the result and then both operands, one of which is unknown.
ad.defbilinear(
    CONVOLVE,
    lambda g, x, kernel, **options: INPUT_GRADIENT.bind(kernel, g, **options),
    lambda g, x, kernel, **options: KERNEL_GRADIENT.bind(x, g, **options),
)
ad.defbilinear(
    INPUT_GRADIENT,
    lambda x, kernel, g, **options: KERNEL_GRADIENT.bind(x, g, **options),
    lambda x, kernel, g, **options: CONVOLVE.bind(x, kernel, **options),
)
ad.defbilinear(
    KERNEL_GRADIENT,
    lambda kernel, x, g, **options: INPUT_GRADIENT.bind(kernel, g, **options),
    lambda kernel, x, g, **options: CONVOLVE.bind(x, kernel, **options),
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
