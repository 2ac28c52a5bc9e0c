"""Score-function gradients: their means against enumeration, and that each trick lowers their variance."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgen
from experiments.studies import gradients
from jaxgen import data, shard
from jaxgen.belief import nvil
from jaxgen.belief.nvil import NVIL, VIMCO, Baseline, Params, Signal
from jaxgen.energy.bipartite import Bits
from jaxgen.types import from_data
from jaxgen.values import Adam
from tests.belief import exact
from tests.belief.test_helmholtz import PARAMS, SIZES, TINY, V, X, tables

SMALL = nvil.Config(widths=(12, 8))
TRAINED = nvil.Config(widths=(32, 16))
RANDOM = (dataclasses.replace(SMALL, estimator=VIMCO(3)),)
FURTHER = (dataclasses.replace(SMALL, estimator=NVIL(width=8)),)
PLAIN = NVIL(learned=False, centred=False, normalised=False, local=False, decay=1.0)
ROW = np.array([6])
NONE = Signal(jnp.zeros(2), jnp.zeros(2))


def baselines():
    rng = np.random.default_rng(5)
    draw = lambda *shape: jnp.float32(rng.normal(size=shape))
    return tuple(Baseline(draw(size, 6), draw(6), draw(6), draw()) for size in SIZES[:-1])


def estimates(estimator, count, signal=NONE, own=None, net=PARAMS):
    """Gradients of both networks by as many keys, (count, P)."""
    params = Params(net, (baselines() if own is None else own) if getattr(estimator, "learned", 0) else ())
    cfg = nvil.Config(shape=TINY.shape, widths=TINY.widths, estimator=estimator)
    loss = lambda params, key: nvil.estimate(params, {"image": X[ROW]}, key, cfg, signal)[0]
    run = jax.jit(jax.vmap(lambda key: flat(jax.grad(loss)(params, key).net)))
    return np.asarray(run(jax.random.split(jax.random.key(1), count)), np.float64)


def flat(tree):
    return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])


def minus_bound(params):
    log_p, log_q = tables(params, ROW)
    return -(jnp.exp(log_q) * (log_p - log_q)).sum(1).mean()


def variance(estimator, **options):
    """The summed variances of all numbers of a gradient, and of those of the highest recognition layer."""
    found = estimates(estimator, 4000, **options).var(0)
    return found.sum(), found[-sum(leaf.size for leaf in PARAMS.recognition[-1]) :].sum()


SIGNAL = Signal(jnp.float32([-3.0, 2.0]), jnp.float32([0.1, 0.2]))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"learned": True},
        {"centred": True},
        {"local": True},
        {"learned": True, "centred": True, "local": True},
    ],
    ids=lambda options: "+".join(options) or "plain",
)
def test_the_mean_is_the_gradient_of_the_bound(options):
    found = estimates(dataclasses.replace(PLAIN, **options), 40_000, SIGNAL)
    expected = np.asarray(flat(jax.grad(minus_bound)(PARAMS)))
    error = 5 * found.std(0) / np.sqrt(len(found)) + 1e-4
    assert (np.abs(found.mean(0) - expected) < error).all()
    assert np.abs(expected).max() > 10 * np.median(error)


def test_normalising_divides_by_a_deviation_above_one():
    """The gradient of the recognition network only, layer by layer."""
    plain, half = (
        estimates(dataclasses.replace(PLAIN, normalised=True), 4, Signal(jnp.zeros(2), jnp.float32(v)))
        for v in ([0.5, 1.0], [4.0, 9.0])
    )
    np.testing.assert_allclose(plain, estimates(PLAIN, 4), rtol=1e-5)
    numbers = [
        sum(leaf.size for leaf in jax.tree.leaves(part)) for part in (PARAMS.generative, *PARAMS.recognition)
    ]
    parts = [np.split(found, np.cumsum(numbers)[:-1], 1) for found in (plain, half)]
    for one, other, scale in zip(*parts, (1, 2, 3), strict=True):
        np.testing.assert_allclose(one, scale * other, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_each_trick_lowers_the_variance():
    """At running means and a baseline that fit, as training leaves them.

    A local signal does where the terms that it drops vary much, as those of pixels do.
    """

    def signal_of(net, local=False):
        cfg = nvil.Config(
            shape=TINY.shape, widths=TINY.widths, estimator=NVIL(learned=False, local=local, decay=0.0)
        )
        batch = {"image": X[np.repeat(ROW, 20_000)]}
        found = nvil.estimate(Params(net, ()), batch, jax.random.key(7), cfg, NONE)[1][1]
        return found._replace(variance=jnp.full(2, 4.0))

    whole = signal_of(PARAMS)
    constant = tuple(b._replace(output=0 * b.output, constant=whole.mean[0]) for b in baselines())
    plain, _ = variance(PLAIN)
    centred, _ = variance(dataclasses.replace(PLAIN, centred=True), signal=whole)
    learned, _ = variance(dataclasses.replace(PLAIN, learned=True), own=constant)
    both, _ = variance(dataclasses.replace(PLAIN, centred=True, normalised=True), signal=whole)
    assert centred < 0.5 * plain
    assert learned == pytest.approx(centred, rel=1e-3)
    assert both < 0.9 * centred
    first, *rest = PARAMS.generative.layers
    first = first._replace(weight=20 * first.weight)
    net = PARAMS._replace(generative=PARAMS.generative._replace(layers=(first, *rest)))
    (_, all_terms), (_, own_terms) = (
        variance(dataclasses.replace(PLAIN, centred=True, local=local), signal=signal_of(net, local), net=net)
        for local in (False, True)
    )
    assert own_terms < 0.5 * all_terms


def test_statistics_of_the_signal_run():
    """Of what baselines leave, by layer, with the first layer's signal the whole of log p - log q."""
    cfg = nvil.Config(shape=TINY.shape, widths=TINY.widths, estimator=NVIL(decay=0.7))
    params, key = Params(PARAMS, baselines()), jax.random.key(3)
    _, (metrics, found) = nvil.estimate(params, {"image": X}, key, cfg, SIGNAL)
    draw_key = nvil.keys.named(key, "states")
    states = [
        np.asarray(h) for h in nvil.sigmoid_layers.upwards(draw_key, PARAMS.recognition, jnp.float32(V))
    ]
    log_p, log_q = (
        exact.log_joint(PARAMS.generative, states),
        exact.log_recognition(PARAMS.recognition, states),
    )
    assert float(metrics["loss"]) == pytest.approx((log_q - log_p).mean(), rel=1e-4)
    first = exact.bits(
        states[0],
        states[1] @ np.asarray(PARAMS.generative.layers[0].weight).T
        + np.asarray(PARAMS.generative.layers[0].bias),
    )
    lowest = exact.log_recognition(PARAMS.recognition[:1], states[:2])
    signals = [log_p - log_q, log_p - log_q - (first - lowest)]
    for layer, (signal, baseline) in enumerate(zip(signals, params.baselines, strict=True)):
        weight, bias, output, constant = (np.asarray(p, np.float64) for p in baseline)
        left = signal - (np.tanh((2 * states[layer] - 1) @ weight + bias) @ output + constant)
        assert float(found.mean[layer]) == pytest.approx(
            0.7 * float(SIGNAL.mean[layer]) + 0.3 * left.mean(), rel=1e-4
        )
        assert float(found.variance[layer]) == pytest.approx(
            0.7 * float(SIGNAL.variance[layer]) + 0.3 * left.var(), rel=1e-4
        )


