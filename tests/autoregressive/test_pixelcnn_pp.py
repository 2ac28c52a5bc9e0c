"""PixelCNN++: what pixels see across strides, and that sampling by rows and pixels is the full pass."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgen
from jaxgen import data, shard
from jaxgen.autoregressive import pixelcnn_pp, sequential
from jaxgen.autoregressive.pixelcnn_pp import PixelCNNPP
from jaxgen.likelihoods import Bernoulli, Categorical, LogisticMixture
from jaxgen.values import Adam
from tests.autoregressive import check

SMALL = pixelcnn_pp.Config(network=PixelCNNPP(4, 1, 0), likelihood=LogisticMixture(2))
RANDOM = (dataclasses.replace(SMALL, network=PixelCNNPP(4, 1, 1), conditional=True, num_classes=10),)
TINY = pixelcnn_pp.Config(shape=(3, 3, 1), network=PixelCNNPP(4, 1, 1), likelihood=Bernoulli())


def config(shape, num_downsamplings, num_blocks=1, **more):
    """Of a picture whose sides need not be divisible by anything."""
    network = PixelCNNPP(4, num_blocks, num_downsamplings)
    more = {"likelihood": LogisticMixture(2), **more}
    return pixelcnn_pp.Config(shape=shape, network=network, **more)


def pictures(cfg, n=4):
    x = jax.random.uniform(jax.random.key(0), (n, *cfg.shape), minval=-1.0)
    return sequential.likelihood(cfg).targets(None, x)


SHAPES = [
    config((4, 5, 1), 1),
    config((5, 7, 3), 2),
    config((6, 4, 1), 1, 2),
    config((3, 5, 1), 0),
    config((1, 6, 1), 2),
    config((6, 1, 3), 1),
]
NAMES = ["even", "odd", "two-blocks", "no-stride", "one-row", "one-column"]


@pytest.mark.slow
@pytest.mark.parametrize("cfg", SHAPES, ids=NAMES)
def test_outputs_see_all_pixels_before_and_no_other(cfg):
    """There is no blind spot, and strides let nothing through."""
    seen = check.dependence(check.initial(pixelcnn_pp, cfg), cfg, pictures(cfg))
    np.testing.assert_array_equal(seen, check.earlier(len(seen)))


def test_a_block_is_that_of_the_formula():
    """x + a sigmoid(b), of elus of both signs; and on the way up a block is told of one on the way down."""
    block = pixelcnn_pp.Block(right=True, dropout=0.0)
    x, other = (jax.random.normal(jax.random.key(i), (1, 3, 4, 2)) for i in range(2))
    params = block.init(jax.random.key(2), x, [other], None, False)["params"]
    both = lambda h: jnp.where((h := jnp.concatenate([h, -h], -1)) > 0, h, jnp.expm1(h))

    def conv(name, h):
        padded, layout = jnp.pad(h, ((0, 0), (1, 0), (1, 0), (0, 0))), ("NHWC", "HWIO", "NHWC")
        kernel, bias = params[name]["kernel"], params[name]["bias"]
        return jax.lax.conv_general_dilated(padded, kernel, (1, 1), "VALID", dimension_numbers=layout) + bias

    h = conv("conv_1", both(x)) + both(other) @ params["others"]["kernel"] + params["others"]["bias"]
    a, b = jnp.split(conv("conv_2", both(h)), 2, -1)
    found, _ = block.apply({"params": params}, x, [other], None, False)
    np.testing.assert_allclose(found, x + a / (1 + jnp.exp(-b)), atol=1e-5)
    stack = pixelcnn_pp.Stack(False, 2, 0, 0.0)
    made = jax.eval_shape(lambda: stack.init(jax.random.key(0), x, None, None, False))["params"]
    assert ["others" in made[f"block_{i}"] for i in range(4)] == [False, False, True, True]


@pytest.mark.slow
def test_the_field_without_strides_is_that_of_the_kernels():
    """Four convolutions and the first layer widen it by a column each, of the row above on either side.

    What the first stack says of that passes through one further convolution of the second, to its right.
    """
    cfg = config((3, 13, 1), 0)
    seen = check.dependence(check.initial(pixelcnn_pp, cfg), cfg, pictures(cfg, 8)).reshape(3, 13, 3, 13)
    row = np.arange(13)
    for column in row:
        np.testing.assert_array_equal(seen[0, column, 0], (row < column) & (row >= column - 5))
        above = (row >= column - 6) & (row <= column + 5)
        np.testing.assert_array_equal(seen[1, column, 0], above)


@pytest.mark.slow
@pytest.mark.parametrize("cfg", SHAPES, ids=NAMES)
def test_pixel_by_pixel_equals_the_full_pass(cfg):
    check.assert_cached_equals_full(pixelcnn_pp, check.initial(pixelcnn_pp, cfg, 0.1), cfg, pictures(cfg))


@pytest.mark.slow
def test_pixel_by_pixel_equals_the_full_pass_of_levels_and_labels():
    cfg = config(
        (4, 3, 1), 1, likelihood=Categorical(one_hot=True), levels=5, conditional=True, num_classes=3
    )
    check.assert_cached_equals_full(pixelcnn_pp, check.initial(pixelcnn_pp, cfg, 0.1), cfg, pictures(cfg), 2)


@pytest.mark.slow
def test_the_work_of_a_pixel_does_not_grow_with_the_height():
    """Nor is anything of the picture's size done for it, but for the sums of the first layers."""

    def flops(height):
        cfg = config((height, 6, 1), 1)
        state = jax.eval_shape(lambda key: pixelcnn_pp.init(key, cfg), jax.random.key(0))
        cache = jax.eval_shape(lambda state: pixelcnn_pp.begin(state, 2, cfg), state)
        run = jax.jit(lambda state, cache, x: pixelcnn_pp.advance(state, cache, x, cfg))
        return run.lower(state, cache, jnp.zeros((2, 1))).cost_analysis()["flops"]

    assert flops(16) == flops(4)


