"""Denoising score matching on Gaussian data, whose best model is known at every noise level."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import data, types
from jaxgen.diffusion.networks import MLP, UNet
from jaxgen.energy import score_matching
from jaxgen.values import Adam, Average

SMALL = score_matching.Config(network=MLP((32,)), num_levels=4, steps_per_level=3)
RANDOM = (dataclasses.replace(SMALL, network=MLP((8,), dropout=0.5), conditional=True),)
FURTHER = (dataclasses.replace(SMALL, network=UNet(8)),)
OPTIONS = {"network.attention_sizes": (8,)}

KEY = jax.random.key(0)
STD = 0.7
POINTS = score_matching.Config(
    shape=(2,), num_levels=3, smallest_level=0.2, largest_level=1.8, epsilon=0.008, network=MLP((32, 32))
)
LEVELS = np.array([1.8, 0.6, 0.2])


def undone(x, t):
    """What a network sees, as it was: x + sigma z, and sigma (B, 1)."""
    sigma = jnp.exp(t / 250)[:, None]
    return x * jnp.sqrt(1 + sigma**2), sigma


class Exact(nn.Module):
    """sigma times the score of N(0, STD^2) with noise."""

    def __call__(self, x, t, label=None, train=False):
        x, sigma = undone(x, t)
        return -sigma * x / (STD**2 + sigma**2)


class Linear(nn.Module):
    """sigma w x, with one w for each of LEVELS."""

    @nn.compact
    def __call__(self, x, t, label=None, train=False):
        x, sigma = undone(x, t)
        weight = self.param("weight", nn.initializers.zeros, len(LEVELS))
        return sigma * weight[jnp.abs(sigma - LEVELS).argmin(1), None] * x


class Constant(nn.Module):
    """sigma times 3: a score of 3."""

    def __call__(self, x, t, label=None, train=False):
        return 3 * jnp.ones_like(x) * undone(x, t)[1]


class ByLabel(nn.Module):
    """The label itself."""

    def __call__(self, x, t, label, train=False):
        return jnp.broadcast_to(jnp.float32(label)[:, None], x.shape)


def config(network, **options):
    return dataclasses.replace(POINTS, network=network, **options)


init = jax.jit(score_matching.init, static_argnums=1)
loss = jax.jit(score_matching.loss, static_argnums=3)
gaussian = STD * jax.random.normal(jax.random.key(5), (50_000, 2))


def test_levels_are_in_geometric_progression():
    np.testing.assert_allclose(score_matching.noise_levels(POINTS), LEVELS, rtol=1e-12)
    one = dataclasses.replace(POINTS, num_levels=1)
    np.testing.assert_allclose(score_matching.noise_levels(one), [0.2])


def test_the_best_loss_is_that_of_the_closed_form():
    """1/2 s^2 / (s^2 + sigma^2), the mean over levels; 1/2 without a model."""
    value, metrics = loss({}, {"x": gaussian}, KEY, config(Exact()))
    wanted = 0.5 * (STD**2 / (STD**2 + LEVELS**2)).mean()
    assert float(value) == float(metrics["loss"]) == pytest.approx(wanted, rel=0.02)
    one, _ = loss({}, {"x": gaussian}, KEY, config(Exact(), num_levels=1))
    assert float(one) == pytest.approx(0.5 * STD**2 / (STD**2 + 0.2**2), rel=0.02)


def test_squared_errors_are_weighted_by_the_squared_level():
    """Of a score c it is 1/2 (1 + c^2 mean sigma^2), without the weight 1/2 (c^2 + mean 1 / sigma^2)."""
    value, _ = loss({}, {"x": gaussian}, KEY, config(Constant()))
    assert float(value) == pytest.approx(0.5 * (1 + 9 * (LEVELS**2).mean()), rel=0.02)


def test_a_linear_network_finds_the_score_of_the_noisy_data():
    """w = -1 / (s^2 + sigma^2) at every level, by one Newton step, since the loss is a parabola in w."""
    cfg, batch = config(Linear()), {"x": gaussian}
    with jax.enable_x64(True):
        batch = {"x": jnp.asarray(gaussian, jnp.float64)}

        @jax.jit
        def newton(weight):
            value = lambda weight: score_matching.loss({"weight": weight}, batch, KEY, cfg)[0]
            slope = jax.grad(value)
            curvature = jax.jvp(slope, (weight,), (jnp.ones(3),))[1]  # diagonal: levels do not mix
            return weight - slope(weight) / curvature

        found = newton(jnp.zeros(3))
    np.testing.assert_allclose(found, -1 / (STD**2 + LEVELS**2), rtol=0.03)


@pytest.mark.slow
def test_training_finds_it_too():
    cfg = config(Linear(), optimizer=Adam(0.02), average=Average(0.98))

    @jax.jit
    def fit(state):
        batch = {"x": gaussian[:2000]}
        advance = lambda state, _: score_matching.train_step(state, batch, cfg)
        return jax.lax.scan(advance, state, length=400)[0]

    state = fit(init(KEY, cfg))
    np.testing.assert_allclose(state.ema["weight"], -1 / (STD**2 + LEVELS**2), rtol=0.08)
    x = jnp.array([[0.5, -1.0]])
    at = lambda **level: score_matching.log_gradient(state, x, cfg, **level)[0]
    np.testing.assert_allclose(at(level=1.8), state.ema["weight"][0] * x[0], rtol=1e-4)
    np.testing.assert_allclose(at(), state.ema["weight"][2] * x[0], rtol=1e-4)


def test_samples_of_the_exact_model_have_the_variance_that_its_steps_give():
    """From v to (1 - a / (2 (s^2 + sigma^2)))^2 v + a by a step of size a at level sigma."""
    cfg = config(Exact(), num_levels=6, steps_per_level=30)
    state = init(KEY, cfg)
    draw = jax.jit(functools.partial(score_matching.sample, n=10_000, cfg=cfg), static_argnames="denoise")
    levels = score_matching.noise_levels(cfg)
    variance = levels[0] ** 2
    for sigma in levels:
        size = 0.008 * sigma**2 / 0.2**2
        for _ in range(30):
            variance = (1 - size / (2 * (STD**2 + sigma**2))) ** 2 * variance + size
    noisy, clean = draw(KEY, state, denoise=False), draw(KEY, state)
    assert float(noisy.var()) == pytest.approx(variance, rel=0.03)  # its error is 0.01
    np.testing.assert_allclose(clean, noisy * STD**2 / (STD**2 + 0.2**2), rtol=1e-3, atol=1e-5)
    assert float(clean.mean()) == pytest.approx(0.0, abs=0.03)


def test_options_of_the_sampler_are_heeded():
    """Those of the call before those of the config."""
    state = init(KEY, config(Exact()))

    def program(cfg, **options):
        return str(jax.make_jaxpr(lambda: score_matching.sample(KEY, state, 5, cfg, **options))())

    plain = program(config(Exact(), epsilon=0.004, steps_per_level=7))
    assert program(config(Exact()), epsilon=0.004, steps_per_level=7) == plain
    others = program(config(Exact(), steps_per_level=7)), program(config(Exact(), epsilon=0.004))
    assert plain not in others
    start = score_matching.sample(KEY, state, 4000, config(Exact()), steps_per_level=0, denoise=False)
    assert float(start.std()) == pytest.approx(1.8, rel=0.03)


def test_the_first_level_is_the_largest_distance_of_the_data():
    points = data.load("moons")
    cfg = types.from_data(score_matching, points, SMALL)
    x = points[:300]["x"].astype(np.float64)
    brute = np.sqrt(((x[:, None] - x) ** 2).sum(-1)).max()
    assert 0.95 * brute < cfg.largest_level < 1.1 * brute
    few = data.Dataset("few", "train", {"x": x[:40]})
    brute = np.sqrt(((x[:40, None] - x[:40]) ** 2).sum(-1)).max()
    assert types.from_data(score_matching, few, SMALL).largest_level == pytest.approx(brute, rel=0.005)
    assert types.from_data(score_matching, points, POINTS).largest_level == 1.8


def test_scores_are_those_of_averaged_parameters():
    cfg = config(Linear())
    state = init(KEY, cfg)._replace(ema={"weight": jnp.array([-1.0, -2.0, -3.0])})
    x, levels = jnp.array([[0.5, -1.0], [2.0, 0.1]]), jnp.array([0.6, 0.2])
    found = score_matching.log_gradient(state, x, cfg, level=levels)
    np.testing.assert_allclose(found, jnp.array([[-2.0], [-3.0]]) * x, rtol=1e-4)


def test_samples_are_of_the_label_given():
    """A score of label / sigma, by one step of size 0.008 and without noise of other keys."""
    cfg = config(ByLabel(), conditional=True, num_classes=3, num_levels=1, steps_per_level=1)
    draw = lambda label: score_matching.sample(KEY, init(KEY, cfg), 3, cfg, label, denoise=False)
    apart = draw(jnp.array([0, 1, 2])) - draw(0)
    np.testing.assert_allclose(apart[:, 0], 0.5 * 0.008 * np.arange(3) / 0.2, atol=1e-6)


def test_labels_reach_the_network():
    cfg = config(ByLabel(), conditional=True, num_classes=3)
    state, x = init(KEY, cfg), jnp.zeros((2, 2))
    found = score_matching.log_gradient(state, x, cfg, jnp.array([0, 2]), level=0.5)
    np.testing.assert_allclose(found, [[0.0, 0.0], [4.0, 4.0]], rtol=1e-5)
    one, two = (
        loss({}, {"x": gaussian, "label": jnp.full(len(gaussian), label)}, KEY, cfg)[0] for label in (1, 2)
    )
    assert float(one) == pytest.approx(0.5 * (1 + 1), rel=0.03)
    assert float(two) == pytest.approx(0.5 * (1 + 4), rel=0.03)
    with pytest.raises(ValueError, match="give the label of every example"):
        score_matching.log_gradient(state, x, cfg)


def test_what_cannot_be_is_refused():
    for options, match in (
        ({"smallest_level": 2.0}, "between 0 and largest_level"),
        ({"epsilon": 0.17}, "epsilon must be in"),
        ({"network": UNet()}, "use network mlp"),
        ({"conditional": True}, "needs labels"),
    ):
        with pytest.raises(ValueError, match=match):
            jax.eval_shape(
                lambda options=options: score_matching.init(KEY, dataclasses.replace(POINTS, **options))
            )
    state = jax.eval_shape(lambda: score_matching.init(KEY, POINTS))
    with pytest.raises(ValueError, match=r"epsilon must be in \(0, 0\.16\)"):
        jax.eval_shape(lambda s: score_matching.sample(KEY, s, 2, POINTS, epsilon=0.2), state)
    with pytest.raises(ValueError, match="num_steps must not be negative"):
        jax.eval_shape(lambda s: score_matching.sample(KEY, s, 2, POINTS, steps_per_level=-1), state)


@pytest.mark.slow
def test_it_learns_two_points_and_samples_them():
    cfg = dataclasses.replace(
        POINTS,
        shape=(1,),
        num_levels=8,
        smallest_level=0.05,
        largest_level=2.0,
        epsilon=5e-4,
        steps_per_level=30,
    )
    x = jnp.where(jnp.arange(256) % 4 == 0, -1.0, 1.0)[:, None]

    @jax.jit
    def fit(state):
        advance = lambda state, _: score_matching.train_step(state, {"x": x}, cfg)
        state, metrics = jax.lax.scan(advance, state, length=1000)
        return metrics["loss"], score_matching.sample(jax.random.key(1), state, 2000, cfg)

    losses, drawn = fit(init(KEY, cfg))
    assert losses[-100:].mean() < 0.5 * losses[:10].mean()
    assert float(jnp.abs(jnp.abs(drawn) - 1).mean()) < 0.1
    assert float((drawn > 0).mean()) == pytest.approx(0.75, abs=0.08)
