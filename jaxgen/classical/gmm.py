"""Gaussian mixture model, fitted by expectation maximisation (Dempster, Laird & Rubin 1977).

    p(x) = sum_k w_k N(x; m_k, S_k)

One step computes the responsibilities r_nk = p(k | x_n) under the current parameters and then sets the
parameters to the weighted moments: w_k = mean r_k, m_k = E_r[x], S_k = E_r[(x - m_k)(x - m_k)']. No step
lowers the likelihood of the data it is given. `fit` runs whole-data steps to convergence in one compiled
loop, initialised by k-means++ (Arthur & Vassilvitskii 2007); `train_step` averages the moments of batches
over time (stepwise EM, Cappe & Moulines 2009), and with `stepwise_power=0` is the plain step on its batch.

Departs from the textbook: `regularization` is added to the diagonal of every covariance, which lowers the
likelihood slightly; a component that is responsible for no data keeps its mean and covariance.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen import values
from jaxgen.arguments import checked
from jaxgen.classical import documents, gaussians
from jaxgen.classical.gaussians import Gaussians, matmul
from jaxgen.fields import Fraction, NonNegativeFloat, NonNegativeInt, PositiveInt
from jaxgen.moments import Covariance, Moments
from jaxgen.types import Batch, Metrics, observed

CHUNK = 2048
"""Examples whose responsibilities are held at a time."""


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(values.Value):
    """Hyperparameters of the Gaussian mixture."""

    shape: tuple[PositiveInt, ...] = (2,)
    """Shape of one example; flattened to D numbers."""
    num_components: PositiveInt = 8
    """Gaussians in the mixture."""
    covariance: Covariance = "full"
    """Covariance of each component: unrestricted, one shared by all, axis-aligned, or a multiple of I."""
    regularization: NonNegativeFloat = 1e-3
    """Number added to the variances, in squared units of the data, so that no component collapses."""
    max_steps: NonNegativeInt = 200
    """Maximum number of EM steps of `fit`."""
    tolerance: NonNegativeFloat = 1e-4
    """`fit` stops when a step raises the mean log-likelihood by less than this, in nats; 0 never stops it."""
    num_restarts: PositiveInt = 1
    """Number of initialisations that `fit` runs at once; the result of highest likelihood is kept."""
    kmeans_steps: NonNegativeInt = 5
    """Steps of k-means between k-means++ and EM."""
    stepwise_power: Fraction = 0.7
    """`train_step` gives the moments of step t the weight (t + 1)^-power, in (0.5, 1]; 0 forgets the past."""

    @property
    def num_dims(self) -> int:
        return math.prod(self.shape)


class Params(NamedTuple):
    """The mixture."""

    weights: Array  # (K,), sum 1
    means: Array  # (K, D)
    covariances: Array  # (K, D, D) full, (D, D) tied, (K, D) diagonal, (K,) spherical


class State(NamedTuple):
    """What training changes."""

    step: Array
    key: Array
    params: Params
    moments: Moments  # averaged over the steps so far; the weights are shares of the data


@checked
def init(key: Array, cfg: Config, batch: Batch | None = None) -> State:
    """A fresh state: moments of the k-means clusters of `batch`, or random means and unit covariances."""
    seed_key, step_key = jax.random.split(key)
    k, d = cfg.num_components, cfg.num_dims
    if batch is None:
        means = jax.random.normal(seed_key, (k, d))
        params = Params(jnp.full(k, 1 / k, means.dtype), means, gaussians.identity(k, d, cfg.covariance))
    else:
        params = _seed(seed_key, _flat(jnp.asarray(observed(batch), float)), cfg)
    moments = gaussians.no_moments(k, d, cfg.covariance, params.means.dtype)
    return State(jnp.zeros((), jnp.int32), step_key, params, moments)


@checked
def train_step(state: State, batch: Batch, cfg: Config) -> tuple[State, Metrics]:
    """One EM step on `batch["x"]` or `batch["image"]`, (B, *shape); "nll" is that before the step."""
    moments, log_density = _expectation(_flat(observed(batch)), state.params, cfg)
    rate = (state.step + 1.0) ** -cfg.stepwise_power
    moments = gaussians.blend(state.moments, moments, rate, cfg.covariance)
    params = _maximisation(moments, state.params, cfg)
    metrics = {"nll": -log_density.mean(), "smallest_weight": params.weights.min()}
    return state._replace(step=state.step + 1, params=params, moments=moments), metrics


def fit(x: Any, cfg: Config, params: Params | None = None, key: Array | None = None) -> State:
    """EM on all of x (N, *shape) until `cfg.tolerance` or `cfg.max_steps`, compiled as one loop.

    It is initialised from `params`, or `cfg.num_restarts` times by k-means++ with `key` (`jax.random.key(0)`
    if not given). `state.step` counts the steps taken.

    Raises:
        ValueError: x that is not (N, *shape), has values that are not finite or fewer examples than
            components; a component that collapsed onto too few points.
    """
    x = _flat(documents.floating(x))
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


@checked
def sample(key: Array, state: State, n: int, cfg: Config) -> Array:
    """n draws, (n, *shape)."""
    weights, means, covariances = state.params
    component_key, noise_key = jax.random.split(key)
    component = jax.random.categorical(component_key, jnp.log(weights), shape=(n,))
    return gaussians.draw(noise_key, component, means, covariances, cfg.covariance).reshape(n, *cfg.shape)


def measure(cfg: Config) -> str:
    """What `log_prob` is of: a density of real numbers."""
    del cfg
    return "density"


@checked
def log_prob(state: State, x: Array, cfg: Config) -> Array:
    """Exact log p(x) of x (B, *shape) in nats, (B,)."""
    return jax.nn.logsumexp(_log_joint(_flat(x), state.params, cfg), 1)


def responsibilities(state: State, x: Array, cfg: Config) -> Array:
    """p(k | x) of x (B, *shape), (B, K)."""
    return jax.nn.softmax(_log_joint(_flat(x), state.params, cfg), 1)


def num_free_parameters(cfg: Config) -> int:
    """Number of free parameters; entries of a covariance that are equal by symmetry count once."""
    k, d = cfg.num_components, cfg.num_dims
    triangle = d * (d + 1) // 2
    covariances = {"full": k * triangle, "tied": triangle, "diagonal": k * d, "spherical": k}
    return k - 1 + k * d + covariances[cfg.covariance]


def bic(state: State, x: Array, cfg: Config) -> Array:
    """Bayesian information criterion of data x (N, *shape), (): lower is better (Schwarz 1978)."""
    return -2 * log_prob(state, x, cfg).sum() + num_free_parameters(cfg) * math.log(len(x))


def kmeans_plus_plus(key: Array, x: Array, num_centers: int) -> Array:
    """K of the examples x (N, D), drawn in turn by the squared distance to those drawn before, (K, D)."""

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
            moments, log_density = _expectation(x, params, cfg)
            return _maximisation(moments, params, cfg), log_density.mean(), previous, steps + 1

        def unfinished(carry):
            _, current, previous, steps = carry
            gains = (steps < 2) | (current - previous >= cfg.tolerance) | (cfg.tolerance == 0)
            return (steps < cfg.max_steps) & gains

        low = jnp.full((), -jnp.inf, x.dtype)
        params_, _, _, steps = jax.lax.while_loop(unfinished, body, (start, low, low, jnp.int32(0)))
        moments, log_density = _expectation(x, params_, cfg)
        return State(steps, key, params_, moments), log_density.mean()

    keys = jax.random.split(key, cfg.num_restarts if params is None else 1)
    found, log_likelihood = jax.vmap(run)(keys)
    best = jnp.nanargmax(jnp.where(jnp.isfinite(log_likelihood), log_likelihood, -jnp.inf))
    state = jax.tree.map(lambda leaf: leaf[best], found)
    return state._replace(key=key), log_likelihood[best]


def _seed(key, x, cfg):
    """Parameters of the clusters that k-means finds in x (N, D)."""
    center = x.mean(0)
    x = x - center  # sums and distances keep their digits far from the origin
    means = kmeans_plus_plus(key, x, cfg.num_components)

    def assign(means):
        if cfg.num_dims <= gaussians.UNROLLED:
            squared = gaussians.squared_distances(x, means)
        else:
            squared = (means**2).sum(1) - 2 * matmul(x, means.T)
        return jax.nn.one_hot(squared.argmin(1), cfg.num_components, dtype=x.dtype)

    def lloyd(_, means):
        member = assign(means)
        count = member.sum(0)[:, None]
        return jnp.where(count > 0, matmul(member.T, x) / jnp.maximum(count, 1), means)

    means = jax.lax.fori_loop(0, cfg.kmeans_steps, lloyd, means)
    ones, origin = jnp.ones((len(x), 1), x.dtype), jnp.zeros((1, cfg.num_dims), x.dtype)
    total = gaussians.moment_sums(x, ones, origin, cfg.covariance).scatter / len(x)
    unit = gaussians.identity(1, cfg.num_dims, cfg.covariance, x.dtype)
    k = cfg.num_components
    shape = gaussians.covariance_shape(k, cfg.num_dims, cfg.covariance)
    covariances = jnp.broadcast_to(total + cfg.regularization * unit, shape)
    broad = Params(jnp.full(k, 1 / k, x.dtype), means, covariances)
    sums = gaussians.moment_sums(x, assign(means), means, cfg.covariance)
    sums = jax.tree.map(lambda a: a / len(x), sums)
    found = _maximisation(gaussians.centred(sums, means, cfg.covariance), broad, cfg)
    return found._replace(means=found.means + center)


def _expectation(x, params, cfg):
    """Moments of x (N, D) under the posterior of the components, as shares, and log p(x) (N,)."""

    def accumulate(total, rows):
        log_joint = _log_joint(rows, params, cfg)
        log_density = jax.nn.logsumexp(log_joint, 1)
        posterior = jnp.exp(log_joint - log_density[:, None])
        sums = gaussians.moment_sums(rows, posterior, params.means, cfg.covariance)
        return jax.tree.map(jnp.add, total, sums), log_density

    count = (len(x) - 1) // CHUNK  # whole ones; the rest is never empty
    whole = count * CHUNK
    chunks = x[:whole].reshape(count, CHUNK, x.shape[1])
    dtype = jnp.result_type(x, params.means)
    zero = gaussians.no_moments(cfg.num_components, cfg.num_dims, cfg.covariance, dtype)
    sums, log_density = jax.lax.scan(accumulate, zero, chunks)
    sums, rest = accumulate(sums, x[whole:])
    sums = jax.tree.map(lambda a: a / len(x), sums)
    moments = gaussians.centred(sums, params.means, cfg.covariance)
    return moments, jnp.concatenate([log_density.reshape(-1), rest])


def _maximisation(moments, previous, cfg):
    before = Gaussians(previous.means, previous.covariances)
    found = gaussians.maximisation(moments, before, cfg.covariance, cfg.regularization)
    return Params(moments.weight / moments.weight.sum(), *found)


def _log_joint(x, params, cfg):
    """log w_k + log N(x; m_k, S_k), (N, K)."""
    weights, means, covariances = params
    return jnp.log(weights) + gaussians.log_densities(x, means, covariances, cfg.covariance)


def _flat(x):
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))
