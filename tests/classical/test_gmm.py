import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from jaxgen import shard
from jaxgen.classical import gmm

SMALL = gmm.Config(num_components=2, covariance="diagonal")
OPTIONS = {"max_steps": 1, "tolerance": 1.0}

KINDS = {"full": "full", "tied": "tied", "diagonal": "diag", "spherical": "spherical"}

EACH_KIND = [k if k == "full" else pytest.param(k, marks=pytest.mark.slow) for k in KINDS]


@pytest.fixture(scope="module")
def points():
    """Three tilted, overlapping Gaussians in three dimensions, 900 points."""
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(300, 3)) @ rng.normal(size=(3, 3)) + 2 * rng.normal(size=3) for _ in range(3)]
    return np.concatenate(parts)


def start(kind, x, k):
    """The same broad start for both libraries."""
    means = x[:: len(x) // k][:k]
    variance = x.var(0).mean()
    covariances = {
        "full": np.tile(variance * np.eye(3), (k, 1, 1)),
        "tied": variance * np.eye(3),
        "diagonal": np.full((k, 3), variance),
        "spherical": np.full(k, variance),
    }[kind]
    return gmm.Params(np.full(k, 1 / k), means, covariances)


def sklearn_fit(kind, x, params, steps):
    variance = x.var(0).mean()
    precisions = np.where(params.covariances > 0, 1 / variance, 0.0)
    model = GaussianMixture(
        len(params.means),
        covariance_type=KINDS[kind],
        weights_init=params.weights,
        means_init=params.means,
        precisions_init=precisions,
        reg_covar=1e-6,
        tol=0,
        max_iter=steps,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(x)


@pytest.mark.slow
@pytest.mark.parametrize("kind", EACH_KIND)
def test_iterates_are_those_of_scikit_learn(kind, points, monkeypatch):
    monkeypatch.setattr(gmm, "CHUNK", 256)  # 900 examples: three whole chunks and a rest
    cfg = gmm.Config(
        shape=(3,), num_components=4, covariance=kind, regularization=1e-6, tolerance=0.0, max_steps=12
    )
    reference = sklearn_fit(kind, points, start(kind, points, 4), 12)
    with jax.enable_x64(True):
        state = gmm.fit(points, cfg, start(kind, points, 4))
        assert state.step == 12
        np.testing.assert_allclose(state.params.weights, reference.weights_, rtol=1e-8)
        np.testing.assert_allclose(state.params.means, reference.means_, rtol=1e-8, atol=1e-9)
        np.testing.assert_allclose(state.params.covariances, reference.covariances_, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(
            gmm.log_prob(state, points, cfg), reference.score_samples(points), rtol=1e-8
        )
        np.testing.assert_allclose(
            gmm.responsibilities(state, points, cfg), reference.predict_proba(points), atol=1e-8
        )
        assert gmm.bic(state, points, cfg) == pytest.approx(reference.bic(points), rel=1e-8)


def test_float32_follows_float64(points):
    cfg = gmm.Config(shape=(3,), num_components=4, tolerance=0.0, max_steps=12)
    with jax.enable_x64(True):
        exact = gmm.fit(points, cfg, start("full", points, 4)).params
        exact = jax.tree.map(np.asarray, exact)
    single = gmm.fit(
        points.astype(np.float32), cfg, jax.tree.map(np.float32, start("full", points, 4))
    ).params
    assert single.means.dtype == jnp.float32
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3), single, exact)


@pytest.mark.slow
@pytest.mark.parametrize("kind", EACH_KIND)
def test_likelihood_never_falls(kind, points):
    cfg = gmm.Config(shape=(3,), num_components=5, covariance=kind, regularization=0.0, stepwise_power=0.0)
    with jax.enable_x64(True):
        batch = {"x": jnp.asarray(points)}
        state = gmm.init(jax.random.key(0), cfg, batch)
        step = jax.jit(functools.partial(gmm.train_step, cfg=cfg))
        nll = []
        for _ in range(30):
            state, metrics = step(state, batch)
            nll.append(float(metrics["nll"]))
    assert np.all(np.diff(nll) < 1e-10)
    assert nll[-1] < nll[0] - 0.01


def test_one_component_is_mean_and_covariance(points):
    cfg = gmm.Config(shape=(3,), num_components=1, regularization=0.0)
    with jax.enable_x64(True):
        state = gmm.fit(points, cfg)
        np.testing.assert_allclose(state.params.means[0], points.mean(0))
        np.testing.assert_allclose(state.params.covariances[0], np.cov(points.T, ddof=0))
        expected = scipy.stats.multivariate_normal(points.mean(0), np.cov(points.T, ddof=0)).logpdf(points)
        np.testing.assert_allclose(gmm.log_prob(state, points, cfg), expected)


@pytest.mark.slow
def test_density_integrates_to_one():
    cfg = gmm.Config(num_components=3)
    state = gmm.init(jax.random.key(2), cfg)
    axis = jnp.linspace(-9, 9, 401)
    grid = jnp.stack(jnp.meshgrid(axis, axis), -1).reshape(-1, 2)
    mass = jnp.exp(gmm.log_prob(state, grid, cfg)).sum() * (axis[1] - axis[0]) ** 2
    assert mass == pytest.approx(1.0, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", EACH_KIND)
def test_samples_have_the_moments_of_the_mixture(kind, points):
    cfg = gmm.Config(shape=(3,), num_components=3, covariance=kind, max_steps=5)
    state = gmm.fit(points, cfg)
    x = gmm.sample(jax.random.key(0), state, 100_000, cfg)
    weights, means, covariances = state.params
    covariances = {
        "full": covariances,
        "tied": covariances,
        "diagonal": covariances[..., None] * jnp.eye(3) if kind == "diagonal" else None,
        "spherical": covariances[..., None, None] * jnp.eye(3) if kind == "spherical" else None,
    }[kind]
    mean = weights @ means
    second = (weights[:, None, None] * (covariances + means[:, :, None] * means[:, None])).sum(0)
    np.testing.assert_allclose(x.mean(0), mean, atol=0.05)
    np.testing.assert_allclose(np.cov(x.T), second - jnp.outer(mean, mean), atol=0.15)


@pytest.mark.slow
def test_the_likeliest_restart_is_kept():
    rng = np.random.default_rng(1)
    centers = 4.0 * np.stack(np.meshgrid(range(4), range(3)), -1).reshape(-1, 2)
    x = (centers[rng.integers(12, size=1200)] + 0.3 * rng.normal(size=(1200, 2))).astype(np.float32)
    one, many = (gmm.Config(num_components=12, num_restarts=n, kmeans_steps=0) for n in (1, 8))
    log_prob = jax.jit(lambda state: gmm.log_prob(state, x, one).mean())
    likelihoods = [float(log_prob(gmm.fit(x, one, key=jax.random.key(seed)))) for seed in range(8)]
    best = gmm.fit(x, many)
    assert min(likelihoods) < max(likelihoods) - 0.01
    assert log_prob(best) > max(likelihoods) - 1e-3
    np.testing.assert_allclose(np.sort(best.params.means, 0), np.sort(centers, 0), atol=0.2)


def test_seeds_are_examples_far_apart():
    x = jnp.concatenate([jnp.zeros((50, 2)), 100 + jnp.zeros((50, 2)), jnp.array([[0.0, 100.0]])])
    seeds = gmm.kmeans_plus_plus(jax.random.key(0), x, 3)
    assert {tuple(map(float, seed)) for seed in seeds} == {(0.0, 0.0), (100.0, 100.0), (0.0, 100.0)}


@pytest.mark.slow
def test_stepwise_em_on_batches_comes_near_em_on_all(points):
    x = jnp.asarray(points, jnp.float32)
    cfg = gmm.Config(shape=(3,), num_components=3)
    whole = gmm.fit(x, cfg)
    state = gmm.init(jax.random.key(0), cfg, {"x": x})
    step = jax.jit(functools.partial(gmm.train_step, cfg=cfg))
    for index in range(150):
        rows = jax.random.choice(jax.random.key(index), len(x), (60,), replace=False)
        state, _ = step(state, {"x": x[rows]})
    assert gmm.log_prob(state, x, cfg).mean() > gmm.log_prob(whole, x, cfg).mean() - 0.05


@pytest.mark.slow
def test_a_batch_split_over_devices_gives_the_same_step(points):
    cfg = gmm.Config(shape=(3,), num_components=3, stepwise_power=0.0)
    batch = {"x": jnp.asarray(points[:896], jnp.float32)}
    state = gmm.init(jax.random.key(0), cfg, batch)
    step = jax.jit(functools.partial(gmm.train_step, cfg=cfg))
    split = step(state, shard.put_batch(batch, shard.mesh()))[0]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        split.params,
        step(state, batch)[0].params,
    )


@pytest.mark.slow
def test_no_tolerance_takes_every_step():
    """Long after the likelihood has stopped rising, when rounding makes it fall now and then."""
    x = np.random.default_rng(0).normal(size=(100, 2)).astype(np.float32)
    state = gmm.fit(x, gmm.Config(num_components=3, tolerance=0.0, max_steps=2000))
    assert state.step == 2000


@pytest.mark.slow
def test_an_empty_component_stays_where_it_is():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(100, 2)), jnp.float32)
    params = gmm.Params(
        jnp.array([0.5, 0.5]), jnp.array([[0.0, 0.0], [1e3, 1e3]]), jnp.stack([jnp.eye(2)] * 2)
    )
    state = gmm.fit(x, gmm.Config(num_components=2), params)
    np.testing.assert_array_equal(state.params.means[1], [1e3, 1e3])
    assert state.params.weights[1] == 0
    assert jnp.isfinite(gmm.log_prob(state, x, gmm.Config(num_components=2))).all()


