"""Probabilistic latent semantic analysis (Hofmann 1999).

The words of a document are drawn from a mixture of K topics, which are laws over the vocabulary:

    p(w | d) = sum_k p(k | d) p(w | k)

One EM step from counts n_dw sets, with Q_dw = n_dw / p(w | d) and both from the same Q,

    p(k | d) ~ p(k | d) sum_w Q_dw p(w | k),     p(w | k) ~ p(w | k) sum_d Q_dw p(k | d).

`fit` runs it on the whole corpus in one compiled loop. If held-out words of the same documents are given the
EM is tempered: the responsibilities are raised to a power below 1 as soon as those words get no likelier.
`train_step` folds the documents of its batch in, p(w | k) fixed, and averages their expected counts over time
(stepwise EM, Cappe & Moulines 2009).

Departs from the paper: the model has no law of p(k | d) for new documents, so `sample` takes those of
training documents that the state remembers, with a Poisson number of words.
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
from jaxgen.classical import documents
from jaxgen.fields import Fraction, NonNegativeFloat, NonNegativeInt, PositiveInt
from jaxgen.types import Batch, Metrics, observed

CHUNK = 512
"""Documents held at a time, each with the topics of all its words."""

COOLING = 0.9
"""Factor of the exponent of the responsibilities where tempering lowers it."""


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(values.Value):
    """Hyperparameters of probabilistic latent semantic analysis."""

    shape: tuple[PositiveInt, ...] = (25,)
    """(W,) words in the vocabulary, or the shape of a picture, whose pixels are words."""
    num_topics: PositiveInt = 10
    """Topics in the mixture."""
    num_levels: PositiveInt = 16
    """Words that a white pixel counts for where documents are pictures; a black one has none."""
    fold_steps: PositiveInt = 30
    """EM steps that fit p(k | d) to a new document, the topics fixed."""
    max_steps: NonNegativeInt = 200
    """Most EM steps of `fit`."""
    tolerance: NonNegativeFloat = 1e-5
    """`fit` stops when a step gains less than this in log-likelihood, nats a word; 0 for all the steps."""
    stepwise_power: Fraction = 0.7
    """`train_step` gives the counts of step t the weight (t + 2)^-power, in (0.5, 1]; 0 forgets the past."""
    num_kept: PositiveInt = 256
    """Training documents whose p(k | d) are remembered for `sample`."""

    @property
    def num_words(self) -> int:
        return math.prod(self.shape)


class Params(NamedTuple):
    """What new documents share with old ones."""

    topics: Array  # (K, W), p(w | k), rows sum to 1


class State(NamedTuple):
    """What training changes."""

    step: Array
    key: Array
    params: Params
    counts: Array  # (K, W) expected shares of topic and word among all words, averaged over the steps
    mixtures: Array  # (num_kept, K), p(k | d) of documents seen last
    length: Array  # () words in a document, on average


@checked
def init(key: Array, cfg: Config, batch: Batch | None = None) -> State:
    """Topics and mixtures drawn uniformly; documents as long as those of `batch`, or of one word a place."""
    topics_key, mixtures_key, step_key = jax.random.split(key, 3)
    topics = jax.random.dirichlet(topics_key, jnp.ones(cfg.num_words), (cfg.num_topics,))
    mixtures = jax.random.dirichlet(mixtures_key, jnp.ones(cfg.num_topics), (cfg.num_kept,))
    length = jnp.full((), cfg.num_words, topics.dtype)
    if batch is not None:
        length = documents.lengths(_counts(observed(batch), cfg)).mean().astype(topics.dtype)
    counts = topics / cfg.num_topics
    return State(jnp.zeros((), jnp.int32), step_key, Params(topics), counts, mixtures, length)


@checked
def train_step(state: State, batch: Batch, cfg: Config) -> tuple[State, Metrics]:
    """One stepwise EM step on documents `batch["x"]` (B, W), or `batch["image"]` (B, *shape).

    "nll" is that of the words, in nats a document, and "perplexity" of a word, both after folding in and
    before the step. A word that no topic has counts as one of the smallest probability there is.
    """
    docs = _counts(observed(batch), cfg)
    topics, count = state.params.topics, len(documents.counts_of(docs))
    mixtures = _fold_in(topics, docs, cfg)
    total = jnp.maximum(documents.lengths(docs).sum(), 1)
    log_likelihood = _log_likelihood(mixtures, topics, docs)
    _, statistics = _expectation(mixtures, topics, docs, 1.0)
    rate = (state.step + 2.0) ** -cfg.stepwise_power
    counts = state.counts + rate * (statistics / total - state.counts)
    kept = min(count, cfg.num_kept)
    places = ((state.step % cfg.num_kept) * kept + jnp.arange(kept)) % cfg.num_kept
    state = State(
        step=state.step + 1,
        key=state.key,
        params=Params(_rows(counts, topics)),
        counts=counts,
        mixtures=state.mixtures.at[places].set(mixtures[:kept]),
        length=state.length + rate * (total / count - state.length),
    )
    return state, {"nll": -log_likelihood / count, "perplexity": jnp.exp(-log_likelihood / total)}


def fit(
    x: Any, cfg: Config, held_out: Any = None, topics: Array | None = None, key: Array | None = None
) -> State:
    """EM on all documents x until `cfg.tolerance` or `cfg.max_steps`, compiled as one loop.

    Starts from `topics` (K, W), or from random ones drawn with `key` (`jax.random.key(0)` if not given), and
    from equal shares of the topics in every document. `state.step` counts the steps taken.

    Args:
        x: counts (N, W), pictures (N, *shape), a SciPy CSR matrix, or `documents.Documents`.
        held_out: other words of the same documents, likewise. If given the EM is tempered: a step that makes
            them no likelier is taken back and the exponent lowered, until that does not help either.

    Raises:
        ValueError: documents of another shape; counts that are negative, not finite or all 0.
    """
    docs = _counts(x, cfg)
    documents.check(docs, cfg.num_words)
    other = None
    if held_out is not None:
        other = _counts(held_out, cfg)
        documents.check(other, cfg.num_words)
        if len(documents.counts_of(other)) != len(documents.counts_of(docs)):
            raise ValueError("held_out must have the same documents as x, row by row")
    return _fit(docs, other, topics, jax.random.key(0) if key is None else key, cfg)


@checked
def sample(key: Array, state: State, n: int, cfg: Config) -> Array:
    """n documents, (n, *shape), with the topics of remembered ones: counts of words, or pictures."""
    document_key, word_key = jax.random.split(key)
    rows = jax.random.randint(document_key, (n,), 0, cfg.num_kept)
    words = documents.draw(word_key, state.mixtures[rows] @ state.params.topics, state.length)
    return documents.picture_of(words, cfg.shape, cfg.num_levels).reshape(n, *cfg.shape)


@checked
def encode(state: State, x: Any, cfg: Config) -> Array:
    """p(k | d) of documents x folded in, (B, K); equal shares where there are no words."""
    return _fold_in(state.params.topics, _counts(x, cfg), cfg)


@checked
def decode(state: State, z: Array, cfg: Config) -> Array:
    """Expected counts, as pictures if they are, of documents of mean length with p(k | d) z, (B, *shape)."""
    return _expected(state, z, state.length, cfg)


@checked
def reconstruct(state: State, x: Any, cfg: Config) -> Array:
    """Expected counts, as pictures if they are, of documents x folded in, (B, *shape)."""
    docs = _counts(x, cfg)
    return _expected(state, _fold_in(state.params.topics, docs, cfg), documents.lengths(docs)[:, None], cfg)


def perplexity(state: State, x: Any, cfg: Config, held_out: Any = None) -> Array:
    """exp of the mean of -log p(w | d) over the words of `held_out`, the documents folded in by x, ().

    Without `held_out` over the words of x itself, which have been used for folding in. Of no words at all it
    is 1.
    """
    docs = _counts(x, cfg)
    mixtures = _fold_in(state.params.topics, docs, cfg)
    scored = docs if held_out is None else _counts(held_out, cfg)
    total = jnp.maximum(documents.lengths(scored).sum(), 1)
    return jnp.exp(-_log_likelihood(mixtures, state.params.topics, scored) / total)


@functools.partial(jax.jit, static_argnums=4)
def _fit(docs, held_out, topics, key, cfg):
    state = init(key, cfg)
    lengths, total = documents.lengths(docs), documents.lengths(docs).sum()
    number, dtype = len(lengths), lengths.dtype
    chunks = documents.in_chunks(docs, CHUNK)
    scored = None if held_out is None else documents.in_chunks(held_out, CHUNK)
    first = (state.params.topics if topics is None else jnp.asarray(topics)).astype(dtype)
    shape = (*documents.counts_of(chunks).shape[:2], cfg.num_topics)

    def score(mixtures, topics):
        each = jax.lax.map(lambda part: _log_likelihood(part[0], topics, part[1]), (mixtures, scored))
        return each.sum() / documents.counts_of(held_out).sum()

    def em(now, exponent):
        mixtures, topics = now

        def chunk(total, part):
            mixtures, statistics = _expectation(part[0], topics, part[1], exponent)
            before = _log_likelihood(part[0], topics, part[1])
            return jax.tree.map(jnp.add, total, (statistics, before)), mixtures

        zero = jnp.zeros_like(topics), jnp.zeros((), dtype)
        (statistics, before), mixtures = jax.lax.scan(chunk, zero, (mixtures, chunks))
        return (mixtures, _rows(statistics, topics)), before / total

    def body(carry):
        now, exponent, reached, failures, steps = carry
        if held_out is None:
            found, after = em(now, 1.0)
            failed = (after - reached < cfg.tolerance) & (cfg.tolerance > 0)
            return found, exponent, after, 2 * failed.astype(jnp.int32), steps + 1
        found, _ = em(now, exponent)
        after = score(*found)
        better = after - reached >= cfg.tolerance
        now = jax.tree.map(lambda new, old: jnp.where(better, new, old), found, now)
        exponent = jnp.where(better, exponent, COOLING * exponent)
        return now, exponent, jnp.maximum(after, reached), jnp.where(better, 0, failures + 1), steps + 1

    def unfinished(carry):
        return (carry[3] < 2) & (carry[4] < cfg.max_steps)

    start = jnp.full(shape, 1 / cfg.num_topics, dtype), first
    low = jnp.full((), -jnp.inf, dtype)
    carry = (start, jnp.ones((), dtype), low, jnp.int32(0), jnp.int32(0))
    (mixtures, topics), _, _, _, steps = jax.lax.while_loop(unfinished, body, carry)
    mixtures = mixtures.reshape(-1, cfg.num_topics)[:number]
    share = (lengths / total) @ mixtures
    kept = mixtures[jnp.arange(cfg.num_kept) * number // cfg.num_kept]
    return State(steps, key, Params(topics), share[:, None] * topics, kept, total / number)


def _expectation(mixtures, topics, docs, exponent):
    """Next p(k | d), and the expected counts (K, W), by responsibilities raised to the exponent."""
    plain = isinstance(exponent, float) and exponent == 1.0
    warm, hot = (mixtures, topics) if plain else (mixtures**exponent, topics**exponent)
    table = documents.table(hot, docs)
    weights = _weights(warm, table, docs)
    found = warm * documents.collect(weights, table)
    return _rows(found, mixtures), hot * documents.spread(warm, weights, docs, topics.shape[1])


def _weights(mixtures, table, docs):
    """n_dw / p(w | d), 0 for words that no topic has."""
    probability = documents.mix(mixtures, table)
    possible = probability > 0
    return jnp.where(possible, documents.counts_of(docs) / jnp.where(possible, probability, 1), 0)


def _fold_in(topics, docs, cfg):
    """p(k | d) after cfg.fold_steps EM steps from equal shares."""
    table = documents.table(topics, docs)

    def step(_, mixtures):
        return _rows(mixtures * documents.collect(_weights(mixtures, table, docs), table), mixtures)

    shape = len(documents.counts_of(docs)), topics.shape[0]
    start = jnp.full(shape, 1 / topics.shape[0], topics.dtype)
    return jax.lax.fori_loop(0, cfg.fold_steps, step, start)


def _log_likelihood(mixtures, topics, docs):
    """sum n_dw log p(w | d), nats."""
    probability = documents.mix(mixtures, documents.table(topics, docs))
    return (documents.counts_of(docs) * jnp.log(jnp.maximum(probability, jnp.finfo(topics.dtype).tiny))).sum()


def _expected(state, mixtures, length, cfg):
    words = documents.picture_of(length * (mixtures @ state.params.topics), cfg.shape, cfg.num_levels)
    return words.reshape(-1, *cfg.shape)


def _rows(a, previous):
    """Rows that sum to 1; those without any mass stay as they were."""
    total = a.sum(-1, keepdims=True)
    return jnp.where(total > 0, a / jnp.where(total > 0, total, 1), previous)


def _counts(x, cfg):
    return documents.of(x, cfg.shape, cfg.num_levels)
