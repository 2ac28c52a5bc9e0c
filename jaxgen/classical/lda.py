"""Latent Dirichlet allocation by variational Bayes (Blei, Ng & Jordan 2003; Hoffman, Blei & Bach 2010).

Every document mixes K topics, which are laws over the vocabulary, and both have Dirichlet priors:

    theta_d ~ Dir(alpha),   beta_k ~ Dir(eta),   n_d ~ words drawn from sum_k theta_dk beta_k

The posterior is approximated by independent Dirichlets, theta_d by Dir(gamma_d) and beta_k by Dir(lambda_k).
With Et = exp E[log theta], Eb = exp E[log beta] and r = n / (Et Eb), coordinate ascent on the evidence bound
is

    gamma = alpha + Et * (r Eb')    in each document to convergence,    lambda = eta + Eb * (Et' r).

`fit` repeats it on the whole corpus in one compiled loop; `train_step` is online variational Bayes, which
moves lambda by (tau0 + t)^-kappa towards what the batch says of a corpus of `num_documents`. `lda_gibbs`
draws from the posterior instead.

Departs from the papers: Et and Eb are divided by their largest entry, which cancels, so float32 does not
underflow; gamma and lambda start log-normal, not from a gamma law of the same mean 1 and deviation 0.1; the
number of words in a sampled document is Poisson.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import digamma, gammaln

from jaxgen import values
from jaxgen.arguments import checked
from jaxgen.classical import documents
from jaxgen.fields import Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from jaxgen.types import Batch, Metrics, observed

CHUNK = 32
"""Documents `fit` infers at a time, as long as the slowest of them takes."""

FLOOR = 1e-30
"""Least probability, relative to the largest, that a word of a document is given."""


@dataclasses.dataclass(frozen=True)
class Online(values.Value):
    """Online variational Bayes: step t = 1, 2, ... moves the topics by the share (tau0 + t)^-kappa."""

    num_documents: PositiveInt | None = None
    """Documents in the whole corpus, D, which a batch stands for; by default those of the training data."""
    delay: NonNegativeFloat = 10.0
    """tau0, which makes the first steps smaller."""
    decay: Fraction = 0.7
    """kappa, in (0.5, 1]; 0 forgets the past."""


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(values.Value):
    """Hyperparameters of latent Dirichlet allocation."""

    shape: tuple[PositiveInt, ...] = (25,)
    """(W,) words in the vocabulary, or the shape of a picture, whose pixels are words."""
    num_topics: PositiveInt = 10
    """Topics in the mixture."""
    mixture_prior: PositiveFloat = 0.1
    """alpha, the Dirichlet prior of a document's topics: the smaller, the fewer topics in a document."""
    word_prior: PositiveFloat = 0.1
    """eta, the Dirichlet prior of a topic's words: the smaller, the fewer words in a topic."""
    num_levels: PositiveInt = 16
    """Words that a white pixel counts for where documents are pictures; a black one has none."""
    online: Online = Online()
    """How `train_step` weighs its batches."""
    max_inner_steps: PositiveInt = 100
    """Most updates of a document's gamma."""
    inner_tolerance: NonNegativeFloat = 1e-3
    """A document is done when an update changes its gamma by less than this, on average over topics."""
    max_steps: NonNegativeInt = 100
    """Most passes of `fit` over the corpus."""
    tolerance: NonNegativeFloat = 1e-4
    """`fit` stops when a pass gains less than this in the bound, nats a word; 0 for all the passes."""

    @property
    def num_words(self) -> int:
        return math.prod(self.shape)


class Params(NamedTuple):
    """The posterior of the topics."""

    topics: Array  # (K, W), lambda: Dirichlet parameters of each topic's words


class State(NamedTuple):
    """What training changes."""

    step: Array
    key: Array
    params: Params
    length: Array  # () words in a document, on average


def from_data(dataset: Any, cfg: Config) -> Config:
    """`cfg` with the number of documents of the data, if it is not given."""
    if cfg.online.num_documents is not None:
        return cfg
    return dataclasses.replace(cfg, online=dataclasses.replace(cfg.online, num_documents=len(dataset)))


@checked
def init(key: Array, cfg: Config, batch: Batch | None = None) -> State:
    """Topics near the uniform law; documents as long as those of `batch`, or of one word a place.

    Raises ValueError for priors that are not above 0.
    """
    if min(cfg.mixture_prior, cfg.word_prior) <= 0:
        raise ValueError("mixture_prior and word_prior must be above 0")
    topics_key, step_key = jax.random.split(key)
    topics = _near_one(topics_key, (cfg.num_topics, cfg.num_words))
    length = jnp.full((), cfg.num_words, topics.dtype)
    if batch is not None:
        length = documents.lengths(_counts(observed(batch), cfg)).mean().astype(topics.dtype)
    return State(jnp.zeros((), jnp.int32), step_key, Params(topics), length)


