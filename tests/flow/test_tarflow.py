"""TarFlow: causal from patch to patch, inverted with a cache as without, and denoised as a Gaussian is."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgen
from jaxgen import data, distributions, types
from jaxgen.evaluation.likelihood import reported
from jaxgen.flow import bijectors, maf, tarflow
from jaxgen.flow.preprocessing import Logit
from jaxgen.flow.tarflow import GaussianNoise
from jaxgen.flow.transforms import Affine, Flipped
from jaxgen.nn.causal import Transformer
from jaxgen.values import SGD, Adam
from tests.flow.check import assert_bijector, assert_inverts, in_float64, initial, shaken, wide

# Standardised data leave gradients near 0, whose signs Adam would follow: SGD for what must be reproduced.
SMALL = tarflow.Config(patch=4, num_layers=2, network=Transformer(8, 1, 2), optimizer=SGD(1e-3))
TRAINED = tarflow.Config(patch=4, num_layers=2, network=Transformer(32, 1, 2))
RANDOM = (dataclasses.replace(SMALL, conditional=True), dataclasses.replace(SMALL, noise=GaussianNoise(0.1)))
OPTIONS = {"patch": 2, "levels": 256, "network.width": 16, "network.num_heads": 4}
ELSEWHERE = ("preprocessing=", "preprocessing.")  # of pixels: test_losses.py
PATCHES = tarflow.Config(shape=(2, 6, 1), levels=0, num_layers=2, network=Transformer(8, 2, 2))
LABELLED = dataclasses.replace(PATCHES, num_classes=2, conditional=True)
NOISY = dataclasses.replace(PATCHES, noise=GaussianNoise(0.3))

init = jax.jit(tarflow.init, static_argnums=1)
log_prob = jax.jit(tarflow.log_prob, static_argnums=2)


def started(cfg, scale=0.1, batch=None):
    state = init(jax.random.key(0), cfg, batch)
    return state._replace(params=shaken(state.params, scale))


def images(count=20, cfg=PATCHES):
    return jnp.float32(np.random.default_rng(0).normal(size=(count, *cfg.shape)))


def tokens(count=20):
    return jnp.float32(np.random.default_rng(0).normal(size=(count, 3, 4)))


def in_order(x, index):
    return x[:, ::-1] if index % 2 else x


def read(params, x, index, *context):
    """mu and alpha of every token by one call of the network on the whole sequence."""
    network = PATCHES.network.clone(num_outputs=8)
    raw = network.apply({"params": params}, in_order(x, index), *context)[0].reshape(*x.shape, 2)
    raw = in_order(jnp.concatenate([jnp.zeros_like(raw[:, :1]), raw[:, :-1]], 1), index)
    return raw[..., 1], 5 * jnp.tanh(raw[..., 0] / 5)


@pytest.mark.slow
def test_it_inverts_and_knows_its_volume():
    cfg = dataclasses.replace(LABELLED, shape=(1, 3, 1), patch=1)
    assert_bijector(
        tarflow.flow(cfg), initial(tarflow.flow(cfg), 0.2), wide(3), jnp.eye(2)[np.arange(60) % 2]
    )


@pytest.mark.slow
def test_it_inverts_in_float32():
    assert_inverts(tarflow.flow(PATCHES), initial(tarflow.flow(PATCHES)), wide(12))


@pytest.mark.slow
def test_images_in_colour_invert_and_know_their_volume():
    cfg = dataclasses.replace(PATCHES, shape=(4, 2, 3), num_layers=3)
    assert_bijector(tarflow.flow(cfg), initial(tarflow.flow(cfg)), wide(24))


@pytest.mark.parametrize("index", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_the_equation_of_the_paper(index):
    """z_i = (x_i - mu_i) exp(-alpha_i), of what the network gives for the patches before; z_1 = x_1."""
    block, x = tarflow.block(PATCHES, index), tokens()
    params = initial(block, 0.3)
    mu, alpha = read(params, x, index)
    z, log_det = jax.jit(block.forward)(params, x)
    np.testing.assert_allclose(z, (x - mu) * jnp.exp(-alpha), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(log_det, -alpha.sum((1, 2)), rtol=1e-4, atol=1e-4)
    first, second = (0, 1) if index == 0 else (2, 1)
    np.testing.assert_array_equal(z[:, first], x[:, first])
    assert jnp.abs(z[:, second] - x[:, second]).max() > 0.1


@pytest.mark.parametrize("index", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_the_jacobian_of_a_block_is_triangular_from_patch_to_patch(index):
    """A number sees all numbers of the patches before, and of its own patch itself alone."""
    block = tarflow.block(PATCHES, index)
    params = initial(block, 0.5)
    forward = lambda x: in_order(block.forward(params, in_order(x[None], index))[0], index)[0]
    jacobian = jnp.abs(jax.jit(jax.jacfwd(forward))(tokens(1)[0])).reshape(12, 12)
    sees = np.kron(np.tril(np.ones((3, 3)), -1), np.ones((4, 4))) + np.eye(12)
    np.testing.assert_array_equal(jacobian > 1e-6, sees > 0)


@pytest.mark.slow
@pytest.mark.parametrize("index", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_the_cached_inverse_is_the_uncached_one(index):
    """x = z exp(alpha) + mu, again and again: each time one patch more is right."""
    block = tarflow.block(LABELLED, index)
    context = jnp.eye(2)[np.arange(20) % 2]

    def both(params, z, context):
        x = jnp.zeros_like(z)
        for _ in range(3):
            mu, alpha = read(params, x, index, context)
            x = z * jnp.exp(alpha) + mu
        return x, alpha.sum((1, 2)), *block.inverse(params, z, context)

    given = initial(block, 0.3), tokens(), context
    for double, tolerance in ((False, 1e-5), (True, 1e-10)):
        with jax.enable_x64(double):
            x, log_det, found, found_log_det = jax.jit(both)(*(in_float64(given) if double else given))
            assert found.dtype == (jnp.float64 if double else jnp.float32)
            np.testing.assert_allclose(found, x, rtol=tolerance, atol=tolerance)
            np.testing.assert_allclose(found_log_det, log_det, rtol=tolerance, atol=tolerance)


def test_patches_are_squares_of_pixels_row_by_row():
    cfg = dataclasses.replace(PATCHES, shape=(4, 6, 1))
    x = jnp.arange(24.0).reshape(1, 24)
    y, _ = tarflow.cut(cfg).forward((), x)
    np.testing.assert_array_equal(y[0, 1], [2, 3, 8, 9])
    np.testing.assert_array_equal(y[0, 3], [12, 13, 18, 19])
    np.testing.assert_array_equal(tarflow.cut(cfg).inverse((), y)[0], x)


@pytest.mark.slow
def test_it_begins_as_the_standardised_gaussian():
    x = 3 + 2 * images(2000)
    state = init(jax.random.key(0), PATCHES, {"image": x})
    z = tarflow.encode(state, x, PATCHES)
    expected = ((x - x.mean(0)) / x.std(0)).reshape(2000, 12)
    np.testing.assert_allclose(z, expected, atol=1e-4)
    found = log_prob(state, x, PATCHES)
    gaussian = distributions.normal_log_prob(x, x.mean(0), 2 * jnp.log(x.std(0)))
    np.testing.assert_allclose(found, gaussian, atol=1e-3)


@pytest.mark.slow
def test_with_patches_of_one_pixel_it_is_as_expressive_as_a_layer_of_maf():
    """Both make number i of those before, so that their Jacobians have zeros in the same places."""
    cfg = dataclasses.replace(PATCHES, shape=(1, 4, 1), patch=1, num_layers=1)
    zeros = []
    for flow in (
        bijectors.chain(tarflow.cut(cfg), tarflow.block(cfg, 0), bijectors.inverted(tarflow.cut(cfg))),
        bijectors.chain(maf.layer(maf.Config(shape=(4,), levels=0)), bijectors.reverse()),
    ):
        params = initial(flow, 0.5)
        forward = lambda x, flow=flow, params=params: flow.forward(params, x[None])[0][0]
        zeros.append(jax.jit(jax.jacfwd(forward))(jnp.array([0.3, -1.0, 2.0, 0.4])) == 0)
    np.testing.assert_array_equal(*zeros)


@pytest.mark.slow
def test_denoising_a_gaussian_is_its_posterior_mean():
    """Of x ~ N(m, v) with noise of variance s^2 the mean given the sum y is m + v / (v + s^2) (y - m)."""
    mean, variance, std = jnp.linspace(-1, 1, 12), jnp.linspace(0.1, 2, 12), 0.3
    state = init(jax.random.key(0), NOISY)
    standardised = {"shift": mean, "log_scale": 0.5 * jnp.log(variance + std**2)}
    state = state._replace(params=(standardised, *state.params[1:]))
    noisy = images()
    clean = jax.jit(lambda x: NOISY.noise.denoised(x, lambda x: tarflow.log_prob(state, x, NOISY)))(noisy)
    noisy, clean = noisy.reshape(20, 12), clean.reshape(20, 12)
    np.testing.assert_allclose(clean, mean + variance / (variance + std**2) * (noisy - mean), atol=1e-5)
    assert jnp.abs(noisy - clean).max() > 0.1


@pytest.mark.slow
def test_samples_are_denoised_by_their_density():
    cfg = dataclasses.replace(LABELLED, noise=GaussianNoise(0.3))
    state = started(cfg, 0.3)
    label = jnp.array([0, 1, 1])
    draw = lambda denoise: tarflow.sample(jax.random.key(1), state, 3, cfg, label, denoise=denoise)
    clean, noisy = jax.jit(lambda: (draw(True), draw(False)))()
    score = jax.vmap(jax.grad(lambda x, c: tarflow.log_prob(state, x[None], cfg, c)[0]))(noisy, label)
    np.testing.assert_allclose(clean, noisy + 0.09 * score, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_without_gaussian_noise_nothing_is_taken_out():
    state = started(PATCHES)
    draw = lambda denoise: tarflow.sample(jax.random.key(1), state, 3, PATCHES, denoise=denoise)
    np.testing.assert_array_equal(draw(True), draw(False))


@pytest.mark.slow
def test_features_are_dropped_in_training_only():
    """By another key others, in every block; what is evaluated drops none."""
    cfg = dataclasses.replace(PATCHES, network=Transformer(8, 2, 2, dropout=0.5))
    state, x = started(cfg, 0.5), images(8)
    first, second = jax.random.split(jax.random.key(0))
    run = lambda cfg, key: float(tarflow.loss(state.params, {"image": x}, key, cfg)[0])
    assert run(cfg, first) == run(cfg, first) != run(cfg, second)
    assert run(PATCHES, first) == run(PATCHES, second)
    np.testing.assert_array_equal(tarflow.log_prob(state, x, cfg), tarflow.log_prob(state, x, PATCHES))
    drops = [
        tarflow.block(cfg, index, first).forward(jax.tree.map(lambda p: p[0], state.params[2]), tokens(8))[0]
        for index in (0, 2)
    ]
    assert (drops[0] != drops[1]).any()


def test_noise_of_training_is_as_wide_as_it_says():
    x = jnp.zeros((4000, 2, 6, 1))
    added = lambda cfg: np.asarray(tarflow.training_data(jax.random.key(0), {"image": x}, cfg))
    assert added(NOISY).std() == pytest.approx(0.3, rel=0.02)
    pixels = added(dataclasses.replace(PATCHES, levels=5))
    assert 0.249 < pixels.max() <= 0.25
    assert -0.25 <= pixels.min() < -0.249
    assert not added(PATCHES).any()


NOISES = {"uniform": tarflow.Dequantisation(), "gaussian": GaussianNoise(0.3)}


@pytest.mark.slow
@pytest.mark.parametrize("noise", NOISES)
def test_the_reported_bound_is_one_whatever_the_noise(noise):
    """The bounds of all images of two pixels of five levels are of probabilities that sum to 1 at most."""
    levels = np.linspace(-1, 1, 5)
    every = np.float32(list(itertools.product(levels, levels))).reshape(25, 1, 2, 1)
    cfg = dataclasses.replace(PATCHES, shape=(1, 2, 1), patch=1, levels=5, noise=NOISES[noise])
    state = started(cfg, 0.3)
    ticks = 0.5 * ((np.arange(8) + 0.5) / 8 - 0.5)
    around = every + np.float32(list(itertools.product(ticks, ticks))).reshape(64, 1, 1, 2, 1)
    inside = log_prob(state, around.reshape(-1, 1, 2, 1), cfg).reshape(64, 25) + 2 * np.log(0.5)
    bound, exact = inside.mean(0), jax.nn.logsumexp(inside, 0) - np.log(64)
    assert (bound < exact).all()
    assert 0.2 < jnp.exp(bound).sum() < jnp.exp(exact).sum() < 1
    pixels = data.Dataset("every", "test", {"image": every.repeat(200, 0)}, levels=5)
    found = reported(jax.random.key(0), lambda key, x: tarflow.log_prob(state, x, cfg), pixels, "density")
    bits = -float(bound.mean()) / (2 * np.log(2))
    assert found["nll_bits_per_dim"]["value"] == pytest.approx(bits, abs=0.1)


@pytest.mark.slow
def test_the_density_of_no_label_is_the_mean_of_those_of_each():
    state, x = started(LABELLED, 0.3), images()
    each = jnp.stack([log_prob(state, x, LABELLED, c) for c in (0, 1)])
    assert jnp.abs(each[0] - each[1]).max() > 0.01
    mean = jax.nn.logsumexp(each, 0) - np.log(2)
    np.testing.assert_allclose(log_prob(state, x, LABELLED), mean, rtol=1e-4, atol=1e-4)

    @jax.jit
    def there_and_back(label):
        z = tarflow.encode(state, x, LABELLED, label)
        drawn = tarflow.sample(jax.random.key(1), state, 20, LABELLED, label)
        return tarflow.decode(state, z, LABELLED, label), drawn

    back, drawn = there_and_back(jnp.arange(20) % 2)
    np.testing.assert_allclose(back, x, rtol=1e-4, atol=1e-4)
    _, other = there_and_back(1 - jnp.arange(20) % 2)
    assert jnp.abs(drawn - other).max() > 0.01


@pytest.mark.slow
def test_labels_where_none_were_trained_and_none_where_they_were():
    x, z = images(4), jnp.zeros((4, 12))
    labelled, unlabelled = started(LABELLED), started(PATCHES)
    for refused in (
        lambda: tarflow.log_prob(unlabelled, x, PATCHES, 1),
        lambda: tarflow.encode(unlabelled, x, PATCHES, 1),
        lambda: tarflow.decode(unlabelled, z, PATCHES, jnp.arange(4)),
        lambda: tarflow.sample(jax.random.key(0), unlabelled, 4, PATCHES, 0),
    ):
        with pytest.raises(ValueError, match="this model is unconditional"):
            refused()
    for refused in (
        lambda: tarflow.encode(labelled, x, LABELLED),
        lambda: tarflow.decode(labelled, z, LABELLED),
    ):
        with pytest.raises(ValueError, match="this model is conditional: give the label"):
            refused()
    with pytest.raises(ValueError, match='the batch has no "label"'):
        tarflow.loss(labelled.params, {"image": x}, jax.random.key(0), LABELLED)
    with pytest.raises(ValueError, match="label 2 is of no class: there are 0 to 1"):
        tarflow.log_prob(labelled, x, LABELLED, 2)
    with pytest.raises(ValueError, match="a conditional model needs labels"):
        tarflow.init(jax.random.key(0), dataclasses.replace(LABELLED, num_classes=0))
    with pytest.raises(ValueError, match="built for a context of 2 numbers: none is given"):
        tarflow.flow(LABELLED).forward(labelled.params, x.reshape(4, 12))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch": 4}, "4x4 patches do not cut 2x6 images into two or more: take a side of 1, 2"),
        ({"shape": (2, 2, 1)}, "2x2 patches do not cut 2x2 images into two or more: take a side of 1$"),
        ({"shape": (12,)}, r"TarFlow takes images \(height, width, channels\), got \(12,\): use maf"),
        ({"num_layers": 0}, "must be at least 1"),
        ({"preprocessing": Logit()}, "logit preprocessing is for pixels"),
        (
            {"preprocessing": Logit(), "noise": GaussianNoise(), "levels": 9},
            "Gaussian noise leaves the interval",
        ),
        ({"network": Transformer(8, 1, 3)}, "3 heads do not divide 8 channels"),
    ],
)
def test_what_it_cannot_take_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        tarflow.init(jax.random.key(0), dataclasses.replace(PATCHES, **options))


def test_no_noise_is_no_gaussian_noise():
    with pytest.raises(ValueError, match="std must be above 0"):
        GaussianNoise(0.0)


@pytest.mark.slow
def test_a_scale_is_bounded_at_extreme_parameters():
    state = started(PATCHES, 100.0)
    for x in (jnp.full((1, 2, 6, 1), 1e3), jnp.zeros((1, 2, 6, 1))):
        assert not np.isnan(log_prob(state, x, PATCHES)).any()
    block = tarflow.block(dataclasses.replace(PATCHES, transform=Affine(0.5)), 0)
    _, log_det = block.forward(initial(block, 100.0), tokens())
    assert jnp.abs(log_det).max() <= 0.5 * 8 + 1e-4
    assert jnp.abs(log_det).max() > 1


@pytest.mark.slow
def test_another_transform_takes_the_place_of_the_affine_one():
    cfg = dataclasses.replace(PATCHES, transform=Flipped())
    x, block, other = tokens(), tarflow.block(cfg, 0), tarflow.block(PATCHES, 0)
    params = initial(block, 0.3)
    (y, log_det), (z, other_log_det) = block.forward(params, x), other.forward(params, x)
    np.testing.assert_allclose(log_det, -other_log_det, rtol=1e-4, atol=1e-4)
    assert jnp.abs(y - z).max() > 0.1


@pytest.mark.slow
def test_temperature_scales_the_noise():
    state = init(jax.random.key(0), PATCHES)
    draw = jax.jit(lambda t: tarflow.sample(jax.random.key(1), state, 9, PATCHES, temperature=t))
    np.testing.assert_allclose(draw(0.5), 0.5 * draw(1.0), rtol=1e-5)


@pytest.mark.slow
def test_blocks_share_one_program_whatever_their_number():
    sizes = []
    for num_layers in (2, 8):
        cfg = dataclasses.replace(PATCHES, num_layers=num_layers)
        params = jax.eval_shape(functools.partial(tarflow.init, cfg=cfg), jax.random.key(0)).params
        batch = {"image": images()}
        program = jax.jit(functools.partial(tarflow.loss, cfg=cfg)).lower(params, batch, jax.random.key(0))
        sizes.append(len(program.as_text()))
    assert sizes[1] < 1.02 * sizes[0]


@pytest.mark.slow
def test_it_learns_what_the_second_patch_is_of_the_first():
    """Patches that repeat the one before with noise: the entropy of that noise is reached, not of a pixel."""
    rng = np.random.default_rng(0)
    first = 0.2 * rng.normal(size=(4000, 2, 2, 1))
    pair = np.concatenate([first, -first + 0.02 * rng.normal(size=first.shape)], 2)
    pairs = data.Dataset("pairs", "train", {"image": np.clip(pair, -1, 1).astype(np.float32)}, levels=0)
    cfg = types.from_data(tarflow, pairs, dataclasses.replace(PATCHES, optimizer=Adam(3e-3)))
    state = jaxgen.fit(tarflow, cfg, pairs, steps=600, batch_size=128, key=jax.random.key(0))
    nll = -float(log_prob(state, pairs[:1000]["image"], cfg).mean())
    entropy = 4 * (1 + np.log(2 * np.pi)) + 4 * np.log(0.2 * 0.02)
    assert entropy - 0.3 < nll < entropy + 0.5
