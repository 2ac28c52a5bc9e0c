import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import shard
from jaxgen.classical import gmm, hmm
from jaxgen.classical.emissions import Gaussians, Symbols

SMALL, DATA = hmm.Config(num_states=2), "weather"
OPTIONS = {"max_steps": 1}
ELSEWHERE = (
    "emission=Gaussians",
    *(f"emission.{name}" for name in ("num_components", "covariance", "regularization")),
)

LENGTHS = np.array([7, 4, 1, 9, 6, 2])


@pytest.fixture(scope="module")
def ragged():
    """Six sequences of symbols padded to 9, and their mask."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 4, (6, 9)), np.arange(9) < LENGTHS[:, None]


def categorical(prior=0.0, **options):
    return hmm.Config(shape=(9,), num_states=3, emission=Symbols(4, prior), **options)


def gaussian(num_mixtures=1, covariance="full", regularization=1e-3, **options):
    emission = Gaussians(num_mixtures, covariance, regularization)
    return hmm.Config(shape=(9, 2), num_states=3, emission=emission, **options)


def vectors(seed=0):
    """Sequences that dwell at three places, (40, 9, 2)."""
    rng = np.random.default_rng(seed)
    states = np.cumsum(rng.random((40, 9)) < 0.3, 1) % 3
    places = np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    return places[states] + 0.5 * rng.normal(size=(40, 9, 2)), states


def test_one_step_normalises_the_expected_counts_of_all_paths(ragged):
    x, mask = ragged
    cfg = categorical(max_steps=1)
    with jax.enable_x64(True):
        before = hmm.init(jax.random.key(0), cfg).params
        before = jax.tree.map(lambda a: jnp.asarray(np.asarray(a, np.float64)), before)
        after = hmm.fit(x, cfg, mask, before).params
    initial, transition, emission = map(np.asarray, before)
    starts, moves, symbols, log_likelihood = np.zeros(3), np.zeros((3, 3)), np.zeros((3, 4)), 0.0
    for row, length in zip(x, LENGTHS, strict=True):
        paths = np.array(list(itertools.product(range(3), repeat=int(length))))
        joint = initial[paths[:, 0]] * emission[paths, row[:length]].prod(1)
        joint *= transition[paths[:, :-1], paths[:, 1:]].prod(1)
        log_likelihood += np.log(joint.sum())
        p = joint / joint.sum()
        np.add.at(starts, paths[:, 0], p)
        for t in range(length):
            np.add.at(symbols, (paths[:, t], row[t]), p)
            if t:
                np.add.at(moves, (paths[:, t - 1], paths[:, t]), p)
    for found, counts in zip(after, (starts, moves, symbols), strict=True):
        np.testing.assert_allclose(found, counts / counts.sum(-1, keepdims=True), rtol=1e-9)
    with jax.enable_x64(True):
        state = hmm.State(jnp.int32(0), jax.random.key(0), before, None)
        assert hmm.log_prob(state, x, cfg, mask).sum() == pytest.approx(log_likelihood, rel=1e-10)


@pytest.mark.parametrize("cfg", [categorical(), gaussian(regularization=0.0, num_mixtures=2)], ids=["c", "g"])
def test_likelihood_never_falls(cfg, ragged):
    step = jax.jit(functools.partial(hmm.train_step, cfg=dataclasses.replace(cfg, stepwise_power=0.0)))
    with jax.enable_x64(True):
        if isinstance(cfg.emission, Symbols):
            batch = {"tokens": jnp.asarray(ragged[0]), "mask": jnp.asarray(ragged[1])}
        else:
            batch = {"x": jnp.asarray(vectors()[0])}
        state = hmm.init(jax.random.key(1), cfg)
        state = state._replace(
            params=jax.tree.map(lambda a: a.astype(jnp.float64), state.params),
            counts=jax.tree.map(lambda a: a.astype(jnp.float64), state.counts),
        )
        nll = []
        for _ in range(25):
            state, metrics = step(state, batch)
            nll.append(float(metrics["nll"]))
    assert np.all(np.diff(nll) < 1e-9)
    assert nll[-1] < nll[0] - 0.1


@pytest.mark.slow
def test_padded_sequences_equal_one_by_one(ragged):
    x, mask = ragged
    cfg = categorical()
    state = hmm.init(jax.random.key(0), cfg)
    together = hmm.log_prob(state, x, cfg, mask)
    alone = [float(hmm.log_prob(state, row[None, :n], cfg)[0]) for row, n in zip(x, LENGTHS, strict=True)]
    np.testing.assert_allclose(together, alone, rtol=1e-5)
    garbage = np.where(mask[..., None], np.random.default_rng(0).normal(size=(6, 9, 2)), np.nan)
    state = hmm.fit(garbage.astype(np.float32), gaussian(max_steps=3), mask, key=jax.random.key(0))
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


@pytest.mark.slow
def test_gaussian_emissions_find_where_sequences_dwell():
    x, states = vectors()
    cfg = gaussian(max_steps=50)
    state = hmm.fit(np.float32(x), cfg)
    means = np.asarray(state.params.emission.means[:, 0])
    order = np.argsort(means @ [1, 2])
    np.testing.assert_allclose(means[order], [[0, 0], [4, 0], [0, 4]], atol=0.2)
    path = np.asarray(hmm.decode_states(state, np.float32(x), cfg))
    assert (np.argsort(order)[path] == states).mean() > 0.98
    np.testing.assert_allclose(np.diag(state.params.transition), 0.7, atol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_one_state_is_a_mixture_of_independent_frames(covariance):
    """Its steps are those of the mixture, and so is its likelihood."""
    x = np.float32(vectors()[0])
    regularization = 0.05
    emission = Gaussians(3, covariance, regularization)
    cfg = hmm.Config(shape=(9, 2), num_states=1, emission=emission, max_steps=3, tolerance=0.0)
    mixture = gmm.Config(
        shape=(2,), num_components=3, covariance=covariance, regularization=regularization, max_steps=3
    )
    start = hmm.init(jax.random.key(0), cfg, {"x": x}).params
    emission = start.emission._replace(weights=jnp.array([[0.6, 0.3, 0.1]]), means=0.3 * start.emission.means)
    start = start._replace(emission=emission)
    state = hmm.fit(x, cfg, params=start)
    frames = gmm.fit(
        x.reshape(-1, 2), mixture, gmm.Params(*(leaf[0] for leaf in start.emission)), jax.random.key(0)
    )
    assert abs(state.params.emission.weights[0] - start.emission.weights[0]).max() > 1e-3
    for found, expected in zip(state.params.emission, frames.params, strict=True):
        np.testing.assert_allclose(found[0], expected, rtol=1e-3, atol=1e-4)
    expected = gmm.log_prob(frames, x.reshape(-1, 2), mixture).reshape(40, 9).sum(1)
    np.testing.assert_allclose(hmm.log_prob(state, x, cfg), expected, rtol=1e-4)


@pytest.mark.slow
def test_no_tolerance_takes_every_step():
    """Long after the likelihood has stopped rising, when rounding makes it fall now and then."""
    x = np.random.default_rng(0).integers(0, 3, (20, 10))
    cfg = hmm.Config(shape=(10,), num_states=2, emission=Symbols(3), tolerance=0.0, max_steps=2000)
    assert hmm.fit(x, cfg).step == 2000


@pytest.mark.slow
def test_variances_begin_with_the_regularization():
    cfg = gaussian(regularization=0.3)
    still = jnp.zeros((2, 9, 2)).at[0].set(1.0)
    covariances = hmm.init(jax.random.key(0), cfg, {"x": still}).params.emission.covariances
    np.testing.assert_allclose(jnp.diagonal(covariances, axis1=-2, axis2=-1).min(), 0.3, rtol=1e-5)


@pytest.mark.slow
def test_counts_of_symbols_are_averaged_over_steps(ragged):
    """The second step has the weight 2^-power; every symbol of a batch is one that only it has."""
    cfg = categorical(prior=0.1, stepwise_power=0.7)
    step = jax.jit(functools.partial(hmm.train_step, cfg=cfg))
    state = hmm.init(jax.random.key(0), cfg)
    for symbol in (1, 3):
        state, _ = step(state, {"tokens": jnp.full((6, 9), symbol)})
    share = 2**-0.7
    np.testing.assert_allclose(state.counts.emission.sum(0), [0, 9 * (1 - share), 0, 9 * share], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_fit_keeps_the_counts_of_its_last_step(covariance):
    cfg = gaussian(num_mixtures=2, covariance=covariance, max_steps=1, stepwise_power=0.0)
    x = jnp.float32(vectors()[0])
    start = hmm.init(jax.random.key(0), cfg, {"x": x})
    expected, _ = jax.jit(functools.partial(hmm.train_step, cfg=cfg))(start, {"x": x})
    found = hmm.fit(x, cfg, params=start.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), found[2:], expected[2:])


@pytest.mark.slow
def test_frames_of_many_dimensions_fit_a_left_to_right_model():
    """Likelihoods of states are hundreds of nats apart, far from the origin, in float32."""
    random = np.random.default_rng(0)
    x = 19_000 + np.repeat(np.arange(3), 10)[:, None] * 2.0 + random.normal(size=(40, 30, 13))
    emission = Gaussians(covariance="diagonal")
    cfg = hmm.Config(shape=(30, 13), num_states=3, emission=emission, left_to_right=True)
    state = hmm.fit(x.astype(np.float32), cfg)
    parts = x.astype(np.float32).astype(np.float64).reshape(40, 3, 10, 13)
    variances = np.stack([parts[:, k].reshape(-1, 13).var(0) for k in range(3)])
    np.testing.assert_allclose(state.params.emission.covariances[:, 0], variances, rtol=0.02)
    paths = hmm.decode_states(state, jnp.asarray(x, jnp.float32), cfg)
    assert (paths == np.repeat(np.arange(3), 10)).mean() > 0.99


@pytest.mark.slow
def test_a_left_to_right_model_stays_one(ragged):
    cfg = categorical(left_to_right=True, transition_prior=0.1, prior=0.1)
    state = hmm.fit(*ragged[:1], cfg, ragged[1])
    np.testing.assert_array_equal(state.params.initial, [1, 0, 0])
    assert (state.params.transition[jnp.array([0, 1, 1, 2, 2]), jnp.array([2, 0, 0, 0, 1])] == 0).all()
    assert (state.params.emission > 0).all()
    paths = np.asarray(hmm.sample_states(jax.random.key(0), state, 100, cfg))
    assert (paths[:, 0] == 0).all()
    assert set(np.diff(paths, axis=1).ravel()) <= {0, 1}


@pytest.mark.slow
@pytest.mark.parametrize("cfg", [categorical(), gaussian(num_mixtures=2)], ids=["categorical", "gaussian"])
def test_samples_follow_the_model(cfg):
    state = hmm.init(jax.random.key(3), cfg)
    x = np.asarray(hmm.sample(jax.random.key(0), state, 20_000, cfg))
    assert x.shape == (20_000, *cfg.shape)
    law = np.asarray(state.params.initial) @ np.linalg.matrix_power(np.asarray(state.params.transition), 8)
    if isinstance(cfg.emission, Symbols):
        expected = law @ np.asarray(state.params.emission)
        np.testing.assert_allclose(np.bincount(x[:, 8], minlength=4) / len(x), expected, atol=0.02)
    else:
        weights, means, _ = state.params.emission
        expected = law @ np.einsum("km,kmd->kd", weights, means)
        np.testing.assert_allclose(x[:, 8].mean(0), expected, atol=0.06)


@pytest.mark.slow
def test_stepwise_em_on_batches_comes_near_em_on_all():
    x = jnp.float32(vectors()[0])
    cfg = gaussian()
    whole = hmm.log_prob(hmm.fit(x, cfg), x, cfg).mean()
    state = hmm.init(jax.random.key(0), cfg, {"x": x})
    step = jax.jit(functools.partial(hmm.train_step, cfg=cfg))
    for index in range(100):
        rows = jax.random.choice(jax.random.key(index), len(x), (16,), replace=False)
        state, _ = step(state, {"x": x[rows]})
    assert hmm.log_prob(state, x, cfg).mean() > whole - 0.5


@pytest.mark.slow
def test_sequences_split_over_devices_give_the_same_step():
    cfg = gaussian(stepwise_power=0.0)
    batch = {"x": jnp.float32(vectors()[0])}
    state = hmm.init(jax.random.key(0), cfg, batch)
    step = jax.jit(functools.partial(hmm.train_step, cfg=cfg))
    split = step(state, shard.put_batch(batch, shard.mesh()))[0].params
    whole = step(state, batch)[0].params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), split, whole)


def test_bad_input_is_named(ragged):
    x, mask = ragged
    with pytest.raises(ValueError, match=r"symbols must be integers in 0\.\.3"):
        hmm.fit(x + 1, categorical())
    with pytest.raises(ValueError, match="length 0"):
        hmm.fit(x, categorical(), mask & (np.arange(6) > 0)[:, None])
    with pytest.raises(ValueError, match="end"):
        hmm.fit(x, categorical(), mask[:, ::-1] | (np.arange(9) == 0))
    with pytest.raises(ValueError, match="not finite"):
        hmm.fit(np.full((2, 9, 2), np.nan, np.float32), gaussian())
    with pytest.raises(ValueError, match="x must be"):
        hmm.fit(x, gaussian())
    state = hmm.init(jax.random.key(0), categorical())
    assert (hmm.log_prob(state, jnp.array([[0, 4], [-1, 0]]), categorical()) == -jnp.inf).all()
    never = hmm.Params(jnp.ones(1), jnp.ones((1, 1)), jnp.array([[1.0, 0, 0, 0]]))
    with pytest.raises(ValueError, match="impossible"):
        hmm.fit(x, hmm.Config(shape=(9,), num_states=1, emission=Symbols(4), max_steps=1), mask, never)
