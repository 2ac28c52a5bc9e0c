"""Networks of the VAE, fully connected or convolutional, for every posterior and likelihood."""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxgen.nn import conv


class DenseEncoder(nn.Module):
    """(B, *shape), labels (B, num_classes) -> parameters of q(z | x), see `vae.Config.encoder`."""

    cfg: Any  # vae.Config

    @nn.compact
    def __call__(self, x: Array, *label: Array) -> Any:
        x = _flat(x, *label)
        for width in self.cfg.hidden:
            x = _activate(_dense(width, self.cfg)(x), self.cfg)
        return _proposal(x, self.cfg)


class DenseDecoder(nn.Module):
    """z, labels (B, num_classes) -> parameters of p(x | z), see `vae.Config.decoder`."""

    cfg: Any  # vae.Config

    @nn.compact
    def __call__(self, z: Array, *label: Array) -> Array:
        z = _flat(z, *label)
        for width in reversed(self.cfg.hidden):
            z = _activate(_dense(width, self.cfg)(z), self.cfg)
        shape = *self.cfg.shape[:-1], num_outputs(self.cfg)
        return _dense(math.prod(shape), self.cfg, name="out")(z).reshape(-1, *shape)


class ConvEncoder(nn.Module):
    """As `DenseEncoder`, with 4x4 convolutions of stride 2; labels are constant channels."""

    cfg: Any  # vae.Config

    @nn.compact
    def __call__(self, x: Array, *label: Array) -> Any:
        planes = [jnp.broadcast_to(y[:, None, None], (*x.shape[:3], y.shape[-1])) for y in label]
        x = jnp.concatenate([x, *planes], -1)
        for channels in self.cfg.hidden:
            x = conv.Conv(channels, (4, 4), (2, 2), padding=((1, 1), (1, 1)), dtype=self.cfg.dtype)(x)
            x = _activate(x, self.cfg)
        return _proposal(_flat(x), self.cfg)


class ConvDecoder(nn.Module):
    """As `DenseDecoder`, with 4x4 transposed convolutions of stride 2 back through the encoder's sizes."""

    cfg: Any  # vae.Config

    @nn.compact
    def __call__(self, z: Array, *label: Array) -> Array:
        (height, width), *larger = reversed(sizes(self.cfg))
        x = _dense(height * width * self.cfg.hidden[-1], self.cfg)(_flat(z, *label))
        x = _activate(x, self.cfg).reshape(-1, height, width, self.cfg.hidden[-1])
        for channels, size in zip(reversed(self.cfg.hidden[:-1]), larger[:-1], strict=True):
            x = _activate(_upsample(channels, x, size, self.cfg), self.cfg)
        return _upsample(num_outputs(self.cfg), x, larger[-1], self.cfg, name="out")


def check_shape(cfg: Any) -> None:
    """Raises ValueError for what is no image, or one that the convolutions leave nothing of."""
    if len(cfg.shape) != 3:
        raise ValueError(f"convolutions take (height, width, channels), got {cfg.shape}: use network mlp")
    smallest = 2 ** len(cfg.hidden)
    height, width = cfg.shape[:2]
    if min(height, width) < smallest:
        fitting = f"{max(height, smallest)}x{max(width, smallest)}"
        raise ValueError(
            f"{len(cfg.hidden)} convolutions of stride 2 need at least {smallest} pixels either way, got"
            f" {cfg.shape}: {fitting} would fit, or fewer entries in `hidden`"
        )


def num_outputs(cfg: Any) -> int:
    """Numbers the decoder gives for each position, in place of the last axis of `shape`."""
    if cfg.likelihood == "logistic_mixture":
        return cfg.num_components * (3 if cfg.shape[-1] == 1 else 10)
    return cfg.shape[-1] * (2 if cfg.likelihood == "gaussian" and cfg.noise == "predicted" else 1)


def sizes(cfg: Any) -> list[tuple[int, int]]:
    """Height and width of the image, and of what each convolution leaves of it."""
    found = [cfg.shape[:2]]
    for _ in cfg.hidden:
        height, width = found[-1]
        found.append((conv.output_size(height, 4, 2, 1), conv.output_size(width, 4, 2, 1)))
    return found


def _upsample(features: int, x: Array, size: tuple[int, int], cfg: Any, name: str | None = None) -> Array:
    """A transposed convolution to a size whose half, rounded down, is that of x."""
    padding = [(1, 1 - (n - 2 * half)) for n, half in zip(size, x.shape[1:3], strict=True)]
    return conv.ConvTranspose(features, (4, 4), (2, 2), padding, dtype=cfg.dtype, name=name)(x)


def _dense(width: int, cfg: Any, name: str | None = None) -> nn.Dense:
    return nn.Dense(width, dtype=cfg.dtype, kernel_init=nn.initializers.glorot_uniform(), name=name)


def _activate(x: Array, cfg: Any) -> Array:
    return nn.tanh(x) if cfg.activation == "tanh" else nn.relu(x)


def _flat(x: Array, *label: Array) -> Array:
    return jnp.concatenate([x.reshape(x.shape[0], -1), *label], -1)


def _proposal(x: Array, cfg: Any) -> Any:
    if cfg.posterior == "categorical":
        logits = _dense(cfg.num_latents * cfg.num_categories, cfg)(x)
        return logits.reshape(-1, cfg.num_latents, cfg.num_categories)
    mean, log_variance = jnp.split(_dense(2 * cfg.num_latents, cfg)(x), 2, -1)
    return mean, log_variance
