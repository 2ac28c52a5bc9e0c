"""Objectives of the VAE: probabilistic PCA reached, importance weighting, its gradients, divergences."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import distributions, values
from jaxgen.autoencoder import vae
from jaxgen.autoencoder.objectives import ELBO, IWAE, DReG, DualGeometricJS, GeometricJS, SampledKL
from jaxgen.autoencoder.posteriors import Categorical
from jaxgen.likelihoods import Bernoulli, Gaussian, LogisticMixture
from tests.autoencoder.linear import LinearDecoder, LinearEncoder, dense

LINEAR = vae.Config(
    shape=(5,),
    num_latents=2,
    levels=0,
    likelihood=Gaussian("learned", std=1.0),
    encoder=LinearEncoder(),
    decoder=LinearDecoder(),
)


@pytest.fixture(scope="module")
def x():
    rng = np.random.default_rng(0)
    scales = np.array([2.0, 1.2, 0.5, 0.4, 0.5])
    rotation = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    return jnp.asarray(rng.normal(size=(500, 5)) * scales @ rotation.T + 1.0, jnp.float32)


@pytest.mark.slow
def test_a_linear_vae_trains_to_probabilistic_pca(x):
    """Tipping & Bishop 1999: the noise is the mean discarded eigenvalue, the bound the exact likelihood."""
    cfg = dataclasses.replace(LINEAR, optimizer=values.Adam(3e-2, schedule=values.Cosine(2500)))
    state = vae.init(jax.random.key(0), cfg)
    step = lambda state, _: (vae.train_step(state, {"x": x}, cfg)[0], None)
    state = jax.jit(lambda state: jax.lax.scan(step, state, length=2500)[0])(state)
    eigenvalues, vectors = np.linalg.eigh(np.cov(x.T, ddof=0))
    noise = eigenvalues[:3].mean()
    closed = 0.5 * (5 * np.log(2 * np.pi) + np.log(eigenvalues[3:]).sum() + 3 * np.log(noise) + 5)
    assert jnp.exp(2 * state.params["likelihood"]["log_std"]) == pytest.approx(noise, rel=0.03)
    decoder = state.params["decoder"]["Dense_0"]
    covariance = decoder["kernel"].T @ decoder["kernel"] + noise * jnp.eye(5)
    exact = jax.scipy.stats.multivariate_normal.logpdf(x, decoder["bias"], covariance).mean()
    assert -exact == pytest.approx(closed, abs=0.01)
    elbo = jax.jit(lambda key: vae.elbo(key, state, jnp.tile(x, (20, 1)), cfg))(jax.random.key(1))
    assert elbo.mean() == pytest.approx(float(exact), abs=4 * float(elbo.std()) / np.sqrt(len(elbo)) + 0.01)
    directions = decoder["kernel"] / jnp.linalg.norm(decoder["kernel"], axis=1, keepdims=True)
    np.testing.assert_allclose(abs(directions @ vectors[:, 3:]).max(0), 1, atol=0.02)


def value_and_gradient(params, batch, keys, cfg):
    """Of `loss` for every key: values (K,), and gradients with K in front, flat for encoder and decoder."""

    @jax.jit
    def compute(params, keys):
        function = jax.value_and_grad(lambda p, key: vae.loss(p, batch, key, cfg)[0])
        return jax.vmap(function, (None, 0))(params, keys)

    values, gradients = compute(params, keys)
    flat = lambda tree: np.concatenate([np.asarray(a).reshape(len(a), -1) for a in jax.tree.leaves(tree)], 1)
    return np.asarray(values), flat(gradients["encoder"]), flat(gradients["decoder"])


def assert_same_mean(first, second):
    """Within 5 standard errors in every coordinate, and with errors small against the means."""
    error = np.sqrt(first.var(0) / len(first) + second.var(0) / len(second))
    assert (abs(first.mean(0) - second.mean(0)) < 5 * error + 1e-5).all()


@pytest.fixture(scope="module")
def gradients(x):
    """Of both importance-weighted objectives, k = 4, far from the optimum, by 3000 keys."""
    state = vae.init(jax.random.key(3), LINEAR)
    keys = jax.random.split(jax.random.key(4), 3000)
    configs = [dataclasses.replace(LINEAR, objective=objective) for objective in (IWAE(4), DReG(4))]
    return [value_and_gradient(state.params, {"x": x[:3]}, keys, cfg) for cfg in configs]


@pytest.mark.slow
def test_the_doubly_reparameterised_gradient_is_unbiased_with_less_variance(gradients):
    (_, encoder, _), (_, doubly, _) = gradients
    assert_same_mean(encoder, doubly)
    signal = np.linalg.norm(encoder.mean(0))
    assert signal > 10 * np.sqrt((encoder.var(0) / len(encoder)).sum())
    assert doubly.var(0).sum() < 0.8 * encoder.var(0).sum()


def test_double_reparameterisation_leaves_the_value_and_the_decoder_alone(gradients):
    (values, _, decoder), (doubly_values, _, doubly_decoder) = gradients
    np.testing.assert_allclose(values, doubly_values, rtol=1e-5)
    np.testing.assert_allclose(decoder, doubly_decoder, rtol=1e-3, atol=1e-4)


def test_the_training_bound_is_the_evaluated_one(x, gradients):
    state = vae.init(jax.random.key(3), LINEAR)
    keys = jax.random.split(jax.random.key(5), 3000)
    bounds = jax.jit(jax.vmap(lambda key: vae.iwae(key, state, x[:3], LINEAR, 4).mean()))(keys)
    assert_same_mean(-gradients[0][0][:, None], np.asarray(bounds)[:, None])


def test_a_gradient_through_resampled_draws_is_unbiased(x, gradients):
    cfg = dataclasses.replace(LINEAR, objective=IWAE(4, backward=2))
    params = vae.init(jax.random.key(3), cfg).params
    keys = jax.random.split(jax.random.key(4), 3000)
    (values, encoder, decoder), every = value_and_gradient(params, {"x": x[:3]}, keys, cfg), gradients[0]
    np.testing.assert_allclose(values, every[0], rtol=1e-5)
    assert_same_mean(encoder, every[1])
    assert_same_mean(decoder, every[2])
    assert decoder.var(0).sum() > 1.05 * every[2].var(0).sum()


@pytest.mark.slow
def test_one_importance_sample_is_the_vae(x):
    params, batch = vae.init(jax.random.key(3), LINEAR).params, {"x": x[:3]}
    keys = jax.random.split(jax.random.key(6), 3000)
    one = dataclasses.replace(LINEAR, objective=IWAE(1))
    weighted = value_and_gradient(params, batch, keys, one)
    sampled_kl = dataclasses.replace(LINEAR, objective=ELBO(divergence=SampledKL()))
    sampled = value_and_gradient(params, batch, keys, sampled_kl)
    for first, second in zip(weighted, sampled, strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-3, atol=1e-3)
    analytic = value_and_gradient(params, batch, keys, LINEAR)
    doubly = value_and_gradient(params, batch, keys, dataclasses.replace(one, objective=DReG(1)))
    for first, second, third in zip(weighted, analytic, doubly, strict=True):
        assert_same_mean(first.reshape(len(keys), -1), second.reshape(len(keys), -1))
        assert_same_mean(first.reshape(len(keys), -1), third.reshape(len(keys), -1))


@pytest.mark.slow
def test_at_the_exact_posterior_the_doubly_reparameterised_gradient_vanishes():
    """Every weight is then the likelihood wherever z lies, while the plain gradient is noise."""
    weight = np.linalg.qr(np.random.default_rng(1).normal(size=(5, 2)))[0].T * np.array([[2.0], [0.7]])
    variance = 1 / (1 + (weight**2).sum(1) / 0.25)
    params = {
        "decoder": {"Dense_0": {"kernel": weight, "bias": np.zeros(5)}},
        "encoder": {
            "Dense_0": {"kernel": weight.T * variance / 0.25, "bias": np.zeros(2)},
            "log_variance": np.log(variance),
        },
        "likelihood": {"log_std": np.log(0.5)},
    }
    params = jax.tree.map(jnp.float32, params)
    batch = {"x": jax.random.normal(jax.random.key(0), (4, 5))}
    keys = jax.random.split(jax.random.key(1), 20)
    sizes = []
    for objective in (IWAE(3), DReG(3)):
        cfg = dataclasses.replace(LINEAR, objective=objective)
        sizes.append(abs(value_and_gradient(params, batch, keys, cfg)[1]).max())
    assert sizes[0] > 0.1
    assert sizes[1] < 1e-3


def test_several_draws_average_the_plain_bound(x):
    params = vae.init(jax.random.key(3), LINEAR).params
    several = dataclasses.replace(LINEAR, objective=ELBO(num_samples=8))
    keys = jax.random.split(jax.random.key(7), 2000)
    one, eight = (
        jax.jit(jax.vmap(lambda key, cfg=cfg: vae.loss(params, {"x": x[:3]}, key, cfg)[0]))(keys)
        for cfg in (LINEAR, several)
    )
    assert_same_mean(np.asarray(one)[:, None], np.asarray(eight)[:, None])
    assert one.var() / eight.var() == pytest.approx(8, rel=0.2)


@pytest.mark.slow
def test_other_divergences_change_the_loss_and_not_the_bound(x):
    params, batch, key = vae.init(jax.random.key(3), LINEAR).params, {"x": x[:6]}, jax.random.key(8)
    # A posterior of the prior's width has the same divergence both ways.
    params["encoder"]["log_variance"] -= 1.0

    def terms(*objective):
        return vae.loss(params, batch, key, dataclasses.replace(LINEAR, objective=ELBO(*objective)))

    plain, metrics = terms()
    for divergence in (GeometricJS(0.0), DualGeometricJS(1.0)):
        value, others = terms(1.0, 1, divergence)
        assert value == pytest.approx(float(plain), rel=1e-5)
        assert others["elbo"] == pytest.approx(float(metrics["elbo"]), rel=1e-6)
    posterior = vae._posterior(params, x[:6], (), LINEAR)
    for kind, dual in ((GeometricJS, False), (DualGeometricJS, True)):
        value, others = terms(2.0, 1, kind(0.3))
        divergence = distributions.geometric_js_normal(*posterior, alpha=0.3, dual=dual).mean()
        assert value == pytest.approx(float(others["reconstruction"] + 2.0 * divergence), rel=1e-5)
        assert others["elbo"] == pytest.approx(float(metrics["elbo"]), rel=1e-6)
        assert others["elbo"] == pytest.approx(float(-others["reconstruction"] - others["kl"]), rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"posterior": Categorical(), "objective": IWAE()}, "keep objective ELBO"),
        ({"posterior": Categorical(), "objective": DReG()}, "keep objective ELBO"),
        ({"posterior": Categorical(), "objective": ELBO(divergence=SampledKL())}, "keep divergence KL"),
        ({"posterior": Categorical(), "objective": ELBO(divergence=GeometricJS())}, "use divergence KL"),
        ({"likelihood": LogisticMixture(), "shape": (5,)}, "images of 1 or 3 channels"),
        ({"conditional": True}, "needs labels"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        vae.init(jax.random.key(0), vae.Config(**changes))


@pytest.mark.slow
def test_importance_weighted_training_tightens_the_bound():
    """Of posteriors that are not normal: two factors of eight bits."""
    rng = np.random.default_rng(2)
    z = rng.normal(size=(256, 2))
    bits = rng.random((256, 8)) < 1 / (1 + np.exp(-3 * z @ rng.normal(size=(2, 8))))
    batch = {"x": jnp.asarray(2.0 * bits - 1, jnp.float32)}
    base = vae.Config(shape=(8,), num_latents=2, likelihood=Bernoulli("threshold"), **dense(16))
    base = dataclasses.replace(base, optimizer=values.Adam(1e-2))
    bounds = {}
    for name, objective in (("elbo", ELBO()), ("iwae", IWAE(8)), ("dreg", DReG(8))):
        cfg = dataclasses.replace(base, objective=objective)
        state = vae.init(jax.random.key(0), cfg)
        step = lambda state, _, cfg=cfg: (vae.train_step(state, batch, cfg)[0], None)
        state = jax.jit(functools.partial(jax.lax.scan, step, length=600))(state)[0]
        bounds[name] = float(vae.iwae(jax.random.key(1), state, batch["x"], cfg, 200).mean())
    assert bounds["iwae"] > bounds["elbo"] + 0.02
    assert bounds["dreg"] > bounds["elbo"] + 0.02


def test_a_bound_takes_draws():
    for objective in (ELBO, IWAE, DReG):
        with pytest.raises(ValueError, match="num_samples must be at least 1"):
            objective(num_samples=0)
    cfg = vae.Config(shape=(2,), **dense(4))
    state = vae.init(jax.random.key(0), cfg)
    with pytest.raises(ValueError, match="at least 1 draw"):
        vae.iwae(jax.random.key(1), state, jnp.zeros((1, 2)), cfg, num_samples=0)
