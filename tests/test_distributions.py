import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxgen import distributions
from jaxgen.autoencoder import posteriors


def test_bernoulli_sums_to_one_over_all_images():
    logits = jnp.array([[3.0, -1.0, 0.2, -50.0, 8.0]])
    x = jnp.array(list(itertools.product([0.0, 1.0], repeat=5)))
    total = jnp.exp(distributions.bernoulli_log_prob(x, jnp.broadcast_to(logits, x.shape))).sum()
    assert total == pytest.approx(1.0, abs=1e-5)


def test_bernoulli_is_finite_at_extreme_logits():
    value, gradient = jax.value_and_grad(
        lambda a: distributions.bernoulli_log_prob(jnp.array([[0.0, 1.0]]), a).sum()
    )(jnp.array([[100.0, -100.0]]))
    assert value == pytest.approx(-200.0)
    np.testing.assert_allclose(gradient, [[-1.0, 1.0]])


def test_normal_agrees_with_scipy():
    rng = np.random.default_rng(0)
    x, mean, log_variance = rng.normal(size=(3, 4, 2, 3))
    expected = scipy.stats.norm.logpdf(x, mean, np.exp(log_variance / 2)).sum((1, 2))
    np.testing.assert_allclose(distributions.normal_log_prob(x, mean, log_variance), expected, rtol=1e-5)
    np.testing.assert_allclose(
        distributions.normal_log_prob(x), scipy.stats.norm.logpdf(x).sum((1, 2)), rtol=1e-5
    )


def test_kl_agrees_with_monte_carlo_and_quadrature():
    mean, log_variance = jnp.array([[0.7, -1.2]]), jnp.array([[-1.0, 0.4]])
    closed = distributions.kl_normal(mean, log_variance)[0]
    z = mean + jnp.exp(0.5 * log_variance) * jax.random.normal(jax.random.key(0), (200_000, 2))
    ratio = distributions.normal_log_prob(z, mean, log_variance) - distributions.normal_log_prob(z)
    assert abs(ratio.mean() - closed) < 4 * ratio.std() / np.sqrt(len(ratio))
    grid = np.linspace(-12, 12, 20_001)
    quadrature = 0.0
    for m, v in zip(mean[0], log_variance[0], strict=True):
        q = scipy.stats.norm(float(m), float(np.exp(v / 2)))
        integrand = q.pdf(grid) * (q.logpdf(grid) - scipy.stats.norm.logpdf(grid))
        quadrature += np.trapezoid(integrand, grid)
    assert closed == pytest.approx(quadrature, rel=1e-5)


Q, P = (0.7, -1.0), (-0.3, 0.6)
"""Mean and log-variance of two normals that lie apart."""


def normal(mean, log_variance):
    return scipy.stats.norm(mean, np.exp(log_variance / 2))


def lognormal(mean, log_variance):
    return scipy.stats.lognorm(np.exp(log_variance / 2), scale=np.exp(mean))


@pytest.mark.parametrize(
    ("closed", "family", "grid"),
    [
        (distributions.kl_normal, normal, np.linspace(-15, 15, 100_001)),
        (distributions.kl_lognormal, lognormal, np.geomspace(1e-6, 1e5, 200_001)),
    ],
)
def test_kl_of_a_pair_agrees_with_monte_carlo_and_quadrature(closed, family, grid):
    value = float(closed(*jnp.array([Q, P]).ravel()[:, None, None])[0])
    q, p = family(*Q), family(*P)
    quadrature = np.trapezoid(q.pdf(grid) * (q.logpdf(grid) - p.logpdf(grid)), grid)
    assert value == pytest.approx(quadrature, rel=1e-4)
    z = q.rvs(100_000, random_state=0)
    ratio = q.logpdf(z) - p.logpdf(z)
    assert abs(ratio.mean() - value) < 4 * ratio.std() / np.sqrt(len(ratio))


def test_kl_of_nearly_equal_normals_keeps_its_digits():
    log_ratio = np.array([-1e-2, -1e-4, 1e-6, 1e-3])
    expected = 0.5 * (np.expm1(log_ratio) - log_ratio)
    zeros = jnp.zeros((4, 1))
    found = distributions.kl_normal(zeros, jnp.float32(log_ratio)[:, None])
    np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-12)
    assert (distributions.geometric_js_normal(zeros, jnp.float32(log_ratio)[:, None]) >= 0).all()


