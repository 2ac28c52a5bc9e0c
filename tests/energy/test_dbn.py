"""Deep belief networks: densities and bounds against sums over all states, and the step of each part."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from jaxgen.energy import dbn
from jaxgen.values import SGD
from tests.energy import exact

SMALL = dbn.Config(widths=(12, 8), num_steps=1)
TRAINED = dbn.Config(widths=(48, 64), num_steps=3, optimizer=SGD(0.05, momentum=0.9))
RANDOM = (dataclasses.replace(SMALL, widths=(8, 6, 8), conditional=True, num_classes=10, weight_decay=0.1),)
TINY = dbn.Config(shape=(2, 2, 1), widths=(3, 4), num_steps=2)
DEEP = dataclasses.replace(TINY, widths=(3, 2, 3))
LABELS = dataclasses.replace(TINY, conditional=True, num_classes=2)
V = exact.states(4)
X = jnp.float32(2 * V - 1).reshape(-1, 2, 2, 1)
BOTH = pytest.mark.parametrize("cfg", [TINY, DEEP], ids=["two", "three"])


def machines_of(cfg, scale=0.8):
    more = [0] * (len(cfg.widths) - 1) + [cfg.num_classes if cfg.conditional else 0]
    sizes = zip(itertools.pairwise(cfg.sizes), more, strict=True)
    return [exact.random_params(low + n, high, scale, seed) for seed, ((low, high), n) in enumerate(sizes)]


def state_of(cfg, scale=0.8):
    """Random parameters, those upwards others than those downwards."""
    params = dbn.from_rbms(machines_of(cfg, scale))
    rng = np.random.default_rng(9)
    up = jax.tree.map(lambda p: p + jnp.float32(0.3 * rng.normal(size=p.shape)), params.recognition)
    return dbn.around(jax.random.key(0), params._replace(recognition=up), cfg)


def bernoulli(x, logits):
    return -np.logaddexp(0, np.where(x > 0.5, -1, 1) * logits).sum(-1)


def log_joint(params, layers):
    """log p of states of all layers but the top, whose sum is 1."""
    top = params.top
    every = exact.states(len(top.visible_bias))
    log_f = lambda h: scipy.special.logsumexp(
        exact.minus_energy(top, h, exact.states(len(top.hidden_bias))), 1
    )
    found = log_f(layers[-1]) - scipy.special.logsumexp(log_f(every))
    for layer, (low, high) in zip(params.generative, itertools.pairwise(layers), strict=True):
        found = found + bernoulli(low, high @ np.asarray(layer.weight).T + np.asarray(layer.bias))
    return found


def every_state(cfg):
    x = exact.states(sum(cfg.sizes[:-1]))
    return np.split(x, np.cumsum(cfg.sizes[:-1])[:-1], 1)


def log_prob(cfg, params):
    """log p(v) of all v, (2^D,)."""
    return scipy.special.logsumexp(log_joint(params, every_state(cfg)).reshape(len(V), -1), 1)


def log_partition(params):
    top = params.top
    states = exact.states(len(top.visible_bias)), exact.states(len(top.hidden_bias))
    return scipy.special.logsumexp(exact.minus_energy(top, *states))


@BOTH
def test_the_bound_lies_below_the_likelihood_by_the_divergence(cfg):
    """Its mean over draws, against the sum over all states of the hidden layers."""
    state = state_of(cfg)
    exactly = log_prob(cfg, state.params)
    assert scipy.special.logsumexp(exactly) == pytest.approx(0, abs=1e-5)
    layers = every_state(cfg)
    log_q = sum(
        bernoulli(high, low @ np.asarray(layer.weight) + np.asarray(layer.bias))
        for layer, (low, high) in zip(state.params.recognition, itertools.pairwise(layers), strict=True)
    )
    gain = log_joint(state.params, layers) - log_q
    expected = (np.exp(log_q) * gain).reshape(len(V), -1).sum(1)
    assert (expected < exactly).all()
    run = jax.jit(jax.vmap(lambda key: dbn.unnormalized_elbo(key, state, X, cfg)))
    draws = np.asarray(run(jax.random.split(jax.random.key(0), 3000)), np.float64) - log_partition(
        state.params
    )
    error = 5 * draws.std(0) / np.sqrt(len(draws)) + 1e-4
    assert (np.abs(draws.mean(0) - expected) < error).all()


@pytest.mark.parametrize(("width", "left"), [(4, True), (6, True), (3, False)])
def test_a_top_with_the_units_of_the_machine_below_leaves_its_density(width, left):
    """Further hidden units have no weights here; a narrower top stays what it was."""
    below, fresh = exact.random_params(4, 3, 0.8, 0), exact.random_params(3, width, 0.8, 1)
    if width > 4:
        fresh = fresh._replace(weight=fresh.weight.at[:, 4:].set(0.0))
    params = dbn.from_rbms([below, dbn.transposed(below, fresh)])
    alone = scipy.special.logsumexp(exact.minus_energy(below, V, exact.states(3)), 1)
    cfg = dataclasses.replace(TINY, widths=(3, width))
    difference = log_prob(cfg, params) - (alone - scipy.special.logsumexp(alone))
    assert (np.abs(difference).max() < 1e-5) == left


def test_each_part_of_a_step_is_taught_by_what_is_drawn():
    """Downwards by states drawn upwards, upwards by a dream, the top by both ends of its chain."""
    state, key = state_of(TINY), jax.random.key(3)
    grads = jax.grad(lambda params: dbn.loss(params, {"image": X}, key, TINY)[0])(state.params)
    wake_key, top_key, dream_key = dbn.keys.named(key, "wake", "top", "dream")
    v, h = (
        np.asarray(a, np.float64) for a in dbn.upwards(wake_key, state.params.recognition, jnp.float32(V))
    )
    down, up = state.params.generative[0], state.params.recognition[0]
    sigmoid = scipy.special.expit
    missing = v - sigmoid(h @ np.asarray(down.weight).T + np.asarray(down.bias))
    np.testing.assert_allclose(grads.generative[0].weight, -missing.T @ h / len(v), atol=1e-5)
    np.testing.assert_allclose(grads.generative[0].bias, -missing.mean(0), atol=1e-5)
    end = dbn.machine(TINY).gibbs(top_key, state.params.top, jnp.float32(h), TINY.num_steps)
    dream_v, dream_h = (np.asarray(a) for a in dbn.downwards(dream_key, state.params.generative, end))
    np.testing.assert_array_equal(dream_h, end)
    missing = dream_h - sigmoid(dream_v @ np.asarray(up.weight) + np.asarray(up.bias))
    np.testing.assert_allclose(grads.recognition[0].weight, -dream_v.T @ missing / len(v), atol=1e-5)
    np.testing.assert_allclose(grads.recognition[0].bias, -missing.mean(0), atol=1e-5)
    top = state.params.top
    activity = lambda h: sigmoid(h @ np.asarray(top.weight) + np.asarray(top.hidden_bias))
    moments = lambda h: h.T @ activity(h) / len(h)
    np.testing.assert_allclose(grads.top.weight, moments(np.asarray(end)) - moments(h), atol=1e-5)
    np.testing.assert_allclose(grads.top.visible_bias, np.asarray(end).mean(0) - h.mean(0), atol=1e-5)


def test_states_are_drawn_layer_by_layer():
    state = state_of(DEEP)
    v = jnp.tile(jnp.float32(V[5]), (20000, 1))
    run = jax.jit(lambda key: dbn.upwards(key, state.params.recognition, v))
    _, h1, h2 = (np.asarray(a) for a in run(jax.random.key(0)))
    q = scipy.special.expit(
        V[5] @ np.asarray(state.params.recognition[0].weight) + state.params.recognition[0].bias
    )
    np.testing.assert_allclose(h1.mean(0), q, atol=0.02)
    layer = state.params.recognition[1]
    given = h1[(h1 == h1[0]).all(1)][0] @ np.asarray(layer.weight) + np.asarray(layer.bias)
    np.testing.assert_allclose(h2[(h1 == h1[0]).all(1)].mean(0), scipy.special.expit(given), atol=0.05)


@BOTH
def test_samples_have_the_means_of_the_model(cfg):
    state = state_of(cfg)
    draw = jax.jit(lambda key: dbn.sample(key, state, 20000, cfg, num_steps=50))
    expected = np.exp(log_prob(cfg, state.params)) @ V
    np.testing.assert_allclose((draw(jax.random.key(0)).mean(0).ravel() + 1) / 2, expected, atol=0.02)


def test_labels_stay_and_are_told_by_the_free_energy():
    state = state_of(LABELS, 1.5)
    top = state.params.top
    h = exact.states(3)
    f = lambda label: np.exp(
        exact.minus_energy(top, np.hstack([h, np.tile(np.eye(2)[label], (8, 1))]), exact.states(4))
    )
    down = state.params.generative[0]
    mean = lambda f: f / f.sum() @ scipy.special.expit(h @ np.asarray(down.weight).T + np.asarray(down.bias))
    means = mean(f(1).sum(1))
    assert np.abs(means - mean(f(0).sum(1) + f(1).sum(1))).max() > 0.04  # the label matters
    draw = jax.jit(lambda key: dbn.sample(key, state, 20000, LABELS, 1, num_steps=50))
    np.testing.assert_allclose((draw(jax.random.key(0)).mean(0).ravel() + 1) / 2, means, atol=0.02)
    mean = np.asarray(dbn.encode(state, X, LABELS))
    up = state.params.recognition[0]
    np.testing.assert_allclose(
        mean, scipy.special.expit(V @ np.asarray(up.weight) + np.asarray(up.bias)), atol=1e-5
    )
    by_label = [
        scipy.special.logsumexp(
            exact.minus_energy(top, np.hstack([mean, np.tile(np.eye(2)[label], (16, 1))]), exact.states(4)), 1
        )
        for label in (0, 1)
    ]
    expected = np.stack(by_label, 1) - scipy.special.logsumexp(by_label, 0)[:, None]
    np.testing.assert_allclose(dbn.classify(state, X, LABELS), expected, atol=1e-4)
    with pytest.raises(ValueError, match="conditional=True"):
        dbn.classify(state_of(TINY), X, TINY)


def test_bounds_without_a_label_are_sums_over_labels():
    state = state_of(LABELS)
    each = [dbn.unnormalized_elbo(jax.random.key(1), state, X, LABELS, label) for label in (0, 1)]
    both = dbn.unnormalized_elbo(jax.random.key(1), state, X, LABELS)
    np.testing.assert_allclose(both, jax.nn.logsumexp(jnp.stack(each), 0), rtol=1e-5)


def test_reconstructions_are_means_up_and_down():
    state = state_of(DEEP)
    sigmoid, h = jax.nn.sigmoid, jnp.float32(V)
    for layer in state.params.recognition:
        h = sigmoid(h @ layer.weight + layer.bias)
    for layer in reversed(state.params.generative):
        h = sigmoid(h @ layer.weight.T + layer.bias)
    np.testing.assert_allclose(dbn.reconstruct(state, X, DEEP).reshape(16, 4), 2 * h - 1, atol=1e-6)


def test_a_step_draws_bits_from_grey_values_and_is_given_labels():
    """Terms of the loss, and the bound, by the same draws."""
    state, key, x = state_of(LABELS), jax.random.key(3), jnp.full((40, 2, 2, 1), -0.2)
    label = jnp.arange(40) % 2
    _, metrics = dbn.loss(state.params, {"image": x, "label": label}, key, LABELS)
    data_key, wake_key, top_key = dbn.keys.named(key, "data", "wake", "top")
    v = LABELS.visible.units(data_key, x.reshape(40, 4))
    awake = dbn.upwards(wake_key, state.params.recognition, v)
    log_p = dbn.log_downwards(state.params.generative, awake).sum(0)
    assert float(metrics["wake"]) == pytest.approx(-float(log_p.mean()))
    top, model = state.params.top, dbn.machine(LABELS)
    h = jnp.concatenate([awake[-1], jnp.eye(2)[label]], 1)
    log_f = lambda h: float(model.log_unnormalized(top, h).mean())
    expected = log_f(model.gibbs(top_key, top, h, 2)) - log_f(h)
    assert float(metrics["contrast"]) == pytest.approx(expected, abs=1e-5)
    found = dbn.unnormalized_elbo(key, state, x, LABELS, label)
    log_q = dbn.log_upwards(state.params.recognition, awake).sum(0)
    expected = log_p - log_q + model.log_unnormalized(top, h)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    up = state.params.recognition[0]
    mean = jax.nn.sigmoid(0.4 * up.weight.sum(0) + up.bias)
    np.testing.assert_allclose(dbn.encode(state, x, LABELS), jnp.tile(mean, (40, 1)), atol=1e-5)


def test_biases_start_at_the_mean_of_the_data():
    state = dbn.init(jax.random.key(0), TINY, {"image": X[V[:, 0] == 1]})
    np.testing.assert_allclose(jax.nn.sigmoid(state.params.generative[0].bias), [0.99] + [0.5] * 3, atol=1e-5)


def test_weight_decay_is_of_the_top_machine():
    state, key = state_of(TINY), jax.random.key(3)
    value = lambda decay: dbn.loss(
        state.params, {"image": X}, key, dataclasses.replace(TINY, weight_decay=decay)
    )[0]
    expected = 0.5 * (np.asarray(state.params.top.weight) ** 2).sum()
    assert float(value(1.0) - value(0.0)) == pytest.approx(expected, rel=1e-4)


def test_what_cannot_be_is_refused():
    for changes, match in (
        ({"widths": (3,)}, "2 hidden layers or more"),
        ({"num_steps": 0}, "num_steps must be at least 1"),
        ({"levels": 0}, "not from real numbers"),
    ):
        with pytest.raises(ValueError, match=match):
            dbn.init(jax.random.key(0), dataclasses.replace(TINY, **changes))
