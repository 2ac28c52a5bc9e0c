"""The transformer over pixels and symbols: order, normalisation, and sampling with a cache."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import data
from jaxgen.autoregressive import sequential, transformer
from jaxgen.autoregressive.transformer import Transformer
from jaxgen.likelihoods import Bernoulli, Categorical, LogisticMixture, Symbols
from jaxgen.values import SGD, Adam
from tests.autoregressive import check

NETWORK = Transformer(8, 2, 2)
SMALL = transformer.Config(network=NETWORK, optimizer=SGD(1e-2))
TRAINED = dataclasses.replace(SMALL, optimizer=Adam(1e-2))
RANDOM = (
    dataclasses.replace(SMALL, conditional=True, network=NETWORK.clone(dropout=0.1)),
    dataclasses.replace(SMALL, likelihood=LogisticMixture(2), network=NETWORK.clone(dropout=0.1)),
)
OPTIONS = {"network.dropout": 0.2}
ELSEWHERE = ("likelihood=Symbols", "likelihood.num_symbols")  # of tokens, below; digits are none

BITS = dataclasses.replace(SMALL, shape=(3, 3, 1), num_classes=2)
COLOUR = dataclasses.replace(SMALL, shape=(2, 3, 3), likelihood=Categorical(one_hot=True), levels=4)
MIXTURE = dataclasses.replace(COLOUR, likelihood=LogisticMixture(2))
TEXT = dataclasses.replace(SMALL, shape=(4,), likelihood=Symbols(4))
EVERY = {"bits": BITS, "colour": COLOUR, "mixture": MIXTURE, "text": TEXT}


def examples(cfg, count=3):
    """Data of the likelihood's values."""
    rng = np.random.default_rng(0)
    if isinstance(cfg.likelihood, Symbols):
        return jnp.asarray(rng.integers(0, cfg.likelihood.num_symbols, (count, *cfg.shape)), jnp.int32)
    levels = 2 if isinstance(cfg.likelihood, Bernoulli) else cfg.levels
    return jnp.float32(rng.integers(0, levels, (count, *cfg.shape)) * (2 / (levels - 1)) - 1)


def test_the_alphabet_is_that_of_the_data():
    weather = data.load("weather")
    of_data = lambda own: transformer.from_data(weather, dataclasses.replace(TEXT, likelihood=own)).likelihood
    assert of_data(Symbols()) == Symbols(len(np.unique(weather[:]["tokens"])))
    assert of_data(Symbols(9)) == Symbols(9)
    assert of_data(Bernoulli()) == Bernoulli()


@pytest.mark.parametrize(
    "name", ["bits", *(pytest.param(n, marks=pytest.mark.slow) for n in list(EVERY)[1:])]
)
def test_every_symbol_sees_those_before_it(name):
    cfg = EVERY[name]
    state = check.initial(transformer, cfg)
    seen = check.dependence(state, cfg, examples(cfg))
    np.testing.assert_array_equal(seen, check.earlier(len(seen)))


def test_all_strings_have_probability_one():
    check.assert_normalized(transformer, check.initial(transformer, TEXT), TEXT, range(4))


@pytest.mark.slow
def test_all_pictures_have_probability_one():
    cfg = dataclasses.replace(BITS, conditional=True)
    state = check.initial(transformer, cfg)
    for label in (0, 1, None):
        check.assert_normalized(transformer, state, cfg, (-1.0, 1.0), label)


@pytest.mark.parametrize(
    "name", ["bits", *(pytest.param(n, marks=pytest.mark.slow) for n in list(EVERY)[1:])]
)
def test_the_cache_changes_nothing(name):
    cfg = EVERY[name]
    check.assert_cached_equals_full(transformer, check.initial(transformer, cfg), cfg, examples(cfg))


