"""Small Boltzmann machines, and sums over all their states in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.energy.bipartite import Params


def random_params(num_visible, num_hidden, scale=0.7, seed=0):
    rng = np.random.default_rng(seed)
    shapes = (num_visible, num_hidden), (num_visible,), (num_hidden,)
    return Params(*(jnp.float32(scale * rng.normal(size=shape)) for shape in shapes))


def states(num_units):
    """All states of bits, (2^n, n)."""
    return np.array(list(itertools.product((0.0, 1.0), repeat=num_units)))


def minus_energy(params, v, h):
    """b'v + c'h + v'W h of all pairs of states v (N, V) and h (M, H), (N, M)."""
    weight, visible_bias, hidden_bias = (np.asarray(p, np.float64) for p in params)
    return (v @ visible_bias)[:, None] + h @ hidden_bias + v @ weight @ h.T


def joint(params, v=None):
    """p(v, h) of all states, or of given states v of the visible units."""
    num_visible, num_hidden = params.weight.shape
    v = states(num_visible) if v is None else v
    unnormalized = np.exp(minus_energy(params, v, states(num_hidden)))
    return unnormalized / unnormalized.sum()


def frequencies(v, every):
    """How often each of the rows `every` is among the rows v."""
    return (np.asarray(v)[:, None] == every).all(-1).mean(0)


def log_likelihood_gradient(params, v):
    """The gradient of mean log p(v) by all states: moments of the data minus those of the model."""
    num_visible, num_hidden = params.weight.shape
    h, every = states(num_hidden), states(num_visible)
    given = np.exp(minus_energy(params, v, h))
    data = given / given.sum(1, keepdims=True) / len(v)
    model = joint(params)
    moments = lambda p, v: Params(v.T @ p @ h, p.sum(1) @ v, p.sum(0) @ h)
    return jax.tree.map(np.subtract, moments(data, v), moments(model, every))
