"""Adversarial losses against closed forms, the divergences they estimate, and what defines a conjugate."""

import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from jaxgen.gan.losses import DIVERGENCES, LOSSES, LossName, wright_omega

P, Q = np.array([0.2, 0.5, 0.3]), np.array([0.4, 0.35, 0.25])
JENSEN_SHANNON = 0.5 * (P * np.log(2 * P / (P + Q)) + Q * np.log(2 * Q / (P + Q))).sum()
REFERENCE = {
    "kl": (P * np.log(P / Q)).sum(),
    "reverse_kl": (Q * np.log(Q / P)).sum(),
    "pearson": ((P - Q) ** 2 / Q).sum(),
    "neyman": ((P - Q) ** 2 / P).sum(),
    "squared_hellinger": ((np.sqrt(P) - np.sqrt(Q)) ** 2).sum(),
    "jeffrey": ((P - Q) * np.log(P / Q)).sum(),
    "jensen_shannon": 2 * JENSEN_SHANNON,
    "gan": 2 * JENSEN_SHANNON - np.log(4),
    "total_variation": np.abs(P - Q).sum() / 2,
}
NAMES = sorted(DIVERGENCES)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def tabular(loss, logits):
    """The discriminator's loss if real data have law P and samples law Q on three points: (3,) -> ()."""
    counts = [np.repeat(np.arange(3), np.round(100 * law).astype(int)) for law in (P, Q)]
    return loss.discriminator(*(logits[index] for index in counts))


def minimise(function, start, learning_rate, steps=4000):
    """Gradient descent, one compiled loop."""
    step = lambda _, x: x - learning_rate * jax.grad(function)(x)
    return jax.jit(lambda x: jax.lax.fori_loop(0, steps, step, x))(start)


def inverse(activation, t):
    """Logits of which the increasing `activation` is t, by bisection."""
    low, high = np.full(t.shape, -60.0), np.full(t.shape, 60.0)
    for _ in range(80):
        middle = (low + high) / 2
        below = np.asarray(activation(jnp.asarray(middle))) < t
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return jnp.asarray((low + high) / 2)


