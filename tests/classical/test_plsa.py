import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

from jaxgen import shard
from jaxgen.classical import documents, plsa

SMALL = plsa.Config(num_topics=3, fold_steps=5)
OPTIONS = {"max_steps": 1}


@pytest.fixture(scope="module")
def counts():
    """40 documents of about 60 words out of 30, from three overlapping topics."""
    rng = np.random.default_rng(0)
    law = rng.dirichlet(np.full(3, 0.3), 40) @ rng.dirichlet(np.full(30, 0.2), 3)
    return rng.poisson(60 * law) * 1.0


def em_step(mixtures, topics, docs, inverse_temperature=1.0):
    """The next p(k | d) and p(w | k) of the whole corpus at once, where `fit` goes through it in chunks."""
    mixtures, statistics = plsa._expectation(mixtures, topics, docs, inverse_temperature)
    return mixtures, plsa._rows(statistics, topics)


def start(num_documents=40, num_topics=3):
    rng = np.random.default_rng(1)
    return rng.dirichlet(np.ones(num_topics), num_documents), rng.dirichlet(np.ones(30), num_topics)


def config(**options):
    return plsa.Config(**{"shape": (30,), "num_topics": 3} | options)


def rows(a):
    return a / a.sum(-1, keepdims=True)


def log_likelihood(x, mixtures, topics):
    return np.sum(x * np.log(np.maximum(mixtures @ topics, 1e-300)))


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("exponent", [1.0, 0.7])
def test_one_step_is_that_of_the_whole_tensor_of_responsibilities(counts, exponent, sparse):
    mixtures, topics = start()
    responsibility = (mixtures[:, :, None] * topics) ** exponent
    responsibility /= responsibility.sum(1, keepdims=True)
    expected = counts[:, None] * responsibility
    with jax.enable_x64(True):
        docs = documents.from_csr(scipy.sparse.csr_matrix(counts)) if sparse else jnp.asarray(counts)
        step = jax.jit(em_step, static_argnums=3)
        found = step(jnp.asarray(mixtures), jnp.asarray(topics), docs, exponent)
    np.testing.assert_allclose(found[0], rows(expected.sum(2)), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(found[1], rows(expected.sum(0)), rtol=1e-12, atol=1e-15)


def test_fit_takes_those_steps_and_likelihood_never_falls(counts, monkeypatch):
    topics = start()[1]
    with jax.enable_x64(True):
        step = jax.jit(em_step)
        now = jnp.full((40, 3), 1 / 3), jnp.asarray(topics)
        reached = [log_likelihood(counts, *map(np.asarray, now))]
        for _ in range(30):
            now = step(*now, jnp.asarray(counts))
            reached.append(log_likelihood(counts, *map(np.asarray, now)))
        monkeypatch.setattr(plsa, "CHUNK", 16)  # 40 documents: three chunks, two empty documents
        cfg = config(max_steps=30, tolerance=0.0, num_kept=40)
        state = plsa.fit(scipy.sparse.csr_matrix(counts), cfg, topics=topics)
    assert state.step == 30
    np.testing.assert_allclose(state.params.topics, now[1], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(state.mixtures, now[0], rtol=1e-9, atol=1e-12)
    assert state.length == pytest.approx(counts.sum(1).mean())
    assert np.all(np.diff(reached) > -1e-9)
    assert reached[-1] > reached[0] + 100


def test_a_topic_for_each_document_is_the_maximum_and_stays(counts):
    mixtures, topics = np.eye(40), rows(counts)
    with jax.enable_x64(True):
        found = jax.jit(em_step)(jnp.asarray(mixtures), jnp.asarray(topics), jnp.asarray(counts))
        state = plsa.fit(counts, config(num_topics=40, tolerance=0.0, max_steps=2), topics=topics)
        fold = config(num_topics=40, fold_steps=300)
        best = jax.jit(functools.partial(plsa.perplexity, cfg=fold))(state, counts)
    np.testing.assert_allclose(found[0], mixtures, atol=1e-15)
    np.testing.assert_allclose(found[1], topics, atol=1e-15)
    maximum = log_likelihood(counts, mixtures, topics)
    assert np.log(best) * counts.sum() >= -maximum
    assert log_likelihood(counts, *start()) < maximum


@pytest.mark.slow
def test_one_topic_is_the_frequency_of_words(counts):
    cfg = config(num_topics=1)
    state = plsa.fit(counts, cfg)
    frequency = counts.sum(0) / counts.sum()
    np.testing.assert_allclose(state.params.topics[0], frequency, rtol=1e-5)
    seen = frequency > 0
    entropy = -np.sum(frequency[seen] * np.log(frequency[seen]))
    perplexity = jax.jit(functools.partial(plsa.perplexity, cfg=cfg))
    assert perplexity(state, np.float32(counts)) == pytest.approx(np.exp(entropy), rel=1e-5)


@pytest.mark.slow
def test_topics_of_disjoint_words_are_found():
    rng = np.random.default_rng(0)
    planted = np.zeros((3, 30))
    for topic, words in enumerate(np.split(rng.permutation(30), 3)):
        planted[topic, words] = rng.dirichlet(np.full(10, 2.0))
    x = rng.poisson(100 * rng.dirichlet(np.full(3, 0.2), 200) @ planted)
    cfg = config()
    state = plsa.fit(x, cfg, key=jax.random.key(1))
    topics = np.asarray(state.params.topics)
    order = (topics @ planted.T).argmax(0)
    assert sorted(order) == [0, 1, 2]
    np.testing.assert_allclose(topics[order], planted, atol=0.02)


@pytest.mark.slow
def test_folding_in_finds_the_maximum_with_the_topics_fixed(counts):
    cfg = config(fold_steps=5000)
    with jax.enable_x64(True):
        state = plsa.fit(counts, config(max_steps=20))
        encode = jax.jit(plsa.encode, static_argnums=2)
        found = np.asarray(encode(state, counts, cfg))
        topics = np.asarray(state.params.topics)
        sparse = encode(state, documents.from_csr(scipy.sparse.csr_matrix(counts)), cfg)
    np.testing.assert_allclose(sparse, found, atol=1e-9)
    # Karush, Kuhn and Tucker: the gradient is N_d where a topic is used, and less where it is not.
    gradient = (counts / np.maximum(found @ topics, 1e-300)) @ topics.T / counts.sum(1, keepdims=True)
    assert np.all(gradient < 1 + 1e-3)
    np.testing.assert_allclose(gradient[found > 0.01], 1, atol=1e-4)


@pytest.mark.slow
def test_tempering_makes_held_out_words_likelier():
    rng = np.random.default_rng(0)
    law = rng.dirichlet(np.full(4, 0.3), 60) @ rng.dirichlet(np.full(30, 0.3), 4)
    x, held_out = rng.poisson(15 * law), rng.poisson(15 * law)
    cfg = config(num_topics=12, max_steps=300, num_kept=60)

    def score(state):
        law = np.asarray(state.mixtures) @ np.asarray(state.params.topics)
        return np.sum(held_out * np.log(np.maximum(law, 1e-10))) / held_out.sum()

    tempered, plain = (plsa.fit(x, cfg, held) for held in (held_out, None))
    assert tempered.step < 300
    assert score(tempered) > score(plain) + 0.1


@pytest.mark.slow
def test_stepwise_em_on_batches_comes_near_em_on_all(counts):
    cfg = config()
    perplexity = jax.jit(functools.partial(plsa.perplexity, cfg=cfg))
    whole = perplexity(plsa.fit(counts, cfg), np.float32(counts))
    step = jax.jit(functools.partial(plsa.train_step, cfg=cfg))
    state = plsa.init(jax.random.key(0), cfg)
    for index in range(100):
        chosen = np.random.default_rng(index).choice(40, 8, replace=False)
        state, metrics = step(state, {"x": np.float32(counts[chosen])})
    assert perplexity(state, np.float32(counts)) < 1.05 * whole
    np.testing.assert_allclose(state.params.topics.sum(1), 1, rtol=1e-5)
    assert metrics["perplexity"] == pytest.approx(np.exp(metrics["nll"] * 8 / counts[chosen].sum()), rel=1e-4)
    drawn = np.asarray(jax.jit(lambda key: plsa.sample(key, state, 20_000, cfg))(jax.random.key(0)))
    assert (drawn == np.round(drawn)).all()
    law = np.asarray(state.mixtures) @ np.asarray(state.params.topics)
    np.testing.assert_allclose(drawn.mean(0), state.length * law.mean(0), atol=0.2)
    again = jax.jit(functools.partial(plsa.reconstruct, cfg=cfg))(state, np.float32(counts))
    np.testing.assert_allclose(again.sum(1), counts.sum(1), rtol=1e-4)


@pytest.mark.slow
def test_a_batch_split_over_devices_gives_the_same_step(counts):
    cfg = config()
    step = jax.jit(functools.partial(plsa.train_step, cfg=cfg))
    state = plsa.init(jax.random.key(0), cfg)
    docs = jax.tree.map(np.asarray, documents.from_csr(scipy.sparse.csr_matrix(counts)))
    whole = step(state, {"x": np.float32(counts)})[0]
    for batch in ({"x": np.float32(counts)}, {"x": docs}):
        split = step(state, shard.put_batch(batch, shard.mesh()))[0]
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), split[2:], whole[2:]
        )