@pytest.mark.slow
def test_all_pictures_together_have_probability_one():
    check.assert_normalized(pixelcnn_pp, check.initial(pixelcnn_pp, TINY), TINY, (-1.0, 1.0))


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "levels"), [((2, 2, 1), 4), ((1, 2, 3), 3)])
def test_all_pictures_of_levels_together_have_probability_one(shape, levels):
    cfg = config(shape, 1, levels=levels)
    symbols = np.linspace(-1, 1, levels)
    check.assert_normalized(pixelcnn_pp, check.initial(pixelcnn_pp, cfg), cfg, symbols)


@pytest.mark.slow
@pytest.mark.parametrize("cfg", [config((3, 5, 3), 1), TINY], ids=["mixture", "bits"])
def test_samples_equal_a_naive_loop(cfg):
    check.assert_samples_equal_a_naive_loop(pixelcnn_pp, check.initial(pixelcnn_pp, cfg, 0.1), cfg)


@pytest.mark.slow
def test_a_prefix_is_kept():
    cfg = config((3, 5, 3), 1)
    state = check.initial(pixelcnn_pp, cfg, 0.1)
    check.assert_prefix_is_kept(pixelcnn_pp, state, cfg, pictures(cfg, 3)[:, :2])


@pytest.mark.slow
def test_a_label_changes_every_pixel_and_is_given_to_every_block():
    cfg = config((3, 4, 1), 1, conditional=True, num_classes=2)
    state, network = check.initial(pixelcnn_pp, cfg, 0.1), sequential.network(cfg)
    run = jax.jit(lambda c: network.apply({"params": state.ema}, jnp.ones((1, 12, 1)), c)[0])
    first, second = (run(jnp.eye(2)[i : i + 1]) for i in (0, 1))
    assert (jnp.abs(first - second).max(-1) > 1e-4).all()
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state.params)]
    told, blocks = (len({p for p in paths if end in p}) for end in ("['context']", "['conv_1']['bias']"))
    assert told == blocks == 10


@pytest.mark.slow
def test_dropout_is_of_training_alone():
    cfg = config((3, 4, 1), 0)
    cfg = dataclasses.replace(cfg, network=cfg.network.clone(dropout=0.5))
    state, x = check.initial(pixelcnn_pp, cfg), pictures(cfg)
    loss = jax.jit(lambda seed: pixelcnn_pp.loss(state.params, {"image": x}, jax.random.key(seed), cfg)[0])
    exact = -jax.jit(lambda: pixelcnn_pp.log_prob(state, x, cfg).mean())()
    assert len({float(v) for v in (loss(0), loss(1), exact)}) == 3
    without = dataclasses.replace(cfg, network=cfg.network.clone(dropout=0.0))
    assert pixelcnn_pp.loss(state.params, {"image": x}, jax.random.key(0), without)[0] == pytest.approx(
        float(exact), rel=1e-5
    )


def test_the_first_layers_are_told_where_the_picture_is():
    """By a channel of ones; and the second convolution of a block begins a tenth as large."""
    cfg = config((3, 4, 3), 0)
    network = sequential.network(dataclasses.replace(cfg, network=cfg.network.clone(width=32)))
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.ones((1, 12, 3)))["params"]
    assert shapes["entry_0"]["kernel"].shape == (2, 3, 4, 32)
    params = jax.jit(network.init)(jax.random.key(0), jnp.ones((1, 12, 3)))["params"]
    run = jax.jit(lambda params: network.apply({"params": params}, jnp.zeros((1, 12, 3)))[0])
    black = run(params)  # nothing but that channel tells its pixels apart while all biases are 0
    assert jnp.abs(black[0, 5] - black[0, 6]).max() > 1e-3
    block = pixelcnn_pp.Block(False, 0.0)
    params = jax.jit(block.init, static_argnums=(2, 3, 4))(
        jax.random.key(0), jnp.ones((1, 4, 4, 32)), (), (), False
    )
    std = [float(params["params"][f"conv_{i}"]["kernel"].std()) * np.sqrt(2 * 3 * 64) for i in (1, 2)]
    np.testing.assert_allclose(std, [1.0, 0.1], rtol=0.05)


def test_what_cannot_be_is_refused():
    refused = {
        "all channels of a pixel at once": config((3, 4, 3), 1, likelihood=Bernoulli()),
        "of images": config((12,), 1, likelihood=Bernoulli()),
    }
    for match, cfg in refused.items():
        with pytest.raises(ValueError, match=match):
            pixelcnn_pp.init(jax.random.key(0), cfg)


@pytest.mark.slow
def test_it_learns_digits():
    cfg = pixelcnn_pp.Config(
        network=PixelCNNPP(12, 1, 1, dropout=0.1),
        likelihood=LogisticMixture(5),
        levels=17,
        optimizer=Adam(3e-3, gradient_clip=1.0),
    )
    train, test = data.load("digits"), data.load("digits", "test")
    options = {"steps": 300, "batch_size": 32, "key": jax.random.key(0), "mesh": shard.mesh(1)}
    state = jaxgen.fit(pixelcnn_pp, cfg, train, sample_every=0, save_every=0, **options)
    x = jnp.asarray(test[:]["image"])
    nll = -jax.jit(lambda state: pixelcnn_pp.log_prob(state, x, cfg).mean())(state)
    assert nll / np.log(2) / 64 < 2.1
