"""Masked convolutions: the masks of the paper, and one position or row at a time what all at once give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.nn.masked_conv import MaskedConv, Place, Reach, RowConv, SymbolConv, degrees, place_of, visible


def weights(layer, *arguments, seed=0):
    """Random ones."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda *a: layer.init(jax.random.key(0), *a), *arguments)
    return jax.tree.map(lambda a: jnp.float32(rng.normal(size=a.shape)), shapes)


def images(*shape):
    return jnp.float32(np.random.default_rng(1).normal(size=shape))


def test_degrees_are_spread_evenly():
    assert degrees(6, 3) == (0, 0, 1, 1, 2, 2)
    assert degrees(4, 3) == (0, 0, 1, 2)
    assert degrees(3, 1) == (0, 0, 0)


@pytest.mark.parametrize(("first", "last"), [(True, False), (False, False), (False, True)])
def test_the_masks_of_red_green_and_blue(first, last):
    """Mask A, mask B, and that of the output, as the paper has them: rows above, left, and colours before."""
    reach = Reach(1, 1, 1)
    symbols, features = range(1, 4), degrees(3, 3)
    mask = visible(reach, symbols if first else features, features)
    for i in range(2):
        for j in range(3):
            for colour_in in range(3):
                for colour_out in range(3):
                    before = (i, j) < (1, 1) or ((i, j) == (1, 1) and colour_in < colour_out)
                    own = (i, j) == (1, 1) and colour_in == colour_out and not first
                    assert mask[i, j, colour_in, colour_out] == (before or own), (i, j)
    assert visible(reach, symbols, (3,), whole_row=True).all()


def padded_windows(x, reach):
    """What each place reads of an image (H, W, C), by loops: (H, W, above + 1, left + 1 + right, C)."""
    height, width, channels = x.shape
    windows = np.zeros((height, width, reach.above + 1, reach.left + 1 + reach.right, channels))
    for row, column, i, j in np.ndindex(windows.shape[:4]):
        at = row + i - reach.above, column + j - reach.left
        if at[0] >= 0 and 0 <= at[1] < width:
            windows[row, column, i, j] = x[at]
    return windows


@pytest.mark.parametrize("reach", [Reach(1, 1, 1), Reach(0, 2, 0), Reach(3, 0, 2), Reach()])
@pytest.mark.parametrize("shape", [(3, 4), (1, 2)])
def test_one_position_of_features_after_the_other(reach, shape):
    own = degrees(4, 2)
    layer, x = MaskedConv(own, own, reach), images(2, *shape, 4)
    params = weights(layer, x)
    full, _ = jax.jit(layer.apply)(params, x)
    mask = visible(reach, own, own)
    expected = np.einsum("hwijc,ijcf->hwf", padded_windows(x[0], reach), mask * params["params"]["kernel"])
    np.testing.assert_allclose(full[0], expected + params["params"]["bias"], rtol=1e-4, atol=1e-4)

    def step(cache, index):
        place = place_of(index, shape[1], 1)
        y, cache = layer.apply(params, x[:, place.row, place.column], cache, place)
        return cache, y

    count = shape[0] * shape[1]
    cached = jax.jit(lambda cache: jax.lax.scan(step, cache, jnp.arange(count))[1])(
        layer.empty_cache(2, *shape, jnp.float32)
    )
    np.testing.assert_allclose(cached.swapaxes(0, 1).reshape(full.shape), full, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("reach", "whole"), [(Reach(3, 3, 3), False), (Reach(0, 2, 0), False), (Reach(1, 2, 2), True)]
)
def test_what_symbols_lay_down(reach, whole):
    """After the last symbol the sums are the convolution; before, those of places that it has not reached."""
    height, width, num_symbols, size = 3, 4, 2, 3
    own = (num_symbols,) * 4 if whole else degrees(4, num_symbols)
    layer = SymbolConv(num_symbols, own, reach, whole)
    x = images(2, height, width, num_symbols * size)
    params = weights(layer, x)
    full = jax.jit(layer.apply)(params, x)
    mask = visible(reach, (1, 1, 1, 2, 2, 2), own, whole)
    expected = np.einsum("hwijc,ijcf->hwf", padded_windows(x[0], reach), mask * params["params"]["kernel"])
    np.testing.assert_allclose(full[0], expected, rtol=1e-4, atol=1e-4)

    def step(sums, index):
        place = place_of(index, width, num_symbols)
        before = layer.pixel(sums, place)
        symbol = x.reshape(2, -1, size)[:, index]
        sums = layer.apply(params, symbol, sums, place)
        return sums, (before, layer.row(sums, place.row)[:, 0])

    sums = layer.empty_cache(2, height, width, jnp.float32)
    _, (before, rows) = jax.lax.scan(step, sums, jnp.arange(height * width * num_symbols))
    last = rows.reshape(height, width * num_symbols, 2, width, 4)[:, -1].swapaxes(0, 1)
    np.testing.assert_allclose(last, full, rtol=1e-4, atol=1e-4)
    if not whole:
        before = before.reshape(height, width, num_symbols, 2, 4)
        for symbol in range(num_symbols):
            known = np.asarray(own) <= symbol
            found = jnp.moveaxis(before[:, :, symbol], 2, 0)[..., known]
            np.testing.assert_allclose(found, full[..., known], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_rows_come_one_by_one_or_all_at_once(size):
    layer, x = RowConv(3, size), images(2, 4, 3, 2)
    above = jnp.zeros((2, size // 2, 3, 2))
    params = weights(layer, x, above)
    full, last = layer.apply(params, x, above)
    reach = Reach(size // 2, size // 2, size // 2)
    expected = np.einsum("hwijc,ijcf->hwf", padded_windows(x[0], reach), params["params"]["kernel"])
    np.testing.assert_allclose(full[0], expected, rtol=1e-4, atol=1e-4)
    for row in range(4):
        one, above = layer.apply(params, x[:, row : row + 1], above)
        np.testing.assert_allclose(one[:, 0], full[:, row], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(above, last)


def test_places():
    assert tuple(map(int, place_of(17, 4, 3))) == (1, 1, 2)
    assert Place(1, 1, 2) == place_of(17, 4, 3)


def test_a_dtype_is_that_of_the_result():
    own = degrees(4, 2)
    layer, x = MaskedConv(own, own, Reach(1, 1, 1), dtype="bfloat16"), images(1, 3, 3, 4)
    y, params = layer.init_with_output(jax.random.key(0), x)
    assert y[0].dtype == jnp.bfloat16
    assert params["params"]["kernel"].dtype == jnp.float32
