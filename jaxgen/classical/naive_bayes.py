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

import dataclasses
import functools
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen.classical import documents, gda
from jaxgen.types import Batch, Metrics, observed


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Hyperparameters of naive Bayes."""

    shape: tuple[int, ...] = (2,)
    """Shape of one example; flattened to D columns."""
    num_classes: int = 2
    """Classes; labels run from 0."""
    columns: tuple[Literal["gaussian", "bernoulli", "multinomial", "categorical"], ...] = ("gaussian",)
    """Kind of each column, or one for all of them."""
    num_categories: tuple[int, ...] = (2,)
    """Categorical only: values 0, 1, ... of each such column, or one number for all of them."""
    smoothing: float = 1.0
    """Pseudo-count of every bit, word and category, above 0."""
    variance_smoothing: float = 1e-9
    """Gaussian only: added to every variance, in units of the largest variance of a column."""
    threshold: float = 0.0
    """Bernoulli only: a larger value is a set bit."""
    num_levels: int = 16
    """Multinomial pictures only: words that a white pixel counts for; a black one has none."""

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


def init(key: Array, cfg: Config, batch: Batch | None = None) -> State:
    """A state that has seen no data: standard normals and uniform laws. `batch` is not used.

    Raises ValueError for data without classes, and for options that do not go together.
    """
    _check(cfg)
    counts = _no_counts(cfg, jnp.zeros(()).dtype)
    return State(jnp.zeros((), jnp.int32), jnp.copy(key), _params(counts, cfg), counts)


def train_step(state: State, batch: Batch, cfg: Config) -> tuple[State, Metrics]:
    """Adds `batch["image"]` or `batch["x"]`, (B, *shape), with `batch["label"]` (B,).

    Rows with a label outside 0..num_classes - 1 are left out. "nll", of p(x), and "accuracy" are those before
    the step, so on data not seen yet during the first pass.
    """
    x, label = observed(batch), batch["label"]
    log_joint = _log_joint(x, state.params, cfg)
    known = (label >= 0) & (label < cfg.num_classes)
    metrics = {
        "nll": -jax.nn.logsumexp(log_joint, 1).mean(),
        "accuracy": (log_joint.argmax(1) == label).sum() / jnp.maximum(known.sum(), 1),
    }
    counts = _merge(state.counts, _counts_of(x, label, cfg))
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


def sample(key: Array, state: State, n: int, cfg: Config, label: Array | int | None = None) -> Array:
    """n draws, (n, *shape), of the `label` given, one for all or (n,), else of classes by their weight."""
    keys = jax.random.split(key, 5)
    if label is None:
        label = jax.random.categorical(keys[4], jnp.log(state.params.weights), shape=(n,))
    label = jnp.broadcast_to(jnp.asarray(label), (n,))
    drawn = []
    for key, (kind, params) in zip(keys[:4], sorted(state.params.columns.items()), strict=False):
        given = {name: value[label] for name, value in params.items()}
        drawn.append(_DRAW[kind](key, given, cfg))
    places = np.argsort(np.concatenate([place for _, place in sorted(_places(cfg).items())]))
    return jnp.concatenate(drawn, 1)[:, places].reshape(n, *cfg.shape)


def log_prob(state: State, x: Array, cfg: Config) -> Array:
    """Exact log p(x) = log sum_c p(x, c) of x (B, *shape) in nats, (B,); of words given their number."""
    return jax.nn.logsumexp(_log_joint(x, state.params, cfg), 1)


def classify(state: State, x: Array, cfg: Config) -> Array:
    """log p(c | x) of x (B, *shape), (B, num_classes); -inf for a class without examples."""
    return jax.nn.log_softmax(_log_joint(x, state.params, cfg), 1)


@functools.partial(jax.jit, static_argnums=2)
def _fit(x, label, cfg):
    counts = _counts_of(x, label, cfg)
    return State(jnp.int32(1), jax.random.key(0), _params(counts, cfg), counts)


def _places(cfg):
    """Which columns are of a kind, for each kind there is."""
    kinds = np.broadcast_to(np.array(cfg.columns), cfg.num_dims)
    return {str(kind): np.flatnonzero(kinds == kind) for kind in np.unique(kinds)}


def _parts(x, cfg):
    """The columns of each kind, (B, D_kind), bits as 0 and 1, words as counts, categories as integers."""
    flat = documents.floating(x).reshape(len(x), -1)
    parts = {kind: flat[:, place] for kind, place in _places(cfg).items()}
    if "bernoulli" in parts:
        parts["bernoulli"] = (parts["bernoulli"] > cfg.threshold).astype(flat.dtype)
    if "multinomial" in parts:
        parts["multinomial"] = documents.words_of(parts["multinomial"], cfg.shape, cfg.num_levels)
    if "categorical" in parts:
        value = parts["categorical"].astype(jnp.int32)
        parts["categorical"] = jax.nn.one_hot(value, max(cfg.num_categories), dtype=flat.dtype)
    return parts


def _counts_of(x, label, cfg):
    """Counts of x (B, *shape) by label (B,)."""
    parts = _parts(x, cfg)
    member = jax.nn.one_hot(label, cfg.num_classes, dtype=next(iter(parts.values())).dtype)
    examples, columns = member.sum(0), {}
    for kind, part in parts.items():
        if kind == "gaussian":
            origin = part.mean(0)
            shift = _matmul(member.T, part - origin) / jnp.maximum(examples, 1)[:, None]
            residual = part - origin - _matmul(member, shift)
            mean = jnp.where(examples[:, None] > 0, origin + shift, 0)
            columns[kind] = {"mean": mean, "squares": _matmul(member.T, residual**2)}
        elif kind == "categorical":
            columns[kind] = {"count": jnp.einsum("nk,ndv->kdv", member, part, precision="highest")}
        else:
            columns[kind] = {"count": _matmul(member.T, part)}
    return Counts(examples, columns)


def _merge(first, second):
    """Counts of two sets of examples together."""
    examples = first.examples + second.examples
    columns = jax.tree.map(jnp.add, first.columns, second.columns)
    if "gaussian" in columns:
        mean = first.columns["gaussian"]["mean"]
        apart = second.columns["gaussian"]["mean"] - mean
        share = (second.examples / jnp.maximum(examples, 1))[:, None]
        columns["gaussian"]["mean"] = mean + share * apart
        columns["gaussian"]["squares"] += first.examples[:, None] * share * apart**2
    return Counts(examples, columns)


def _params(counts, cfg):
    """What the counts give; standard normals for a class without examples."""
    examples, total = counts.examples, counts.examples.sum()
    columns, some = {}, jnp.maximum(examples, 1)[:, None]
    weights = jnp.where(total > 0, examples / jnp.maximum(total, 1), 1 / cfg.num_classes)
    for kind, count in counts.columns.items():
        if kind == "gaussian":
            mean, squares = count["mean"], count["squares"]
            between = _matmul(weights, (mean - weights @ mean) ** 2)
            largest = (squares.sum(0) / jnp.maximum(total, 1) + between).max()
            variance = squares / some + cfg.variance_smoothing * largest
            seen = (examples[:, None] > 0) & (largest > 0)
            columns[kind] = {"mean": jnp.copy(mean), "variance": jnp.where(seen, variance, 1.0)}
            continue
        smooth = count["count"] + cfg.smoothing
        if kind == "bernoulli":
            columns[kind] = {"probability": smooth / (examples[:, None] + 2 * cfg.smoothing)}
        elif kind == "multinomial":
            length = count["count"].sum(1) / some[:, 0]
            columns[kind] = {"probability": smooth / smooth.sum(1, keepdims=True), "length": length}
        else:
            smooth = jnp.where(_categories(cfg), smooth, 0)
            columns[kind] = {"probability": smooth / smooth.sum(2, keepdims=True)}
    return Params(weights, columns)


def _log_joint(x, params, cfg):
    """log p(x, c) of x (B, *shape), (B, K)."""
    total = jnp.log(params.weights)
    for kind, part in _parts(x, cfg).items():
        given = params.columns[kind]
        if kind == "gaussian":
            squares = (part[:, None] - given["mean"]) ** 2 / given["variance"]
            total = total - 0.5 * (squares + jnp.log(2 * math.pi * given["variance"])).sum(-1)
            continue
        log_probability = jnp.log(given["probability"])
        if kind == "bernoulli":
            log_other = jnp.log1p(-given["probability"])
            total = total + _matmul(part, (log_probability - log_other).T) + log_other.sum(1)
        elif kind == "multinomial":
            total = total + _matmul(part, log_probability.T) + documents.log_orders(part)[:, None]
        else:
            finite = jnp.where(_categories(cfg), log_probability, 0)
            total = total + jnp.einsum("ndv,kdv->nk", part, finite, precision="highest")
    return total


def _draw_bits(key, given, cfg):
    bits = jax.random.bernoulli(key, given["probability"]).astype(given["probability"].dtype)
    return 2 * bits - 1 if len(cfg.shape) == 3 else bits


def _draw_words(key, given, cfg):
    words = documents.draw(key, given["probability"], given["length"][:, None])
    return documents.picture_of(words, cfg.shape, cfg.num_levels)


def _draw_normals(key, given, cfg):
    noise = jax.random.normal(key, given["mean"].shape, given["mean"].dtype)
    return given["mean"] + jnp.sqrt(given["variance"]) * noise


def _draw_categories(key, given, cfg):
    return jax.random.categorical(key, jnp.log(given["probability"])).astype(given["probability"].dtype)


_DRAW = {
    "bernoulli": _draw_bits,
    "categorical": _draw_categories,
    "gaussian": _draw_normals,
    "multinomial": _draw_words,
}


def _categories(cfg):
    """Which entries of a padded table of categories exist, (D_categorical, V)."""
    columns = len(_places(cfg)["categorical"])
    sizes = np.broadcast_to(np.array(cfg.num_categories), columns)
    return np.arange(sizes.max()) < sizes[:, None]


def _no_counts(cfg, dtype):
    k, columns = cfg.num_classes, {}
    for kind, place in _places(cfg).items():
        names = ("mean", "squares") if kind == "gaussian" else ("count",)
        shape = (k, *_categories(cfg).shape) if kind == "categorical" else (k, len(place))
        columns[kind] = {name: jnp.zeros(shape, dtype) for name in names}
    return Counts(jnp.zeros(k, dtype), columns)


def _check(cfg):
    if cfg.num_classes < 1:
        raise ValueError("naive Bayes needs labels: num_classes must be at least 1")
    if cfg.smoothing <= 0 or cfg.variance_smoothing < 0:
        raise ValueError("smoothing must be above 0, or what was never seen is impossible")
    if len(cfg.columns) not in (1, cfg.num_dims):
        raise ValueError(f"columns names {len(cfg.columns)} kinds for {cfg.num_dims} columns")
    number = len(_places(cfg).get("categorical", ()))
    if number and len(cfg.num_categories) not in (1, number):
        raise ValueError(f"num_categories has {len(cfg.num_categories)} sizes for {number} columns")


def _check_columns(x, cfg):
    if not bool(jnp.isfinite(x).all()):
        raise ValueError("x has values that are not finite (NaN or infinity)")
    flat, places = np.asarray(x).reshape(len(x), -1), _places(cfg)
    if "multinomial" in places:
        documents.check_counts(documents.words_of(flat[:, places["multinomial"]], cfg.shape, cfg.num_levels))
    if "categorical" in places:
        value = flat[:, places["categorical"]]
        if (value < 0).any() or (value != np.floor(value)).any() or (value >= _categories(cfg).sum(1)).any():
            raise ValueError("categories must be integers from 0, below num_categories")


def _matmul(a, b):
    return jnp.matmul(a, b, precision="highest")
