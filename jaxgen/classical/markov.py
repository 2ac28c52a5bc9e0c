"""Markov chain of order k over symbols (Markov 1913; Shannon 1948).

    p(x) = prod_t p(x_t | x_{t-k}, ..., x_{t-1})

The next symbol depends only on the last k, so fitting is counting: n(c, s) is how often symbol s followed
context c. Contexts at the start of a sequence are padded with a start symbol, so that the table also holds
the distribution of the first symbols. Probabilities are smoothed counts,

    p(s | c) = (n(c, s) + a S q(s)) / (n(c) + a S),

with a the pseudo-counts per symbol and q uniform (Laplace's rule), or, with `backoff`, the distribution of
the chain of order k - 1 at that place, and so on recursively: a context without data uses its shorter
suffix (MacKay & Peto 1995). `train_step` adds the counts of a batch; `fit` counts everything.

Departs from the textbook: if there are more than `max_rows` contexts, they share rows of the table by a hash.
Their parameters are then tied, and the model is still normalised.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen import values
from jaxgen.arguments import checked, symbols
from jaxgen.fields import NonNegativeFloat, NonNegativeInt, PositiveInt
from jaxgen.types import Batch, Metrics


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(values.Value):
    """Hyperparameters of the Markov chain."""

    any_length = True
    """Sequences may be longer or shorter than `shape` says, which is the length of samples."""
    shape: tuple[PositiveInt, ...] = (16,)
    """Shape of one sequence: (T,) symbols."""
    num_symbols: PositiveInt | None = None
    """Size of the alphabet; by default that of the training data."""
    order: NonNegativeInt = 1
    """Number of previous symbols that the next one depends on; 0 for independent symbols."""
    smoothing: NonNegativeFloat = 1.0
    """Pseudo-counts for each symbol in each context; 0 for maximum likelihood."""
    backoff: bool = False
    """Distribute the pseudo-counts by the chain of the next lower order instead of uniformly."""
    max_rows: PositiveInt = 2**20
    """Maximum number of rows of a table of counts; more contexts than that share rows."""

    @property
    def size(self) -> int:
        """The size of the alphabet. Raises ValueError if it is not known."""
        if self.num_symbols is None:
            raise ValueError("the size of the alphabet is not known: set num_symbols, or use `from_data`")
        return self.num_symbols

    @property
    def orders(self) -> tuple[int, ...]:
        """The orders of the tables, that of the chain last."""
        return tuple(range(self.order + 1)) if self.backoff else (self.order,)


class State(NamedTuple):
    """What training changes."""

    step: Array
    key: Array
    params: tuple[Array, ...]  # int32 counts (rows, S), one table for each of cfg.orders


def from_data(dataset: Any, cfg: Config) -> Config:
    """`cfg` with the number of symbols in `dataset`, if it is not set."""
    if cfg.num_symbols is not None:
        return cfg
    return dataclasses.replace(cfg, num_symbols=int(np.max(dataset[:]["tokens"])) + 1)


@checked
def init(key: Array, cfg: Config, batch: Batch | None = None) -> State:
    """A chain without any counts. Raises ValueError if the number of symbols is not known."""
    del batch
    tables = (jnp.zeros((_num_rows(order, cfg), cfg.size), jnp.int32) for order in cfg.orders)
    return State(jnp.zeros((), jnp.int32), key, tuple(tables))


@checked
def train_step(state: State, batch: Batch, cfg: Config) -> tuple[State, Metrics]:
    """Adds the counts of "tokens" (B, T), where "mask" is True if the batch has one.

    The metric "nll" is that before the step, in nats per sequence.
    """
    x, mask = batch["tokens"], batch.get("mask")
    nll = -log_prob(state, x, cfg, mask).mean()
    return state._replace(step=state.step + 1, params=_count(state.params, x, mask, cfg)), {"nll": nll}


def fit(x: Any, cfg: Config, mask: Any = None) -> State:
    """The chain of all sequences x, (N, T) symbols, in one step; `mask` (N, T) is False in padding.

    An empty sequence adds nothing.

    Raises:
        ValueError: x of another shape, symbols outside 0..num_symbols - 1, padding that is not at the end.
    """
    x = jnp.asarray(x)
    mask = jnp.ones(x.shape, bool) if mask is None else jnp.asarray(mask, bool)
    if x.ndim != 2 or mask.shape != x.shape:
        raise ValueError(f"x must be (N, T) with a mask of its shape, not {x.shape}, {mask.shape}")
    if not isinstance(x, jax.core.Tracer):
        possible = jnp.issubdtype(x.dtype, jnp.integer)
        if not possible or bool((mask & ((x < 0) | (x >= cfg.size))).any()):
            raise ValueError(f"symbols must be integers in 0..{cfg.size - 1}")
        if bool((mask[:, 1:] & ~mask[:, :-1]).any()):
            raise ValueError("the mask must be True up to each sequence's end and False after it")
    state = init(jax.random.key(0), cfg)
    return state._replace(step=state.step + 1, params=_count(state.params, x, mask, cfg))


@checked
def sample(
    key: Array, state: State, n: int, cfg: Config, length: int | None = None, prompt: Any = ()
) -> Array:
    """n sequences of `length` symbols, by default cfg.shape[0], that continue `prompt`: (n, length) int32."""
    start = jnp.full(cfg.order, cfg.size, jnp.int32)
    history = jnp.concatenate([start, jnp.asarray(prompt, jnp.int32).reshape(-1)])
    context = jnp.broadcast_to(history[len(history) - cfg.order :], (n, cfg.order))

    def draw(context, key):
        symbol = jax.random.categorical(key, jnp.log(predict(state, context, cfg))).astype(jnp.int32)
        return jnp.concatenate([context, symbol[:, None]], 1)[:, 1:], symbol

    keys = jax.random.split(key, cfg.shape[0] if length is None else length)
    return jax.lax.scan(draw, context, keys)[1].T


@checked
def log_prob(state: State, x: Array, cfg: Config, mask: Array | None = None) -> Array:
    """Exact log p(x) of sequences x (B, T) in nats, (B,); -inf where a symbol is not in the alphabet.

    Raises ValueError for what are no integers.
    """
    x = symbols(x)
    law = predict(state, _contexts(x, cfg), cfg)
    known = (x >= 0) & (x < cfg.size)
    symbol = jnp.where(known, x, 0)
    log_p = jnp.where(known, jnp.log(jnp.take_along_axis(law, symbol[..., None], -1)[..., 0]), -jnp.inf)
    return (log_p if mask is None else jnp.where(mask, log_p, 0.0)).sum(1)


def measure(cfg: Config) -> str:
    """What `log_prob` is of: symbols."""
    del cfg
    return "symbols"


def predict(state: State, context: Array, cfg: Config) -> Array:
    """p(next | context) of contexts (..., order), oldest symbol first, S before the start: (..., S).

    Without smoothing, a context without counts gets the distribution of the next lower order, or the uniform.
    """
    pseudo = cfg.smoothing * cfg.size
    law = jnp.full((*context.shape[:-1], cfg.size), 1 / cfg.size)
    for order, table in zip(cfg.orders, state.params, strict=True):
        counts = table[_row(context[..., cfg.order - order :], cfg)].astype(law.dtype)
        total = counts.sum(-1, keepdims=True) + pseudo
        law = jnp.where(total > 0, (counts + pseudo * law) / jnp.where(total > 0, total, 1.0), law)
    return law


def transition_matrix(state: State, cfg: Config) -> Array:
    """p(next | last) of a chain of order 1, (S, S), the last symbol in rows.

    Raises:
        ValueError: a chain of another order.
    """
    if cfg.order != 1:
        raise ValueError(f"a chain of order {cfg.order} has no transition matrix: use `predict`")
    return predict(state, jnp.arange(cfg.size)[:, None], cfg)


def stationary(transition: Array) -> Array:
    """The stationary distribution pi = pi P of an irreducible chain, (S,).

    From rows of P (S, S): pi (I - P + 11') = 1', which has one solution.
    """
    size = len(transition)
    return jnp.linalg.solve((jnp.eye(size, dtype=transition.dtype) - transition + 1).T, jnp.ones(size))


def expected_stay(transition: Array) -> Array:
    """Mean number of consecutive steps that a chain stays at each symbol, (S,): 1 / (1 - P_ii)."""
    return 1 / (1 - jnp.diagonal(transition))


def num_free_parameters(cfg: Config) -> int:
    """S - 1 for each context of the chain's order, those at the start among them."""
    contexts = sum(cfg.size**order for order in range(cfg.order + 1))
    return min(contexts, cfg.max_rows) * (cfg.size - 1)


def bic(state: State, x: Array, cfg: Config, mask: Array | None = None) -> Array:
    """Bayesian information criterion of sequences x (N, T), (): lower is better (Schwarz 1978).

    It holds for a fit with `smoothing=0`; every symbol counts as an observation.
    """
    count = x.size if mask is None else mask.sum()
    return -2 * log_prob(state, x, cfg, mask).sum() + num_free_parameters(cfg) * jnp.log(count)


def choose_order(
    x: Any, cfg: Config, orders: Iterable[int], mask: Any = None
) -> tuple[int, dict[int, float]]:
    """The order whose maximum-likelihood chain of x (N, T) has the lowest BIC, and the BIC of each."""
    found = {}
    for order in orders:
        chain = dataclasses.replace(cfg, order=order, smoothing=0.0, backoff=False)
        found[order] = float(bic(fit(x, chain, mask), jnp.asarray(x), chain, mask))
    return min(found, key=found.__getitem__), found


def _count(tables, x, mask, cfg):
    """The tables with the counts of x (B, T) added."""
    counted = (x >= 0) & (x < cfg.size)
    counted = (counted if mask is None else counted & mask).astype(jnp.int32)
    contexts = _contexts(x, cfg)
    return tuple(
        table + jnp.zeros_like(table).at[_row(contexts[..., cfg.order - order :], cfg), x].add(counted)
        for order, table in zip(cfg.orders, tables, strict=True)
    )


def _contexts(x, cfg):
    """The symbols before each of x (B, T), oldest first, (B, T, order)."""
    padded = jnp.pad(x, ((0, 0), (cfg.order, 0)), constant_values=cfg.size)
    before = [padded[:, lag : lag + x.shape[1]] for lag in range(cfg.order)]
    return jnp.stack(before, -1) if before else jnp.zeros((*x.shape, 0), x.dtype)


def _row(context, cfg):
    """Row of the table that each context (..., order) counts in."""
    size, order = cfg.size + 1, context.shape[-1]
    if size**order <= cfg.max_rows:
        return (context * jnp.array([size**place for place in range(order)][::-1], jnp.int32)).sum(-1)
    code = jnp.full(context.shape[:-1], 2166136261, jnp.uint32)  # the hash of Fowler, Noll & Vo
    for place in range(order):
        code = (code ^ context[..., place].astype(jnp.uint32)) * jnp.uint32(16777619)
    return ((code ^ (code >> 15)) % cfg.max_rows).astype(jnp.int32)


def _num_rows(order, cfg):
    return min((cfg.size + 1) ** order, cfg.max_rows)
