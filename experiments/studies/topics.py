"""Topics of a corpus by LDA and PLSA, beside scikit-learn's from the same start and as many passes.

python experiments/studies/topics.py --corpus reuters.npz

The corpus is an npz file of counts in CSR form ("data", "indices", "indptr", "shape") and words ("vocab"). A
fifth of the documents are held out. Of each, half of the tokens are given and the others predicted from what
they say of its topics: their perplexity can be compared between all the models.
"""

import jaxgen.interrupts  # noqa: F401 - first, see there

import dataclasses
import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.sparse
import scipy.special

from jaxgen import script
from jaxgen.classical import documents, lda, lda_gibbs, plsa
from jaxgen.fields import PositiveFloat, PositiveInt
from jaxgen.run import directory
from jaxgen.script import result


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Fit every model to four fifths of a corpus, and tell its topics and its perplexity."""

    corpus: Path
    """npz file with the counts in CSR form, and the words."""
    num_topics: PositiveInt = 20
    """Topics of every model."""
    mixture_prior: PositiveFloat = 0.1
    """alpha, of the topics of a document."""
    word_prior: PositiveFloat = 0.05
    """eta, of the words of a topic."""
    passes: PositiveInt = 100
    """Passes of variational Bayes over the documents."""
    online_passes: PositiveInt = 20
    """Passes of online variational Bayes."""
    batch_size: PositiveInt = 79
    """Documents in a batch of online variational Bayes."""
    sweeps: PositiveInt = 200
    """Sweeps of Gibbs sampling, of which the first half is not kept."""
    num_words: PositiveInt = 10
    """Words shown of every topic."""
    seed: int = 0
    """Of the split and of every start."""
    results: Path = Path("experiments/results/topics")
    """Folder for the table."""


@dataclasses.dataclass(frozen=True)
class Corpus:
    """What is fitted and what is predicted, as CSR matrices of float32 counts."""

    train: scipy.sparse.csr_matrix
    given: scipy.sparse.csr_matrix
    held_out: scipy.sparse.csr_matrix
    words: np.ndarray


def load(path: Path, seed: int) -> Corpus:
    """The corpus split: documents into train and test, test tokens into given and held out.

    Words that no training document has are no model's to predict: they are left out.
    """
    with np.load(path) as file:
        parts = tuple(file[name] for name in ("data", "indices", "indptr"))
        counts = scipy.sparse.csr_matrix(parts, tuple(file["shape"])).astype(np.int64)
        words = file["vocab"]
    rng = np.random.RandomState(seed)
    order = rng.permutation(counts.shape[0])
    test = np.sort(order[: len(order) // 5])
    train = counts[np.setdiff1d(order, test)]
    known = np.asarray(train.sum(0)).ravel() > 0
    train, rest = train[:, known], counts[test][:, known]
    return Corpus(train.astype(np.float32), *thin(rest, 0.5, rng), words[known])


def thin(counts: scipy.sparse.csr_matrix, share: float, rng: np.random.RandomState) -> tuple[Any, Any]:
    """Each token in the first matrix with probability `share`, else in the second."""
    first = counts.copy()
    first.data = rng.binomial(counts.data.astype(np.int64), share)
    second = counts - first
    for matrix in (first, second):
        matrix.eliminate_zeros()
    return first.astype(np.float32), second.astype(np.float32)


def timed(function: Callable[[], Any]) -> tuple[Any, float, float]:
    """What the function returns, its seconds, and what the first call took longer: its compilation."""
    seconds = []
    for _ in range(2):
        since = time.perf_counter()
        found = jax.block_until_ready(function())
        seconds.append(time.perf_counter() - since)
    return found, seconds[1], max(seconds[0] - seconds[1], 0.0)


def completion(mixtures: Any, topics: Any, held_out: scipy.sparse.csr_matrix) -> float:
    """Perplexity of the held-out tokens, (D, K) and (K, W) probabilities given."""
    law = np.asarray(mixtures, np.float64) @ np.asarray(topics, np.float64)
    log_law = np.log(np.maximum(law, np.finfo(np.float32).tiny))
    return float(np.exp(-held_out.multiply(log_law).sum() / held_out.sum()))


def scikit_learn(options: Options, start: np.ndarray, method: str, passes: int) -> Any:
    """Its estimator, made to start from the topics `start` (K, W)."""
    from sklearn.decomposition import LatentDirichletAllocation

    class Started(LatentDirichletAllocation):
        def _init_latent_vars(self, n_features: int, dtype: Any = np.float64) -> None:
            super()._init_latent_vars(n_features, dtype)
            self.components_ = start.astype(dtype)
            total = scipy.special.psi(self.components_.sum(1, keepdims=True))
            self.exp_dirichlet_component_ = np.exp(scipy.special.psi(self.components_) - total)

    return Started(
        options.num_topics,
        doc_topic_prior=options.mixture_prior,
        topic_word_prior=options.word_prior,
        learning_method=method,
        learning_decay=0.7,
        learning_offset=10.0,
        batch_size=options.batch_size,
        max_iter=passes,
        random_state=options.seed,
    )


def measure(options: Options, corpus: Corpus) -> tuple[dict[str, dict[str, Any]], dict[str, np.ndarray]]:
    """{model: its numbers} and {model: p(w | k), (K, W)}."""
    train, tokens = corpus.train, corpus.train.sum()
    rng = np.random.RandomState(options.seed)
    start = rng.gamma(100.0, 0.01, (options.num_topics, train.shape[1])).astype(np.float32)
    cfg = lda.Config(
        shape=(train.shape[1],),
        num_topics=options.num_topics,
        mixture_prior=options.mixture_prior,
        word_prior=options.word_prior,
        online=lda.Online(train.shape[0]),
        max_steps=options.passes,
        tolerance=0.0,
    )
    docs, given = documents.from_csr(train), documents.from_csr(corpus.given)
    bound = jax.jit(lambda state: lda.corpus_bound(state, docs, cfg))
    encode = jax.jit(lambda state: lda.encode(state, given, cfg))
    rows: dict[str, dict[str, Any]] = {}
    topics: dict[str, np.ndarray] = {}

    def add(name: str, mixtures: Any, law: Any, seconds: float, compilation: float, **more: Any) -> None:
        topics[name] = np.asarray(law)
        perplexity = completion(mixtures, law, corpus.held_out)
        rows[name] = {"completion_perplexity": perplexity, "seconds": seconds, "compile_seconds": compilation}
        rows[name].update(more)
        print(name, ", ".join(f"{key} {value:.5g}" for key, value in rows[name].items()), flush=True)

    def add_lda(name: str, state: lda.State, seconds: float, compilation: float, **more: Any) -> None:
        bound_word = float(bound(state) / tokens)
        law = lda.topic_words(state)
        add(name, encode(state), law, seconds, compilation, bound_per_word=bound_word, **more)

    def add_reference(name: str, method: str, passes: int) -> None:
        model = scikit_learn(options, start, method, passes)
        since = time.perf_counter()
        model.fit(train)
        seconds = time.perf_counter() - since
        law = model.components_ / model.components_.sum(1, keepdims=True)
        bound_word = -float(np.log(model.bound_))
        add(name, model.transform(corpus.given), law, seconds, 0.0, bound_per_word=bound_word)

    frequency = np.asarray(train.sum(0)) / tokens
    add("unigram", np.ones((corpus.given.shape[0], 1)), frequency, 0.0, 0.0)
    add_lda("lda, batch", *timed(lambda: lda.fit(docs, cfg, start)))
    add_reference("lda, batch (scikit-learn)", "batch", options.passes)
    add_lda("lda, online", *timed(functools.partial(online, docs, cfg, start, options)))
    add_reference("lda, online (scikit-learn)", "online", options.online_passes)
    key = jax.random.key(options.seed)
    chain = functools.partial(lda_gibbs.fit, docs, cfg, key, options.sweeps, options.sweeps // 2)
    found, seconds, compilation = timed(chain)
    joint = float(found.log_joint[-1] / tokens)
    add_lda("lda, Gibbs", found.state, seconds, compilation, log_joint_per_word=joint)

    plain_cfg = plsa.Config(
        shape=cfg.shape, num_topics=options.num_topics, max_steps=options.passes, tolerance=0
    )
    first = start / start.sum(1, keepdims=True)
    fold_in = jax.jit(lambda state: plsa.encode(state, given, plain_cfg))
    own = jax.jit(lambda state: plsa.perplexity(state, docs, plain_cfg))
    rest, tempering = thin(train, 0.9, rng)
    lost = np.asarray(rest.sum(0)).ravel() == 0
    rest, tempering = rest + tempering.multiply(lost).tocsr(), tempering.multiply(~lost).tocsr()
    fits = {
        "plsa": lambda: plsa.fit(docs, plain_cfg, topics=first),
        "plsa, tempered": lambda: plsa.fit(rest, plain_cfg, tempering, first),
    }
    for name, fit in fits.items():
        state, seconds, compilation = timed(fit)
        steps, perplexity = int(state.step), float(own(state))
        law = state.params.topics
        add(name, fold_in(state), law, seconds, compilation, training_perplexity=perplexity, steps=steps)
    return rows, topics


def online(docs: documents.Documents, cfg: lda.Config, start: np.ndarray, options: Options) -> lda.State:
    """Online variational Bayes over the documents in order, as scikit-learn visits them."""
    state = lda.init(jax.random.key(0), cfg)._replace(params=lda.Params(jnp.asarray(start)))
    size = options.batch_size
    rows = [slice(first, first + size) for first in range(0, len(docs.words), size)]
    batches = [documents.Documents(docs.words[part], docs.counts[part]) for part in rows]
    for _ in range(options.online_passes):
        for batch in batches:
            state, _ = STEP(state, {"x": batch}, cfg)
    return state


STEP = jax.jit(lda.train_step, static_argnums=2)


def match(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The topic of `second` that goes with each of `first`, (K,), one to one, by the words they share."""
    overlap = np.minimum(first[:, None], second).sum(2)
    return scipy.optimize.linear_sum_assignment(-overlap)[1]


