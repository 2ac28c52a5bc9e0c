import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.classical import hmm

K, T = 3, 5


@pytest.fixture(scope="module", autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def chain():
    """log initial, log transition with two impossible moves, log-likelihoods of T observations."""
    rng = np.random.default_rng(0)
    initial, transition = rng.dirichlet(np.ones(K)), rng.dirichlet(np.ones(K), K)
    transition[0, 2] = transition[2, 1] = 0
    transition /= transition.sum(1, keepdims=True)
    with np.errstate(divide="ignore"):
        return jnp.log(initial), jnp.log(transition), jnp.asarray(3 * rng.normal(size=(T, K)) - 400)


@pytest.fixture(scope="module")
def enumerated(chain):
    """Every path (K^T, T) and its log joint."""
    initial, transition, table = map(np.asarray, chain)
    paths = np.array(list(itertools.product(range(K), repeat=T)))
    joint = initial[paths[:, 0]] + table[np.arange(T), paths].sum(1)
    return paths, joint + transition[paths[:, :-1], paths[:, 1:]].sum(1)


def posterior_of(enumerated):
    _, joint = enumerated
    return np.exp(joint - np.logaddexp.reduce(joint))


@pytest.mark.parametrize("forward", [hmm.forward, hmm.forward_associative])
def test_filter_against_enumeration(forward, chain, enumerated):
    _, joint = enumerated
    log_z, log_filtered = jax.jit(forward)(*chain)
    assert log_z == pytest.approx(np.logaddexp.reduce(joint), abs=1e-10)
    initial, transition, table = map(np.asarray, chain)
    for t in range(T):
        prefix = np.array(list(itertools.product(range(K), repeat=t + 1)))
        log_p = initial[prefix[:, 0]] + table[np.arange(t + 1), prefix].sum(1)
        log_p = log_p + transition[prefix[:, :-1], prefix[:, 1:]].sum(1)
        p = np.exp(log_p - np.logaddexp.reduce(log_p))
        expected = np.bincount(prefix[:, t], p, K)
        np.testing.assert_allclose(np.exp(log_filtered[t]), expected, atol=1e-12)


@pytest.mark.slow
def test_posterior_and_moves_against_enumeration_and_gradients(chain, enumerated):
    paths, _ = enumerated
    p = posterior_of(enumerated)
    _, posterior, moves = jax.jit(hmm.smooth)(*chain)
    expected = np.stack([np.bincount(paths[:, t], p, K) for t in range(T)])
    np.testing.assert_allclose(posterior, expected, atol=1e-12)
    counted = np.zeros((K, K))
    for t in range(T - 1):
        np.add.at(counted, (paths[:, t], paths[:, t + 1]), p)
    np.testing.assert_allclose(moves, counted, atol=1e-12)
    finite = jnp.where(jnp.isfinite(chain[1]), chain[1], -1e4)
    slopes = jax.jit(jax.grad(lambda *chain: hmm.forward(*chain)[0], (1, 2)))
    by_moves, by_table = slopes(chain[0], finite, chain[2])
    np.testing.assert_allclose(posterior, by_table, atol=1e-10)
    np.testing.assert_allclose(moves, by_moves, atol=1e-10)


def test_viterbi_against_enumeration(chain, enumerated):
    paths, joint = enumerated
    path, log_joint = jax.jit(hmm.viterbi)(*chain)
    np.testing.assert_array_equal(path, paths[joint.argmax()])
    assert log_joint == pytest.approx(joint.max(), abs=1e-10)


def test_viterbi_takes_the_first_of_equals():
    path, log_joint = hmm.viterbi(jnp.zeros(2), jnp.zeros((2, 2)), jnp.zeros((3, 2)))
    np.testing.assert_array_equal(path, [0, 0, 0])
    assert log_joint == 0


def test_drawn_paths_follow_the_posterior(chain, enumerated):
    p = posterior_of(enumerated)
    keys = jax.random.split(jax.random.key(0), 20_000)
    drawn = np.asarray(jax.jit(jax.vmap(lambda key: hmm.posterior_sample(key, *chain)))(keys))
    index = drawn @ K ** np.arange(T)[::-1]
    share = np.bincount(index, minlength=K**T) / len(keys)
    assert (share[p == 0] == 0).all()
    assert np.all(np.abs(share - p) <= 5 * np.sqrt(p * (1 - p) / len(keys)) + 1e-12)


@pytest.mark.slow
def test_padding_changes_nothing(chain):
    initial, transition, table = chain
    padded = jnp.concatenate([table, jnp.full((3, K), jnp.nan)])
    mask = jnp.arange(T + 3) < T
    for forward in (hmm.forward, hmm.forward_associative):
        log_z, log_filtered = jax.jit(forward)(initial, transition, padded, mask)
        expected = jax.jit(forward)(initial, transition, table)
        assert log_z == pytest.approx(float(expected[0]), abs=1e-12)
        np.testing.assert_allclose(np.exp(log_filtered[:T]), np.exp(expected[1]), atol=1e-13)
        np.testing.assert_allclose(
            np.exp(log_filtered[T:]), np.exp(jnp.stack([log_filtered[T - 1]] * 3)), atol=1e-13
        )
    _, posterior, moves = hmm.smooth(initial, transition, padded, mask)
    expected = hmm.smooth(initial, transition, table)
    np.testing.assert_allclose(posterior[:T], expected[1], atol=1e-13)
    np.testing.assert_allclose(moves, expected[2], atol=1e-13)
    assert (posterior[T:] == 0).all()
    path, log_joint = hmm.viterbi(initial, transition, padded, mask)
    np.testing.assert_array_equal(path[:T], hmm.viterbi(initial, transition, table)[0])
    assert log_joint == pytest.approx(float(hmm.viterbi(initial, transition, table)[1]), abs=1e-12)
    keys = jax.random.split(jax.random.key(1), 4000)
    drawn = jax.vmap(lambda key: hmm.posterior_sample(key, initial, transition, padded, mask))(keys)
    share = (drawn[:, :T, None] == jnp.arange(K)).mean(0)
    assert jnp.all(
        jnp.abs(share - expected[1]) <= 5 * jnp.sqrt(expected[1] * (1 - expected[1]) / 4000) + 1e-9
    )


@pytest.mark.slow
def test_long_sequences_neither_underflow_nor_drift():
    rng = np.random.default_rng(1)
    transition = jnp.log(jnp.asarray(rng.dirichlet(np.ones(4), 4)))
    table = jnp.asarray(5 * rng.normal(size=(1000, 4)) - 1000)
    single = [jnp.float32(a) for a in (jnp.log(jnp.full(4, 0.25)), transition, table)]
    exact, _ = hmm.forward(jnp.log(jnp.full(4, 0.25)), transition, table)
    for forward in (hmm.forward, hmm.forward_associative):
        log_z, log_filtered = jax.jit(forward)(*single)
        assert log_z.dtype == jnp.float32
        assert log_z == pytest.approx(float(exact), rel=1e-5)
        np.testing.assert_allclose(np.exp(log_filtered).sum(1), 1, rtol=1e-4)


@pytest.mark.slow
def test_an_impossible_observation_has_no_likelihood(chain):
    initial, transition, table = chain
    impossible = table.at[2].set(-jnp.inf)
    assert hmm.forward(initial, transition, impossible)[0] == -jnp.inf
    assert hmm.forward_associative(initial, transition, impossible)[0] == -jnp.inf
    assert hmm.viterbi(initial, transition, impossible)[1] == -jnp.inf


@jax.jit
def everything(initial, transition, table):
    """log Z by both filters, the smoother's posterior and moves, the gradient by the table, and 500 paths."""
    chain = initial, transition, table
    log_zs = hmm.forward(*chain)[0], hmm.forward_associative(*chain)[0], hmm.smooth(*chain)[0]
    slope = jax.grad(lambda table: hmm.forward(initial, transition, table)[0])(table)
    keys = jax.random.split(jax.random.key(0), 500)
    drawn = jax.vmap(lambda key: hmm.posterior_sample(key, *chain))(keys)
    return jnp.stack(log_zs), *hmm.smooth(*chain)[1:], slope, drawn


@pytest.mark.parametrize("moves", ["left_to_right", "stay", "dense"])
def test_states_hundreds_of_nats_apart_against_enumeration(moves):
    """In float32, where e^-110 is 0: what was unlikely so far may be the only possible state later."""
    rng = np.random.default_rng(2)
    transition = {
        "left_to_right": np.array([[0.5, 0.5, 0], [0, 0.5, 0.5], [0, 0, 1]]),
        "stay": np.eye(K),
        "dense": rng.dirichlet(np.ones(K), K),
    }[moves]
    initial = np.array([1.0, 0, 0]) if moves == "left_to_right" else np.full(K, 1 / K)
    table = rng.choice([-400.0, -110.0, 0.0], (T, K))
    table[0], table[-1] = [-200, 0, 0], [-90, -np.inf, -110]
    with np.errstate(divide="ignore"):
        chain = [jnp.asarray(a, jnp.float32) for a in (np.log(initial), np.log(transition), table)]
    log_initial, log_transition, _ = (np.asarray(a, np.float64) for a in chain)
    paths = np.array(list(itertools.product(range(K), repeat=T)))
    joint = log_initial[paths[:, 0]] + table[np.arange(T), paths].sum(1)
    joint = joint + log_transition[paths[:, :-1], paths[:, 1:]].sum(1)
    p = posterior_of((paths, joint))
    posterior = np.stack([np.bincount(paths[:, t], p, K) for t in range(T)])
    counted = np.zeros((K, K))
    for t in range(T - 1):
        np.add.at(counted, (paths[:, t], paths[:, t + 1]), p)
    log_zs, found, found_moves, slope, drawn = everything(*chain)
    np.testing.assert_allclose(log_zs, np.logaddexp.reduce(joint), rtol=1e-5)
    np.testing.assert_allclose(found, posterior, atol=1e-4)
    np.testing.assert_allclose(slope, posterior, atol=1e-4)
    np.testing.assert_allclose(found_moves, counted, atol=1e-4)
    share = (np.asarray(drawn)[..., None] == np.arange(K)).mean(0)
    assert np.all(np.abs(share - posterior) <= 5 * np.sqrt(posterior * np.abs(1 - posterior) / 500) + 1e-3)


@pytest.mark.slow
def test_many_sequences_at_once_are_those_one_by_one(chain):
    initial, transition, table = chain
    tables = jnp.stack([table, table[::-1], jnp.where(jnp.arange(K) == 1, -1000.0, table)])
    masks = jnp.arange(T) < jnp.array([T, T - 2, T])[:, None]
    for function in map(jax.jit, (hmm.forward, hmm.smooth)):
        together = function(initial, transition, tables, masks)
        for i in range(3):
            alone = function(initial, transition, tables[i], masks[i])
            for one, other in zip(together, alone, strict=True):
                np.testing.assert_allclose(one[i], other, rtol=1e-12, atol=1e-300)