def test_baselines_learn_the_signal():
    """By squared errors of what is left of the centred signal; the bound does not depend on them."""
    cfg = nvil.Config(shape=TINY.shape, widths=TINY.widths, estimator=NVIL(decay=1.0))
    loss = lambda own, key: nvil.estimate(Params(PARAMS, own), {"image": X}, key, cfg, SIGNAL)[0]
    own, key = baselines(), jax.random.key(3)
    zeros = jax.tree.map(jnp.zeros_like, own)
    assert float(loss(own, key)) == pytest.approx(float(loss(zeros, key)), rel=1e-6)
    grads = jax.grad(loss)(own, key)
    states = [
        np.asarray(h)
        for h in nvil.sigmoid_layers.upwards(
            nvil.keys.named(key, "states"), PARAMS.recognition, jnp.float32(V)
        )
    ]
    gain = exact.log_joint(PARAMS.generative, states) - exact.log_recognition(PARAMS.recognition, states)
    error = np.asarray(own[0](jnp.asarray(states[0])), np.float64) - (gain - float(SIGNAL.mean[0]))
    assert float(grads[0].constant) == pytest.approx(error.mean(), rel=1e-3)


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_vimco_has_the_gradient_of_the_bound_of_several_draws(count):
    def minus(params):
        log_p, log_q = (t[0] for t in tables(params, ROW))
        tuples = np.array(list(itertools.product(range(len(log_p)), repeat=count)))
        bound = jax.nn.logsumexp((log_p - log_q)[tuples], 1) - jnp.log(count)
        return -(jnp.exp(log_q[tuples].sum(1)) * bound).sum()

    found = estimates(VIMCO(count), 40_000)
    expected = np.asarray(flat(jax.grad(minus)(PARAMS)))
    error = 5 * found.std(0) / np.sqrt(len(found)) + 1e-4
    assert (np.abs(found.mean(0) - expected) < error).all()
    assert np.abs(expected).max() > 10 * np.median(error)


def test_vimco_replaces_each_weight_by_the_geometric_mean_of_the_others():
    log_w = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    found = nvil.left_out(jnp.asarray(log_w))
    for k in range(4):
        others = np.delete(log_w, k, 0)
        w = np.exp(np.concatenate([others, others.mean(0, keepdims=True)]))
        np.testing.assert_allclose(found[k], np.log(w.mean(0)), rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="num_samples must be at least 2"):
        VIMCO(1)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", [NVIL(), VIMCO(5)], ids=["nvil", "vimco"])
def test_it_learns_digits(estimator):
    """Likelihood by enumeration: independent pixels have 25.1 nats, NVIL 19.6 and VIMCO 19.2."""
    cfg = nvil.Config(widths=(14,), visible=Bits("threshold"), estimator=estimator, optimizer=Adam(3e-3))
    train, test = data.load("digits"), data.load("digits", "test")
    options = {"mesh": shard.mesh(1), "sample_every": 0, "save_every": 0}
    state = jaxgen.fit(
        nvil, from_data(nvil, train, cfg), train, steps=5000, batch_size=64, key=jax.random.key(0), **options
    )
    nll = -float(nvil.exact_log_prob(state, jnp.asarray(test[:]["image"]), cfg).mean())
    assert nll < 20.3


def test_noise_is_pooled_by_its_inverse():
    # Inverses 1/50 and 1/200 have the mean 1/80 and the standard error 3/400; one of -1/100 lowers the mean.
    found = gradients.pooled([[50.0], [200.0]])
    assert found == {"pooled": 80.0, "pooled_interval": [50.0, 200.0]}
    assert gradients.pooled([[50.0, -100.0]])["pooled"] == 200.0
