"""The diffusion transformer against its equations in NumPy and the published counts of parameters."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.diffusion import ddpm, edm, flow_matching
from jaxgen.diffusion.networks import Transformer
from jaxgen.diffusion.objectives import Hybrid
from jaxgen.nn import dit, patches
from jaxgen.nn.dit import Block, DiT
from tests.nn.compare import jit

SMALL = DiT(3, patch=2, width=8, depth=2, num_heads=2, num_labels=3)


def drawn(shapes, seed, scale=0.3):
    """Random parameters of these shapes, as zeros at the start hide what is behind them."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.float32(scale * rng.normal(size=leaf.shape)), shapes)


INPUTS = jax.random.normal(jax.random.key(0), (2, 6, 4, 3)), jnp.array([3, 700]), jnp.array([0, 2])


IN_ORDER = np.arange(6)


@jit
def apply(variables, x, t, label, order=IN_ORDER):
    """SMALL with the codes of places in another order."""
    original = dit.positions
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dit, "positions", lambda *size: original(*size)[order])
        return SMALL.apply(variables, x, t, label)


@pytest.fixture(scope="module")
def first():
    return jit(SMALL.init)(jax.random.key(1), *INPUTS)


def test_patches_are_squares_of_pixels():
    x = jnp.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    grid = patches.to_patches(x, 2)
    assert grid.shape == (2, 2, 3, 12)
    np.testing.assert_array_equal(grid[1, 1, 2], x[1, 2:4, 4:6].ravel())
    np.testing.assert_array_equal(patches.from_patches(grid, 2), x)


def test_places_are_told_by_row_and_by_column():
    codes = np.asarray(dit.positions(3, 5, 16)).reshape(3, 5, 16)
    frequencies = 10_000.0 ** (-np.arange(4) / 3)
    for count, found in ((3, codes[:, 1, :8]), (5, codes[1, :, 8:])):
        angles = np.arange(count)[:, None] * frequencies
        np.testing.assert_allclose(found, np.concatenate([np.sin(angles), np.cos(angles)], -1), atol=1e-6)
    assert np.ptp(codes[:, :, :8], 1).max() == 0
    assert np.ptp(codes[:, :, 8:], 0).max() == 0


@pytest.mark.slow
def test_a_block_is_the_identity_at_first_and_then_the_definition(first):
    apply = jit(Block(num_heads=2).apply)
    x, c = jax.random.normal(jax.random.key(0), (2, 5, 8)), jax.random.normal(jax.random.key(1), (2, 8))
    for index in range(SMALL.depth):
        params = jax.tree.map(lambda leaf, index=index: leaf[index], first["params"]["blocks"])
        np.testing.assert_array_equal(apply({"params": params}, x, c), x)
    variables = drawn({"params": params}, 3)
    linear = {
        name: lambda h, layer=layer: h @ np.float64(layer["kernel"]) + np.float64(layer["bias"])
        for name, layer in variables["params"].items()
    }
    norm = lambda h: (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-6)
    found = apply(variables, x, c)
    for tokens, embedding, result in zip(np.float64(x), np.float64(c), found, strict=True):
        parts = linear["modulation"](embedding / (1 + np.exp(-embedding))).reshape(6, 8)
        shift, scale, gate = parts[:3]
        query, key, value = np.split(linear["query_key_value"](norm(tokens) * (1 + scale) + shift), 3, -1)
        heads = []
        for columns in (slice(0, 4), slice(4, 8)):
            weights = np.exp(query[:, columns] @ key[:, columns].T / 2)
            heads.append(weights / weights.sum(1, keepdims=True) @ value[:, columns])
        tokens = tokens + gate * linear["out"](np.concatenate(heads, -1))
        shift, scale, gate = parts[3:]
        h = linear["hidden"](norm(tokens) * (1 + scale) + shift)
        h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
        np.testing.assert_allclose(result, tokens + gate * linear["mlp_out"](h), rtol=1e-4, atol=1e-4)


def num_params(width, depth, patch, channels, num_labels, out_channels):
    dense = lambda n, m: n * m + m
    block = dense(width, 6 * width) + dense(width, 3 * width) + dense(width, width)
    block += dense(width, 4 * width) + dense(4 * width, width)
    embeddings = dense(256, width) + dense(width, width) + num_labels * width
    ends = dense(patch**2 * channels, width) + dense(width, patch**2 * out_channels)
    return depth * block + embeddings + ends + dense(width, 2 * width)


@pytest.mark.parametrize(
    ("width", "depth", "num_heads", "millions"),
    [(384, 12, 6, 33), (768, 12, 12, 130), (1024, 24, 16, 458), (1152, 28, 16, 675)],
)
def test_the_networks_of_peebles_and_xie_have_their_numbers_of_parameters(width, depth, num_heads, millions):
    """S, B, L and XL on patches of 2 x 2 latents of 32 x 32 x 4, a thousand classes, learned variance."""
    net = DiT(8, 2, width, depth, num_heads, num_labels=1001)
    inputs = jnp.zeros((1, 32, 32, 4)), jnp.zeros(1, jnp.int32), jnp.zeros(1, jnp.int32)
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), *inputs))
    found = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    assert found == num_params(width, depth, 2, 4, 1001, 8)
    assert round(found / 1e6) == millions


