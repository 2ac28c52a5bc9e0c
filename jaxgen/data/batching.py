"""Shuffled training batches as a pure function of (seed, step).

There is no iterator state to save: a run resumed at step 1000 asks for batch 1000 and gets the same bits as
an uninterrupted run. A data set that is held whole is kept on the device in its compact form, and is shuffled
and gathered inside the compiled step, so that many steps can be made in one dispatch. A streamed data set is
read by Grain's threads.
"""

import dataclasses
import functools
import math
import operator
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxgen.data.dataset import DataError, Dataset, StreamedDataset, to_batch
from jaxgen.types import Batch

# Fewer leave the orders of very small sets measurably unequal (5 examples, 8 rounds).
_ROUNDS = 12


def batches(
    dataset: Dataset | StreamedDataset, batch_size: int, seed: int = 0, process: tuple[int, int] | None = None
) -> "DeviceBatches | StreamedBatches":
    """A callable from step to Batch; every epoch visits each example once, in a new order.

    Args:
        dataset: what `load` returned, or a `Dataset` of your own.
        batch_size: examples per step over all processes; it may exceed the size of the data set.
        seed: 0 <= seed < 2^32, from which the orders follow.
        process: (index, count) of this process, by default those of JAX. A streamed batch is this process's
            slice of the global batch; a batch made on the device is the global batch, which `jit` splits.

    Raises:
        DataError: a size or seed is out of range, or the processes cannot share the batch equally.
    """
    if batch_size < 1:
        raise DataError(f"batch size must be at least 1, not {batch_size}")
    if not 0 <= seed < 2**32:
        raise DataError(f"the seed of the batches must be in 0 .. 2^32 - 1, not {seed}")
    if isinstance(dataset, StreamedDataset):
        process = (jax.process_index(), jax.process_count()) if process is None else process
        if batch_size % process[1]:
            raise DataError(f"{process[1]} processes cannot share a batch of {batch_size}: use a multiple")
        return StreamedBatches(dataset, batch_size, seed, process)
    if len(dataset) * batch_size >= 2**31:
        raise DataError(
            f"{len(dataset)} examples x batch size {batch_size} is 2^31 or more, too many for 32-bit "
            f"positions: use a batch of at most {(2**31 - 1) // len(dataset)}"
        )
    arrays = {key: jnp.asarray(array) for key, array in dataset.arrays.items()}
    return DeviceBatches(arrays, jnp.uint32(seed), batch_size)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class DeviceBatches:
    """Batches of a data set held on the device; a pytree that can be passed into a compiled function.

    Example `j` of step `s` is number p = s * batch_size + j of an endless stream of epochs: example
    `permute(p % N, N, (seed, p // N))`. The cost of a step does not depend on N.
    """

    arrays: Mapping[str, Array]
    """Compact arrays (N, ...)."""
    seed: Array
    """() uint32."""
    batch_size: int = dataclasses.field(metadata={"static": True})

    def __call__(self, step: int | Array) -> dict[str, Array]:
        """The global batch of `step`, 0 <= step < 2^31, a Python int or a traced int32."""
        size = next(iter(self.arrays.values())).shape[0]
        # p does not fit 32 bits; with step = whole * size + rest it is whole * batch_size * size + offset.
        step = jnp.asarray(step, jnp.uint32)
        whole, rest = step // size, step % size
        offset = rest * self.batch_size + jnp.arange(self.batch_size, dtype=jnp.uint32)
        epoch = whole * self.batch_size + offset // size
        index = permute(offset % size, size, (self.seed, epoch)).astype(jnp.int32)
        return to_batch({key: array[index] for key, array in self.arrays.items()})


@dataclasses.dataclass(frozen=True, eq=False)
class StreamedBatches:
    """Batches of a data set read example by example, as NumPy arrays of this process's slice.

    The slices of all processes, concatenated, are the batch that a single process would get.
    """

    dataset: StreamedDataset
    batch_size: int
    """Of the global batch."""
    seed: int
    process: tuple[int, int]
    """(index, count)."""

    def __call__(self, step: int) -> Batch:
        """This process's slice of the batch of `step`: arrays of batch_size / count examples."""
        index, count = self.process
        return self._slices[operator.index(step) * count + index]

    def iterate(self, start: int = 0) -> Iterator[Batch]:
        """An endless iterator over the batches from step `start` on, read ahead by Grain's threads."""
        import grain

        steps = grain.MapDataset.range(operator.index(start), 2**31).map(self)
        return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=8, prefetch_buffer_size=8)))

    @functools.cached_property
    def _slices(self):
        import grain

        # Positions are shuffled and batched, not examples: a source that can then reads a batch at once.
        positions = grain.MapDataset.range(len(self.dataset)).seed(self.seed).shuffle().repeat()
        return positions.batch(self.batch_size // self.process[1]).map(self.dataset.__getitem__)


@functools.partial(jax.jit, static_argnums=1)
def permute(index: Array, size: int, key_words: tuple[Array, ...]) -> Array:
    """The image of `index` under a pseudo-random permutation of 0 .. size-1, one permutation per key.

    A Feistel network on Z_a x Z_b, with a * b just above `size`: each round adds to one half, modulo its
    radix, a hash of the other half and the key, which is invertible for any hash. The few results >= size go
    through the network again until they are below it (cycle walking, which keeps the map a bijection). Black
    & Rogaway, "Ciphers with arbitrary finite domains", 2002.

    Args:
        index: uint32, any shape, each < size.
        size: static, 1 <= size < 2^31.
        key_words: uint32 arrays that broadcast with `index`; each key gives another permutation.

    Returns:
        uint32 of the broadcast shape.
    """
    side = math.isqrt(size - 1) + 1
    a, b = np.uint32(side), np.uint32(-(-size // side))
    key = _hash(*(jnp.asarray(word, jnp.uint32) for word in key_words))
    round_keys = [_hash(key, np.uint32(i)) for i in range(_ROUNDS)]

    def network(x):
        left, right = x // b, lax.rem(x, b)
        for i in range(0, _ROUNDS, 2):
            left = lax.rem(left + lax.rem(_hash(right ^ round_keys[i]), a), a)
            right = lax.rem(right + lax.rem(_hash(left ^ round_keys[i + 1]), b), b)
        return left * b + right

    def walk(carry):
        x, outside = carry
        x = jnp.where(outside, network(x), x)
        return x, x >= size

    index = jnp.broadcast_to(
        jnp.asarray(index, jnp.uint32), jnp.broadcast_shapes(jnp.shape(index), key.shape)
    )
    return lax.while_loop(lambda carry: carry[1].any(), walk, (index, jnp.ones_like(index, bool)))[0]


def _hash(*words: Any) -> Any:
    """uint32 words to one that looks random: MurmurHash3's finaliser, chained (Appleby, 2011)."""
    hashed: Any = np.uint32(0)
    for word in words:
        hashed = hashed ^ (word + np.uint32(0x9E3779B9))
        hashed = (hashed ^ (hashed >> 16)) * np.uint32(0x85EBCA6B)
        hashed = (hashed ^ (hashed >> 13)) * np.uint32(0xC2B2AE35)
        hashed = hashed ^ (hashed >> 16)
    return hashed
