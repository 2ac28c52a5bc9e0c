"""Networks of images that say how the couplings of a flow move what the networks do not read.

All take images (B, H, W, C) and what they may know besides, a context (B, K) of vectors or (B, H, W, K) of
images, and give `num_outputs` numbers for each position, which are 0 at first.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxgen.fields import NonNegativeInt, PositiveInt
from jaxgen.nn.conv import Conv

MAX_LOG_FACTOR = 5.0
"""Bound of the logarithm of a learned factor."""
CONSTANT = 1e-6
"""Standard deviation below which a channel counts as constant."""
SMALL_NORMAL = nn.initializers.normal(0.05)


class ActNorm(nn.Module):
    """A shift and scale of each channel; the images of `init` set those that give them mean 0 and variance 1.

    Channels that are constant in `init` are only shifted. Kingma & Dhariwal 2018, section 3.1.
    """

    @nn.compact
    def __call__(self, x: Array) -> Array:
        axes = tuple(range(x.ndim - 1))

        def log_std(_):
            std = x.std(axes)
            return jnp.float32(jnp.log(jnp.where(std > CONSTANT, std, 1)))

        shift = self.param("shift", lambda _: jnp.float32(x.mean(axes)))
        log_scale = self.param("log_scale", log_std)
        return (x - shift) * jnp.exp(-jnp.clip(log_scale, -MAX_LOG_FACTOR, MAX_LOG_FACTOR))


class ZeroConv(nn.Module):
    """A 3x3 convolution that is 0 at first, each of its outputs times exp(3 s) with s learned.

    The factor makes up for the small steps of what starts at 0. Kingma & Dhariwal 2018, section 3.3.
    """

    num_outputs: int | None = None
    """Numbers that it gives for each position; filled in by the model."""

    @nn.compact
    def __call__(self, x: Array, *context: Array) -> Array:
        x = Conv(self.num_outputs or 1, (3, 3), kernel_init=nn.initializers.zeros)(joined(x, *context))
        log_factor = self.param("log_factor", nn.initializers.zeros, x.shape[-1:])
        return x * jnp.exp(jnp.clip(3 * log_factor, -MAX_LOG_FACTOR, MAX_LOG_FACTOR))


class ConvNet(nn.Module):
    """Three convolutions, of 3x3, 1x1 and 3x3, normalised by `ActNorm` (Kingma & Dhariwal 2018)."""

    width: PositiveInt = 64
    """Channels of the hidden layers."""
    num_outputs: PositiveInt | None = None
    """Numbers that it gives for each position; filled in by the model."""

    @nn.compact
    def __call__(self, x: Array, *context: Array) -> Array:
        x = joined(x, *context)
        for size in (3, 1):
            x = Conv(self.width, (size, size), use_bias=False, kernel_init=SMALL_NORMAL)(x)
            x = nn.relu(ActNorm()(x))
        return ZeroConv(self.num_outputs)(x)


class ResNet(nn.Module):
    """Residual blocks of two 3x3 convolutions, normalised by `ActNorm` (after Dinh et al. 2017)."""

    width: PositiveInt = 32
    """Channels of the hidden layers."""
    num_blocks: NonNegativeInt = 2
    """Residual blocks."""
    num_outputs: PositiveInt | None = None
    """Numbers that it gives for each position; filled in by the model."""

    @nn.compact
    def __call__(self, x: Array, *context: Array) -> Array:
        active = lambda h: nn.relu(ActNorm()(h))
        conv = lambda h: Conv(self.width, (3, 3), use_bias=False)(h)
        x = conv(joined(x, *context))
        for _ in range(self.num_blocks):
            x = x + conv(active(conv(active(x))))
        return ZeroConv(self.num_outputs)(active(x))


def joined(x: Array, *context: Array) -> Array:
    """Images (B, H, W, C) with contexts as further channels, vectors (B, K) the same at all positions."""
    everywhere = [c if c.ndim == x.ndim else c[:, None, None] for c in context]
    return jnp.concatenate([x, *(jnp.broadcast_to(c, (*x.shape[:3], c.shape[-1])) for c in everywhere)], -1)
