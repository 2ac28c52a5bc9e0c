import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import shard
from jaxgen.evaluation import distances


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(distances, "TILE_BYTES", 2**16)
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.parametrize("dimensions", [1, 3, 16, 17, 200])
def test_agrees_with_float64_also_far_from_the_origin(dimensions):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, dimensions)) + 1e6, rng.normal(size=(30, dimensions)) + 1e6
    expected = ((x[:, None] - y) ** 2).sum(-1)
    np.testing.assert_allclose(distances.squared(*distances.centred(x, y)), expected, rtol=2e-5)


@pytest.mark.parametrize("library", [np, jnp])
def test_many_float32_numbers_far_from_the_origin_are_centred(library):
    """Added up one by one, 100,000 numbers near 1e6 have a mean that is off by hundreds."""
    x = (np.random.default_rng(0).normal(size=(100_000, 2)) + 1e6).astype(np.float32)
    found = np.asarray(distances.centred(library.asarray(x))[0], np.float64)
    assert np.abs(found.mean(0)).max() < 1
    np.testing.assert_allclose(found - found[0], x.astype(np.float64) - x[0], atol=1e-6)


def test_close_points_in_the_plane_keep_their_digits():
    x = np.array([[100.0, -100.0], [100.0, -100.0 + 1e-3]], np.float32)
    spread = np.concatenate([x, -x])
    value = distances.squared(*distances.centred(spread, spread))[0, 1]
    assert value == pytest.approx(float(x[1, 1] - x[0, 1]) ** 2, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "columns"), [(1, 5), (64, 10), (65, 1000), (1000, 300), (1001, 4097)])
def test_tiles_hold_every_row_once(small_tiles, n, columns):
    x = jnp.arange(n, dtype=jnp.float32)[:, None]
    parts, index = distances.tiles(x, columns)
    assert parts.shape[1] % distances.ROW_MULTIPLE == 0
    np.testing.assert_array_equal(distances.untile(parts, n), x)
    np.testing.assert_array_equal(distances.untile(index, n), np.arange(n))
    assert (np.sort(index.ravel())[n:] == n).all()


@pytest.mark.parametrize(("columns", "k"), [(5, 5), (64, 3), (700, 1), (700, 9), (1000, 15), (1000, 40)])
def test_smallest_is_a_sort(columns, k):
    values = np.random.default_rng(1).integers(0, 300, (20, columns)).astype(np.float32)
    found, index = distances.smallest(jnp.asarray(values), k)
    np.testing.assert_array_equal(found, np.sort(values, 1)[:, :k])
    np.testing.assert_array_equal(np.take_along_axis(values, np.asarray(index), 1), found)
    assert all(len(set(row)) == k for row in np.asarray(index).tolist())


@pytest.mark.slow
def test_neighbours_leave_out_the_point_but_not_its_copy(small_tiles):
    x = np.random.default_rng(2).normal(size=(500, 20)).astype(np.float32)
    x[7] = x[300]
    (x,) = distances.centred(x)
    found, index = distances.nearest(x, x, exclude_self=True)
    assert found[7] == found[300] == 0.0
    assert (index[7], index[300]) == (300, 7)
    exact = np.sqrt(((np.asarray(x)[:, None] - np.asarray(x)) ** 2).sum(-1)) + 1e9 * np.eye(500)
    np.testing.assert_allclose(found, exact.min(1), rtol=1e-5)
    np.testing.assert_array_equal(
        distances.nearest(x, x)[1], np.where(np.arange(500) == 300, 7, np.arange(500))
    )


def test_rows_are_worked_on_where_they_lie(small_tiles):
    mesh = shard.mesh()
    x = shard.put_batch({"x": np.random.default_rng(3).normal(size=(1600, 32)).astype(np.float32)}, mesh)["x"]
    whole = distances.on_every_device(x)
    compiled = distances.neighbours.lower(x, whole, 5).compile().as_text()
    rows = distances.tiles(jnp.zeros((1600, 32)), 1600)[0].shape[1]
    assert f"f32[{rows // 8},1600]" in compiled
    assert f"f32[{rows},1600]" not in compiled
