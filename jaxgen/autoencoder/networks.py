"""Encoders and decoders, fully connected or convolutional, of every model that learns a code.

An encoder maps x (B, *shape), and one-hot labels (B, num_classes) where a model is conditional, to (B,
num_outputs); a decoder maps codes, and the labels, to (B, *shape). The `num_outputs` of an encoder and the
`shape` of a decoder are filled in by the model. The widths and channels of a decoder are in its own order,
from the code to the data.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxgen.fields import PositiveInt
from jaxgen.nn import conv
from jaxgen.nn.variables import Variables

Activation = Literal["relu", "tanh"]


class DenseEncoder(nn.Module):
    """Fully connected layers."""

    widths: tuple[PositiveInt, ...] = (256, 256)
    """Widths of the hidden layers; without any the encoder is linear."""
    activation: Activation = "relu"
    """Nonlinearity of the hidden layers."""
    num_outputs: PositiveInt | None = None
    """Numbers that it gives for an example; filled in by the model."""
    dtype: str | None = None
    """Compute dtype; filled in by the model."""

    @nn.compact
    def __call__(self, x: Array, *label: Array) -> Array:
        x = hidden_layers(flat(x, *label), self)
        return dense(self.num_outputs or 1, self)(x)


class DenseDecoder(nn.Module):
    """Fully connected layers."""

    widths: tuple[PositiveInt, ...] = (256, 256)
    """Widths of the hidden layers, from the code on; without any the decoder is linear."""
    activation: Activation = "relu"
    """Nonlinearity of the hidden layers."""
    shape: tuple[PositiveInt, ...] | None = None
    """Shape of what it gives for an example; filled in by the model."""
    dtype: str | None = None
    """Compute dtype; filled in by the model."""

    @nn.compact
    def __call__(self, z: Array, *label: Array) -> Array:
        shape = self.shape or ()
        x = hidden_layers(flat(z, *label), self)
        return dense(math.prod(shape), self, name="out")(x).reshape(-1, *shape)


class ConvEncoder(nn.Module):
    """4x4 convolutions of stride 2 and a dense layer; labels are constant channels of the input."""

    channels: tuple[PositiveInt, ...] = (32, 64)
    """Channels of the convolutions, each of which halves height and width, rounding down."""
    activation: Activation = "relu"
    """Nonlinearity after the convolutions."""
    num_outputs: PositiveInt | None = None
    """Numbers that it gives for an example; filled in by the model."""
    dtype: str | None = None
    """Compute dtype; filled in by the model."""

    @nn.compact
    def __call__(self, x: Array, *label: Array) -> Array:
        sizes(x.shape[1:], len(self.channels))
        planes = [jnp.broadcast_to(y[:, None, None], (*x.shape[:3], y.shape[-1])) for y in label]
        x = halving_layers(jnp.concatenate([x, *planes], -1), self)
        return dense(self.num_outputs or 1, self)(flat(x))


class ConvDecoder(nn.Module):
    """A dense layer and 4x4 transposed convolutions of stride 2, through the sizes of a `ConvEncoder`."""

    channels: tuple[PositiveInt, ...] = (64, 32)
    """Channels that the transposed convolutions take; the last one gives the data."""
    activation: Activation = "relu"
    """Nonlinearity before each transposed convolution."""
    shape: tuple[PositiveInt, ...] | None = None
    """Shape of what it gives for an example; filled in by the model."""
    dtype: str | None = None
    """Compute dtype; filled in by the model."""

    @nn.compact
    def __call__(self, z: Array, *label: Array) -> Array:
        height, width = sizes(self.shape or (), len(self.channels))[-1]
        x = dense(height * width * self.channels[0], self)(flat(z, *label))
        x = activation(self)(x).reshape(-1, height, width, self.channels[0])
        return doubling_layers(x, self)


def sizes(shape: Sequence[int], times: int) -> list[tuple[int, int]]:
    """Height and width of an image of `shape`, and of what each of `times` convolutions leaves of it.

    Raises ValueError for what is no image, or is too small; it names a size that would do.
    """
    if times < 1:
        raise ValueError("convolutional networks need at least one entry in `channels`")
    if len(shape) != 3:
        raise ValueError(
            f"convolutions take (height, width, channels), got {tuple(shape)}: use dense networks"
        )
    smallest = 2**times
    if min(shape[:2]) < smallest:
        fitting = "x".join(str(max(n, smallest)) for n in shape[:2])
        raise ValueError(
            f"{times} convolutions of stride 2 need at least {smallest} pixels either way, got"
            f" {tuple(shape)}: {fitting} would fit, or fewer entries in `channels`"
        )
    found = [(shape[0], shape[1])]
    for _ in range(times):
        height, width = found[-1]
        found.append((conv.output_size(height, 4, 2, 1), conv.output_size(width, 4, 2, 1)))
    return found


# What networks are made of: called inside a module, whose fields they read.


def hidden_layers(x: Array, module: Any) -> Array:
    """Dense layers of the module's `widths`, each followed by its nonlinearity."""
    for width in module.widths:
        x = activation(module)(dense(width, module)(x))
    return x


