"""Bijectors and their composition, against Jacobians and by what they are for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxgen.flow import bijectors
from jaxgen.flow.bijectors import chain, diagonal, inverted, logit, lu, reverse, scanned, triangular
from tests.flow.check import assert_bijector, initial, wide


def indexed(layer):
    """A shift that depends on the layer, so that the order of layers matters."""
    shifted = lambda sign: lambda params, x, context=None: (x + sign * layer, bijectors.no_change(x))
    return chain(lu(3), bijectors.Bijector(lambda *_: (), shifted(1.0), shifted(-1.0)), reverse())


CASES = {
    "diagonal": diagonal(3),
    "lu": lu(3),
    "stack": chain(diagonal(3), scanned(indexed, 3), inverted(triangular(3))),
}


@pytest.mark.parametrize("make", [diagonal, triangular])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_data_leave_parameters_their_types_in_double_precision(make, dtype):
    with jax.enable_x64(True):
        params = make(3).init(jax.random.key(0), jnp.asarray(wide(3), dtype))
        assert all(leaf.dtype == np.float64 for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("name", ["diagonal", "lu", pytest.param("stack", marks=pytest.mark.slow)])
def test_inverts_and_knows_its_volume(name):
    assert_bijector(CASES[name], initial(CASES[name], 0.3), wide(3))


def test_logit_maps_pixels_to_the_line_and_counts_its_slope():
    bijector = logit(0.05, levels=256)
    x = jnp.float32(np.random.default_rng(0).uniform(-1, 1, (50, 3)))
    assert_bijector(bijector, (), x)
    # Half a level outside of black and white are 0 and 1 before the ends are moved in.
    ends = jnp.array([[-1 - 1 / 255], [1 + 1 / 255], [0.0]])
    wanted = scipy.stats.logistic.ppf([[0.05], [0.95], [0.5]])
    np.testing.assert_allclose(bijector.forward((), ends)[0], wanted, atol=1e-5)
    run = jax.value_and_grad(lambda x: bijector.forward((), x)[1][1:].sum())
    outside = jnp.array([[0.0, 1.3], [0.0, 0.0]])
    (y, log_det), (_, slopes) = jax.jit(lambda x: (bijector.forward((), x), run(x)))(outside)
    assert np.isfinite(y).all()
    assert log_det[0] == -np.inf
    assert np.isfinite(slopes).all()
    assert np.isfinite(bijector.inverse((), jnp.array([[-1e4, 1e4]]))[1])


def test_a_scan_is_the_loop():
    stack = scanned(indexed, 4)
    params = initial(stack)
    x = wide(3)

    @jax.jit
    def loop(x):
        total = 0.0
        for layer in range(4):
            own = jax.tree.map(lambda a, layer=layer: a[layer], params)
            x, change = indexed(layer).forward(own, x)
            total = total + change
        return x, total

    y, log_det = jax.jit(stack.forward)(params, x)
    expected, total = loop(x)
    np.testing.assert_allclose(y, expected, rtol=1e-5)
    np.testing.assert_allclose(log_det, total, rtol=1e-5)


def test_compile_time_does_not_grow_with_depth():
    def size(depth):
        flow = scanned(indexed, depth)
        params = jax.eval_shape(flow.init, jax.random.key(0))
        both = lambda params, x: (flow.forward(params, x), flow.inverse(params, x))
        return jax.jit(both).lower(params, jnp.zeros((5, 3))).as_text().count("\n")

    assert size(4) == size(64)


def test_data_set_the_scales_layer_by_layer():
    x = jnp.float32(5 + 3 * np.random.default_rng(0).normal(size=(500, 2)) @ [[1.0, 2.0], [0.0, 0.1]])
    flow = chain(diagonal(2), scanned(lambda _: chain(lu(2), diagonal(2)), 2), reverse(), diagonal(2))
    params = jax.jit(flow.init)(jax.random.key(0), x)
    y, _ = jax.jit(flow.forward)(params, x)
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(y.std(0), 1, atol=1e-4)
    np.testing.assert_allclose(params[0]["shift"], x.mean(0), rtol=1e-5)
    without = jax.eval_shape(flow.init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, without)
    constant = diagonal(2).init(jax.random.key(0), jnp.ones((5, 2)))
    assert np.isfinite(diagonal(2).forward(constant, x)[0]).all()
    mean_and_diagonal = triangular(2).init(jax.random.key(0), x)
    np.testing.assert_allclose(
        jnp.diagonal(bijectors.cholesky_factor(mean_and_diagonal)), x.std(0), rtol=1e-3
    )


@pytest.mark.parametrize("make", [diagonal, triangular, lu])
def test_scales_that_overflow_stay_finite(make):
    name = {diagonal: "log_scale", triangular: "raw", lu: "upper"}[make]
    forward, params = jax.jit(make(2).forward), make(2).init(jax.random.key(0))
    for extreme in (1e30, -1e30):
        params[name] = jnp.full(2, extreme) if make is diagonal else jnp.diag(jnp.full(2, extreme))
        y, log_det = forward(params, jnp.ones((1, 2)))
        assert np.isfinite(y).all()
        assert np.isfinite(log_det).all()


def test_no_layer_is_refused():
    with pytest.raises(ValueError, match="at least one layer, got 0"):
        scanned(indexed, 0)


def test_forward_mode_through_everything():
    flow = CASES["stack"]
    params = initial(flow)
    nll = lambda params: flow.forward(params, wide(3))[1].sum()
    slopes = jax.jit(lambda params: jax.jvp(jax.grad(nll), (params,), (params,))[1])(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))
