"""The causal transformer: each token sees itself and those before it (Vaswani et al. 2017).

A sequence is read at once, or token by token with a cache of the keys and values of the tokens before, which
gives the same. Blocks are alike: one is compiled, and scanned over.
"""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jaxgen.fields import Decay, PositiveInt
from jaxgen.nn.attention import attend

GLOROT = nn.initializers.glorot_uniform()
SMALL = nn.initializers.normal(0.02)

Activation = Literal["gelu", "silu", "relu"]
Positions = Literal["learned", "rotary"]

Cache = tuple[Array, Array]
"""Keys and values of every block, each (depth, B, length, heads, channels of a head)."""


class Block(nn.Module):
    """Tokens (B, n, C) -> (B, n, C): attention and an MLP four times as wide, each of normalized tokens.

    With a cache of the block the tokens stand at its places from `start` on; it is returned with theirs.
    """

    num_heads: int = 1
    activation: Activation = "gelu"
    rotary: bool = False
    dropout: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: Array, cache: Cache | None, start: Array | int, train: bool
    ) -> tuple[Array, Cache | None]:
        channels = x.shape[-1]
        drop = nn.Dropout(self.dropout, deterministic=not train)
        dense = lambda width, name: nn.Dense(width, dtype=self.dtype, kernel_init=GLOROT, name=name)
        h = dense(3 * channels, "query_key_value")(layer_norm(self.dtype)(x))
        split = lambda h: h.reshape(*h.shape[:2], self.num_heads, channels // self.num_heads)
        query, key, value = (split(part) for part in jnp.split(h, 3, -1))
        places = start + jnp.arange(x.shape[1])
        if self.rotary:
            query, key = rotated(query, places), rotated(key, places)
        if cache is not None:
            put = jax.lax.dynamic_update_slice_in_dim
            key, value = cache = (put(cache[0], key, start, 1), put(cache[1], value, start, 1))
        seen = places[:, None] >= jnp.arange(key.shape[1])
        # jax.nn.dot_product_attention has a float32 softmax in double precision too: a flow is to be exact.
        h = attend(query, key, value, seen).reshape(x.shape)
        x = x + drop(dense(channels, "out")(h))
        h = getattr(nn, self.activation)(dense(4 * channels, "hidden")(layer_norm(self.dtype)(x)))
        return x + drop(dense(channels, "mlp_out")(h)), cache


class Transformer(nn.Module):
    """Causal transformer: `num_outputs` numbers for each token, which see it and those before; 0 at first.

    Tokens (B, n, size), and contexts (B, C) that every token is given, -> outputs (B, n, num_outputs) and the
    cache. Without a cache the tokens are the whole sequence, with one they stand at its places from `start`.
    Raises ValueError for heads that do not divide the width, or if positions are rotary into even parts.
    """

    width: PositiveInt = 128
    """Channels of a token."""
    depth: PositiveInt = 2
    """Blocks of attention and MLP."""
    num_heads: PositiveInt = 4
    """Heads of the attention; they must divide the width."""
    activation: Activation = "gelu"
    """Nonlinearity of the MLP; on a CPU relu makes the whole network half as fast again."""
    positions: Positions = "learned"
    """Add a learned vector for each place, or rotate queries and keys by it."""
    dropout: Decay = 0.0
    """Share of what attention and MLP give that is dropped if `train`, from the rng "dropout"."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Compute dtype; by default that of the parameters. Outputs are float32 at least."""
    num_outputs: PositiveInt | None = None
    """Numbers that it gives for a token; filled in by the model."""

    @nn.compact
    def __call__(
        self,
        x: Array,
        *context: Array,
        cache: Cache | None = None,
        start: Array | int = 0,
        train: bool = False,
    ) -> tuple[Array, Cache | None]:
        if self.width % self.num_heads:
            raise ValueError(f"Transformer: {self.num_heads} heads do not divide {self.width} channels")
        rotary = self.positions == "rotary"
        if rotary and self.width // self.num_heads % 2:
            raise ValueError(f"Transformer: {self.num_heads} heads of {self.width} channels are of odd width")
        dense = lambda width, **more: nn.Dense(width, dtype=self.dtype, **more)
        length = x.shape[1] if cache is None else cache[0].shape[2]
        h = dense(self.width, kernel_init=GLOROT, name="in")(x)
        if not rotary:
            places = self.param("places", SMALL, (length, self.width))
            h = h + jax.lax.dynamic_slice_in_dim(places, start, x.shape[1]).astype(h.dtype)
        for given in context:
            h = h + dense(self.width, kernel_init=SMALL, name="context")(given)[:, None]
        blocks = nn.scan(
            Block,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast, nn.broadcast),
            length=self.depth,
        )
        block = blocks(self.num_heads, self.activation, rotary, self.dropout, self.dtype, name="blocks")
        h, cache = block(h, cache, start, train)
        zeros = nn.initializers.zeros
        h = dense(self.num_outputs or 1, kernel_init=zeros, name="last")(layer_norm(self.dtype)(h))
        return h.astype(jnp.promote_types(h.dtype, jnp.float32)), cache

    def empty_cache(self, count: int, length: int, dtype: Any) -> Cache:
        """A cache for `count` sequences of numbers of this dtype."""
        shape = (self.depth, count, length, self.num_heads, self.width // self.num_heads)
        zeros = jnp.zeros(shape, self.dtype or dtype)
        return zeros, zeros


def layer_norm(dtype: Any) -> nn.LayerNorm:
    """Each token (..., C) at zero mean and unit variance, then scaled and shifted as learned."""
    return nn.LayerNorm(1e-6, dtype, use_fast_variance=False)


def rotated(x: Array, places: Array) -> Array:
    """Queries or keys (B, n, heads, d) turned by their places (n,) (Su et al. 2021).

    Numbers i and d / 2 + i are turned as a point of the plane by the angle place / 10000^(2 i / d): products
    of queries and keys then depend on the distance of their places.
    """
    half = x.shape[-1] // 2
    angle = places[:, None] * 10_000.0 ** (-jnp.arange(half) / half)
    cosine, sine = (f(angle)[:, None].astype(x.dtype) for f in (jnp.cos, jnp.sin))
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cosine - second * sine, first * sine + second * cosine], -1)