@checked
def train_step(state: State, batch: Batch, cfg: Config) -> tuple[State, Metrics]:
    """One step of online variational Bayes on `batch["x"]` (B, W), or `batch["image"]` (B, *shape).

    "loss" is the negative evidence bound of the words, nats a document, and "perplexity" what it says of a
    word, both with the topics before the step.
    """
    docs = _counts(observed(batch), cfg)
    count, total = len(documents.counts_of(docs)), documents.lengths(docs).sum()
    expected = _expected_words(state.params.topics)
    key = jax.random.fold_in(state.key, state.step)
    start = _near_one(key, (count, cfg.num_topics), expected[0].dtype)
    _, statistics, bound = _infer(expected, docs, cfg, start)
    rate = (cfg.online.delay + state.step + 1.0) ** -cfg.online.decay
    target = cfg.word_prior + (cfg.online.num_documents or count) / count * expected[0] * statistics
    topics = state.params.topics + rate * (target - state.params.topics)
    length = state.length + rate * (total / count - state.length)
    state = state._replace(step=state.step + 1, params=Params(topics), length=length)
    bound = bound.sum()
    return state, {"loss": -bound / count, "perplexity": jnp.exp(-bound / jnp.maximum(total, 1))}


def fit(x: Any, cfg: Config, topics: Array | None = None, key: Array | None = None) -> State:
    """Passes over all documents x until `cfg.tolerance` or `cfg.max_steps`, compiled as one loop.

    Starts from `topics`, lambda (K, W), or from `init` with `key` (`jax.random.key(0)` if not given). Every
    pass infers gamma anew from random starts, which serves topics that are still much alike: the bound rises,
    but for documents whose ascent ends in a lower place than before. `state.step` counts the passes.

    Args:
        x: counts (N, W), pictures (N, *shape), a SciPy CSR matrix, or `documents.Documents`.

    Raises:
        ValueError: documents of another shape; counts that are negative, not finite or all 0.
    """
    docs = _counts(x, cfg)
    documents.check(docs, cfg.num_words)
    return _fit(docs, topics, jax.random.key(0) if key is None else key, cfg)


@checked
def sample(key: Array, state: State, n: int, cfg: Config) -> Array:
    """n documents, (n, *shape), of the mean topics: counts of words, or pictures."""
    mixture_key, word_key = jax.random.split(key)
    law = topic_words(state)
    mixtures = jax.random.dirichlet(mixture_key, jnp.full(cfg.num_topics, cfg.mixture_prior), (n,))
    words = documents.draw(word_key, mixtures.astype(law.dtype) @ law, state.length)
    return documents.picture_of(words, cfg.shape, cfg.num_levels).reshape(n, *cfg.shape)


def measure(cfg: Config) -> str:
    """What `elbo` is of: the counts of words."""
    del cfg
    return "counts"


@checked
def elbo(key: Array | None, state: State, x: Any, cfg: Config) -> Array:
    """Lower bound on the log-probability of the words of documents x in their order, in nats, (B,).

    That is E[log p(words, theta | beta) - log q(theta)], given q(beta). Nothing is drawn with `key`.
    """
    return _infer(_expected_words(state.params.topics), _counts(x, cfg), cfg)[2]


@checked
def encode(state: State, x: Any, cfg: Config) -> Array:
    """E[theta] of documents x under their variational posterior, (B, K)."""
    gamma = _infer(_expected_words(state.params.topics), _counts(x, cfg), cfg)[0]
    return gamma / gamma.sum(1, keepdims=True)


@checked
def decode(state: State, z: Array, cfg: Config) -> Array:
    """Expected counts, as pictures if they are, of documents of mean length with theta z, (B, *shape)."""
    return _expected(state, z, state.length, cfg)


@checked
def reconstruct(state: State, x: Any, cfg: Config) -> Array:
    """Expected counts, as pictures if they are, of documents x from E[theta], (B, *shape)."""
    docs = _counts(x, cfg)
    return _expected(state, encode(state, x, cfg), documents.lengths(docs)[:, None], cfg)


def topic_words(state: State) -> Array:
    """E[beta], the words of each topic, (K, W)."""
    topics = state.params.topics
    return topics / topics.sum(1, keepdims=True)


def perplexity(state: State, x: Any, cfg: Config, held_out: Any = None) -> Array:
    """exp of the mean of -log p over words, ().

    Of the words of `held_out` given those of x, other words of the same documents, with E[theta] and E[beta];
    without `held_out` of the words of x by `elbo`, an upper bound. Of no words at all it is 1.
    """
    if held_out is None:
        total = jnp.maximum(documents.lengths(_counts(x, cfg)).sum(), 1)
        return jnp.exp(-elbo(None, state, x, cfg).sum() / total)
    other = _counts(held_out, cfg)
    table = documents.table(topic_words(state), other)
    log_law = jnp.log(documents.mix(encode(state, x, cfg), table))
    counts = documents.counts_of(other)
    return jnp.exp(-(counts * log_law).sum() / jnp.maximum(counts.sum(), 1))


def corpus_bound(state: State, x: Any, cfg: Config) -> Array:
    """The whole evidence bound of corpus x: `elbo` of its documents and what the topics cost, nats, ()."""
    return elbo(None, state, x, cfg).sum() + _topic_bound(state.params.topics, cfg)


