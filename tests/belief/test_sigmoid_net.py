"""What belief networks are made of: densities, draws and bounds against sums over all states."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from jaxgen.belief import helmholtz, sigmoid_net
from tests.belief import exact

SIZES = (4, 3, 2)
CFG = helmholtz.Config(shape=(2, 2, 1), widths=(3, 2))
PARAMS = exact.random_params(SIZES)
V = exact.states(4)


def test_the_density_is_a_sum_over_hidden_states():
    expected = exact.log_prob(PARAMS, SIZES, V)
    assert scipy.special.logsumexp(expected) == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(sigmoid_net.log_prob(PARAMS.generative, jnp.float32(V)), expected, atol=1e-5)
    wide = helmholtz.Config(widths=(21,))
    with pytest.raises(ValueError, match=r"2\^21 states"):
        helmholtz.exact_log_prob(helmholtz.init(jax.random.key(0), wide), jnp.zeros((1, 8, 8, 1)), wide)


def test_each_layer_has_its_term():
    rng = np.random.default_rng(0)
    layers = [np.float32(rng.integers(0, 2, (5, size))) for size in SIZES]
    terms = sigmoid_net.log_terms(PARAMS.generative, [jnp.asarray(h) for h in layers])
    assert terms.shape == (3, 5)
    np.testing.assert_allclose(
        terms[-1], exact.bits(layers[-1], np.asarray(PARAMS.generative.prior)), rtol=1e-5
    )
    np.testing.assert_allclose(terms.sum(0), exact.log_joint(PARAMS.generative, layers), rtol=1e-5)
    np.testing.assert_allclose(
        sigmoid_net.log_joint(PARAMS.generative, layers),
        exact.log_joint(PARAMS.generative, layers),
        rtol=1e-5,
    )


def test_dreams_have_the_probabilities_of_the_model():
    dream = jax.jit(lambda key: sigmoid_net.dream(key, PARAMS.generative, 40_000))(jax.random.key(0))
    found = np.concatenate(dream, 1)
    rows = exact.states(sum(SIZES))
    layers = np.split(rows, np.cumsum(SIZES)[:-1], 1)
    p = np.exp(exact.log_joint(PARAMS.generative, layers))
    np.testing.assert_allclose(found.mean(0), p @ rows, atol=0.012)
    np.testing.assert_allclose(found.T @ found / len(found), (rows.T * p) @ rows, atol=0.012)


def test_the_bound_rises_to_the_likelihood_with_the_number_of_draws():
    """At one draw its mean is known, and lies below by the divergence."""
    likelihood = exact.log_prob(PARAMS, SIZES, V)
    log_p, log_q = exact.joint_table(PARAMS, SIZES, V)
    expected = (np.exp(log_q) * (log_p - log_q)).sum(1)
    assert (expected < likelihood).all()
    x = jnp.tile(jnp.float32(V), (2000, 1))
    means = []
    for count in (1, 5, 50):
        draws = np.asarray(
            jax.jit(lambda key, k=count: sigmoid_net.elbo(key, PARAMS, x, k))(jax.random.key(0))
        )
        draws = draws.reshape(2000, 16)
        error = 5 * draws.std(0) / np.sqrt(2000)
        if count == 1:
            assert (np.abs(draws.mean(0) - expected) < error).all()
        means.append(draws.mean(0))
        assert (means[-1] < likelihood + error).all()
    assert (means[0] < means[1]).all()
    assert (means[1] < means[2]).all()
    assert (likelihood - means[2]).mean() < 0.1 * (likelihood - means[0]).mean()


def test_the_bound_of_the_posterior_is_the_likelihood():
    """One hidden unit has a posterior whose logit is linear in v, so that q can be it."""
    params = exact.random_params((4, 1), seed=3)
    (down,), (up,) = params.generative.layers, params.recognition
    on, off = (
        np.asarray(down.bias, np.float64) + np.asarray(down.weight, np.float64)[:, 0] * s for s in (1, 0)
    )
    change = np.logaddexp(0, off).sum() - np.logaddexp(0, on).sum()
    up = up._replace(
        weight=jnp.float32(on - off)[:, None], bias=jnp.float32(params.generative.prior + change)
    )
    found = sigmoid_net.elbo(jax.random.key(0), params._replace(recognition=(up,)), jnp.float32(V))
    np.testing.assert_allclose(found, exact.log_prob(params, (4, 1), V), atol=1e-4)


def test_first_parameters():
    """Glorot's range, and the mean of the data as the visible bias."""
    cfg = dataclasses.replace(CFG, shape=(8, 8, 1), widths=(32, 16))
    x = jnp.tile(jnp.linspace(-1, 1, 64).reshape(1, 8, 8, 1), (400, 1, 1, 1))
    params = sigmoid_net.init(jax.random.key(0), cfg, {"image": x})
    for layers in (params.generative.layers, params.recognition):
        for layer, pair in zip(layers, ((64, 32), (32, 16)), strict=True):
            limit = np.sqrt(6 / sum(pair))
            assert layer.weight.shape == pair
            assert 0.95 * limit < np.abs(layer.weight).max() <= limit
            assert abs(float(layer.weight.mean())) < 0.1 * limit
    mean = jax.nn.sigmoid(params.generative.layers[0].bias)
    np.testing.assert_allclose(mean, np.clip((x[0].ravel() + 1) / 2, 0.01, 0.99), atol=0.1)
    assert not np.asarray(sigmoid_net.init(jax.random.key(0), cfg).generative.layers[0].bias).any()


def test_pictures_are_means_given_the_lowest_hidden_layer():
    net, key = PARAMS.generative, jax.random.key(1)
    h = np.asarray(sigmoid_net.dream(key, net, 6)[1])
    mean = scipy.special.expit(h @ np.asarray(net.layers[0].weight).T + np.asarray(net.layers[0].bias))
    np.testing.assert_allclose(sigmoid_net.sample(key, net, 6, CFG).reshape(6, 4), 2 * mean - 1, atol=1e-5)


def test_reconstructions_are_means_up_and_down():
    h = jnp.float32(V)
    for layer in PARAMS.recognition:
        h = jax.nn.sigmoid(h @ layer.weight + layer.bias)
    for layer in reversed(PARAMS.generative.layers):
        h = jax.nn.sigmoid(h @ layer.weight.T + layer.bias)
    x = jnp.float32(2 * V - 1).reshape(-1, 2, 2, 1)
    np.testing.assert_allclose(sigmoid_net.reconstruct(PARAMS, x, CFG).reshape(16, 4), 2 * h - 1, atol=1e-5)


def test_what_cannot_be_is_refused():
    for changes, match in (
        ({"widths": ()}, "1 hidden layer or more"),
        ({"widths": (3, 0)}, "must be at least 1"),
        ({"levels": 0}, "not from real numbers"),
    ):
        with pytest.raises(ValueError, match=match):
            sigmoid_net.init(jax.random.key(0), dataclasses.replace(CFG, **changes))
