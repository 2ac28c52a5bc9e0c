"""PixelCNN and Gated PixelCNN: exactly what a symbol sees, probabilities that sum to 1, and the cache."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import data
from jaxgen.autoregressive import pixelcnn, sequential
from jaxgen.autoregressive.pixelcnn import Config, GatedPixelCNN, PixelCNN
from jaxgen.likelihoods import Bernoulli, Categorical, LogisticMixture
from jaxgen.values import Adam
from tests.autoregressive import check

# The head is wide: where all its units are at rest nothing is seen of what they see.
PLAIN = PixelCNN(width=8, depth=2, head_width=32, first_kernel=5)
GATED = GatedPixelCNN(width=8, depth=2, head_width=32, first_kernel=5)
SMALL = Config(network=GATED)
FURTHER = (Config(network=PLAIN, num_classes=10, conditional=True, likelihood=Categorical()),)
OPTIONS = {f"network.{name}": GATED.kernel + 4 for name in ("kernel", "first_kernel")}

SLOW = pytest.mark.slow
LEVELS = Config(levels=4, likelihood=Categorical(), num_classes=3, conditional=True)
NETWORKS = pytest.mark.parametrize("network", [PLAIN, GATED], ids=["plain", "gated"])
GATED_FIRST = pytest.mark.parametrize(
    "network", [pytest.param(PLAIN, marks=SLOW), GATED], ids=["plain", "gated"]
)


def drawn(cfg, count=3):
    """Images of what the likelihood is of."""
    x = np.random.default_rng(0).uniform(-1, 1, size=(count, *cfg.shape))
    return sequential.likelihood(cfg).targets(None, jnp.float32(x))


def field_of_masked_convolutions(first, kernel, depth):
    """Offsets (up, right) of pixels seen through a first kernel and `depth` later ones: sums of theirs."""

    def offsets(size, own):
        half = size // 2
        found = {(up, right) for up in range(1, half + 1) for right in range(-half, half + 1)}
        return found | {(0, right) for right in range(-half, 0 if not own else 1)}

    seen = offsets(first, own=False)
    for _ in range(depth):
        seen = {(a + c, b + d) for (a, b), (c, d) in itertools.product(seen, offsets(kernel, own=True))}
    return seen


def rectangle(half_width):
    """Offsets (up, right) of what is in so many columns to either side, and one row more than that."""
    above = itertools.product(range(1, half_width + 2), range(-half_width, half_width + 1))
    return {*above, *((0, right) for right in range(-half_width, 0))}


def expected(shape, groups, offsets):
    """Whether symbol t may see symbol s, bool (T, T): pixels at these offsets, and its own one's before."""
    height, width, _ = shape
    places = list(itertools.product(range(height), range(width), range(groups)))
    sees = lambda t, s: (t[0] - s[0], s[1] - t[1]) in offsets or (t[:2] == s[:2] and s[2] < t[2])
    return np.array([[sees(t, s) for s in places] for t in places])


def initial(cfg, scale=0.3):
    """A State of random parameters, made without a compilation of `init`."""
    rng = np.random.default_rng(7)
    shapes = jax.eval_shape(lambda: pixelcnn.init(jax.random.key(0), cfg).params)
    params = jax.tree.map(lambda a: jnp.float32(scale * rng.normal(size=a.shape)), shapes)
    return pixelcnn.State(jnp.int32(0), jax.random.key(0), params, (), params)


def dependence(network, shape, **options):
    cfg = dataclasses.replace(Config(network=network, shape=shape), **options)
    state = initial(cfg)
    x = jax.random.uniform(jax.random.key(1), (6, *shape), minval=-1.0)
    return check.dependence(state, cfg, x, 1 if cfg.conditional else None)


@SLOW
def test_pixelcnn_sees_what_its_kernels_reach():
    """In a row as many pixels to the left as half the first kernel and one for each 3x3 kernel."""
    network = PLAIN.clone(first_kernel=7, depth=1)
    found = dependence(network, (6, 11, 1))
    np.testing.assert_array_equal(found, expected((6, 11, 1), 1, field_of_masked_convolutions(7, 3, 1)))
    last = found.reshape(6, 11, 6, 11)[5, 10]
    assert last[5].nonzero()[0].min() == 10 - (3 + 1)
    assert last.nonzero()[0].min() == 5 - (3 + 1)


