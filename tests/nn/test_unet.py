"""Embeddings, attention and the U-Net against their definitions and the published count of parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.nn import attention, embed
from jaxgen.nn.unet import UNet
from tests.nn.compare import jit

CIFAR10 = UNet(
    3, width=128, multipliers=(1, 2, 2, 2), num_blocks=2, attention_sizes=(16,), num_groups=32, dropout=0.1
)


def perturbed(tree, seed):
    """The parameters with noise, as zeros at the start hide what is behind them."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32), tree)


def test_sinusoidal_is_the_definition_and_tells_times_apart():
    t = jnp.arange(4000)
    found = embed.sinusoidal(t.astype(jnp.bfloat16).astype(jnp.int32), 64)
    assert found.dtype == jnp.float32
    found = embed.sinusoidal(t, 64)
    angles = np.arange(4000)[:, None] * 10_000.0 ** (-np.arange(32) / 31)
    np.testing.assert_allclose(found, np.concatenate([np.sin(angles), np.cos(angles)], -1), atol=1e-3)
    gaps = np.linalg.norm(np.diff(found, axis=0), axis=1)
    assert gaps.min() > 0.5
    assert embed.sinusoidal(t[:2], 7).shape == (2, 7)


def test_attention_is_the_definition():
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 5, 3, 4))
    out = attention.attend(q, k, v)
    for b in range(2):
        for head in range(3):
            logits = np.asarray(q)[b, :, head] @ np.asarray(k)[b, :, head].T / 2
            weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
            np.testing.assert_allclose(out[b, :, head], weights @ v[b, :, head], rtol=2e-5, atol=1e-6)


@pytest.mark.slow
def test_self_attention_starts_as_the_identity_and_knows_no_order():
    layer = attention.SelfAttention(num_heads=2, num_groups=4)
    apply = jit(layer.apply)
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 8))
    variables = jit(layer.init)(jax.random.key(1), x)
    np.testing.assert_array_equal(apply(variables, x), x)
    variables = perturbed(variables, 2)
    order = jax.random.permutation(jax.random.key(3), 16)
    permuted = x.reshape(2, 16, 8)[:, order].reshape(x.shape)
    there, back = apply(variables, x), apply(variables, permuted)
    np.testing.assert_allclose(there.reshape(2, 16, 8)[:, order], back.reshape(2, 16, 8), atol=1e-5)
    assert float(jnp.abs(there - x).max()) > 0.1
    with pytest.raises(ValueError, match="3 heads do not divide 8"):
        attention.SelfAttention(num_heads=3, num_groups=4).init(jax.random.key(0), x)


@pytest.mark.slow
def test_the_network_of_ho_et_al_has_its_number_of_parameters():
    inputs = jnp.zeros((1, 32, 32, 3)), jnp.zeros(1, jnp.int32)
    shapes = jax.eval_shape(lambda: CIFAR10.init(jax.random.key(0), *inputs))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == 35_746_307


@pytest.fixture(scope="module")
def small():
    net = UNet(1, width=8, multipliers=(1, 2), attention_sizes=(3,), num_groups=4, num_labels=3, dropout=0.5)
    x, t, label = jax.random.normal(jax.random.key(0), (2, 6, 4, 1)), jnp.array([3, 700]), jnp.array([0, 2])
    shapes = jax.eval_shape(net.init, jax.random.key(1), x, t, label)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)
    apply = jit(lambda variables, *inputs: net.apply(variables, *inputs))
    return perturbed(zeros, 2), apply, x, t, label


@pytest.mark.slow
def test_the_output_heeds_image_time_and_label(small):
    variables, apply, x, t, label = small
    out = apply(variables, x, t, label)
    assert out.shape == x.shape
    for inputs in ((x.at[0, 0, 0].add(1.0), t, label), (x, t + 1, label), (x, t, label[::-1])):
        changed = np.abs(apply(variables, *inputs) - out).max((1, 2, 3))
        assert changed[0] > 1e-4
    assert changed[1] > 1e-4
    swapped = apply(variables, x[::-1], t[::-1], label[::-1])
    np.testing.assert_allclose(swapped[::-1], out, atol=1e-5)


@pytest.mark.slow
def test_dropout_and_dtype():
    net = UNet(1, width=4, multipliers=(1,), num_groups=2, dropout=0.5)
    x, t = jax.random.normal(jax.random.key(0), (2, 4, 4, 1)), jnp.array([3, 700])
    shapes = jax.eval_shape(net.init, jax.random.key(1), x, t)
    variables = perturbed(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes), 2)
    drop = jax.jit(lambda key: net.apply(variables, x, t, train=True, rngs={"dropout": key}))
    first, second = (drop(jax.random.key(seed)) for seed in (0, 1))
    assert float(jnp.abs(first - second).max()) > 1e-3
    out, half = (jax.jit(net.clone(dtype=dtype).apply)(variables, x, t) for dtype in (None, "bfloat16"))
    assert half.dtype == jnp.float32
    assert 0 < float(jnp.abs(half - out).mean()) < 0.1 * float(jnp.abs(out).mean())


def test_sizes_that_do_not_fit_are_named():
    net = UNet(1, multipliers=(1, 2, 2), num_labels=3)

    def init(*shape, label=0):
        labels = None if label is None else jnp.full(1, label)
        return jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *shape)), jnp.zeros(1), labels)

    init(28, 20, 1)
    with pytest.raises(ValueError, match="4 divides, got 28x30: 28x28 or 28x32 would fit"):
        init(28, 30, 1)
    with pytest.raises(ValueError, match="got 3x3: 4x4 would fit"):
        init(3, 3, 1)
    with pytest.raises(ValueError, match="conditional: give the label"):
        init(4, 4, 1, label=None)
