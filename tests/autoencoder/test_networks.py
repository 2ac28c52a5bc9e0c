"""Options of the networks that learn codes, and where their outputs start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.autoencoder import networks

NETWORKS = [
    (networks.DenseEncoder((5,), num_outputs=3), (4, 4, 1)),
    (networks.ConvEncoder((5,), num_outputs=3), (4, 4, 1)),
    (networks.DenseDecoder((5,), shape=(4, 4, 1)), (3,)),
    (networks.ConvDecoder((5,), shape=(4, 4, 1)), (3,)),
]


@pytest.mark.parametrize(("network", "shape"), NETWORKS, ids=lambda value: type(value).__name__)
def test_the_activation_is_the_one_asked_for(network, shape):
    """Near zero tanh is the identity, of which relu is half of the sign."""
    x = jax.random.normal(jax.random.key(0), (6, *shape))
    params = jax.jit(network.init)(jax.random.key(1), x)

    @jax.jit
    def outputs(params, x):
        sides = [n.apply(params, s * x) for n in (network, network.clone(activation="tanh")) for s in (1, -1)]
        return jnp.stack(sides)

    relu, mirrored, tanh, odd = outputs(params, x)
    np.testing.assert_allclose(odd, -tanh, atol=1e-6)
    assert not np.allclose(mirrored, -relu, atol=1e-3)
    assert not np.allclose(relu, tanh, atol=1e-3)


@pytest.mark.parametrize(("network", "shape"), NETWORKS[2:], ids=lambda value: type(value).__name__)
def test_outputs_start_where_the_data_are(network, shape):
    params = jax.jit(network.init)(jax.random.key(1), jnp.zeros((1, *shape)))["params"]
    x = jax.random.normal(jax.random.key(0), (50, 4, 4, 1)) + 3
    started = networks.with_first_bias(params, x, lambda mean: 2 * mean)
    bias = started["out"]["bias"]
    mean = x.mean(0).ravel() if bias.size > 1 else x.mean()[None]
    np.testing.assert_allclose(bias, 2 * mean, rtol=1e-5)
    del started["out"], params["out"]
    jax.tree.map(np.testing.assert_array_equal, started, params)
    assert networks.with_first_bias(params, x, lambda mean: mean) is params


def test_data_in_double_precision_leave_a_bias_its_type():
    with jax.enable_x64(True):
        decoder = networks.DenseDecoder((5,), shape=(4, 4, 1))
        params = decoder.init(jax.random.key(0), jnp.zeros((1, 3)))["params"]
        after = networks.with_first_bias(params, jnp.ones((2, 4, 4, 1), np.float64), lambda mean: mean)
        assert after["out"]["bias"].dtype == params["out"]["bias"].dtype == np.float32
        np.testing.assert_array_equal(after["out"]["bias"], 1)
