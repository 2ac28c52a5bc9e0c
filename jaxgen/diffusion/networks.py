"""What all models that remove noise share: their networks, and the fields of their Configs.

A network is called with noisy data (B, *shape), times (B,), labels (B,) or None, num_classes standing for
none, and `train`, whether it is being trained. It returns (B, *shape), or twice as many channels if it says
two things of each. Any Linen module that does this may stand for those here. Its fields `num_outputs`,
`num_labels` and `dtype`, if it has them and they are None, are filled in: numbers for each of x, rows of the
class embedding, with one for no class, and the compute dtype.
"""

import dataclasses
import math
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxgen import labels, values
from jaxgen.fields import Decay, NonNegativeInt, PositiveInt
from jaxgen.nn import dit, embed, patches, unet, variables


class UNet(nn.Module):
    """`nn.unet.UNet` for images of any size: padded with zeros to one it takes, the result cropped.

    With `patch` p > 1 it sees squares of p x p pixels as one position of p^2 as many channels: 1 / p^2 of the
    work, at some cost in detail (Luhman & Luhman 2022).
    """

    width: PositiveInt = 32
    """Channels at full size."""
    multipliers: tuple[PositiveInt, ...] = (1, 2)
    """Times width, the channels at full size, at half, ...; odd sizes are padded inside."""
    num_blocks: PositiveInt = 1
    """Residual blocks at each size on the way down, one more on the way up."""
    attention_sizes: tuple[PositiveInt, ...] = ()
    """Heights of the feature maps with self-attention; the smallest map has it once anyway."""
    num_heads: PositiveInt = 1
    """Heads of the attention."""
    num_groups: PositiveInt = 8
    """Groups of the normalization."""
    patch: PositiveInt = 1
    """Side of the squares of pixels that are taken as one position."""
    dropout: Decay = 0.0
    """Share of the hidden features dropped in training."""
    num_outputs: PositiveInt | None = None
    """Numbers for each of x; filled in by the model."""
    num_labels: NonNegativeInt | None = None
    """Rows of the class embedding, 0 for none; filled in by the model."""
    dtype: str | None = None
    """Compute dtype; filled in by the model."""

    @nn.compact
    def __call__(self, x: Array, t: Array, label: Array | None = None, train: bool = False) -> Array:
        _check_image("U-Net", x)
        height, width, channels = x.shape[1:]
        p, multiple = self.patch, self.patch * 2 ** (len(self.multipliers) - 1)
        x = jnp.pad(x, ((0, 0), *((0, -n % multiple) for n in (height, width)), (0, 0)))
        x = patches.to_patches(x, p)
        x = unet.UNet(
            p * p * channels * (self.num_outputs or 1),
            width=self.width,
            multipliers=self.multipliers,
            num_blocks=self.num_blocks,
            attention_sizes=self.attention_sizes,
            num_heads=self.num_heads,
            num_groups=self.num_groups,
            num_labels=self.num_labels or 0,
            dropout=self.dropout,
            dtype=self.dtype,
        )(x, t, label, train)
        return patches.from_patches(x, p)[:, :height, :width]


class Transformer(nn.Module):
    """The diffusion transformer, `nn.dit.DiT`, for images."""

    patch: PositiveInt = 1
    """Side of the squares of pixels that are tokens."""
    width: PositiveInt = 32
    """Channels of a token."""
    depth: PositiveInt = 6
    """Blocks of attention and a fully connected network."""
    num_heads: PositiveInt = 1
    """Heads of the attention."""
    dropout: Decay = 0.0
    """Share of the hidden features dropped in training."""
    num_outputs: PositiveInt | None = None
    """Numbers for each of x; filled in by the model."""
    num_labels: NonNegativeInt | None = None
    """Rows of the class embedding, 0 for none; filled in by the model."""
    dtype: str | None = None
    """Compute dtype; filled in by the model."""

    @nn.compact
    def __call__(self, x: Array, t: Array, label: Array | None = None, train: bool = False) -> Array:
        _check_image("DiT", x)
        return dit.DiT(
            x.shape[-1] * (self.num_outputs or 1),
            patch=self.patch,
            width=self.width,
            depth=self.depth,
            num_heads=self.num_heads,
            num_labels=self.num_labels or 0,
            dropout=self.dropout,
            dtype=self.dtype,
        )(x, t, label, train)


