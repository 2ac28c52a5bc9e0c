"""WaveNet, dilated causal convolutions over sound (van den Oord et al. 2016).

    p(x) = prod_t p(x_t | x_{t-R}, ..., x_{t-1}),

of samples in mu-law codes. Layer l has a convolution whose taps are its dilation apart, 1, 2, 4, ..., so that
the receptive field R doubles with every layer, and a gated unit, residual and skip connections:

    z = tanh(W_f * x + V_f h) sigmoid(W_g * x + V_g h),    x <- x + W_r z,    skip <- skip + W_s z,

where h is what the model is conditioned on: the label, the same for the whole sequence (global conditioning),
or a vector for every sample, `batch["context"]` (local conditioning). Each layer keeps the inputs that its
taps reach back to in a ring buffer, so that a sample takes a few products however long the field is (Le Paine
et al. 2016).

Departs from the paper: a linear layer and a convolution with as many taps as the others read the input;
biases are everywhere.
"""

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jaxgen.autoregressive import sequential
from jaxgen.autoregressive.sequential import (
    State,
    advance,
    begin,
    init,
    log_prob,
    loss,
    measure,
    sample,
    train_step,
)
from jaxgen.fields import NonNegativeInt, PositiveInt
from jaxgen.likelihoods import Likelihood, MuLaw, Symbols
from jaxgen.nn.conv import conv_general_dilated

__all__ = [
    "CausalConv",
    "Config",
    "State",
    "WaveNet",
    "advance",
    "begin",
    "init",
    "log_prob",
    "loss",
    "measure",
    "sample",
    "train_step",
]


class CausalConv(nn.Module):
    """Convolution (B, n, C) -> (B, n, features) whose output t sees t, t - dilation, t - 2 dilation, ...

    With a cache, a ring buffer of the inputs at the places before, it does the one at `place`.
    """

    features: int
    kernel_size: int = 2
    dilation: int = 1
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, cache: Array | None, place: Array | int) -> tuple[Array, Array | None]:
        shape = (self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        back = [self.dilation * i for i in reversed(range(self.kernel_size))]  # how far each tap reaches
        if cache is None:
            y = conv_general_dilated(
                x,
                kernel,
                window_strides=(1,),
                padding=[(back[0], 0)],
                rhs_dilation=(self.dilation,),
                dimension_numbers=("NWC", "WIO", "NWC"),
            )
            return y + bias, None
        taps = [x]
        if back[0]:
            at = lambda b: (place - b) % back[0]
            taps = [jax.lax.dynamic_slice_in_dim(cache, at(b), 1, 1) for b in back[:-1]] + taps
            cache = jax.lax.dynamic_update_slice_in_dim(cache, x.astype(cache.dtype), at(0), 1)
        return sum((tap @ weights for tap, weights in zip(taps, kernel, strict=True)), bias), cache


class WaveNet(nn.Module):
    """Layers of dilated convolutions with gated units. Contexts are (B, C), or (B, T, C) of every sample."""

    width: PositiveInt = 32
    """Channels of the residual connections, and of the gated units."""
    skip_width: PositiveInt = 64
    """Channels of the skip connections, and of the layer after them."""
    num_blocks: PositiveInt = 2
    """Times that the dilations begin again at 1."""
    num_layers: PositiveInt = 6
    """Layers of a block, with dilations 1, 2, 4, ..."""
    kernel_size: PositiveInt = 2
    """Taps of a convolution."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Compute dtype; by default that of the parameters."""
    num_outputs: PositiveInt | None = None
    """Numbers that it gives for a symbol; filled in by the model."""

    @property
    def dilations(self) -> tuple[int, ...]:
        """Those of all convolutions but the first."""
        return tuple(2**layer for layer in range(self.num_layers)) * self.num_blocks

    @property
    def receptive_field(self) -> int:
        """R, the symbols before it that an output depends on."""
        return self.kernel_size + (self.kernel_size - 1) * sum(self.dilations)

    @nn.compact
    def __call__(
        self, x: Array, *context: Array, train: bool = False, cache: Any = None, place: Array | int = 0
    ) -> tuple[Array, Any]:
        del train
        dense = lambda width, name: nn.Dense(width, dtype=self.dtype, name=name)
        conv = lambda width, dilation, name: CausalConv(
            width, self.kernel_size, dilation, self.dtype, name=name
        )
        old = cache if cache is not None else [None] * (1 + len(self.dilations))
        new, given = [], [_at(c, place, cache is not None) for c in context]
        before = jnp.pad(x[:, :-1], ((0, 0), (1, 0), (0, 0))) if cache is None else x * (place > 0)
        x, kept = conv(self.width, 1, "in")(dense(self.width, "embedding")(before), old[0], place)
        new.append(kept)
        units = []
        for index, dilation in enumerate(self.dilations):
            h, kept = conv(2 * self.width, dilation, f"conv_{index}")(x, old[1 + index], place)
            new.append(kept)
            for number, c in enumerate(given):
                h = h + dense(2 * self.width, f"context_{index}_{number}")(c)
            filtered, gate = jnp.split(h, 2, -1)
            units.append(jnp.tanh(filtered) * nn.sigmoid(gate))
            if index + 1 < len(self.dilations):
                x = x + dense(self.width, f"residual_{index}")(units[-1])
        # All skip connections are one product, of the units of all layers.
        skip = dense(self.skip_width, "skip")(jnp.concatenate(units, -1))
        h = dense(self.skip_width, "hidden")(nn.relu(skip))
        return dense(self.num_outputs or 1, "out")(nn.relu(h)), None if cache is None else tuple(new)

    def empty_cache(self, count: int, length: int, dtype: Any) -> tuple[Array, ...]:
        """Ring buffers of zeros, which the convolutions see before the beginning, too."""
        del length
        reach = [(self.kernel_size - 1) * dilation for dilation in (1, *self.dilations)]
        return tuple(jnp.zeros((count, steps, self.width), self.dtype or dtype) for steps in reach)


def _at(context: Array, place: Array | int, one: bool) -> Array:
    """A context as (B, 1 or n, C): the same for all places, or that of `place` if one is asked for."""
    if context.ndim == 2:
        return context[:, None]
    return jax.lax.dynamic_slice_in_dim(context, place, 1, 1) if one else context


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(sequential.Common):
    """Hyperparameters of WaveNet."""

    likelihood: MuLaw | Symbols | Likelihood = MuLaw()
    """p(x_t | x_1 ... x_{t-1}), of the mu-law codes of sound, of symbols, or of pixels in raster order."""
    network: WaveNet | nn.Module = WaveNet()
    """Network that gives the likelihood's parameters, as `sequential` says."""
    num_context: NonNegativeInt = 0
    """Length of the vectors that samples are given one by one, such as frames of a spectrogram repeated."""