def halving_layers(x: Array, module: Any) -> Array:
    """4x4 convolutions of stride 2 of the module's `channels`, each followed by its nonlinearity."""
    for channels in module.channels:
        x = conv.Conv(channels, (4, 4), (2, 2), padding=((1, 1), (1, 1)), dtype=module.dtype)(x)
        x = activation(module)(x)
    return x


def doubling_layers(x: Array, module: Any) -> Array:
    """Transposed convolutions from x, which has the first of the module's `channels`, to its `shape`."""
    larger = sizes(module.shape, len(module.channels))[-2::-1]
    for channels, size in zip(module.channels[1:], larger[:-1], strict=True):
        x = activation(module)(_doubled(channels, x, size, module))
    return _doubled(module.shape[-1], x, larger[-1], module, name="out")


def _doubled(features: int, x: Array, size: tuple[int, int], module: Any, name: str | None = None) -> Array:
    """A transposed convolution to a size whose half, rounded down, is that of x."""
    padding = [(1, 1 - (n - 2 * half)) for n, half in zip(size, x.shape[1:3], strict=True)]
    return conv.ConvTranspose(features, (4, 4), (2, 2), padding, dtype=module.dtype, name=name)(x)


def dense(width: int, module: Any, name: str | None = None) -> nn.Dense:
    """A dense layer in the module's dtype, initialised as Glorot & Bengio 2010."""
    return nn.Dense(width, dtype=module.dtype, kernel_init=nn.initializers.glorot_uniform(), name=name)


def activation(module: Any) -> Callable[[Array], Array]:
    """The module's nonlinearity."""
    return nn.tanh if module.activation == "tanh" else nn.relu


def flat(x: Array, *label: Array) -> Array:
    """x (B, ...) as (B, D), followed by labels (B, num_classes)."""
    return jnp.concatenate([x.reshape(x.shape[0], math.prod(x.shape[1:])), *label], -1)


def with_first_bias(params: Any, x: Array, first_bias: Callable[[Array], Array]) -> Any:
    """Parameters of a decoder whose layer "out" starts at `first_bias` of the mean of x (B, *shape).

    It has a bias for each position, as in dense layers, or one for all of them. Other networks are unchanged.
    """
    if isinstance(params, Variables):
        return params._replace(params=with_first_bias(params.params, x, first_bias))
    bias = params.get("out", {}).get("bias")
    for mean in (x.mean(0), x.mean(tuple(range(x.ndim - 1)))):
        value = first_bias(mean)
        if bias is not None and bias.size == value.size:
            return {**params, "out": {**params["out"], "bias": value.reshape(bias.shape).astype(bias.dtype)}}
    return params