def test_lognormal_agrees_with_scipy():
    z = np.array([[0.1, 3.0], [1.0, 20.0]])
    expected = lognormal(*Q).logpdf(z).sum(1)
    np.testing.assert_allclose(distributions.lognormal_log_prob(z, *Q), expected, rtol=1e-5)


def test_categorical_kl_is_the_enumerated_one_between_nothing_and_log_k():
    logits = np.random.default_rng(0).normal(size=(3, 4, 5)) * 2
    probability = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = (probability * np.log(5 * probability)).sum((1, 2))
    np.testing.assert_allclose(distributions.kl_categorical(logits), expected, rtol=1e-5)
    extremes = jnp.array([[[7.0, 7.0, 7.0]], [[0.0, 500.0, -500.0]]])
    np.testing.assert_allclose(distributions.kl_categorical(extremes), [0, np.log(3)], atol=1e-6)


@pytest.mark.parametrize("dual", [False, True])
@pytest.mark.parametrize("alpha", [0.2, 0.5])
def test_geometric_js_agrees_with_monte_carlo_and_quadrature(alpha, dual):
    """The density between the two is normalised on a grid here, not by its formula."""
    value = float(
        distributions.geometric_js_normal(*jnp.array([Q, P]).ravel()[:, None, None], alpha, dual)[0]
    )
    grid = np.linspace(-15, 15, 100_001)
    log_between = lambda z: alpha * normal(*Q).logpdf(z) + (1 - alpha) * normal(*P).logpdf(z)
    log_mass = np.log(np.trapezoid(np.exp(log_between(grid)), grid))
    between = log_between(grid) - log_mass

    def kl(first, second):
        return np.trapezoid(np.exp(first) * (first - second), grid)

    logs = normal(*Q).logpdf(grid), normal(*P).logpdf(grid)
    terms = [kl(between, log) if dual else kl(log, between) for log in logs]
    assert value == pytest.approx((1 - alpha) * terms[0] + alpha * terms[1], rel=1e-4)
    if not dual:
        draws = [normal(*pair).rvs(50_000, random_state=1) for pair in (Q, P)]
        ratios = [
            weight * (normal(*pair).logpdf(z) - log_between(z) + log_mass)
            for weight, pair, z in zip((1 - alpha, alpha), (Q, P), draws, strict=True)
        ]
        error = np.sqrt(sum(ratio.var() / len(ratio) for ratio in ratios))
        assert abs(sum(ratio.mean() for ratio in ratios) - value) < 4 * error


def test_geometric_js_runs_from_one_kl_to_the_other():
    q, p = ((jnp.full((1, 3), mean), jnp.full((1, 3), log_variance)) for mean, log_variance in (Q, P))
    forward, backward = distributions.kl_normal(*q, *p), distributions.kl_normal(*p, *q)
    js = distributions.geometric_js_normal
    np.testing.assert_allclose([js(*q, *p, 0.0), js(*q, *p, 1.0)], [forward, backward], rtol=1e-5)
    np.testing.assert_allclose([js(*q, *p, 0.0, True), js(*q, *p, 1.0, True)], [backward, forward], rtol=1e-5)
    np.testing.assert_allclose(js(*q, *p), js(*p, *q), rtol=1e-5)
    np.testing.assert_allclose(js(*q, *q, 0.3), 0, atol=1e-6)
    assert abs(forward - backward)[0] > 0.5
    np.testing.assert_allclose(js(*q), js(*q, 0.0, 0.0), rtol=1e-6)


def test_gumbel_softmax_draws_the_categorical_at_any_temperature():
    logits = jnp.broadcast_to(jnp.log(jnp.array([0.1, 0.6, 0.3])), (40_000, 3))
    for temperature in (0.05, 1.0, 10.0):
        soft = distributions.gumbel_softmax(jax.random.key(0), logits, temperature)
        np.testing.assert_allclose(soft.sum(-1), 1, rtol=1e-5)
        np.testing.assert_allclose(jax.nn.one_hot(soft.argmax(-1), 3).mean(0), [0.1, 0.6, 0.3], atol=0.01)
    cold = distributions.gumbel_softmax(jax.random.key(0), logits, 1e-3)
    assert (cold.max(-1) > 0.999).mean() > 0.99


