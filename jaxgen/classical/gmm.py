"""Gaussian mixture model, fitted by expectation maximisation (Dempster, Laird & Rubin 1977).

    p(x) = sum_k w_k N(x; m_k, S_k)

One step takes the responsibilities r_nk = p(k | x_n) under the present parameters, then sets the parameters
to the weighted moments: w_k = mean r_k, m_k = E_r[x], S_k = E_r[(x - m_k)(x - m_k)']. No step lowers the
likelihood of the data it is given. `fit` runs whole-data steps to convergence in one compiled loop, from
k-means++ seeds (Arthur & Vassilvitskii 2007); `train_step` averages the moments of batches over time
(stepwise EM, Cappe & Moulines 2009), and with `stepwise_power=0` is the plain step on its batch.

Departs from the textbook: `regularization` is added to the diagonal of every covariance, and lowers the
likelihood by as much; a component that no data support keeps its mean and covariance.
"""

import dataclasses
import functools
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen.types import Batch, Metrics, observed

CHUNK = 2048
"""Examples whose responsibilities are held at a time."""

UNROLLED = 32
"""Most dimensions whose axis-aligned terms are written out one by one."""

EMPTY = 1e-6
"""Share of the data below which a component counts as empty."""


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Hyperparameters of the Gaussian mixture."""

    shape: tuple[int, ...] = (2,)
    """Shape of one example; flattened to D numbers."""
    num_components: int = 8
    """Gaussians in the mixture."""
    covariance: Literal["full", "tied", "diagonal", "spherical"] = "full"
    """Of each component: any, one for all of them, axis-aligned, or a multiple of the identity."""
    regularization: float = 1e-3
    """Added to the variances, in squared units of the data: no component can collapse."""
    max_steps: int = 200
    """Most EM steps of `fit`."""
    tolerance: float = 1e-4
    """`fit` stops when a step gains less than this in mean log-likelihood, nats; 0 for all the steps."""
    num_restarts: int = 1
    """Seeds that `fit` starts from at once; the likeliest end is kept."""
    kmeans_steps: int = 5
    """Steps of k-means between seeding and EM."""
    stepwise_power: float = 0.7
    """`train_step` gives the moments of step t the weight (t + 1)^-power, in (0.5, 1]; 0 forgets the past."""

    @property
    def num_dims(self) -> int:
        return math.prod(self.shape)


class Params(NamedTuple):
    """The mixture."""

    weights: Array  # (K,), sum 1
    means: Array  # (K, D)
    covariances: Array  # (K, D, D) full, (D, D) tied, (K, D) diagonal, (K,) spherical


class Moments(NamedTuple):
    """Means over examples of r, r (x - o) and r (x - o)^2 about origins o; the last as the covariances."""

    weight: Array  # (K,)
    first: Array  # (K, D)
    second: Array


class State(NamedTuple):
    """What training changes."""

    step: Array
    key: Array
    params: Params
    moments: Moments  # about 0, averaged over the steps so far


def init(key: Array, cfg: Config, batch: Batch | None = None) -> State:
    """A fresh state: moments of the k-means clusters of `batch`, or random means and unit covariances."""
    seed_key, step_key = jax.random.split(key)
    if batch is None:
        shape = (cfg.num_components, cfg.num_dims)
        one = jnp.ones(()) if cfg.covariance in ("diagonal", "spherical") else jnp.eye(cfg.num_dims)
        params = Params(
            jnp.full(cfg.num_components, 1 / cfg.num_components),
            jax.random.normal(seed_key, shape),
            jnp.broadcast_to(one, _covariance_shape(cfg)),
        )
    else:
        params = _seed(seed_key, _flat(observed(batch)), cfg)
    return State(jnp.zeros((), jnp.int32), step_key, params, zero_moments(cfg, params.means.dtype))


def train_step(state: State, batch: Batch, cfg: Config) -> tuple[State, Metrics]:
    """One EM step on `batch["x"]` or `batch["image"]`, (B, *shape); "nll" is that before the step."""
    params = state.params
    moments, log_density = _expectation(_flat(observed(batch)), params, jnp.zeros_like(params.means), cfg)
    rate = (state.step + 1.0) ** -cfg.stepwise_power
    moments = jax.tree.map(lambda old, new: old + rate * (new - old), state.moments, moments)
    params = maximisation(moments, jnp.zeros_like(params.means), params, cfg)
    nll = -log_density.mean()
    metrics = {"nll": nll, "smallest_weight": params.weights.min()}
    return state._replace(step=state.step + 1, params=params, moments=moments), metrics


def fit(x: Any, cfg: Config, params: Params | None = None, key: Array | None = None) -> State:
    """EM on all of x (N, *shape) until `cfg.tolerance` or `cfg.max_steps`, compiled as one loop.

    Starts from `params`, or else from k-means++ seeds drawn with `key` (`jax.random.key(0)` if not given), as
    many as `cfg.num_restarts`. `state.step` counts the steps taken.

    Raises:
        ValueError: x that is not (N, *shape), has values that are not finite or fewer examples than
            components; a component that collapsed onto too few points.
    """
    x = jnp.asarray(x)
    x = _flat(x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.float32))
    if x.ndim != 2 or x.shape[1] != cfg.num_dims:
        raise ValueError(f"x must be (N, {cfg.num_dims}) for shape {cfg.shape}, not {x.shape}")
    if len(x) < cfg.num_components:
        raise ValueError(f"{cfg.num_components} components need as many examples, not {len(x)}")
    if not isinstance(x, jax.core.Tracer) and not bool(jnp.isfinite(x).all()):
        raise ValueError("x has values that are not finite (NaN or infinity)")
    key = jax.random.key(0) if key is None else key
    state, log_likelihood = _fit(x, cfg, params, key)
    if not isinstance(x, jax.core.Tracer) and not bool(jnp.isfinite(log_likelihood)):
        raise ValueError("a component collapsed onto too few points: raise `regularization`")
    return state


def sample(key: Array, state: State, n: int, cfg: Config) -> Array:
    """n draws, (n, *shape)."""
    weights, means, covariances = state.params
    component_key, noise_key = jax.random.split(key)
    component = jax.random.categorical(component_key, jnp.log(weights), shape=(n,))
    noise = jax.random.normal(noise_key, (n, cfg.num_dims), means.dtype)
    if cfg.covariance == "spherical":
        noise = noise * jnp.sqrt(covariances)[component, None]
    elif cfg.covariance == "diagonal":
        noise = noise * jnp.sqrt(covariances)[component]
    elif cfg.covariance == "tied":
        noise = noise @ jnp.linalg.cholesky(covariances).T
    else:
        noise = jnp.einsum("nde,ne->nd", jnp.linalg.cholesky(covariances)[component], noise)
    return (means[component] + noise).reshape(n, *cfg.shape)


def measure(cfg: Config) -> str:
    """What `log_prob` is of: a density of real numbers."""
    del cfg
    return "density"


def log_prob(state: State, x: Array, cfg: Config) -> Array:
    """Exact log p(x) of x (B, *shape) in nats, (B,)."""
    return jax.nn.logsumexp(_log_joint(_flat(x), state.params, cfg), 1)


def responsibilities(state: State, x: Array, cfg: Config) -> Array:
    """p(k | x) of x (B, *shape), (B, K)."""
    return jax.nn.softmax(_log_joint(_flat(x), state.params, cfg), 1)


def num_free_parameters(cfg: Config) -> int:
    """Numbers that the data determine: weights, means and covariances without their symmetric halves."""
    k, d = cfg.num_components, cfg.num_dims
    triangle = d * (d + 1) // 2
    covariances = {"full": k * triangle, "tied": triangle, "diagonal": k * d, "spherical": k}
    return k - 1 + k * d + covariances[cfg.covariance]


def bic(state: State, x: Array, cfg: Config) -> Array:
    """Bayesian information criterion of data x (N, *shape), (): lower is better (Schwarz 1978)."""
    return -2 * log_prob(state, x, cfg).sum() + num_free_parameters(cfg) * math.log(len(x))


def aic(state: State, x: Array, cfg: Config) -> Array:
    """Akaike's information criterion of data x (N, *shape), (): lower is better (Akaike 1974)."""
    return -2 * log_prob(state, x, cfg).sum() + 2 * num_free_parameters(cfg)


