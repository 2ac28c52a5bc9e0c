"""Bijectors: invertible maps that know how they change volumes, and how they are composed.

A bijector is three pure functions. In every bijector and every flow here `forward` goes from data to noise,
and `inverse` from noise to data:

    forward(params, x, context=None) -> (y, log_det),     log p(x) = log N(y; 0, I) + log_det,
    inverse(params, y, context=None) -> (x, log_det),

with x and y (B, ...), context (B, C) or None, and log_det (B,) that of the map which is called, in nats: log
|det dy/dx| or log |det dx/dy|, so that the two differ in sign. `init(key, x=None, context=None)` gives
parameters; data x that reach the bijector set those that depend on data.

    flow = chain(diagonal(2), scanned(lambda layer: chain(reverse(), lu(2)), depth=8))
    params = flow.init(jax.random.key(0))
    z, log_det = flow.forward(params, x)
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

MAX_LOG_SCALE = 15.0
"""Bound of the logarithm of a scale that is a parameter of its own: with it float32 neither overflows nor
vanishes."""
MIN_SCALE = 1e-5
"""Smallest entry on the diagonal of a triangular matrix."""

Params = Any


class Bijector(NamedTuple):
    """An invertible map, see the module."""

    init: Callable[..., Params]
    forward: Callable[..., tuple[Array, Array]]
    inverse: Callable[..., tuple[Array, Array]]


# Composition


def chain(*bijectors: Bijector) -> Bijector:
    """Bijectors one after another, the first at the data. The parameters are a tuple of theirs."""

    def init(key, x=None, context=None):
        params = []
        for bijector, own_key in zip(bijectors, jax.random.split(key, len(bijectors)), strict=True):
            params.append(bijector.init(own_key, x, context))
            if x is not None:
                x, _ = bijector.forward(params[-1], x, context)
        return tuple(params)

    def forward(params, x, context=None):
        total = no_change(x)
        for bijector, own in zip(bijectors, params, strict=True):
            x, log_det = bijector.forward(own, x, context)
            total = total + log_det
        return x, total

    def inverse(params, y, context=None):
        total = no_change(y)
        for bijector, own in zip(reversed(bijectors), reversed(params), strict=True):
            y, log_det = bijector.inverse(own, y, context)
            total = total + log_det
        return y, total

    return Bijector(init, forward, inverse)


def scanned(make: Callable[[Array], Bijector], depth: int) -> Bijector:
    """`depth` bijectors of one kind, in a loop whose compile time does not depend on `depth`.

    Args:
        make: the layer's index, () int32 and traced, -> its bijector; parameters of all have the same shapes.

    The parameters have a first axis of length `depth`. Raises ValueError for a depth below 1.
    """
    if depth < 1:
        raise ValueError(f"a flow needs at least one layer, got {depth}")
    layers = jnp.arange(depth)

    def init(key, x=None, context=None):
        keys = jax.random.split(key, depth)
        if x is None:
            return jax.vmap(lambda key, layer: make(layer).init(key))(keys, layers)
        x = _of_parameters(x)

        def step(x, row):
            key, layer = row
            params = make(layer).init(key, x, context)
            return make(layer).forward(params, x, context)[0], params

        return jax.lax.scan(step, x, (keys, layers))[1]

    def run(direction, params, x, context, reverse):
        def step(carry, row):
            x, total = carry
            own, layer = row
            x, log_det = getattr(make(layer), direction)(own, x, context)
            return (x, total + log_det), None

        x = _of_parameters(x)
        return jax.lax.scan(step, (x, no_change(x)), (params, layers), reverse=reverse)[0]

    def forward(params, x, context=None):
        return run("forward", params, x, context, reverse=False)

    def inverse(params, y, context=None):
        return run("inverse", params, y, context, reverse=True)

    return Bijector(init, forward, inverse)


def inverted(bijector: Bijector) -> Bijector:
    """The bijector the other way round; its initialisation does not see data."""

    def init(key, x=None, context=None):
        del x, context
        return bijector.init(key)

    return Bijector(init, bijector.inverse, bijector.forward)


# Elementwise and linear maps of vectors (B, D)


def diagonal(num_dims: int) -> Bijector:
    """y = (x - shift) exp(-log_scale); data set the shift and scale that give them mean 0 and variance 1.

    The actnorm of Kingma & Dhariwal 2018, of vectors.
    """

    def init(key, x=None, context=None):
        del key, context
        if x is None:
            return {"shift": jnp.zeros(num_dims), "log_scale": jnp.zeros(num_dims)}
        x = _of_parameters(x)
        log_scale = jnp.log(jnp.maximum(x.std(0), jnp.exp(-MAX_LOG_SCALE)))
        return {"shift": x.mean(0), "log_scale": log_scale}

    def bounded(params):
        return jnp.clip(params["log_scale"], -MAX_LOG_SCALE, MAX_LOG_SCALE)

    def forward(params, x, context=None):
        del context
        log_scale = bounded(params)
        return (x - params["shift"]) * jnp.exp(-log_scale), no_change(x) - log_scale.sum()

    def inverse(params, y, context=None):
        del context
        log_scale = bounded(params)
        return y * jnp.exp(log_scale) + params["shift"], no_change(y) + log_scale.sum()

    return Bijector(init, forward, inverse)


def triangular(num_dims: int) -> Bijector:
    """x = mean + L y with L lower-triangular and its diagonal positive; data set the mean and the diagonal.

    The inverse is thus the matrix product, and `forward` solves for y = L^-1 (x - mean).
    """

    def init(key, x=None, context=None):
        del key, context
        mean, scale = jnp.zeros(num_dims), jnp.ones(num_dims)
        if x is not None:
            x = _of_parameters(x)
            mean, scale = x.mean(0), x.std(0)
        raw = jnp.diag(inverse_softplus(jnp.maximum(scale - MIN_SCALE, MIN_SCALE)))
        return {"mean": mean, "raw": raw}

    def forward(params, x, context=None):
        del context
        factor = cholesky_factor(params)
        y = jax.scipy.linalg.solve_triangular(factor, (x - params["mean"]).T, lower=True).T
        return y, no_change(x) - jnp.log(jnp.diagonal(factor)).sum()

    def inverse(params, y, context=None):
        del context
        factor = cholesky_factor(params)
        x = params["mean"] + jnp.matmul(y, factor.T, precision="highest")
        return x, no_change(y) + jnp.log(jnp.diagonal(factor)).sum()

    return Bijector(init, forward, inverse)


def cholesky_factor(params: Params) -> Array:
    """L (D, D) of the parameters of `triangular`."""
    raw = params["raw"]
    return jnp.tril(raw, -1) + jnp.diag(jax.nn.softplus(jnp.diagonal(raw)) + MIN_SCALE)


def lu(num_dims: int) -> Bijector:
    """y = L U x with unit-triangular L and the diagonal of U positive; the identity at first.

    Kingma & Dhariwal 2018, section 3.2, without their permutation: put `reverse` beside it.
    """

    def init(key, x=None, context=None):
        del key, x, context
        diagonal = inverse_softplus(jnp.full(num_dims, 1 - MIN_SCALE))
        return {"lower": jnp.zeros((num_dims, num_dims)), "upper": jnp.diag(diagonal)}

    def factors(params):
        lower = jnp.tril(params["lower"], -1) + jnp.eye(num_dims, dtype=params["lower"].dtype)
        scale = jax.nn.softplus(jnp.diagonal(params["upper"])) + MIN_SCALE
        return lower, jnp.triu(params["upper"], 1) + jnp.diag(scale), jnp.log(scale).sum()

    def forward(params, x, context=None):
        del context
        lower, upper, log_det = factors(params)
        y = jnp.matmul(jnp.matmul(x, upper.T, precision="highest"), lower.T, precision="highest")
        return y, no_change(x) + log_det

    def inverse(params, y, context=None):
        del context
        lower, upper, log_det = factors(params)
        solve = jax.scipy.linalg.solve_triangular
        x = solve(upper, solve(lower, y.T, lower=True, unit_diagonal=True)).T
        return x, no_change(y) - log_det

    return Bijector(init, forward, inverse)


def reverse() -> Bijector:
    """The last axis in the opposite order."""

    def flip(params, x, context=None):
        del params, context
        return x[..., ::-1], no_change(x)

    return Bijector(lambda key, x=None, context=None: (), flip, flip)


def logit(alpha: float, levels: int) -> Bijector:
    """y = logit(alpha + (1 - 2 alpha) v), where v in (0, 1) is a dequantised pixel x.

    v is 0 and 1 half a level outside of the pixels -1 and 1. Where alpha + (1 - 2 alpha) v is not in (0, 1)
    there is no such y: the density of the data is 0 there, and log_det -inf. Dinh et al. 2017, section 4.1.
    """
    slope = 0.5 * (levels - 1) / levels * (1 - 2 * alpha)

    def init(key, x=None, context=None):
        del key, x, context
        return ()

    def forward(params, x, context=None):
        del params, context
        s = 0.5 + slope * x
        inside = (s > 0) & (s < 1)
        s = jnp.where(inside, s, 0.5)
        log_s, log_rest = jnp.log(s), jnp.log1p(-s)
        log_slope = jnp.where(inside, math.log(slope) - log_s - log_rest, -jnp.inf)
        return log_s - log_rest, sum_dims(log_slope)

    def inverse(params, y, context=None):
        del params, context
        log_slope = math.log(slope) - jax.nn.log_sigmoid(y) - jax.nn.log_sigmoid(-y)
        return (jax.nn.sigmoid(y) - 0.5) / slope, -sum_dims(log_slope)

    return Bijector(init, forward, inverse)


# Pieces


def no_change(x: Array) -> Array:
    """A log_det of zeros (B,), float32 at least."""
    return jnp.zeros(x.shape[0], jnp.promote_types(x.dtype, jnp.float32))


def _of_parameters(x):
    """x with the type that parameters have at least: what goes round a loop must have it from the start."""
    return x.astype(jnp.promote_types(x.dtype, jnp.zeros(()).dtype))


def sum_dims(log_slope: Array) -> Array:
    """The log_det (B,) of an elementwise map with these log-slopes (B, ...)."""
    return log_slope.sum(tuple(range(1, log_slope.ndim)))


def inverse_softplus(y: Array) -> Array:
    """The x with softplus(x) = y, for y > 0."""
    return y + jnp.log(-jnp.expm1(-y))
