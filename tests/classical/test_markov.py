import collections
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import data
from jaxgen.classical import markov
from jaxgen.data.sequences import WEATHER_STATIONARY, WEATHER_TRANSITION

SMALL, DATA = markov.Config(), "weather"
OPTIONS = {"max_rows": 3}

LENGTHS = np.array([9, 4, 0, 1, 6])
MASK = np.arange(9) < LENGTHS[:, None]
X = np.where(MASK, np.random.default_rng(0).integers(0, 3, (5, 9)), -1)


def config(**options):
    return markov.Config(shape=(9,), num_symbols=3, **options)


def by_hand(cfg):
    """log p of each row of X under the chain fitted to X, by dictionaries."""
    counts = collections.Counter()
    for row, length in zip(X, LENGTHS, strict=True):
        padded = [3] * cfg.order + list(row[:length])
        for t, order in itertools.product(range(length), range(cfg.order + 1)):
            counts[order, tuple(padded[cfg.order + t - order : cfg.order + t]), row[t]] += 1

    def p(context, symbol):
        seen = [counts[len(context), context, other] for other in range(3)]
        below = p(context[1:], symbol) if context and cfg.backoff else 1 / 3
        total = sum(seen) + 3 * cfg.smoothing
        return (seen[symbol] + 3 * cfg.smoothing * below) / total if total else below

    log_p = []
    for row, length in zip(X, LENGTHS, strict=True):
        padded = [3] * cfg.order + list(row[:length])
        factors = [p(tuple(padded[t : t + cfg.order]), row[t]) for t in range(length)]
        log_p.append(sum(math.log(factor) for factor in factors))
    return log_p


@pytest.mark.parametrize(
    "cfg",
    [
        config(order=0),
        config(order=1, smoothing=0.0),
        config(order=2, smoothing=0.5),
        config(order=3, backoff=True),
    ],
    ids=["0", "1", "2", "3, backoff"],
)
def test_likelihood_is_that_of_counts_in_dictionaries(cfg):
    state = markov.fit(X, cfg, MASK)
    np.testing.assert_allclose(
        markov.log_prob(state, jnp.asarray(X), cfg, MASK), by_hand(cfg), rtol=1e-5, atol=1e-6
    )


@pytest.mark.slow
@pytest.mark.parametrize("max_rows", [2**20, 7])
def test_probabilities_of_all_sequences_sum_to_one(max_rows):
    cfg = config(order=2, smoothing=0.3, backoff=True, max_rows=max_rows)
    state = markov.fit(X, cfg, MASK)
    assert state.params[-1].shape == (min(max_rows, 16), 3)
    every = jnp.array(list(itertools.product(range(3), repeat=5)))
    assert jnp.exp(markov.log_prob(state, every, cfg)).sum() == pytest.approx(1.0, abs=1e-5)


def test_steps_on_batches_count_as_one_fit_does():
    cfg = config(order=2, backoff=True)
    step = jax.jit(functools.partial(markov.train_step, cfg=cfg))
    state = markov.init(jax.random.key(0), cfg)
    for rows in (slice(2), slice(2, 5)):
        state, metrics = step(state, {"tokens": jnp.asarray(X[rows]), "mask": jnp.asarray(MASK[rows])})
    jax.tree.map(np.testing.assert_array_equal, state.params, markov.fit(X, cfg, MASK).params)
    assert sum(table.sum() for table in state.params) == 3 * MASK.sum()
    assert jnp.isfinite(metrics["nll"])


@pytest.fixture(scope="module")
def weather():
    """The chain of the weather with its true probabilities, as counts."""
    cfg = config(smoothing=0.0)
    table = np.round(100 * np.vstack([WEATHER_TRANSITION, WEATHER_STATIONARY]))
    return markov.State(jnp.int32(0), jax.random.key(0), (jnp.asarray(table, jnp.int32),)), cfg


@pytest.mark.slow
def test_the_weather(weather):
    state, cfg = weather
    moves = markov.transition_matrix(state, cfg)
    np.testing.assert_allclose(moves, WEATHER_TRANSITION, rtol=1e-6)
    log_p = markov.log_prob(state, jnp.array([[0, 0, 1], [0, -1, -1]]), cfg, np.arange(3) < [[3], [1]])
    assert jnp.exp(log_p[0] - log_p[1]) == pytest.approx(0.04, rel=1e-5)
    assert (moves @ moves)[2, 1] == pytest.approx(0.34, rel=1e-5)
    np.testing.assert_allclose(markov.expected_stay(moves), [5.0, 2.5, 2.0], rtol=1e-5)


