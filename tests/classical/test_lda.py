import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.sparse
import scipy.special
import scipy.stats
from sklearn.decomposition import LatentDirichletAllocation

from jaxgen import shard
from jaxgen.classical import documents, lda, lda_gibbs

SMALL = lda.Config(num_topics=3, max_inner_steps=20)
OPTIONS = {"max_steps": 1}

TIGHT = {"inner_tolerance": 1e-11, "max_inner_steps": 3000, "tolerance": 0.0}


@pytest.fixture(scope="module")
def counts():
    """30 documents of about 40 words out of 12, from three overlapping topics."""
    rng = np.random.default_rng(0)
    law = rng.dirichlet(np.full(3, 0.3), 30) @ rng.dirichlet(np.full(12, 0.3), 3)
    return rng.poisson(40 * law) * 1.0


def bars():
    """The ten rows and columns of a 5 x 5 picture, as laws over its pixels."""
    lines = np.concatenate([np.eye(5)[:, :, None] * np.ones(5), np.ones((5, 1)) * np.eye(5)[:, None]])
    return lines.reshape(10, 25) / 5


def bars_corpus(num_documents=400, length=100):
    """Documents as in Griffiths & Steyvers 2004: a few bars each."""
    rng = np.random.default_rng(0)
    law = rng.dirichlet(np.full(10, 0.1), num_documents) @ bars()
    return np.stack([rng.multinomial(length, p) for p in law / law.sum(1, keepdims=True)])


def config(**options):
    return lda.Config(**{"shape": (12,), "num_topics": 3} | options)


def start(num_topics=3, num_words=12):
    return np.random.default_rng(1).gamma(100, 0.01, (num_topics, num_words))


class Reference(LatentDirichletAllocation):
    """scikit-learn's, from given topics."""

    def _init_latent_vars(self, n_features, dtype=np.float64):
        super()._init_latent_vars(n_features, dtype)
        self.components_ = start(self.n_components, n_features)
        total = scipy.special.psi(self.components_.sum(1, keepdims=True))
        self.exp_dirichlet_component_ = np.exp(scipy.special.psi(self.components_) - total)


PRIORS = {"mixture_prior": 1.0, "word_prior": 0.2}


def reference(**options):
    priors = {"doc_topic_prior": PRIORS["mixture_prior"], "topic_word_prior": PRIORS["word_prior"]}
    return Reference(3, **priors, mean_change_tol=1e-11, max_doc_update_iter=3000, **options)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_passes_are_those_of_scikit_learn(counts, sparse, monkeypatch):
    monkeypatch.setattr(lda, "CHUNK", 8)  # 30 documents: four chunks, two empty documents
    expected = reference(max_iter=7).fit(counts)
    cfg = config(max_steps=7, **PRIORS, **TIGHT)
    with jax.enable_x64(True):
        x = scipy.sparse.csr_matrix(counts) if sparse else counts
        state = lda.fit(x, cfg, topics=start())
        assert state.step == 7
        np.testing.assert_allclose(state.params.topics, expected.components_, rtol=1e-6)
        found = jax.jit(lambda state: (lda.encode(state, x, cfg), lda.corpus_bound(state, x, cfg)))(state)
        np.testing.assert_allclose(found[0], expected.transform(counts), rtol=1e-6)
        perplexity = np.exp(-found[1] / counts.sum())
        assert perplexity == pytest.approx(expected.perplexity(counts), rel=1e-9)


def test_online_steps_are_those_of_scikit_learn(counts):
    expected = reference(learning_offset=10, learning_decay=0.7, total_samples=90, batch_size=10)
    cfg = config(online=lda.Online(90), **PRIORS, **TIGHT)
    with jax.enable_x64(True):
        step = jax.jit(functools.partial(lda.train_step, cfg=cfg))
        state = lda.init(jax.random.key(0), cfg)._replace(params=lda.Params(jnp.asarray(start())))
        for rows in np.split(np.arange(30), 3):
            expected.partial_fit(counts[rows])
            state, _ = step(state, {"x": jnp.asarray(counts[rows])})
        np.testing.assert_allclose(state.params.topics, expected.components_, rtol=1e-6)


@pytest.mark.slow
def test_the_bound_rises_with_every_pass(counts):
    cfg = config(max_steps=30, **PRIORS, **TIGHT)
    with jax.enable_x64(True):
        topics, bounds = jnp.asarray(start()), []
        step = jax.jit(lda._pass, static_argnums=3)
        for index in range(30):
            topics, bound = step(jax.random.key(index), topics, jnp.asarray(counts)[None], cfg)
            bounds.append(float(bound))
        state = lda.fit(counts, cfg, start())
    np.testing.assert_allclose(state.params.topics, topics, rtol=1e-6)
    assert np.all(np.diff(bounds) > -1e-8)
    assert bounds[-1] > bounds[0] + 100