class MLP(nn.Module):
    """Fully connected, for data of any shape; 0 at first."""

    widths: tuple[PositiveInt, ...] = (128, 128, 128)
    """Widths of the hidden layers."""
    dropout: Decay = 0.0
    """Share of the hidden features dropped in training."""
    num_outputs: PositiveInt | None = None
    """Numbers for each of x; filled in by the model."""
    num_labels: NonNegativeInt | None = None
    """Rows of the class embedding, 0 for none; filled in by the model."""
    dtype: str | None = None
    """Compute dtype; filled in by the model."""

    @nn.compact
    def __call__(self, x: Array, t: Array, label: Array | None = None, train: bool = False) -> Array:
        shape, num_outputs = x.shape, self.num_outputs or 1
        dense = lambda width: nn.Dense(width, dtype=self.dtype)
        embedding = embed.sinusoidal(t, 64)
        if self.num_labels:
            embedding = jnp.concatenate([embedding, nn.Embed(self.num_labels, 64)(label)], -1)
        h = x.reshape(shape[0], math.prod(shape[1:]))
        for width in self.widths:
            h = nn.silu(dense(width)(h) + dense(width)(embedding))
            h = nn.Dropout(self.dropout, deterministic=not train)(h)
        h = nn.Dense(math.prod(shape[1:]) * num_outputs, dtype=self.dtype, kernel_init=nn.initializers.zeros)(
            h
        )
        return jnp.float32(h).reshape(*shape[:-1], shape[-1] * num_outputs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(values.Value):
    """What the Configs of all diffusion models have: data, network, optimizer, average."""

    shape: tuple[PositiveInt, ...] = (8, 8, 1)
    """Shape of one example."""
    num_classes: NonNegativeInt = 0
    """Number of labels of the data; 0 if they have none."""
    conditional: bool = False
    """Give the label to the network."""
    network: UNet | Transformer | MLP | nn.Module = UNet()
    """The network, a U-Net or a transformer for images, or fully connected."""
    optimizer: values.Optimizer = values.Adam(1e-3, gradient_clip=1.0)
    """The optimizer."""
    average: values.Average = values.Average(0.999)
    """The average of the parameters that samples are drawn from."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype of the network; parameters, times, levels and losses stay float32."""


def of(cfg: Any, num_outputs: int = 1) -> nn.Module:
    """The network of a Config, with `num_outputs` numbers for each of x."""
    num_labels = cfg.num_classes + 1 if cfg.conditional else 0
    return values.filled(cfg.network, num_outputs=num_outputs, num_labels=num_labels, dtype=cfg.dtype)


def init(key: Array, cfg: Any, num_outputs: int = 1, time: Any = jnp.float32) -> Any:
    """The variables of a fresh network, for times of the dtype `time`.

    Raises ValueError for a shape that the network cannot take, and for a conditional model of data without
    labels.
    """
    labels.check_conditional(cfg)
    label = jnp.zeros(1, jnp.int32) if cfg.conditional else None
    inputs = jnp.zeros((1, *cfg.shape)), jnp.zeros(1, time), label
    return variables.init(of(cfg, num_outputs), key, *inputs)


def apply(
    params: Any,
    x: Array,
    t: Array,
    label: Array | None,
    cfg: Any,
    dropout_key: Any = None,
    num_outputs: int = 1,
) -> tuple[Array, Any]:
    """What the network says of x (B, *shape), at least float32, and its variables afterwards.

    With a key it is being trained, and leaves other statistics.
    """
    network = of(cfg, num_outputs)
    if dropout_key is None:
        output, after = variables.apply(network, params, x, t, label), params
    else:
        output, after = variables.train(network, params, dropout_key, x, t, label)
    return output.astype(jnp.promote_types(output.dtype, jnp.float32)), after


def _check_image(name: str, x: Array) -> None:
    if x.ndim != 4:
        raise ValueError(
            f"a {name} takes images (height, width, channels), got {x.shape[1:]}: use network mlp"
        )
