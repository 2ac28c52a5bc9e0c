"""Naive Bayes: the columns of an example are independent given its class (Maron 1961).

    p(x, c) = pi_c prod_j p(x_j | c),     p(c | x) = p(x, c) / sum_k p(x, k)

Columns may be of four kinds, also mixed. With N_c examples of class c and a pseudo-count a:

    gaussian      N(x_j; m_cj, v_cj), mean and variance of the class
    bernoulli     p_cj = (N_cj + a) / (N_c + 2 a), N_cj examples with the bit set
    multinomial   all such columns together are counts of words, p_cj = (N_cj + a) / sum_i (N_ci + a)
    categorical   p_cjv = (N_cjv + a) / (N_c + a V_j), V_j values

`train_step` adds the counts of its batch to those before and merges the moments (Chan, Golub & LeVeque 1983),
so one pass gives what `fit` gives however the data are cut; another counts them again, and a for less.

Departs from the textbook: variances have a share of the largest one added; the law of counts is that given
their sum, which `sample` draws from a Poisson distribution.
"""

import collections
import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen import labels, values
from jaxgen.arguments import checked
from jaxgen.classical import documents, gda
from jaxgen.classical.columns import Bernoulli, Categorical, Gaussian, Law, Multinomial
from jaxgen.fields import NonNegativeInt, PositiveFloat, PositiveInt
from jaxgen.types import Batch, Metrics, observed


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(values.Value):
    """Hyperparameters of naive Bayes."""

    shape: tuple[PositiveInt, ...] = (2,)
    """Shape of one example; flattened to D columns."""
    num_classes: NonNegativeInt = 2
    """Classes; labels run from 0."""
    columns: Gaussian | Bernoulli | Multinomial | Categorical | tuple[Law, ...] = Gaussian()
    """Law of every column, or a tuple with the law of each."""
    smoothing: PositiveFloat = 1.0
    """Pseudo-count of every bit, word and category, above 0."""

    @property
    def num_dims(self) -> int:
        return math.prod(self.shape)


class Params(NamedTuple):
    """The laws of the columns by their kind."""

    weights: Array  # (K,), sum 1
    columns: dict[str, dict[str, Array]]


class Counts(NamedTuple):
    """What the data say."""

    examples: Array  # (K,)
    columns: dict[str, dict[str, Array]]


class State(NamedTuple):
    """What training changes."""

    step: Array
    key: Array
    params: Params
    counts: Counts  # of all batches so far


@checked
def init(key: Array, cfg: Config, batch: Batch | None = None) -> State:
    """A state that has seen no data: standard normals and uniform laws. `batch` is not used.

    Raises ValueError for data without classes, and for options that do not go together.
    """
    _check(cfg)
    counts = _no_counts(cfg, jnp.zeros(()).dtype)
    return State(jnp.zeros((), jnp.int32), jnp.copy(key), _params(counts, cfg), counts)


@checked
def train_step(state: State, batch: Batch, cfg: Config) -> tuple[State, Metrics]:
    """Adds `batch["image"]` or `batch["x"]`, (B, *shape), with `batch["label"]` (B,).

    Rows with a label outside 0..num_classes - 1 are left out. "nll", of p(x), and "accuracy" are those before
    the step, so on data not seen yet during the first pass.
    """
    x, label = observed(batch), jnp.asarray(labels.of_batch(batch, cfg.num_classes))
    log_joint = _log_joint(x, state.params, cfg)
    known = (label >= 0) & (label < cfg.num_classes)
    metrics = {
        "nll": -jax.nn.logsumexp(log_joint, 1).mean(),
        "accuracy": (log_joint.argmax(1) == label).sum() / jnp.maximum(known.sum(), 1),
    }
    counts = _merge(state.counts, _counts_of(x, label, cfg), cfg)
    return state._replace(step=state.step + 1, params=_params(counts, cfg), counts=counts), metrics


def fit(x: Any, label: Any, cfg: Config) -> State:
    """The model of all of x (N, *shape) with labels (N,), compiled.

    Raises:
        ValueError: x of another shape, or with values that are not finite, negative words, or categories out
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


@checked
def sample(key: Array, state: State, n: int, cfg: Config, label: Array | int | None = None) -> Array:
    """n draws, (n, *shape), of the `label` given, one for all or (n,), else of classes by their weight."""
    labels.check(label, cfg.num_classes)
    groups = _groups(cfg)
    *keys, label_key = jax.random.split(key, max(len(groups), 4) + 1)
    if label is None:
        label = jax.random.categorical(label_key, jnp.log(state.params.weights), shape=(n,))
    label = labels.spread(label, n)
    drawn = []
    for key, (name, (law, _)) in zip(keys, groups.items(), strict=False):
        given = {parameter: value[label] for parameter, value in state.params.columns[name].items()}
        drawn.append(law.sample(key, given, cfg.shape))
    places = np.argsort(np.concatenate([place for _, place in groups.values()]))
    return jnp.concatenate(drawn, 1)[:, places].reshape(n, *cfg.shape)


def measure(cfg: Config) -> str:
    """What `log_prob` is of: that of the columns' law, or of mixed columns a density if one has it."""
    measures = {law.measure for law, _ in _groups(cfg).values()}
    return measures.pop() if len(measures) == 1 else "density" if "density" in measures else "symbols"