def test_elbo_bounds_the_integral_over_mixtures():
    """Two known topics: p(document) is an integral over one number."""
    cfg = lda.Config(shape=(3,), num_topics=2, mixture_prior=0.7, **TIGHT)
    topics = np.array([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]])
    x = np.array([[5.0, 1.0, 0.0], [2.0, 2.0, 2.0], [0.0, 0.0, 1.0]])

    def exact(counts):
        law = scipy.stats.beta(0.7, 0.7).pdf
        inside = lambda t: law(t) * np.prod((t * topics[0] + (1 - t) * topics[1]) ** counts)
        return np.log(scipy.integrate.quad(inside, 0, 1)[0])

    with jax.enable_x64(True):
        state = lda.init(jax.random.key(0), cfg)
        state = state._replace(params=lda.Params(jnp.asarray(1e8 * topics)))
        found = np.asarray(jax.jit(functools.partial(lda.elbo, cfg=cfg))(jax.random.key(0), state, x))
    gap = np.array([exact(counts) for counts in x]) - found
    assert np.all(gap > 0)
    assert np.all(gap < 0.5)
    assert gap[2] < 0.1


@pytest.mark.slow
def test_variational_bayes_finds_the_bars():
    x = bars_corpus()
    cfg = lda.Config(tolerance=1e-5, max_steps=200)
    bound = jax.jit(functools.partial(lda.corpus_bound, x=x, cfg=cfg))
    state = max((lda.fit(x, cfg, key=jax.random.key(seed)) for seed in range(3)), key=bound)
    overlap = bars() @ np.asarray(lda.topic_words(state)).T * 5
    assert sorted(overlap.argmax(1)) == list(range(10))
    assert overlap.max(1).min() > 0.9
    given, held_out = x // 2, x - x // 2
    found = jax.jit(functools.partial(lda.perplexity, cfg=cfg))(state, given, held_out=held_out)
    assert 5 < found < 12  # of 25 words, a bar has 5


@pytest.mark.slow
def test_sampled_documents_have_the_mean_of_the_model(counts):
    cfg = config(mixture_prior=0.5)
    state = lda.fit(counts, cfg)
    drawn = np.asarray(jax.jit(lambda key: lda.sample(key, state, 20_000, cfg))(jax.random.key(0)))
    assert (drawn == np.round(drawn)).all()
    law = state.params.topics / state.params.topics.sum(1, keepdims=True)
    np.testing.assert_allclose(drawn.mean(0), state.length * law.mean(0), atol=0.15)
    again = np.asarray(jax.jit(functools.partial(lda.reconstruct, cfg=cfg))(state, np.float32(counts)))
    np.testing.assert_allclose(again.sum(1), counts.sum(1), rtol=1e-4)
    assert np.abs(again - counts).mean() < 0.8 * np.abs(counts.mean(0) - counts).mean()


@pytest.mark.slow
@pytest.mark.parametrize("prior", [1e-4, 0.1])
def test_float32_never_fails_and_follows_float64(counts, prior):
    x = counts * 1.0
    x[3] = 0  # an empty document
    cfg = config(mixture_prior=prior, word_prior=prior, max_steps=10, tolerance=0.0)
    with jax.enable_x64(True):
        exact = np.asarray(lda.fit(x, cfg, start()).params.topics)
    single = lda.fit(np.float32(x), cfg, np.float32(start()))
    assert single.params.topics.dtype == jnp.float32
    assert single.params.topics.sum() == pytest.approx(x.sum() + 36 * prior, rel=1e-4)
    if prior == 0.1:
        np.testing.assert_allclose(single.params.topics, exact, rtol=0.02, atol=0.02)
    found = jax.jit(lambda x: (lda.encode(single, x, cfg), lda.elbo(None, single, x, cfg)))(np.float32(x))
    np.testing.assert_allclose(found[0][3], 1 / 3, rtol=1e-4)
    assert np.isfinite(found[1]).all()
    nothing = np.zeros((1, x.shape[1]), np.float32)
    for held_out in (None, nothing):
        assert lda.perplexity(single, nothing, cfg, held_out) == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
def test_a_batch_split_over_devices_gives_the_same_step(counts):
    cfg = config(online=lda.Online(30))
    step = jax.jit(functools.partial(lda.train_step, cfg=cfg))
    state = lda.init(jax.random.key(0), cfg)
    x = np.float32(counts[:24])
    docs = jax.tree.map(np.asarray, documents.from_csr(scipy.sparse.csr_matrix(x)))
    whole = step(state, {"x": x})[0]
    for batch in ({"x": x}, {"x": docs}):
        split = step(state, shard.put_batch(batch, shard.mesh()))[0]
        np.testing.assert_allclose(split.params.topics, whole.params.topics, rtol=1e-3, atol=1e-4)


