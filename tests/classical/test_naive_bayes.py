import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from sklearn.naive_bayes import BernoulliNB, CategoricalNB, GaussianNB, MultinomialNB

from jaxgen import shard
from jaxgen.classical import naive_bayes
from jaxgen.classical.columns import Bernoulli, Categorical, Gaussian, Multinomial

step = jax.jit(naive_bayes.train_step, static_argnums=2)
classify = jax.jit(naive_bayes.classify, static_argnums=2)
log_prob = jax.jit(naive_bayes.log_prob, static_argnums=2)
sample = jax.jit(naive_bayes.sample, static_argnums=(2, 3))

KINDS = ("bernoulli", "categorical", "gaussian", "multinomial")
SIZES = (2, 4, 3, 4)
REFERENCES = {
    "gaussian": GaussianNB(var_smoothing=1e-3),
    "bernoulli": BernoulliNB(alpha=0.5),
    "multinomial": MultinomialNB(alpha=0.5),
    "categorical": CategoricalNB(alpha=0.5, min_categories=SIZES),
}


LAWS = {
    "gaussian": Gaussian(1e-3),
    "bernoulli": Bernoulli(),
    "multinomial": Multinomial(),
    "categorical": tuple(map(Categorical, SIZES)),
}
SMALL = naive_bayes.Config(columns=Gaussian(0.1))
RANDOM = tuple(naive_bayes.Config(columns=law) for law in (Bernoulli(), Multinomial()))


def config(*columns, **options):
    """A Config of four columns of one law, or of as many as there are laws; categories as in SIZES."""
    if len(columns) == 1 and columns[0] in LAWS:
        columns = LAWS[columns[0]]
    else:
        columns = tuple(
            Categorical(SIZES[place]) if kind == "categorical" else LAWS.get(kind, kind)
            for place, kind in enumerate(columns)
        )
    defaults = {"shape": (4,), "num_classes": 3, "smoothing": 0.5, "columns": columns}
    return naive_bayes.Config(**defaults | options)


@pytest.fixture(scope="module")
def tables():
    """Examples of three classes, 300 by 4 columns, of each kind, and their labels."""
    rng = np.random.default_rng(0)
    label = rng.choice(3, 300, p=[0.5, 0.3, 0.2])
    values = [rng.integers(1 + np.minimum(label, size - 1), size=300) for size in SIZES]
    return {
        "gaussian": 2.0 * rng.normal(size=(3, 4))[label] + rng.normal(size=(300, 4)) * [1, 2, 3, 0.5],
        "bernoulli": (rng.random((300, 4)) < rng.random((3, 4))[label]) * 1.0,
        "multinomial": rng.poisson(3 * rng.random((3, 4))[label]) * 1.0,
        "categorical": np.stack(values, 1) * 1.0,
    }, label


