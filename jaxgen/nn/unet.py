"""The U-Net of diffusion models (Ho, Jain & Abbeel 2020, after Ronneberger, Fischer & Brox 2015).

Residual blocks and convolutions of stride 2 take an image down, residual blocks and nearest-neighbour
upsampling take it back up, and every feature map on the way down is joined to its like on the way up. Each
block is told the time, and the class if there is one; at chosen sizes it is followed by self-attention.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxgen.nn import embed, patches
from jaxgen.nn.attention import SelfAttention
from jaxgen.nn.conv import Conv, UpsampleConv
from jaxgen.nn.norm import GroupNorm

GLOROT = nn.initializers.glorot_uniform()
ZEROS = nn.initializers.zeros


class ResidualBlock(nn.Module):
    """x (B, H, W, C) and an embedding (B, E) -> (B, H, W, channels).

    Twice group normalization, SiLU and a 3x3 convolution, the embedding added between; the second convolution
    starts at zero.
    """

    channels: int
    dropout: float = 0.0
    num_groups: int = 32
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, embedding: Array, train: bool = False) -> Array:
        norm = lambda h: nn.silu(GroupNorm(self.num_groups, dtype=self.dtype)(h))
        h = Conv(self.channels, (3, 3), dtype=self.dtype, kernel_init=GLOROT)(norm(x))
        shift = nn.Dense(self.channels, dtype=self.dtype, kernel_init=GLOROT)(nn.silu(embedding))
        h = norm(h + shift[:, None, None])
        h = nn.Dropout(self.dropout, deterministic=not train)(h)
        h = Conv(self.channels, (3, 3), dtype=self.dtype, kernel_init=ZEROS)(h)
        if x.shape[-1] != self.channels:
            x = Conv(self.channels, (1, 1), dtype=self.dtype, kernel_init=GLOROT, name="shortcut")(x)
        return x + h


class UNet(nn.Module):
    """Images (B, H, W, C), times (B,), optional labels (B,) -> (B, H, W, out_channels) float32, 0 at first.

    Args:
        out_channels: of the result.
        width: channels at full size.
        multipliers: times `width` gives the channels at full size, at half, ... (1,) does not shrink.
        num_blocks: residual blocks at each size on the way down, one more on the way up.
        attention_sizes: heights of feature maps with attention after every block; the smallest map always has
            it once.
        num_heads: of the attention.
        num_groups: of the normalization; must divide the channels of every size.
        num_labels: rows of the class embedding; 0 for none.
        dropout: share of the features dropped in every block if `train`, from the rng "dropout".
        dtype: of the computation; parameters are float32.

    Raises ValueError for a size that does not halve often enough, naming those nearest that do.
    """

    out_channels: int
    width: int = 32
    multipliers: tuple[int, ...] = (1, 2)
    num_blocks: int = 1
    attention_sizes: tuple[int, ...] = ()
    num_heads: int = 1
    num_groups: int = 8
    num_labels: int = 0
    dropout: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, t: Array, label: Array | None = None, train: bool = False) -> Array:
        check_size(x.shape[1:], len(self.multipliers))
        dense = lambda h: nn.Dense(4 * self.width, dtype=self.dtype, kernel_init=GLOROT)(h)
        embedding = dense(nn.silu(dense(embed.sinusoidal(t, self.width))))
        if self.num_labels:
            if label is None:
                raise ValueError("this U-Net is conditional: give the label of every example")
            rows = nn.Embed(self.num_labels, 4 * self.width, dtype=self.dtype, name="label")
            embedding = embedding + rows(label)

        def block(x, channels):
            x = ResidualBlock(channels, self.dropout, self.num_groups, self.dtype)(x, embedding, train)
            return attention(x) if x.shape[1] in self.attention_sizes else x

        def attention(x):
            return SelfAttention(self.num_heads, self.num_groups, self.dtype)(x)

        def conv(x, channels, strides=1, init=GLOROT):
            return Conv(channels, (3, 3), strides, dtype=self.dtype, kernel_init=init)(x)

        def doubled(x):
            return UpsampleConv(x.shape[-1], (3, 3), dtype=self.dtype, kernel_init=GLOROT)(x)

        x = conv(x, self.width)
        kept = [x]
        for level, multiplier in enumerate(self.multipliers):
            if level:
                x = conv(x, x.shape[-1], 2)
                kept.append(x)
            for _ in range(self.num_blocks):
                x = block(x, self.width * multiplier)
                kept.append(x)
        middle = lambda x: ResidualBlock(x.shape[-1], self.dropout, self.num_groups, self.dtype)(
            x, embedding, train
        )
        x = middle(attention(middle(x)))
        for level, multiplier in reversed(list(enumerate(self.multipliers))):
            for _ in range(self.num_blocks + 1):
                x = block(jnp.concatenate([x, kept.pop()], -1), self.width * multiplier)
            if level:
                x = doubled(x)
        x = nn.silu(GroupNorm(self.num_groups, dtype=self.dtype)(x))
        return jnp.float32(conv(x, self.out_channels, init=ZEROS))


def check_size(shape: tuple[int, ...], num_sizes: int) -> None:
    """Raises ValueError for a height or width that does not halve `num_sizes` - 1 times."""
    divisor = 2 ** (num_sizes - 1)
    if len(shape) != 3:
        raise ValueError(f"a U-Net takes images (height, width, channels), got {shape}")
    if any(n % divisor or not n for n in shape[:2]):
        height, width = shape[:2]
        raise ValueError(
            f"a U-Net of {num_sizes} sizes takes heights and widths that {divisor} divides, got"
            f" {height}x{width}: {patches.fitting_sizes(height, width, divisor)} would fit"
        )