def test_the_stationary_law_is_the_eigenvector_of_one(weather):
    np.testing.assert_allclose(
        markov.stationary(jnp.asarray(WEATHER_TRANSITION)), WEATHER_STATIONARY, rtol=1e-5
    )
    other = np.random.default_rng(1).dirichlet(np.ones(6), 6)
    values, vectors = np.linalg.eig(other.T)
    vector = vectors[:, np.argmax(values.real)].real
    np.testing.assert_allclose(markov.stationary(jnp.float32(other)), vector / vector.sum(), rtol=1e-4)


def test_samples_follow_the_chain(weather):
    state, cfg = weather
    x = np.asarray(markov.sample(jax.random.key(0), state, 2000, cfg, length=20))
    counts = np.zeros((3, 3))
    np.add.at(counts, (x[:, :-1].ravel(), x[:, 1:].ravel()), 1)
    n = counts.sum(1, keepdims=True)
    error = np.abs(counts / n - WEATHER_TRANSITION)
    assert (error < 5 * np.sqrt(WEATHER_TRANSITION * (1 - WEATHER_TRANSITION) / n)).all()
    after_fog = markov.sample(jax.random.key(1), state, 20_000, cfg, length=1, prompt=[0, 2])
    np.testing.assert_allclose(np.bincount(after_fog[:, 0]) / 20_000, WEATHER_TRANSITION[2], atol=0.02)


@pytest.mark.slow
def test_the_order_is_found():
    assert markov.choose_order(data.load("weather").arrays["tokens"], config(), range(4))[0] == 1
    # Each symbol is the sum of the two before it, most of the time: no single one of them tells.
    rng = np.random.default_rng(0)
    x = list(rng.integers(0, 3, 2))
    for noise in rng.random(5000):
        x.append((x[-1] + x[-2]) % 3 if noise < 0.8 else rng.integers(3))
    best, found = markov.choose_order(np.array([x]), config(), range(5))
    assert best == 2
    assert set(found) == set(range(5))


@pytest.mark.slow
def test_backing_off_helps_where_contexts_are_new():
    tokens = data.load("weather").arrays["tokens"]
    test = jnp.asarray(data.load("weather", "test").arrays["tokens"])
    nll = [
        -markov.log_prob(markov.fit(tokens[:300], cfg), test, cfg).mean()
        for cfg in (config(order=5, smoothing=10.0, backoff=backoff) for backoff in (True, False))
    ]
    assert nll[0] < nll[1] - 0.5


def test_the_alphabet_is_that_of_the_data():
    cfg = markov.from_data(data.load("weather"), markov.Config())
    assert cfg.num_symbols == 3
    assert markov.from_data(data.load("weather"), markov.Config(num_symbols=5)).num_symbols == 5
    assert markov.init(jax.random.key(0), cfg).params[0].shape == (4, 3)
    with pytest.raises(ValueError, match="set num_symbols"):
        markov.init(jax.random.key(0), markov.Config())


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"symbols must be integers in 0\.\.2"):
        markov.fit(X, config())
    with pytest.raises(ValueError, match="integers"):
        markov.fit(np.full((1, 2), np.nan), config())
    with pytest.raises(ValueError, match="end"):
        markov.fit(np.abs(X), config(), MASK[:, ::-1])
    with pytest.raises(ValueError, match="x must be"):
        markov.fit(X[0], config())
    with pytest.raises(ValueError, match="order 2 has no transition matrix"):
        markov.transition_matrix(markov.init(jax.random.key(0), config(order=2)), config(order=2))
    state = markov.fit(X, config(), MASK)
    with pytest.raises(ValueError, match="symbols are integers, not float32"):
        markov.log_prob(state, jnp.ones((2, 2)), config())
    with pytest.raises(ValueError, match=r"'tokens'\] must be integers, not float32"):
        markov.train_step(state, {"tokens": jnp.ones((2, 9))}, config())
    assert (markov.log_prob(state, jnp.array([[0, 3], [-1, 0]]), config()) == -jnp.inf).all()