def test_pixelcnn_has_its_blind_spot():
    """However many layers: by one row up its first layer sees 3 to the right, every further row one more."""
    shape = 3, 8, 1
    found = dependence(PLAIN.clone(first_kernel=7, depth=4), shape)
    blind = {(up, right) for up in range(3) for right in range(-7, 8) if right > up + 2}
    everything = {(up, right) for up in range(3) for right in range(-7, 8) if up > 0 or right < 0}
    np.testing.assert_array_equal(found, expected(shape, 1, everything - blind))
    assert (found != check.earlier(24)).any()


def test_gated_pixelcnn_has_no_blind_spot():
    found = dependence(GATED.clone(first_kernel=7, depth=5), (3, 8, 1))
    np.testing.assert_array_equal(found, check.earlier(24))


@SLOW
def test_gated_pixelcnn_sees_a_rectangle():
    """Of half the first kernel, and half of a further kernel for each layer after the first."""
    found = dependence(GATED.clone(first_kernel=5, depth=2), (6, 9, 1))
    np.testing.assert_array_equal(found, expected((6, 9, 1), 1, rectangle(2 + 1)))


@GATED_FIRST
def test_colours_are_seen_in_their_order(network):
    """As symbols of their own, on an image that is not square; 8 channels are no 3 groups of one size."""
    network = network.clone(head_width=31, first_kernel=3, depth=3)
    found = dependence(network, (2, 4, 3), likelihood=Categorical(), levels=4)
    offsets = rectangle(4) if isinstance(network, GatedPixelCNN) else field_of_masked_convolutions(3, 3, 3)
    np.testing.assert_array_equal(found, expected((2, 4, 3), 3, offsets))