@pytest.mark.slow
def test_the_output_is_zero_at_first_and_heeds_image_time_and_label(first):
    x, t, label = INPUTS
    assert not apply(first, x, t, label).any()
    variables = drawn(first, 2)
    out = apply(variables, x, t, label)
    assert out.shape == x.shape
    for inputs in ((x.at[0, 0, 0].add(1.0), t, label), (x, t + 1, label), (x, t, label[::-1])):
        changed = np.abs(apply(variables, *inputs) - out).max((1, 2, 3))
        assert changed[0] > 1e-4
    assert changed[1] > 1e-4
    swapped = apply(variables, x[::-1], t[::-1], label[::-1])
    np.testing.assert_allclose(swapped[::-1], out, atol=1e-5)


def test_patches_know_each_other_by_their_places_alone(first):
    variables, (x, *given) = drawn(first, 2), INPUTS
    order = np.random.default_rng(0).permutation(6)

    def permuted(x):
        grid = patches.to_patches(x, 2)
        return patches.from_patches(grid.reshape(2, 6, -1)[:, order].reshape(grid.shape), 2)

    out = permuted(apply(variables, x, *given))
    np.testing.assert_allclose(apply(variables, permuted(x), *given, order), out, atol=1e-5)
    assert np.abs(apply(variables, permuted(x), *given) - out).max() > 0.01


@pytest.mark.slow
def test_the_label_is_heeded_after_two_steps(first):
    """The first step moves the last layer alone, behind zeros; the second what gives it shifts and scales."""
    x, t, label = INPUTS

    @jax.jit
    def step(variables):
        grads = jax.grad(lambda variables: ((SMALL.apply(variables, *INPUTS) - x) ** 2).mean())(variables)
        return jax.tree.map(lambda leaf, grad: leaf - grad, variables, grads)

    once = step(first)
    assert np.abs(apply(once, x, t, label)).max() > 1e-3
    np.testing.assert_array_equal(apply(once, x, t, label), apply(once, x, t, label[::-1]))
    twice = step(once)
    assert np.abs(apply(twice, x, t, label) - apply(twice, x, t, label[::-1])).max() > 1e-6


@pytest.mark.slow
def test_dropout_and_dtype(first):
    variables, net = drawn(first, 2), SMALL.clone(dropout=0.5)
    drop = jax.jit(lambda key: net.apply(variables, *INPUTS, train=True, rngs={"dropout": key}))
    ones, others = (drop(jax.random.key(seed)) for seed in (0, 1))
    assert float(jnp.abs(ones - others).max()) > 1e-3
    out, half = (jax.jit(net.clone(dtype=dtype).apply)(variables, *INPUTS) for dtype in (None, "bfloat16"))
    assert half.dtype == jnp.float32
    assert 0 < float(jnp.abs(half - out).mean()) < 0.1 * float(jnp.abs(out).mean())


@pytest.mark.parametrize(
    "family", [ddpm, *(pytest.param(family, marks=pytest.mark.slow) for family in (edm, flow_matching))]
)
def test_a_config_chooses_it(family):
    cfg = family.Config(network=Transformer(patch=2, width=16, depth=3), conditional=True, num_classes=4)
    if family is ddpm:
        cfg = dataclasses.replace(cfg, variance="learned", objective=Hybrid())
    batch = {"image": jnp.zeros((2, *cfg.shape)), "label": jnp.zeros(2, jnp.int32)}
    state = jax.eval_shape(functools.partial(family.init, cfg=cfg), jax.random.key(0))
    assert state.params["DiT_0"]["blocks"]["out"]["kernel"].shape == (3, 16, 16)
    assert state.params["DiT_0"]["label"]["embedding"].shape == (5, 16)
    after, _ = jax.eval_shape(functools.partial(family.train_step, cfg=cfg), state, batch)
    assert jax.tree.leaves(after) == jax.tree.leaves(state)
    with pytest.raises(ValueError, match=r"a DiT takes images .*use network mlp"):
        family.init(jax.random.key(0), dataclasses.replace(cfg, shape=(3,)))


def test_what_does_not_fit_is_named():
    def init(*shape, label=0, **options):
        net = SMALL.clone(**options)
        labels = None if label is None else jnp.full(1, label)
        return jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *shape)), jnp.zeros(1), labels)

    init(6, 4, 3)
    with pytest.raises(ValueError, match="4 divides, got 28x30: 28x28 or 28x32 would fit"):
        init(28, 30, 1, patch=4)
    with pytest.raises(ValueError, match="3 heads do not divide 8 channels; 1, 2, 4, 8 do"):
        init(4, 4, 1, num_heads=3)
    with pytest.raises(ValueError, match="conditional: give the label"):
        init(4, 4, 1, label=None)
