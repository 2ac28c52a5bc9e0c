"""Codes as bits: every dimension rounded to one of a few levels, and the length of an ideal entropy code.

With the decoder this is lossy compression by transform coding (Goyal 2001; Theis et al. 2017 learn the
transform): the rate is the length of the bits, the distortion the error of what they decode to.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array


class Quantizer(NamedTuple):
    """Levels of every dimension, and how likely each is."""

    low: Array  # (D,)
    high: Array  # (D,)
    log_probability: Array  # (D, num_levels), nats


def fit(codes: Array, num_levels: int) -> Quantizer:
    """Levels evenly over the range of codes (N, D), each as likely as it is among them.

    One is added to every count, so that no level is impossible. Raises ValueError for fewer than 2 levels.
    """
    if num_levels < 2:
        raise ValueError(f"a code needs at least 2 levels, not {num_levels}")
    codes = jnp.asarray(codes)
    low, high = codes.min(0), codes.max(0)
    flat = Quantizer(low, high, jnp.zeros((codes.shape[1], num_levels)))
    dimensions = jnp.arange(codes.shape[1])
    counts = jnp.ones_like(flat.log_probability).at[dimensions, quantize(flat, codes)].add(1)
    return Quantizer(low, high, jnp.log(counts / counts.sum(1, keepdims=True)))


def quantize(quantizer: Quantizer, codes: Array) -> Array:
    """The nearest level of every coordinate of codes (B, D), (B, D) int32."""
    low, high, log_probability = quantizer
    last = log_probability.shape[1] - 1
    place = (codes - low) / jnp.where(high > low, high - low, 1.0)
    return jnp.clip(jnp.round(place * last), 0, last).astype(jnp.int32)


def dequantize(quantizer: Quantizer, levels: Array) -> Array:
    """The codes (B, D) that levels (B, D) stand for."""
    low, high, log_probability = quantizer
    return low + (high - low) * levels / (log_probability.shape[1] - 1)


def code_length(quantizer: Quantizer, levels: Array) -> Array:
    """Bits of an ideal entropy coder for levels (B, D), dimensions apart, (B,): -sum log2 p."""
    log_probability = quantizer.log_probability
    return -log_probability[jnp.arange(len(log_probability)), levels].sum(1) / jnp.log(2.0)