# Divergences --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_conjugate_is_the_supremum_it_is_defined_as(name):
    divergence = DIVERGENCES[name]
    v = np.linspace(-3, 3, 25) if name != "pearson" else np.linspace(-1.9, 3, 25)
    t = np.asarray(divergence.activation(jnp.asarray(v)))
    u = np.exp(np.linspace(-25, 25, 2_000_001))
    f = np.asarray(divergence.f(jnp.asarray(u)))
    supremum = np.array([(u * each - f).max() for each in t])
    np.testing.assert_allclose(divergence.conjugate(jnp.asarray(t)), supremum, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_every_composite_is_the_conjugate_of_the_activation(name):
    divergence = DIVERGENCES[name]
    v = jnp.linspace(-8, 8, 101)
    np.testing.assert_allclose(
        divergence.composite(v), divergence.conjugate(divergence.activation(v)), rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize("name", NAMES)
def test_activations_increase_and_pass_the_threshold_at_ratio_one(name):
    divergence = DIVERGENCES[name]
    v = jnp.linspace(-12, 12, 200)
    assert (jnp.diff(divergence.activation(v)) > 0).all()
    slope = 0.0 if name == "total_variation" else jax.grad(divergence.f)(1.0)  # |u - 1| has a corner there
    assert divergence.activation(jnp.asarray(divergence.threshold)) == pytest.approx(float(slope), abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_the_bound_is_tight_at_the_slope_of_f_and_nowhere_above(name):
    divergence, loss = DIVERGENCES[name], LOSSES[f"f:{name}"]
    best = inverse(divergence.activation, np.asarray(jax.vmap(jax.grad(divergence.f))(jnp.asarray(P / Q))))
    assert -tabular(loss, best) == pytest.approx(REFERENCE[name], abs=1e-9)
    assert (Q * np.asarray(divergence.f(jnp.asarray(P / Q)))).sum() == pytest.approx(
        REFERENCE[name], abs=1e-12
    )
    others = jnp.clip(best, -3, 3) + jax.random.normal(jax.random.key(0), (200, 3))
    assert (-jax.vmap(lambda logits: tabular(loss, logits))(others) < REFERENCE[name]).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_generator_minimises_the_bound_or_maximises_the_activation(name):
    divergence, loss, practical = DIVERGENCES[name], LOSSES[f"f:{name}"], LOSSES[f"f:{name}:practical"]
    real, fake = jnp.linspace(-3, 3, 5), jnp.linspace(-1.9, 2, 7)  # Pearson's conjugate falls below -2
    slope = lambda side: jax.grad(lambda fake: side(real, fake))(fake)
    np.testing.assert_allclose(slope(loss.generator), -slope(loss.discriminator))
    np.testing.assert_allclose(practical.generator(real, fake), -divergence.activation(fake).mean())
    assert practical.discriminator(real, fake) == loss.discriminator(real, fake)
    assert (slope(loss.generator) < 0).all()
    assert (slope(practical.generator) < 0).all()


def test_quadrature_of_two_normals():
    """Tight bounds for N(0, 1) against N(1/2, 1), integrated on a grid, and the closed forms."""
    p, q = stats.norm(0, 1), stats.norm(0.5, 1)
    exact = {
        "kl": 0.125,
        "reverse_kl": 0.125,
        "pearson": np.exp(0.25) - 1,
        "neyman": np.exp(0.25) - 1,
        "squared_hellinger": 2 - 2 * np.exp(-1 / 32),
        "jeffrey": 0.25,
        "total_variation": 2 * stats.norm.cdf(0.25) - 1,
    }
    x = np.linspace(-10, 11, 40_001)
    for name, value in exact.items():
        divergence = DIVERGENCES[name]
        ratio = jnp.asarray(np.exp(p.logpdf(x) - q.logpdf(x)))
        slope = jax.vmap(jax.grad(divergence.f))(ratio)
        integrand = p.pdf(x) * slope - q.pdf(x) * divergence.conjugate(slope)
        assert np.trapezoid(integrand, x) == pytest.approx(value, abs=2e-5), name


def test_wright_omega_solves_its_equation_with_its_derivatives():
    x = jnp.linspace(-20, 600, 500)
    w = wright_omega(x)
    np.testing.assert_allclose(w + jnp.log(w), x, atol=1e-10, rtol=1e-13)
    first = jax.vmap(jax.grad(wright_omega))(x)
    step = 1e-5
    np.testing.assert_allclose(
        (wright_omega(x + step) - wright_omega(x - step)) / (2 * step), first, rtol=1e-5
    )


# The classics -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["minimax", "non_saturating"])
def test_the_best_discriminator_is_the_log_ratio_and_its_loss_the_divergence(name):
    best = minimise(lambda d: tabular(LOSSES[name], d), jnp.zeros(3), 2.0)
    np.testing.assert_allclose(jax.nn.sigmoid(best), P / (P + Q), atol=1e-8)
    assert tabular(LOSSES[name], best) == pytest.approx(np.log(4) - 2 * JENSEN_SHANNON)


def test_least_squares():
    best = minimise(lambda d: tabular(LOSSES["least_squares"], d), jnp.zeros(3), 1.0)
    np.testing.assert_allclose(best, P / (P + Q), atol=1e-8)
    assert tabular(LOSSES["least_squares"], best) == pytest.approx(0.5 * (P * Q / (P + Q)).sum())
    # With targets -1 and 1 and the generator's 0 the sum of the two is Pearson's distance of p + q and 2 q.
    centred = 2 * best - 1
    assert ((P + Q) * centred**2).sum() == pytest.approx(((P - Q) ** 2 / (P + Q)).sum())


def test_hinge():
    signs = jnp.asarray(np.sign(P - Q))
    least = 2 - np.abs(P - Q).sum()
    assert tabular(LOSSES["hinge"], signs) == pytest.approx(least)
    others = 2 * jax.random.normal(jax.random.key(0), (200, 3))
    assert (jax.vmap(lambda d: tabular(LOSSES["hinge"], d))(others) > least).all()


def test_wasserstein_over_slopes_up_to_one_is_the_distance():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=50), rng.normal(1, 2, size=70)
    grid = np.sort(np.concatenate([x, y]))
    cumulative = lambda sample: np.searchsorted(np.sort(sample), grid, side="right") / len(sample)
    slopes = np.sign(cumulative(y) - cumulative(x))[:-1]  # the best critic rises where y's share is ahead
    critic = np.concatenate([[0], np.cumsum(slopes * np.diff(grid))])
    value = LOSSES["wasserstein"].discriminator(*(jnp.asarray(np.interp(s, grid, critic)) for s in (x, y)))
    assert -value == pytest.approx(stats.wasserstein_distance(x, y))


def test_saturation():
    fake = jnp.linspace(-6, 6, 9)
    slope = lambda name: len(fake) * jax.grad(lambda d: LOSSES[name].generator(d, d))(fake)
    np.testing.assert_allclose(slope("minimax"), -jax.nn.sigmoid(fake), rtol=1e-12)
    np.testing.assert_allclose(slope("non_saturating"), -jax.nn.sigmoid(-fake), rtol=1e-12)


@pytest.mark.parametrize(("name", "scale"), [("relativistic", 1), ("relativistic_average", 2)])
def test_relativistic_losses_see_differences_only(name, scale):
    loss, constant = LOSSES[name], jnp.full(5, 0.7)
    real, fake = jax.random.normal(jax.random.key(0), (2, 5))
    for side in (loss.discriminator, loss.generator):
        assert side(constant, constant) == pytest.approx(scale * np.log(2))
        assert side(real + 3, fake + 3) == pytest.approx(float(side(real, fake)))
    assert loss.generator(real, fake) == pytest.approx(float(loss.discriminator(fake, real)))


def test_relativistic_losses_by_hand():
    real, fake = jnp.array([1.0, 3.0]), jnp.array([0.0, -2.0])
    log_sigmoid = lambda x: -np.log1p(np.exp(-x))
    paired = -(log_sigmoid(1.0) + log_sigmoid(5.0)) / 2
    average = -(log_sigmoid(2.0) + log_sigmoid(4.0)) / 2 - (log_sigmoid(2.0) + log_sigmoid(4.0)) / 2
    assert LOSSES["relativistic"].discriminator(real, fake) == pytest.approx(paired)
    assert LOSSES["relativistic_average"].discriminator(real, fake) == pytest.approx(average)


# All of them --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_finite_with_finite_slopes_at_large_logits_in_float32(name):
    for large in (100.0, -100.0):
        real, fake = jnp.full(4, large, jnp.float32), jnp.full(4, -large, jnp.float32)
        for side in LOSSES[name][:2]:
            value, slopes = jax.value_and_grad(side, (0, 1))(real, fake)
            assert value.dtype == jnp.float32
            assert np.isfinite([value, *map(jnp.sum, slopes)]).all()


@pytest.mark.parametrize("name", [name for name in sorted(LOSSES) if "practical" not in name])
def test_confident_mistakes_still_have_a_slope(name):
    """Nothing is clipped: a discriminator 30 off the wrong way is told so, unless the loss itself is flat."""
    loss = LOSSES[name]
    real = jax.grad(lambda d: loss.discriminator(d, -d))(jnp.full(2, -30.0))
    assert (real < 0).all() or name == "f:total_variation"


def test_the_mean_is_over_the_batch():
    real, fake = jax.random.normal(jax.random.key(0), (2, 6))
    for name, loss in LOSSES.items():
        if loss.threshold is None and name != "wasserstein":
            continue
        once = loss.discriminator(real, fake)
        twice = loss.discriminator(jnp.tile(real, 2), jnp.tile(fake, 3))
        assert twice == pytest.approx(float(once)), name


def test_jensen_shannon_by_quadrature():
    density = lambda x, mean: np.exp(-0.5 * (x - mean) ** 2) / np.sqrt(2 * np.pi)

    def integrand(x):
        p, q = density(x, 0.0), density(x, 3.0)
        return p * np.log(2 * p / (p + q)) + q * np.log(2 * q / (p + q))

    exact = integrate.quad(integrand, -12, 15)[0]
    x = np.linspace(-12, 15, 20_001)
    logits = jnp.asarray(stats.norm.logpdf(x) - stats.norm.logpdf(x, 3.0))
    cross_entropy = np.trapezoid(
        density(x, 0.0) * jax.nn.softplus(-logits) + density(x, 3.0) * jax.nn.softplus(logits), x
    )
    assert cross_entropy == pytest.approx(np.log(4) - exact, abs=1e-6)
    js = DIVERGENCES["jensen_shannon"]
    bound = np.trapezoid(density(x, 0.0) * js.activation(logits) - density(x, 3.0) * js.composite(logits), x)
    assert bound == pytest.approx(exact, abs=1e-6)


def test_a_config_can_name_every_loss():
    assert set(typing.get_args(LossName)) == set(LOSSES)
