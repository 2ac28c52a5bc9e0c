"""Sigmoid belief networks by Gibbs sampling: posteriors, gradients and annealing against enumeration."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgen
from jaxgen import data, shard
from jaxgen.belief import sigmoid_belief_net, sigmoid_net
from jaxgen.energy.bipartite import Bits
from jaxgen.types import from_data
from jaxgen.values import SGD, Adam, Linear
from tests.belief import bars, exact
from tests.energy.exact import frequencies

SMALL = sigmoid_belief_net.Config(widths=(12, 8), num_sweeps=2)
TRAINED = sigmoid_belief_net.Config(widths=(32,), num_sweeps=3)
FURTHER = (dataclasses.replace(SMALL, weight_decay=0.1),)
SIZES = (4, 3, 2)
TINY = sigmoid_belief_net.Config(shape=(2, 2, 1), widths=SIZES[1:], num_sweeps=40)
PARAMS = exact.random_params(SIZES)
NET = PARAMS.generative
V = exact.states(4)
X = jnp.float32(2 * V - 1).reshape(-1, 2, 2, 1)
STATE = sigmoid_belief_net.init(jax.random.key(0), TINY)._replace(params=NET)


@pytest.mark.parametrize("weight", [1.0, 0.5, 0.0])
def test_sweeps_reach_the_posterior(weight):
    """Frequencies of all hidden states given one picture, with p(v | h) to a power."""
    v = V[6]
    every = exact.hidden(SIZES)
    log_p = exact.log_joint(NET, [v, *every])
    first = NET.layers[0]
    given = exact.bits(v, every[0] @ np.asarray(first.weight).T + np.asarray(first.bias))
    p = np.exp(log_p + (weight - 1) * given)
    many = jnp.tile(jnp.float32(v), (20_000, 1))
    draw = jax.jit(lambda key: sigmoid_belief_net.posterior(key, NET, many, 40, weight=weight))
    _, *found = draw(jax.random.key(0))
    np.testing.assert_allclose(
        frequencies(np.concatenate(found, 1), np.concatenate(every, 1)), p / p.sum(), atol=0.012
    )


def test_sweeps_start_where_they_are_told_to():
    start = [jnp.float32(V), jnp.ones((16, 3)), jnp.zeros((16, 2))]
    found = sigmoid_belief_net.posterior(jax.random.key(0), NET, start[0], 0, start)
    for a, b in zip(found, start, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_gradient_is_that_of_the_likelihood():
    rows = np.repeat([3, 6, 12, 13], 5000)
    grads = jax.jit(
        jax.grad(lambda net: sigmoid_belief_net.loss(net, {"image": X[rows]}, jax.random.key(0), TINY)[0])
    )(NET)
    nll = lambda net: -sigmoid_net.log_prob(net, jnp.float32(V[[3, 6, 12, 13]])).mean()
    expected = jax.grad(nll)(NET)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=0.015), grads, expected)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected)) > 0.2


@pytest.mark.slow
def test_annealing_gives_the_likelihood():
    """Its exponential has the right mean at any number of temperatures, and its mean rises with it."""
    rows = np.repeat([3, 6, 12], 4000)
    expected = exact.log_prob(PARAMS, SIZES, V[[3, 6, 12]])
    means = []
    for count in (1, 10, 60):
        run = jax.jit(lambda key, k=count: sigmoid_belief_net.elbo(key, STATE, X[rows], TINY, k))
        draws = np.asarray(run(jax.random.key(1)), np.float64).reshape(3, -1)
        weights = np.exp(draws - expected[:, None])
        error = 5 * weights.std(1) / np.sqrt(weights.shape[1])
        assert (np.abs(weights.mean(1) - 1) < error).all()
        means.append(draws.mean(1))
    assert (means[0] < means[1]).all()
    assert (means[1] < means[2]).all()
    assert (means[2] < expected).all()
    np.testing.assert_allclose(means[2], expected, atol=0.08)
    with pytest.raises(ValueError, match="num_temperatures must be 1 or more"):
        sigmoid_belief_net.elbo(jax.random.key(0), STATE, X, TINY, 0)


def test_weight_decay_is_half_the_squares():
    value = lambda decay: sigmoid_belief_net.loss(
        NET, {"image": X}, jax.random.key(0), dataclasses.replace(TINY, weight_decay=decay)
    )[0]
    expected = 0.5 * sum((np.asarray(layer.weight) ** 2).sum() for layer in NET.layers)
    assert float(value(1.0) - value(0.0)) == pytest.approx(expected, rel=1e-4)


def test_codes_are_states_of_the_lowest_hidden_layer():
    h = sigmoid_belief_net.encode(STATE, X, TINY)
    assert h.shape == (16, 3)
    assert set(np.unique(h)) <= {0, 1}
    np.testing.assert_array_equal(
        sigmoid_belief_net.reconstruct(STATE, X, TINY), sigmoid_net.pixels(NET, h, TINY)
    )


def test_no_sweep_is_refused():
    with pytest.raises(ValueError, match="num_sweeps must be at least 1"):
        sigmoid_belief_net.init(jax.random.key(0), dataclasses.replace(TINY, num_sweeps=0))
    with pytest.raises(ValueError, match="num_sweeps must not be negative"):
        sigmoid_belief_net.encode(STATE, X, TINY, num_sweeps=-1)


def fit(cfg, train, steps):
    options = {"mesh": shard.mesh(1), "sample_every": 0, "save_every": 0}
    state = jaxgen.fit(
        sigmoid_belief_net, cfg, train, steps=steps, batch_size=64, key=jax.random.key(0), **options
    )
    return state


@pytest.mark.slow
def test_bars_are_found():
    """Likelihood by enumeration, where the truth has 4.48 nats and independent pixels have 11.0."""
    cfg = sigmoid_belief_net.Config(
        shape=(4, 4, 1),
        levels=2,
        widths=(8,),
        num_sweeps=20,
        optimizer=Adam(0.01, schedule=Linear(6000)),
    )
    state = fit(cfg, bars.both_ways(5000, 0), 6000)
    x = jnp.asarray(bars.both_ways(2000, 1)[:]["image"])
    nll = -float(sigmoid_belief_net.exact_log_prob(state, x, cfg).mean())
    assert nll < 6.0


@pytest.mark.slow
def test_it_learns_digits():
    """Likelihood by enumeration: independent pixels have 25.1 nats, one seed gave 18.9."""
    cfg = sigmoid_belief_net.Config(
        widths=(14,), visible=Bits("threshold"), num_sweeps=5, optimizer=SGD(0.1, momentum=0.5)
    )
    train, test = data.load("digits"), data.load("digits", "test")
    state = fit(from_data(sigmoid_belief_net, train, cfg), train, 5000)
    nll = -float(sigmoid_belief_net.exact_log_prob(state, jnp.asarray(test[:]["image"]), cfg).mean())
    assert nll < 19.6
