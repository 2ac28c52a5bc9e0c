"""Augmentations against what they promise: linear, per image, and the identity where there are none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.gan.augment import AUGMENTATIONS, DiffAugment

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (64, 16, 16, 3))
AUGMENT = DiffAugment(("color", "translation", "cutout"))


@pytest.mark.slow
def test_no_policy_is_the_identity_and_keys_decide():
    assert DiffAugment(())(KEY, X) is X
    first, again, other = (AUGMENT(key, X) for key in (KEY, KEY, jax.random.key(2)))
    assert first.shape == X.shape
    only = DiffAugment(("cutout",))(KEY, X)
    assert ((only == 0) | (only == X)).all()
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.5
    assert float(jnp.abs(first[0] - AUGMENT(KEY, X[:1].repeat(64, 0))[1]).max()) > 0.1  # images differ


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS))
def test_they_are_affine_in_the_image(name):
    f = lambda x: AUGMENTATIONS[name](KEY, x)
    y = X[::-1]
    np.testing.assert_allclose(f(0.3 * X + 0.7 * y), 0.3 * f(X) + 0.7 * f(y), atol=2e-6)


@pytest.mark.slow
def test_color_stays_within_its_ranges():
    grey = jnp.full((4000, 2, 2, 3), 0.25)
    shift = AUGMENTATIONS["color"](KEY, grey) - grey
    assert float(shift.std((1, 2, 3)).max()) < 1e-6
    np.testing.assert_allclose([shift.min(), shift.max()], [-0.5, 0.5], atol=0.01)
    # Contrast keeps the image's mean, saturation each pixel's: only the brightness moves the mean.
    moved = AUGMENTATIONS["color"](KEY, X).mean((1, 2, 3)) - X.mean((1, 2, 3))
    assert float(jnp.abs(moved).max()) <= 0.5
    greys = jnp.broadcast_to(X[:1, :, :, :1], (4000, 16, 16, 3))
    contrast = AUGMENTATIONS["color"](KEY, greys).std((1, 2, 3)) / greys.std((1, 2, 3))
    np.testing.assert_allclose([contrast.min(), contrast.max()], [0.5, 1.5], atol=0.01)
    tints = jnp.broadcast_to(jnp.array([-1.0, 0.0, 1.0]), (4000, 2, 2, 3))
    saturation = AUGMENTATIONS["color"](KEY, tints).std(-1)[:, 0, 0] / tints.std(-1)[:, 0, 0]
    assert saturation.min() < 0.05
    assert saturation.max() > 2.5  # up to 2 x 3/2


@pytest.mark.slow
def test_translation_moves_by_up_to_an_eighth():
    point = jnp.zeros((2000, 16, 8, 1)).at[:, 8, 4].set(1.0)
    moved = np.asarray(AUGMENTATIONS["translation"](KEY, point))
    rows, columns = (np.argmax(moved.sum(axes), 1) for axes in ((2, 3), (1, 3)))
    assert set(rows) == {6, 7, 8, 9, 10}
    assert set(columns) == {3, 4, 5}
    np.testing.assert_array_equal(moved.sum((1, 2, 3)), 1)
    corner = AUGMENTATIONS["translation"](KEY, jnp.ones((200, 16, 16, 1)))
    assert set(np.unique(corner)) == {0.0, 1.0}


@pytest.mark.slow
def test_cutout_covers_a_quarter_where_it_lies_inside():
    masked = AUGMENTATIONS["cutout"](KEY, jnp.ones((4000, 16, 16, 1)))[..., 0] == 0
    sizes = [np.unique(masked.any(axis).sum(1)) for axis in (1, 2)]
    assert all(s.min() == 4 and s.max() == 8 for s in sizes)
    np.testing.assert_array_equal(masked.sum((1, 2)), masked.any(1).sum(1) * masked.any(2).sum(1))
    hits = masked.mean(0)
    assert hits.min() > 0.03
    assert hits[8, 8] > 1.5 * hits[0, 0]


@pytest.mark.slow
def test_second_derivatives_pass():
    """A penalty on the gradient of f(T(x)) in x has a gradient in f: that of the transposed map."""
    x = X[:4, :4, :4]

    def penalty(weight):
        critic = lambda x: (jnp.tanh(AUGMENT(KEY, x)) * weight).sum()
        return (jax.grad(critic)(x) ** 2).sum()

    weight = jnp.ones(x.shape[1:])
    direction = jax.random.normal(KEY, weight.shape)
    slope = (jax.grad(penalty)(weight) * direction).sum()
    difference = (penalty(weight + 1e-2 * direction) - penalty(weight - 1e-2 * direction)) / 2e-2
    assert slope != 0
    np.testing.assert_allclose(slope, difference, rtol=2e-3)
