"""Helmholtz machines: the gradients of both phases against sums over all states, and short runs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgen
from jaxgen import data, shard
from jaxgen.belief import helmholtz, sigmoid_net
from jaxgen.belief.helmholtz import Reweighted, WakeSleep
from jaxgen.energy.bipartite import Bits
from jaxgen.nn import sigmoid_layers
from jaxgen.types import from_data
from jaxgen.values import Adam
from tests.belief import bars, exact

SMALL = helmholtz.Config(widths=(12, 8))
TRAINED = helmholtz.Config(widths=(32, 16))
RANDOM = (dataclasses.replace(SMALL, objective=Reweighted(3)),)
SIZES = (4, 3, 2)
TINY = helmholtz.Config(shape=(2, 2, 1), widths=SIZES[1:])
PARAMS = exact.random_params(SIZES)
V = exact.states(4)
X = jnp.float32(2 * V - 1).reshape(-1, 2, 2, 1)
ROWS = np.array([3, 6, 12, 13])


def gradient(objective, rows, key=0):
    cfg = dataclasses.replace(TINY, objective=objective)
    loss = lambda params: helmholtz.loss(params, {"image": X[rows]}, jax.random.key(key), cfg)[0]
    return jax.jit(jax.grad(loss))(PARAMS)


def tables(params, rows):
    """log p(v, h) and log q(h | v) of some v and all h, (N, 2^n), which can be differentiated."""
    every = [jnp.float32(h) for h in exact.hidden(SIZES)]
    count = len(every[0])
    states = [jnp.repeat(jnp.float32(V[rows]), count, 0), *(jnp.tile(h, (len(rows), 1)) for h in every)]
    log_p = sigmoid_net.log_joint(params.generative, states)
    log_q = sigmoid_layers.log_upwards(params.recognition, states).sum(0)
    return log_p.reshape(len(rows), count), log_q.reshape(len(rows), count)


def close(found, expected, atol):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), found, expected)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected)) > 5 * atol


def test_wake_teaches_the_generative_network_by_draws_of_q():
    found = gradient(WakeSleep(), np.repeat(ROWS, 5000)).generative
    q = jnp.exp(tables(PARAMS, ROWS)[1])
    expected = jax.grad(lambda params: -(q * tables(params, ROWS)[0]).sum(1).mean())(PARAMS).generative
    close(found, expected, 0.015)


@pytest.mark.slow
def test_sleep_teaches_the_recognition_network_by_dreams():
    found = gradient(WakeSleep(), np.repeat(ROWS, 5000)).recognition
    every = np.arange(16)
    p = jnp.exp(tables(PARAMS, every)[0])
    expected = jax.grad(lambda params: -(p * tables(params, every)[1]).sum())(PARAMS).recognition
    close(found, expected, 0.015)


def test_many_weighted_draws_give_the_gradient_of_the_likelihood():
    """And teach q by the posterior, if dreams do not."""
    found = gradient(Reweighted(1000, sleep=0.0), np.repeat(ROWS, 50))
    log_p, _ = tables(PARAMS, ROWS)
    posterior = jax.nn.softmax(log_p, 1)
    nll = lambda params: -jax.nn.logsumexp(tables(params, ROWS)[0], 1).mean()
    taught = lambda params: -(posterior * tables(params, ROWS)[1]).sum(1).mean()
    close(found.generative, jax.grad(nll)(PARAMS).generative, 0.04)
    close(found.recognition, jax.grad(taught)(PARAMS).recognition, 0.04)


def test_one_weighted_draw_is_wake_sleep():
    one, two = gradient(WakeSleep(), ROWS), gradient(Reweighted(1, wake=0.0), ROWS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, two)


def test_what_teaches_q_is_weighted():
    terms = [gradient(Reweighted(4, *weights), ROWS).recognition for weights in ((1, 0), (0, 1), (2, 3))]
    jax.tree.map(lambda a, b, c: np.testing.assert_allclose(2 * a + 3 * b, c, atol=1e-5), *terms)
    for make, match in (
        (lambda: Reweighted(0), "num_samples must be at least 1"),
        (lambda: Reweighted(wake=0.0, sleep=0.0), "positive weight"),
        (lambda: Reweighted(wake=-1.0), "wake must be at least 0"),
    ):
        with pytest.raises(ValueError, match=match):
            make()


def test_bounds_and_codes_of_a_state():
    state = helmholtz.init(jax.random.key(0), TINY)._replace(params=PARAMS)
    np.testing.assert_allclose(
        helmholtz.exact_log_prob(state, X, TINY), exact.log_prob(PARAMS, SIZES, V), atol=1e-5
    )
    key = jax.random.key(2)
    np.testing.assert_array_equal(
        helmholtz.elbo(key, state, X, TINY), helmholtz.iwae(key, state, X, TINY, num_samples=1)
    )
    h = jnp.float32(V)
    for layer in PARAMS.recognition:
        h = jax.nn.sigmoid(h @ layer.weight + layer.bias)
    np.testing.assert_allclose(helmholtz.encode(state, X, TINY), h, atol=1e-6)


def fit(cfg, train, steps):
    options = {"mesh": shard.mesh(1), "sample_every": 0, "save_every": 0}
    return jaxgen.fit(helmholtz, cfg, train, steps=steps, batch_size=64, key=jax.random.key(0), **options)


@pytest.mark.slow
def test_bars_are_found():
    """Likelihood by enumeration, where the truth has 3.38 nats and independent pixels have 11.1."""
    cfg = helmholtz.Config(
        shape=(4, 4, 1), levels=2, widths=(8, 1), objective=Reweighted(10), optimizer=Adam(5e-3)
    )
    state = fit(cfg, bars.one_way(5000, 0), 6000)
    x = jnp.asarray(bars.one_way(1000, 1)[:]["image"])
    nll = -float(helmholtz.exact_log_prob(state, x, cfg).mean())
    assert nll < 4.3


@pytest.mark.slow
@pytest.mark.parametrize("objective", [WakeSleep(), Reweighted(5)], ids=["wake-sleep", "reweighted"])
def test_it_learns_digits(objective):
    """Likelihood by enumeration: independent pixels have 25.1 nats, wake-sleep 19.8, reweighted 19.1."""
    cfg = helmholtz.Config(widths=(14,), visible=Bits("threshold"), objective=objective, optimizer=Adam(3e-3))
    train, test = data.load("digits"), data.load("digits", "test")
    state = fit(from_data(helmholtz, train, cfg), train, 5000)
    x = jnp.asarray(test[:]["image"])
    nll = -float(helmholtz.exact_log_prob(state, x, cfg).mean())
    bound = -float(helmholtz.elbo(jax.random.key(0), state, x, cfg).mean())
    assert nll < 20.5
    assert nll < bound < nll + 5
