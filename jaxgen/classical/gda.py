"""Gaussian discriminant analysis (Fisher 1936; Welch 1939).

One Gaussian for each class, and Bayes' rule:

    p(x, c) = pi_c N(x; m_c, S_c),     p(c | x) = p(x, c) / sum_k p(x, k)

With one covariance for all classes the boundaries are linear, p(c | x) = softmax(W x + b); with one per class
they are quadratic. The maximum of the likelihood is known in closed form: frequencies, means and covariances
of the classes. `train_step` merges the moments of its batch with those of all earlier batches (Chan, Golub &
LeVeque 1983), so one pass gives what `fit` gives, however the data are split into batches.

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

from jaxgen import labels, moments, values
from jaxgen.arguments import checked
from jaxgen.classical import documents, gaussians
from jaxgen.fields import Fraction, NonNegativeFloat, NonNegativeInt, PositiveInt
from jaxgen.moments import Moments
from jaxgen.types import Batch, Metrics, observed

CHUNK = 2048
"""Examples whose moments `fit` takes at a time."""


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(values.Value):
    """Hyperparameters of Gaussian discriminant analysis."""

    shape: tuple[PositiveInt, ...] = (2,)
    """Shape of one example; flattened to D numbers."""
    num_classes: NonNegativeInt = 2
    """Number of classes; labels start at 0."""
    covariance: Literal["shared", "per_class"] = "shared"
    """One covariance for all classes, with linear boundaries, or one per class, with quadratic ones."""
    shrinkage: Fraction = 1e-3
    """Fraction in [0, 1] of the covariance that is replaced by the identity times its mean variance."""
    regularization: NonNegativeFloat = 1e-6
    """Number added to the variances, in squared units of the data, which classes of few examples need."""
    ddof: Literal["ml", "unbiased"] = "ml"
    """Divide sums of squares by the number of examples, or by that minus the number of means."""

    @property
    def num_dims(self) -> int:
        """D."""
        return math.prod(self.shape)

    @property
    def kind(self) -> moments.Covariance:
        """The covariances as `gaussians` has them."""
        return "tied" if self.covariance == "shared" else "full"


class Params(NamedTuple):
    """The Gaussians."""

    weights: Array  # (K,), sum 1
    means: Array  # (K, D)
    covariances: Array  # (D, D) shared, (K, D, D) per class


class State(NamedTuple):
    """What training changes."""

    step: Array
    key: Array
    params: Params
    moments: Moments  # of each class, from all batches so far


@checked
def init(key: Array, cfg: Config, batch: Batch | None = None) -> State:
    """A state that has seen no data: equal weights, zero means, unit covariances. `batch` is not used.

    Raises ValueError for data without classes.
    """
    if cfg.num_classes < 1:
        raise ValueError("Gaussian discriminant analysis needs labels: num_classes must be at least 1")
    found = gaussians.no_moments(cfg.num_classes, cfg.num_dims, cfg.kind)
    return State(jnp.zeros((), jnp.int32), jnp.copy(key), _params(found, cfg), found)


@checked
def train_step(state: State, batch: Batch, cfg: Config) -> tuple[State, Metrics]:
    """Merges `batch["image"]` or `batch["x"]`, (B, *shape), with `batch["label"]` (B,).

    Rows with a label outside 0..num_classes - 1 are left out. The metrics "nll", of p(x), and "accuracy" are
    computed before the step, so during the first pass they are those of unseen data.
    """
    x, label = _flat(observed(batch)), jnp.asarray(labels.of_batch(batch, cfg.num_classes))
    log_joint = _log_joint(x, state.params, cfg)
    known = (label >= 0) & (label < cfg.num_classes)
    right = (log_joint.argmax(1) == label).sum()
    metrics = {
        "nll": -jax.nn.logsumexp(log_joint, 1).mean(),
        "accuracy": right / jnp.maximum(known.sum(), 1),
    }
    merged = moments.merge(state.moments, _moments_of(x, label, cfg), cfg.kind)
    return state._replace(step=state.step + 1, params=_params(merged, cfg), moments=merged), metrics


def fit(x: Any, label: Any, cfg: Config) -> State:
    """The maximum of the likelihood of x (N, *shape) with labels (N,), in one compiled pass.

    Raises:
        ValueError: x that is not (N, *shape) or has values that are not finite, labels that are not (N,)
            integers in 0..num_classes - 1, a class without examples, a singular covariance.
    """
    x, label = _flat(documents.floating(x)), jnp.asarray(label)
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


@checked
def sample(key: Array, state: State, n: int, cfg: Config, label: Array | int | None = None) -> Array:
    """n draws, (n, *shape), of the `label` given, one for all or (n,), else of classes by their weight."""
    labels.check(label, cfg.num_classes)
    weights, means, covariances = state.params
    label_key, noise_key = jax.random.split(key)
    if label is None:
        label = jax.random.categorical(label_key, jnp.log(weights), shape=(n,))
    label = labels.spread(label, n)
    return gaussians.draw(noise_key, label, means, covariances, cfg.kind).reshape(n, *cfg.shape)


def measure(cfg: Config) -> str:
    """What `log_prob` is of: a density of real numbers."""
    del cfg
    return "density"


@checked
def log_prob(state: State, x: Array, cfg: Config) -> Array:
    """Exact log p(x) = log sum_c p(x, c) of x (B, *shape) in nats, (B,)."""
    return jax.nn.logsumexp(_log_joint(_flat(x), state.params, cfg), 1)


@checked
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
    def accumulate(total, rows):
        x, label = rows
        return moments.merge(total, _moments_of(x, label, cfg), cfg.kind), None

    count = len(x) // CHUNK
    whole = count * CHUNK
    chunks = x[:whole].reshape(count, CHUNK, x.shape[1]), label[:whole].reshape(count, CHUNK)
    start = gaussians.no_moments(cfg.num_classes, cfg.num_dims, cfg.kind, x.dtype)
    found, _ = jax.lax.scan(accumulate, start, chunks)
    if whole < len(x):
        found, _ = accumulate(found, (x[whole:], label[whole:]))
    params = _params(found, cfg)
    pivots = jnp.diagonal(jnp.linalg.cholesky(params.covariances), axis1=-2, axis2=-1)
    largest = jnp.diagonal(params.covariances, axis1=-2, axis2=-1).max(-1)
    # What rounding alone can leave of a pivot that is 0.
    smallest = pivots.min(-1) ** 2 - cfg.num_dims * jnp.finfo(x.dtype).eps * largest
    return State(jnp.int32(1), jax.random.key(0), params, found), smallest


def _moments_of(x, label, cfg):
    """Moments of x (B, D) by label (B,)."""
    member = jax.nn.one_hot(label, cfg.num_classes, dtype=x.dtype)
    return gaussians.of_classes(x, member, cfg.kind)


def _params(found, cfg):
    """The parameters that moments determine; without data equal weights and unit covariances."""
    count, mean, scatter = found
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
    weights, means, covariances = params
    origin = weights @ means
    densities = gaussians.log_densities(x - origin, means - origin, covariances, cfg.kind)
    return jnp.log(weights) + densities


def _flat(x):
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))
