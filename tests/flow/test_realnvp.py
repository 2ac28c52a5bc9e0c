"""NICE and RealNVP: couplings that invert, keep what they should, and are conditional where asked."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgen
from jaxgen import data, types
from jaxgen.evaluation import likelihood
from jaxgen.flow import realnvp
from jaxgen.flow.preprocessing import Logit
from jaxgen.flow.transforms import Additive
from jaxgen.nn.mlp import MLP
from jaxgen.values import SGD, Adam, Cosine
from tests.flow.check import assert_bijector, initial, mass, shaken, wide

DATA = "moons"
# Standardised data leave gradients near 0, whose signs Adam would follow: SGD for what must be reproduced.
SMALL = realnvp.Config(num_layers=2, network=MLP((16,)), optimizer=SGD(1e-2))
TRAINED = realnvp.Config(num_layers=4, network=MLP((32,)))
RANDOM = (dataclasses.replace(SMALL, conditional=True),)
OPTIONS, ELSEWHERE = {"levels": 17}, ("preprocessing",)  # of pixels: test_losses.py
POINTS = realnvp.Config(shape=(3,), levels=0, num_layers=3, network=MLP((8,)))
LABELLED = dataclasses.replace(POINTS, shape=(2,), num_classes=2, conditional=True)


init = jax.jit(realnvp.init, static_argnums=1)
log_prob = jax.jit(realnvp.log_prob, static_argnums=2)


def started(cfg, scale=0.1, batch=None):
    state = init(jax.random.key(0), cfg, batch)
    return state._replace(params=shaken(state.params, scale))


def test_it_inverts_and_knows_its_volume():
    flow, state = realnvp.flow(POINTS), started(POINTS)
    assert_bijector(flow, state.params, wide(3))


@pytest.mark.slow
def test_nice_inverts_and_changes_volumes_only_in_its_scales():
    cfg = dataclasses.replace(POINTS, transform=Additive())
    flow, state = realnvp.flow(cfg), started(cfg)
    assert_bijector(flow, state.params, wide(3))
    _, log_det = flow.forward(state.params, wide(3))
    scales = state.params[0]["log_scale"].sum() + state.params[2]["log_scale"].sum()
    np.testing.assert_allclose(log_det, -scales, rtol=1e-5)


def test_masks_take_turns_and_what_they_keep_stays():
    x = wide(3)[:10]
    moved = []
    for index in range(2):
        coupling = realnvp.layer(POINTS, index)
        y, _ = jax.jit(coupling.forward)(initial(coupling, 1.0), x)
        moved.append(np.asarray((y != x).any(0)))
    np.testing.assert_array_equal(moved, [[False, True, False], [True, False, True]])


def test_it_begins_as_the_standardised_gaussian():
    x = jnp.float32(3 + 2 * np.random.default_rng(0).normal(size=(2000, 3)))
    state = init(jax.random.key(0), POINTS, {"x": x})
    z = realnvp.encode(state, x, POINTS)
    np.testing.assert_allclose(z, (x - x.mean(0)) / x.std(0), atol=1e-4)


@pytest.mark.slow
def test_the_density_is_one_for_each_label_and_their_mean_without():
    state, x = started(LABELLED), wide(2)[:20]
    given = [mass(lambda x, c=c: realnvp.log_prob(state, x, LABELLED, c)) for c in (0, 1)]
    np.testing.assert_allclose(given, 1.0, atol=3e-3)
    each = jnp.stack([log_prob(state, x, LABELLED, jnp.full(20, c)) for c in (0, 1)])
    assert jnp.abs(each[0] - each[1]).max() > 0.01
    np.testing.assert_allclose(log_prob(state, x, LABELLED), jnp.log(jnp.exp(each).mean(0)), rtol=1e-4)

    @jax.jit
    def there_and_back(label):
        z = realnvp.encode(state, x, LABELLED, label)
        return realnvp.decode(state, z, LABELLED, label), realnvp.sample(
            jax.random.key(1), state, 20, LABELLED, label
        )

    back, drawn = there_and_back(jnp.arange(20) % 2)
    np.testing.assert_allclose(back, x, rtol=1e-4, atol=1e-4)
    _, other = there_and_back(1 - jnp.arange(20) % 2)
    assert jnp.abs(drawn - other).max() > 0.01


def test_labels_where_none_were_trained_and_none_where_they_were():
    x, z = jnp.zeros((4, 2)), jnp.zeros((4, 2))
    labelled, plain = started(LABELLED), dataclasses.replace(LABELLED, conditional=False)
    unlabelled = started(plain)
    for refused in (
        lambda: realnvp.log_prob(unlabelled, x, plain, 1),
        lambda: realnvp.encode(unlabelled, x, plain, 1),
        lambda: realnvp.decode(unlabelled, z, plain, jnp.arange(4)),
        lambda: realnvp.sample(jax.random.key(0), unlabelled, 4, plain, 0),
    ):
        with pytest.raises(ValueError, match="this model is unconditional"):
            refused()
    for refused in (
        lambda: realnvp.encode(labelled, x, LABELLED),
        lambda: realnvp.decode(labelled, z, LABELLED),
    ):
        with pytest.raises(ValueError, match="this model is conditional: give the label"):
            refused()
    with pytest.raises(ValueError, match='the batch has no "label"'):
        realnvp.loss(labelled.params, {"x": x}, jax.random.key(0), LABELLED)
    with pytest.raises(ValueError, match="label 2 is of no class: there are 0 to 1"):
        realnvp.log_prob(labelled, x, LABELLED, 2)
    with pytest.raises(ValueError, match="a conditional model needs labels"):
        realnvp.init(jax.random.key(0), dataclasses.replace(LABELLED, num_classes=0))


def test_data_it_cannot_take_are_refused():
    with pytest.raises(ValueError, match="a coupling needs at least two dimensions"):
        realnvp.init(jax.random.key(0), dataclasses.replace(POINTS, shape=(1,)))
    with pytest.raises(ValueError, match="must be at least 1"):
        realnvp.init(jax.random.key(0), dataclasses.replace(POINTS, num_layers=0))
    with pytest.raises(ValueError, match="logit preprocessing is for pixels"):
        realnvp.init(jax.random.key(0), dataclasses.replace(POINTS, preprocessing=Logit()))


def test_far_away_and_at_extreme_parameters_nothing_is_nan():
    state = started(POINTS, 100.0)
    decode = jax.jit(realnvp.decode, static_argnums=2)
    for x in (jnp.full((1, 3), 1e6), jnp.zeros((1, 3))):
        assert not np.isnan(log_prob(state, x, POINTS)).any()
        assert not np.isnan(decode(state, x, POINTS)).any()


def test_temperature_scales_the_noise():
    state = init(jax.random.key(0), POINTS)
    draw = jax.jit(lambda t: realnvp.sample(jax.random.key(1), state, 9, POINTS, temperature=t))
    cold, warm = draw(0.5), draw(1.0)
    np.testing.assert_allclose(cold, 0.5 * warm, rtol=1e-5)


def test_bits_per_dim_of_a_known_distribution():
    """A flow that makes pixels uniform on their levels has log2(levels) bits/dim, by either preprocessing.

    The logit of a uniform variable is logistic: noise through its quantiles would be exact, and a normal of
    the same variance costs KL(logistic || normal), 0.0147 nats.
    """
    levels = 17
    image = np.random.default_rng(0).integers(0, levels, (2000, 2, 2, 1)) / (levels - 1) * 2 - 1
    pixels = data.Dataset("noise", "test", {"image": image.astype(np.float32)}, levels=levels)
    cfg = types.from_data(realnvp, pixels, dataclasses.replace(POINTS, preprocessing=Logit(1e-6)))
    assert cfg.levels == levels
    state = init(jax.random.key(0), cfg, pixels[:])
    density = lambda key, x: realnvp.log_prob(state, x, cfg)
    found = likelihood.reported(jax.random.key(1), density, pixels, realnvp.measure(cfg))
    bits = found["nll_bits_per_dim"]["value"]
    assert bits == pytest.approx(np.log2(levels) + 0.0147 / np.log(2), abs=0.02)


@pytest.mark.slow
def test_it_learns_two_moons():
    train, test = data.load("moons"), data.load("moons", "test")
    # Without a schedule the last steps of a run can lie 0.7 nats above their average.
    optimizer = Adam(2e-3, schedule=Cosine(1500), gradient_clip=10.0)
    cfg = types.from_data(realnvp, train, realnvp.Config(network=MLP((64, 64)), optimizer=optimizer))
    state = jaxgen.fit(realnvp, cfg, train, steps=1500, batch_size=256, key=jax.random.key(0))
    x = test[:]["x"]
    nll, entropy = -realnvp.log_prob(state, x, cfg).mean(), -test.log_density(x).mean()
    assert entropy < nll < entropy + 0.2
