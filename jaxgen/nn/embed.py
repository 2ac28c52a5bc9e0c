"""Embeddings of numbers."""

import math

import jax.numpy as jnp
from jax import Array


def sinusoidal(t: Array, size: int) -> Array:
    """Sines and then cosines of t (B,) at size / 2 frequencies from 1 to 1 / 10,000, (B, size) float32.

    In float32 whatever t is, as bfloat16 cannot tell neighbouring times above 256 apart. The frequencies are
    those of Ho et al. 2020; an odd size ends in a zero.
    """
    half = size // 2
    frequencies = jnp.exp(jnp.linspace(0.0, -math.log(10_000.0), half, dtype=jnp.float32))
    angles = jnp.float32(t)[:, None] * frequencies
    waves = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)
    return jnp.pad(waves, ((0, 0), (0, size - 2 * half)))