@pytest.mark.parametrize("kind", KINDS)
def test_classifies_as_scikit_learn(tables, kind):
    x, label = tables[0][kind], tables[1]
    reference = REFERENCES[kind].fit(x, label)
    cfg = config(kind)
    with jax.enable_x64(True):
        found = classify(naive_bayes.fit(x, label, cfg), x, cfg)
    np.testing.assert_allclose(found, reference.predict_log_proba(x), rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_mixed_columns_multiply(tables):
    """Two columns of each kind, shuffled: the joint is that of the kinds fitted alone."""
    values, label = tables
    columns = (
        "gaussian",
        "categorical",
        "bernoulli",
        "multinomial",
        "multinomial",
        "gaussian",
        "categorical",
    )
    places = {kind: np.flatnonzero(np.array(columns) == kind) for kind in KINDS}
    x = np.zeros((300, 7))
    for kind, place in places.items():
        x[:, place] = values[kind][:, 2 : 2 + len(place)]
    laws = {kind: (LAWS[kind],) * 2 for kind in KINDS} | {"categorical": LAWS["categorical"][2:]}
    nth = [columns[:place].count(kind) for place, kind in enumerate(columns)]
    chosen = tuple(laws[kind][index] for kind, index in zip(columns, nth, strict=True))
    cfg = config(shape=(7,), columns=chosen)
    with jax.enable_x64(True):
        state = naive_bayes.fit(x, label, cfg)
        total = 0
        for kind, place in places.items():
            part = config(shape=(len(place),), columns=laws[kind][: len(place)])
            alone = naive_bayes.fit(x[:, place], label, part)
            total += naive_bayes._log_joint(x[:, place], alone.params, part) - jnp.log(alone.params.weights)
        np.testing.assert_allclose(
            classify(state, x, cfg), jax.nn.log_softmax(total + jnp.log(state.params.weights))
        )
        drawn = np.asarray(sample(jax.random.key(0), state, 50_000, cfg))
    np.testing.assert_allclose(drawn.mean(0), x.mean(0), atol=0.15)
    assert set(np.unique(drawn[:, 1])) == {0, 1, 2}
    assert set(np.unique(drawn[:, 2])) == {0, 1}


def test_probabilities_of_all_bits_sum_to_one(tables):
    cfg = config("bernoulli")
    state = naive_bayes.fit(tables[0]["bernoulli"], tables[1], cfg)
    everything = np.array(list(itertools.product([0.0, 1.0], repeat=4)))
    assert jnp.exp(log_prob(state, everything, cfg)).sum() == pytest.approx(1, rel=1e-5)


def test_probabilities_of_all_documents_of_a_length_sum_to_one(tables):
    cfg = config("multinomial")
    state = naive_bayes.fit(tables[0]["multinomial"], tables[1], cfg)
    everything = np.array([c for c in itertools.product(range(6), repeat=4) if sum(c) == 5], np.float32)
    assert jnp.exp(log_prob(state, everything, cfg)).sum() == pytest.approx(1, rel=1e-5)
    expected = scipy.stats.multinomial(5, np.asarray(state.params.columns["multinomial"]["probability"][0]))
    only = state._replace(params=state.params._replace(weights=jnp.array([1.0, 0, 0])))
    np.testing.assert_allclose(log_prob(only, everything, cfg), expected.logpmf(everything), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_batches_give_what_the_whole_gives(tables, kind):
    x, label = tables[0][kind], tables[1]
    cfg = config(kind)
    with jax.enable_x64(True):
        whole = naive_bayes.fit(x, label, cfg)
        state = naive_bayes.init(jax.random.key(0), cfg)
        for rows in np.split(np.argsort(label), 3):  # some classes not seen yet
            state, metrics = step(state, {"x": x[rows], "label": label[rows]}, cfg)
            assert all(jnp.isfinite(value) for value in metrics.values())
        jax.tree.map(
            lambda found, expected: np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12),
            state.params,
            whole.params,
        )


def test_float32_holds_far_from_the_origin(tables):
    x, label = tables[0]["gaussian"] + 1e4, tables[1]
    cfg = config("gaussian")
    variance = naive_bayes.fit(np.float32(x), label, cfg).params.columns["gaussian"]["variance"]
    expected = GaussianNB(var_smoothing=1e-3).fit(np.float64(np.float32(x)), label).var_
    assert variance.dtype == jnp.float32
    np.testing.assert_allclose(variance, expected, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_samples_have_the_means_of_their_class(tables, kind):
    x, label = tables[0][kind], tables[1]
    cfg = config(kind, smoothing=1e-3)
    state = naive_bayes.fit(x, label, cfg)
    drawn = np.asarray(sample(jax.random.key(0), state, 50_000, cfg, 1))
    np.testing.assert_allclose(drawn.mean(0), x[label == 1].mean(0), atol=0.05)
    if kind in ("gaussian", "bernoulli"):  # words depend on each other, and categories are not numbers
        np.testing.assert_allclose(drawn.std(0), x[label == 1].std(0), rtol=0.02, atol=0.01)
    correlation = np.corrcoef(drawn.T[drawn.std(0) > 0])  # which the data need not be, but the model is
    np.testing.assert_allclose(correlation, np.eye(len(correlation)), atol=0.03)
    each = sample(jax.random.key(0), state, 50_000, cfg)
    np.testing.assert_allclose(each.mean(0), x.mean(0), atol=0.06)


@pytest.mark.parametrize("kind", ["bernoulli", "multinomial"])
def test_pictures_are_bits_or_words_and_come_back_as_pictures(tables, kind):
    """Bits and counts written as grey levels on [-1, 1] give the model of the bits and counts."""
    values, label = np.minimum(tables[0][kind], 4), tables[1]
    levels = {"bernoulli": 1, "multinomial": 4}[kind]
    cfg = config(
        shape=(2, 2, 1), columns={"bernoulli": Bernoulli(), "multinomial": Multinomial(levels)}[kind]
    )
    pictures = (2 * values / levels - 1).reshape(-1, 2, 2, 1)
    plain = naive_bayes.fit(values, label, config(kind))
    state = naive_bayes.fit(pictures, label, cfg)
    jax.tree.map(np.testing.assert_array_equal, state.params, plain.params)
    drawn = sample(jax.random.key(0), state, 1000, cfg)
    assert set(np.unique(drawn)) == set(np.float32(2 * np.arange(levels + 1) / levels - 1))


@pytest.mark.slow
def test_a_batch_split_over_devices_gives_the_same_step(tables):
    values, label = tables
    columns = ("bernoulli", "categorical", "gaussian", "multinomial")
    cfg = config(*columns)
    x = np.stack([values[kind][:296, i] for i, kind in enumerate(columns)], 1)
    batch = {"x": np.float32(x), "label": label[:296]}
    state = naive_bayes.init(jax.random.key(0), cfg)
    split, whole = (step(state, b, cfg)[0] for b in (shard.put_batch(batch, shard.mesh()), batch))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), split.params, whole.params
    )


