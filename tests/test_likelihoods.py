"""Likelihoods of finitely many values: normalised, and what temperature, top_k and top_p leave of them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import distributions
from jaxgen.likelihoods import Bernoulli, Categorical, Gaussian, LogisticMixture, MuLaw, Symbols, sharpened

SOFTMAX = {
    "levels": Categorical(levels=5),
    "one-hot": Categorical(one_hot=True, levels=5),
    "symbols": Symbols(5),
    "sound": MuLaw(5),
}


def outputs(count, channels=2, size=5):
    return jnp.float32(np.random.default_rng(0).normal(size=(count, channels * size)))


@pytest.mark.parametrize("name", SOFTMAX)
def test_values_and_their_numbers(name):
    likelihood = SOFTMAX[name]
    index = jnp.arange(5)
    value = likelihood.value(index)
    np.testing.assert_array_equal(likelihood.index(value), index)
    np.testing.assert_array_equal(likelihood.targets(None, value[:, None]), value[:, None])
    if name != "symbols":
        np.testing.assert_allclose([value[0], value[2], value[4]], [-1, 0, 1], atol=1e-6)
        near = likelihood.targets(None, value + 0.01)
        np.testing.assert_allclose(near, value, atol=1e-6)
    given = likelihood.inputs(jnp.stack([value, value[::-1]], -1))
    wanted = np.concatenate([np.eye(5), np.eye(5)[::-1]], 1)
    if name == "levels":
        np.testing.assert_allclose(given[:, 0], value)
    else:
        np.testing.assert_array_equal(given, wanted)


@pytest.mark.parametrize("name", SOFTMAX)
def test_log_prob_is_that_of_a_softmax_for_each_channel(name):
    likelihood, output = SOFTMAX[name], outputs(5)
    assert likelihood.num_outputs(2) == 10
    x = likelihood.value(jnp.array([[0, 4], [1, 3], [2, 2], [3, 0], [4, 4]]))
    found = likelihood.log_prob({}, output, x)
    p = np.exp(np.asarray(output, np.float64)).reshape(5, 2, 5)
    p /= p.sum(-1, keepdims=True)
    wanted = [np.log(p[i, 0, a] * p[i, 1, b]) for i, (a, b) in enumerate(np.asarray(likelihood.index(x)))]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    np.testing.assert_allclose(
        likelihood.mean({}, output), p @ np.asarray(likelihood.value(np.arange(5))), atol=1e-5
    )


def test_draws_have_the_frequencies_of_the_softmax():
    likelihood, output = Categorical(levels=5), jnp.tile(outputs(1, 1), (20_000, 1))
    drawn = likelihood.index(likelihood.sample(jax.random.key(0), {}, output))
    wanted = np.asarray(jax.nn.softmax(output[0]))
    np.testing.assert_allclose(np.bincount(np.asarray(drawn[:, 0]), minlength=5) / 20_000, wanted, atol=0.015)


def test_what_is_no_symbol_is_refused_or_impossible():
    with pytest.raises(ValueError, match=r"in 0\.\.4"):
        Symbols(5).targets(None, jnp.array([5]))
    with pytest.raises(ValueError, match="integers"):
        Symbols(5).index(jnp.array([0.5]))
    with pytest.raises(ValueError, match="alphabet is not known"):
        Symbols().num_outputs(1)
    with pytest.raises(ValueError, match="pixels, not of real numbers"):
        Categorical(levels=0).check((8, 8, 1))
    found = jax.jit(lambda x: Symbols(5).log_prob({}, outputs(2, 1), x))(jnp.array([[5], [-1]]))
    np.testing.assert_array_equal(found, -np.inf)


def test_temperature():
    """p^(1 / T), renormalised; at 0 the likeliest alone."""
    logits = outputs(4)[:, :5]
    p = np.exp(np.asarray(logits)) ** 2
    np.testing.assert_allclose(jax.nn.softmax(sharpened(logits, 0.5)), p / p.sum(1, keepdims=True), rtol=1e-5)
    np.testing.assert_array_equal(jax.nn.softmax(sharpened(logits, 0.0)).argmax(1), logits.argmax(1))
    np.testing.assert_allclose(jax.nn.softmax(sharpened(logits, 0.0)).max(1), 1)
    bits = Bernoulli().sharpened(logits, 0.5)
    np.testing.assert_allclose(bits, 2 * logits, rtol=1e-5)
    np.testing.assert_array_equal(jax.nn.sigmoid(Bernoulli().sharpened(logits, 0.0)), np.asarray(logits) > 0)


def test_top_k_and_top_p_keep_the_likeliest():
    p = np.array([0.4, 0.05, 0.3, 0.15, 0.1])
    kept = lambda **options: np.flatnonzero(np.isfinite(sharpened(jnp.log(p), **options))).tolist()
    assert kept(top_k=2) == [0, 2]
    assert kept(top_k=9) == [0, 1, 2, 3, 4]
    assert kept(top_p=0.39) == [0]
    assert kept(top_p=0.41) == [0, 2]
    assert kept(top_p=0.72) == [0, 2, 3]
    assert kept(top_p=1.0) == [0, 1, 2, 3, 4]
    assert kept(top_k=3, top_p=0.5) == [0, 2]
    left = jax.nn.softmax(sharpened(jnp.log(p), top_k=2))
    np.testing.assert_allclose(left, [4 / 7, 0, 3 / 7, 0, 0], rtol=1e-5)
    assert kept(top_p=1e-300) == kept(temperature=1e-300) == kept(temperature=1e-40) == [0]
    channels = SOFTMAX["symbols"].sharpened(jnp.log(np.tile(p, 2))[None], top_k=1)
    np.testing.assert_array_equal(np.isfinite(channels[0]), [True, *[False] * 4] * 2)


def test_a_sharpened_mixture_of_logistics_is_narrower_and_surer():
    likelihood = LogisticMixture(2, shape=(4, 4, 1), levels=256)
    output = jnp.tile(jnp.array([0.4, 0.0, -0.5, 0.5, -2.0, -2.0]), (4000, 1))
    spread, share = [], []
    for temperature in (1.0, 0.5, 0.0):
        sharp = likelihood.sharpened(output, temperature)
        x = likelihood.sample(jax.random.key(0), {}, sharp)[:, 0]
        left = x < 0
        spread.append(float(jnp.where(left, x + 0.5, x - 0.5).std()))
        share.append(float(left.mean()))
    np.testing.assert_allclose(share, [1 / (1 + np.exp(-0.4)), 1 / (1 + np.exp(-0.8)), 1.0], atol=0.03)
    assert spread[0] > 1.6 * spread[1]
    assert spread[2] == 0
    np.testing.assert_array_equal(x, likelihood.targets(None, jnp.full(4000, -0.5)))
    colour = LogisticMixture(2, shape=(4, 4, 3), levels=256)
    both = jnp.arange(20.0)[None]
    sharp = colour.sharpened(both, 0.5)
    changed = np.flatnonzero(~np.isclose(sharp, both)[0])
    assert set(changed) == {0, 1, *range(8, 14)}  # logits, and log-scales; neither means nor coefficients
    np.testing.assert_allclose(sharp[0, 8:14] - both[0, 8:14], np.log(0.5), rtol=1e-5)


@pytest.mark.parametrize(
    ("likelihood", "options"),
    [
        (Symbols(5), {"temperature": -1.0}),
        (Symbols(5), {"temperature": float("nan")}),
        (Symbols(5), {"temperature": float("inf")}),
        (Symbols(5), {"top_k": 0}),
        (Symbols(5), {"top_p": 0.0}),
        (LogisticMixture(2), {"top_k": 1}),
        (Gaussian(), {"temperature": 0.5}),
    ],
)
def test_what_cannot_be_is_refused(likelihood, options):
    with pytest.raises(ValueError, match=r"temperature|top_k|top_p"):
        likelihood.sharpened(outputs(2, 1), **options)


def test_levels_of_a_vae_under_a_softmax_sum_to_one():
    """All 25 values of two channels, from the one output of a decoder."""
    likelihood = dataclasses.replace(SOFTMAX["levels"])
    x = likelihood.value(jnp.stack(jnp.meshgrid(jnp.arange(5), jnp.arange(5)), -1).reshape(25, 1, 2))
    log_p = likelihood.log_prob({}, jnp.tile(outputs(1)[:, None], (25, 1, 1)), x)
    np.testing.assert_allclose(jnp.exp(log_p).sum(), 1, rtol=1e-5)
    no_bits = distributions.bernoulli(jax.random.key(0), jnp.zeros((0, 3)))
    assert no_bits.shape == (0, 3)
