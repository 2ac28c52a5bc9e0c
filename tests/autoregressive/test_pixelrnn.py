"""PixelRNN: its LSTMs are those of the equations, and see what the paper says of them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import data
from jaxgen.autoregressive import pixelrnn, sequential
from jaxgen.autoregressive.pixelrnn import DiagonalBiLSTM, RowLSTM, skew, unskew
from jaxgen.likelihoods import Bernoulli, Categorical, LogisticMixture
from jaxgen.nn.image_lstm import DiagonalLayer, RowLayer, cell
from jaxgen.nn.masked_conv import degrees
from jaxgen.values import SGD, Adam
from tests.autoregressive import check

DIAGONAL = DiagonalBiLSTM(depth=1, width=4, first_kernel=3, head_width=6)
ROW = RowLSTM(depth=1, width=4, first_kernel=3, head_width=6)
SMALL = pixelrnn.Config(network=DIAGONAL, optimizer=SGD(1e-2))
TRAINED = dataclasses.replace(SMALL, optimizer=Adam(1e-2))
RANDOM = (dataclasses.replace(SMALL, conditional=True, network=ROW),)
OPTIONS = {"network.first_kernel": 5}
ELSEWHERE = ("levels",)  # of pixels, not of bits: the transformer's tests have them

BITS = pixelrnn.Config(shape=(3, 3, 1), levels=0, num_classes=2, network=DIAGONAL)
WIDE = dataclasses.replace(BITS, shape=(3, 8, 1))
COLOUR = dataclasses.replace(BITS, shape=(3, 2, 3), levels=4, likelihood=Categorical(one_hot=True))
MIXTURE = dataclasses.replace(COLOUR, shape=(2, 5, 3), likelihood=LogisticMixture(2))
NETWORKS = pytest.mark.parametrize("network", [DIAGONAL, pytest.param(ROW, marks=pytest.mark.slow)])
WIDER = {"width": 9, "head_width": 24}  # with narrower ones, all ReLUs on a path may be off


def examples(cfg, count=8):
    rng = np.random.default_rng(0)
    values = np.linspace(-1, 1, 2 if isinstance(cfg.likelihood, Bernoulli) else cfg.levels)
    return jnp.float32(rng.choice(values, (count, *cfg.shape)))


def using(cfg, network, **options):
    return dataclasses.replace(cfg, network=network.clone(**options))


# The layers


@pytest.mark.parametrize("shape", [(3, 4), (4, 3), (1, 3), (3, 1)])
def test_skewing_moves_row_r_by_r_and_back(shape):
    x = np.random.default_rng(0).normal(size=(2, *shape, 3))
    skewed = np.asarray(skew(jnp.asarray(x)))
    expected = np.zeros((2, shape[0], sum(shape) - 1, 3))
    for r in range(shape[0]):
        expected[:, r, r : r + shape[1]] = x[:, r]
    np.testing.assert_allclose(skewed, expected, rtol=1e-6)
    np.testing.assert_array_equal(unskew(skew(jnp.asarray(x))), jnp.asarray(x))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def naive_cell(gates, c):
    o, f, i, g = np.split(gates, 4)
    c = sigmoid(f + 1) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def pixel_by_pixel(input_to_state, state_to_state, x):
    """States h of one example x (H, W, C), a pixel after the other, by the paper's equations.

    `input_to_state(x, r, c)` are K_is * x at a place, and `state_to_state` are pairs of an offset in rows and
    columns and its part of K_ss. c comes from the first of them.
    """
    height, width, _ = x.shape
    nothing = np.zeros(state_to_state[0][1].shape[0])
    h, c = {}, {}
    for row in range(height):
        for column in range(width):
            gates = input_to_state(x, row, column)
            for (up, left), kernel in state_to_state:
                gates = gates + h.get((row - up, column - left), nothing) @ kernel
            up, left = state_to_state[0][0]
            c_before = c.get((row - up, column - left), nothing)
            h[row, column], c[row, column] = naive_cell(gates, c_before)
    return np.array([[h[row, column] for column in range(width)] for row in range(height)])


@pytest.mark.parametrize("num_symbols", [1, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", [DiagonalLayer, RowLayer])
def test_the_scan_is_a_loop_over_pixels(kind, num_symbols):
    rng = np.random.default_rng(0)
    x, pixels = (jnp.float32(rng.normal(size=(1, 3, 4, 8))) for _ in range(2))
    layer = kind(4, num_symbols)
    params = layer.init(jax.random.key(0), x, None, pixels, None)
    params = jax.tree.map(lambda a: a + jnp.float32(0.3 * rng.normal(size=a.shape)), params)
    result, _ = jax.jit(lambda params: layer.apply(params, x, None, pixels, None))(params)

    params = jax.tree.map(np.float64, params["params"])
    mask = lambda inputs, outputs: np.less_equal.outer(degrees(inputs, num_symbols), outputs)
    own = mask(8, 4 * degrees(4, num_symbols))
    x, pixels = np.float64(x[0]), np.float64(pixels[0])
    read, state = params["input_to_state"], np.split(params["state_to_state"], 3 if kind is RowLayer else 2)
    if kind is RowLayer:
        at_left = lambda x, r, c: x[r, c - 1] if c else 0 * x[r, c]
        h = pixel_by_pixel(
            lambda x, r, c: (
                at_left(x, r, c) @ read["kernel"][0, 0]
                + x[r, c] @ (own * read["kernel"][0, 1])
                + read["bias"]
            ),
            [((1, 0), state[1]), ((1, 1), state[0]), ((1, -1), state[2])],
            x,
        )
    else:
        h = pixel_by_pixel(
            lambda x, r, c: x[r, c] @ (own * read["kernel"][0, 0]) + read["bias"],
            [((0, 1), state[1]), ((1, 0), state[0])],
            x,
        )
        above, side = np.split(params["back_state_to_state"], 2)
        back = pixel_by_pixel(
            lambda x, r, c: x[r, c] @ params["back_input_to_state"] + params["back_bias"],
            [((0, 1), side), ((1, 0), above)],
            (x + pixels)[:, ::-1],
        )[:, ::-1]
        h[1:] += back[:-1]
    out = params["widen"]
    widened = h @ (mask(4, np.array(degrees(8, num_symbols))) * out["kernel"][0, 0]) + out["bias"]
    np.testing.assert_allclose(result[0], x + widened, rtol=1e-4, atol=1e-4)


# What is seen


@pytest.mark.parametrize(
    "cfg", [WIDE, pytest.param(COLOUR, marks=pytest.mark.slow), pytest.param(MIXTURE, marks=pytest.mark.slow)]
)
def test_one_diagonal_layer_sees_all_that_is_before_and_nothing_else(cfg):
    """Also the end of the row above from the beginning of a row, which is further than the kernel reaches."""
    cfg = using(cfg, DIAGONAL, **WIDER)
    seen = check.dependence(check.initial(pixelrnn, cfg), cfg, examples(cfg))
    np.testing.assert_array_equal(seen, check.earlier(len(seen)))


def triangle(cfg):
    """What Row LSTMs see, bool (T, T), C symbols a pixel: the reach is in the docstring of the test."""
    height, width, num_symbols = cfg.shape
    reach, depth = cfg.network.first_kernel // 2, cfg.network.depth
    seen = np.zeros((*cfg.shape, *cfg.shape), bool)
    for row, column, symbol in np.ndindex(*cfg.shape):
        for up in range(row + 1):
            first, last = column - up - depth - reach, column + up + reach - 1
            seen[row, column, symbol, row - up, max(first, 0) : max(last if up else column - 1, -1) + 1] = (
                True
            )
        seen[row, column, symbol, row, column, :symbol] = True
    return seen.reshape(height * width * num_symbols, -1)


@pytest.mark.parametrize(
    ("cfg", "depth", "first_kernel"),
    [
        (dataclasses.replace(BITS, shape=(4, 9, 1)), 1, 3),
        pytest.param(dataclasses.replace(BITS, shape=(4, 9, 1)), 2, 3, marks=pytest.mark.slow),
        pytest.param(dataclasses.replace(BITS, shape=(3, 13, 1)), 1, 7, marks=pytest.mark.slow),
        pytest.param(dataclasses.replace(COLOUR, shape=(3, 7, 3)), 1, 3, marks=pytest.mark.slow),
    ],
)
def test_row_lstms_see_a_triangle(cfg, depth, first_kernel):
    """With a first kernel of 2 p + 1, u rows up they see u + p - 1 columns to the right.

    To the left they see u + p + depth columns: K_is has one column on the left in every layer. It has none on
    the right, where the first row up is seen by the first kernel alone.
    """
    cfg = using(cfg, ROW, depth=depth, first_kernel=first_kernel, **WIDER)
    seen = check.dependence(check.initial(pixelrnn, cfg), cfg, examples(cfg))
    np.testing.assert_array_equal(seen, triangle(cfg))
    assert (seen != check.earlier(len(seen))).any()


def test_all_pictures_have_probability_one():
    check.assert_normalized(pixelrnn, check.initial(pixelrnn, BITS), BITS, (-1.0, 1.0))


@pytest.mark.slow
@pytest.mark.parametrize(
    "cfg",
    [
        using(BITS, ROW),
        dataclasses.replace(BITS, shape=(1, 2, 3), levels=3, likelihood=Categorical()),
        dataclasses.replace(BITS, shape=(1, 2, 3), levels=3, likelihood=Categorical(), network=ROW),
    ],
)
def test_nor_have_others_another(cfg):
    values = (-1.0, 1.0) if isinstance(cfg.likelihood, Bernoulli) else (-1.0, 0.0, 1.0)
    check.assert_normalized(pixelrnn, check.initial(pixelrnn, cfg), cfg, values)


# Sampling


@pytest.mark.parametrize(
    "cfg",
    [
        dataclasses.replace(COLOUR, network=DIAGONAL.clone(depth=2)),
        using(WIDE, ROW, depth=2),
        *(
            pytest.param(each, marks=pytest.mark.slow)
            for each in (
                using(WIDE, DIAGONAL, first_kernel=7),
                using(COLOUR, ROW, depth=2),
                using(MIXTURE, DIAGONAL),
                using(MIXTURE, ROW, first_kernel=7),
                *(
                    using(dataclasses.replace(BITS, shape=shape), network, **WIDER)
                    for network in (DIAGONAL, ROW)
                    for shape in ((1, 4, 1), (4, 1, 1), (2, 2, 1))
                ),
            )
        ),
    ],
)
def test_the_cache_changes_nothing(cfg):
    check.assert_cached_equals_full(pixelrnn, check.initial(pixelrnn, cfg), cfg, examples(cfg))


@pytest.mark.slow
@NETWORKS
def test_nor_does_it_of_a_label(network):
    cfg = dataclasses.replace(WIDE, conditional=True, network=network)
    check.assert_cached_equals_full(pixelrnn, check.initial(pixelrnn, cfg), cfg, examples(cfg), label=1)


@pytest.mark.slow
@pytest.mark.parametrize("network", [DIAGONAL, ROW])
def test_nor_in_half_precision(network):
    """The cells are float32, so that errors of 8 bits do not add up over rows."""
    cfg = using(WIDE, network, dtype="bfloat16")
    state = check.initial(pixelrnn, cfg)
    check.assert_cached_equals_full(pixelrnn, state, cfg, examples(cfg), tolerance=0.05)
    x = sequential.symbols(examples(cfg), cfg)
    run = lambda cfg: sequential.network(cfg).apply({"params": state.ema}, cfg.likelihood.inputs(x))[0]
    half, full = run(cfg), run(using(WIDE, network))
    assert half.dtype == jnp.bfloat16
    assert 0 < jnp.abs(half - full).max() < 0.1
    gates = jax.random.normal(jax.random.key(1), (5, 8)).astype(jnp.bfloat16)
    c = jax.random.normal(jax.random.key(2), (5, 2))
    np.testing.assert_array_equal(cell(gates, c)[1], cell(jnp.float32(gates), c)[1])


@pytest.mark.slow
@pytest.mark.parametrize("cfg", [using(BITS, DIAGONAL), using(COLOUR, DIAGONAL), using(BITS, ROW)])
def test_samples_are_those_of_a_naive_loop(cfg):
    check.assert_samples_equal_a_naive_loop(pixelrnn, check.initial(pixelrnn, cfg), cfg)


@pytest.mark.slow
@NETWORKS
def test_a_picture_is_continued(network):
    cfg = using(WIDE, network)
    check.assert_prefix_is_kept(pixelrnn, check.initial(pixelrnn, cfg), cfg, examples(cfg)[:, :1])


@pytest.mark.slow
@NETWORKS
def test_a_single_pixel_is_a_bias(network):
    cfg = dataclasses.replace(BITS, shape=(1, 1, 1), network=network)
    state = check.initial(pixelrnn, cfg)
    x = jnp.array([-1.0, 1.0]).reshape(2, 1, 1, 1)
    assert jnp.exp(pixelrnn.log_prob(state, x, cfg)).sum() == pytest.approx(1.0, abs=1e-5)
    assert pixelrnn.sample(jax.random.key(0), state, 3, cfg).shape == (3, 1, 1, 1)


@pytest.mark.slow
@NETWORKS
def test_a_label_changes_every_position(network):
    cfg = dataclasses.replace(WIDE, conditional=True, network=network)
    state, network = check.initial(pixelrnn, cfg), sequential.network(cfg)
    x = cfg.likelihood.inputs(sequential.symbols(examples(cfg), cfg))
    run = jax.jit(
        lambda label: network.apply({"params": state.ema}, x, jax.nn.one_hot(jnp.full(8, label), 2))[0]
    )
    assert (jnp.abs(run(0) - run(1)).max((0, 2)) > 1e-4).all()


# Bad input, and learning


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (using(BITS, DIAGONAL, first_kernel=4), "first_kernel must be an odd number from 3 on, got 4"),
        (using(BITS, DIAGONAL, first_kernel=1), "first_kernel must be an odd number from 3 on, got 1"),
        (using(COLOUR, DIAGONAL, width=2), "width must be at least 3, a channel for each symbol of a pixel"),
        (using(COLOUR, ROW, head_width=2), "head_width must be at least 3"),
        (dataclasses.replace(BITS, shape=(9,)), "DiagonalBiLSTM is of images"),
    ],
)
def test_bad_input_is_refused(cfg, message):
    with pytest.raises(ValueError, match=message):
        pixelrnn.init(jax.random.key(0), cfg)


def test_the_cells_remember_at_first():
    """With all weights zero, a quarter is forgotten at every step, and not half."""
    h, c = cell(jnp.zeros((1, 4)), jnp.ones((1, 1)))
    np.testing.assert_allclose(c, sigmoid(1.0), rtol=1e-6)
    np.testing.assert_allclose(h, 0.5 * np.tanh(sigmoid(1.0)), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("network", "bound"), [(DiagonalBiLSTM(1, 16), 19.8), (RowLSTM(1, 16), 21.0)])
def test_it_learns_digits(network, bound):
    """Held-out nats of bits: 19.0 to 19.1, and 20.1 to 20.3, by three seeds; independent bits have 25.3."""
    network = network.clone(first_kernel=3)
    cfg = pixelrnn.Config(network=network, optimizer=Adam(1e-2), likelihood=Bernoulli("threshold"))
    train, test = (jnp.asarray(data.load("digits", split)[:]["image"]) for split in ("train", "test"))

    @jax.jit
    def held_out(state):
        def step(state, index):
            batch = jax.lax.dynamic_slice_in_dim(train, index * 64 % (len(train) - 64), 64)
            return pixelrnn.train_step(state, {"image": batch}, cfg)

        state, _ = jax.lax.scan(step, state, jnp.arange(300))
        return -pixelrnn.log_prob(state, test, cfg).mean()

    state = jax.jit(pixelrnn.init, static_argnums=1)(jax.random.key(0), cfg)
    assert 17.0 < held_out(state) < bound
