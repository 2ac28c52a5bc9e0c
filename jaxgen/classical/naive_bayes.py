"""Naive Bayes: the columns of an example are independent given its class (Maron 1961).

    p(x, c) = pi_c prod_j p(x_j | c),     p(c | x) = p(x, c) / sum_k p(x, k)

The columns are `Gaussian`, `Bernoulli`, `Multinomial` or `Categorical`, or `Mixed`, of which `columns.py` has
the estimates. `train_step` adds the counts of its batch to the earlier ones and merges the moments (Chan,
Golub & LeVeque 1983), so one pass gives what `fit` gives, however the data are split into batches; a second
pass counts them again, which gives the pseudo-counts less weight.

Departs from the textbook: a multiple of the largest variance is added to all; the distribution of word counts
is that given their sum, which `sample` draws from a Poisson distribution.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen import values
from jaxgen.classical import documents, gda
from jaxgen.classical.columns import Bernoulli as Bernoulli
from jaxgen.classical.columns import Categorical as Categorical
from jaxgen.classical.columns import Columns
from jaxgen.classical.columns import Gaussian as Gaussian
from jaxgen.classical.columns import Mixed as Mixed
from jaxgen.classical.columns import Multinomial as Multinomial
from jaxgen.types import Batch, Metrics, observed


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Hyperparameters of naive Bayes."""

    shape: tuple[int, ...] = (2,)
    """Shape of one example; flattened to D columns."""
    num_classes: int = 2
    """Number of classes; labels start at 0."""
    levels: int = 0
    """Number of values of a pixel; 0 for real numbers and counts."""
    columns: Gaussian | Bernoulli | Multinomial | Categorical | Mixed | Columns = Gaussian()
    """The kind of all columns, or of each."""

    @property
    def num_dims(self) -> int:
        """D."""
        return math.prod(self.shape)


class Params(NamedTuple):
    """The distributions of the columns."""

    weights: Array  # (K,), sum 1
    columns: tuple[dict[str, Array], ...]  # of each kind of columns


class Counts(NamedTuple):
    """Statistics of the data."""

    examples: Array  # (K,)
    columns: tuple[Any, ...]  # of each kind of columns


class State(NamedTuple):
    """What training changes."""

    step: Array
    key: Array
    params: Params
    counts: Counts  # of all batches so far


def init(key: Array, cfg: Config, batch: Batch | None = None) -> State:
    """A state that has seen no data: standard normals and uniform frequencies. `batch` is not used.

    Raises ValueError for data without classes, and for a list of kinds that does not fit the columns.
    """
    _check(cfg)
    counts = _no_counts(cfg, jnp.zeros(()).dtype)
    return State(jnp.zeros((), jnp.int32), jnp.copy(key), _params(counts, cfg), counts)


def train_step(state: State, batch: Batch, cfg: Config) -> tuple[State, Metrics]:
    """Adds `batch["image"]` or `batch["x"]`, (B, *shape), with `batch["label"]` (B,).

    Rows with a label outside 0..num_classes - 1 are left out. The metrics "nll", of p(x), and "accuracy" are
    computed before the step, so during the first pass they are those of unseen data.
    """
    x, label = observed(batch), batch["label"]
    log_joint = _log_joint(x, state.params, cfg)
    known = (label >= 0) & (label < cfg.num_classes)
    metrics = {
        "nll": -jax.nn.logsumexp(log_joint, 1).mean(),
        "accuracy": (log_joint.argmax(1) == label).sum() / jnp.maximum(known.sum(), 1),
    }
    new = _counts_of(x, label, cfg)
    pairs = zip(_groups(cfg), state.counts.columns, new.columns, strict=True)
    merged = tuple(kind.merge(*counts) for (kind, _), *counts in pairs)
    counts = Counts(state.counts.examples + new.examples, merged)
    return state._replace(step=state.step + 1, params=_params(counts, cfg), counts=counts), metrics


def fit(x: Any, label: Any, cfg: Config) -> State:
    """The model of all of x (N, *shape) with labels (N,), compiled.

    Raises:
        ValueError: x of another shape, or with values that are not finite, negative counts, or categories out
            of range; labels that are not (N,) integers in 0..num_classes - 1; a class without examples.
    """
    _check(cfg)
    x, label = documents.floating(x), jnp.asarray(label)
    if math.prod(x.shape[1:]) != cfg.num_dims or label.shape != x.shape[:1]:
        raise ValueError(f"x must be (N, {cfg.num_dims}) and label (N,), not {x.shape} and {label.shape}")
    if not isinstance(x, jax.core.Tracer) and not isinstance(label, jax.core.Tracer):
        gda.check_labels(label, cfg.num_classes)
        _check_columns(x, cfg)
    return _fit(x, label, cfg)