@pytest.mark.slow
@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_nor_does_it_of_a_label(positions):
    cfg = dataclasses.replace(BITS, conditional=True, network=NETWORK.clone(positions=positions))
    state = check.initial(transformer, cfg)
    check.assert_cached_equals_full(transformer, state, cfg, examples(cfg), label=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_samples_are_those_of_a_naive_loop(name):
    cfg = EVERY[name]
    check.assert_samples_equal_a_naive_loop(transformer, check.initial(transformer, cfg), cfg)


def test_a_prefix_is_kept():
    check.assert_prefix_is_kept(transformer, check.initial(transformer, TEXT), TEXT, examples(TEXT)[:, :2])


@pytest.mark.slow
def test_rows_of_pixels_are_kept():
    state = check.initial(transformer, BITS)
    check.assert_prefix_is_kept(transformer, state, BITS, examples(BITS)[:, :2])


def test_log_prob_is_the_sum_of_conditionals():
    """By `advance`, symbol by symbol, with the softmax written out."""
    state, x = check.initial(transformer, TEXT), examples(TEXT)
    cache, total = transformer.begin(state, len(x), TEXT), jnp.zeros(len(x))
    step = jax.jit(lambda cache, symbol: transformer.advance(state, cache, symbol, TEXT))
    before = jnp.zeros((len(x), 1), jnp.int32)
    for t in range(4):
        cache, logits = step(cache, before)
        total += jnp.log(jnp.exp(logits) / jnp.exp(logits).sum(-1, keepdims=True))[
            jnp.arange(len(x)), x[:, t]
        ]
        before = x[:, t : t + 1]
    np.testing.assert_allclose(transformer.log_prob(state, x, TEXT), total, rtol=1e-5)


def test_gradients_do_not_grow_with_depth():
    """What stands before the first symbol is no vector of zeros, of which normalization has a huge slope."""
    cfg = dataclasses.replace(BITS, network=Transformer(8, 6, 2))
    state = jax.jit(transformer.init, static_argnums=1)(jax.random.key(0), cfg)
    last = {"kernel": jnp.ones((8, 1)), "bias": jnp.zeros(1)}
    params = {"transformer": {**state.params["transformer"], "last": last}}
    log_prob = lambda params: transformer.log_prob(state._replace(ema=params), examples(cfg), cfg).mean()
    gradient = np.concatenate([np.ravel(g) for g in jax.tree.leaves(jax.jit(jax.grad(log_prob))(params))])
    assert np.linalg.norm(gradient) < 100


def test_at_temperature_zero_the_likeliest_symbol_follows():
    state = check.initial(transformer, TEXT)
    drawn = jax.jit(lambda key: transformer.sample(key, state, 2, TEXT, temperature=0.0))(jax.random.key(0))
    outputs, _ = sequential.network(TEXT).apply({"params": state.ema}, jax.nn.one_hot(drawn, 4))
    np.testing.assert_array_equal(drawn, outputs.argmax(-1))


@pytest.mark.slow
def test_likelier_draws_have_the_frequencies_of_their_distribution():
    """First symbols of many draws against the softmax with only the two likeliest kept."""
    cfg = dataclasses.replace(TEXT, shape=(1,))
    state = check.initial(transformer, cfg)
    _, logits = transformer.advance(
        state, transformer.begin(state, 1, cfg), jnp.zeros((1, 1), jnp.int32), cfg
    )
    kept = np.sort(np.asarray(logits[0]))[-2:]
    wanted = np.exp(kept / 0.7) / np.exp(kept / 0.7).sum()
    drawn = transformer.sample(jax.random.key(0), state, 4000, cfg, top_k=2, temperature=0.7)
    counts = np.sort(np.bincount(np.asarray(drawn[:, 0]), minlength=4))
    np.testing.assert_allclose(counts / 4000, [0, 0, *wanted], atol=4 * math.sqrt(0.25 / 4000))


def test_bad_input_is_refused():
    state = check.initial(transformer, TEXT)
    x = examples(TEXT)
    for prefix in (jnp.zeros((2, 5), jnp.int32), jnp.zeros((3, 2), jnp.int32)):
        with pytest.raises(ValueError, match="prefix"):
            transformer.sample(jax.random.key(0), state, 2, TEXT, prefix=prefix)
    with pytest.raises(ValueError, match=r"in 0\.\.3"):
        transformer.sample(jax.random.key(0), state, 2, TEXT, prefix=jnp.full((2, 2), 4))
    with pytest.raises(ValueError, match="integers"):
        transformer.log_prob(state, jnp.float32(x), TEXT)
    with pytest.raises(ValueError, match="unconditional"):
        transformer.sample(jax.random.key(0), state, 2, TEXT, label=1)
    with pytest.raises(ValueError, match=r"not \(2, 5\)"):
        transformer.log_prob(state, jnp.zeros((2, 5), jnp.int32), TEXT)
    with pytest.raises(ValueError, match="alphabet is not known"):
        transformer.init(jax.random.key(0), dataclasses.replace(TEXT, likelihood=Symbols()))
    with pytest.raises(ValueError, match="odd width"):
        transformer.init(jax.random.key(0), dataclasses.replace(TEXT, network=Transformer(6, 1, 2)))
    with pytest.raises(ValueError, match="1 or 3 channels"):
        transformer.init(jax.random.key(0), dataclasses.replace(MIXTURE, shape=(2, 2, 2)))


@pytest.mark.slow
def test_it_learns_the_weather():
    """Held-out nats near the entropy of the chain, which no model is below but by luck of the sample."""
    train, test = data.load("weather"), data.load("weather", "test")
    cfg = transformer.from_data(
        train,
        transformer.Config(
            shape=(14,), likelihood=Symbols(), network=Transformer(16, 1, 2), optimizer=Adam(1e-2)
        ),
    )
    state = jax.jit(transformer.init, static_argnums=1)(jax.random.key(0), cfg)
    tokens = jnp.asarray(train[:]["tokens"])
    batches = jax.random.randint(jax.random.key(1), (600, 64), 0, len(tokens))
    step = lambda state, rows: transformer.train_step(state, {"tokens": tokens[rows]}, cfg)
    state, _ = jax.jit(lambda state: jax.lax.scan(step, state, batches))(state)
    nll = -transformer.log_prob(state, jnp.asarray(test[:]["tokens"]), cfg).mean()
    rows = data.sequences.WEATHER_TRANSITION
    stationary = data.sequences.WEATHER_STATIONARY
    entropy = -(stationary * np.log(stationary)).sum() - 13 * (stationary @ (rows * np.log(rows)).sum(1))
    assert entropy - 0.2 < nll < entropy + 0.2
