"""What every metric asks of its input: one line that says what is wrong, before anything is computed."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def features(*, at_least: int = 1, why: str = "", **sets: Any) -> list[Any]:
    """The named sets, each (N, d), as NumPy or JAX arrays of float32 or float64.

    What was a JAX array stays one, with its sharding. `at_least` is the smallest N a set may have, and `why`
    what asks for it ("k = 5"). Values are not looked at under a trace, where there are none.

    Raises:
        ValueError: a set that is not (N, d) numbers, has too few examples or values that are not finite, or
            sets of different d.
    """
    arrays = {name: _numbers(name, values) for name, values in sets.items()}
    for name, array in arrays.items():
        if array.ndim != 2 or array.shape[1] == 0:
            raise ValueError(f"{name} must be (examples, features), not {array.shape}")
        if len(array) < at_least:
            reason = f" for {why}" if why else ""
            raise ValueError(f"{name} has {len(array)} examples, at least {at_least} are needed{reason}")
        finite(**{name: array})
    first, *others = arrays
    for name in others:
        if arrays[name].shape[1] != arrays[first].shape[1]:
            raise ValueError(
                f"{first} has {arrays[first].shape[1]} features and {name} has {arrays[name].shape[1]}: "
                "they must come from one extractor"
            )
    return list(arrays.values())


def finite(**sets: Any) -> None:
    """Raises ValueError, with their number, if any of the named arrays has values that are not finite."""
    for name, array in sets.items():
        if isinstance(array, jax.core.Tracer):
            continue
        # A constant inside somebody's jit: looked at while tracing.
        with jax.ensure_compile_time_eval():
            library = jnp if isinstance(array, jax.Array) else np
            number = int((~library.isfinite(array)).sum())
        if number:
            raise ValueError(f"{name} has {number} values that are not finite (NaN or infinity)")


def scores(**sets: Any) -> list[np.ndarray]:
    """The named sets of one number an example, each (N,), as float64.

    Raises:
        ValueError: a set that is empty, not (N,) numbers, or has values that are not finite.
    """
    arrays = []
    for name, values in sets.items():
        array = np.asarray(_numbers(name, values), np.float64)
        if array.ndim != 1:
            raise ValueError(f"{name} must hold one number an example, (N,), not {array.shape}")
        if not len(array):
            raise ValueError(f"{name} is empty")
        finite(**{name: array})
        arrays.append(array)
    return arrays


def labels(length: int, num_classes: int | None = None, **sets: Any) -> list[np.ndarray]:
    """The named sets of class labels, each (length,) integers from 0, as int64.

    Raises:
        ValueError: a set of another length, labels that are no integers from 0, or, where `num_classes` is
            given, a class without examples or beyond it.
    """
    arrays = []
    for name, values in sets.items():
        array = np.asarray(values)
        if array.shape != (length,):
            raise ValueError(f"{name} must be one label for each of {length} examples, not {array.shape}")
        if array.dtype.kind not in "biu" or (length and array.min() < 0):
            raise ValueError(f"{name} must be integers from 0, not {array.dtype} from {array.min(initial=0)}")
        array = array.astype(np.int64)
        if num_classes is not None:
            counts = np.bincount(array, minlength=num_classes)
            if len(counts) > num_classes:
                raise ValueError(f"{name} has class {len(counts) - 1}, beyond the {num_classes} classes")
            if not counts.all():
                raise ValueError(f"{name} has no example of class {np.flatnonzero(counts == 0)[0]}")
        arrays.append(array)
    return arrays


def _numbers(name: str, values: Any) -> Any:
    array = values if isinstance(values, jax.Array) else np.asarray(values)
    if not jnp.issubdtype(array.dtype, jnp.number) and array.dtype != bool:
        raise ValueError(f"{name} must be numbers, not {array.dtype}")
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise ValueError(f"{name} must be real numbers, not {array.dtype}")
    whole = jnp.issubdtype(array.dtype, jnp.floating) and array.dtype.itemsize >= 4
    return array if whole else array.astype(np.float32)