@functools.partial(jax.jit, static_argnums=3)
def _fit(docs, topics, key, cfg):
    lengths = documents.lengths(docs)
    first = (init(key, cfg).params.topics if topics is None else jnp.asarray(topics)).astype(lengths.dtype)
    chunks = documents.in_chunks(docs, CHUNK)

    def body(carry):
        topics, reached, _, steps = carry
        topics, bound = _pass(jax.random.fold_in(key, steps), topics, chunks, cfg)
        return topics, bound / lengths.sum(), reached, steps + 1

    def unfinished(carry):
        _, reached, before, steps = carry
        gains = (steps < 2) | (reached - before >= cfg.tolerance) | (cfg.tolerance == 0)
        return (steps < cfg.max_steps) & gains

    low = jnp.full((), -jnp.inf, first.dtype)
    topics, _, _, steps = jax.lax.while_loop(unfinished, body, (first, low, low, jnp.int32(0)))
    return State(steps, key, Params(topics), lengths.mean())


def _pass(key, topics, chunks, cfg):
    """The next topics from chunks (C, B, ...) of documents, and the bound with those before, ()."""

    def chunk(total, part):
        index, docs = part
        shape = len(documents.counts_of(docs)), cfg.num_topics
        start = _near_one(jax.random.fold_in(key, index), shape, topics.dtype)
        _, statistics, bound = _infer(expected, docs, cfg, start)
        return (total[0] + statistics, total[1] + bound.sum()), None

    expected, numbers = _expected_words(topics), jnp.arange(len(documents.counts_of(chunks)))
    zero = jnp.zeros_like(topics), jnp.zeros((), topics.dtype)
    (statistics, bound), _ = jax.lax.scan(chunk, zero, (numbers, chunks))
    return cfg.word_prior + expected[0] * statistics, bound + _topic_bound(topics, cfg)


def _near_one(key, shape, dtype=None):
    """Numbers that differ by a tenth: where topics are much alike, they decide between them."""
    return jnp.exp(0.1 * jax.random.normal(key, shape, dtype))


def _expected_words(topics):
    """Eb (K, W), each column over its largest entry, and the logarithms of these (W,)."""
    log_words = _expected_log(topics)
    largest = log_words.max(0)
    return jnp.exp(log_words - largest), largest


def _infer(expected, docs, cfg, start=None):
    """gamma (B, K), the statistics Et' r (K, W), and the bound of each document (B,).

    `expected` is that of words; the ascent starts from gamma `start`, by default 1.
    """
    words, largest = expected
    table, counts = documents.table(words, docs), documents.counts_of(docs)

    def weigh(gamma):
        """Et over its largest entry, the logarithm of that, and Et Eb."""
        log_mixtures = _expected_log(gamma)
        top = log_mixtures.max(1, keepdims=True)
        mixtures = jnp.exp(log_mixtures - top)
        return mixtures, top, documents.mix(mixtures, table) + FLOOR

    def update(carry):
        gamma, active, steps = carry
        mixtures, _, law = weigh(gamma)
        new = cfg.mixture_prior + mixtures * documents.collect(counts / law, table)
        still = active & (jnp.abs(new - gamma).mean(1) >= cfg.inner_tolerance)
        return jnp.where(active[:, None], new, gamma), still, steps + 1

    def unfinished(carry):
        return carry[1].any() & (carry[2] < cfg.max_inner_steps)

    if start is None:
        start = jnp.ones((len(counts), words.shape[0]), words.dtype)
    begin = start, jnp.ones(len(counts), bool), jnp.int32(0)
    gamma, _, _ = jax.lax.while_loop(unfinished, update, begin)
    mixtures, top, law = weigh(gamma)
    statistics = documents.spread(mixtures, counts / law, docs, cfg.num_words)
    log_law = jnp.log(law) + top + documents.at_words(largest, docs)
    return gamma, statistics, (counts * log_law).sum(1) + _dirichlet_bound(gamma, cfg.mixture_prior)


def _topic_bound(topics, cfg):
    return _dirichlet_bound(topics, cfg.word_prior).sum()


def _dirichlet_bound(parameters, prior):
    """E[log p - log q] of q = Dir(parameters) (N, M) and p = Dir(prior), (N,)."""
    size = parameters.shape[1]
    constant = math.lgamma(size * prior) - size * math.lgamma(prior)
    inner = (prior - parameters) * _expected_log(parameters) + gammaln(parameters)
    return constant + inner.sum(1) - gammaln(parameters.sum(1))


def _expected_log(parameters):
    """E[log theta] under Dir(parameters), rows of (N, M)."""
    return digamma(parameters) - digamma(parameters.sum(1, keepdims=True))


def _expected(state, mixtures, length, cfg):
    words = documents.picture_of(length * (mixtures @ topic_words(state)), cfg.shape, cfg.num_levels)
    return words.reshape(-1, *cfg.shape)


def _counts(x, cfg):
    return documents.of(x, cfg.shape, cfg.num_levels)
