"""Collapsed Gibbs sampling of latent Dirichlet allocation (Griffiths & Steyvers 2004).

With theta and beta integrated out, the topic of token i, word w of document d, is drawn in its turn from

    p(z_i = k | all others) ~ (n_dk + alpha) (n_kw + eta) / (n_k + W eta),     counts without token i.

The model, its `Config` and what is done with the topics found are those of `lda`: given the topics of all
tokens, the posterior of beta_k is Dir(eta + n_k), whose average over the chain is the State returned.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import gammaln

from jaxgen.classical import documents, lda


class Tokens(NamedTuple):
    """A corpus one word at a time."""

    words: Array  # (T,) int32
    documents: Array  # (T,) int32


class Tables(NamedTuple):
    """Tokens by topic."""

    mixtures: Array  # (D, K), n_dk
    words: Array  # (W, K), n_kw
    topics: Array  # (K,), n_k


class Posterior(NamedTuple):
    """What a chain leaves."""

    state: lda.State  # with eta + n_kw, averaged over the kept sweeps
    mixtures: Array  # (D, K), E[theta], averaged likewise
    assignments: Array  # (T,) int32, topics of the tokens after the last sweep
    log_joint: Array  # (num_sweeps,) log p(words, assignments), nats


def fit(
    x: Any, cfg: lda.Config, key: Array | None = None, num_sweeps: int = 500, num_burn_in: int = 250
) -> Posterior:
    """One chain over all documents x from random topics, `num_sweeps` sweeps compiled as one loop.

    Args:
        x: whole counts (N, W), pictures (N, *shape), a SciPy CSR matrix, or `documents.Documents`.
        key: `jax.random.key(0)` if not given.
        num_burn_in: sweeps left out of the averages.

    Raises:
        ValueError: documents of another shape; counts that are negative, not whole, not finite or all 0; a
            burn-in that leaves no sweep.
    """
    if not 0 <= num_burn_in < num_sweeps:
        raise ValueError(f"a burn-in of {num_burn_in} leaves nothing of {num_sweeps} sweeps")
    docs = documents.of(x, cfg.shape, cfg.num_levels)
    tokens = tokens_of(docs, cfg.num_words)
    number = len(documents.counts_of(docs))
    key = jax.random.key(0) if key is None else key
    posterior = _fit(tokens, key, cfg, number, num_sweeps, num_burn_in)
    length = jnp.asarray(len(tokens.words) / number, posterior.mixtures.dtype)
    return posterior._replace(state=posterior.state._replace(length=length))


def tokens_of(docs: documents.Counts, num_words: int) -> Tokens:
    """The tokens of documents, document after document.

    Raises ValueError for counts that are negative, not whole, not finite or all 0.
    """
    documents.check(docs, num_words)
    counts = np.asarray(documents.counts_of(docs))
    if (counts != np.floor(counts)).any():
        raise ValueError("Gibbs sampling draws a topic for every token: counts of words must be whole")
    words = docs.words if isinstance(docs, documents.Documents) else np.arange(num_words)
    places = words, np.arange(len(counts))[:, None]
    repeats = counts.astype(np.int64).ravel()
    flat = (np.broadcast_to(np.asarray(a, np.int32), counts.shape).ravel() for a in places)
    return Tokens(*(jnp.asarray(np.repeat(a, repeats)) for a in flat))


def count(assignments: Array, tokens: Tokens, cfg: lda.Config, num_documents: int) -> Tables:
    """The tables of topics (T,) of the tokens."""
    member = jax.nn.one_hot(assignments, cfg.num_topics)
    mixtures = jax.ops.segment_sum(member, tokens.documents, num_documents)
    words = jax.ops.segment_sum(member, tokens.words, cfg.num_words)
    return Tables(mixtures, words, member.sum(0))


def conditional(tables: Tables, document: Array, word: Array, cfg: lda.Config) -> Array:
    """p(z = k | all others) of a token that is not in the tables, up to a factor, (K,)."""
    words = (tables.words[word] + cfg.word_prior) / (tables.topics + cfg.num_words * cfg.word_prior)
    return (tables.mixtures[document] + cfg.mixture_prior) * words


def sweep(
    key: Array, assignments: Array, tables: Tables, tokens: Tokens, cfg: lda.Config
) -> tuple[Array, Tables]:
    """Draws the topic of every token in its turn: topics (T,) and their tables."""

    def draw(tables, token):
        word, document, topic, uniform = token
        without = _add(tables, document, word, topic, -1.0)
        cumulative = jnp.cumsum(conditional(without, document, word, cfg))
        topic = (cumulative[:-1] < uniform * cumulative[-1]).sum().astype(jnp.int32)
        return _add(without, document, word, topic, 1.0), topic

    uniform = jax.random.uniform(key, assignments.shape)
    tables, assignments = jax.lax.scan(draw, tables, (*tokens, assignments, uniform))
    return assignments, tables


def log_joint(tables: Tables, cfg: lda.Config) -> Array:
    """log p(words, assignments), theta and beta integrated out, nats, ()."""

    def polya(counts, prior):
        """log-probability of one order of draws with these counts (N, M), summed over rows."""
        size = counts.shape[1]
        rows = gammaln(size * prior) - gammaln(size * prior + counts.sum(1))
        return rows.sum() + (gammaln(prior + counts) - gammaln(prior)).sum()

    return polya(tables.words.T, cfg.word_prior) + polya(tables.mixtures, cfg.mixture_prior)


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5))
def _fit(tokens, key, cfg, num_documents, num_sweeps, num_burn_in):
    start_key, sweep_key = jax.random.split(key)
    assignments = jax.random.randint(start_key, tokens.words.shape, 0, cfg.num_topics, jnp.int32)
    tables = count(assignments, tokens, cfg, num_documents)

    def body(carry, index):
        assignments, tables, mean = carry
        assignments, tables = sweep(jax.random.fold_in(sweep_key, index), assignments, tables, tokens, cfg)
        kept = (index >= num_burn_in) / (num_sweeps - num_burn_in)
        mean = jax.tree.map(lambda total, now: total + kept * now, mean, tables)
        return (assignments, tables, mean), log_joint(tables, cfg)

    start = assignments, tables, jax.tree.map(jnp.zeros_like, tables)
    (assignments, _, mean), joint = jax.lax.scan(body, start, jnp.arange(num_sweeps))
    mixtures = mean.mixtures + cfg.mixture_prior
    params = lda.Params(cfg.word_prior + mean.words.T)
    state = lda.State(jnp.int32(num_sweeps), key, params, jnp.zeros(()))
    return Posterior(state, mixtures / mixtures.sum(1, keepdims=True), assignments, joint)


def _add(tables, document, word, topic, sign):
    return Tables(
        tables.mixtures.at[document, topic].add(sign),
        tables.words.at[word, topic].add(sign),
        tables.topics.at[topic].add(sign),
    )
