"""Random keys by the name of what they are for.

A key that is split gives the keys that it gives when small numbers are folded in: `split(key, n)[i]` is
`fold_in(key, i)`. Two parts of a program that start from the same key, one splitting it and the other folding
steps in, thus draw the same numbers. Names have numbers of their own, out of the reach of what counts:

    noise_key, time_key = keys.named(key, "noise", "time")

`fold_in` is for what counts: steps, turns, rows.
"""

import zlib
from typing import overload

import jax
from jax import Array


@overload
def named(key: Array, name: str, /) -> Array: ...


@overload
def named(key: Array, name: str, /, *names: str) -> tuple[Array, ...]: ...


def named(key: Array, /, *names: str) -> Array | tuple[Array, ...]:
    """The key of a name, or those of several, each as good as independent of the others and of `key`."""
    found = tuple(jax.random.fold_in(key, number(name)) for name in names)
    return found[0] if len(found) == 1 else found


def number(name: str) -> int:
    """What is folded in for a name: a checksum of at least 2^31, which no int32 that counts steps reaches."""
    return zlib.crc32(name.encode()) | 1 << 31
