"""Rational-quadratic splines against two other implementations, finite differences and their definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.flow import splines
from jaxgen.flow.transforms import Additive, Affine, Flipped, RationalQuadratic

NUM_BINS, BOUND = 5, 3.0
X = np.array([-4.0, -3.0, -2.9, -1.7, -0.4, 0.0, 0.3, 1.1, 2.5, 2.99, 3.7])
# By nflows 0.14 (`unconstrained_rational_quadratic_spline`), with which zuko 1.6
# (`MonotonicRQSTransform` at the same knots) agrees to 1e-13, of the raw parameters in `knots`.
Y = np.array(
    [
        -4.0,
        -3.0,
        -2.9389381913,
        -2.8525346565,
        -2.6611060825,
        -2.6407267862,
        -2.636496761,
        -2.63210629,
        -2.6050722992,
        2.8806816733,
        3.7,
    ]
)
LOG_SLOPE = np.array(
    [
        0.0,
        0.0,
        -0.9849044389,
        -3.6910486459,
        -2.0590965515,
        -3.8926853273,
        -4.62833925,
        -5.7318698918,
        -2.1736958083,
        3.2429906471,
        0.0,
    ]
)


def knots():
    """Those of nflows for raw widths, heights and slopes: softmax and softplus with floors of 1e-3."""
    widths, heights = (2 * f(s + np.arange(NUM_BINS)) for f, s in ((np.sin, 1.0), (np.cos, 2.0)))
    slopes = 1e-3 + np.log1p(np.exp(3 * np.sin(3.0 + 2 * np.arange(NUM_BINS - 1))))
    edges = lambda raw: (
        BOUND * (2 * np.cumsum([0, *(1e-3 + (1 - 1e-3 * NUM_BINS) * np.exp(raw) / np.exp(raw).sum())]) - 1)
    )
    return splines.Knots(*map(jnp.asarray, (edges(widths), edges(heights), [1.0, *slopes, 1.0])))


def test_values_are_those_of_other_implementations():
    with jax.enable_x64(True):
        y, log_slope = splines.forward(knots(), jnp.asarray(X))
        np.testing.assert_allclose(y, Y, atol=1e-9)
        np.testing.assert_allclose(log_slope, LOG_SLOPE, atol=1e-8)
        x, inverse_log_slope = splines.inverse(knots(), jnp.asarray(Y))
        np.testing.assert_allclose(x, X, atol=2e-6)  # Y has ten digits, and slopes of 0.003
        np.testing.assert_allclose(inverse_log_slope, -LOG_SLOPE, atol=2e-6)


def test_slopes_are_those_of_finite_differences():
    with jax.enable_x64(True):
        x = jnp.linspace(-4, 4, 200) + 1e-3
        step = 1e-6
        ahead, behind = (splines.forward(knots(), x + sign * step)[0] for sign in (1, -1))
        np.testing.assert_allclose(
            jnp.log((ahead - behind) / (2 * step)), splines.forward(knots(), x)[1], atol=1e-5
        )


def test_it_goes_through_its_knots_with_their_slopes():
    """Also of a function that is no identity outside."""
    with jax.enable_x64(True):
        some = splines.Knots(
            jnp.array([-1.0, 0.0, 2.0, 2.5]), jnp.array([0.0, 3.0, 3.1, 5.0]), jnp.array([2.0, 0.1, 3.0, 0.5])
        )
        forward, inverse = jax.jit(splines.forward), jax.jit(splines.inverse)
        for shift in (0.0, 1e-9, -1e-9):  # from either side: once differentiable
            y, log_slope = forward(some, some.x + shift)
            np.testing.assert_allclose(y, some.y, atol=1e-8)
            np.testing.assert_allclose(jnp.exp(log_slope), some.slope, rtol=1e-6)
        x, log_slope = inverse(some, some.y)
        np.testing.assert_allclose(x, some.x, atol=1e-9)
        np.testing.assert_allclose(jnp.exp(-log_slope), some.slope, rtol=1e-6)
        outside = jnp.array([-6.0, -6.0, 7.5, 7.5])
        np.testing.assert_allclose(forward(some, outside)[0], [-10.0, -10.0, 7.5, 7.5])
        np.testing.assert_allclose(inverse(some, forward(some, outside)[0])[0], outside)


TRANSFORMS = {
    "additive": Additive(),
    "affine": Affine(),
    "spline": RationalQuadratic(),
    "flipped": Flipped(RationalQuadratic(1, 2.0)),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_invert_themselves_and_begin_as_the_identity(name):
    transform, keys = TRANSFORMS[name], jax.random.split(jax.random.key(0))

    @jax.jit
    def both(raw, x):
        (y, log_slope), (slope, _) = jax.jvp(lambda x: transform.forward(raw, x), (x,), (jnp.ones_like(x),))
        run = lambda y: transform.inverse(raw, y)
        (back, back_log_slope), (back_slope, _) = jax.jvp(run, (y,), (jnp.ones_like(y),))
        return (y, log_slope, slope), (back, back_log_slope, back_slope)

    with jax.enable_x64(True):
        raw = jax.random.normal(keys[0], (2000, transform.num_parameters), jnp.float64)
        x = 4 * jax.random.normal(keys[1], (2000,), jnp.float64)
        (_, log_slope, slope), (back, back_log_slope, back_slope) = both(raw, x)
        np.testing.assert_allclose(back, x, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(log_slope, -back_log_slope, atol=1e-9)
        np.testing.assert_allclose(jnp.log(slope), log_slope, atol=1e-9)
        np.testing.assert_allclose(jnp.log(back_slope), back_log_slope, atol=1e-9)
        (y, log_slope, _), _ = both(0 * raw, x)
        np.testing.assert_allclose(y, x, atol=1e-12)
        np.testing.assert_allclose(log_slope, 0, atol=1e-12)


EXTREME = {"affine": Affine(), "spline": RationalQuadratic(4), "flipped": Flipped(RationalQuadratic(4))}


@pytest.mark.parametrize("name", EXTREME)
def test_no_parameters_and_no_point_give_nan(name):
    """Values, log-slopes and the gradients of both, in float32."""
    transform = EXTREME[name]
    keys = jax.random.split(jax.random.key(1))
    sizes = jnp.repeat(jnp.array([1.0, 20.0, 1e3, 1e30]), 500)[:, None]
    raw = sizes * jax.random.normal(keys[0], (2000, transform.num_parameters))
    x = jnp.tile(jnp.array([0.0, 4.0, -4.0, 2.0, 1e4, -1e4, 1e-30, 3.3]), 250)

    def total(raw, x):
        outputs = transform.forward(raw, x)
        return sum(a.sum() for a in outputs), outputs

    gradients, outputs = jax.jit(jax.grad(total, (0, 1), has_aux=True))(raw, x)
    for value in (*outputs, *gradients):
        assert not np.isnan(value).any()
    assert np.isfinite(outputs[1]).all()


def test_options_of_transforms_do_what_they_say():
    raw = jnp.full(2, 100.0)
    assert float(Affine(2.0).forward(raw, jnp.float32(0.0))[1]) == pytest.approx(2.0)
    raw = jax.random.normal(jax.random.key(0), (11,))
    assert RationalQuadratic(4, 2.0).knots(raw).x[0] == -2.0
    assert RationalQuadratic(4, 3.0).knots(raw).y[-1] == 3.0
    assert RationalQuadratic(7).num_parameters == 20
    for build in (lambda: RationalQuadratic(0), lambda: RationalQuadratic(1000)):
        with pytest.raises(ValueError, match="num_bins must be at least 1 and below 1000"):
            build()
    with pytest.raises(ValueError, match="bound must be above 0"):
        RationalQuadratic(8, 0.0)
    with pytest.raises(ValueError, match="max_log_scale must be above 0"):
        Affine(0.0)
