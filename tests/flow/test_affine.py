"""The affine flow finds the Cholesky factor both ways, and its density is that of the Gaussian."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from jaxgen.flow import affine, bijectors, density
from jaxgen.values import Adam, Cosine
from tests.flow.check import shaken

SMALL = affine.Config()
POINTS = affine.Config(shape=(3,), levels=0, optimizer=Adam(0.1, schedule=Cosine(1000)))
MEAN = np.array([1.0, -2.0, 0.5])
FACTOR = np.array([[2.0, 0.0, 0.0], [-0.7, 0.5, 0.0], [0.3, -1.2, 1.5]])


@pytest.fixture(scope="module")
def data():
    """Points whose mean and 1/N covariance are exactly those of MEAN and FACTOR."""
    x = np.random.default_rng(0).normal(size=(500, 3))
    x -= x.mean(0)
    x = x @ np.linalg.inv(np.linalg.cholesky(x.T @ x / len(x))).T
    return jnp.float32(x @ FACTOR.T + MEAN)


def assert_found(params):
    np.testing.assert_allclose(params["mean"], MEAN, atol=1e-3)
    np.testing.assert_allclose(bijectors.cholesky_factor(params), FACTOR, atol=1e-3)


@pytest.mark.slow
def test_maximum_likelihood_finds_the_cholesky_factor(data):
    state = affine.init(jax.random.key(0), POINTS)
    step = lambda state, _: affine.train_step(state, {"x": data}, POINTS)
    state, metrics = jax.jit(lambda state: jax.lax.scan(step, state, length=1000))(state)
    assert_found(state.params)
    lowest = 1.5 * (1 + np.log(2 * np.pi)) + np.log(np.diag(FACTOR)).sum()
    assert metrics["nll"][-1] == pytest.approx(lowest, abs=1e-4)


def test_the_reverse_divergence_finds_it_too():
    """From draws of the flow and a density known up to a factor."""
    precision = np.linalg.inv(FACTOR @ FACTOR.T)
    target = lambda x: 7.0 - 0.5 * ((x - MEAN) @ precision * (x - MEAN)).sum(-1)
    optimizer = POINTS.optimizer()

    def step(carry, key):
        params, opt_state = carry
        grads = jax.grad(affine.reverse_kl)(params, key, target, 50, POINTS, path=True)
        updates, opt_state = optimizer.update(grads, opt_state)
        return (optax.apply_updates(params, updates), opt_state), None

    params = affine.flow(POINTS).init(jax.random.key(0))
    train = jax.jit(lambda carry, keys: jax.lax.scan(step, carry, keys)[0])
    params, _ = train((params, optimizer.init(params)), jax.random.split(jax.random.key(1), 1000))
    assert_found(params)


def test_density_and_samples_are_those_of_the_gaussian(data):
    state = affine.init(jax.random.key(0), POINTS)
    raw = jnp.tril(jnp.float32(FACTOR), -1) + jnp.diag(
        bijectors.inverse_softplus(jnp.diag(jnp.float32(FACTOR)) - bijectors.MIN_SCALE)
    )
    state = state._replace(params={"mean": jnp.float32(MEAN), "raw": raw})
    expected = scipy.stats.multivariate_normal(MEAN, FACTOR @ FACTOR.T).logpdf(data)

    @jax.jit
    def run(state):
        z = affine.encode(state, data, POINTS)
        x = affine.sample(jax.random.key(1), state, 100_000, POINTS)
        return affine.log_prob(state, data, POINTS), z, affine.decode(state, z, POINTS), x

    log_prob, z, back, x = run(state)
    np.testing.assert_allclose(log_prob, expected, rtol=1e-4)
    np.testing.assert_allclose(np.cov(x.T), FACTOR @ FACTOR.T, atol=0.05)
    np.testing.assert_allclose(np.cov(z.T, ddof=0), np.eye(3), atol=1e-4)
    np.testing.assert_allclose(back, data, atol=1e-5)


@pytest.mark.slow
def test_the_reverse_divergence_of_a_known_density():
    """KL(N(m, s^2) || N(0, 1)) in closed form, and 0 from the flow to itself at every draw."""
    cfg = affine.Config(shape=(1,), levels=0)
    params = shaken(affine.flow(cfg).init(jax.random.key(0)), 0.3)
    mean, std = float(params["mean"][0]), float(bijectors.cholesky_factor(params)[0, 0])
    normal = lambda x: jax.scipy.stats.norm.logpdf(x[:, 0])
    exact = 0.5 * (std**2 + mean**2 - 1) - np.log(std)
    gradients = []
    for path in (False, True):
        run = lambda params, path=path: affine.reverse_kl(
            params, jax.random.key(1), normal, 100_000, cfg, path=path
        )
        found, gradient = jax.jit(jax.value_and_grad(run))(params)
        assert found == pytest.approx(exact, abs=0.01)
        assert gradient["mean"][0] == pytest.approx(mean, abs=0.02)
        gradients.append(gradient)
    np.testing.assert_allclose(gradients[0]["raw"], gradients[1]["raw"], atol=0.02)
    itself = lambda x: density.log_prob(affine.flow(cfg), params, x)
    assert affine.reverse_kl(params, jax.random.key(1), itself, 10, cfg) == pytest.approx(0, abs=1e-5)


def test_a_batch_sets_mean_and_diagonal(data):
    params = affine.init(jax.random.key(0), POINTS, {"x": data}).params
    np.testing.assert_allclose(params["mean"], MEAN, atol=1e-4)
    np.testing.assert_allclose(
        jnp.diag(bijectors.cholesky_factor(params)), np.sqrt((FACTOR**2).sum(1)), rtol=1e-4
    )