def test_gumbel_softmax_of_two_is_a_tempered_logistic():
    temperature = 0.7
    logits = jnp.broadcast_to(jnp.array([0.4, -0.3]), (5000, 2))
    soft = np.asarray(distributions.gumbel_softmax(jax.random.key(1), logits, temperature), np.float64)
    log_odds = np.log(soft[:, 0]) - np.log(soft[:, 1])
    expected = scipy.stats.logistic(0.7 / temperature, 1 / temperature)
    assert scipy.stats.kstest(log_odds, expected.cdf).pvalue > 0.01


def test_hard_gumbel_softmax_is_one_hot_with_the_gradient_of_the_soft_one():
    logits, weights = jnp.array([[0.3, -0.2, 1.0]]), jnp.array([0.5, 2.0, -1.0])
    hard = distributions.gumbel_softmax(jax.random.key(2), logits, 0.5, hard=True)
    assert sorted(np.asarray(hard[0])) == [0, 0, 1]
    gradients = [
        jax.grad(
            lambda a, hard=hard: distributions.gumbel_softmax(jax.random.key(2), a, 0.5, hard)[0] @ weights
        )(logits)
        for hard in (False, True)
    ]
    np.testing.assert_allclose(*gradients, rtol=1e-6)
    assert (gradients[0] != 0).all()


LEVELS = np.arange(256) / 127.5 - 1


def mixture_parameters(shape, num_components, num_channels, scale=1.0):
    groups = 3 if num_channels == 1 else 10
    parameters = np.random.default_rng(0).normal(size=(*shape, groups, num_components))
    parameters[..., 1 + num_channels : 1 + 2 * num_channels, :] -= 2.0
    return jnp.asarray(scale * parameters.reshape(*shape, -1), jnp.float32)


EXTREMES = [
    [mean, log_scale] for mean in (-1e4, -1.0, 0.001, 0.9999, 30.0) for log_scale in (-50, -7, -3, 2, 200)
]


@pytest.mark.slow
def test_discretized_logistics_sum_to_one_over_the_256_levels():
    single = jnp.array([[0.0, *pair] for pair in EXTREMES], jnp.float32)
    mixtures = mixture_parameters((10,), 4, 1, scale=2.0)
    for parameters in (single, mixtures):
        pairs = jnp.repeat(parameters, 256, 0)
        x = jnp.tile(jnp.asarray(LEVELS, jnp.float32), len(parameters))[:, None]
        log_prob = distributions.discretized_logistic_mixture_log_prob(x, pairs).reshape(-1, 256)
        assert np.isfinite(log_prob).all()
        np.testing.assert_allclose(jnp.exp(log_prob).sum(1), 1, atol=2e-4)


@pytest.mark.slow
def test_discretized_logistics_have_finite_gradients_at_extremes():
    parameters = jnp.repeat(jnp.array([[0.0, *pair] for pair in EXTREMES], jnp.float32), 3, 0)
    x = jnp.tile(jnp.array([-1.0, LEVELS[128], 1.0], jnp.float32), len(EXTREMES))[:, None]
    total = lambda parameters: distributions.discretized_logistic_mixture_log_prob(x, parameters).sum()
    assert np.isfinite(jax.grad(total)(parameters)).all()


def scipy_mixture(x, parameters):
    """P(x) of one pixel of three channels, by differences of SciPy's CDF in float64."""
    logits, *rest = np.asarray(parameters, np.float64).reshape(10, -1)
    means, log_scales, coefficients = rest[:3], rest[3:6], np.tanh(rest[6:])
    shifts = [0.0, coefficients[0] * x[0], coefficients[1] * x[0] + coefficients[2] * x[1]]
    weights = np.exp(logits) / np.exp(logits).sum()
    for channel in range(3):
        logistic = scipy.stats.logistic(means[channel] + shifts[channel], np.exp(log_scales[channel]))
        upper = 1.0 if x[channel] == 1 else logistic.cdf(x[channel] + 1 / 255)
        lower = 0.0 if x[channel] == -1 else logistic.cdf(x[channel] - 1 / 255)
        weights = weights * (upper - lower)
    return weights.sum()


