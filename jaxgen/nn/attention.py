"""Attention over the positions of feature maps."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jaxgen.nn.norm import GroupNorm


def attend(query: Array, key: Array, value: Array, mask: Array | None = None) -> Array:
    """softmax(q k' / sqrt(d)) v of queries (B, N, heads, d), keys and values (B, M, heads, d).

    The result is shaped as the queries; the softmax is float32 at least, whatever the compute dtype. With a
    mask, bool (N, M), a query sees the keys where it is True.
    """
    at_least = jnp.promote_types(query.dtype, jnp.float32)
    logits = jnp.einsum("bnhd,bmhd->bhnm", query, key, preferred_element_type=at_least)
    if mask is not None:
        logits = jnp.where(mask, logits, -jnp.inf)
    weights = jax.nn.softmax(logits * query.shape[-1] ** -0.5, -1).astype(value.dtype)
    return jnp.einsum("bhnm,bmhd->bnhd", weights, value)


class SelfAttention(nn.Module):
    """x plus attention among its own positions after group normalization, (B, ..., C) -> (B, ..., C).

    Four linear maps of C numbers to C; the last starts at zero, so the layer starts as the identity.
    ValueError if `num_heads` does not divide C.
    """

    num_heads: int = 1
    num_groups: int = 32
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1]
        if channels % self.num_heads:
            raise ValueError(f"SelfAttention: {self.num_heads} heads do not divide {channels} channels")
        h = GroupNorm(self.num_groups, dtype=self.dtype)(x)
        h = h.reshape(x.shape[0], math.prod(x.shape[1:-1]), channels)
        split = lambda h: h.reshape(*h.shape[:2], self.num_heads, channels // self.num_heads)
        glorot, zeros = nn.initializers.glorot_uniform(), nn.initializers.zeros
        linear = lambda name: nn.Dense(channels, dtype=self.dtype, kernel_init=glorot, name=name)(h)
        h = attend(*(split(linear(name)) for name in ("query", "key", "value"))).reshape(h.shape)
        h = nn.Dense(channels, dtype=self.dtype, kernel_init=zeros, name="out")(h)
        return x + h.reshape(x.shape)
