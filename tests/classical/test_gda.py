import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis, QuadraticDiscriminantAnalysis

from jaxgen import shard
from jaxgen.classical import gda

SMALL = gda.Config()

KINDS = ("shared", "per_class")

step = jax.jit(gda.train_step, static_argnums=2)
classify = jax.jit(gda.classify, static_argnums=2)
log_prob = jax.jit(gda.log_prob, static_argnums=2)
sample = jax.jit(gda.sample, static_argnums=(2, 3))


@pytest.fixture(scope="module")
def points():
    """Three tilted Gaussians of unequal weight in four dimensions, 600 points, and their labels."""
    rng = np.random.default_rng(0)
    label = rng.choice(3, 600, p=[0.5, 0.3, 0.2])
    tilt, center = rng.normal(size=(3, 4, 4)), 2 * rng.normal(size=(3, 4))
    return np.einsum("nde,ne->nd", tilt[label], rng.normal(size=(600, 4))) + center[label], label


def config(**options):
    return gda.Config(**{"shape": (4,), "num_classes": 3, "shrinkage": 0.0, "regularization": 0.0} | options)


@pytest.mark.parametrize(
    ("options", "reference"),
    [
        ({}, LinearDiscriminantAnalysis(solver="lsqr")),
        ({"shrinkage": 0.3}, LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.3)),
        (
            {"covariance": "per_class", "shrinkage": 0.3},
            QuadraticDiscriminantAnalysis(solver="eigen", shrinkage=0.3),
        ),
    ],
    ids=["shared", "shared shrunk", "per class shrunk"],
)
def test_classifies_as_scikit_learn(points, options, reference):
    x, label = points
    cfg = config(**options)
    reference.fit(x, label)
    with jax.enable_x64(True):
        found = classify(gda.fit(x, label, cfg), x, cfg)
    np.testing.assert_allclose(found, reference.predict_log_proba(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("ddof", ["ml", "unbiased"])
@pytest.mark.parametrize("kind", KINDS)
def test_density_is_the_mixture_of_the_class_densities(points, kind, ddof):
    x, label = points
    cfg = config(covariance=kind, ddof=ddof)
    scatter = [(np.sum(label == c) - 1) * np.cov(x[label == c].T) for c in range(3)]
    lost, count = ddof == "unbiased", np.bincount(label)
    within = [s / (n - lost) for s, n in zip(scatter, count, strict=True)]
    if kind == "shared":
        within = [sum(scatter) / (len(x) - 3 * lost)] * 3
    joint = [
        np.log(count[c] / len(x))
        + scipy.stats.multivariate_normal(x[label == c].mean(0), within[c]).logpdf(x)
        for c in range(3)
    ]
    with jax.enable_x64(True):
        state = gda.fit(x, label, cfg)
        np.testing.assert_allclose(log_prob(state, x, cfg), scipy.special.logsumexp(joint, 0), rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_give_what_the_whole_gives(points, kind, monkeypatch):
    x, label = points
    cfg = config(covariance=kind, shrinkage=0.1, regularization=1e-3)
    with jax.enable_x64(True):
        whole = gda.fit(x, label, cfg)
        monkeypatch.setattr(gda, "CHUNK", 256)  # two whole chunks and a rest
        chunked = jax.jit(gda._fit.__wrapped__, static_argnums=2)(x, label, cfg)[0]
        state = gda.init(jax.random.key(0), cfg)
        order = np.argsort(label)  # batches of one class, some classes not seen yet
        for rows in np.split(order, 3):
            state, metrics = step(state, {"x": x[rows], "label": label[rows]}, cfg)
            assert all(jnp.isfinite(value) for value in metrics.values())
        for other in (chunked, state):
            for found, expected in zip(other.params, whole.params, strict=True):
                np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_float32_holds_far_from_the_origin(points, kind):
    x, label = points
    x = np.float32(x + 3e3)
    cfg = config(covariance=kind)
    with jax.enable_x64(True):
        exact = gda.fit(np.float64(x), label, cfg)
        expected = np.asarray(classify(exact, np.float64(x), cfg))
    single = gda.fit(x, label, cfg)
    assert single.params.means.dtype == jnp.float32
    np.testing.assert_allclose(single.params.covariances, exact.params.covariances, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(np.exp(classify(single, x, cfg)), np.exp(expected), atol=5e-3)


def test_a_shared_covariance_has_linear_boundaries(points):
    x, label = points
    cfg = config()
    with jax.enable_x64(True):
        state = gda.fit(x, label, cfg)
        weights, biases = gda.linear_boundary(state, cfg)
        expected = jax.nn.log_softmax(x @ weights.T + biases)
        np.testing.assert_allclose(classify(state, x, cfg), expected, atol=1e-9)
    with pytest.raises(ValueError, match="quadratic"):
        gda.linear_boundary(state, config(covariance="per_class"))


@pytest.mark.parametrize("kind", KINDS)
def test_classes_do_not_depend_on_coordinates(points, kind):
    x, label = points
    cfg = config(covariance=kind)
    moved = x @ np.random.default_rng(1).normal(size=(4, 4)) + 5.0
    with jax.enable_x64(True):
        first, second = (classify(gda.fit(a, label, cfg), a, cfg) for a in (x, moved))
    np.testing.assert_allclose(first, second, atol=1e-8)


def test_error_rate_of_two_gaussians_is_the_known_one():
    rng = np.random.default_rng(0)
    distance = 2.0
    label = rng.integers(2, size=200_000)
    x = np.float32(rng.normal(size=(200_000, 2)) + distance * label[:, None] * [0.6, 0.8])
    cfg = gda.Config()
    error = (classify(gda.fit(x, label, cfg), x, cfg).argmax(1) != label).mean()
    assert error == pytest.approx(scipy.stats.norm.cdf(-distance / 2), abs=3e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_have_the_moments_of_their_class(points, kind):
    x, label = points
    cfg = config(covariance=kind)
    state = gda.fit(x, label, cfg)
    drawn = sample(jax.random.key(0), state, 100_000, cfg, 1)
    covariance = np.broadcast_to(state.params.covariances, (3, 4, 4))[1]
    np.testing.assert_allclose(drawn.mean(0), state.params.means[1], atol=0.05)
    np.testing.assert_allclose(np.cov(drawn.T), covariance, atol=0.03 * covariance.max())
    mixed = sample(jax.random.key(1), state, 100_000, cfg)
    np.testing.assert_allclose(mixed.mean(0), x.mean(0), atol=0.05)
    each = sample(jax.random.key(0), state, 3, cfg, jnp.arange(3))
    np.testing.assert_allclose(each[1], sample(jax.random.key(0), state, 3, cfg, 1)[1], rtol=1e-5)


@pytest.mark.slow
def test_a_batch_split_over_devices_gives_the_same_step(points):
    cfg = config(covariance="per_class", shrinkage=0.1)
    batch = {"x": np.float32(points[0]), "label": points[1]}
    state = gda.init(jax.random.key(0), cfg)
    split = step(state, shard.put_batch(batch, shard.mesh()), cfg)[0]
    for found, expected in zip(split.params, step(state, batch, cfg)[0].params, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_rows_without_a_class_and_classes_without_rows(points):
    x, label = np.float32(points[0]), points[1]
    cfg = config(num_classes=4, covariance="per_class")
    state = gda.init(jax.random.key(0), cfg)
    state, _ = step(state, {"x": x, "label": np.where(label == 1, -1, label)}, cfg)
    np.testing.assert_array_equal(state.moments.weight, [(label == 0).sum(), 0, (label == 2).sum(), 0])
    np.testing.assert_allclose(state.params.means[2], x[label == 2].mean(0), rtol=1e-4)
    found = classify(state, x, cfg)
    assert (found[:, [1, 3]] == -jnp.inf).all()
    np.testing.assert_allclose(jnp.exp(found).sum(1), 1, rtol=1e-5)
    assert jnp.isfinite(log_prob(state, x, cfg)).all()


def test_bad_input_is_named(points):
    x, label = points
    with pytest.raises(ValueError, match="not finite"):
        gda.fit(np.where(x > 3, np.nan, x), label, config())
    with pytest.raises(ValueError, match=r"x must be \(N, 4\) .*, not \(600, 4\) and \(3,\)"):
        gda.fit(x, label[:3], config())
    with pytest.raises(ValueError, match=r"labels must be in 0\.\.1, not 0\.\.2"):
        gda.fit(x, label, config(num_classes=2))
    with pytest.raises(ValueError, match="integers"):
        gda.fit(x, label * 1.0, config())
    with pytest.raises(ValueError, match="class 3 has no examples"):
        gda.fit(x, label, config(num_classes=4))
    with pytest.raises(ValueError, match="the covariance is singular: raise `shrinkage`"):
        gda.fit(np.c_[x[:, :3], x[:, 0]], label, config())
    few = np.r_[0:3, np.flatnonzero(label == 1)]
    with pytest.raises(ValueError, match="the covariance of class 0 is singular"):
        gda.fit(
            x[few], np.where(np.arange(len(few)) < 3, 0, 1), config(num_classes=2, covariance="per_class")
        )
    with pytest.raises(ValueError, match="needs labels"):
        gda.init(jax.random.key(0), config(num_classes=0))