def sample(key: Array, state: State, n: int, cfg: Config, label: Array | int | None = None) -> Array:
    """n draws, (n, *shape), of `label`, one for all or (n,); by default of classes drawn by their weight."""
    groups = _groups(cfg)
    label_key, *keys = jax.random.split(key, 1 + len(groups))
    if label is None:
        label = jax.random.categorical(label_key, jnp.log(state.params.weights), shape=(n,))
    label = jnp.broadcast_to(jnp.asarray(label), (n,))
    drawn = []
    for key, (kind, _), params in zip(keys, groups, state.params.columns, strict=True):
        drawn.append(kind.draw(key, {name: value[label] for name, value in params.items()}))
    places = np.argsort(np.concatenate([place for _, place in groups]))
    return jnp.concatenate(drawn, 1)[:, places].reshape(n, *cfg.shape)


def log_prob(state: State, x: Array, cfg: Config) -> Array:
    """Exact log p(x) = log sum_c p(x, c) of x (B, *shape) in nats, (B,); of words given their number."""
    return jax.nn.logsumexp(_log_joint(x, state.params, cfg), 1)


def measure(cfg: Config) -> str:
    """What `log_prob` is of: a density if any column is Gaussian, symbols if the columns differ otherwise."""
    found = {kind.measure for kind, _ in _groups(cfg)}
    return found.pop() if len(found) == 1 else "density" if "density" in found else "symbols"


def classify(state: State, x: Array, cfg: Config) -> Array:
    """log p(c | x) of x (B, *shape), (B, num_classes); -inf for a class without examples."""
    return jax.nn.log_softmax(_log_joint(x, state.params, cfg), 1)


@functools.partial(jax.jit, static_argnums=2)
def _fit(x, label, cfg):
    counts = _counts_of(x, label, cfg)
    return State(jnp.int32(1), jax.random.key(0), _params(counts, cfg), counts)


def _groups(cfg):
    """[(kind, the numbers of its columns)] of all kinds of columns."""
    kinds = cfg.columns.kinds if isinstance(cfg.columns, Mixed) else (cfg.columns,) * cfg.num_dims
    if len(kinds) != cfg.num_dims:
        raise ValueError(f"columns lists {len(kinds)} kinds for {cfg.num_dims} columns")
    places: dict[Any, list[int]] = {}
    for place, kind in enumerate(kinds):
        places.setdefault(values.filled(kind, shape=cfg.shape, levels=cfg.levels), []).append(place)
    return [(kind, np.array(numbers)) for kind, numbers in places.items()]


def _parts(x, cfg):
    """[(kind, its columns of x (B, *shape) as `kind.read` gives them)]."""
    flat = documents.floating(x).reshape(len(x), -1)
    return [(kind, kind.read(flat[:, place])) for kind, place in _groups(cfg)]


def _counts_of(x, label, cfg):
    """Counts of x (B, *shape) by label (B,)."""
    member = jax.nn.one_hot(label, cfg.num_classes, dtype=documents.floating(x).dtype)
    columns = tuple(kind.counts(part, member) for kind, part in _parts(x, cfg))
    return Counts(member.sum(0), columns)


def _no_counts(cfg, dtype):
    k = cfg.num_classes
    columns = tuple(kind.no_counts(k, len(place), dtype) for kind, place in _groups(cfg))
    return Counts(jnp.zeros(k, dtype), columns)


def _params(counts, cfg):
    """The parameters that counts determine."""
    examples, total = counts.examples, counts.examples.sum()
    weights = jnp.where(total > 0, examples / jnp.maximum(total, 1), 1 / cfg.num_classes)
    pairs = zip(_groups(cfg), counts.columns, strict=True)
    return Params(weights, tuple(kind.params(count, examples) for (kind, _), count in pairs))


def _log_joint(x, params, cfg):
    """log p(x, c) of x (B, *shape), (B, K)."""
    pairs = zip(_parts(x, cfg), params.columns, strict=True)
    return sum((kind.log_prob(part, given) for (kind, part), given in pairs), jnp.log(params.weights))


def _check(cfg):
    if cfg.num_classes < 1:
        raise ValueError("naive Bayes needs labels: num_classes must be at least 1")
    _groups(cfg)


def _check_columns(x, cfg):
    if not bool(jnp.isfinite(x).all()):
        raise ValueError("x has values that are not finite (NaN or infinity)")
    for kind, place in _groups(cfg):
        kind.check(x.reshape(len(x), -1)[:, place])
