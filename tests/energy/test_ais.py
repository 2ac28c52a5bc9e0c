"""Annealed importance sampling: partition functions that are known, from both sides."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import keys
from jaxgen.energy import ais
from jaxgen.energy.bipartite import Base, Gaussian, Machine
from tests.energy import exact

PARAMS = exact.random_params(64, 12, 0.5)
BITS = Machine()


def test_temperatures_are_those_of_salakhutdinov_and_murray():
    beta = ais.temperatures(14500)
    assert len(beta) == 14501
    np.testing.assert_allclose(np.diff(beta)[[0, 600, 9000]], [1e-3, 1e-4, 1e-5], rtol=1e-6)
    assert (beta[0], beta[-1]) == (0, 1)
    with pytest.raises(ValueError, match="1 temperature step or more"):
        ais.temperatures(0)


@pytest.mark.parametrize(
    ("machine", "scale"),
    [(BITS, 0.5), (Machine(num_labels=5), 0.5), (Machine(Gaussian(1.5)), 0.2)],
    ids=["bits", "label", "gaussian"],
)
def test_estimates_lie_around_the_enumerated_value(machine, scale):
    """The mean of 20 within three of its standard errors, and the given errors are those of their spread."""
    params = exact.random_params(64, 12, scale)
    run = functools.partial(ais.log_partition, machine=machine, num_chains=50, num_temperatures=100)
    keys = jax.random.split(jax.random.key(0), 20)
    log_z, error = jax.jit(jax.vmap(lambda key: run(key, params)))(keys)
    spread = float(log_z.std(ddof=1))
    # A logarithm is low by half of its variance.
    assert (
        abs(float(log_z.mean()) - float(machine.log_partition(params))) < 3 * spread / np.sqrt(20) + spread**2
    )
    assert 0.4 < float(error.mean()) / spread < 2
    assert spread < 0.5


def test_without_weights_the_estimate_is_exact():
    params = PARAMS._replace(weight=0 * PARAMS.weight)
    log_z, error = ais.log_partition(jax.random.key(0), params, num_chains=5, num_temperatures=3)
    assert float(log_z) == pytest.approx(float(BITS.log_partition(params)), abs=1e-3)
    assert float(error) < 1e-4


def test_few_temperatures_are_low_forward_and_high_backward():
    """In mean over 100 estimates: the truth lies between."""
    truth = float(BITS.log_partition(PARAMS))
    run = jax.jit(lambda key: BITS.gibbs(key, PARAMS, jnp.zeros((100 * 20, 64)), 100))
    v = run(jax.random.key(1)).reshape(100, 20, 64)
    keys = jax.random.split(jax.random.key(2), 100)
    forward = jax.vmap(lambda key: ais.log_partition(key, PARAMS, num_chains=20, num_temperatures=5)[0])
    reverse = jax.vmap(lambda key, v: ais.reverse_log_partition(key, PARAMS, v, num_temperatures=5)[0])
    low, high = np.asarray(jax.jit(forward)(keys)), np.asarray(jax.jit(reverse)(keys, v))
    assert low.mean() + 3 * low.std() / 10 < truth < high.mean() - 3 * high.std() / 10


def test_the_reverse_estimate_is_near_with_many_temperatures():
    truth = float(BITS.log_partition(PARAMS))
    v = jax.jit(lambda key: BITS.gibbs(key, PARAMS, jnp.zeros((200, 64)), 200))(jax.random.key(1))
    log_z, error = ais.reverse_log_partition(jax.random.key(2), PARAMS, v, num_temperatures=500)
    assert abs(float(log_z) - truth) < 4 * float(error) + 0.02
    assert float(error) < 0.2


def test_a_base_other_than_the_biases_ends_at_the_same_machine():
    run = lambda base: ais.log_partition(
        jax.random.key(3), PARAMS, base=base, num_chains=200, num_temperatures=500
    )
    truth = float(BITS.log_partition(PARAMS))
    for base in (Base(jnp.zeros(64), jnp.zeros(12)), Base(jnp.linspace(-2, 2, 64), jnp.linspace(1, -2, 12))):
        log_z, error = jax.jit(run)(base)
        assert abs(float(log_z) - truth) < 4 * float(error) + 0.02


def test_the_bracket_warns_where_temperatures_are_too_few():
    strong = exact.random_params(64, 12, 2.0)
    v = jax.jit(lambda key: BITS.gibbs(key, strong, jnp.zeros((20, 64)), 100))(jax.random.key(1))
    with pytest.warns(UserWarning, match="take more than 3 temperatures"):
        found = ais.bracket(jax.random.key(0), strong, v, num_temperatures=3)
    assert found.forward < found.reverse
    v = jax.jit(lambda key: BITS.gibbs(key, PARAMS, jnp.zeros((100, 64)), 100))(jax.random.key(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = ais.bracket(jax.random.key(0), PARAMS, v, num_temperatures=300)
    assert abs(float(found.reverse - found.forward)) < 1


def test_the_bracket_is_both_estimates_with_the_options_given():
    """As many chains as draws, the base, and the gap from which on it warns."""
    base, key = Base(jnp.linspace(-2, 2, 64), jnp.ones(12)), jax.random.key(4)
    v = jax.jit(lambda key: BITS.gibbs(key, PARAMS, jnp.zeros((7, 64)), 20))(jax.random.key(1))
    found = ais.bracket(key, PARAMS, v, base=base, num_temperatures=3, widest=1e3)
    forward_key, reverse_key = keys.named(key, "forward annealing", "reverse annealing")
    forward = ais.log_partition(forward_key, PARAMS, base=base, num_chains=7, num_temperatures=3)
    reverse = ais.reverse_log_partition(reverse_key, PARAMS, v, base=base, num_temperatures=3)
    np.testing.assert_allclose(found, (*forward, *reverse), rtol=1e-4)
    assert found.reverse - found.forward > 1  # and no warning


def test_a_machine_without_weights_is_its_own_base():
    """Its log Z is exact at one temperature."""
    params = PARAMS._replace(weight=0 * PARAMS.weight)
    log_z, error = ais.log_partition(jax.random.key(0), params, num_chains=5, num_temperatures=1)
    assert float(log_z) == pytest.approx(float(BITS.log_partition(params)), rel=1e-6)
    assert float(error) < 1e-4


class Stuck(Machine):
    """All visible units stay on, so that a weight is one telescoping sum."""

    def sample_visible(self, key, params, h):
        return jnp.ones((len(h), len(params.visible_bias)))


def test_the_sum_of_many_small_gains_is_exact():
    """The weights of a machine whose biases alone change do not depend on the number of temperatures."""
    params = PARAMS._replace(weight=0 * PARAMS.weight, visible_bias=jnp.full(64, 3.0))
    v, base = jnp.ones((4, 64)), Base(jnp.zeros(64), jnp.full(12, -1.0))
    steps = jnp.linspace(0, 1, 20001)
    total, _ = jax.jit(lambda key: ais.log_weights(key, params, v, steps, Stuck(), base))(jax.random.key(0))
    hidden = np.logaddexp(0, np.asarray(params.hidden_bias, np.float64)) - np.logaddexp(0, -1.0)
    np.testing.assert_allclose(total, 64 * 3.0 + hidden.sum(), rtol=3e-7)


def test_copies_are_refused():
    with pytest.raises(ValueError, match="copies"):
        ais.log_partition(jax.random.key(0), PARAMS, Machine(copies=(2, 1)))


def test_one_chain_has_no_error():
    with pytest.raises(ValueError, match="2 chains or more"):
        jax.eval_shape(lambda: ais.log_partition(jax.random.key(0), PARAMS, num_chains=1))
    with pytest.raises(ValueError, match="2 chains or more"):
        jax.eval_shape(lambda: ais.reverse_log_partition(jax.random.key(0), PARAMS, jnp.zeros((1, 64))))
