"""Gaussian discriminant analysis (Fisher 1936; Welch 1939).

One Gaussian for each class, and Bayes' rule:

    p(x, c) = pi_c N(x; m_c, S_c),     p(c | x) = p(x, c) / sum_k p(x, k)

With one covariance for all classes the boundaries are linear, p(c | x) = softmax(W x + b); with one for each
they are quadratic. The likelihood has its maximum in closed form: shares, means and covariances of the
classes. `train_step` merges the moments of its batch with those of all batches before (Chan, Golub & LeVeque
1983), so one pass gives what `fit` gives however the data are cut, and centred sums keep float32 sound.

Departs from the textbook: `shrinkage` and `regularization` move the covariances towards a multiple of the
identity (Friedman 1989); a class without examples has probability 0.
"""

import dataclasses
import functools
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen.classical import gmm
from jaxgen.types import Batch, Metrics, observed

CHUNK = 2048
"""Examples whose moments `fit` takes at a time."""


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Hyperparameters of Gaussian discriminant analysis."""

    shape: tuple[int, ...] = (2,)
    """Shape of one example; flattened to D numbers."""
    num_classes: int = 2
    """Classes; labels run from 0."""
    covariance: Literal["shared", "per_class"] = "shared"
    """One for all classes, with linear boundaries, or one for each, with quadratic ones."""
    shrinkage: float = 1e-3
    """Share in [0, 1] of the covariance that is replaced by the identity times its mean variance."""
    regularization: float = 1e-6
    """Added to the variances, in squared units of the data: a class of few examples needs it."""
    ddof: Literal["ml", "unbiased"] = "ml"
    """Divide sums of squares by the examples, or by these less the means they are taken about."""

    @property
    def num_dims(self) -> int:
        return math.prod(self.shape)


class Params(NamedTuple):
    """The Gaussians."""

    weights: Array  # (K,), sum 1
    means: Array  # (K, D)
    covariances: Array  # (D, D) shared, (K, D, D) per class


class Moments(NamedTuple):
    """What the data say."""

    examples: Array  # (K,)
    mean: Array  # (K, D), 0 for a class without examples
    scatter: Array  # sum of (x - mean)(x - mean)', shaped as the covariances


class State(NamedTuple):
    """What training changes."""

    step: Array
    key: Array
    params: Params
    moments: Moments  # of all batches so far


def init(key: Array, cfg: Config, batch: Batch | None = None) -> State:
    """A state that has seen no data: equal weights, zero means, unit covariances. `batch` is not used.

    Raises ValueError for data without classes, and for a shrinkage outside [0, 1].
    """
    if cfg.num_classes < 1:
        raise ValueError("Gaussian discriminant analysis needs labels: num_classes must be at least 1")
    if not 0 <= cfg.shrinkage <= 1:
        raise ValueError(f"shrinkage must be in [0, 1], not {cfg.shrinkage}")
    moments = _no_moments(cfg, jnp.zeros(()).dtype)
    return State(jnp.zeros((), jnp.int32), jnp.copy(key), _params(moments, cfg), moments)


def train_step(state: State, batch: Batch, cfg: Config) -> tuple[State, Metrics]:
    """Merges `batch["image"]` or `batch["x"]`, (B, *shape), with `batch["label"]` (B,).

    Rows with a label outside 0..num_classes - 1 are left out. "nll", of p(x), and "accuracy" are those before
    the step, so on data not seen yet during the first pass.
    """
    x, label = _flat(observed(batch)), batch["label"]
    log_joint = _log_joint(x, state.params, cfg)
    known = (label >= 0) & (label < cfg.num_classes)
    right = (log_joint.argmax(1) == label).sum()
    metrics = {
        "nll": -jax.nn.logsumexp(log_joint, 1).mean(),
        "accuracy": right / jnp.maximum(known.sum(), 1),
    }
    moments = _merge(state.moments, _moments_of(x, label, cfg))
    return state._replace(step=state.step + 1, params=_params(moments, cfg), moments=moments), metrics


def fit(x: Any, label: Any, cfg: Config) -> State:
    """The maximum of the likelihood of x (N, *shape) with labels (N,), in one compiled pass.

    Raises:
        ValueError: x that is not (N, *shape) or has values that are not finite, labels that are not (N,)
            integers in 0..num_classes - 1, a class without examples, a singular covariance.
    """
    x, label = jnp.asarray(x), jnp.asarray(label)
    x = _flat(x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.float32))
    eager = not isinstance(x, jax.core.Tracer) and not isinstance(label, jax.core.Tracer)
    if x.shape[1:] != (cfg.num_dims,) or label.shape != x.shape[:1]:
        raise ValueError(f"x must be (N, {cfg.num_dims}) and label (N,), not {x.shape} and {label.shape}")
    if eager:
        check_labels(label, cfg.num_classes)
        if not bool(jnp.isfinite(x).all()):
            raise ValueError("x has values that are not finite (NaN or infinity)")
    state, smallest = _fit(x, label, cfg)
    if eager and not (np.asarray(smallest) > 0).all():
        where = f" of class {np.argmin(np.asarray(smallest) > 0)}" if cfg.covariance == "per_class" else ""
        raise ValueError(f"the covariance{where} is singular: raise `shrinkage` or `regularization`")
    return state


def sample(key: Array, state: State, n: int, cfg: Config, label: Array | int | None = None) -> Array:
    """n draws, (n, *shape), of the `label` given, one for all or (n,), else of classes by their weight."""
    weights, means, covariances = state.params
    label_key, noise_key = jax.random.split(key)
    if label is None:
        label = jax.random.categorical(label_key, jnp.log(weights), shape=(n,))
    label = jnp.broadcast_to(jnp.asarray(label), (n,))
    noise = jax.random.normal(noise_key, (n, cfg.num_dims), means.dtype)
    factor = jnp.linalg.cholesky(covariances)
    if cfg.covariance == "shared":
        noise = _matmul(noise, factor.T)
    else:  # class after class: n factors would not fit into memory for pictures

        def color(drawn, of_class):
            index, factor = of_class
            return jnp.where(label[:, None] == index, _matmul(noise, factor.T), drawn), None

        noise, _ = jax.lax.scan(color, noise, (jnp.arange(cfg.num_classes), factor))
    return (means[label] + noise).reshape(n, *cfg.shape)


def measure(cfg: Config) -> str:
    """What `log_prob` is of: a density of real numbers."""
    del cfg
    return "density"


def log_prob(state: State, x: Array, cfg: Config) -> Array:
    """Exact log p(x) = log sum_c p(x, c) of x (B, *shape) in nats, (B,)."""
    return jax.nn.logsumexp(_log_joint(_flat(x), state.params, cfg), 1)


def classify(state: State, x: Array, cfg: Config) -> Array:
    """log p(c | x) of x (B, *shape), (B, num_classes); -inf for a class without examples."""
    return jax.nn.log_softmax(_log_joint(_flat(x), state.params, cfg), 1)


def linear_boundary(state: State, cfg: Config) -> tuple[Array, Array]:
    """W (K, D) and b (K,) of p(c | x) = softmax(W x + b), x flat.

    Raises ValueError where every class has a covariance of its own.
    """
    if cfg.covariance != "shared":
        raise ValueError('with covariance="per_class" boundaries are quadratic, with "shared" linear')
    weights, means, covariance = state.params
    w = jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(covariance), True), means.T).T
    return w, jnp.log(weights) - 0.5 * (means * w).sum(1)


def check_labels(label: Any, num_classes: int) -> None:
    """Raises ValueError if labels (N,) are not integers in 0..num_classes - 1, or some class has none."""
    label = np.asarray(label)
    if not np.issubdtype(label.dtype, np.integer):
        raise ValueError(f"labels must be integers, not {label.dtype}")
    if label.size and (label.min() < 0 or label.max() >= num_classes):
        raise ValueError(f"labels must be in 0..{num_classes - 1}, not {label.min()}..{label.max()}")
    missing = np.flatnonzero(np.bincount(label, minlength=num_classes) == 0)
    if missing.size:
        raise ValueError(f"class {missing[0]} has no examples: number the classes that occur from 0")


@functools.partial(jax.jit, static_argnums=2)
def _fit(x, label, cfg):
    def accumulate(moments, rows):
        x, label = rows
        return _merge(moments, _moments_of(x, label, cfg)), None

    count = len(x) // CHUNK
    whole = count * CHUNK
    chunks = x[:whole].reshape(count, CHUNK, x.shape[1]), label[:whole].reshape(count, CHUNK)
    moments, _ = jax.lax.scan(accumulate, _no_moments(cfg, x.dtype), chunks)
    if whole < len(x):
        moments, _ = accumulate(moments, (x[whole:], label[whole:]))
    params = _params(moments, cfg)
    pivots = jnp.diagonal(jnp.linalg.cholesky(params.covariances), axis1=-2, axis2=-1)
    largest = jnp.diagonal(params.covariances, axis1=-2, axis2=-1).max(-1)
    # What rounding alone can leave of a pivot that is 0.
    smallest = pivots.min(-1) ** 2 - cfg.num_dims * jnp.finfo(x.dtype).eps * largest
    return State(jnp.int32(1), jax.random.key(0), params, moments), smallest


def _moments_of(x, label, cfg):
    """Moments of x (B, D) by label (B,)."""
    member = jax.nn.one_hot(label, cfg.num_classes, dtype=x.dtype)
    origin = x.mean(0)
    centred = x - origin
    count = member.sum(0)
    shift = _matmul(member.T, centred) / jnp.maximum(count, 1)[:, None]
    residual = (centred - _matmul(member, shift)) * member.sum(1, keepdims=True)
    if cfg.covariance == "shared":
        scatter = _matmul(residual.T, residual)
    else:
        by_class = (member[:, :, None] * residual[:, None]).reshape(len(x), -1)
        scatter = _matmul(by_class.T, residual).reshape(cfg.num_classes, cfg.num_dims, cfg.num_dims)
    return Moments(count, jnp.where(count[:, None] > 0, origin + shift, 0), scatter)


def _merge(first, second):
    """Moments of two sets of examples together."""
    examples = first.examples + second.examples
    share = second.examples / jnp.maximum(examples, 1)
    apart = second.mean - first.mean
    weighted = (first.examples * share)[:, None] * apart
    if first.scatter.ndim == 2:
        between = _matmul(weighted.T, apart)
    else:
        between = weighted[:, :, None] * apart[:, None]
    mean = first.mean + share[:, None] * apart
    return Moments(examples, mean, first.scatter + second.scatter + between)


def _params(moments, cfg):
    """What the moments give; without data equal weights and unit covariances."""
    count, mean, scatter = moments
    total, k, d = count.sum(), cfg.num_classes, cfg.num_dims
    if cfg.covariance == "shared":
        examples, divisor = total, total - k * (cfg.ddof == "unbiased")
    else:
        examples, divisor = count[:, None, None], count[:, None, None] - (cfg.ddof == "unbiased")
    identity = jnp.eye(d, dtype=mean.dtype)
    covariance = scatter / jnp.maximum(divisor, 1)
    variance = jnp.trace(covariance, axis1=-2, axis2=-1)[..., None, None] / d
    added = (cfg.shrinkage * variance + cfg.regularization) * identity
    covariance = jnp.where(examples > 0, (1 - cfg.shrinkage) * covariance + added, identity)
    weights = jnp.where(total > 0, count / jnp.maximum(total, 1), 1 / k)
    return Params(weights, jnp.copy(mean), covariance)


def _log_joint(x, params, cfg):
    """log p(x, c) of x (B, D), (B, K)."""
    shared = cfg.covariance == "shared"
    mixture = gmm.Config(
        shape=cfg.shape, num_components=cfg.num_classes, covariance="tied" if shared else "full"
    )
    origin = params.weights @ params.means
    densities = gmm.log_densities(x - origin, params.means - origin, params.covariances, mixture)
    return jnp.log(params.weights) + densities


def _no_moments(cfg, dtype):
    k, d = cfg.num_classes, cfg.num_dims
    scatter = (d, d) if cfg.covariance == "shared" else (k, d, d)
    return Moments(jnp.zeros(k, dtype), jnp.zeros((k, d), dtype), jnp.zeros(scatter, dtype))


def _matmul(a, b):
    return jnp.matmul(a, b, precision="highest")


def _flat(x):
    return x.reshape(x.shape[0], -1)
