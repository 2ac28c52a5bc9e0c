"""Arcs against their geometry, lines and squares against arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxgen.latent import interpolate

START, END = np.random.default_rng(0).normal(size=(2, 4, 9)).astype(np.float32)


def angles(points):
    """Between neighbours of points (S, D)."""
    points = np.asarray(points, np.float64)
    points = points / np.linalg.norm(points, axis=-1, keepdims=True)
    return np.arccos(np.clip((points[1:] * points[:-1]).sum(-1), -1, 1))


@pytest.mark.parametrize("along", [interpolate.lerp, interpolate.slerp])
def test_a_path_begins_and_ends_at_its_ends(along):
    points = interpolate.path(START, END, 5, along)
    assert points.shape == (5, *START.shape)
    np.testing.assert_allclose(points[0], START, atol=1e-6)
    np.testing.assert_allclose(points[-1], END, atol=1e-6)


def test_a_line_has_constant_steps():
    points = interpolate.path(START, END, 7)
    np.testing.assert_allclose(np.diff(points, axis=0), np.tile((END - START) / 6, (6, 1, 1)), atol=1e-6)


def test_an_arc_keeps_the_length_at_constant_angular_speed():
    start = START[0] / np.linalg.norm(START[0]) * 3
    end = END[0] / np.linalg.norm(END[0]) * 3
    points = interpolate.path(start, end, 11, interpolate.slerp)
    np.testing.assert_allclose(np.linalg.norm(points, axis=-1), 3, rtol=1e-5)
    whole = angles([start, end])[0]
    np.testing.assert_allclose(angles(points), whole / 10, rtol=1e-3)


def test_a_quarter_circle_is_cosine_and_sine():
    t = np.linspace(0, 1, 6, dtype=np.float32)
    start, end = np.tile([2.0, 0.0], (6, 1)), np.tile([0.0, 5.0], (6, 1))
    expected = np.stack([2 * np.cos(t * np.pi / 2), 5 * np.sin(t * np.pi / 2)], 1)
    np.testing.assert_allclose(interpolate.slerp(start, end, t), expected, atol=1e-5)


@pytest.mark.parametrize("factor", [1.0, 2.5, -1.0, -0.5, 0.0])
def test_where_there_is_no_arc_there_is_a_line(factor):
    end = factor * START[0]
    points = interpolate.path(START[0], end, 5, interpolate.slerp)
    if factor:
        np.testing.assert_allclose(points, interpolate.path(START[0], end, 5), atol=1e-5)
    assert np.isfinite(points).all()
    np.testing.assert_allclose(points[jnp.array([0, -1])], [START[0], end], atol=1e-6)


@pytest.mark.parametrize("size", [1e-1, 1e-3, 1e-5])
def test_arcs_are_exact_at_small_angles(size):
    angle = np.float64(size)
    end = np.array([np.cos(angle), np.sin(angle)], np.float32)
    points = interpolate.path(np.array([1.0, 0.0], np.float32), end, 5, interpolate.slerp)
    np.testing.assert_allclose(points[:, 1], np.sin(np.linspace(0, 1, 5) * angle), rtol=1e-4)


@pytest.mark.slow
def test_vmap_equals_broadcasting_and_gradients_are_finite():
    t = jnp.linspace(0, 1, 4)
    np.testing.assert_allclose(
        jax.vmap(interpolate.slerp)(START, END, t), interpolate.slerp(START, END, t), atol=1e-6
    )
    for end in (END[0], START[0], -START[0]):
        gradient = jax.grad(lambda z, end=end: interpolate.slerp(z, end, 0.3).sum())(START[0])
        assert np.isfinite(gradient).all()


def test_a_traversal_moves_one_coordinate():
    values = np.array([-2.0, 0.0, 2.0], np.float32)
    points = interpolate.traverse(jnp.asarray(START), 3, values)
    assert points.shape == (3, *START.shape)
    np.testing.assert_array_equal(points[:, :, 3], np.tile(values[:, None], (1, 4)))
    np.testing.assert_array_equal(np.delete(points, 3, -1), np.tile(np.delete(START, 3, -1), (3, 1, 1)))


def test_prior_quantiles_cut_the_prior_into_equal_parts():
    square = np.asarray(interpolate.prior_quantiles(4)).reshape(4, 4, 2)
    np.testing.assert_allclose(scipy.stats.norm.cdf(square[0, :, 0]), [0.05, 0.35, 0.65, 0.95], atol=1e-5)
    np.testing.assert_allclose(square[:, 0, 1], square[0, ::-1, 0], atol=1e-5)
    assert square[0, 0, 1] > square[-1, 0, 1]


def test_the_bounding_square_touches_the_farthest_codes():
    codes = jnp.array([[0.0, 1.0], [4.0, 2.0], [2.0, 1.5]])
    square = np.asarray(interpolate.bounding_square(codes, 5)).reshape(5, 5, 2)
    np.testing.assert_allclose(square[0, :, 0], [0, 1, 2, 3, 4])
    np.testing.assert_allclose(square[:, 0, 1], [3.5, 2.5, 1.5, 0.5, -0.5])
