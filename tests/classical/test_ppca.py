"""Probabilistic PCA against its closed form and against scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.decomposition

from jaxgen import values
from jaxgen.classical import ppca

# The mean starts at that of the batch, with a gradient near 0, whose signs Adam would follow: SGD for what
# must be reproduced.
SMALL = ppca.Config(num_latents=3, optimizer=values.SGD(1e-3))
TRAINED = ppca.Config(num_latents=3)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    scales = np.array([3.0, 1.5, 0.5, 0.5, 0.5])
    rotation = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    return jnp.asarray(rng.normal(size=(4000, 5)) * scales @ rotation.T + 2.0, jnp.float32)


@pytest.fixture(scope="module")
def trained(data):
    cfg = ppca.Config(shape=(5,), num_latents=2, optimizer=values.Adam(3e-2))
    state = ppca.init(jax.random.key(0), cfg, {"x": data})

    @jax.jit
    def train(state):
        return jax.lax.scan(lambda s, _: ppca.train_step(s, {"x": data}, cfg), state, length=800)

    return cfg, *train(state)


def test_reaches_the_closed_form_maximum(data, trained):
    _, state, _ = trained
    eigenvalues = np.linalg.eigvalsh(np.cov(data.T, ddof=0))
    assert np.exp(2 * state.params.log_scale) == pytest.approx(eigenvalues[:3].mean(), rel=0.01)
    cov = state.params.weight @ state.params.weight.T + jnp.exp(2 * state.params.log_scale) * jnp.eye(5)
    np.testing.assert_allclose(np.linalg.eigvalsh(cov)[3:], eigenvalues[3:], rtol=0.02)


def test_density_integrates_to_one():
    cfg = ppca.Config(shape=(2,), num_latents=1)
    state = ppca.init(jax.random.key(1), cfg)
    grid = jnp.linspace(-8, 8, 401)
    points = jnp.stack(jnp.meshgrid(grid, grid), -1).reshape(-1, 2)
    mass = jnp.exp(ppca.log_prob(state, points, cfg)).sum() * (grid[1] - grid[0]) ** 2
    assert mass == pytest.approx(1.0, abs=1e-3)


def test_samples_have_the_model_covariance(trained):
    cfg, state, _ = trained
    x = ppca.sample(jax.random.key(2), state, 200_000, cfg)
    cov = state.params.weight @ state.params.weight.T + jnp.exp(2 * state.params.log_scale) * jnp.eye(5)
    np.testing.assert_allclose(np.cov(x.T), cov, atol=0.1)


def test_encoding_shrinks_towards_the_prior(data, trained):
    cfg, state, _ = trained
    z = ppca.encode(state, data, cfg)
    assert np.all(z.var(0) < 1.0)


def test_likelihood_rises(trained):
    _, _, metrics = trained
    assert metrics["nll"][-1] < metrics["nll"][0] - 1.0


def test_log_prob_is_that_of_scikit_learn(data, trained):
    """`PCA.score` is the mean log-likelihood of the same model under its own estimate of W, mu and s."""
    cfg, state, _ = trained
    pca = sklearn.decomposition.PCA(cfg.num_latents).fit(data)
    scale = np.sqrt(pca.explained_variance_ - pca.noise_variance_)
    params = ppca.Params(pca.components_.T * scale, pca.mean_, 0.5 * np.log(pca.noise_variance_))
    state = state._replace(params=jax.tree.map(jnp.float32, params))
    assert ppca.log_prob(state, data, cfg).mean() == pytest.approx(pca.score(data), rel=1e-5)


def test_encoding_is_the_posterior_mean(trained):
    """E[z | x] by conditioning the joint Gaussian of (z, x)."""
    cfg, state, _ = trained
    weight, mean, log_scale = map(np.float64, state.params)
    x = np.asarray(ppca.sample(jax.random.key(3), state, 20, cfg), np.float64)
    covariance = weight @ weight.T + np.exp(2 * log_scale) * np.eye(5)
    expected = (weight.T @ np.linalg.solve(covariance, (x - mean).T)).T
    np.testing.assert_allclose(ppca.encode(state, x.astype(np.float32), cfg), expected, atol=1e-4)


def test_too_many_latents_are_refused():
    with pytest.raises(ValueError, match="num_latents must be 1 to 4"):
        ppca.init(jax.random.key(0), ppca.Config(shape=(5,), num_latents=5))
