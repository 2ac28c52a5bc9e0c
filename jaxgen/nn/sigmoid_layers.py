"""Layers of binary units that are independent given the layer above or below.

A stack of layers h_0 = v, ..., h_L has weights W_l (n_l, n_{l+1}) between neighbours. Upwards it is a
recognition network, and downwards a generative one,

    q(h_{l+1} = 1 | h_l) = sigmoid(W_l'h_l + b_l),     p(h_l = 1 | h_{l+1}) = sigmoid(W_l h_{l+1} + b_l).

The states of a stack are a list, v first. Deep belief networks and sigmoid belief networks are made of these.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen import distributions


class Layer(NamedTuple):
    """Weights between two layers, and biases of the one that is generated."""

    weight: Array  # (n_l, n_{l+1})
    bias: Array  # (n_l,) downwards, (n_{l+1},) upwards


def field_above(layer: Layer, low: Array) -> Array:
    """The logits of the upper layer given the lower one (..., n_l), (..., n_{l+1})."""
    return low @ layer.weight + layer.bias


def field_below(layer: Layer, high: Array) -> Array:
    """The logits of the lower layer given the upper one (..., n_{l+1}), (..., n_l)."""
    return high @ layer.weight.T + layer.bias


def upwards(key: Array, layers: Sequence[Layer], v: Array) -> list[Array]:
    """States drawn from v (B, n_0) up to the highest layer, v first."""
    states = [v]
    for index, layer in enumerate(layers):
        mean = jax.nn.sigmoid(field_above(layer, states[-1]))
        states.append(distributions.bernoulli(jax.random.fold_in(key, index), mean).astype(v.dtype))
    return states


def downwards(key: Array, layers: Sequence[Layer], h: Array) -> list[Array]:
    """States drawn from the highest layer h (B, n_L) down to v, v first."""
    states = [h]
    for index, layer in reversed(list(enumerate(layers))):
        mean = jax.nn.sigmoid(field_below(layer, states[0]))
        states.insert(0, distributions.bernoulli(jax.random.fold_in(key, index), mean).astype(h.dtype))
    return states


def log_upwards(layers: Sequence[Layer], states: Sequence[Array]) -> Array:
    """log q(h_{l+1} | h_l) of each layer but the lowest, (L, B) nats."""
    pairs = zip(layers, itertools.pairwise(states), strict=True)
    terms = [distributions.bernoulli_log_prob(high, field_above(layer, low)) for layer, (low, high) in pairs]
    return jnp.stack(terms) if terms else jnp.zeros((0, len(states[0])))


def log_downwards(layers: Sequence[Layer], states: Sequence[Array]) -> Array:
    """log p(h_l | h_{l+1}) of each layer but the highest, (L, B) nats."""
    pairs = zip(layers, itertools.pairwise(states), strict=True)
    terms = [distributions.bernoulli_log_prob(low, field_below(layer, high)) for layer, (low, high) in pairs]
    return jnp.stack(terms) if terms else jnp.zeros((0, len(states[0])))


def means_above(layers: Sequence[Layer], v: Array) -> Array:
    """Means of the highest layer when every layer below has its means, (B, n_L)."""
    for layer in layers:
        v = jax.nn.sigmoid(field_above(layer, v))
    return v


def means_below(layers: Sequence[Layer], h: Array) -> Array:
    """Means of the lowest layer when every layer above has its means, (B, n_0)."""
    for layer in reversed(layers):
        h = jax.nn.sigmoid(field_below(layer, h))
    return h
