"""Deep Boltzmann machines: partition function, bound and gradient against sums over all states."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from jaxgen.energy import ais, dbm
from jaxgen.energy.bipartite import Machine
from jaxgen.energy.chains import Persistent
from jaxgen.values import SGD
from tests.energy import exact

SMALL = dbm.Config(widths=(12, 8), chains=Persistent(8, 1), optimizer=SGD(0.02))
TRAINED = dbm.Config(
    widths=(48, 32), chains=Persistent(64, 2), optimizer=SGD(0.1, momentum=0.5), centred=True
)
FURTHER = (dataclasses.replace(SMALL, widths=(6, 5, 4), centred=True, largest_norm=1.0),)
OPTIONS = {"largest_norm": 0.5, "tolerance": 0.1}
TWO = dbm.Config(shape=(2, 2, 1), widths=(3, 3))
THREE = dbm.Config(shape=(2, 2, 1), widths=(3, 2, 3))
BOTH = pytest.mark.parametrize("cfg", [TWO, THREE], ids=["two", "three"])


def random_params(cfg, scale=0.7, seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.float32(scale * rng.normal(size=shape))
    return dbm.Params(
        tuple(draw(*pair) for pair in itertools.pairwise(cfg.sizes)), tuple(draw(size) for size in cfg.sizes)
    )


def every_state(cfg):
    """All states of all layers, a list of arrays (N, n_l), and of p(x) the unnormalised logarithms, (N,)."""
    x = exact.states(sum(cfg.sizes))
    return np.split(x, np.cumsum(cfg.sizes)[:-1], 1)


def minus_energy(params, layers):
    weights, biases = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
    found = sum(layer @ bias for layer, bias in zip(layers, biases, strict=True))
    pairs = zip(itertools.pairwise(layers), weights, strict=True)
    return found + sum(((low @ weight) * high).sum(1) for (low, high), weight in pairs)


def log_prob(params, cfg):
    """log p(v) of all states v of the visible layer, (2^D,), and log Z."""
    layers = every_state(cfg)
    log_f = minus_energy(params, layers).reshape(2 ** cfg.sizes[0], -1)
    log_z = scipy.special.logsumexp(log_f)
    return scipy.special.logsumexp(log_f, 1) - log_z, log_z


def state_of(cfg, params):
    return dbm.around(jax.random.key(0), params, cfg)


def visible(cfg):
    """All states v in the order of `log_prob`, and as pictures."""
    v = exact.states(cfg.sizes[0])
    return v, jnp.float32(2 * v - 1).reshape(-1, *cfg.shape)


@BOTH
def test_the_machine_of_two_layers_has_the_same_partition_function(cfg):
    params = random_params(cfg)
    log_z = log_prob(params, cfg)[1]
    assert float(Machine().log_partition(dbm.two_layers(params))) == pytest.approx(log_z, abs=1e-4)
    estimate, error = ais.log_partition(jax.random.key(0), dbm.two_layers(params), num_temperatures=100)
    assert abs(float(estimate) - log_z) < 4 * float(error) + 0.02


@BOTH
def test_the_bound_lies_below_the_likelihood_and_rises_with_turns(cfg):
    params = random_params(cfg, 1.2)
    exactly, log_z = log_prob(params, cfg)
    v, _ = visible(cfg)
    bounds = []
    for turns in (1, 2, 3, 5, 50):
        given = dataclasses.replace(cfg, most_turns=turns, tolerance=0.0)
        bounds.append(np.asarray(dbm.bound(params, *dbm.mean_field(params, jnp.float32(v), given))) - log_z)
    assert (np.diff(bounds, axis=0) > -1e-5).all()
    assert (np.diff(bounds, axis=0).max(1) > 1e-5)[:2].all()
    assert (bounds[-1] < exactly + 1e-5).all()
    assert (exactly - bounds[-1]).mean() < 0.5


@BOTH
def test_the_posterior_is_a_fixed_point_near_the_exact_one(cfg):
    params = random_params(cfg, 0.3)
    v, _ = visible(cfg)
    given = dataclasses.replace(cfg, most_turns=100, tolerance=1e-7)
    means = dbm._layers(*dbm.mean_field(params, jnp.float32(v), given), cfg)
    np.testing.assert_array_equal(means[0], v)
    for index in range(1, len(means)):
        field = params.biases[index] + means[index - 1] @ params.weights[index - 1]
        if index + 1 < len(means):
            field += means[index + 1] @ params.weights[index].T
        np.testing.assert_allclose(means[index], jax.nn.sigmoid(field), atol=1e-5)
    layers = every_state(cfg)
    p = np.exp(minus_energy(params, layers)).reshape(len(v), -1)
    p /= p.sum(1, keepdims=True)
    for mean, layer in zip(means[1:], layers[1:], strict=True):
        expected = (p[..., None] * layer.reshape(len(v), -1, layer.shape[1])).sum(1)
        np.testing.assert_allclose(mean, expected, atol=0.03)


def test_the_posterior_stops_at_its_tolerance():
    params = random_params(TWO, 1.2)
    v = jnp.float32(visible(TWO)[0])
    few = dbm.mean_field(params, v, dataclasses.replace(TWO, tolerance=0.05))
    exactly = dbm.mean_field(params, v, dataclasses.replace(TWO, tolerance=0.0, most_turns=200))
    difference = max(float(jnp.abs(a - b).max()) for a, b in zip(few, exactly, strict=True))
    assert 1e-5 < difference < 0.2


@BOTH
def test_a_step_follows_the_gradient_of_the_bound(cfg):
    """Moments under the posterior minus those under the model, the latter by long chains."""
    params = random_params(cfg)
    cfg = dataclasses.replace(
        cfg,
        chains=Persistent(20000, 30),
        weight_decay=0.0,
        optimizer=SGD(1.0),
        tolerance=1e-7,
        most_turns=100,
    )
    v, x = visible(cfg)
    after, _ = jax.jit(lambda state: dbm.train_step(state, {"image": x[3:9]}, cfg))(state_of(cfg, params))
    found = jax.tree.map(jnp.subtract, after.params, params)
    means = [np.asarray(m) for m in dbm._layers(*dbm.mean_field(params, jnp.float32(v[3:9]), cfg), cfg)]
    layers = every_state(cfg)
    p = np.exp(minus_energy(params, layers) - log_prob(params, cfg)[1])
    pairs = lambda layers: itertools.pairwise(layers)
    expected = dbm.Params(
        tuple(
            a.T @ b / len(a) - (c * p[:, None]).T @ d
            for (a, b), (c, d) in zip(pairs(means), pairs(layers), strict=True)
        ),
        tuple(a.mean(0) - p @ b for a, b in zip(means, layers, strict=True)),
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=0.025), found, expected)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected)) > 0.2


def test_the_centred_gradient_does_not_care_what_bits_are_called():
    """Flipping the bits of a layer, x -> 1 - x, gives the same machine in other parameters, and one step."""
    params, rng = random_params(TWO), np.random.default_rng(1)
    grads = jax.tree.map(lambda p: jnp.float32(rng.normal(size=p.shape)), params)
    offsets = [jnp.float32(rng.uniform(size=size)) for size in TWO.sizes]

    def flipped(params):
        """The parameters in which h_1 has opposite bits."""
        (w1, w2), (b0, b1, b2) = params
        return dbm.Params((-w1, -w2), (b0 + w1.sum(1), -b1, b2 + w2.sum(0)))

    # d(x (1 - y)') = d(x 1') - d(x y'), and so for biases.
    (g1, g2), (c0, c1, c2) = grads
    other = dbm.Params((c0[:, None] - g1, c2[None] - g2), (c0, -c1, c2))
    step = lambda params, grads, offsets: jax.tree.map(jnp.add, params, dbm.centred(grads, offsets))
    here = flipped(step(params, grads, offsets))
    there = step(flipped(params), other, [offsets[0], 1 - offsets[1], offsets[2]])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), here, there)
    plain = step(flipped(params), other, [jnp.zeros(size) for size in TWO.sizes])
    assert jnp.abs(plain.weights[0] - here.weights[0]).max() > 0.1


@pytest.mark.slow
def test_a_centred_step_takes_offsets_half_way_between_data_and_model():
    """And chains go on from step to step."""
    plain = dataclasses.replace(TWO, chains=Persistent(5, 1), optimizer=SGD(1.0), weight_decay=0.0)
    params, (v, x) = random_params(TWO), visible(TWO)
    before = state_of(plain, params)
    step = lambda cfg: dbm.train_step(before, {"image": x[3:9]}, cfg)[0]
    uncentred, centred = step(plain), step(dataclasses.replace(plain, centred=True))
    np.testing.assert_array_equal(uncentred.chains, centred.chains)
    assert (uncentred.chains != before.chains).any()
    grads = jax.tree.map(jnp.subtract, params, uncentred.params)
    odd, even = dbm.mean_field(params, jnp.float32(v[3:9]), plain)
    model_odd = uncentred.chains
    model_even = Machine().hidden_mean(dbm.two_layers(params), model_odd)
    pairs = zip(dbm._layers(odd, even, TWO), dbm._layers(model_odd, model_even, TWO), strict=True)
    offsets = [(data.mean(0) + model.mean(0)) / 2 for data, model in pairs]
    expected = jax.tree.map(jnp.subtract, params, dbm.centred(grads, offsets))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), centred.params, expected)
    assert jnp.abs(centred.params.weights[0] - uncentred.params.weights[0]).max() > 0.01


def test_the_posterior_starts_at_a_pass_that_doubles_what_comes_from_below():
    params, (v, _) = random_params(THREE), visible(THREE)
    found = dbm.mean_field(params, jnp.float32(v), dataclasses.replace(THREE, most_turns=0))
    h = v
    for index, times in enumerate((2, 2, 1)):
        h = jax.nn.sigmoid(params.biases[index + 1] + times * h @ params.weights[index])
        np.testing.assert_allclose(dbm._layers(*found, THREE)[index + 1], h, atol=1e-5)


def test_bits_are_drawn_from_grey_values():
    """By the key of a step, or by one that is given; hidden probabilities are of grey values as they are."""
    state, x = state_of(TWO, random_params(TWO)), jnp.full((200, 2, 2, 1), -0.2)
    posterior = lambda v: dbm.mean_field(state.params, v, TWO)
    drawn = lambda key: posterior(TWO.visible.units(key, x.reshape(200, 4)))
    found = dbm.unnormalized_elbo(state, x, TWO, key=jax.random.key(3))
    expected = dbm.bound(state.params, *drawn(jax.random.key(3)))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert found.std() > 0.1
    _, metrics = dbm.train_step(state, {"image": x}, TWO)
    odd, _ = drawn(dbm.keys.named(jax.random.fold_in(state.key, 0), "data"))
    assert float(metrics["activity"]) == pytest.approx(float(odd.mean()), rel=1e-4)
    hidden = jnp.concatenate(dbm._layers(*posterior(jnp.full((1, 4), 0.4)), TWO)[1:], -1)
    np.testing.assert_allclose(dbm.encode(state, x[:1], TWO), hidden, atol=1e-5)


def test_weight_decay_is_half_the_sum_of_squares():
    params = random_params(THREE)
    model_odd, even = jnp.zeros((1, 6)), jnp.ones((1, 6))
    value = lambda decay: dbm.contrast(
        params, model_odd, even, model_odd, dataclasses.replace(THREE, weight_decay=decay)
    )[0]
    expected = 0.5 * sum((np.asarray(weight) ** 2).sum() for weight in params.weights)
    assert float(value(1.0) - value(0.0)) == pytest.approx(expected, rel=1e-4)


def test_biases_start_at_the_mean_of_the_data():
    v, x = visible(TWO)
    state = dbm.init(jax.random.key(0), TWO, {"image": x[v[:, 0] == 1]})
    np.testing.assert_allclose(jax.nn.sigmoid(state.params.biases[0]), [0.99] + [0.5] * 3, atol=1e-5)


def test_restricted_machines_give_hidden_layers_half_each():
    rbms = [
        exact.random_params(4, 3, seed=0),
        exact.random_params(3, 2, seed=1),
        exact.random_params(2, 3, seed=2),
    ]
    params = dbm.from_rbms(rbms)
    assert dbm.copies(3) == [(2, 1), (2, 2), (1, 2)]
    assert dbm.copies(2) == [(2, 1), (1, 2)]
    v, h2 = (np.float32(exact.states(n)[-2:]) for n in (4, 2))
    machines = [Machine(copies=pair) for pair in dbm.copies(3)]
    up = machines[0].hidden_field(rbms[0], v)  # twice, as if there were no layer above
    down = 2 * h2 @ rbms[1].weight.T + rbms[1].visible_bias
    np.testing.assert_allclose(
        (up + down) / 2, params.biases[1] + v @ params.weights[0] + h2 @ params.weights[1].T, rtol=1e-5
    )
    np.testing.assert_allclose(machines[1].visible_mean(rbms[1], h2), jax.nn.sigmoid(down), rtol=1e-5)
    top = machines[2].hidden_field(rbms[2], h2)
    np.testing.assert_allclose(top, params.biases[3] + h2 @ params.weights[2], rtol=1e-5)


def test_samples_and_reconstructions_have_the_means_of_the_model():
    params = random_params(TWO)
    v, x = visible(TWO)
    p = np.exp(log_prob(params, TWO)[0])
    draw = jax.jit(lambda key: dbm.sample(key, state_of(TWO, params), 20000, TWO, num_steps=50))
    np.testing.assert_allclose((draw(jax.random.key(0)).mean(0).ravel() + 1) / 2, p @ v, atol=0.02)
    given = dataclasses.replace(TWO, tolerance=1e-7, most_turns=100)
    means = dbm._layers(*dbm.mean_field(params, jnp.float32(v), given), TWO)
    np.testing.assert_allclose(dbm.encode(state_of(TWO, params), x, given), np.hstack(means[1:]), atol=1e-5)
    back = 2 * jax.nn.sigmoid(params.biases[0] + means[1] @ params.weights[0].T) - 1
    found = dbm.reconstruct(state_of(TWO, params), x, given)
    np.testing.assert_allclose(found.reshape(back.shape), back, atol=1e-5)
    bound = np.asarray(dbm.unnormalized_elbo(state_of(TWO, params), x, given)) - log_prob(params, TWO)[1]
    assert (bound < np.log(p) + 1e-5).all()
    np.testing.assert_array_equal(
        dbm.score(state_of(TWO, params), x, given), dbm.unnormalized_elbo(state_of(TWO, params), x, given)
    )


def test_weights_are_kept_short():
    cfg = dataclasses.replace(TWO, largest_norm=0.5, optimizer=SGD(1e-3))
    params = random_params(TWO)
    after, _ = dbm.train_step(state_of(cfg, params), {"image": visible(TWO)[1]}, cfg)
    for before, now in zip(params.weights, after.params.weights, strict=True):
        norms = np.linalg.norm(before, axis=0)
        np.testing.assert_allclose(np.linalg.norm(now, axis=0), np.minimum(norms, 0.5), atol=5e-3)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="2 hidden layers or more"):
        dbm.init(jax.random.key(0), dataclasses.replace(TWO, widths=(3,)))
    with pytest.raises(ValueError, match="not from real numbers"):
        dbm.init(jax.random.key(0), dataclasses.replace(TWO, levels=0))
