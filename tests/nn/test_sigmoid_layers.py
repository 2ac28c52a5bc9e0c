"""Layers of independent bits: log-probabilities by hand, and draws that have them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from jaxgen.nn import sigmoid_layers
from jaxgen.nn.sigmoid_layers import Layer

SIZES = (4, 3, 2)


def layers_of(upwards):
    rng = np.random.default_rng(int(upwards))
    sizes = itertools.pairwise(SIZES)
    return tuple(
        Layer(
            jnp.float32(rng.normal(size=(low, high))), jnp.float32(rng.normal(size=high if upwards else low))
        )
        for low, high in sizes
    )


@pytest.mark.parametrize("upwards", [True, False])
def test_log_probabilities_are_those_of_bits(upwards):
    layers = layers_of(upwards)
    rng = np.random.default_rng(2)
    states = [np.float32(rng.integers(0, 2, (5, size))) for size in SIZES]
    found = (sigmoid_layers.log_upwards if upwards else sigmoid_layers.log_downwards)(
        layers, [jnp.asarray(s) for s in states]
    )
    for index, layer in enumerate(layers):
        weight, bias = (np.asarray(p, np.float64) for p in layer)
        x, given = states[index + upwards], states[index + (not upwards)]
        p = scipy.special.expit(given @ (weight if upwards else weight.T) + bias)
        np.testing.assert_allclose(found[index], np.log(np.where(x > 0, p, 1 - p)).sum(1), rtol=1e-5)


@pytest.mark.parametrize("upwards", [True, False])
def test_draws_have_the_means_of_each_layer_given_the_last(upwards):
    layers = layers_of(upwards)
    start = jnp.tile(jnp.float32([1, 0, 1, 1] if upwards else [1, 0]), (20_000, 1))
    draw = jax.jit(sigmoid_layers.upwards if upwards else sigmoid_layers.downwards)
    states = draw(jax.random.key(0), layers, start)
    assert [s.shape[1] for s in states] == list(SIZES)
    field = sigmoid_layers.field_above if upwards else sigmoid_layers.field_below
    for index, layer in enumerate(layers):
        x, given = (np.asarray(states[i]) for i in (index + upwards, index + (not upwards)))
        row = given[0]
        same = (given == row).all(1)
        np.testing.assert_allclose(x[same].mean(0), jax.nn.sigmoid(field(layer, row)), atol=0.04)


def test_means_go_through_all_layers():
    up, down, sigmoid = layers_of(True), layers_of(False), scipy.special.expit
    v, h = np.float32([[1, 0, 1, 1]]), np.float32([[1, 0]])
    for layer in up:
        v = sigmoid(v @ layer.weight + layer.bias)
    for layer in reversed(down):
        h = sigmoid(h @ layer.weight.T + layer.bias)
    start = jnp.float32([[1, 0, 1, 1]]), jnp.float32([[1, 0]])
    np.testing.assert_allclose(sigmoid_layers.means_above(up, start[0]), v, rtol=1e-5)
    np.testing.assert_allclose(sigmoid_layers.means_below(down, start[1]), h, rtol=1e-5)