def test_bad_input_is_named():
    x = np.zeros((5, 2), np.float32)
    with pytest.raises(ValueError, match="not finite"):
        gmm.fit(x + np.nan, gmm.Config(num_components=2))
    with pytest.raises(ValueError, match="8 components need as many examples, not 5"):
        gmm.fit(x, gmm.Config())
    with pytest.raises(ValueError, match=r"x must be \(N, 3\) for shape \(3,\), not \(5, 2\)"):
        gmm.fit(x, gmm.Config(shape=(3,), num_components=2))
    with pytest.raises(ValueError, match="raise `regularization`"):
        gmm.fit(x, gmm.Config(num_components=1, regularization=0.0))


@pytest.mark.slow
@pytest.mark.parametrize("kind", EACH_KIND)
def test_variances_keep_their_digits_far_from_the_origin(kind):
    """Two clusters of standard deviation 1, 40,000 apart, in float32 against NumPy in float64."""
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(400, 2)) + np.repeat([[19_000.0], [59_000.0]], 200, 0)).astype(np.float32)
    parts = x.astype(np.float64).reshape(2, 200, 2)
    of_each = np.stack([np.cov(part.T, ddof=0) for part in parts])
    expected = {
        "full": of_each,
        "tied": of_each.mean(0),
        "diagonal": parts.var(1),
        "spherical": parts.var(1).mean(1),
    }[kind]
    cfg = gmm.Config(shape=(2,), num_components=2, covariance=kind, regularization=0.0)
    fitted = gmm.fit(x, cfg)
    state = gmm.init(jax.random.key(0), cfg, {"x": jnp.asarray(x)})
    step = jax.jit(functools.partial(gmm.train_step, cfg=cfg))
    for part in (x[::2], x[1::2], x):
        state, _ = step(state, {"x": jnp.asarray(part)})
    for found in (fitted, state):
        order = np.argsort(found.params.means[:, 0])
        np.testing.assert_allclose(found.params.means[order], parts.mean(1), atol=0.05)
        covariances = found.params.covariances
        covariances = covariances if kind == "tied" else covariances[order]
        np.testing.assert_allclose(covariances, expected, atol=0.1 if found is state else 0.02)


def test_clusters_close_together_far_from_the_origin_are_told_apart():
    z = np.repeat([0.0, 1.0], 50)[:, None]
    x = 10_000 + z + 0.05 * np.random.default_rng(0).normal(size=(100, 1))
    means = gmm.fit(x.astype(np.float32), gmm.Config(shape=(1,), num_components=2)).params.means
    np.testing.assert_allclose(np.sort(means[:, 0]), [10_000, 10_001], atol=0.05)