@checked
def log_prob(state: State, x: Array, cfg: Config) -> Array:
    """Exact log p(x) = log sum_c p(x, c) of x (B, *shape) in nats, (B,); of words given their number."""
    return jax.nn.logsumexp(_log_joint(x, state.params, cfg), 1)


@checked
def classify(state: State, x: Array, cfg: Config) -> Array:
    """log p(c | x) of x (B, *shape), (B, num_classes); -inf for a class without examples."""
    return jax.nn.log_softmax(_log_joint(x, state.params, cfg), 1)


@functools.partial(jax.jit, static_argnums=2)
def _fit(x, label, cfg):
    counts = _counts_of(x, label, cfg)
    return State(jnp.int32(1), jax.random.key(0), _params(counts, cfg), counts)


def _groups(cfg):
    """Columns by their law: {name: (law, places)}, sorted by name; a second law of a kind has a number."""
    laws = cfg.columns if isinstance(cfg.columns, tuple) else (cfg.columns,) * cfg.num_dims
    places: dict[Any, list[int]] = {}
    for place, law in enumerate(laws):
        places.setdefault(law, []).append(place)
    named: dict[str, tuple[Any, np.ndarray]] = {}
    kinds: collections.Counter = collections.Counter()
    for law, own in places.items():
        kinds[law.name] += 1
        number = kinds[law.name]
        named[law.name if number == 1 else f"{law.name}_{number}"] = law, np.array(own)
    return dict(sorted(named.items()))


def _parts(x, cfg):
    """The columns of each law as it counts them, {name: (law, part)}."""
    flat = documents.floating(x).reshape(len(x), cfg.num_dims)
    return {name: (law, law.part(flat[:, place], cfg.shape)) for name, (law, place) in _groups(cfg).items()}


def _counts_of(x, label, cfg):
    """Counts of x (B, *shape) by label (B,)."""
    member = jax.nn.one_hot(label, cfg.num_classes, dtype=documents.floating(x).dtype)
    columns = {name: law.counts(part, member) for name, (law, part) in _parts(x, cfg).items()}
    return Counts(member.sum(0), columns)


def _merge(first, second, cfg):
    """Counts of two sets of examples together."""
    columns = {
        name: law.merged(first.columns[name], second.columns[name], first.examples, second.examples)
        for name, (law, _) in _groups(cfg).items()
    }
    return Counts(first.examples + second.examples, columns)


def _params(counts, cfg):
    """What the counts give; classes without any examples are equally likely."""
    examples, total = counts.examples, counts.examples.sum()
    weights = jnp.where(total > 0, examples / jnp.maximum(total, 1), 1 / cfg.num_classes)
    columns = {
        name: law.params(counts.columns[name], examples, cfg.smoothing)
        for name, (law, _) in _groups(cfg).items()
    }
    return Params(weights, columns)


def _log_joint(x, params, cfg):
    """log p(x, c) of x (B, *shape), (B, K)."""
    parts = _parts(x, cfg).items()
    return jnp.log(params.weights) + sum(
        law.log_prob(part, params.columns[name]) for name, (law, part) in parts
    )


def _no_counts(cfg, dtype):
    columns = {
        name: law.zero_counts(cfg.num_classes, len(place), dtype)
        for name, (law, place) in _groups(cfg).items()
    }
    return Counts(jnp.zeros(cfg.num_classes, dtype), columns)


def _check(cfg):
    if cfg.num_classes < 1:
        raise ValueError("naive Bayes needs labels: num_classes must be at least 1")
    if isinstance(cfg.columns, tuple) and len(cfg.columns) != cfg.num_dims:
        raise ValueError(f"columns has {len(cfg.columns)} laws for {cfg.num_dims} columns")


def _check_columns(x, cfg):
    if not bool(jnp.isfinite(x).all()):
        raise ValueError("x has values that are not finite (NaN or infinity)")
    flat = x.reshape(len(x), cfg.num_dims)
    for law, place in _groups(cfg).values():
        law.check(flat[:, place], cfg.shape)