@pytest.mark.parametrize("kind", KINDS)
def test_rows_without_a_class_and_classes_without_rows(tables, kind):
    x, label = np.float32(tables[0][kind]), tables[1]
    cfg = config(kind, num_classes=4)
    state = naive_bayes.init(jax.random.key(0), cfg)
    state, _ = step(state, {"x": x, "label": np.where(label == 1, -1, label)}, cfg)
    np.testing.assert_array_equal(state.counts.examples, [(label == 0).sum(), 0, (label == 2).sum(), 0])
    found = classify(state, x, cfg)
    assert (found[:, [1, 3]] == -jnp.inf).all()
    np.testing.assert_allclose(jnp.exp(found).sum(1), 1, rtol=1e-5)
    assert jnp.isfinite(log_prob(state, x, cfg)).all()


def test_a_category_out_of_range_counts_as_missing(tables):
    x, label = tables[0]["categorical"], tables[1]
    cfg = config("categorical")
    state = naive_bayes.fit(x, label, cfg)
    without = config(shape=(3,), columns=LAWS["categorical"][1:])
    expected = classify(naive_bayes.fit(x[:, 1:], label, without), x[:, 1:], without)
    for missing in (-1, 3):
        found = classify(state, np.c_[np.full(300, missing), x[:, 1:]], cfg)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_laws_of_one_kind_with_other_options_are_kept_apart(tables):
    """Two thresholds: each column is cut at its own."""
    x, label = tables[0]["gaussian"], tables[1]
    cfg = config(columns=(Bernoulli(0.0), Bernoulli(1.0), Bernoulli(0.0), Bernoulli(1.0)))
    cut = config("bernoulli")
    bits = (x > np.array([0.0, 1.0, 0.0, 1.0])) * 1.0
    expected = classify(naive_bayes.fit(bits, label, cut), bits, cut)
    np.testing.assert_allclose(
        classify(naive_bayes.fit(x, label, cfg), x, cfg), expected, rtol=1e-4, atol=1e-4
    )


def test_a_likelihood_says_what_it_is_of():
    kinds = {"gaussian": "density", "bernoulli": "bits", "multinomial": "counts", "categorical": "symbols"}
    assert {kind: naive_bayes.measure(config(kind)) for kind in KINDS} == kinds
    assert naive_bayes.measure(config("bernoulli", "gaussian", "bernoulli", "bernoulli")) == "density"


def test_bad_input_is_named(tables):
    values, label = tables
    x = values["gaussian"]
    with pytest.raises(ValueError, match="not finite"):
        naive_bayes.fit(np.where(x > 3, np.nan, x), label, config("gaussian"))
    with pytest.raises(ValueError, match="words must not be negative"):
        naive_bayes.fit(x, label, config("multinomial"))
    with pytest.raises(ValueError, match="integers from 0"):
        naive_bayes.fit(x, label, config("categorical"))
    with pytest.raises(ValueError, match="below num_categories"):
        naive_bayes.fit(values["categorical"], label, config(columns=Categorical(2)))
    with pytest.raises(ValueError, match="class 2 has no examples"):
        naive_bayes.fit(x, np.minimum(label, 1), config("gaussian"))
    with pytest.raises(ValueError, match=r"not \(300, 4\) and \(3,\)"):
        naive_bayes.fit(x, label[:3], config("gaussian"))
    for options, message in {
        "needs labels": {"num_classes": 0},
        "2 laws for 4 columns": {"columns": (Gaussian(), Bernoulli())},
        "above 0": {"smoothing": 0.0},
    }.items():
        with pytest.raises(ValueError, match=options):
            naive_bayes.init(jax.random.key(0), naive_bayes.Config(**{"shape": (4,)} | message))
