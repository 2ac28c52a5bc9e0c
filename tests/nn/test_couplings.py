"""Networks of couplings: normalised by their first images, 0 at first, and what they are told they read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.nn.couplings import ActNorm, ConvNet, ResNet, ZeroConv, joined
from tests.flow.check import shaken

IMAGES = jnp.float32(3 + 2 * np.random.default_rng(0).normal(size=(20, 4, 4, 3)) * [1.0, 5.0, 0.0])


def test_actnorm_gives_its_first_images_mean_0_and_variance_1():
    y, variables = ActNorm().init_with_output(jax.random.key(0), IMAGES)
    np.testing.assert_allclose(y.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(y.std((0, 1, 2)), [1, 1, 0], atol=1e-5)  # a constant channel is left so
    again = ActNorm().apply(variables, IMAGES + 1)
    slope = 1 / np.where(IMAGES.std((0, 1, 2)) > 0, IMAGES.std((0, 1, 2)), 1)
    np.testing.assert_allclose(again - y, np.broadcast_to(slope, y.shape), rtol=1e-3)
    extreme = jax.tree.map(lambda a: jnp.full_like(a, -1e30), variables)
    assert not np.isnan(ActNorm().apply(extreme, IMAGES)).any()


@pytest.mark.parametrize("network", [ConvNet(4, num_outputs=5), ResNet(4, 1, num_outputs=5)])
@pytest.mark.parametrize("context", [(20, 2), (20, 4, 4, 2)])
def test_networks_are_zero_at_first_and_read_their_context(network, context):
    context = jnp.float32(np.random.default_rng(1).normal(size=context))
    y, variables = jax.jit(network.init_with_output)(jax.random.key(0), IMAGES, context)
    assert y.shape == (20, 4, 4, 5)
    assert (y == 0).all()
    run, variables = jax.jit(network.apply), shaken(variables, 0.3)
    y = run(variables, IMAGES, context)
    assert (y != run(variables, IMAGES, context + 1)).any()
    assert (y != run(variables, IMAGES + jnp.float32([1, 0, 0]), context)).any()


def test_the_hidden_layers_are_normalised_by_the_first_images():
    network = ConvNet(4, num_outputs=2)
    _, variables = network.init_with_output(jax.random.key(0), IMAGES)
    _, seen = network.apply(variables, IMAGES, capture_intermediates=True)
    for name in ("ActNorm_0", "ActNorm_1"):
        h = seen["intermediates"][name]["__call__"][0]
        np.testing.assert_allclose(h.mean((0, 1, 2)), 0, atol=1e-4)
        np.testing.assert_allclose(h.std((0, 1, 2)), 1, rtol=1e-3)


def test_the_factor_of_the_last_convolution():
    network = ZeroConv(2)
    params = shaken(network.init(jax.random.key(0), IMAGES), 0.1)
    y = network.apply(params, IMAGES)
    params["params"]["log_factor"] += 0.5
    np.testing.assert_allclose(network.apply(params, IMAGES), np.exp(1.5) * y, rtol=1e-4)
    params["params"]["log_factor"] += 1e30
    assert np.isfinite(network.apply(params, IMAGES)).all()


def test_a_vector_is_the_same_at_all_positions():
    x, context = IMAGES[:2], jnp.float32([[1.0, 2.0], [3.0, 4.0]])
    y = joined(x, context, x)
    assert y.shape == (2, 4, 4, 8)
    np.testing.assert_array_equal(y[1, :, :, 3:5], np.broadcast_to([3.0, 4.0], (4, 4, 2)))
    np.testing.assert_array_equal(y[..., 5:], x)