def kmeans_plus_plus(key: Array, x: Array, num_centers: int) -> Array:
    """Seeds among the examples x (N, D), each drawn by its squared distance to those before it, (K, D)."""

    def place(index, carry):
        centers, squared = carry
        row = jax.random.categorical(jax.random.fold_in(key, index), jnp.log(squared))
        center = x[row]
        return centers.at[index].set(center), jnp.minimum(squared, ((x - center) ** 2).sum(1))

    start = jnp.zeros((num_centers, x.shape[1]), x.dtype), jnp.ones(len(x), x.dtype)
    centers, squared = place(0, start)
    squared = ((x - centers[0]) ** 2).sum(1)
    return jax.lax.fori_loop(1, num_centers, place, (centers, squared))[0]


@functools.partial(jax.jit, static_argnums=1)
def _fit(x, cfg, params, key):
    def run(key):
        start = _seed(key, x, cfg) if params is None else jax.tree.map(jnp.asarray, params)

        def body(carry):
            params, previous, _, steps = carry
            moments, log_density = _expectation(x, params, params.means, cfg)
            return maximisation(moments, params.means, params, cfg), log_density.mean(), previous, steps + 1

        def unfinished(carry):
            _, current, previous, steps = carry
            return (steps < cfg.max_steps) & ((steps < 2) | (current - previous >= cfg.tolerance))

        low = jnp.full((), -jnp.inf, x.dtype)
        params_, _, _, steps = jax.lax.while_loop(unfinished, body, (start, low, low, jnp.int32(0)))
        moments, log_density = _expectation(x, params_, jnp.zeros_like(params_.means), cfg)
        return State(steps, key, params_, moments), log_density.mean()

    keys = jax.random.split(key, cfg.num_restarts if params is None else 1)
    found, log_likelihood = jax.vmap(run)(keys)
    best = jnp.nanargmax(jnp.where(jnp.isfinite(log_likelihood), log_likelihood, -jnp.inf))
    state = jax.tree.map(lambda leaf: leaf[best], found)
    return state._replace(key=key), log_likelihood[best]


