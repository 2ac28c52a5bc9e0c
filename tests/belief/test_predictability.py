"""Predictability minimisation: what each player sees and follows, information of units, and a short game."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.metrics import mutual_info_score

import jaxgen
from jaxgen import data, shard
from jaxgen.autoencoder.networks import DenseDecoder, DenseEncoder
from jaxgen.belief import predictability
from jaxgen.types import observed
from jaxgen.values import SGD, Adam, Linear
from tests.belief import bars

SMALL = predictability.Config(
    num_units=6, predictor_width=8, encoder=DenseEncoder((16,)), decoder=DenseDecoder((16,))
)
TRAINED = dataclasses.replace(SMALL, num_units=12, encoder=DenseEncoder((64,)), decoder=DenseDecoder((64,)))
RNG = np.random.default_rng(0)
Y = jnp.float32(RNG.random((7, 6)))
X = jnp.float32(RNG.uniform(-1, 1, (7, 8, 8, 1)))


def state_of(cfg=SMALL):
    state = predictability.init(jax.random.key(0), cfg)
    noise = jax.tree.map(lambda p: p + jnp.float32(RNG.normal(size=p.shape)), state.predictors)
    return state._replace(predictors=noise)


@pytest.mark.slow
def test_no_unit_predicts_itself():
    predictors = state_of().predictors
    jacobian = jax.jacfwd(lambda y: predictability.predicted(predictors, y[None])[0])(Y[0])
    np.testing.assert_array_equal(np.diag(jacobian), 0)
    assert (np.abs(np.asarray(jacobian)[~np.eye(6, dtype=bool)]) > 0).all()


def test_predictions_are_those_of_networks_of_their_own():
    predictors = state_of().predictors
    weight, bias, output, constant = (np.asarray(p, np.float64) for p in predictors)
    found = predictability.predicted(predictors, Y)
    for i in range(6):
        others = np.delete(2 * np.asarray(Y) - 1, i, 1)
        hidden = np.tanh(others @ np.delete(weight[i], i, 0) + bias[i])
        np.testing.assert_allclose(
            found[:, i], 1 / (1 + np.exp(-hidden @ output[i] - constant[i])), rtol=1e-4
        )
    expected = ((np.asarray(found) - np.asarray(Y)) ** 2).sum(1).mean()
    assert float(predictability.predictor_loss(predictors, Y)) == pytest.approx(expected, rel=1e-5)


def test_the_encoder_raises_what_predictors_lower():
    """Reconstruction minus the weighted error of the predictors, each by hand."""
    state = state_of()
    y = predictability.encode(state, X, SMALL)
    error = float(((predictability.decode(state, y, SMALL) - X) ** 2).sum((1, 2, 3)).mean())
    for weight in (0.0, 1.0, 3.0):
        cfg = dataclasses.replace(SMALL, weight=weight)
        value, metrics = predictability.loss(
            state.params, {"image": X}, jax.random.key(0), cfg, state.predictors
        )
        left = float(predictability.predictor_loss(state.predictors, y))
        assert float(value) == pytest.approx(error - weight * left, rel=1e-4)
        assert float(metrics["unpredictability"]) == pytest.approx(left, rel=1e-5)
    value, _ = predictability.loss(state.params, {"image": X}, jax.random.key(0), SMALL)
    assert float(value) == pytest.approx(error - float(np.var(y, 0).sum()), rel=1e-4)


def test_a_step_moves_the_predictors_first():
    """As often as it is told to, in a step of a schedule, and the encoder meets them as they are then."""
    falling = SGD(0.1, schedule=Linear(decay_steps=1))
    cfg = dataclasses.replace(SMALL, steps_per_step=3, predictor_optimizer=falling, optimizer=SGD(0.01))
    state = state_of(cfg)
    after, _ = predictability.train_step(state, {"image": X}, cfg)
    y = predictability.encode(state, X, cfg)
    predictors = state.predictors
    for rate in (0.1, 0.1 * 2 / 3, 0.1 / 3):
        grads = jax.grad(predictability.predictor_loss)(predictors, y)
        predictors = jax.tree.map(lambda p, g, rate=rate: p - rate * g, predictors, grads)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), after.predictors, predictors)
    loss = lambda params: predictability.loss(params, {"image": X}, jax.random.key(0), cfg, predictors)[0]
    expected = jax.tree.map(lambda p, g: p - 0.01 * g, state.params, jax.grad(loss)(state.params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), after.params, expected)
    np.testing.assert_allclose(after.activity, y.mean(0), atol=1e-6)
    again, _ = predictability.train_step(after._replace(step=jnp.int32(1000)), {"image": X}, cfg)
    mean = predictability.encode(after, X, cfg).mean(0)
    np.testing.assert_allclose(again.activity, 0.99 * after.activity + 0.01 * mean, atol=1e-6)


def test_samples_decode_bits_with_the_activities():
    state = state_of()._replace(activity=jnp.float32([0.0, 1.0, 0.0, 1.0, 1.0, 0.0]))
    code = jnp.tile(state.activity, (3, 1))
    found = predictability.sample(jax.random.key(0), state, 3, SMALL)
    np.testing.assert_allclose(found, predictability.decode(state, code, SMALL), atol=1e-6)


def test_information_of_units():
    y = RNG.random((500, 4)).astype(np.float32)
    y[:, 3] = np.where(RNG.random(500) < 0.8, y[:, 0], y[:, 3])
    y = np.concatenate([y, np.ones((500, 1), np.float32)], 1)
    expected = [[mutual_info_score(a > 0.5, b > 0.5) for a in y.T] for b in y.T]
    np.testing.assert_allclose(predictability.mutual_information(jnp.asarray(y)), expected, atol=1e-5)


def test_what_cannot_be_is_refused():
    for changes, match in (
        ({"num_units": 1}, "num_units must be at least 2"),
        ({"steps_per_step": 0}, "steps_per_step must be at least 1"),
    ):
        with pytest.raises(ValueError, match=match):
            predictability.init(jax.random.key(0), dataclasses.replace(SMALL, **changes))


@pytest.mark.slow
def test_what_predictors_leave_is_the_variance_given_the_others():
    """The best predictors of three bits with a known joint distribution, by the law of total variance."""
    p = RNG.dirichlet(np.ones(8))
    bits = np.array([[i >> k & 1 for k in range(3)] for i in range(8)], float)
    mean = p @ bits
    left = 0.0
    for i in range(3):
        others = np.delete(bits, i, 1) @ [1, 2]
        guess = np.array([(p * bits[:, i])[others == o].sum() / p[others == o].sum() for o in others])
        left += p @ (guess - bits[:, i]) ** 2
        assert p @ (guess - bits[:, i]) ** 2 == pytest.approx(
            mean[i] * (1 - mean[i]) - (p @ guess**2 - mean[i] ** 2)
        )
    y = jnp.float32(np.repeat(bits, np.round(1000 * p).astype(int), 0))
    cfg = dataclasses.replace(SMALL, num_units=3, predictor_width=32)
    predictors = predictability.init(jax.random.key(0), cfg).predictors
    optimizer = optax.adam(0.01)

    def follow(carry, _):
        predictors, opt_state = carry
        grads = jax.grad(predictability.predictor_loss)(predictors, y)
        updates, opt_state = optimizer.update(grads, opt_state)
        return (optax.apply_updates(predictors, updates), opt_state), None

    run = jax.jit(lambda carry: jax.lax.scan(follow, carry, None, 500)[0][0])
    predictors = run((predictors, optimizer.init(predictors)))
    assert float(predictability.predictor_loss(predictors, y)) == pytest.approx(left, abs=3e-3)


def play(cfg, train, test, steps):
    """Units of test data, and the error of reconstructions from units cut at 1/2."""
    options = {"mesh": shard.mesh(1), "sample_every": 0, "save_every": 0, "batch_size": 128}
    state = jaxgen.fit(predictability, cfg, train, steps=steps, key=jax.random.key(0), **options)
    x = jnp.asarray(observed(test[:]))
    y = predictability.encode(state, x, cfg)
    return y, float(((predictability.decode(state, jnp.round(y), cfg) - x) ** 2).mean())


@pytest.mark.slow
def test_units_of_mixed_signs_become_independent():
    """Four independent signs, mixed into eight numbers with noise of variance 0.0025.

    No unit tells of another, and nothing is lost. Three of four seeds end so, not all at the signs
    themselves, as products of signs are independent too; the fourth shares 0.08 nats.
    """
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(8, 4))
    signs = np.where(rng.random((6000, 4)) < 0.5, 1, -1)
    x = signs @ (mixing / np.linalg.norm(mixing, axis=0)).T + 0.05 * rng.normal(size=(6000, 8))
    train, test = (data.Dataset("signs", "train", {"x": x[i]}) for i in (slice(4000), slice(4000, None)))
    cfg = predictability.Config(
        shape=(8,),
        num_units=4,
        weight=4.0,
        encoder=DenseEncoder((32,)),
        decoder=DenseDecoder((32,)),
        steps_per_step=3,
        optimizer=Adam(5e-4),
    )
    y, error = play(cfg, train, test, 6000)
    information = np.asarray(predictability.mutual_information(y))[np.triu_indices(4, 1)]
    assert information.max() < 0.003
    assert error < 0.01


@pytest.mark.slow
def test_units_of_bars_become_independent():
    """Two units share little of the 0.56 nats that each has, and pictures stay whole; one seed of many."""
    cfg = predictability.Config(
        shape=(4, 4, 1),
        num_units=8,
        weight=4.0,
        encoder=DenseEncoder((64,)),
        decoder=DenseDecoder((64,)),
        predictor_optimizer=Adam(3e-3),
    )
    y, error = play(cfg, bars.both_ways(5000, 0), bars.both_ways(2000, 1), 5000)
    information = np.asarray(predictability.mutual_information(y))
    assert information[np.triu_indices(8, 1)].mean() < 0.02
    assert np.diag(information).mean() > 0.5
    assert error < 0.08
