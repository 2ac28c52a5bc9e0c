"""Small belief networks, and sums over all their states in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from jaxgen.belief.sigmoid_net import Generative, Params
from jaxgen.nn.sigmoid_layers import Layer
from tests.energy.exact import states


def random_params(sizes, scale=1.0, seed=0):
    """Both networks of layers of these sizes, the visible one first."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.float32(scale * rng.normal(size=shape))
    pairs = list(itertools.pairwise(sizes))
    down = tuple(Layer(draw(low, high), draw(low)) for low, high in pairs)
    up = tuple(Layer(draw(low, high), draw(high)) for low, high in pairs)
    return Params(Generative(down, draw(sizes[-1])), up)


def bits(x, logits):
    """log p(x) of bits, summed over the last axis."""
    return -np.logaddexp(0, np.where(x > 0.5, -1, 1) * logits).sum(-1)


def hidden(sizes):
    """All states of the hidden layers, a list of (2^n, n_l)."""
    return np.split(states(sum(sizes[1:])), np.cumsum(sizes[1:])[:-1], 1)


def log_joint(net, layers):
    """log p of states of all layers (..., n_l), v first."""
    net = jax.tree.map(lambda p: np.asarray(p, np.float64), net)
    below = zip(net.layers, itertools.pairwise(layers), strict=True)
    terms = [bits(low, high @ layer.weight.T + layer.bias) for layer, (low, high) in below]
    return sum(terms) + bits(layers[-1], net.prior)


def log_recognition(layers_up, layers):
    """log q of states of the hidden layers given v, v first."""
    up = zip(layers_up, itertools.pairwise(layers), strict=True)
    return sum(
        bits(high, low @ np.asarray(layer.weight, np.float64) + np.asarray(layer.bias, np.float64))
        for layer, (low, high) in up
    )


def joint_table(params, sizes, v):
    """log p(v, h) and log q(h | v) of each v (N, D) and all h, two of (N, 2^n)."""
    every = hidden(sizes)
    layers = [v[:, None], *(h[None] for h in every)]
    log_p = log_joint(params.generative, layers)
    return log_p, np.broadcast_to(log_recognition(params.recognition, layers), log_p.shape)


def log_prob(params, sizes, v):
    return scipy.special.logsumexp(joint_table(params, sizes, v)[0], 1)
