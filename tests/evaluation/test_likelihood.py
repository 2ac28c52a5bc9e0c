import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxgen import distributions
from jaxgen.evaluation import likelihood

NUM_LATENTS, NOISE = 3, 0.3


@pytest.fixture(scope="module")
def model():
    """x = W z + noise: log p(x | z), log p(x), and the posterior's mean and Cholesky factor."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=(5, NUM_LATENTS))
    x = rng.normal(size=(4, NUM_LATENTS)) @ w.T + NOISE * rng.normal(size=(4, 5))
    exact = scipy.stats.multivariate_normal(np.zeros(5), w @ w.T + NOISE**2 * np.eye(5)).logpdf(x)
    covariance = np.linalg.inv(np.eye(NUM_LATENTS) + w.T @ w / NOISE**2)
    mean = x @ w @ covariance / NOISE**2
    w, x, mean, root = (jnp.float32(a) for a in (w, x, mean, np.linalg.cholesky(covariance)))
    log_likelihood = lambda z: distributions.normal_log_prob(x, z @ w.T, 2 * np.log(NOISE))
    return log_likelihood, exact, mean, root


def proposal(mean, root, scale):
    def propose(key):
        noise = jax.random.normal(key, mean.shape)
        log_det = jnp.log(scale * jnp.diag(root)).sum()
        return mean + scale * noise @ root.T, distributions.normal_log_prob(noise) - log_det

    return propose


def test_importance_weighting_is_exact_at_the_posterior(model):
    log_likelihood, exact, mean, root = model
    log_joint = lambda z: log_likelihood(z) + distributions.normal_log_prob(z)
    for num_samples in (1, 7):
        found = distributions.importance_weighted_bound(
            jax.random.key(0), proposal(mean, root, 1.0), log_joint, num_samples
        )
        np.testing.assert_allclose(found, exact, atol=1e-3)


@pytest.mark.slow
def test_importance_weighting_rises_to_the_likelihood(model):
    log_likelihood, exact, mean, root = model
    log_joint = lambda z: log_likelihood(z) + distributions.normal_log_prob(z)
    keys = jax.random.split(jax.random.key(1), 200)
    means = []
    for num_samples in (1, 4, 16, 64):
        bound = jax.vmap(
            lambda key, n=num_samples: distributions.importance_weighted_bound(
                key, proposal(mean, root, 1.6), log_joint, n
            )
        )(keys)
        assert (bound.mean(0) < exact + 4 * bound.std(0) / np.sqrt(len(keys))).all()
        means.append(bound.mean())
    assert np.all(np.diff(means) > 0)
    assert means[-1] == pytest.approx(exact.mean(), abs=0.05)


@pytest.mark.slow
def test_annealing_finds_the_likelihood(model):
    log_likelihood, exact, *_ = model
    estimate = jax.jit(
        lambda key: likelihood.annealed_importance_sampling(
            key, log_likelihood, len(exact), NUM_LATENTS, num_chains=64, num_temperatures=200
        )
    )
    found = estimate(jax.random.key(0))
    standard_error = 1 / np.sqrt(found.effective_sample_size)
    assert (np.abs(found.log_likelihood - exact) < 4 * standard_error).all()
    assert (found.effective_sample_size > 16).all()
    assert (jnp.abs(found.acceptance - 0.65) < 0.2).all()
    ratios = np.stack(
        [np.exp(estimate(key).log_likelihood - exact) for key in jax.random.split(jax.random.key(1), 20)]
    )
    error = ratios.std(0, ddof=1) / np.sqrt(len(ratios))
    assert (np.abs(ratios.mean(0) - 1) < 4 * error).all()


@pytest.mark.slow
def test_annealing_of_an_uninformative_likelihood_is_exact():
    found = likelihood.annealed_importance_sampling(
        jax.random.key(0), lambda z: jnp.full(len(z), -3.0), 2, 4, num_chains=3, num_temperatures=5
    )
    np.testing.assert_allclose(found.log_likelihood, -3.0, rtol=1e-6)
    np.testing.assert_allclose(found.effective_sample_size, 3.0, rtol=1e-5)


@pytest.mark.parametrize("options", [{"num_temperatures": 0}, {"num_chains": 0}])
def test_annealing_takes_chains_and_temperatures(options):
    with pytest.raises(ValueError, match="1 chain and 1 temperature or more"):
        likelihood.annealed_importance_sampling(
            jax.random.key(0), lambda z: jnp.zeros(len(z)), 2, 4, **options
        )


def test_bits_per_dim_of_a_uniform_density():
    for low, high, levels in ((0.0, 1.0, 256), (-1 - 1 / 255, 1 + 1 / 255, 256), (0.0, 1.0, 32)):
        nll = 10 * np.log(high - low)
        assert likelihood.bits_per_dim(nll, 10, (high - low) / levels) == pytest.approx(np.log2(levels))
    assert likelihood.bits_per_dim(784 * np.log(256), 784) == pytest.approx(8)
