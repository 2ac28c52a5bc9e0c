"""Two layers of units: energies, conditionals and partition functions against sums over all states."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special

from jaxgen.energy.bipartite import Base, Bits, Gaussian, Machine, Params
from tests.energy import exact

PARAMS = exact.random_params(6, 4)
BITS = Machine()
LABELLED = Machine(num_labels=3)
V, H = exact.states(6), exact.states(4)


def test_log_partition_functions_of_bits_are_those_of_all_states():
    """Over 2^10 states, over the 2^4 hidden and over the 2^6 visible ones."""
    expected = scipy.special.logsumexp(exact.minus_energy(PARAMS, V, H))
    assert float(BITS.log_partition(PARAMS)) == pytest.approx(expected, abs=1e-5)
    over_visible = jax.nn.logsumexp(BITS.log_unnormalized(PARAMS, jnp.float32(V)))
    assert float(over_visible) == pytest.approx(expected, abs=1e-5)
    np.testing.assert_allclose(
        BITS.log_unnormalized_hidden(PARAMS, jnp.float32(H)),
        scipy.special.logsumexp(exact.minus_energy(PARAMS, V, H), 0),
        rtol=1e-5,
    )


def test_blocks_of_hidden_states_are_summed_together():
    """More than 2^10 states are taken in blocks."""
    params = exact.random_params(3, 12, seed=1)
    expected = scipy.special.logsumexp(exact.minus_energy(params, exact.states(3), exact.states(12)))
    assert float(BITS.log_partition(params)) == pytest.approx(expected, abs=1e-4)


def test_conditionals_of_bits_are_those_of_all_states():
    p = exact.joint(PARAMS)
    given_v = (p @ H) / p.sum(1, keepdims=True)
    given_h = (p.T @ V) / p.sum(0)[:, None]
    np.testing.assert_allclose(BITS.hidden_mean(PARAMS, jnp.float32(V)), given_v, rtol=1e-4)
    np.testing.assert_allclose(BITS.visible_mean(PARAMS, jnp.float32(H)), given_h, rtol=1e-4)


def test_labels_are_a_group_of_units_of_which_one_is_on():
    on = V[V[:, 3:].sum(1) == 1]
    expected = scipy.special.logsumexp(exact.minus_energy(PARAMS, on, H))
    assert float(LABELLED.log_partition(PARAMS)) == pytest.approx(expected, abs=1e-5)
    p = exact.joint(PARAMS, on)
    given_h = (p.T @ on) / p.sum(0)[:, None]
    np.testing.assert_allclose(LABELLED.visible_mean(PARAMS, jnp.float32(H)), given_h, rtol=1e-4)


@pytest.mark.parametrize("machine", [BITS, LABELLED], ids=["bits", "label"])
def test_gibbs_chains_have_the_frequencies_of_the_model(machine):
    every = V if machine is BITS else V[V[:, 3:].sum(1) == 1]
    start = jnp.zeros((20000, 6)).at[:, 3].set(1.0)
    v = jax.jit(lambda key: machine.gibbs(key, PARAMS, start, 30))(jax.random.key(0))
    expected = exact.joint(PARAMS, every).sum(1)
    np.testing.assert_allclose(exact.frequencies(v, every), expected, atol=5 * np.sqrt(0.25 / 20000))
    assert np.std(expected) > 0.005


def test_a_clamped_label_stays_and_the_rest_is_drawn_given_it():
    on = V[(V[:, 3:] == [0, 1, 0]).all(1)]
    label = jnp.tile(jnp.float32([0, 1, 0]), (20000, 1))
    start = jnp.zeros((20000, 6))
    v = jax.jit(lambda key: LABELLED.gibbs(key, PARAMS, start, 30, label))(jax.random.key(0))
    expected = exact.joint(PARAMS, on).sum(1)
    np.testing.assert_allclose(exact.frequencies(v, on), expected, atol=5 * np.sqrt(0.25 / 20000))


def test_gaussian_units_integrate_to_the_partition_function():
    params, machine = exact.random_params(1, 4, 1.0), Machine(Gaussian(0.6))
    f = lambda v: float(jnp.exp(machine.log_unnormalized(params, jnp.float32([v]))))
    z = scipy.integrate.quad(f, -15, 15, limit=200)[0]
    assert float(machine.log_partition(params)) == pytest.approx(np.log(z), abs=1e-4)


def test_gaussian_units_given_hidden_ones_have_the_moments_of_the_joint():
    """p(v | h) is proportional to exp(-E(v, h)), which is quadratic in v."""
    params, machine = exact.random_params(2, 3), Machine(Gaussian(0.6))
    h = jnp.float32([1, 0, 1])

    def minus_energy(v):
        own = machine.own(v, params.visible_bias).sum()
        return own + (v / 0.6) @ params.weight @ h + params.hidden_bias @ h

    mean = machine.visible_mean(params, h)
    np.testing.assert_allclose(jax.grad(minus_energy)(mean), 0, atol=1e-5)
    np.testing.assert_allclose(jax.hessian(minus_energy)(mean), -np.eye(2) / 0.36, rtol=1e-5)
    v = machine.sample_visible(jax.random.key(0), params, jnp.tile(h, (40000, 1)))
    np.testing.assert_allclose(v.mean(0), mean, atol=5 * 0.6 / 200)
    np.testing.assert_allclose(np.cov(np.asarray(v).T), 0.36 * np.eye(2), atol=0.02)


def test_copies_are_as_many_machines_with_tied_weights():
    """Two copies of the visible layer are a machine of twice the units, both in the same state."""
    twice = Params(jnp.tile(PARAMS.weight, (2, 1)), jnp.tile(PARAMS.visible_bias, 2), PARAMS.hidden_bias)
    v = jnp.float32(V)
    up, both = Machine(copies=(2, 1)), jnp.concatenate([v, v], -1)
    np.testing.assert_allclose(up.log_unnormalized(PARAMS, v), BITS.log_unnormalized(twice, both), rtol=1e-5)
    np.testing.assert_allclose(up.hidden_mean(PARAMS, v), BITS.hidden_mean(twice, both), rtol=1e-5)
    np.testing.assert_allclose(up.visible_mean(PARAMS, H), BITS.visible_mean(PARAMS, H), rtol=1e-5)
    wide = Params(jnp.tile(PARAMS.weight, (1, 2)), PARAMS.visible_bias, jnp.tile(PARAMS.hidden_bias, 2))
    down = Machine(copies=(1, 2))
    np.testing.assert_allclose(down.log_unnormalized(PARAMS, v), BITS.log_unnormalized(wide, v), rtol=1e-5)
    h = jnp.float32(H)
    np.testing.assert_allclose(
        down.visible_mean(PARAMS, h), BITS.visible_mean(wide, jnp.concatenate([h, h], -1)), rtol=1e-5
    )


def test_half_way_to_independent_units():
    """beta = 0 are units with the given biases, beta = 1 is the machine; logarithms are linear in it."""
    base, v, h = Base(jnp.linspace(-1, 1, 6), jnp.linspace(-2, 1, 4)), V[:8], H
    energy = lambda beta: exact.minus_energy(BITS.between(PARAMS, base, beta), v, h)
    alone = (v @ np.linspace(-1, 1, 6))[:, None] + h @ np.linspace(-2, 1, 4)
    np.testing.assert_allclose(energy(0.0), alone, atol=1e-6)
    np.testing.assert_allclose(energy(1.0), exact.minus_energy(PARAMS, v, h), atol=1e-6)
    np.testing.assert_allclose(energy(0.3), 0.7 * energy(0.0) + 0.3 * energy(1.0), atol=1e-5)


def test_the_base_has_the_means_of_data_and_of_hidden_units():
    """Of bits with labels, and of real numbers."""
    labelled, params = Machine(num_labels=3), exact.random_params(6, 4)
    v = np.float32([[1, 0, 1, 1, 0, 0], [1, 1, 0, 0, 0, 1], [1, 0, 0, 0, 1, 0]])
    base = labelled.base(params, jnp.asarray(v))
    np.testing.assert_allclose(jax.nn.sigmoid(base.visible_bias), np.clip(v.mean(0), 0.01, 0.99), atol=1e-6)
    hidden = jax.nn.sigmoid(v @ params.weight + params.hidden_bias).mean(0)
    np.testing.assert_allclose(jax.nn.sigmoid(base.hidden_bias), hidden, atol=1e-6)
    np.testing.assert_allclose(Machine(Gaussian(0.5)).base(params, v).visible_bias, v.mean(0), atol=1e-6)


def test_what_cannot_be_summed_is_refused():
    with pytest.raises(ValueError, match=r"ais\.log_partition"):
        BITS.log_partition(exact.random_params(2, 21))
    with pytest.raises(ValueError, match="copies"):
        dataclasses.replace(BITS, copies=(2, 1)).log_partition(PARAMS)
    with pytest.raises(ValueError, match=r"use visible=Gaussian"):
        Bits().check(0)


def test_bits_are_drawn_from_grey_values_or_cut():
    x = jnp.tile(jnp.float32([-1.0, 0.5, 1.0]), (4000, 1))
    drawn = Bits().units(jax.random.key(0), x)
    np.testing.assert_allclose(drawn.mean(0), [0, 0.75, 1], atol=0.03)
    np.testing.assert_array_equal(Bits().units(None, x[0]), [0, 1, 1])
    np.testing.assert_array_equal(Bits("threshold").units(jax.random.key(0), x[0]), [0, 1, 1])
    np.testing.assert_allclose(Bits().data(Bits().inputs(x[0])), x[0])
    bias = Bits().first_bias(drawn)
    np.testing.assert_allclose(jax.nn.sigmoid(bias), [0.01, drawn[:, 1].mean(), 0.99], rtol=1e-4)