def _seed(key, x, cfg):
    """Parameters of the clusters that k-means finds in x (N, D)."""
    means = kmeans_plus_plus(key, x, cfg.num_components)

    def assign(means):
        squared = (means**2).sum(1) - 2 * _matmul(x, means.T)
        return jax.nn.one_hot(squared.argmin(1), cfg.num_components, dtype=x.dtype)

    def lloyd(_, means):
        member = assign(means)
        count = member.sum(0)[:, None]
        return jnp.where(count > 0, _matmul(member.T, x) / jnp.maximum(count, 1), means)

    means = jax.lax.fori_loop(0, cfg.kmeans_steps, lloyd, means)
    total = jnp.cov(x.T, ddof=0).reshape(cfg.num_dims, cfg.num_dims)
    whole = {
        "full": total,
        "tied": total,
        "diagonal": jnp.diag(total),
        "spherical": jnp.diag(total).mean(),
    }[cfg.covariance]
    broad = Params(
        jnp.full(cfg.num_components, 1 / cfg.num_components, x.dtype),
        means,
        jnp.broadcast_to(whole, _covariance_shape(cfg)) + _regular(cfg, x.dtype),
    )
    moments = jax.tree.map(lambda a: a / len(x), moment_sums(x, assign(means), means, cfg))
    return maximisation(moments, means, broad, cfg)


def _expectation(x, params, origin, cfg):
    """Moments of x (N, D) about origins (K, D) under the posterior of the components, and log p(x) (N,)."""

    def chunk(rows):
        log_joint = _log_joint(rows, params, cfg)
        log_density = jax.nn.logsumexp(log_joint, 1)
        return moment_sums(rows, jnp.exp(log_joint - log_density[:, None]), origin, cfg), log_density

    def accumulate(total, rows):
        sums, log_density = chunk(rows)
        return jax.tree.map(jnp.add, total, sums), log_density

    count = (len(x) - 1) // CHUNK  # whole ones; the rest is never empty
    whole = count * CHUNK
    chunks = x[:whole].reshape(count, CHUNK, x.shape[1])
    sums, log_density = jax.lax.scan(accumulate, zero_moments(cfg, x.dtype), chunks)
    sums, rest = accumulate(sums, x[whole:])
    return jax.tree.map(lambda a: a / len(x), sums), jnp.concatenate([log_density.reshape(-1), rest])


def moment_sums(x: Array, weights: Array, origin: Array, cfg: Config) -> Moments:
    """N times the moments of x (N, D) about origins (K, D) under weights (N, K)."""
    d = x.shape[1]
    weight = weights.sum(0)
    first = _matmul(weights.T, x) - weight[:, None] * origin
    if cfg.covariance in ("full", "tied"):
        centred = x[:, None] - origin  # (N, K, D)
        weighted = weights[..., None] * centred
        if cfg.covariance == "tied":
            second = _matmul(weighted.reshape(-1, d).T, centred.reshape(-1, d))
        else:
            second = jnp.einsum("nkd,nke->kde", weighted, centred, precision="highest")
    else:
        second = _matmul(weights.T, x**2) - 2 * origin * first - weight[:, None] * origin**2
        second = second.mean(1) if cfg.covariance == "spherical" else second
    return Moments(weight, first, second)