@pytest.mark.slow
def test_colour_mixtures_agree_with_scipy_and_share_the_component():
    parameters = mixture_parameters((6,), 3, 3)
    x = np.array([[0, 255, 3], [128, 0, 255], [255, 255, 255], [90, 130, 140], [0, 0, 0], [1, 254, 60]])
    log_prob = distributions.discretized_logistic_mixture_log_prob(
        jnp.asarray(LEVELS[x], jnp.float32), parameters
    )
    expected = [np.log(scipy_mixture(*pair)) for pair in zip(LEVELS[x], parameters, strict=True)]
    np.testing.assert_allclose(log_prob, expected, rtol=1e-3)
    image = distributions.discretized_logistic_mixture_log_prob(
        jnp.asarray(LEVELS[x], jnp.float32).reshape(2, 3, 1, 3), parameters.reshape(2, 3, 1, -1)
    )
    np.testing.assert_allclose(image, log_prob.reshape(2, 3).sum(1), rtol=1e-5)


@pytest.mark.slow
def test_a_mixture_of_equals_is_one_of_them():
    one = mixture_parameters((8,), 1, 1)
    x = jnp.asarray(LEVELS[::32, None], jnp.float32)
    several = jnp.repeat(one, 5, -1)
    log_prob = distributions.discretized_logistic_mixture_log_prob
    np.testing.assert_allclose(log_prob(x, several), log_prob(x, one), rtol=1e-5)


@pytest.mark.slow
def test_draws_of_a_mixture_have_its_probabilities_and_its_mean():
    parameters = mixture_parameters((1,), 3, 1)
    x = jnp.asarray(LEVELS[:, None], jnp.float32)
    log_prob = distributions.discretized_logistic_mixture_log_prob(x, jnp.repeat(parameters, 256, 0))
    probability = np.exp(np.asarray(log_prob, np.float64))
    draws = distributions.discretized_logistic_mixture_sample(
        jax.random.key(0), jnp.repeat(parameters, 100_000, 0), 1
    )
    index = np.asarray((draws[:, 0] + 1) * 127.5)
    np.testing.assert_allclose(index, index.round(), atol=1e-3)
    counts = np.bincount(index.round().astype(int), minlength=256).reshape(32, 8).sum(1)
    expected = probability.reshape(32, 8).sum(1) / probability.sum() * len(draws)
    assert scipy.stats.chisquare(counts, expected).pvalue > 1e-3
    mean = distributions.discretized_logistic_mixture_mean(parameters, 1)[0, 0]
    assert abs(mean - probability @ LEVELS) < 1 / 255


def test_means_of_mixtures_are_exact_however_wide_or_far():
    """The mean of a logistic with its tails moved to -1 and 1 is -1 + the integral of 1 - F over them."""
    mean, log_scale = (
        a.ravel() for a in np.meshgrid([-1e6, -50, -1, -0.3, 0.999, 1e6], [0.8, 5, 12, 20, 1e3])
    )
    nodes, weights = np.polynomial.legendre.leggauss(50)
    scale = np.exp(np.minimum(log_scale, 700))[:, None]
    expected = scipy.special.expit((mean[:, None] - nodes) / scale) @ weights - 1
    given = lambda mean, log_scale: jnp.float32(np.stack([0 * mean, mean, log_scale], -1))
    found = distributions.discretized_logistic_mixture_mean(given(mean, log_scale), 1)[:, 0]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    narrow = distributions.discretized_logistic_mixture_mean(given(mean, -1e3 + 0 * mean), 1)[:, 0]
    np.testing.assert_allclose(narrow, np.clip(mean, -1, 1), atol=1e-3)
    of_all = lambda p: distributions.discretized_logistic_mixture_mean(p, 1).sum()
    assert np.isfinite(jax.grad(of_all)(given(mean, log_scale))).all()


