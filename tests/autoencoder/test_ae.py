"""The autoencoder against linear theory, its corruptions and moments against their definitions."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

import jaxgen
from jaxgen import data, shard, values
from jaxgen.autoencoder import ae
from jaxgen.autoencoder.corruptions import GaussianNoise, Masking, SaltAndPepper
from jaxgen.classical import gmm
from tests.autoencoder.linear import convolutional, dense

SMALL = ae.Config(num_latents=4, **dense(32))
RANDOM = tuple(
    dataclasses.replace(SMALL, corruption=corruption)
    for corruption in (GaussianNoise(), Masking(), SaltAndPepper())
)

LINEAR = ae.Config(shape=(5,), num_latents=2, optimizer=values.Adam(2e-2), **dense())


@pytest.fixture(scope="module")
def points():
    """(3000, 5) of mean 2 with eigenvalues of the covariance near 9, 2.25 and three times 0.25."""
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    x = rng.normal(size=(3000, 5)) * [3.0, 1.5, 0.5, 0.5, 0.5] @ rotation.T + 2.0
    return jnp.asarray(x, jnp.float32)


def trained(cfg, x, steps):
    state = ae.init(jax.random.key(0), cfg, {"x": x})
    train = jax.jit(lambda s: jax.lax.scan(lambda s, _: ae.train_step(s, {"x": x}, cfg), s, length=steps))
    return train(state)


@pytest.fixture(scope="module")
def linear(points):
    return trained(LINEAR, points, 1500)


def test_linear_it_is_pca(points, linear):
    state, metrics = linear
    eigenvalues, vectors = np.linalg.eigh(np.cov(points.T, ddof=0))
    assert metrics["loss"][-1] == pytest.approx(eigenvalues[:3].sum(), rel=1e-3)
    decoder = np.linalg.qr(state.params["decoder"]["out"]["kernel"].T)[0]
    cosines = np.linalg.svd(decoder.T @ vectors[:, 3:], compute_uv=False)
    np.testing.assert_allclose(cosines, 1, atol=1e-4)


def test_linear_samples_have_the_moments_of_the_reconstructions(points, linear):
    state, _ = linear
    x = ae.sample(jax.random.key(1), state, 100_000, LINEAR)
    rebuilt = ae.reconstruct(state, points, LINEAR)
    np.testing.assert_allclose(x.mean(0), rebuilt.mean(0), atol=0.05)
    np.testing.assert_allclose(np.cov(x.T), np.cov(rebuilt.T), atol=0.15)


def test_score_is_minus_the_error_the_loss_sums(points, linear):
    state, _ = linear
    for kind in ("l2", "l1"):
        cfg = dataclasses.replace(LINEAR, reconstruction=kind)
        value, _ = ae.loss(state.params, {"x": points}, jax.random.key(0), cfg)
        assert -ae.score(state, points, cfg).mean() == pytest.approx(float(value), rel=1e-5)
    error = np.abs(points[:3] - ae.reconstruct(state, points[:3], LINEAR)).sum(1)
    np.testing.assert_allclose(ae.score(state, points[:3], cfg), -error, rtol=1e-5)


@pytest.mark.slow
def test_linear_denoising_is_the_wiener_filter(points):
    """On data of covariance S it is S (S + s^2 I)^-1, and so knows the score of the noisy data."""
    cfg = dataclasses.replace(LINEAR, num_latents=5, corruption=GaussianNoise(1.0))
    cfg = dataclasses.replace(cfg, optimizer=values.Adam(2e-2, schedule=values.Cosine(1000)))
    state, metrics = trained(cfg, points, 1000)
    covariance, mean = np.cov(points.T, ddof=0), np.asarray(points.mean(0))
    wiener = covariance @ np.linalg.inv(covariance + np.eye(5))
    noisy = cfg.corruption(jax.random.key(1), points)[:200]
    denoised = ae.reconstruct(state, noisy, cfg)
    np.testing.assert_allclose(denoised, mean + (noisy - mean) @ wiener.T, atol=0.1)
    assert metrics["loss"][-50:].mean() == pytest.approx(np.trace(wiener), rel=0.03)
    assert metrics["loss"][-50:].mean() < 0.6 * 5  # of handing the noisy input on
    log_density = lambda y: jax.scipy.stats.multivariate_normal.logpdf(y, mean, covariance + np.eye(5))
    np.testing.assert_allclose(denoised - noisy, jax.vmap(jax.grad(log_density))(noisy), atol=0.1)


@pytest.mark.parametrize(
    ("corruption", "put"), [(Masking(0.3, -0.5), {-0.5}), (SaltAndPepper(0.3), {-1.0, 1.0})]
)
def test_corruption_hits_the_fraction_asked_for(corruption, put):
    x = jnp.full((2000, 8, 8, 1), 0.25)
    noisy = corruption(jax.random.key(0), x)
    hit = noisy != x
    assert hit.mean() == pytest.approx(0.3, abs=0.005)
    np.testing.assert_allclose(hit.mean(0), 0.3, atol=0.06)
    assert set(np.unique(noisy[hit])) == put
    for value in put:
        assert (noisy == value).mean() == pytest.approx(0.3 / len(put), abs=0.005)


def test_gaussian_corruption_is_not_clipped():
    x = jnp.ones((500, 8, 8, 1))
    noise = GaussianNoise(0.5)(jax.random.key(0), x) - x
    assert scipy.stats.kstest(np.ravel(noise), scipy.stats.norm(0, 0.5).cdf).pvalue > 1e-3


def test_the_target_is_the_clean_data():
    cfg = ae.Config(shape=(4,), num_latents=2, corruption=Masking(1.0), **dense())
    state = ae.init(jax.random.key(0), cfg)
    batch = {"x": jax.random.normal(jax.random.key(1), (6, 4))}
    from_nothing = ae.reconstruct(state, jnp.full((6, 4), -1.0), cfg)
    value, _ = ae.loss(state.params, batch, jax.random.key(2), cfg)
    assert value == pytest.approx(float(((from_nothing - batch["x"]) ** 2).sum(1).mean()), rel=1e-5)


def test_moments_of_equal_parts_are_those_of_all_codes():
    z = jax.random.normal(jax.random.key(0), (6, 50, 3)) @ jnp.array([[1, 2, 0], [0, 1, 0], [0, 0, 3.0]]) + 5
    moments = ae.Moments(jnp.zeros(3), jnp.eye(3))
    for step, codes in enumerate(z):
        moments = ae.update_moments(moments, codes, step / (step + 1))
    flat = np.asarray(z.reshape(-1, 3))
    np.testing.assert_allclose(moments.mean, flat.mean(0), rtol=1e-5)
    np.testing.assert_allclose(moments.covariance, np.cov(flat.T, ddof=0), rtol=1e-4, atol=1e-5)


def test_draws_of_flat_codes_stay_in_their_plane():
    class Identity(nn.Module):
        @nn.compact
        def __call__(self, z):
            return z

    cfg = ae.Config(shape=(2,), num_latents=2, encoder=Identity(), decoder=Identity())
    codes = ae.Moments(jnp.ones(2), jnp.array([[4.0, 2.0], [2.0, 1.0]]))
    z = ae.sample(jax.random.key(0), ae.init(jax.random.key(0), cfg)._replace(codes=codes), 20_000, cfg)
    np.testing.assert_allclose(z[:, 0] - 1, 2 * (z[:, 1] - 1), atol=1e-2)
    assert z[:, 0].var() == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize("size", [(28, 20), (15, 31)])
def test_convolutional_shapes_round_trip(size):
    cfg = ae.Config(shape=(*size, 3), num_latents=4, **convolutional(8, 16))
    state = jax.eval_shape(lambda: ae.init(jax.random.key(0), cfg))
    x = jax.ShapeDtypeStruct((5, *size, 3), jnp.float32)
    assert jax.eval_shape(lambda state, x: ae.reconstruct(state, x, cfg), state, x).shape == x.shape


@pytest.mark.parametrize(
    ("shape", "channels", "message"),
    [
        ((7, 28, 1), (4, 8, 16), r"at least 8 pixels either way, got .* 8x28 would fit"),
        ((2,), (4,), r"take \(height, width, channels\)"),
        ((8, 8, 1), (), "at least one entry"),
    ],
)
def test_convolutional_sizes_that_do_not_fit_are_named(shape, channels, message):
    with pytest.raises(ValueError, match=message):
        ae.init(jax.random.key(0), ae.Config(shape=shape, **convolutional(*channels)))


class Average(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(x.reshape(len(x), -1).mean(1, keepdims=True))


class Constant(nn.Module):
    @nn.compact
    def __call__(self, z):
        return jnp.tile(nn.Dense(1)(z)[:, :, None, None], (1, 4, 4, 1))


def test_networks_and_optimizer_of_ones_own_learn():
    cfg = ae.Config(shape=(4, 4, 1), num_latents=1, encoder=Average(), decoder=Constant())
    cfg = dataclasses.replace(cfg, optimizer=optax.adam(0.05))
    assert values.from_json(values.to_json(cfg.decoder)) == cfg.decoder
    images = jnp.ones((8, 4, 4, 1)) * jnp.linspace(-1, 1, 8)[:, None, None, None]
    state = ae.init(jax.random.key(0), cfg, {"image": images})
    batch = {"image": images}
    train = jax.jit(lambda s: jax.lax.scan(lambda s, _: ae.train_step(s, batch, cfg), s, length=300))
    assert train(state)[1]["mse"][-1] < 1e-3


def test_bfloat16_keeps_parameters_and_metrics_float32():
    cfg = ae.Config(dtype="bfloat16", **convolutional(8))
    batch = {"image": jax.ShapeDtypeStruct((4, 8, 8, 1), jnp.float32)}
    state = jax.eval_shape(lambda batch: ae.init(jax.random.key(0), cfg, batch), batch)
    state, metrics = jax.eval_shape(functools.partial(ae.train_step, cfg=cfg), state, batch)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    assert all(value.dtype == jnp.float32 for value in metrics.values())


@pytest.mark.slow
def test_it_learns_digits_and_scores_them_above_noise():
    train, test = data.load("digits"), data.load("digits", "test")
    cfg = ae.Config(num_latents=8, optimizer=values.Adam(3e-3), **dense(128))
    options = {"batch_size": 128, "key": jax.random.key(0), "mesh": shard.mesh(1), "sample_every": 0}
    state = jaxgen.fit(ae, cfg, train, steps=800, **options)
    x, known = (jnp.asarray(d[:]["image"]).reshape(len(d), -1) for d in (test, train))
    components = jnp.linalg.svd(known - known.mean(0), full_matrices=False)[2][:8]
    rest = x - known.mean(0)
    pca = ((rest - rest @ components.T @ components) ** 2).sum(1).mean()
    scores = ae.score(state, x.reshape(-1, 8, 8, 1), cfg)
    assert -scores.mean() < 0.8 * pca
    shuffled = jax.random.permutation(jax.random.key(1), x, 1, independent=True).reshape(-1, 8, 8, 1)
    assert scores.min() > jnp.median(ae.score(state, shuffled, cfg))
    codes, held_out = (ae.encode(state, d[:]["image"], cfg) for d in (train, test))
    mixture_cfg = gmm.Config(shape=(8,), num_components=10)
    mixture = gmm.fit(codes, mixture_cfg)
    gaussian = scipy.stats.multivariate_normal(*state.codes)
    assert gmm.log_prob(mixture, held_out, mixture_cfg).mean() > gaussian.logpdf(held_out).mean()

    @jax.jit
    def distance_to_data(images):
        return ((images.reshape(len(images), 1, -1) - known) ** 2).sum(-1).min(1).mean()

    latest = ae.sample(jax.random.key(3), state, 300, cfg)
    fitted = ae.decode(state, gmm.sample(jax.random.key(3), mixture, 300, mixture_cfg), cfg)
    unfitted = ae.decode(state, jax.random.normal(jax.random.key(3), (300, 8)), cfg)
    distances = [distance_to_data(images) for images in (fitted, latest, unfitted)]
    assert distances[0] < distances[1]
    assert distances[0] < distances[2]