def render(options: Options, corpus: Corpus, rows: dict, topics: dict[str, np.ndarray]) -> str:
    """The numbers and the topics as Markdown."""
    number = lambda row, name: f"{row[name]:.4g}" if name in row else ""
    columns = ("bound_per_word", "completion_perplexity", "seconds", "compile_seconds")
    train, given, held_out = corpus.train, corpus.given, corpus.held_out
    lines = [
        f"{train.shape[0]} documents of {int(train.sum())} tokens for training, a vocabulary of"
        f" {train.shape[1]}; of {given.shape[0]} others {int(held_out.sum())} tokens are predicted from"
        f" {int(given.sum())}. {options.num_topics} topics. The bound is that of the training documents,"
        " topics included, in nats a token; the completion perplexity is that of the predicted tokens.",
        "",
        "| Model | Bound | Completion perplexity | Seconds | Compilation |",
        "|---|---|---|---|---|",
        *(f"| {name} | {' | '.join(number(row, c) for c in columns)} |" for name, row in rows.items()),
    ]
    ours, theirs = topics["lda, batch"], topics["lda, batch (scikit-learn)"]
    top = lambda law: list(corpus.words[np.argsort(-law)[: options.num_words]])
    pairs = match(ours, theirs)
    shared = np.mean([len({*top(a)} & {*top(theirs[b])}) for a, b in zip(ours, pairs, strict=True)])
    lines += [
        "",
        f"Of the {options.num_words} likeliest words of a topic, {shared:.3g} on average are also those of"
        " scikit-learn's (batch, same start, as many passes).",
    ]
    for name in ("lda, batch", "lda, batch (scikit-learn)", "lda, Gibbs", "plsa, tempered"):
        order = match(ours, topics[name])
        lines += ["", f"## {name}", ""]
        lines += [f"{index}. {', '.join(top(topics[name][row]))}" for index, row in enumerate(order, 1)]
    return "\n".join(lines) + "\n"


def main(options: Options) -> None:
    """Print a line a model, and write the table and the topics."""
    since = time.perf_counter()
    corpus = load(options.corpus, options.seed)
    rows, topics = measure(options, corpus)
    name = options.corpus.stem
    options.results.mkdir(parents=True, exist_ok=True)
    words = [options.corpus.name if word == str(options.corpus) else word for word in sys.argv]
    facts = {
        "data": name,
        "n": int(corpus.held_out.sum()),
        "seed": options.seed,
        "models": rows,
    }
    result.save(options.results / f"{name}.json", facts, since, words)
    directory.write_text(options.results / f"{name}.md", render(options, corpus, rows, topics))


if __name__ == "__main__":
    script.run_script(main, Options)
