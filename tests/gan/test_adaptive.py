"""Adaptive augmentation: what its parts do, the identity at probability 0, derivatives, the controller."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from jaxgen.gan import adaptive, gan
from jaxgen.gan.networks import mlp
from jaxgen.values import SGD, Adam

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (64, 9, 9, 3))
NAMES = tuple(adaptive.TRANSFORMATIONS)
AUGMENT = jax.jit(adaptive.augment, static_argnums=2)
ONE = jnp.float32(1.0)


@pytest.mark.slow
def test_probability_0_is_the_identity_and_others_a_share_of_images():
    np.testing.assert_array_equal(AUGMENT(KEY, X, NAMES, jnp.float32(0.0)), X)
    for p, low, high in ((0.05, 0.2, 0.7), (1.0, 0.98, 1.0)):  # about 10 parts may happen to an image
        changed = np.abs(AUGMENT(KEY, X, NAMES, jnp.float32(p)) - X).max((1, 2, 3)) > 1e-4
        assert low < changed.mean() <= high


def test_warps_are_scipys():
    rng = np.random.default_rng(0)
    angle, scale = rng.uniform(-3, 3, 64), rng.uniform(0.7, 1.4, (64, 2))
    rotation = np.stack([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]).transpose(2, 0, 1)
    matrix, shift = rotation * scale[:, None], rng.uniform(-2, 2, (64, 2))
    warped = np.asarray(jax.jit(adaptive.warp)(X, jnp.float32(matrix), jnp.float32(shift)))
    for index in range(3):
        inverse = np.linalg.inv(matrix[index])
        for channel in range(3):
            expected = scipy.ndimage.affine_transform(
                np.float64(X[index, ..., channel]),
                inverse,
                4 - inverse @ (4 + shift[index]),
                order=1,
                mode="mirror",
            )
            np.testing.assert_allclose(warped[index, ..., channel], expected, atol=2e-5)


@pytest.mark.slow
def test_blitting_moves_whole_pixels():
    """Every result is one of the eight symmetries of the square, moved by at most a pixel."""
    x = jnp.broadcast_to(X[:1], (400, 9, 9, 3))
    y = np.asarray(AUGMENT(KEY, x, ("blit",), ONE))
    seen = set()
    for index in range(400):
        for name, turned in {
            (flip, quarter): np.rot90(X[0, :, ::-1] if flip else X[0], quarter)
            for flip in (0, 1)
            for quarter in range(4)
        }.items():
            padded = np.pad(turned, ((1, 1), (1, 1), (0, 0)), mode="reflect")
            for row in range(3):
                for column in range(3):
                    if np.array_equal(padded[row : row + 9, column : column + 9], y[index]):
                        seen.add((*name, row, column, index))
    assert {entry[-1] for entry in seen} == set(range(400))
    assert len({entry[:2] for entry in seen}) == 8
    assert len({entry[2:4] for entry in seen}) == 9


@pytest.mark.slow
def test_colours_are_their_definitions():
    x = jnp.broadcast_to(X[:1], (500, 9, 9, 3))
    y = np.float64(AUGMENT(KEY, x, ("color",), ONE))
    mean, chroma = (lambda z: z.mean(-1)), (lambda z: z - z.mean(-1, keepdims=True))
    # On the mean over channels: +-contrast (mean + brightness). On the rest: a turn and a scale.
    slope = [np.polyfit(mean(X[0]).ravel(), mean(image).ravel(), 1) for image in y]
    contrast, shift = np.abs([s[0] for s in slope]), np.array([s[1] / s[0] for s in slope])
    assert np.log2(contrast).std() == pytest.approx(0.5, rel=0.1)
    assert shift.std() == pytest.approx(0.2, rel=0.1)
    assert np.mean([s[0] < 0 for s in slope]) == pytest.approx(0.5, abs=0.07)
    before, after = np.linalg.norm(chroma(X[0]), axis=-1), np.linalg.norm(chroma(y), axis=-1)
    scale = after / before
    np.testing.assert_allclose(scale, np.broadcast_to(scale[:, :1, :1], scale.shape), rtol=1e-3)
    assert np.log2(scale[:, 0, 0] / contrast).std() == pytest.approx(1.0, rel=0.1)
    cosine = (chroma(y) * chroma(np.asarray(X[:1]))).sum(-1) / (after * before)
    np.testing.assert_allclose(cosine, np.broadcast_to(cosine[:, :1, :1], cosine.shape), atol=1e-3)
    assert np.abs(cosine[:, 0, 0].mean()) < 0.1
    grey = AUGMENT(KEY, x[..., :1], ("color",), ONE)
    assert grey.shape == (500, 9, 9, 1)


@pytest.mark.slow
def test_gradients_of_gradients_are_finite_and_right():
    """A penalty on the gradient of a critic of T(x): its slope in the critic against finite differences."""
    x, p = X[:4, :6, :6], jnp.float32(0.7)
    weight, direction = jax.random.normal(jax.random.key(2), (2, 6, 6, 3))

    @jax.jit
    @jax.value_and_grad
    def penalty(weight):
        critic = lambda x: (jnp.tanh(adaptive.augment(KEY, x, ("geometry", "color"), p)) * weight).sum()
        return (jax.grad(critic)(x) ** 2).sum()

    (above, _), (below, _), (_, gradient) = (penalty(weight + t * direction) for t in (1e-2, -1e-2, 0.0))
    slope, difference = (gradient * direction).sum(), (above - below) / 2e-2
    assert np.isfinite(slope)
    assert slope != 0
    np.testing.assert_allclose(slope, difference, rtol=2e-3)


def test_probability_follows_the_sign_and_crosses_in_the_ramp():
    augmentation, rate = adaptive.Adaptive(target=0.6, ramp=10_000), adaptive.INTERVAL * 100 / 10_000

    @jax.jit
    def run(signs, controller):
        def step(controller, i):
            controller, metrics = augmentation.update(controller, signs[i], i, 100)
            return controller, metrics["augmentation_probability"]

        return jax.lax.scan(step, controller, jnp.arange(100))[1]

    up = run(jnp.full(100, 0.9), augmentation.init())
    np.testing.assert_allclose(up, np.arange(1, 101) // 4 * rate, atol=1e-6)  # 10,000 examples from 0 to 1
    down = run(jnp.full(100, 0.2), adaptive.Controller(jnp.float32(0.5), jnp.float32(0.0)))
    np.testing.assert_allclose(down, np.maximum(0.5 - np.arange(1, 101) // 4 * rate, 0), atol=1e-6)
    mixed = run(jnp.tile(jnp.array([1.0, 1.0, 1.0, -1.0]), 25), augmentation.init())
    assert mixed.max() == 0  # the mean of four is 1/2


@pytest.mark.slow
def test_only_the_named_transformations_happen_and_as_often_as_the_state_says():
    mirrored = lambda state: adaptive.Adaptive(("color",))(KEY, X, state) - X
    assert jnp.abs(mirrored(adaptive.Controller(jnp.float32(0.0), jnp.float32(0.0)))).max() == 0
    moved = mirrored(adaptive.Controller(ONE, jnp.float32(0.0)))
    assert jnp.abs(moved).max((1, 2, 3)).min() > 1e-3
    grey = jnp.ones((64, 9, 9, 1))
    seen = adaptive.Adaptive(("color",))(KEY, grey, adaptive.Controller(ONE, jnp.float32(0.0)))
    assert float(seen.std((1, 2, 3)).max()) < 1e-5  # no warp would matter either, but a colour is one number


class Noise(nn.Module):
    """A generator that is as good as the data are: both are noise."""

    @nn.compact
    def __call__(self, z, train):
        return z.reshape(-1, 6, 6, 1) * self.param("scale", nn.initializers.ones, ())


@pytest.mark.slow
def test_it_rises_over_few_examples_and_rests_over_many():
    """Nothing but knowing them by heart tells real examples from generated ones."""
    cfg = gan.Config(
        shape=(6, 6, 1),
        num_latents=36,
        generator=Noise(),
        discriminator=mlp.Discriminator((64,)),
        generator_optimizer=SGD(0.0),
        discriminator_optimizer=Adam(3e-3, beta1=0.5),
        augmentation=adaptive.Adaptive(("color",), ramp=4000),
    )
    few = jax.random.normal(jax.random.key(2), (16, 6, 6, 1))

    @jax.jit
    def train(state, fresh):
        def step(state, _):
            others = jax.random.normal(jax.random.fold_in(KEY, state.step), few.shape)
            return gan.train_step(state, {"image": jnp.where(fresh, others, few)}, cfg)

        return jax.lax.scan(step, state, length=200)[1]["augmentation_probability"]

    state = gan.init(KEY, cfg)
    assert train(state, False)[-50:].mean() > 0.1
    assert train(state, True).max() < 0.05
