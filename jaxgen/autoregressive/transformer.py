"""Causal transformer over pixels, tokens or text (Radford et al. 2018; Chen et al. 2020).

    p(x) = prod_t p(x_t | x_1 ... x_{t-1}),

where blocks of self-attention (Vaswani et al. 2017), in which a position sees itself and those before it,
read the sequence moved on by one. Positions are told apart by rotating queries and keys (Su et al. 2021), so
that attention depends on distances. Sampling keeps the keys and values of all positions before, and takes the
work of one position for each symbol.

Departs from the papers: normalization comes before each layer, as in GPT-2; pixels may be read as numbers on
[-1, 1] or as one-hot levels, as the likelihood has it.
"""

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen import values
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
from jaxgen.fields import Decay, PositiveInt
from jaxgen.likelihoods import Bernoulli, Categorical, Likelihood, LogisticMixture, Symbols
from jaxgen.nn import causal

__all__ = [
    "Config",
    "State",
    "Transformer",
    "advance",
    "begin",
    "from_data",
    "init",
    "log_prob",
    "loss",
    "measure",
    "sample",
    "train_step",
]


class Transformer(nn.Module):
    """`nn.causal.Transformer` of the sequence moved on by one: outputs t by the symbols before t."""

    width: PositiveInt = 128
    """Channels of a position."""
    depth: PositiveInt = 4
    """Blocks of attention and MLP."""
    num_heads: PositiveInt = 4
    """Heads of the attention; they must divide the width."""
    activation: causal.Activation = "gelu"
    """Nonlinearity of the MLP."""
    positions: causal.Positions = "rotary"
    """Rotate queries and keys by their place, or add a learned vector for each place."""
    dropout: Decay = 0.0
    """Share of the features dropped in training after every attention and MLP."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Compute dtype; by default that of the parameters."""
    shape: tuple[PositiveInt, ...] | None = None
    """Shape of an example; filled in from the Config."""
    num_outputs: PositiveInt | None = None
    """Numbers that it gives for a symbol; filled in by the model."""

    @nn.compact
    def __call__(
        self, x: Array, *context: Array, train: bool = False, cache: Any = None, place: Array | int = 0
    ) -> tuple[Array, Any]:
        # A further number marks the place before the first symbol. Of zeros alone all layers would give zeros
        # there, and each normalization of zeros multiplies the gradient by a thousand.
        if cache is None:
            before = jnp.pad(x[:, :-1], ((0, 0), (1, 0), (0, 0)))
            start = jnp.zeros_like(before[..., :1]).at[:, 0].set(1)
        else:
            before, start = x * (place > 0), jnp.full_like(x[..., :1], place == 0)
        network = causal.Transformer(
            width=self.width,
            depth=self.depth,
            num_heads=self.num_heads,
            activation=self.activation,
            positions=self.positions,
            dropout=self.dropout,
            dtype=self.dtype,
            num_outputs=self.num_outputs,
            name="transformer",
        )
        before = jnp.concatenate([before, start], -1)
        return network(before, *context, train=train, cache=cache, start=place)

    def empty_cache(self, count: int, length: int, dtype: Any) -> causal.Cache:
        """No keys and values yet, of `count` sequences of `length` symbols."""
        network = causal.Transformer(self.width, self.depth, self.num_heads, dtype=self.dtype, parent=None)
        return network.empty_cache(count, length, dtype)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(sequential.Common):
    """Hyperparameters of the transformer."""

    likelihood: Bernoulli | Categorical | LogisticMixture | Symbols | Likelihood = Bernoulli()
    """p(x_t | x_1 ... x_{t-1}), of bits drawn from grey values, of the levels of pixels, or of symbols."""
    network: Transformer | nn.Module = Transformer()
    """Network that gives the likelihood's parameters, as `sequential` says."""


def from_data(dataset: Any, cfg: Config) -> Config:
    """`cfg` with the number of symbols of tokens in `dataset`, if they are its data and it is not set."""
    if getattr(cfg.likelihood, "num_symbols", 0) is not None:
        return cfg
    likelihood = values.filled(cfg.likelihood, num_symbols=int(np.max(dataset[:]["tokens"])) + 1)
    return dataclasses.replace(cfg, likelihood=likelihood)
