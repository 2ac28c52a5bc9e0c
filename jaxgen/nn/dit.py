"""The diffusion transformer, DiT (Peebles & Xie 2023).

An image is cut into square patches, each a token with a fixed code of its place, and attention takes the part
of the U-Net's convolutions. Time and class act through the normalizations: in each block a linear map of
their embedding c gives the shifts, scales and gates of

    x <- x + gate_1 Attention(LN(x) (1 + scale_1) + shift_1),
    x <- x + gate_2 MLP(LN(x) (1 + scale_2) + shift_2),

and starts at zero, so that every block starts as the identity ("adaLN-Zero"). Blocks are alike: one is
compiled, and scanned over.

Departs from the paper: the frequencies of the embeddings are those of `embed.sinusoidal`.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxgen.nn import embed, patches
from jaxgen.nn.attention import attend

GLOROT = nn.initializers.glorot_uniform()
ZEROS = nn.initializers.zeros
SMALL = nn.initializers.normal(0.02)

NUM_FREQUENCIES = 256
"""Sines and cosines of the time."""


class Block(nn.Module):
    """Tokens (B, N, C) and an embedding (B, C) -> (B, N, C): attention and an MLP four times as wide.

    The identity at first. `dropout` is of the MLP's hidden features.
    """

    num_heads: int = 1
    dropout: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, embedding: Array, train: bool = False) -> Array:
        channels = x.shape[-1]
        dense = lambda width, name: nn.Dense(width, dtype=self.dtype, kernel_init=GLOROT, name=name)
        parts = modulation(embedding, 6, self.dtype)
        shift, scale, gate = parts[:3]
        h = dense(3 * channels, "query_key_value")(layer_norm(self.dtype)(x) * (1 + scale) + shift)
        split = lambda h: h.reshape(*h.shape[:2], self.num_heads, channels // self.num_heads)
        h = attend(*(split(h) for h in jnp.split(h, 3, -1))).reshape(x.shape)
        x = x + gate * dense(channels, "out")(h)
        shift, scale, gate = parts[3:]
        h = dense(4 * channels, "hidden")(layer_norm(self.dtype)(x) * (1 + scale) + shift)
        h = nn.Dropout(self.dropout, deterministic=not train)(nn.gelu(h, approximate=True))
        return x + gate * dense(channels, "mlp_out")(h)


class DiT(nn.Module):
    """Images (B, H, W, C), times (B,), optional labels (B,) -> (B, H, W, out_channels) float32, 0 at first.

    Args:
        out_channels: of the result.
        patch: side of the squares of pixels that are tokens.
        width: channels of a token.
        depth: blocks.
        num_heads: of the attention; must divide the width.
        num_labels: rows of the class embedding; 0 for none.
        dropout: share of the hidden features dropped in every block if `train`, from the rng "dropout".
        dtype: of the computation; parameters are float32.

    Raises ValueError for a size that the patch does not divide, naming those nearest that it does.
    """

    out_channels: int
    patch: int = 2
    width: int = 384
    depth: int = 12
    num_heads: int = 6
    num_labels: int = 0
    dropout: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, t: Array, label: Array | None = None, train: bool = False) -> Array:
        check_size(x.shape[1:], self.patch)
        if self.width % self.num_heads:
            fitting = ", ".join(str(n) for n in range(1, self.width + 1) if self.width % n == 0)
            raise ValueError(f"DiT: {self.num_heads} heads do not divide {self.width} channels; {fitting} do")
        dense = lambda width, init: nn.Dense(width, dtype=self.dtype, kernel_init=init)
        time = nn.silu(dense(self.width, SMALL)(embed.sinusoidal(t, NUM_FREQUENCIES)))
        embedding = dense(self.width, SMALL)(time)
        if self.num_labels:
            if label is None:
                raise ValueError("this DiT is conditional: give the label of every example")
            rows = nn.Embed(self.num_labels, self.width, dtype=self.dtype, embedding_init=SMALL, name="label")
            embedding = embedding + rows(label)
        x = patches.to_patches(x, self.patch)
        count, height, width, size = x.shape
        x = dense(self.width, GLOROT)(x.reshape(count, height * width, size))
        x = x + positions(height, width, self.width).astype(x.dtype)
        blocks = nn.scan(
            lambda block, x, embedding: (block(x, embedding, train), None),
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=nn.broadcast,
            length=self.depth,
        )
        x, _ = blocks(Block(self.num_heads, self.dropout, self.dtype, name="blocks"), x, embedding)
        shift, scale = modulation(embedding, 2, self.dtype)
        x = layer_norm(self.dtype)(x) * (1 + scale) + shift
        x = jnp.float32(dense(self.patch**2 * self.out_channels, ZEROS)(x))
        return patches.from_patches(x.reshape(count, height, width, x.shape[-1]), self.patch)


def modulation(embedding: Array, count: int, dtype: Any) -> list[Array]:
    """`count` shifts, scales or gates of an embedding (B, C), each (B, 1, C), all 0 at first.

    For use within a module: it is a linear layer, called "modulation".
    """
    layer = nn.Dense(count * embedding.shape[-1], dtype=dtype, kernel_init=ZEROS, name="modulation")
    return jnp.split(layer(nn.silu(embedding))[:, None], count, -1)


def layer_norm(dtype: Any) -> nn.LayerNorm:
    """Each token (..., C) at zero mean and unit variance, with nothing learned."""
    return nn.LayerNorm(1e-6, dtype, use_bias=False, use_scale=False, use_fast_variance=False)


def positions(height: int, width: int, size: int) -> Array:
    """Codes of the places of a grid, (height * width, size): half of each of its row, half of its column."""
    rows, columns = jnp.divmod(jnp.arange(height * width), width)
    half = size // 2
    return jnp.concatenate([embed.sinusoidal(rows, half), embed.sinusoidal(columns, size - half)], -1)


def check_size(shape: tuple[int, ...], patch: int) -> None:
    """Raises ValueError for a height or width that `patch` does not divide."""
    if len(shape) != 3:
        raise ValueError(f"a DiT takes images (height, width, channels), got {shape}")
    height, width = shape[:2]
    if height % patch or width % patch or not height * width:
        raise ValueError(
            f"a DiT of {patch}x{patch} patches takes heights and widths that {patch} divides, got"
            f" {height}x{width}: {patches.fitting_sizes(height, width, patch)} would fit"
        )
