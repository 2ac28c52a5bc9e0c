"""Primitives of JAX for linear maps whose transposes are written by hand.

`jax.custom_vjp` forbids forward mode, and `jax.custom_jvp` leaves the backward pass to what JAX makes of the
tangents. A primitive has a rule for each mode, so both work, mixed and to any order, and the backward pass is
the one that was written down.

A primitive is applied along `mapped` leading axes, which all of its operands and results share. `jax.vmap`
therefore makes one primitive of another, and the rules stay those of the primitive.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import Array, lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


def primitive(
    name: str, function: Callable[..., Any], static: tuple[str, ...], multiple_results: bool = False
) -> Primitive:
    """A primitive that computes `function` and has no derivatives yet.

    Args:
        function: takes arrays by position and hashable values by name, and returns an array or, with
            `multiple_results`, a tuple of arrays.
        static: the names. `bind` takes them and the integer `mapped`.
    """

    compute = jax.jit(mapped(function), static_argnames=("mapped", *static), inline=True)
    new = Primitive(name)
    new.multiple_results = multiple_results

    def abstract(*operands, **options):
        # A trace tells, beside shapes, over which axes of a mesh the results vary inside shard_map.
        results = compute.trace(*operands, **options).jaxpr.out_avals
        return results if multiple_results else results[0]

    def batch(operands, batched, **options):
        return batch_all(new, operands, batched, **options)

    new.def_impl(compute)
    new.def_abstract_eval(abstract)
    mlir.register_lowering(new, mlir.lower_fun(compute, multiple_results))
    batching.primitive_batchers[new] = batch
    return new


def mapped(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with one more option, `mapped`: the number of leading axes along which it is applied."""

    def along_axes(*operands, mapped, **options):
        inner = functools.partial(function, **options)
        for _ in range(mapped):
            inner = jax.vmap(inner)
        return inner(*operands)

    return along_axes


def batch_all(
    which: Primitive, operands: Sequence[Array], batched: Sequence[int | None], mapped: int, **options: Any
) -> tuple[Any, Any]:
    """The batching rule that serves every primitive: one more mapped axis, for all of the operands."""
    pairs = list(zip(operands, batched, strict=True))
    size = next(x.shape[axis] for x, axis in pairs if axis is not None)
    front = [batching.bdim_at_front(x, axis, size) for x, axis in pairs]
    results = which.bind(*front, mapped=mapped + 1, **options)
    return results, (0,) * len(results) if which.multiple_results else 0


def adjoint_pair(
    name: str,
    forward: Callable[..., tuple[Array, ...]],
    adjoint: Callable[..., tuple[Array, ...]],
    num_linear: tuple[int, int],
    static: tuple[str, ...],
) -> Primitive:
    """A primitive for a linear map, which is differentiated backward by its adjoint and the adjoint by it.

    Args:
        forward: (*linear, *others) to a tuple, linear in the first operands. What it depends on beside them
            is differentiated as JAX differentiates it.
        adjoint: (*cotangents, *others) to a tuple shaped as `linear`.
        num_linear: how many operands are linear, of `forward` and of `adjoint`.
    """
    functions = forward, adjoint
    pair = [
        primitive(label, function, static, multiple_results=True)
        for label, function in zip((name, f"{name}_adjoint"), functions, strict=True)
    ]
    for this, other, function, count in zip(pair, reversed(pair), functions, num_linear, strict=True):
        ad.primitive_jvps[this] = functools.partial(_jvp, this, mapped(function), count)
        ad.primitive_transposes[this] = functools.partial(_transpose, other, count)
    return pair[0]


def _jvp(which, function, num_linear, primals, tangents, **options):
    linear, others = primals[:num_linear], primals[num_linear:]
    moving = [i for i, tangent in enumerate(tangents[num_linear:]) if type(tangent) is not ad.Zero]
    total = None
    if any(type(tangent) is not ad.Zero for tangent in tangents[:num_linear]):
        total = which.bind(*map(ad.instantiate_zeros, tangents[:num_linear]), *others, **options)
    if moving:

        def of_moving(*values):
            replaced = dict(zip(moving, values, strict=True))
            rest = (replaced.get(i, other) for i, other in enumerate(others))
            return function(*linear, *rest, **options)

        values, directions = [others[i] for i in moving], [tangents[num_linear + i] for i in moving]
        _, change = jax.jvp(of_moving, values, directions)
        total = change if total is None else [a + b for a, b in zip(total, change, strict=True)]
    return which.bind(*primals, **options), total


def _transpose(adjoint, num_linear, cotangents, *operands, **options):
    others = operands[num_linear:]
    results = adjoint.bind(*map(ad.instantiate_zeros, cotangents), *others, **options)
    undefined = map(ad.is_undefined_primal, operands[:num_linear])
    results = [result if needed else None for result, needed in zip(results, undefined, strict=True)]
    return [*results, *[None] * len(others)]


def vary_alike(*arrays: Array) -> tuple[Array, ...]:
    """The arrays, each varying over every axis of a mesh over which one of them varies.

    Inside `jax.shard_map` operands must agree on this; JAX sees to it for its own primitives only.
    """
    axes = [jax.typeof(x).manual_axis_type.varying for x in arrays]
    union = frozenset().union(*axes)
    return tuple(
        lax.pcast(x, tuple(sorted(union - own)), to="varying") if union - own else x
        for x, own in zip(arrays, axes, strict=True)
    )