@pytest.mark.slow
def test_empty_documents_and_unknown_words_do_no_harm(counts):
    x = np.where(np.arange(30) == 3, 0, counts)
    x[5] = 0
    cfg = config()
    state = plsa.fit(x, cfg)
    assert all(np.isfinite(leaf).all() for leaf in (state.params.topics, state.mixtures))
    assert (np.asarray(state.params.topics)[:, 3] == 0).all()
    assert plsa.perplexity(state, np.zeros((1, 30)), cfg) == 1
    new = np.eye(30, dtype=np.float32)[[3, 3, 7]]
    new[1] = 0
    state = state._replace(step=jnp.int32(0))
    state, metrics = jax.jit(plsa.train_step, static_argnums=2)(state, {"x": new}, cfg)
    np.testing.assert_allclose(state.mixtures[:2], 1 / 3, rtol=1e-5)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state[2:], metrics)))


@pytest.mark.slow
def test_pictures_are_documents():
    words = np.random.default_rng(0).integers(0, 5, (6, 4))
    cfg = plsa.Config(shape=(2, 2, 1), num_topics=2, num_levels=4, max_steps=5)
    plain = plsa.Config(shape=(4,), num_topics=2, max_steps=5)
    pictures = (words / 2 - 1).reshape(6, 2, 2, 1)
    state = plsa.fit(pictures, cfg)
    np.testing.assert_allclose(state.params.topics, plsa.fit(words, plain).params.topics, rtol=1e-5)
    reconstruct = jax.jit(plsa.reconstruct, static_argnums=2)
    expected = np.minimum(2 * reconstruct(state, np.float32(words), plain) / 4 - 1, 1)
    found = reconstruct(state, np.float32(pictures), cfg)
    np.testing.assert_allclose(found.reshape(6, 4), expected, atol=1e-5)


def test_bad_input_is_named(counts):
    with pytest.raises(ValueError, match="not finite"):
        plsa.fit(np.where(counts > 3, np.nan, counts), config())
    with pytest.raises(ValueError, match="negative"):
        plsa.fit(counts - 1, config())
    with pytest.raises(ValueError, match="no words at all"):
        plsa.fit(0 * counts, config())
    with pytest.raises(ValueError, match=r"\(N, 30\) counts of words, not \(40, 20\)"):
        plsa.fit(scipy.sparse.csr_matrix(counts[:, :20]), config())
    with pytest.raises(ValueError, match=r"in 0\.\.29, not 0\.\.30"):
        plsa.fit(documents.Documents(jnp.array([[0, 30]]), jnp.ones((1, 2))), config())
    with pytest.raises(ValueError, match="same documents"):
        plsa.fit(counts, config(), held_out=counts[:3])
