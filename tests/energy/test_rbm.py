"""Restricted Boltzmann machines: gradients, chains and labels against sums over states, and a short run."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgen
from jaxgen import data, shard
from jaxgen.energy import rbm
from jaxgen.energy.bipartite import Bits, Gaussian
from jaxgen.energy.chains import ContrastiveDivergence, Persistent, Tempered
from jaxgen.energy.rbm import Sparsity
from jaxgen.values import SGD
from tests.energy import exact

SMALL = rbm.Config(num_hidden=16, chains=Persistent(8))
TRAINED = rbm.Config(num_hidden=64, chains=Persistent(64, num_steps=2))
LABELLED = dataclasses.replace(SMALL, conditional=True, num_classes=10)
RANDOM = (
    LABELLED,
    dataclasses.replace(SMALL, chains=Tempered(8, 3), visible=Gaussian(0.8), sparsity=Sparsity()),
)
FURTHER = (dataclasses.replace(SMALL, chains=ContrastiveDivergence(2)),)
OPTIONS = {"copies": (2, 1)}
TINY = rbm.Config(shape=(2, 3, 1), num_hidden=4)
PARAMS = exact.random_params(6, 4)
V = exact.states(6)
LABELS = dataclasses.replace(TINY, shape=(3, 1, 1), conditional=True, num_classes=3)


def state_of(cfg, params=PARAMS):
    return rbm.init(jax.random.key(0), cfg)._replace(params=params)


def pictures(v, cfg=TINY):
    return jnp.float32(2 * v - 1).reshape(-1, *cfg.shape)


def ascent(cfg, batch):
    """The gradient that a step of plain gradient descent of size 1 has followed."""
    cfg = dataclasses.replace(cfg, optimizer=SGD(1.0), weight_decay=0.0)
    state = state_of(cfg)
    after, _ = jax.jit(lambda state: rbm.train_step(state, batch, cfg))(state)
    return jax.tree.map(jnp.subtract, after.params, state.params)


def test_the_contrast_has_the_gradient_of_the_likelihood():
    """With all states of the model in the place of draws, as often as they come."""
    v = V[[3, 17, 50, 51]]
    weights = exact.joint(PARAMS).sum(1)

    def contrast(params):
        of_model = rbm.machine(TINY).log_unnormalized(params, jnp.float32(V))
        return rbm.machine(TINY).log_unnormalized(params, jnp.float32(v)).mean() - of_model @ weights

    expected = exact.log_likelihood_gradient(PARAMS, v)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), jax.grad(contrast)(PARAMS), expected
    )
    cfg = dataclasses.replace(TINY, weight_decay=0.0)
    model_v = jnp.float32(V[[9, 30, 31]])
    found = jax.grad(lambda params: rbm.contrast(params, jnp.float32(v), model_v, cfg)[0])(PARAMS)
    one = jax.grad(lambda params: rbm.machine(TINY).log_unnormalized(params, model_v).mean())(PARAMS)
    two = jax.grad(lambda params: rbm.machine(TINY).log_unnormalized(params, jnp.float32(v)).mean())(PARAMS)
    jax.tree.map(lambda a, b, c: np.testing.assert_allclose(a, b - c, atol=1e-6), found, one, two)


@pytest.mark.parametrize(
    "chains",
    [ContrastiveDivergence(40), Persistent(20000, 40), Tempered(10000, 3, 20)],
    ids=["cd", "pcd", "pt"],
)
def test_long_chains_give_the_gradient_of_the_likelihood(chains):
    v = V[[3, 17, 50, 51]]
    batch = {"image": pictures(np.repeat(v, 5000, 0))}
    found = ascent(dataclasses.replace(TINY, chains=chains), batch)
    expected = exact.log_likelihood_gradient(PARAMS, v)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=0.02), found, expected)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected)) > 0.2


def test_one_step_from_the_data_is_another_gradient():
    """The bias of CD-1, against its expectation over all states."""
    v = V[[3, 17, 50, 51]]
    found = ascent(
        dataclasses.replace(TINY, chains=ContrastiveDivergence(1)), {"image": pictures(np.repeat(v, 5000, 0))}
    )
    p = exact.joint(PARAMS)
    h_given_v, v_given_h = p / p.sum(1, keepdims=True), (p / p.sum(0)).T
    rows = [int(np.flatnonzero((row == V).all(1))[0]) for row in v]
    reached = (h_given_v[rows] @ v_given_h).mean(0)  # over all states of v
    activity = np.asarray(rbm.machine(TINY).hidden_mean(PARAMS, jnp.float32(V)))
    moments = lambda weights: V.T @ (weights[:, None] * activity)
    start = np.bincount(rows, minlength=64) / len(rows)
    np.testing.assert_allclose(found.weight, moments(start) - moments(reached), atol=0.02)


def test_persistent_chains_go_on_and_others_start_at_the_data():
    cfg = dataclasses.replace(TINY, chains=Persistent(3, 1))
    state, batch = state_of(cfg), {"image": pictures(V[:4])}
    step = jax.jit(lambda state: rbm.train_step(state, batch, cfg)[0])
    first = step(state)
    key = jax.random.fold_in(state.key, 0)
    chains, model_v = cfg.chains.advance(
        jaxgen.keys.named(key, "chains"), rbm.machine(cfg), state.params, state.chains, jnp.zeros((4, 6))
    )
    np.testing.assert_array_equal(first.chains, chains)
    np.testing.assert_array_equal(chains, model_v)
    assert (step(first).chains != first.chains).any()
    cd = ContrastiveDivergence(1)
    same = [cd.advance(key, rbm.machine(cfg), PARAMS, (), jnp.float32(v))[1] for v in (V, V[::-1])]
    assert (same[0] != same[1]).any()
    twice = ContrastiveDivergence(2).advance(key, rbm.machine(cfg), PARAMS, (), jnp.float32(V))[1]
    gibbs_key = jaxgen.keys.named(key, "chains")
    np.testing.assert_array_equal(twice, rbm.machine(cfg).gibbs(gibbs_key, PARAMS, jnp.float32(V), 2))
    assert (twice != same[0]).any()


def test_exchanges_leave_every_temperature_its_distribution():
    """Chains at 1, 2/3 and 1/3, after many steps with exchanges; the gradient is given the coldest."""
    chains = Tempered(20000, 3, 25)
    machine, params = rbm.machine(TINY), jax.tree.map(lambda p: 2 * p, PARAMS)
    start = chains.init(jax.random.key(0), machine, params)
    run = jax.jit(lambda key: chains.advance(key, machine, params, start, jnp.zeros((1, 6))))
    after, cold = run(jax.random.key(1))
    np.testing.assert_array_equal(after[0], cold)
    for row, beta in zip(after, (1.0, 2 / 3, 1 / 3), strict=True):
        p = exact.joint(jax.tree.map(lambda a, beta=beta: beta * a, params)).sum(1)
        np.testing.assert_allclose(exact.frequencies(row, V), p, atol=5 * np.sqrt(0.25 / 20000))


def test_exchanges_move_states_between_temperatures():
    """Two modes that Gibbs steps do not cross: cold chains leave theirs only by an exchange."""
    weight = 12 * jnp.ones((6, 4))
    params = rbm.Params(weight, jnp.full(6, -24.0), jnp.full(4, -36.0))
    machine, cold_start = rbm.machine(TINY), jnp.zeros((1, 500, 6))
    chains = Tempered(500, 12, 200)
    start = jnp.broadcast_to(cold_start, (12, 500, 6))
    cold = jax.jit(lambda key: chains.advance(key, machine, params, start, cold_start[0])[1])(
        jax.random.key(0)
    )
    alone = jax.jit(lambda key: machine.gibbs(key, params, cold_start[0], 200))(jax.random.key(0))
    assert alone.mean() < 0.02
    assert abs(cold.mean() - 0.5) < 0.2


def test_labels_given_data_are_enumerated():
    state = state_of(LABELS)
    v = exact.states(3)
    unnormalized = [
        exact.minus_energy(PARAMS, np.hstack([v, np.tile(row, (8, 1))]), exact.states(4)) for row in np.eye(3)
    ]
    log_f = np.stack([np.log(np.exp(u).sum(1)) for u in unnormalized], 1)
    expected = np.exp(log_f) / np.exp(log_f).sum(1, keepdims=True)
    x = pictures(v, LABELS)
    np.testing.assert_allclose(jnp.exp(rbm.classify(state, x, LABELS)), expected, rtol=1e-4)
    for label in range(3):
        found = rbm.log_unnormalized(state, x, LABELS, label)
        np.testing.assert_allclose(found, log_f[:, label], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        rbm.log_unnormalized(state, x, LABELS), np.log(np.exp(log_f).sum(1)), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_array_equal(rbm.score(state, x, LABELS), rbm.log_unnormalized(state, x, LABELS))
    hidden = np.stack(
        [
            rbm.machine(LABELS).hidden_mean(PARAMS, jnp.float32(np.hstack([v, np.tile(row, (8, 1))])))
            for row in np.eye(3)
        ],
        1,
    )
    np.testing.assert_allclose(rbm.encode(state, x, LABELS), (expected[..., None] * hidden).sum(1), rtol=1e-4)


def test_samples_have_the_means_of_the_model_and_keep_their_label():
    draw = jax.jit(lambda key: rbm.sample(key, state_of(TINY), 20000, TINY, num_steps=30))
    expected = exact.joint(PARAMS).sum(1) @ V
    np.testing.assert_allclose((draw(jax.random.key(0)).mean(0).ravel() + 1) / 2, expected, atol=0.02)
    given = np.hstack([exact.states(3), np.tile([1, 0, 0], (8, 1))])
    expected = exact.joint(PARAMS, given).sum(1) @ given[:, :3]
    every = V[V[:, 3:].sum(1) == 1]
    assert np.abs(expected - exact.joint(PARAMS, every).sum(1) @ every[:, :3]).max() > 0.04
    draw = jax.jit(lambda key: rbm.sample(key, state_of(LABELS), 20000, LABELS, 0, num_steps=30))
    np.testing.assert_allclose((draw(jax.random.key(0)).mean(0).ravel() + 1) / 2, expected, atol=0.02)


def test_reconstructions_go_by_way_of_hidden_means():
    state, x = state_of(TINY), pictures(V)
    p = exact.joint(PARAMS)
    hidden = p @ exact.states(4) / p.sum(1, keepdims=True)
    np.testing.assert_allclose(rbm.encode(state, x, TINY), hidden, rtol=1e-4)
    expected = 2 / (1 + np.exp(-(hidden @ PARAMS.weight.T + PARAMS.visible_bias))) - 1
    np.testing.assert_allclose(rbm.reconstruct(state, x, TINY).reshape(64, 6), expected, rtol=1e-4, atol=1e-5)


def test_bits_are_drawn_from_grey_values():
    """By the key of a step, or by one that is given; without one they are cut at 1/2."""
    state, model, x = state_of(TINY), rbm.machine(TINY), jnp.full((200, 2, 3, 1), -0.2)
    drawn = lambda key: TINY.visible.units(key, x.reshape(200, 6))
    found = rbm.log_unnormalized(state, x, TINY, key=jax.random.key(3))
    expected = model.log_unnormalized(PARAMS, drawn(jax.random.key(3)))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found.std() > 0.1
    cut = rbm.log_unnormalized(state, x, TINY)
    np.testing.assert_allclose(cut, model.log_unnormalized(PARAMS, jnp.zeros((200, 6))), rtol=1e-5)
    _, metrics = rbm.train_step(state, {"image": x}, TINY)
    v = drawn(jaxgen.keys.named(jax.random.fold_in(state.key, 0), "data"))
    assert float(metrics["activity"]) == pytest.approx(float(model.hidden_mean(PARAMS, v).mean()), rel=1e-5)


def test_reconstruction_errors_are_of_pixels_and_not_of_labels():
    v, model = jnp.float32(V[V[:, 3:].sum(1) == 1]), rbm.machine(LABELS)
    back = model.visible_mean(PARAMS, model.hidden_mean(PARAMS, v))
    expected = (4 * (back - v)[:, :3] ** 2).mean()
    metrics = rbm.contrast(PARAMS, v, v, LABELS)[1]
    assert float(metrics["reconstruction_error"]) == pytest.approx(float(expected), rel=1e-5)


def test_costs_of_weights_and_of_activity():
    cfg = dataclasses.replace(TINY, weight_decay=0.3, sparsity=Sparsity(0.2, 0.7))
    bare = dataclasses.replace(TINY, weight_decay=0.0)
    v = jnp.float32(V[:7])
    value, plain = (rbm.contrast(PARAMS, v, v[::-1], c)[0] for c in (cfg, bare))
    q = np.asarray(rbm.machine(TINY).hidden_mean(PARAMS, v), np.float64).mean(0)
    sparsity = -0.7 * (0.2 * np.log(q) + 0.8 * np.log(1 - q)).sum()
    expected = 0.15 * (np.asarray(PARAMS.weight, np.float64) ** 2).sum() + sparsity
    assert float(value - plain) == pytest.approx(expected, rel=1e-4)
    rare = float(Sparsity(0.2, 0.7)(jnp.array([1e-3])))
    assert rare == pytest.approx(-0.7 * (0.2 * np.log(1e-3) + 0.8 * np.log(0.999)), rel=1e-4)
    grad = jax.grad(Sparsity(0.2))(jnp.full(3, 0.2))
    np.testing.assert_allclose(grad, 0, atol=1e-6)  # units are as active as they should be


def test_biases_start_at_the_mean_of_the_data():
    x = pictures(V[V[:, 0] == 1])
    state = rbm.init(jax.random.key(0), dataclasses.replace(TINY, visible=Bits("threshold")), {"image": x})
    np.testing.assert_allclose(jax.nn.sigmoid(state.params.visible_bias), [0.99] + [0.5] * 5, atol=1e-5)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"use visible=Gaussian"):
        rbm.init(jax.random.key(0), dataclasses.replace(TINY, levels=0))
    with pytest.raises(ValueError, match="num_hidden must be at least 1"):
        rbm.init(jax.random.key(0), dataclasses.replace(TINY, num_hidden=0))
    with pytest.raises(ValueError, match="train it with conditional=True"):
        rbm.classify(state_of(TINY), pictures(V), TINY)
    state, batch = state_of(TINY), {"image": pictures(V)}
    for chains in (Persistent(7), Tempered(100, 2), Tempered(7, 5)):
        with pytest.raises(ValueError, match=r"the state has chains \(100, 6\), the config asks for"):
            rbm.train_step(state, batch, dataclasses.replace(TINY, chains=chains))
    for make in (lambda: Persistent(0), lambda: ContrastiveDivergence(0), lambda: Tempered(3, 2, 0)):
        with pytest.raises(ValueError, match="must be at least 1"):
            make()
    with pytest.raises(ValueError, match="num_temperatures must be at least 2"):
        Tempered(3, 1)
    with pytest.raises(ValueError, match="num_steps must not be negative"):
        rbm.sample(jax.random.key(0), state, 2, TINY, num_steps=-1)


def test_a_run_of_contrastive_divergence_is_saved_and_loaded(tmp_path):
    """It has no chains to save."""
    options = {"steps": 2, "batch_size": 8, "key": jax.random.key(0), "sample_every": 0}
    state = jaxgen.fit(rbm, FURTHER[0], data.load("digits"), run_dir=tmp_path, **options)
    loaded = jaxgen.load(tmp_path)[2]
    np.testing.assert_array_equal(loaded.params.weight, state.params.weight)


def test_diverging_weights_stop_the_run_at_a_named_step(tmp_path):
    cfg = dataclasses.replace(SMALL, visible=Gaussian(0.1), optimizer=SGD(100.0))
    with pytest.raises(FloatingPointError, match=r"became NaN or infinite at step \d+"):
        jaxgen.fit(
            rbm, cfg, data.load("digits"), steps=200, batch_size=32, key=jax.random.key(0), sample_every=0
        )


@pytest.mark.slow
def test_it_learns_digits():
    """Likelihood by enumeration: independent pixels have 25.1 nats, three seeds gave 19.1 to 19.4."""
    cfg = rbm.Config(
        num_hidden=14,
        visible=Bits("threshold"),
        chains=Persistent(100, 5),
        optimizer=SGD(0.05, momentum=0.5),
    )
    train, test = data.load("digits"), data.load("digits", "test")
    state = jaxgen.fit(
        rbm,
        cfg,
        train,
        steps=3000,
        batch_size=64,
        key=jax.random.key(0),
        mesh=shard.mesh(1),
        sample_every=0,
        save_every=0,
    )
    log_z = rbm.machine(cfg).log_partition(state.params)
    nll = float(log_z - rbm.log_unnormalized(state, jnp.asarray(test[:]["image"]), cfg).mean())

    assert nll < 19.8
