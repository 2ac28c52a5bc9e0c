"""WaveNet: its receptive field, mu-law codes, and sampling from ring buffers."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import data
from jaxgen.autoregressive import sequential, wavenet
from jaxgen.autoregressive.wavenet import WaveNet
from jaxgen.likelihoods import Categorical, MuLaw, Symbols
from jaxgen.values import SGD, Adam
from tests.autoregressive import check

DATA = "tones"
NETWORK = WaveNet(4, 8, num_blocks=1, num_layers=3)
SMALL = wavenet.Config(network=NETWORK, likelihood=MuLaw(16), optimizer=SGD(1e-2))
TRAINED = dataclasses.replace(SMALL, optimizer=Adam(1e-2))
RANDOM = (dataclasses.replace(SMALL, conditional=True),)
# Tones are neither symbols nor pixels, and they come without a context.
ELSEWHERE = ("likelihood=Symbols", "likelihood.num_symbols", "levels", "num_context")

SOUND = dataclasses.replace(SMALL, shape=(20,), levels=0, num_classes=2)
TEXT = dataclasses.replace(SOUND, shape=(4,), likelihood=Symbols(4))


def sound(count=3, length=20):
    rng = np.random.default_rng(0)
    return MuLaw(16).targets(None, jnp.float32(rng.uniform(-1, 1, (count, length))))


@pytest.mark.parametrize("kernel_size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_the_receptive_field_is_that_of_the_formula(kernel_size):
    network = NETWORK.clone(num_blocks=2, num_layers=2, kernel_size=kernel_size)
    assert network.receptive_field == {2: 1 + 1 + 2 * (1 + 2), 3: 1 + 2 + 2 * 2 * (1 + 2)}[kernel_size]
    cfg = dataclasses.replace(SOUND, network=network)
    state = check.initial(wavenet, cfg)
    seen = check.dependence(state, cfg, sound())
    distance = np.arange(20)[:, None] - np.arange(20)
    np.testing.assert_array_equal(seen, (distance >= 1) & (distance <= network.receptive_field))


@pytest.mark.slow
def test_one_tap_sees_one_symbol():
    network = NETWORK.clone(kernel_size=1)
    assert network.receptive_field == 1
    cfg = dataclasses.replace(SOUND, network=network)
    state = check.initial(wavenet, cfg)
    np.testing.assert_array_equal(check.dependence(state, cfg, sound()), np.eye(20, k=-1, dtype=bool))
    check.assert_cached_equals_full(wavenet, state, cfg, sound())


def test_outputs_are_those_of_the_formula():
    """Gated units, residual and skip connections, and a label, in NumPy."""
    network = WaveNet(3, 4, num_blocks=1, num_layers=2, num_outputs=2)
    x, label = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(1, 6, 2), (1, 2)]))
    params = network.init(jax.random.key(2), x, label)["params"]
    dense = lambda name, h: h @ params[name]["kernel"] + params[name]["bias"]

    def conv(name, h, dilation):
        (before, now), bias = params[name]["kernel"], params[name]["bias"]
        return np.pad(h, ((dilation, 0), (0, 0)))[: len(h)] @ before + h @ now + bias

    h, units = conv("in", dense("embedding", np.pad(x[0, :-1], ((1, 0), (0, 0)))), 1), []
    for index, dilation in enumerate((1, 2)):
        moved = conv(f"conv_{index}", h, dilation) + dense(f"context_{index}_0", label[0])
        units.append(np.tanh(moved[:, :3]) / (1 + np.exp(-moved[:, 3:])))
        h = h + dense("residual_0", units[-1])
    skip = dense("skip", np.concatenate(units, 1))
    expected = dense("out", np.maximum(dense("hidden", np.maximum(skip, 0)), 0))
    np.testing.assert_allclose(network.apply({"params": params}, x, label)[0][0], expected, atol=1e-5)


def test_codes_are_those_of_the_formula():
    """One code step is 2 / 255 of the companded sound; nothing is coded as 128, as in the reference."""
    law, x = MuLaw(), np.linspace(-1, 1, 2001)
    code = np.asarray(law.index(jnp.float32(x)))
    companded = np.sign(x) * np.log(1 + 255 * np.abs(x)) / np.log(256)
    assert (np.abs(code - (companded + 1) / 2 * 255) <= 0.5 + 1e-4).all()
    assert law.index(jnp.float32(0.0)) == 128
    assert (np.diff(code) >= 0).all()
    assert (code.min(), code.max()) == (0, 255)
    np.testing.assert_array_equal(law.index(law.value(jnp.arange(256))), np.arange(256))
    again = np.asarray(law.value(code))
    expanded = np.sign(companded) * (256 ** np.abs(companded) - 1) / 255
    np.testing.assert_allclose(expanded, x, atol=1e-9)
    assert np.abs(again - x).max() < 0.025  # the widest step, at the loudest
    np.testing.assert_array_equal(law.index(jnp.array([-3.0, 3.0])), [0, 255])


def test_all_strings_have_probability_one():
    check.assert_normalized(wavenet, check.initial(wavenet, TEXT), TEXT, range(4))


@pytest.mark.parametrize("kernel_size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_the_cache_changes_nothing(kernel_size):
    """Long enough that the ring buffers go round several times."""
    cfg = dataclasses.replace(SOUND, network=NETWORK.clone(kernel_size=kernel_size))
    check.assert_cached_equals_full(wavenet, check.initial(wavenet, cfg), cfg, sound())


@pytest.mark.slow
def test_nor_does_it_of_a_label():
    cfg = dataclasses.replace(SOUND, conditional=True)
    check.assert_cached_equals_full(wavenet, check.initial(wavenet, cfg), cfg, sound(), label=1)


@pytest.mark.slow
def test_samples_are_those_of_a_naive_loop():
    check.assert_samples_equal_a_naive_loop(wavenet, check.initial(wavenet, SOUND), SOUND)


def test_sound_is_continued():
    check.assert_prefix_is_kept(wavenet, check.initial(wavenet, SOUND), SOUND, sound()[:, :10])


@pytest.mark.slow
def test_a_label_changes_every_position():
    cfg = dataclasses.replace(SOUND, conditional=True)
    state, network = check.initial(wavenet, cfg), sequential.network(cfg)
    x = cfg.likelihood.inputs(sequential.symbols(sound(), cfg))
    run = jax.jit(lambda label: network.apply({"params": state.ema}, x, jax.nn.one_hot(label, 2)[None])[0])
    assert (jnp.abs(run(0) - run(1)).max(2) > 1e-4).all()


@pytest.mark.slow
def test_local_conditioning_reaches_its_place_and_those_after():
    """A context of every sample: position t sees that of t and of those before, also one at a time."""
    x, context = jnp.zeros((1, 20, 3)), jax.random.normal(jax.random.key(1), (1, 20, 2))
    network = NETWORK.clone(num_outputs=5)
    params = network.init(jax.random.key(0), x, context)
    run = jax.jit(lambda context: network.apply(params, x, context)[0])
    jacobian = jnp.abs(jax.jit(jax.jacrev(run))(context)).sum((0, 2, 3, 5)) > 0
    np.testing.assert_array_equal(np.asarray(jacobian)[np.triu_indices(20, 1)], False)
    assert jacobian[np.diag_indices(20)].all()
    read = lambda cache, t: network.apply(params, x[:, :1], context, cache=cache, place=t)[::-1]
    _, outputs = jax.lax.scan(read, network.empty_cache(1, 20, jnp.float32), jnp.arange(20))
    np.testing.assert_allclose(outputs[:, :, 0].swapaxes(0, 1), run(context), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_what_the_context_tells_is_learned():
    """Of noise nothing is known but by a context that shows every symbol; samples follow another one."""
    cfg = dataclasses.replace(SOUND, num_context=16, likelihood=MuLaw(16), optimizer=Adam(3e-2))
    state = jax.jit(wavenet.init, static_argnums=1)(jax.random.key(0), cfg)

    def draw(key):
        codes = jax.random.randint(key, (16, 20), 0, 16)
        return cfg.likelihood.value(codes), jax.nn.one_hot(codes, 16)

    def step(state, index):
        x, context = draw(jax.random.fold_in(jax.random.key(1), index))
        return wavenet.train_step(state, {"audio": x, "context": context}, cfg)

    state, metrics = jax.jit(lambda state: jax.lax.scan(step, state, jnp.arange(150)))(state)
    state = state._replace(ema=state.params)
    np.testing.assert_allclose(metrics["nll"][0] / 20, math.log(16), rtol=0.2)
    x, context = draw(jax.random.key(2))
    nll = -wavenet.log_prob(state, x, cfg, context=context) / 20
    other = -wavenet.log_prob(state, x, cfg, context=context[::-1]) / 20
    assert nll.mean() < 0.5 < math.log(16) < other.mean()
    drawn = jax.jit(lambda key: wavenet.sample(key, state, 16, cfg, context=context))(jax.random.key(3))
    assert (jnp.abs(drawn - x) < 1e-5).mean() > 0.8
    one = wavenet.begin(state, 2, cfg, context=context[0])
    np.testing.assert_array_equal(one.context[0], jnp.broadcast_to(context[0], (2, 20, 16)))


def test_a_context_that_is_missing_or_of_another_shape_is_refused():
    cfg = dataclasses.replace(SOUND, num_context=2)
    state, key = check.initial(wavenet, cfg), jax.random.key(0)
    with pytest.raises(ValueError, match="there is none"):
        wavenet.train_step(state, {"audio": sound()}, cfg)
    with pytest.raises(ValueError, match="there is none"):
        wavenet.sample(key, state, 1, cfg)
    with pytest.raises(ValueError, match=r"of shape \(3, 20, 2\), not \(3, 19, 2\)"):
        wavenet.log_prob(state, sound(), cfg, context=jnp.zeros((3, 19, 2)))
    with pytest.raises(ValueError, match="its num_context is 0"):
        wavenet.log_prob(check.initial(wavenet, SOUND), sound(), SOUND, context=jnp.zeros((3, 20, 2)))


@pytest.mark.slow
def test_pictures_and_half_precision():
    cfg = dataclasses.replace(
        SOUND, shape=(3, 4, 1), levels=4, likelihood=Categorical(), network=NETWORK.clone(dtype="bfloat16")
    )
    state = check.initial(wavenet, cfg)
    x = jnp.float32(np.random.default_rng(0).integers(0, 4, (2, 3, 4, 1)) / 1.5 - 1)
    check.assert_cached_equals_full(wavenet, state, cfg, x, tolerance=0.05)
    assert jax.eval_shape(lambda: wavenet.log_prob(state, x, cfg)).dtype == jnp.float32


def test_bad_input_is_refused():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="at least 1"):
        wavenet.init(key, dataclasses.replace(SOUND, network=NETWORK.clone(kernel_size=0)))
    with pytest.raises(ValueError, match="two codes or more"):
        wavenet.init(key, dataclasses.replace(SOUND, likelihood=MuLaw(1)))
    state = jax.jit(wavenet.init, static_argnums=1)(key, SOUND)
    with pytest.raises(ValueError, match="21 entries, the data only 20"):
        wavenet.sample(key, state, 1, SOUND, prefix=jnp.zeros((1, 21)))
    with pytest.raises(ValueError, match="temperature"):
        wavenet.sample(key, state, 1, SOUND, temperature=-1.0)


@pytest.mark.slow
def test_what_repeats_is_known_in_the_end():
    """A sound of period 8, begun at all of its phases; the field has 9 samples, so the next is known."""
    period = MuLaw(16).value(jnp.asarray(np.random.default_rng(0).permutation(16)[:8]))
    x = jnp.stack([jnp.tile(jnp.roll(period, shift), 8) for shift in range(8)])
    cfg = dataclasses.replace(TRAINED, shape=(64,), levels=0)
    state = jax.jit(wavenet.init, static_argnums=1)(jax.random.key(0), cfg)
    step = lambda state, _: wavenet.train_step(state, {"audio": x}, cfg)
    state, _ = jax.jit(lambda state: jax.lax.scan(step, state, length=500))(state)
    # The first sample is one of eight, which costs log 8 nats.
    nll = -wavenet.log_prob(state, x, cfg)
    np.testing.assert_allclose(nll, math.log(8), atol=0.3)


@pytest.mark.slow
def test_it_learns_tones():
    """Held-out nats a sample well below what independent codes have."""
    train, test = data.load("tones"), data.load("tones", "test")
    cfg = dataclasses.replace(TRAINED, shape=train.shape, levels=0, network=WaveNet(16, 32, 1, 6))
    state = jax.jit(wavenet.init, static_argnums=1)(jax.random.key(0), cfg)
    sounds = jnp.asarray(train[:]["audio"])
    rows = jax.random.randint(jax.random.key(1), (200, 8), 0, len(sounds))
    step = lambda state, rows: wavenet.train_step(state, {"audio": sounds[rows]}, cfg)
    state, _ = jax.jit(lambda state: jax.lax.scan(step, state, rows))(state)
    held_out = jnp.asarray(test[:32]["audio"])
    nll = -wavenet.log_prob(state, held_out, cfg).mean() / train.shape[0]
    counts = np.bincount(np.asarray(cfg.likelihood.index(sounds)).ravel(), minlength=16)
    counts = counts[counts > 0] / counts.sum()
    assert nll < 0.6 * -(counts * np.log(counts)).sum()
