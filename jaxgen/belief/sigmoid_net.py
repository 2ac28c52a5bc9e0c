"""Sigmoid belief networks with a recognition network: what all models of this folder are made of.

Binary units in layers h_0 = v, h_1, ..., h_L generate each other downwards, and a recognition network goes
upwards in place of the posterior,

    p(v, h) = p(h_L) prod_l p(h_l | h_{l+1}),     q(h | v) = prod_l q(h_{l+1} | h_l),

where every factor is one of independent bits, see `nn.sigmoid_layers`.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen import distributions, keys
from jaxgen.energy.bipartite import MOST_ENUMERATED, Bits, all_states, flat
from jaxgen.nn import sigmoid_layers
from jaxgen.nn.sigmoid_layers import Layer
from jaxgen.types import Batch, observed


class NetConfig(Protocol):
    """What the Config of a sigmoid belief network has."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example, which is flattened to D bits."""

    @property
    def levels(self) -> int:
        """Values that a pixel of the data has."""

    @property
    def widths(self) -> tuple[int, ...]:
        """Units of the hidden layers, the lowest first."""

    @property
    def visible(self) -> Bits:
        """How pixels become bits."""


class Generative(NamedTuple):
    """p(v, h): layers downwards, and the logits of the highest layer."""

    layers: tuple[Layer, ...]
    prior: Array  # (n_L,)


class Params(NamedTuple):
    """p(v, h) and q(h | v)."""

    generative: Generative
    recognition: tuple[Layer, ...]


def check(cfg: NetConfig) -> None:
    """Raises ValueError for no hidden layer, and for data that are no pictures."""
    cfg.visible.check(cfg.levels)
    if not cfg.widths:
        raise ValueError("a belief network has 1 hidden layer or more, not widths=()")


def init(key: Array, cfg: NetConfig, batch: Batch | None = None) -> Params:
    """Weights uniform in +-sqrt(6 / (n_l + n_{l+1})) (Glorot & Bengio 2010) and biases 0; `batch`, if given,
    sets those of the visible units to its mean.

    Raises ValueError as `check` does.
    """
    check(cfg)
    down_key, up_key, data_key = keys.named(key, "generative", "recognition", "data")
    pairs = list(itertools.pairwise((math.prod(cfg.shape), *cfg.widths)))
    down = [Layer(_glorot(jax.random.fold_in(down_key, i), p), jnp.zeros(p[0])) for i, p in enumerate(pairs)]
    up = [Layer(_glorot(jax.random.fold_in(up_key, i), p), jnp.zeros(p[1])) for i, p in enumerate(pairs)]
    if batch is not None:
        bias = cfg.visible.first_bias(cfg.visible.units(data_key, flat(observed(batch))))
        down[0] = down[0]._replace(bias=bias)
    return Params(Generative(tuple(down), jnp.zeros(cfg.widths[-1])), tuple(up))


def _glorot(key: Array, shape: tuple[int, int]) -> Array:
    limit = math.sqrt(6 / sum(shape))
    return jax.random.uniform(key, shape, minval=-limit, maxval=limit)


def log_terms(net: Generative, states: Sequence[Array]) -> Array:
    """log p(h_l | h_{l+1}) of each layer, the lowest first, and log p(h_L) last, (L + 1, B) nats."""
    prior = distributions.bernoulli_log_prob(states[-1], jnp.broadcast_to(net.prior, states[-1].shape))
    return jnp.concatenate([sigmoid_layers.log_downwards(net.layers, states), prior[None]])


def log_joint(net: Generative, states: Sequence[Array]) -> Array:
    """log p(v, h) of states of all layers, v first, (B,) nats."""
    return log_terms(net, states).sum(0)


def dream(key: Array, net: Generative, n: int) -> list[Array]:
    """n draws of the states of all layers, v first."""
    top_key, down_key = keys.named(key, "highest layer", "downwards")
    mean = jnp.broadcast_to(jax.nn.sigmoid(net.prior), (n, len(net.prior)))
    h = distributions.bernoulli(top_key, mean).astype(net.prior.dtype)
    return sigmoid_layers.downwards(down_key, net.layers, h)


def log_prob(net: Generative, v: Array) -> Array:
    """log p(v) of v (B, D) by the sum over all states of the hidden layers, (B,) nats.

    Raises ValueError for more than `MOST_ENUMERATED` hidden units.
    """
    widths = [layer.weight.shape[1] for layer in net.layers]
    if sum(widths) > MOST_ENUMERATED:
        raise ValueError(f"a sum over 2^{sum(widths)} states takes too long: use a bound")
    every = jnp.asarray(all_states(sum(widths)), v.dtype)
    hidden = jnp.split(every, list(itertools.accumulate(widths[:-1])), 1)
    log_h = log_joint(Generative(net.layers[1:], net.prior), hidden)
    fields = sigmoid_layers.field_below(net.layers[0], hidden[0])
    log_v = lambda v: distributions.bernoulli_log_prob(jnp.broadcast_to(v, fields.shape), fields)
    return jax.lax.map(lambda v: jax.nn.logsumexp(log_h + log_v(v)), v)


def elbo(key: Array, params: Params, v: Array, num_samples: int = 1) -> Array:
    """log 1/K sum_k p(v, h_k) / q(h_k | v) with K draws of q, (B,) nats: a bound on log p(v) in mean."""

    def propose(key):
        states = sigmoid_layers.upwards(key, params.recognition, v)
        return states, sigmoid_layers.log_upwards(params.recognition, states).sum(0)

    joint = lambda states: log_joint(params.generative, states)
    return distributions.importance_weighted_bound(key, propose, joint, num_samples)


def sample(key: Array, net: Generative, n: int, cfg: NetConfig) -> Array:
    """n draws, means of pixels given the lowest hidden layer, (n, *shape)."""
    return pixels(net, dream(key, net, n)[1], cfg)


def pixels(net: Generative, h: Array, cfg: NetConfig) -> Array:
    """E[x | h_1] of states or means of the lowest hidden layer, (B, *shape)."""
    return cfg.visible.data(sigmoid_layers.means_below(net.layers[:1], h)).reshape(-1, *cfg.shape)


def reconstruct(params: Params, x: Array, cfg: NetConfig) -> Array:
    """x by means upwards and downwards again, (B, *shape)."""
    h = sigmoid_layers.means_above(params.recognition, cfg.visible.inputs(flat(x)))
    return pixels(params.generative, sigmoid_layers.means_below(params.generative.layers[1:], h), cfg)


def bits(key: Array | None, x: Any, cfg: NetConfig) -> Array:
    """States of the visible units by data x (B, *shape), (B, D)."""
    return cfg.visible.units(key, flat(x))
