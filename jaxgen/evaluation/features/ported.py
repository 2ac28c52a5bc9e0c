"""What the networks trained elsewhere share: their weights as ours, and pictures as they were fed."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

CHUNK = 25
"""Pictures a network is given at once: its early layers are large."""


def folded(
    state: Mapping[str, np.ndarray], convolution: str, normalisation: str, epsilon: float
) -> dict[str, np.ndarray]:
    """A convolution without bias and the batch normalisation after it, as one convolution with bias.

    With s = gamma / sqrt(variance + epsilon), kernel = s * kernel (height, width, in, out) and
    bias = beta - s * mean, both float32.
    """
    gamma, beta, mean, variance = (
        np.asarray(state[f"{normalisation}.{name}"], np.float64)
        for name in ("weight", "bias", "running_mean", "running_var")
    )
    scale = gamma / np.sqrt(variance + epsilon)
    kernel = scale * np.asarray(state[f"{convolution}.weight"], np.float64).transpose(2, 3, 1, 0)
    return {"kernel": kernel.astype(np.float32), "bias": (beta - scale * mean).astype(np.float32)}


def on_device(params: Any) -> Any:
    """The same tree with JAX arrays."""
    return jax.tree.map(jnp.asarray, params)


def resized(images: Array, size: int, antialias: bool) -> Array:
    """Gray or RGB pictures (B, H, W, 1 or 3) as RGB of `size` x `size`, by bilinear interpolation.

    Pixels are squares, whose centres lie at half-integers ("align_corners=False").
    """
    images = jax.image.resize(
        images, (len(images), size, size, images.shape[-1]), "bilinear", antialias=antialias
    )
    return jnp.broadcast_to(images, (*images.shape[:3], 3))


def in_chunks(function: Callable[[Array], Array], images: Array) -> Array:
    """`function(images)` for a function that treats each picture alone, at most `CHUNK` of them at a time."""
    length = len(images)
    count = -(-length // CHUNK)
    rows = -(-length // max(count, 1))
    padded = jnp.pad(images, ((0, count * rows - length), (0, 0), (0, 0), (0, 0)))
    outputs = lax.map(function, padded.reshape(count, rows, *images.shape[1:]))
    return outputs.reshape(count * rows, *outputs.shape[2:])[:length]