@pytest.mark.slow
def test_colour_draws_follow_the_channels_before_them():
    parameters = mixture_parameters((1,), 2, 3, scale=0.5)
    draws = distributions.discretized_logistic_mixture_sample(
        jax.random.key(0), jnp.repeat(parameters, 50_000, 0), 3
    )
    mean = distributions.discretized_logistic_mixture_mean(parameters, 3)[0]
    np.testing.assert_allclose(draws.mean(0), mean, atol=0.03)
    single = jnp.array([0.0, 0.1, -0.2, 0.0, -3.0, -3.0, -3.0, 2.0, 0.0, 0.0])
    draws = distributions.discretized_logistic_mixture_sample(
        jax.random.key(1), jnp.broadcast_to(single, (20_000, 10)), 3
    )
    slope = np.polyfit(draws[:, 0], draws[:, 1], 1)[0]
    assert slope == pytest.approx(np.tanh(2.0), abs=0.02)
    assert abs(np.corrcoef(draws[:, 1], draws[:, 2])[0, 1]) < 0.04


@pytest.mark.parametrize(
    ("channels", "size", "words"), [(2, 20, "1 or 3 channels"), (3, 12, "10 K parameters")]
)
def test_mixtures_of_other_sizes_are_refused(channels, size, words):
    with pytest.raises(ValueError, match=words):
        distributions.discretized_logistic_mixture_log_prob(jnp.zeros((1, channels)), jnp.zeros((1, size)))


def test_scales_of_a_mixture_have_a_smallest():
    of_scale = lambda log_scale: distributions.discretized_logistic_mixture_log_prob(
        jnp.zeros((1, 1)), jnp.array([[0.0, 0.01, log_scale]])
    )
    assert of_scale(-9.0) == of_scale(-7.0)
    assert of_scale(-6.9) > of_scale(-7.0)


def test_bfloat16_inputs_are_summed_in_float32():
    logits = jnp.zeros((1, 4096), jnp.bfloat16)
    value = distributions.bernoulli_log_prob(jnp.zeros((1, 4096)), logits)
    assert value.dtype == jnp.float32
    assert value[0] == pytest.approx(-4096 * np.log(2), rel=1e-4)


def test_bernoulli_draws_have_their_probability():
    probability = jnp.broadcast_to(jnp.array([0.0, 0.001, 0.3, 0.999, 1.0]), (40_000, 5))
    bits = distributions.bernoulli(jax.random.key(0), probability)
    share, expected = bits.mean(0), probability[0]
    assert bits.dtype == bool
    assert share[0] == 0
    assert share[-1] == 1
    assert jnp.all(jnp.abs(share - expected) <= 4 * jnp.sqrt(expected * (1 - expected) / len(bits)))
    assert abs(jnp.corrcoef(bits[:, 1:4].T)[0, 1]) < 0.02


def test_what_is_rarer_than_the_bits_can_tell_never_happens():
    """In four million draws a probability that is rounded up to 2^-16 would come sixty times."""
    draw = lambda probability: distributions.bernoulli(jax.random.key(0), jnp.full((1000, 4000), probability))
    assert draw(1e-20).sum() == 0
    assert draw(2.0**-18).sum() == 0
    assert draw(1 - 2.0**-18).all()


def test_draws_that_are_impossible_count_as_nothing_in_a_bound():
    log_weight = jnp.array([[-np.inf, -1.0, -np.inf, -2.0], [-3.0, -np.inf, 0.5, -np.inf], [-np.inf] * 4]).T
    propose = lambda key: (jax.random.randint(key, (), 0, 4), jnp.zeros(3))
    found = distributions.importance_weighted_bound(jax.random.key(0), propose, lambda i: log_weight[i], 6)
    index = [propose(jax.random.fold_in(jax.random.key(0), k))[0] for k in range(6)]
    expected = scipy.special.logsumexp(np.asarray(log_weight)[np.array(index)], 0) - np.log(6)
    assert np.isneginf(log_weight[index[0]]).any()
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_systematic_resampling_draws_by_weight():
    weights = jnp.array([[0.5, 0.2, 0.05, 0.25], [0.0, 1.0, 0.0, 0.0]])
    draw = jax.vmap(lambda key: distributions.systematic_resample(key, weights, 3))
    index = np.asarray(draw(jax.random.split(jax.random.key(0), 4000)))
    counts = (index[..., None] == np.arange(4)).sum(2)
    error = np.sqrt(counts.var(0) / len(counts))
    assert (abs(counts.mean(0) - 3 * weights) < 4 * error + 1e-6).all()
    assert (abs(counts - 3 * weights) < 1).all()