def about_zero(moments: Moments, origin: Array, cfg: Config) -> Moments:
    """Moments about origins (K, D) as moments about 0."""
    weight, first, second = moments
    total = first + weight[:, None] * origin
    if cfg.covariance in ("full", "tied"):
        shift = origin[:, :, None] * total[:, None] + first[:, :, None] * origin[:, None]
        second = second + (shift.sum(0) if cfg.covariance == "tied" else shift)
    else:
        shift = origin * (total + first)
        second = second + (shift.mean(1) if cfg.covariance == "spherical" else shift)
    return Moments(weight, total, second)


def maximisation(moments: Moments, origin: Array, previous: Params, cfg: Config) -> Params:
    """Parameters whose moments these are; an empty component keeps its mean and covariance."""
    weight, first, second = moments
    empty = weight < EMPTY
    safe = jnp.where(empty, 1.0, weight)
    shift = first / safe[:, None]
    means = jnp.where(empty[:, None], previous.means, origin + shift)
    if cfg.covariance == "full":
        covariances = second / safe[:, None, None] - shift[:, :, None] * shift[:, None, :]
    elif cfg.covariance == "tied":
        covariances = second - _matmul((weight[:, None] * shift).T, shift)
    elif cfg.covariance == "diagonal":
        covariances = jnp.maximum(second / safe[:, None] - shift**2, 0.0)
    else:
        covariances = jnp.maximum(second / safe - (shift**2).mean(1), 0.0)
    covariances = covariances + _regular(cfg, means.dtype)
    if cfg.covariance != "tied":
        kept = empty.reshape(-1, *(1,) * (covariances.ndim - 1))
        covariances = jnp.where(kept, previous.covariances, covariances)
    return Params(weight / weight.sum(), means, covariances)


def _log_joint(x, params, cfg):
    """log w_k + log N(x; m_k, S_k), (N, K)."""
    return jnp.log(params.weights) + log_densities(x, params.means, params.covariances, cfg)


def log_densities(x: Array, means: Array, covariances: Array, cfg: Config) -> Array:
    """log N(x; m_k, S_k) of x (N, D) under each component, in nats, (N, K)."""
    k, d = means.shape
    if cfg.covariance in ("full", "tied"):
        factor = jnp.linalg.cholesky(covariances)
        log_det = jnp.log(jnp.diagonal(factor, axis1=-2, axis2=-1)).sum(-1)
        identity = jnp.broadcast_to(jnp.eye(d, dtype=x.dtype), factor.shape)
        whitening = jax.lax.linalg.triangular_solve(factor, identity, left_side=True, lower=True)
        whitening = jnp.broadcast_to(whitening, (k, d, d))
        # One product for all components: (N, D) by (D, K D).
        offset = jnp.einsum("kde,ke->kd", whitening, means, precision="highest")
        y = _matmul(x, whitening.reshape(k * d, d).T).reshape(-1, k, d) - offset
        squared = (y**2).sum(-1)
    else:
        variances = covariances[:, None] if cfg.covariance == "spherical" else covariances
        variances = jnp.broadcast_to(variances, means.shape)
        log_det = 0.5 * jnp.log(variances).sum(1)
        if (
            d <= UNROLLED
        ):  # one pass over (N, K), 40 times faster on CPU than summing a last axis of (N, K, D)
            precision = 1 / variances
            squared = sum((x[:, i, None] - means[:, i]) ** 2 * precision[:, i] for i in range(d))
        else:
            squared = ((x[:, None] - means) ** 2 / variances).sum(-1)
    return -0.5 * (squared + d * math.log(2 * math.pi)) - log_det


def _covariance_shape(cfg):
    k, d = cfg.num_components, cfg.num_dims
    return {"full": (k, d, d), "tied": (d, d), "diagonal": (k, d), "spherical": (k,)}[cfg.covariance]


def _regular(cfg, dtype):
    one = 1.0 if cfg.covariance in ("diagonal", "spherical") else jnp.eye(cfg.num_dims, dtype=dtype)
    return jnp.asarray(cfg.regularization * one, dtype)


def zero_moments(cfg: Config, dtype: Any = jnp.float32) -> Moments:
    """Those of no data."""
    k, d = cfg.num_components, cfg.num_dims
    return Moments(jnp.zeros(k, dtype), jnp.zeros((k, d), dtype), jnp.zeros(_covariance_shape(cfg), dtype))


def _matmul(a, b):
    return jnp.matmul(a, b, precision="highest")


def _flat(x):
    return x.reshape(x.shape[0], -1)
