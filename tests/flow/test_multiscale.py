"""Bijectors of images against Jacobians, and how several scales share the dimensions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.flow import bijectors, multiscale
from jaxgen.flow.bijectors import chain, diagonal
from jaxgen.flow.conditioned import coupling
from jaxgen.flow.multiscale import channel_coupling, everywhere, factored, flattened, rotation, squeeze
from jaxgen.flow.transforms import Additive, Affine, Flipped, SigmoidAffine
from jaxgen.nn.couplings import ConvNet, ZeroConv
from tests.flow.check import assert_bijector, assert_inverts, initial, wide

SHAPE = (2, 2, 4)


def images(shape=SHAPE, seed=0):
    return wide(int(np.prod(shape)), seed).reshape(-1, *shape)


SMALL_CHANNELS = channel_coupling(ConvNet(4), SigmoidAffine(), SHAPE)
TWO_SCALES = chain(
    squeeze(),
    everywhere(rotation(4)),
    factored((2, 2, 4), chain(squeeze(), everywhere(diagonal(8)), flattened((1, 1, 8)))),
)
CASES = {
    "actnorm": (everywhere(diagonal(4)), SHAPE),
    "convolution": (everywhere(rotation(4)), SHAPE),
    "coupling": (SMALL_CHANNELS, SHAPE),
    "gaussian": (channel_coupling(ZeroConv(), Flipped(Affine()), SHAPE), SHAPE),
    "two scales": (TWO_SCALES, (4, 4, 1)),
}


@pytest.mark.parametrize(
    "name", [name if name == "two scales" else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_inverts_and_knows_its_volume(name):
    bijector, shape = CASES[name]
    assert_bijector(bijector, initial(bijector, 0.1), images(shape))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_inverts_in_single_precision(name):
    bijector, shape = CASES[name]
    assert_inverts(bijector, initial(bijector, 0.1), images(shape))


def test_squeeze_makes_channels_of_squares():
    x = jnp.arange(32.0).reshape(1, 4, 4, 2)
    y, log_det = squeeze().forward((), x)
    assert y.shape == (1, *multiscale.squeezed((4, 4, 2))) == (1, 2, 2, 8)
    np.testing.assert_array_equal(y[0, 0, 1], x[0, :2, 2:].ravel())
    np.testing.assert_array_equal(log_det, 0)
    np.testing.assert_array_equal(squeeze().inverse((), y)[0], x)


def test_sides_that_cannot_be_squeezed_are_refused_with_those_that_fit():
    multiscale.check((28, 28, 1), 2)
    with pytest.raises(ValueError, match="a side of 28 can be squeezed 2 times, not 3: pad to 32"):
        multiscale.check((28, 28, 1), 3)
    with pytest.raises(ValueError, match="a side of 7 can be squeezed 0 times, not 1: pad to 8"):
        squeeze().forward((), jnp.zeros((1, 8, 7, 1)))
    with pytest.raises(ValueError, match=r"takes \(height, width, channels\), got \(2,\)"):
        multiscale.check((2,), 1)
    with pytest.raises(ValueError, match="at least one level, got 0"):
        multiscale.check((8, 8, 1), 0)
    for make in (
        lambda: factored((2, 2, 3), flattened((2, 2, 1))),
        lambda: channel_coupling(ConvNet(4), Affine(), (2, 2, 3)),
    ):
        with pytest.raises(ValueError, match="3 channels have no halves"):
            make()


def test_what_is_factored_out_comes_first_and_nothing_is_lost():
    x = images((4, 4, 4))
    flow = factored((4, 4, 4), chain(squeeze(), factored((2, 2, 8), flattened((2, 2, 4)))))
    params = flow.init(jax.random.key(0))
    z, log_det = flow.forward(params, x)
    np.testing.assert_array_equal(z[:, :32], x[..., 2:].reshape(-1, 32))
    small = squeeze().forward((), x[..., :2])[0]
    np.testing.assert_array_equal(z[:, 32:48], small[..., 4:].reshape(-1, 16))
    np.testing.assert_array_equal(z[:, 48:], small[..., :4].reshape(-1, 16))
    np.testing.assert_array_equal(log_det, 0)
    np.testing.assert_array_equal(flow.inverse(params, z)[0], x)


def test_actnorm_gives_each_channel_mean_0_and_variance_1():
    x = jnp.float32(3 + np.random.default_rng(0).normal(size=(50, 4, 4, 3)) * [1.0, 5.0, 0.1])
    actnorm = everywhere(diagonal(3))
    params = actnorm.init(jax.random.key(0), x)
    y, log_det = actnorm.forward(params, x)
    np.testing.assert_allclose(y.mean((0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(y.std((0, 1, 2)), 1, atol=1e-4)
    np.testing.assert_allclose(log_det, -16 * np.log(x.std((0, 1, 2))).sum(), rtol=1e-5)


def test_the_convolution_begins_as_a_rotation_and_has_the_volume_of_its_matrix():
    count = 6
    convolution = everywhere(rotation(count))
    params = jax.jit(convolution.init)(jax.random.key(0))
    x = images((2, 3, count))
    matrix = lambda params: convolution.forward(params, jnp.eye(count)[:, None, None])[0][:, 0, 0].T
    np.testing.assert_allclose(matrix(params) @ matrix(params).T, np.eye(count), atol=1e-5)
    np.testing.assert_allclose(np.linalg.det(matrix(params)), 1, rtol=1e-5)
    assert np.abs(matrix(params) - np.eye(count)).max() > 0.1
    other = jax.jit(convolution.init)(jax.random.key(1))
    assert np.abs(matrix(params) - matrix(other)).max() > 0.1
    shaken = initial(convolution, 0.3)
    y, log_det = convolution.forward(shaken, x)
    np.testing.assert_allclose(y, x @ matrix(shaken).T, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(log_det, 2 * 3 * np.linalg.slogdet(matrix(shaken))[1], rtol=1e-4)
    np.testing.assert_allclose(convolution.inverse(shaken, y)[0], x, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("mask", [multiscale.checkerboard, multiscale.half_of_channels])
def test_masks_of_both_parities_are_a_whole_and_what_they_keep_stays(mask):
    shape = (4, 2, 4)
    even, odd = (np.asarray(mask(shape, parity)) for parity in (0, 1))
    np.testing.assert_array_equal(even.astype(int) + odd, 1)
    assert even.sum() == odd.sum()
    np.testing.assert_array_equal(mask(shape, 2), even)
    x = images(shape)[:10]
    for kept in (even, odd):
        layer = coupling(ConvNet(4), Affine(), kept)
        y, _ = jax.jit(layer.forward)(initial(layer, 0.5), x)
        np.testing.assert_array_equal((y == x).all(0), kept)


def test_masks_are_squares_and_halves():
    np.testing.assert_array_equal(multiscale.checkerboard((2, 3, 1), 0)[..., 0], [[1, 0, 1], [0, 1, 0]])
    np.testing.assert_array_equal(multiscale.half_of_channels((1, 1, 4), 0)[0, 0], [1, 1, 0, 0])


def test_a_coupling_of_channels_keeps_the_first_half_and_is_told_only_that():
    x = images()[:10]
    params = initial(SMALL_CHANNELS, 0.5)
    forward = jax.jit(SMALL_CHANNELS.forward)
    y, log_det = forward(params, x)
    np.testing.assert_array_equal(y[..., :2], x[..., :2])
    assert (y[..., 2:] != x[..., 2:]).all()
    _, same = forward(params, x.at[..., 2:].add(1.0))
    np.testing.assert_array_equal(log_det, same)
    assert (forward(params, x.at[..., :2].add(1.0))[1] != log_det).any()


@pytest.mark.slow
def test_at_first_a_coupling_only_shrinks_by_what_is_known():
    x = images()[:10]
    params = jax.jit(SMALL_CHANNELS.init)(jax.random.key(0), x)
    y, log_det = SMALL_CHANNELS.forward(params, x)
    scale = 1 / (1 + np.exp(-2.0))
    np.testing.assert_allclose(y[..., 2:], scale * x[..., 2:], rtol=1e-6)
    np.testing.assert_allclose(log_det, 8 * np.log(scale), rtol=1e-6)
    still = channel_coupling(ConvNet(4), Additive(), SHAPE)
    y, log_det = still.forward(still.init(jax.random.key(0), x), x)
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(log_det, 0)


def test_a_gaussian_that_is_read_off_has_its_mean_at_noise_0():
    gaussian, shape = CASES["gaussian"]
    params = initial(gaussian, 0.3)
    kept = images(shape)[:5, ..., :2]
    mode, log_det = gaussian.inverse(params, jnp.concatenate([kept, jnp.zeros_like(kept)], -1))
    out = ZeroConv(4).apply({"params": params}, kept).reshape(5, 2, 2, 2, 2)
    np.testing.assert_allclose(mode[..., 2:], out[..., 1], rtol=1e-5)
    bounded = 5 * np.tanh(out[..., 0] / 5)
    np.testing.assert_allclose(log_det, bounded.sum((1, 2, 3)), rtol=1e-4)


def test_scales_that_only_shrink_do_not_vanish():
    transform, y = SigmoidAffine(), jnp.ones(3)
    raw = jnp.stack([jnp.float32([-1e30, 0, 1e30]), jnp.zeros(3)], -1)
    found, log_slope = transform.forward(raw, y)
    np.testing.assert_allclose(found, [np.exp(-5.0), 1 / (1 + np.exp(-2.0)), 1], rtol=1e-6)
    np.testing.assert_allclose(log_slope, np.log(found), atol=1e-6)
    back, back_log_slope = transform.inverse(raw, found)
    np.testing.assert_allclose(back, y, rtol=1e-6)
    np.testing.assert_array_equal(back_log_slope, -log_slope)
    with pytest.raises(ValueError, match="max_log_scale must be above 0"):
        SigmoidAffine(max_log_scale=0.0)


def test_compile_time_does_not_grow_with_steps():
    def size(depth):
        step = lambda _: chain(everywhere(diagonal(4)), everywhere(rotation(4)), SMALL_CHANNELS)
        flow = bijectors.scanned(step, depth)
        params = jax.eval_shape(flow.init, jax.random.key(0))
        return jax.jit(flow.forward).lower(params, jnp.zeros((5, *SHAPE))).as_text().count("\n")

    assert size(2) == size(32)