TINY = lda.Config(shape=(3,), num_topics=2, mixture_prior=0.4, word_prior=0.3)
TINY_COUNTS = np.array([[1.0, 0, 1], [0, 1, 1]])


def enumerated():
    """Topics of four tokens, all sixteen, and their log-joints by drawing one token after the other."""
    tokens = [(0, 0), (0, 2), (1, 1), (1, 2)]
    assignments, joints = list(itertools.product(range(2), repeat=4)), []
    for topics in assignments:
        total, in_document, of_word = 0.0, np.zeros((2, 2)), np.zeros((2, 3))
        for (document, word), topic in zip(tokens, topics, strict=True):
            total += np.log((in_document[document, topic] + 0.4) / (in_document[document].sum() + 0.8))
            total += np.log((of_word[topic, word] + 0.3) / (of_word[topic].sum() + 0.9))
            in_document[document, topic] += 1
            of_word[topic, word] += 1
        joints.append(total)
    return tokens, np.array(assignments), np.array(joints)


@pytest.mark.slow
def test_gibbs_conditional_is_the_ratio_of_enumerated_joints():
    tokens, assignments, joints = enumerated()
    with jax.enable_x64(True):
        corpus = lda_gibbs.tokens_of(jnp.asarray(TINY_COUNTS), 3)
        assert list(zip(corpus.documents.tolist(), corpus.words.tolist(), strict=True)) == tokens
        for topics, joint in zip(assignments, joints, strict=True):
            tables = lda_gibbs.count(jnp.asarray(topics), corpus, TINY, 2)
            assert lda_gibbs.log_joint(tables, TINY) == pytest.approx(joint, abs=1e-12)
            for token, (document, word) in enumerate(tokens):
                without = lda_gibbs._add(tables, document, word, topics[token], -1.0)
                found = lda_gibbs.conditional(without, document, word, TINY)
                same = [np.delete(other, token).tolist() for other in assignments]
                weights = [
                    np.exp(joints[row])
                    for row, others in enumerate(same)
                    if others == np.delete(topics, token).tolist()
                ]
                np.testing.assert_allclose(found / found.sum(), weights / np.sum(weights), rtol=1e-12)


def test_gibbs_visits_assignments_as_often_as_the_posterior_says():
    _, _, joints = enumerated()
    corpus = lda_gibbs.tokens_of(jnp.asarray(TINY_COUNTS, jnp.float32), 3)
    first = jnp.zeros(4, jnp.int32)

    @jax.jit
    def chain(key):
        def step(carry, key):
            carry = lda_gibbs.sweep(key, *carry, corpus, TINY)
            return carry, carry[0]

        begin = first, lda_gibbs.count(first, corpus, TINY, 2)
        return jax.lax.scan(step, begin, jax.random.split(key, 60_000))

    (last, tables), visited = chain(jax.random.key(0))
    frequency = np.bincount(np.asarray(visited) @ [8, 4, 2, 1], minlength=16) / 60_000
    np.testing.assert_allclose(frequency, np.exp(joints) / np.exp(joints).sum(), atol=6e-3)
    jax.tree.map(np.testing.assert_array_equal, tables, lda_gibbs.count(last, corpus, TINY, 2))


def test_gibbs_finds_the_bars():
    x = bars_corpus(100, 60)
    cfg = lda.Config(word_prior=0.05)
    found = lda_gibbs.fit(scipy.sparse.csr_matrix(x), cfg, jax.random.key(1), 150, 100)
    overlap = bars() @ np.asarray(lda.topic_words(found.state)).T * 5
    assert sorted(overlap.argmax(1)) == list(range(10))
    assert overlap.max(1).min() > 0.85
    assert found.log_joint[-50:].mean() > found.log_joint[0] + 1000
    assert found.state.params.topics.sum() == pytest.approx(x.sum() + 250 * 0.05, rel=1e-4)
    np.testing.assert_allclose(found.mixtures.sum(1), 1, rtol=1e-5)
    assert found.assignments.shape == (6000,)
    assert found.state.length == 60


def test_bad_input_is_named(counts):
    with pytest.raises(ValueError, match="not finite"):
        lda.fit(np.where(counts > 3, np.nan, counts), config())
    with pytest.raises(ValueError, match="negative"):
        lda.fit(scipy.sparse.csr_matrix(-counts), config())
    with pytest.raises(ValueError, match="no words at all"):
        lda.fit(0 * counts, config())
    with pytest.raises(ValueError, match=r"\(N, 12\) counts of words, not \(30, 5\)"):
        lda.fit(counts[:, :5], config())
    with pytest.raises(ValueError, match="above 0"):
        lda.fit(counts, config(mixture_prior=0.0))
    with pytest.raises(ValueError, match="whole"):
        lda_gibbs.fit(counts / 2, config())
    with pytest.raises(ValueError, match="burn-in of 500"):
        lda_gibbs.fit(counts, config(), num_burn_in=500)