EDGES = [-np.inf, -1.0, -1e-30, 0.0, 1e-30, 1.0, np.inf]
"""Where densities end, and what lies outside of them."""


def test_densities_at_the_edge_and_outside_are_those_of_scipy():
    z = np.array(EDGES, np.float32)[:, None]
    for ours, theirs in (
        (distributions.normal_log_prob, normal(*Q)),
        (distributions.lognormal_log_prob, lognormal(*Q)),
    ):
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            expected = theirs.logpdf(z.astype(np.float64))[:, 0]
        np.testing.assert_allclose(ours(z, *Q), expected, rtol=1e-5)
    # One coordinate outside is enough, and it has no slope.
    pair = jnp.array([[1.0, 0.0], [2.0, 0.5]])
    assert np.isneginf(distributions.lognormal_log_prob(pair)).tolist() == [True, False]
    assert np.isfinite(jax.grad(lambda z: distributions.lognormal_log_prob(z)[1])(pair)).all()


def test_certain_bits_and_categories_are_those_of_scipy():
    logits, x = np.meshgrid([-np.inf, -3.0, 3.0, np.inf], [0.0, 1.0])
    with np.errstate(divide="ignore"):
        expected = scipy.stats.bernoulli.logpmf(x, scipy.special.expit(logits)).ravel()
    found = distributions.bernoulli_log_prob(*(jnp.float32(a).reshape(-1, 1) for a in (x, logits)))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    impossible = jnp.array([[[0.0, -jnp.inf, 0.0]]])
    expected = scipy.special.rel_entr([0.5, 0.0, 0.5], np.full(3, 1 / 3)).sum()
    assert distributions.kl_categorical(impossible)[0] == pytest.approx(expected, rel=1e-5)
    posterior = posteriors.Categorical(3)
    found = posterior.log_prob(jnp.repeat(impossible, 3, 0), jnp.eye(3)[:, None])
    np.testing.assert_allclose(found, [np.log(0.5), -np.inf, np.log(0.5)], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("levels", [2, 256])
def test_levels_far_from_the_mean_are_those_of_scipy(levels):
    """Of a normal and of a logistic, in the tails of both, at the outermost levels and beyond them."""
    x, half = np.array([-1.0, -1 + 2 / (levels - 1), 1.0, 1.5, -7.0]), 1 / (levels - 1)
    for mean, scale in ((0.1, 0.01), (-1.5, 0.02), (0.9, 0.1), (0.0, 5.0)):
        for distribution in (scipy.stats.norm(mean, scale), scipy.stats.logistic(mean, scale)):
            level = np.clip(x, -1, 1)
            low = np.where(level < half - 1, -np.inf, level - half)
            high = np.where(level > 1 - half, np.inf, level + half)
            upper = low > mean  # the smaller tails
            logs = np.where(upper, distribution.logsf(low), distribution.logcdf(high))
            less = np.where(upper, distribution.logsf(high), distribution.logcdf(low))
            with np.errstate(divide="ignore"):
                expected = logs + np.log1p(-np.exp(less - logs))
            if distribution.dist.name == "norm":
                same = np.full((5, 1), mean, np.float32), np.full((5, 1), 2 * np.log(scale), np.float32)
                found = distributions.discretized_normal_log_prob(jnp.float32(x)[:, None], *same, levels)
            else:
                parameters = jnp.tile(jnp.float32([0.0, mean, np.log(scale)]), (5, 1))
                found = distributions.discretized_logistic_mixture_log_prob(
                    jnp.float32(x)[:, None], parameters, levels
                )
            np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3, err_msg=str((mean, scale)))
