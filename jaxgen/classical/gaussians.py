"""Densities, draws and weighted moments of K Gaussians, whatever the shape of their covariances.

Covariances are (K, D, D) if full, (D, D) if tied, (K, D) if diagonal and (K,) if spherical.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen import moments
from jaxgen.moments import Covariance, Moments

UNROLLED = 32
"""Largest number of dimensions whose axis-aligned terms are written out one by one."""

ROWS = 128
"""Examples whose axis-aligned terms are added up in one pass, few enough for the cache."""

EMPTY = 1e-6
"""Share of the data below which a component counts as empty."""


class Gaussians(NamedTuple):
    """Means and covariances."""

    means: Array  # (K, D)
    covariances: Array


def covariance_shape(k: int, d: int, covariance: Covariance) -> tuple[int, ...]:
    """Shape of the covariances of k Gaussians of d dimensions."""
    return {"full": (k, d, d), "tied": (d, d), "diagonal": (k, d), "spherical": (k,)}[covariance]


def identity(k: int, d: int, covariance: Covariance, dtype: Any = float) -> Array:
    """Unit covariances."""
    one = jnp.eye(d, dtype=dtype) if covariance in ("full", "tied") else jnp.ones((), dtype)
    return jnp.broadcast_to(one, covariance_shape(k, d, covariance))


def no_moments(k: int, d: int, covariance: Covariance, dtype: Any = float) -> Moments:
    """The moments of no data."""
    scatter = jnp.zeros(covariance_shape(k, d, covariance), dtype)
    return Moments(jnp.zeros(k, dtype), jnp.zeros((k, d), dtype), scatter)


def log_densities(x: Array, means: Array, covariances: Array, covariance: Covariance) -> Array:
    """log N(x; m_k, S_k) of x (N, D) under each Gaussian, in nats, (N, K)."""
    k, d = means.shape
    center = means.mean(0)
    x, means = x - center, means - center
    if covariance in ("full", "tied"):
        factor = jnp.linalg.cholesky(covariances)
        log_det = jnp.log(jnp.diagonal(factor, axis1=-2, axis2=-1)).sum(-1)
        eye = jnp.broadcast_to(jnp.eye(d, dtype=x.dtype), factor.shape)
        whitening = jax.lax.linalg.triangular_solve(factor, eye, left_side=True, lower=True)
        whitening = jnp.broadcast_to(whitening, (k, d, d))
        # One product for all components: (N, D) by (D, K D).
        offset = jnp.einsum("kde,ke->kd", whitening, means, precision="highest")
        y = matmul(x, whitening.reshape(k * d, d).T).reshape(-1, k, d) - offset
        squared = (y**2).sum(-1)
    else:
        variances = covariances[:, None] if covariance == "spherical" else covariances
        variances = jnp.broadcast_to(variances, means.shape)
        log_det = 0.5 * jnp.log(variances).sum(1)
        squared = squared_distances(x, means, 1 / variances)
    return -0.5 * (squared + d * math.log(2 * math.pi)) - log_det


def squared_distances(x: Array, centers: Array, precision: Array | None = None) -> Array:
    """Sum over dimensions of (x - c)^2 of x (N, D) from centers (K, D), times a precision (K, D), (N, K)."""
    (k, d), scale = centers.shape, jnp.ones_like(centers) if precision is None else precision
    # One pass over (N, K) is 40 times faster on CPU than summing the last axis of (N, K, D).
    if d <= UNROLLED:
        terms = ((x[:, i, None] - centers[:, i]) ** 2 * scale[:, i] for i in range(d))
        return sum(terms, jnp.zeros((len(x), k), x.dtype))
    return ((x[:, None] - centers) ** 2 * scale).sum(-1)


def draw(key: Array, component: Array, means: Array, covariances: Array, covariance: Covariance) -> Array:
    """A draw from the Gaussian with each number of `component` (N,), (N, D)."""
    noise = jax.random.normal(key, (len(component), means.shape[1]), means.dtype)
    if covariance == "spherical":
        noise = noise * jnp.sqrt(covariances)[component, None]
    elif covariance == "diagonal":
        noise = noise * jnp.sqrt(covariances)[component]
    elif covariance == "tied":
        noise = matmul(noise, jnp.linalg.cholesky(covariances).T)
    else:  # one Gaussian after another: N factors would not fit into memory for pictures

        def color(drawn, of_one):
            index, factor = of_one
            return jnp.where(component[:, None] == index, matmul(noise, factor.T), drawn), None

        numbers = jnp.arange(len(means))
        noise, _ = jax.lax.scan(color, noise, (numbers, jnp.linalg.cholesky(covariances)))
    return means[component] + noise


def of_classes(x: Array, member: Array, covariance: Covariance) -> Moments:
    """Moments of x (N, D) by class, member (N, K) of 0 and 1; the mean of a class without examples is 0."""
    d, (_, k) = x.shape[1], member.shape
    weight, origin = member.sum(0), x.mean(0)
    centred = x - origin
    shift = matmul(member.T, centred) / jnp.maximum(weight, 1)[:, None]
    residual = (centred - matmul(member, shift)) * member.sum(1, keepdims=True)
    if covariance == "full":
        by_class = (member[:, :, None] * residual[:, None]).reshape(len(x), -1)
        scatter = matmul(by_class.T, residual).reshape(k, d, d)
    elif covariance == "tied":
        scatter = matmul(residual.T, residual)
    else:
        scatter = matmul(member.T, residual**2)
        scatter = scatter.mean(1) if covariance == "spherical" else scatter
    return Moments(weight, jnp.where(weight[:, None] > 0, origin + shift, 0.0), scatter)


def moment_sums(x: Array, weights: Array, origin: Array, covariance: Covariance) -> Moments:
    """Sums over x (N, D) of r, r (x - o) and r (x - o)(x - o)' with weights r (N, K), about origins o (K, D).

    They can be added up over parts of the data, and `centred` makes moments of them. They lose digits where
    an origin is many standard deviations away from the mean of its examples.
    """
    d = x.shape[1]
    weight = weights.sum(0)
    if covariance in ("diagonal", "spherical"):
        first, second = _axis_sums(x, weights, origin)
        return Moments(weight, first, second.mean(1) if covariance == "spherical" else second)
    apart = x[:, None] - origin  # (N, K, D)
    weighted = weights[..., None] * apart
    if covariance == "tied":
        second = matmul(weighted.reshape(-1, d).T, apart.reshape(-1, d))
    else:
        second = jnp.einsum("nkd,nke->kde", weighted, apart, precision="highest")
    return Moments(weight, weighted.sum(0), second)


def _axis_sums(x, weights, origin):
    """Sums of r (x - o) and r (x - o)^2, (K, D) each; of blocks of (ROWS, K) if there are few dimensions."""

    def of_block(total, rows):
        x, weights = rows
        apart = [x[:, i, None] - origin[:, i] for i in range(x.shape[1])]
        first = jnp.stack([(weights * a).sum(0) for a in apart], 1)
        second = jnp.stack([(weights * a**2).sum(0) for a in apart], 1)
        return (total[0] + first, total[1] + second), None

    def of_one(_, inputs):
        weight, origin = inputs
        apart = x - origin
        return None, (weight @ apart, weight @ apart**2)

    if x.shape[1] > UNROLLED:
        return jax.lax.scan(of_one, None, (weights.T, origin))[1]
    missing = -len(x) % ROWS  # rows without weight
    blocks = lambda a: jnp.pad(a, ((0, missing), (0, 0))).reshape(-1, ROWS, a.shape[1])
    zero = jnp.zeros_like(origin)
    return jax.lax.scan(of_block, (zero, zero), (blocks(x), blocks(weights)))[0]


def centred(sums: Moments, origin: Array, covariance: Covariance) -> Moments:
    """Moments of `moment_sums` about origins (K, D); the mean of an empty component is its origin."""
    weight, first, second = sums
    shift = first / jnp.where(weight > 0, weight, 1.0)[:, None]
    return Moments(weight, origin + shift, second - moments.outer(weight, shift, covariance))


def blend(old: Moments, new: Moments, rate: Array | float, covariance: Covariance) -> Moments:
    """(1 - rate) old + rate new, as of distributions: the running average of stepwise EM."""
    scaled = lambda share, m: Moments(share * m.weight, m.mean, share * m.scatter)
    return moments.merge(scaled(1 - rate, old), scaled(rate, new), covariance)


def maximisation(
    found: Moments, previous: Gaussians, covariance: Covariance, regularization: float
) -> Gaussians:
    """The Gaussians with these moments; an empty component keeps its mean and covariance.

    `regularization` is added to the variances. The weights are shares of the data, and `EMPTY` is one.
    """
    weight, mean, scatter = found
    empty = weight < EMPTY
    safe = jnp.where(empty, 1.0, weight)
    axes = lambda a: a.reshape(-1, *(1,) * (scatter.ndim - 1))
    covariances = scatter / (weight.sum() if covariance == "tied" else axes(safe))
    if covariance in ("diagonal", "spherical"):
        covariances = jnp.maximum(covariances, 0.0)
    added = regularization * identity(1, mean.shape[1], covariance, mean.dtype)
    covariances = covariances + (added if covariance == "tied" else added[0])
    if covariance != "tied":
        covariances = jnp.where(axes(empty), previous.covariances, covariances)
    return Gaussians(jnp.where(empty[:, None], previous.means, mean), covariances)


def matmul(a: Array, b: Array) -> Array:
    """The product at full precision, whatever the device."""
    return jnp.matmul(a, b, precision="highest")
