"""What all models that remove noise share: networks of noisy data and a time, their optimizer and average."""

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxgen.nn import dit, embed, patches, unet


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What the Configs of all diffusion models have: data, network, optimizer, average."""

    shape: tuple[int, ...] = (8, 8, 1)
    """Shape of one example."""
    num_classes: int = 0
    """Conditional only: number of labels."""
    conditional: bool = False
    """Give the label to the network."""
    network: Literal["unet", "dit", "mlp"] = "unet"
    """U-Net or transformer for images, or fully connected."""
    hidden: tuple[int, ...] = (128, 128, 128)
    """mlp only: widths of the layers."""
    width: int = 32
    """unet and dit: channels, in the U-Net at full size."""
    multipliers: tuple[int, ...] = (1, 2)
    """unet only: times width, the channels at full size, at half, ...; odd sizes are padded inside."""
    num_blocks: int = 1
    """unet only: residual blocks at each size on the way down, one more on the way up."""
    attention_sizes: tuple[int, ...] = ()
    """unet only: heights of the feature maps with self-attention; the smallest map has it once anyway."""
    num_heads: int = 1
    """unet and dit: heads of the attention."""
    num_groups: int = 8
    """unet only: groups of the normalization."""
    patch: int = 1
    """unet and dit: side of the squares of pixels taken as one position."""
    depth: int = 6
    """dit only: blocks."""
    dropout: float = 0.0
    """Share of the hidden features dropped in training."""
    learning_rate: float = 1e-3
    """Adam's step size."""
    warmup_steps: int = 0
    """Steps in which the step size rises linearly from zero."""
    decay_steps: int = 0
    """Steps in which the step size falls to zero along half a cosine; 0 keeps it."""
    gradient_clip: float = 1.0
    """Largest norm of a gradient; longer ones are shortened to it."""
    ema_decay: float = 0.999
    """Decay of the averaged parameters that samples are drawn from; grows to this in the first steps."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype of the network; parameters, times, levels and losses stay float32."""
    denoiser: nn.Module | None = None
    """Your own network, called as those above: noisy data (B, *shape), times (B,), labels (B,) or None with
    num_classes for none, train -> (B, *shape), or twice as many channels if it says two things of each."""
    optimizer: optax.GradientTransformation | None = None
    """Your own optimizer, in place of Adam."""


def build(cfg: Config, num_outputs: int = 1) -> nn.Module:
    """The network of a config: its own, or the one it names, with `num_outputs` numbers for each of x."""
    if cfg.denoiser is not None:
        return cfg.denoiser
    return {"unet": ImageUNet, "dit": ImageTransformer, "mlp": MLP}[cfg.network](cfg, num_outputs)


def num_labels(cfg: Config) -> int:
    """Rows of the class embedding: the classes and one for no class, or none at all."""
    return cfg.num_classes + 1 if cfg.conditional else 0


class ImageUNet(nn.Module):
    """`nn.unet.UNet` for images of any size: padded with zeros to one it takes, the result cropped.

    With `patch` p > 1 it sees squares of p x p pixels as one position of p^2 as many channels: 1 / p^2 of the
    work, at some cost in detail (Luhman & Luhman 2022).
    """

    cfg: Config
    num_outputs: int = 1

    @nn.compact
    def __call__(self, x: Array, t: Array, label: Array | None = None, train: bool = False) -> Array:
        cfg, (height, width, channels) = self.cfg, x.shape[1:]
        p, multiple = cfg.patch, cfg.patch * 2 ** (len(cfg.multipliers) - 1)
        x = jnp.pad(x, ((0, 0), *((0, -n % multiple) for n in (height, width)), (0, 0)))
        x = patches.to_patches(x, p)
        out = channels * self.num_outputs
        x = unet.UNet(
            p * p * out,
            width=cfg.width,
            multipliers=cfg.multipliers,
            num_blocks=cfg.num_blocks,
            attention_sizes=cfg.attention_sizes,
            num_heads=cfg.num_heads,
            num_groups=cfg.num_groups,
            num_labels=num_labels(cfg),
            dropout=cfg.dropout,
            dtype=cfg.dtype,
        )(x, t, label, train)
        return patches.from_patches(x, p)[:, :height, :width]


class ImageTransformer(nn.Module):
    """`nn.dit.DiT` of a config."""

    cfg: Config
    num_outputs: int = 1

    @nn.compact
    def __call__(self, x: Array, t: Array, label: Array | None = None, train: bool = False) -> Array:
        cfg = self.cfg
        return dit.DiT(
            x.shape[-1] * self.num_outputs,
            patch=cfg.patch,
            width=cfg.width,
            depth=cfg.depth,
            num_heads=cfg.num_heads,
            num_labels=num_labels(cfg),
            dropout=cfg.dropout,
            dtype=cfg.dtype,
        )(x, t, label, train)


class MLP(nn.Module):
    """Fully connected: x (B, *shape), times (B,), optional labels (B,) -> (B, *shape) float32, 0 at first."""

    cfg: Config
    num_outputs: int = 1

    @nn.compact
    def __call__(self, x: Array, t: Array, label: Array | None = None, train: bool = False) -> Array:
        cfg, shape = self.cfg, x.shape
        dense = lambda width: nn.Dense(width, dtype=cfg.dtype)
        embedding = embed.sinusoidal(t, 64)
        if num_labels(cfg):
            embedding = jnp.concatenate([embedding, nn.Embed(num_labels(cfg), 64)(label)], -1)
        h = x.reshape(shape[0], -1)
        for width in cfg.hidden:
            h = nn.silu(dense(width)(h) + dense(width)(embedding))
            h = nn.Dropout(cfg.dropout, deterministic=not train)(h)
        size = x[0].size * self.num_outputs
        h = nn.Dense(size, dtype=cfg.dtype, kernel_init=nn.initializers.zeros)(h)
        return jnp.float32(h).reshape(*shape[:-1], shape[-1] * self.num_outputs)


def labels(label: Array | int | None, n: int, cfg: Config) -> Any:
    """Labels (n,), or the one that stands for none; None for an unconditional model."""
    if not cfg.conditional:
        return None
    return jnp.broadcast_to(jnp.asarray(cfg.num_classes if label is None else label, jnp.int32), (n,))


def check(cfg: Config) -> None:
    """Raises ValueError for a shape the network of a config cannot take, and for labels there are none of."""
    if cfg.conditional and not cfg.num_classes:
        raise ValueError(
            "a conditional model needs labels: this data set has none, or num_classes is not set"
        )
    if cfg.denoiser is None and cfg.network != "mlp" and len(cfg.shape) != 3:
        name = {"unet": "U-Net", "dit": "DiT"}[cfg.network]
        raise ValueError(f"a {name} takes images (height, width, channels), got {cfg.shape}: use network mlp")


def optimizer(cfg: Config) -> optax.GradientTransformation:
    """The config's own optimizer, or Adam behind clipping, its step size warmed up and brought down again."""
    if cfg.optimizer is not None:
        return cfg.optimizer
    rate: Any = cfg.learning_rate
    if cfg.decay_steps:
        rate = optax.warmup_cosine_decay_schedule(0.0, rate, cfg.warmup_steps, cfg.decay_steps)
    elif cfg.warmup_steps:
        rate = optax.linear_schedule(0.0, rate, cfg.warmup_steps)
    return optax.chain(optax.clip_by_global_norm(cfg.gradient_clip), optax.adam(rate))


def average(ema: Any, params: Any, step: Array, decay: float) -> Any:
    """The averaged parameters after a step; the decay grows to its value in the first steps."""
    kept = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda old, new: kept * old + (1 - kept) * new, ema, params)
