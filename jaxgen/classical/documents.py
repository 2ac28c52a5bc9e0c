"""Documents as bags of words, and the products that topic models make of them.

A batch of documents is either an array of counts (B, W), or `Documents`: the words that occur in each, padded
to one length, which for a large vocabulary is far smaller. A picture is a document too: its pixels are the
words, and grey levels the counts (as in Griffiths & Steyvers 2004).
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


class Documents(NamedTuple):
    """Documents by the words that occur in them; the padding is word 0 with count 0."""

    words: Array  # (B, L) int32
    counts: Array  # (B, L) float


Counts = Array | Documents


def from_csr(matrix: Any) -> Documents:
    """`Documents` of a SciPy CSR matrix of counts (D, W), or of any object with its three arrays."""
    lengths = np.diff(matrix.indptr)
    rows = np.repeat(np.arange(len(lengths)), lengths)
    places = np.arange(len(rows)) - np.repeat(matrix.indptr[:-1], lengths)
    shape = len(lengths), max(int(lengths.max(initial=0)), 1)
    words = np.zeros(shape, np.int32)
    counts = np.zeros(shape, matrix.data.dtype if matrix.data.dtype.kind == "f" else np.float32)
    words[rows, places], counts[rows, places] = matrix.indices, matrix.data
    return Documents(jnp.asarray(words), jnp.asarray(counts))


def of(x: Any, shape: tuple[int, ...], num_levels: int) -> Counts:
    """Counts of x: a CSR matrix, `Documents`, an array (B, W) of counts, or pictures (B, *shape).

    A picture on [-1, 1] has num_levels words where it is white and none where it is black. Raises ValueError
    for another shape.
    """
    if isinstance(x, Documents):
        return Documents(jnp.asarray(x.words), floating(x.counts))
    sparse = hasattr(x, "indptr")
    x = x if sparse else floating(x)
    if len(x.shape) < 2 or math.prod(x.shape[1:]) != math.prod(shape):
        raise ValueError(f"documents must be (N, {math.prod(shape)}) counts of words, not {x.shape}")
    return from_csr(x) if sparse else words_of(x, shape, num_levels)


def check(docs: Counts, num_words: int) -> None:
    """Raises ValueError if counts are negative or not finite, or all 0, or words are no word's number.

    Traced documents are not looked at.
    """
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(docs)):
        return
    if isinstance(docs, Documents) and docs.words.size:
        low, high = np.min(docs.words), np.max(docs.words)
        if low < 0 or high >= num_words:
            raise ValueError(f"words must be numbers in 0..{num_words - 1}, not {low}..{high}")
    check_counts(counts_of(docs))


def check_counts(counts: Any) -> None:
    """Raises ValueError if counts of words are negative or not finite, or there is no word at all."""
    counts = np.asarray(counts)
    if not np.isfinite(counts).all():
        raise ValueError("counts of words have values that are not finite (NaN or infinity)")
    if (counts < 0).any():
        raise ValueError("counts of words must not be negative")
    if not counts.any():
        raise ValueError("the documents have no words at all")


def in_chunks(docs: Counts, size: int) -> Counts:
    """Documents as equal chunks (C, B, ...) of at most `size`; the last ones may be empty documents."""
    number = len(counts_of(docs))
    count = -(-number // size)
    each = -(-number // count)

    def cut(a):
        padded = jnp.pad(a, [(0, count * each - number), (0, 0)])
        return padded.reshape(count, each, a.shape[1])

    return jax.tree.map(cut, docs)


def counts_of(docs: Counts) -> Array:
    """The counts alone, (B, W) or (B, L)."""
    return docs.counts if isinstance(docs, Documents) else docs


def lengths(docs: Counts) -> Array:
    """Words in each document, (B,)."""
    return counts_of(docs).sum(1)


def words_of(x: Any, shape: tuple[int, ...], num_levels: int) -> Array:
    """Counts (B, W) of x (B, *shape), or of some columns: pictures by their grey levels, else x itself."""
    flat = x.reshape(len(x), math.prod(x.shape[1:]))
    return jnp.round((flat + 1) * (num_levels / 2)) if len(shape) == 3 else flat


def picture_of(words: Array, shape: tuple[int, ...], num_levels: int) -> Array:
    """The inverse of `words_of`, flat, (B, W): what is more than white is white."""
    return jnp.minimum(words * (2 / num_levels) - 1, 1) if len(shape) == 3 else words


def log_orders(words: Array) -> Array:
    """log of the number of orders that counts of words (B, W) can stand in, nats, (B,)."""
    log_factorial = lambda a: jax.scipy.special.gammaln(a + 1)
    return log_factorial(words.sum(1)) - log_factorial(words).sum(1)


def table(topics: Array, docs: Counts) -> Array:
    """Topics (K, W) as the functions below take them: those of the words that occur, (B, L, K), or (K, W)."""
    return topics.T[docs.words] if isinstance(docs, Documents) else topics


def at_words(values: Array, docs: Counts) -> Array:
    """Values (W,) at the words that occur, (B, L), or (W,)."""
    return values[docs.words] if isinstance(docs, Documents) else values


def mix(mixtures: Array, table: Array) -> Array:
    """sum_k mixtures_k topics_kw at every word, (B, L) or (B, W), of mixtures (B, K)."""
    if table.ndim == 3:
        return jnp.einsum("bk,blk->bl", mixtures, table, precision="highest")
    return jnp.matmul(mixtures, table, precision="highest")


def collect(weights: Array, table: Array) -> Array:
    """sum_w weights_w topics_kw, (B, K), of weights (B, L) or (B, W)."""
    if table.ndim == 3:
        return jnp.einsum("bl,blk->bk", weights, table, precision="highest")
    return jnp.matmul(weights, table.T, precision="highest")


def spread(mixtures: Array, weights: Array, docs: Counts, num_words: int) -> Array:
    """sum_b mixtures_bk weights_bw, (K, W): `collect` for the topics."""
    if isinstance(docs, Documents):
        share = (weights[..., None] * mixtures[:, None]).reshape(-1, mixtures.shape[1])
        return jax.ops.segment_sum(share, docs.words.reshape(-1), num_words).T
    return jnp.matmul(mixtures.T, weights, precision="highest")


def draw(key: Array, probability: Array, length: Array) -> Array:
    """Counts (B, W) of documents of words drawn from probability (B, W), Poisson many, `length` on average.

    Counts that are each Poisson have a Poisson sum, and given it they are multinomial.
    """
    rate = length * probability
    return jax.random.poisson(key, rate).astype(rate.dtype)


def floating(x: Any) -> Array:
    """x as an array of floats, of float32 if it has integers."""
    x = jnp.asarray(x)
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.float32)