@SLOW
@NETWORKS
@pytest.mark.parametrize(
    ("shape", "likelihood"),
    [((3, 2, 2), Categorical(one_hot=True)), ((3, 4, 3), LogisticMixture(2)), ((1, 5, 1), Bernoulli())],
    ids=["one-hot", "mixture", "row"],
)
def test_it_sees_its_field(network, shape, likelihood):
    options = {"likelihood": likelihood, "levels": 4, "num_classes": 3, "conditional": True}
    found = dependence(network, shape, **options)
    offsets = rectangle(3) if isinstance(network, GatedPixelCNN) else field_of_masked_convolutions(5, 3, 2)
    np.testing.assert_array_equal(found, expected(shape, len(found) // (shape[0] * shape[1]), offsets))


@GATED_FIRST
def test_probabilities_sum_to_one(network):
    cfg = Config(network=network, shape=(3, 3, 1), num_classes=2, conditional=True)
    check.assert_normalized(pixelcnn, initial(cfg, 0.6), cfg, (-1.0, 1.0), label=1)


@SLOW
@NETWORKS
def test_probabilities_of_levels_sum_to_one(network):
    cfg = Config(network=network, shape=(1, 2, 3), levels=3, likelihood=Categorical())
    check.assert_normalized(pixelcnn, initial(cfg, 0.6), cfg, (-1.0, 0.0, 1.0))


CACHED = {
    "plain-colours": (PLAIN, LEVELS, (3, 4, 3)),
    "gated-colours": (GATED, LEVELS, (3, 4, 3)),
    "plain-bits": (PLAIN, Config(), (4, 5, 1)),
    "gated-bits": (GATED, Config(), (4, 5, 1)),
    "plain-mixture": (PLAIN, Config(levels=4, likelihood=LogisticMixture(2)), (4, 3, 3)),
    "gated-mixture": (GATED, Config(levels=4, likelihood=LogisticMixture(2)), (4, 3, 3)),
    "plain-one-hot": (PLAIN, dataclasses.replace(LEVELS, likelihood=Categorical(one_hot=True)), (3, 2, 2)),
    "gated-one-hot": (GATED, dataclasses.replace(LEVELS, likelihood=Categorical(one_hot=True)), (3, 2, 2)),
    "plain-column": (PLAIN, Config(), (4, 1, 1)),
    "gated-column": (GATED, Config(), (4, 1, 1)),
    "gated-row": (GATED, LEVELS, (1, 4, 3)),
    "gated-pixel": (GATED, LEVELS, (1, 1, 3)),
    "plain-1x1": (PLAIN.clone(kernel=1, first_kernel=3), LEVELS, (3, 4, 3)),
    "gated-1x1": (GATED.clone(kernel=1, first_kernel=3), LEVELS, (3, 4, 3)),
    "plain-large-kernels": (PLAIN.clone(kernel=5, first_kernel=9), Config(), (3, 4, 1)),
    "gated-large-kernels": (GATED.clone(kernel=5, first_kernel=9), Config(), (3, 4, 1)),
    "gated-one-layer": (GATED.clone(depth=1), LEVELS, (3, 4, 3)),
    "gated-three-layers": (GATED.clone(depth=3, kernel=5), Config(), (5, 4, 1)),
}


@pytest.mark.parametrize(
    "name", [name if name.endswith("colours") else pytest.param(name, marks=SLOW) for name in CACHED]
)
def test_one_position_is_as_the_full_pass_has_it(name):
    network, cfg, shape = CACHED[name]
    cfg = dataclasses.replace(cfg, network=network, shape=shape)
    state, label = initial(cfg), 1 if cfg.conditional else None
    check.assert_cached_equals_full(pixelcnn, state, cfg, drawn(cfg), label)


@SLOW
@pytest.mark.parametrize(
    ("network", "cfg"),
    [(GATED, Config()), (GATED, LEVELS), (PLAIN, LEVELS)],
    ids=["gated-bits", "gated-colours", "plain-colours"],
)
def test_samples_are_those_of_a_naive_loop(network, cfg):
    shape = (3, 4, 1) if cfg.levels == 256 else (3, 2, 3)
    cfg = dataclasses.replace(cfg, network=network, shape=shape)
    state, label = initial(cfg, 0.6), jnp.arange(3) if cfg.conditional else None
    check.assert_samples_equal_a_naive_loop(pixelcnn, state, cfg, label=label)


@SLOW
@NETWORKS
def test_the_prefix_is_kept(network):
    cfg = dataclasses.replace(LEVELS, network=network, shape=(4, 3, 3))
    state = initial(cfg)
    check.assert_prefix_is_kept(pixelcnn, state, cfg, drawn(cfg, 4)[:, :2], label=1)


@GATED_FIRST
def test_the_label_is_told_at_every_position(network):
    cfg = dataclasses.replace(LEVELS, network=network, shape=(3, 4, 3))
    state, x = initial(cfg), sequential.symbols(drawn(cfg, 1), cfg)
    params = {"params": state.ema}
    apply = jax.jit(lambda label: sequential.network(cfg).apply(params, x, jax.nn.one_hot(label, 3)[None])[0])
    assert (jnp.abs(apply(0) - apply(1)).max(-1) > 1e-3).all()


def filtered(x, kernel, left, own=True):
    """x (H, W, C) by a kernel that is masked here, of which the own place is at `left` in its last row."""
    kernel = np.array(kernel)
    above, right = kernel.shape[0] - 1, kernel.shape[1] - 1 - left
    if own is not None:
        kernel[above, left + 1 :] = 0
        kernel[above, left] *= own
    padded = np.pad(x, ((above, 0), (left, right), (0, 0)))
    height, width, _ = x.shape
    return sum(padded[i : i + height, j : j + width] @ kernel[i, j] for i, j in np.ndindex(kernel.shape[:2]))


def dense(x, layer):
    return x @ np.asarray(layer["kernel"]).reshape(x.shape[-1], -1) + layer["bias"]


def relu(x):
    return np.maximum(x, 0)


def unit(x):
    signal, gate = np.split(x, 2, -1)
    return np.tanh(signal) / (1 + np.exp(-gate))


def with_label(x, layer, label):
    return x + layer["bias"] + layer["label"]["kernel"][label]


def pixelcnn_by_the_paper(params, x, label):
    h = with_label(filtered(x, params["first"]["kernel"], 2, own=False), params["first_bias"], label)
    for i in range(2):
        inner = relu(dense(relu(h), params[f"narrow_{i}"]))
        inner = filtered(inner, params[f"block_{i}"]["kernel"], 1) + params[f"block_{i}"]["bias"]
        h = h + dense(relu(inner), params[f"widen_{i}"])
    return h


def gated_pixelcnn_by_the_paper(params, x, label):
    vertical = params["vertical"]
    v = filtered(x, params["first_0"]["kernel"], 2, own=None)
    inner = filtered(x, params["first_1"]["kernel"], 2, own=False)
    h = 0
    for i in range(2):
        if i:
            v = unit(with_label(v, vertical[f"bias_{i - 1}"], label))
            v = filtered(v, vertical[f"conv_{i}"]["kernel"], 1, own=None)
            inner = filtered(h, params[f"horizontal_{i}"]["kernel"], 1)
        told = np.pad(v @ vertical[f"tell_{i}"]["kernel"], ((1, 0), (0, 0), (0, 0)))[:-1]
        h = h + dense(unit(with_label(inner + told, params[f"bias_{i}"], label)), params[f"out_{i}"])
    return h


@pytest.mark.parametrize(
    ("network", "features"),
    [(PLAIN, pixelcnn_by_the_paper), (GATED, gated_pixelcnn_by_the_paper)],
    ids=["plain", "gated"],
)
def test_the_equations_of_the_papers(network, features):
    cfg = Config(network=network, shape=(4, 5, 1), num_classes=3, conditional=True)
    state, x = initial(cfg), drawn(cfg, 1)
    params = jax.tree.map(np.asarray, state.ema)
    h = features(params, (np.asarray(x[0]) + 1) / 2, 2)
    logits = dense(relu(dense(relu(h), params["head"])), params["outputs"])
    bits = (np.asarray(x[0]) + 1) / 2
    expected = (bits * logits - np.logaddexp(0, logits)).sum()
    np.testing.assert_allclose(
        jax.jit(lambda s: pixelcnn.log_prob(s, x, cfg, 2))(state)[0], expected, rtol=1e-4
    )


@SLOW
@NETWORKS
def test_half_precision(network):
    """Parameters and likelihoods are float32, and every layer between is coarser."""
    half = dataclasses.replace(LEVELS, network=network.clone(dtype="bfloat16"), shape=(3, 4, 3))
    state, x = initial(half, 0.1), drawn(half)
    assert {a.dtype for a in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    symbols, context = sequential.symbols(x, half), jnp.zeros((len(x), 3))
    layers = jax.eval_shape(
        lambda params: sequential.network(half).apply(
            {"params": params}, symbols, context, capture_intermediates=True, mutable=["intermediates"]
        )[1],
        state.params,
    )
    assert {a.dtype for a in jax.tree.leaves(layers)} == {jnp.dtype("bfloat16")}
    check.assert_cached_equals_full(pixelcnn, state, half, x, 1, tolerance=0.05)
    full = [
        jax.jit(lambda state, cfg=cfg: pixelcnn.log_prob(state, x, cfg, 1))(state)
        for cfg in (half, dataclasses.replace(half, network=network))
    ]
    assert full[0].dtype == jnp.float32
    np.testing.assert_allclose(*full, rtol=0.05)
    assert (full[0] != full[1]).any()


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        (GATED.clone(kernel=4), {}, "kernel must be an odd number, got 4"),
        (PLAIN.clone(first_kernel=2), {}, "first_kernel must be an odd number, got 2"),
        (GATED.clone(width=2), {"shape": (8, 8, 3)}, "width must be at least 3, a channel for each symbol"),
        (PLAIN.clone(head_width=2), {"shape": (8, 8, 3)}, "head_width must be at least 3"),
        (GATED, {"shape": (8,)}, r"images \(height, width, channels\), not of \(8,\)"),
    ],
)
def test_bad_networks_are_refused(network, options, message):
    cfg = Config(network=network, **options)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: pixelcnn.init(jax.random.key(0), cfg))


@SLOW
@pytest.mark.parametrize(("network", "bound"), [(PixelCNN, 21.9), (GatedPixelCNN, 23.0)])
def test_it_learns_digits(network, bound):
    """Held-out bits; grey values of its own for each pixel take 25.1 nats.

    Four seeds of each have come to 20.99 ... 21.33 and 22.37 ... 22.55.
    """
    network = network(width=8, depth=2, head_width=16, first_kernel=5)
    cfg = Config(network=network, likelihood=Bernoulli("threshold"), optimizer=Adam(5e-3))
    train, test = (jnp.asarray(data.load("digits", split)[:]["image"]) for split in ("train", "test"))

    def step(state, key):
        chosen = jax.random.randint(key, (64,), 0, len(train))
        return pixelcnn.train_step(state, {"image": train[chosen]}, cfg)

    @jax.jit
    def nll(key):
        init_key, data_key = jax.random.split(key)
        state = pixelcnn.init(init_key, cfg)
        state, _ = jax.lax.scan(step, state, jax.random.split(data_key, 200))
        return -pixelcnn.log_prob(state, test, cfg).mean()

    assert 10 < nll(jax.random.key(0)) < bound
