"""The diffusion model with exact networks of Gaussian data, whose losses, bounds and densities are known."""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import data, distributions
from jaxgen.diffusion import bound, ddpm, guidance, processes
from jaxgen.diffusion.networks import MLP, Transformer, UNet
from jaxgen.diffusion.objectives import Bound, Hybrid, Simple
from jaxgen.diffusion.samplers import DDIM, DDPM, DPMSolverPP, Heun
from jaxgen.diffusion.schedules import Cosine, Linear

SMALL = ddpm.Config(network=MLP((32,)), num_steps=50, sampler=DDIM(10))
RANDOM = (
    dataclasses.replace(SMALL, network=MLP((8,), dropout=0.5), sampler=DDPM(), conditional=True, flip=True),
    dataclasses.replace(SMALL, target="v", objective=Bound()),
    dataclasses.replace(SMALL, target="v", objective=Hybrid(), variance="learned"),
)
OPTIONS = {"network.attention_sizes": (8,)}


class Exact(nn.Module):
    """E[target | x_t] of data N(0, std^2), and v of the exact variance of a reverse step if it is learned."""

    cfg: ddpm.Config
    std: float = 1.0

    def __call__(self, x, t, label=None, train=False):
        gaussian = ddpm.process(self.cfg)
        alpha, sigma = processes.levels(gaussian, np.arange(self.cfg.num_steps))
        variances = (alpha * self.std) ** 2 + sigma**2
        gain = {"eps": sigma, "x0": alpha * self.std**2, "v": alpha * sigma * (1 - self.std**2)}
        output = jnp.float32(gain[self.cfg.target] / variances)[t][:, None] * x
        if self.cfg.variance != "learned":
            return output
        large, small = bound.log_variances(gaussian)
        true = np.log(gaussian.betas * np.append(self.std**2, variances[:-1]) / variances)
        v = 2 * (true - small) / (large - small) - 1
        return jnp.concatenate([output, jnp.broadcast_to(jnp.float32(v)[t][:, None], x.shape)], -1)


def exact(std=1.0, **options):
    """A config whose network is exact, and its State."""
    cfg = ddpm.Config(**{"shape": (2,), "levels": 0, "num_steps": 30, **options})
    cfg = dataclasses.replace(cfg, network=Exact(cfg, std))
    return cfg, init(jax.random.key(0), cfg)


init = jax.jit(ddpm.init, static_argnums=1)
loss = jax.jit(ddpm.loss, static_argnums=3)
elbo = jax.jit(ddpm.elbo, static_argnames=("cfg", "num_terms"))


def normal_log_prob(x, std=1.0):
    return jax.scipy.stats.norm.logpdf(x, 0.0, std).sum(-1)


@pytest.mark.parametrize(
    ("num_steps", "std", "options"),
    [
        (2, 1.0, {}),
        (30, 1.0, {"target": "x0", "schedule": Cosine()}),
        (30, 0.5, {"variance": "learned", "objective": Bound(), "target": "v"}),
    ],
)
def test_the_bound_of_the_exact_model_is_the_density_at_every_point(num_steps, std, options):
    cfg, state = exact(std, num_steps=num_steps, **options)
    points = jnp.array([[0.0, 0.0], [1.5, -0.3], [-2.0, 2.0]])
    x = jnp.repeat(points, 4000, 0)
    bounds = elbo(jax.random.key(1), state, x, cfg=cfg).reshape(3, -1)
    errors = np.asarray(bounds.std(1)) / math.sqrt(4000)
    assert np.all(np.abs(bounds.mean(1) - normal_log_prob(points, std)) < 5 * errors + 2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("variance", ["fixed_large", "fixed_small"])
def test_the_bound_exceeds_the_entropy_by_what_a_fixed_variance_costs(variance):
    """By KL(true || fixed variance) of each step: ever less with beta, but not with the posterior's.

    At the first steps the posterior variance of a linear schedule is t / (t + 1) of the true one however
    small they are.
    """
    x = 0.5 * jax.random.normal(jax.random.key(0), (10_000, 2))
    gaps = []
    for num_steps in (20, 200):
        cfg, state = exact(0.5, num_steps=num_steps, variance=variance)
        bounds = elbo(jax.random.key(1), state, x, cfg=cfg)
        differences = np.asarray(normal_log_prob(x, 0.5) - bounds)
        gaussian = ddpm.process(cfg)
        variances = np.append(0.25, 0.25 * gaussian.alpha_bar + 1 - gaussian.alpha_bar)
        true = gaussian.betas * variances[:-1] / variances[1:]
        ratio = true / np.exp(bound.log_variances(gaussian)[variance == "fixed_small"])
        wanted = (ratio - 1 - np.log(ratio)).sum()  # of both dimensions
        assert abs(differences.mean() - wanted) < 5 * differences.std() / math.sqrt(len(x))
        gaps.append(wanted)
    assert gaps[1] < (0.02 if variance == "fixed_large" else gaps[0])


def test_terms_sum_to_the_bound_and_few_estimate_them_all():
    cfg, state = exact(0.5)
    x = jnp.repeat(jax.random.normal(jax.random.key(0), (3, 2)), 20_000, 0)

    @jax.jit
    def bounds(x):
        key = jax.random.key(1)
        terms = ddpm.vlb_terms(key, state, x, cfg)
        return terms, ddpm.elbo(key, state, x, cfg), ddpm.elbo(key, state, x, cfg, num_terms=5)

    terms, full, few = bounds(x)
    assert terms.shape == (31, 60_000)
    np.testing.assert_allclose(full, -terms.sum(0), rtol=1e-4, atol=1e-4)
    full, few = full.reshape(3, -1), few.reshape(3, -1)
    errors = np.sqrt((full.var(1) + few.var(1)) / 20_000)
    assert np.all(np.abs(full.mean(1) - few.mean(1)) < 5 * errors)


def test_as_many_terms_as_steps_are_the_bound_itself():
    cfg, state = exact(0.5)
    x = jax.random.normal(jax.random.key(0), (5, 2))
    full, all_of_them = (elbo(jax.random.key(1), state, x, cfg=cfg, num_terms=n) for n in (None, 30))
    np.testing.assert_allclose(all_of_them, full, rtol=1e-5)


def test_what_is_left_of_the_data_at_the_last_step_costs():
    """Few steps of little noise: x_T is far from N(0, I), by more than the rest of the bound."""
    cfg, state = exact(0.5, num_steps=3, schedule=Linear(0.01, 0.02))
    x = jnp.array([[0.0, 0.0], [2.0, 0.0]])
    alpha, sigma = processes.levels(ddpm.process(cfg), 2)
    wanted = 0.5 * ((alpha * x) ** 2 + sigma**2 - 1 - np.log(sigma**2)).sum(-1)
    terms = ddpm.vlb_terms(jax.random.key(1), state, x, cfg)
    np.testing.assert_allclose(terms[-1], wanted, rtol=1e-5)
    for num_terms in (None, 3):
        bounds = elbo(jax.random.key(1), state, x, cfg=cfg, num_terms=num_terms)
        np.testing.assert_allclose(bounds, -terms.sum(0), rtol=1e-5)


def test_scores_fall_with_distance_and_do_not_depend_on_what_is_predicted():
    x = jnp.array([[0.0, 0.0], [1.0, -1.0], [4.0, 4.0]])
    scores = [ddpm.score(state, x, cfg) for cfg, state in (exact(0.5, target=t) for t in ("eps", "x0", "v"))]
    assert scores[0][0] > scores[0][1] > scores[0][2]
    for others in scores[1:]:
        np.testing.assert_allclose(others, scores[0], rtol=1e-4)


@pytest.mark.slow
def test_probabilities_of_the_levels_sum_to_one():
    settings = jnp.array([(0.0, 0.3), (0.97, 0.01), (-1.4, 0.1), (0.2, 5.0), (0.5, 1e-3)])
    log_prob = jax.jit(distributions.discretized_normal_log_prob, static_argnums=3)
    for levels in (2, 256):
        x = jnp.tile(jnp.linspace(-1, 1, levels), len(settings))[:, None]
        mean, std = (column.repeat(levels)[:, None] for column in settings.T)
        found = log_prob(x, mean, 2 * jnp.log(std), levels)
        np.testing.assert_allclose(jnp.exp(found).reshape(-1, levels).sum(1), 1.0, atol=1e-4)
    # A level inside, by the difference of two values of the distribution function.
    high, low = jax.scipy.stats.norm.cdf(jnp.array([0.2 + 1 / 255, 0.2 - 1 / 255]), 0.15, 0.1)
    found = log_prob(*(jnp.full((1, 1), value) for value in (0.2, 0.15, 2 * math.log(0.1))), 256)
    assert float(found[0]) == pytest.approx(math.log(high - low), rel=1e-3)


def test_the_loss_of_the_exact_network_is_the_variance_left():
    x = 0.5 * jax.random.normal(jax.random.key(0), (100_000, 2))
    for target in ("eps", "x0", "v"):
        cfg, state = exact(0.5, target=target)
        alpha, sigma = processes.levels(ddpm.process(cfg), np.arange(30))
        left = (0.5 * sigma) ** 2 / ((0.5 * alpha) ** 2 + sigma**2)  # Var[x_0 | x_t]
        scale = {"eps": (alpha / sigma) ** 2, "x0": 1.0, "v": (alpha / sigma) ** 2 + 1}[target]
        value, _ = loss(state.params, {"x": x}, jax.random.key(1), cfg)
        assert float(value) == pytest.approx(np.mean(scale * left), rel=0.02)
        # Weighed by min-SNR, errors of x_0 count alike whatever is predicted.
        weighted = dataclasses.replace(cfg, objective=Simple(min_snr=5.0))
        value, _ = loss(state.params, {"x": x}, jax.random.key(1), weighted)
        wanted = np.mean(np.minimum((alpha / sigma) ** 2, 5.0) * left)
        assert float(value) == pytest.approx(wanted, rel=0.02)


class Scales(nn.Module):
    """Two numbers: one times x_t is the mean, the other is v."""

    @nn.compact
    def __call__(self, x, t, label=None, train=False):
        mean, v = (self.param(name, nn.initializers.constant(0.3), ()) for name in ("mean", "v"))
        return jnp.concatenate([mean * x, v * jnp.ones_like(x)], -1)


@pytest.mark.slow
def test_the_hybrid_objective_trains_the_variance_alone_through_the_bound():
    cfg = ddpm.Config(
        shape=(2,), levels=0, num_steps=20, variance="learned", objective=Hybrid(), network=Scales()
    )
    params = init(jax.random.key(0), cfg).params
    batch = {"x": 0.5 * jax.random.normal(jax.random.key(1), (256, 2))}
    gradient = jax.jit(
        lambda params, cfg: jax.grad(ddpm.loss, has_aux=True)(params, batch, jax.random.key(2), cfg)[0],
        static_argnums=1,
    )
    objectives = {
        "simple": Simple(),
        "hybrid": Hybrid(weight=0.01),
        "vlb": Bound(),
        "snr": Hybrid(min_snr=0.3),
    }
    gradients = {
        name: gradient(params, dataclasses.replace(cfg, objective=objective))
        for name, objective in objectives.items()
    }
    assert gradients["simple"]["v"] == 0
    assert gradients["hybrid"]["mean"] == pytest.approx(float(gradients["simple"]["mean"]), rel=1e-5)
    assert gradients["vlb"]["mean"] != pytest.approx(float(gradients["simple"]["mean"]), rel=0.1)
    assert gradients["snr"]["mean"] != pytest.approx(float(gradients["simple"]["mean"]), rel=0.05)
    scaled = 0.01 * float(gradients["vlb"]["v"])
    assert gradients["hybrid"]["v"] == pytest.approx(scaled, rel=1e-4)
    assert scaled != 0


@pytest.mark.parametrize("variance", ["fixed_large", "learned"])
def test_the_trained_bound_estimates_the_reported_one(variance):
    cfg, state = exact(0.5, variance=variance, objective=Bound())
    x = 0.5 * jax.random.normal(jax.random.key(0), (40_000, 2))
    estimate = loss(state.params, {"x": x}, jax.random.key(1), cfg)[0] * 2 * math.log(2)
    reported = -elbo(jax.random.key(2), state, x, cfg=cfg).mean()
    assert float(estimate) == pytest.approx(float(reported), abs=0.05)


@pytest.mark.parametrize("sampler", [DDPM(), DDIM(200), DDIM(200, eta=0.7), DPMSolverPP(200)], ids=str)
def test_samples_of_the_exact_model_are_the_data(sampler):
    learned = {"variance": "learned", "objective": Bound()} if isinstance(sampler, DDPM) else {}
    cfg, state = exact(0.5, num_steps=200, sampler=sampler, **learned)
    x = jax.jit(lambda key: ddpm.sample(key, state, 10_000, cfg))(jax.random.key(0))
    assert float(x.mean()) == pytest.approx(0.0, abs=0.02)
    assert float(x.std()) == pytest.approx(0.5, abs=0.02)


class Predictions(nn.Module):
    """The first picture, of a white pixel and a grey one."""

    def __call__(self, x, t, label=None, train=False):
        return jnp.broadcast_to(jnp.float32([1.0, 0.0]).reshape(1, 2, 1), x.shape)


class ByLabel(nn.Module):
    """Predicts 2 for no label and the label itself for one, so long as there are two."""

    def __call__(self, x, t, label, train=False):
        return jnp.broadcast_to(jnp.float32(label)[:, None], x.shape)


@pytest.fixture(scope="module")
def conditional():
    cfg = ddpm.Config(
        shape=(2,), levels=0, num_classes=2, conditional=True, label_dropout=0.25, network=ByLabel()
    )
    return cfg, init(jax.random.key(0), cfg)


def test_labels_are_withheld_as_often_as_said(conditional):
    cfg, state = conditional
    batch = {"x": jnp.zeros((50_000, 2)), "label": jnp.zeros(50_000, jnp.int32)}
    value, _ = loss(state.params, batch, jax.random.key(0), cfg)
    assert float(value) == pytest.approx(1 + 0.25 * 2**2, abs=0.03)


def test_guidance_is_affine_between_the_two_models(conditional):
    cfg, state = conditional
    x, t = jnp.zeros((3, 2)), jnp.zeros(3, jnp.int32)
    label = jnp.array([0, 1, 1])

    @jax.jit
    def guided(scale):
        return ddpm.predictor(state, cfg, label, scale)(x, t)[:, 0]

    np.testing.assert_array_equal(guided(1.0), label)
    np.testing.assert_array_equal(guided(0.0), 2)
    np.testing.assert_array_equal(guided(3.0), -2 * 2 + 3 * label)
    np.testing.assert_array_equal(ddpm.predictor(state, cfg, label)(x, t)[:, 0], label)
    np.testing.assert_array_equal(ddpm.predictor(state, cfg)(x, t), 2)


def test_labels_of_no_class_are_refused(conditional):
    cfg, state = conditional
    draw = functools.partial(ddpm.sample, jax.random.key(0), state, 3, cfg)
    for label in (2, -1, np.array([0, 5, 1]), jnp.array([1, 1, 2])):
        with pytest.raises(ValueError, match=r"of no class: there are 0 to 1"):
            draw(label)
        with pytest.raises(ValueError, match=r"of no class: there are 0 to 1"):
            jax.jit(lambda key, label=label: ddpm.sample(key, state, 3, cfg, label))(jax.random.key(0))
    with pytest.raises(ValueError, match=r"shape \(2,\) for 3 examples"):
        draw(np.array([0, 1]))
    with pytest.raises(ValueError, match="labels are integers"):
        draw(0.5)
    with pytest.raises(ValueError, match='the batch has no "label"'):
        ddpm.loss(state.params, {"x": jnp.zeros((1, 2))}, jax.random.key(0), cfg)
    traced = jax.jit(lambda label: guidance.labels(label, 3, cfg))(1)
    np.testing.assert_array_equal(traced, 1)
    np.testing.assert_array_equal(guidance.labels(None, 3, cfg), 2)


def test_guidance_moves_samples_with_the_label(conditional):
    cfg, state = conditional
    draw = lambda **options: ddpm.sample(jax.random.key(0), state, 4, cfg, steps=5, **options)
    assert draw(label=1).shape == (4, 2)
    np.testing.assert_allclose(draw(label=1), draw(label=jnp.ones(4, int), guidance=1.0), atol=1e-3)
    assert float(jnp.abs(draw(label=1, guidance=2.0) - draw(label=1)).max()) > 0.1


@pytest.mark.slow
def test_options_of_the_sampler_are_heeded():
    """Those of the config, where the call gives none; a trajectory ends in the sample."""
    cfg, state = exact(0.5)

    @functools.partial(jax.jit, static_argnums=(0, 1, 2))
    def draw(of_config, sampler=None, steps=None):
        changed = dataclasses.replace(cfg, sampler=of_config)
        return ddpm.sample(jax.random.key(0), state, 4, changed, sampler=sampler, steps=steps)

    samplers = DDIM(3), DDIM(9), DDIM(9, eta=0.5), DPMSolverPP(9), Heun(9), DDPM(9)
    found = [np.asarray(draw(sampler)) for sampler in samplers]
    for index, one in enumerate(found):
        assert all(np.abs(one - other).max() > 1e-3 for other in found[:index])
    np.testing.assert_array_equal(draw(DDIM(3), None, 9), found[1])
    np.testing.assert_array_equal(draw(DDIM(3), DPMSolverPP(9)), found[3])
    np.testing.assert_array_equal(draw(DDIM(1000)), draw(DDIM(30)))  # there are 30 steps
    frames = ddpm.trajectory(jax.random.key(0), state, 4, cfg, sampler=DPMSolverPP(9), frames=3)
    assert frames.shape == (3, 4, 2)
    np.testing.assert_allclose(frames[-1], found[3], rtol=1e-5, atol=1e-6)


def test_pixels_are_kept_in_range_and_real_numbers_are_not():
    cfg, state = exact(3.0)
    for levels, kept in ((0, False), (17, True)):
        x = ddpm.sample(jax.random.key(0), state, 200, dataclasses.replace(cfg, levels=levels), steps=5)
        assert bool(jnp.abs(x).max() <= 1 + 1e-6) == kept


@pytest.mark.slow
def test_the_bound_is_of_the_level_that_a_pixel_is_nearest_to():
    """Pictures of 17 levels are kept in 8 bits: what is stored of a level is as probable as the level."""
    level = np.arange(17)
    stored = np.round(level * 255 / 16) / 255 * 2 - 1
    np.testing.assert_allclose(bound.rounded(jnp.float32(stored), 17), level / 8 - 1, atol=1e-6)
    np.testing.assert_array_equal(bound.rounded(jnp.float32(stored), 0), np.float32(stored))
    cfg, state = exact(0.5, shape=(1,), levels=17, num_steps=40)
    assert ddpm.measure(cfg) == "levels"
    assert ddpm.measure(dataclasses.replace(cfg, levels=0)) == "density"
    x = np.repeat(level / 8 - 1, 500).astype(np.float32)[:, None]
    found, of_stored = (
        elbo(jax.random.key(1), state, jnp.asarray(x), cfg=cfg) for x in (x, np.repeat(stored, 500)[:, None])
    )
    np.testing.assert_allclose(found, of_stored, rtol=1e-4, atol=1e-3)
    gaussian, estimate, first = ddpm.process(cfg), jnp.full((17, 1), 0.1), jnp.zeros(17, jnp.int32)
    trained, of_stored = (
        bound.term(gaussian, estimate, None, jnp.float32(x)[:, None], estimate, first, target="x0", levels=17)
        for x in (level / 8 - 1, stored)
    )
    np.testing.assert_allclose(trained, of_stored, rtol=1e-5)
    # The bound is nearly tight, so its exponentials sum to nearly one, and not to more.
    total = np.exp(np.asarray(found).reshape(17, -1).mean(1)).sum()
    assert 0.8 < total < 1.001
    near = jax.scipy.stats.norm.logpdf(level / 8 - 1, 0.0, 0.5) + math.log(1 / 8)
    np.testing.assert_allclose(np.asarray(found).reshape(17, -1).mean(1)[4:13], near[4:13], atol=0.2)


def test_without_a_terminal_signal_noise_is_all_there_is_at_the_end():
    cfg = ddpm.Config(target="v")
    with_signal, without = (
        ddpm.process(dataclasses.replace(cfg, zero_terminal_snr=zero)).alpha_bar for zero in (False, True)
    )
    assert with_signal[-1] > 1e-6
    assert without[-1] == pytest.approx(0.0, abs=1e-15)
    assert without[0] == pytest.approx(with_signal[0])


def test_pictures_are_mirrored_as_often_as_not():
    cfg = dataclasses.replace(SMALL, shape=(1, 2, 1), network=Predictions(), target="x0", flip=True)
    image = jnp.tile(jnp.float32([1.0, 0.0]).reshape(1, 1, 2, 1), (4000, 1, 1, 1))
    value, _ = loss({}, {"image": image}, jax.random.key(0), cfg)
    assert float(value) == pytest.approx(0.5, abs=0.03)  # mirrored, both pixels are wrong by one
    still, _ = loss({}, {"image": image}, jax.random.key(0), dataclasses.replace(cfg, flip=False))
    assert float(still) == 0.0


@pytest.mark.slow
def test_dropout_is_in_training_alone():
    cfg = ddpm.Config(shape=(4,), network=MLP((32,), dropout=0.5), levels=0, num_steps=5)
    state = init(jax.random.key(0), cfg)
    params = jax.tree.map(lambda x: x + np.float32(0.1), jax.device_get(state.params))
    batch = {"x": np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 4)}
    dry = dataclasses.replace(cfg, network=MLP((32,)))
    with_dropout, without = (loss(params, batch, jax.random.key(1), c)[0] for c in (cfg, dry))
    assert abs(with_dropout - without) > 1e-4
    x, t = batch["x"], np.zeros(4, np.int32)
    first, second = (jax.jit(ddpm.predictor(state._replace(ema=params), c))(x, t) for c in (cfg, dry))
    np.testing.assert_array_equal(first, second)


def test_what_does_not_go_together_is_refused():
    cfg, state = exact()
    draw = functools.partial(ddpm.sample, jax.random.key(0), state, 2, cfg)
    for options in ({"guidance": 2.0}, {"label": 1}):
        with pytest.raises(ValueError, match="cannot be guided"):
            draw(**options)
    with pytest.raises(ValueError, match="cannot sample in 31 steps"):
        draw(steps=31)
    with pytest.raises(ValueError, match="at least 1"):
        draw(steps=0)
    for options, words in (
        ({"conditional": True}, "needs labels"),
        ({"zero_terminal_snr": True}, "predict v or x0"),
        ({"objective": Hybrid()}, "trains a learned variance"),
        ({"variance": "learned"}, "objective to hybrid or bound"),
        ({"shape": (3,)}, r"a U-Net takes images .* got \(3,\): use network mlp"),
        ({"shape": (3,), "network": Transformer()}, "a DiT takes images .* use network mlp"),
        ({"shape": (3,), "network": MLP(), "flip": True}, "only images"),
    ):
        with pytest.raises(ValueError, match=words):
            ddpm.init(jax.random.key(0), ddpm.Config(**options))


@pytest.mark.parametrize(
    ("size", "patch", "multipliers"), [((28, 28), 1, (1, 2, 2, 2)), ((27, 31), 2, (1, 2))]
)
def test_a_unet_takes_any_size_and_returns_it(size, patch, multipliers):
    cfg = ddpm.Config(
        shape=(*size, 3),
        network=UNet(patch=patch, multipliers=multipliers),
        variance="learned",
        objective=Bound(),
        dtype="bfloat16",
    )
    state = jax.eval_shape(functools.partial(ddpm.init, cfg=cfg), jax.random.key(0))
    out = jax.eval_shape(
        lambda state, x: ddpm._predict(state.ema, x, jnp.zeros(2), None, cfg)[0],
        state,
        jnp.zeros((2, *cfg.shape)),
    )
    assert [(part.shape, part.dtype) for part in out] == [((2, *cfg.shape), jnp.float32)] * 2


def test_bfloat16_is_near_float32():
    cfg = ddpm.Config(shape=(4,), network=MLP((32,)), levels=0)
    params = jax.tree.map(lambda x: x + np.float32(0.1), jax.device_get(init(jax.random.key(0), cfg).params))
    batch = {"x": jnp.linspace(-1, 1, 256).reshape(64, 4)}
    wide, narrow = (
        float(loss(params, batch, jax.random.key(1), dataclasses.replace(cfg, dtype=dtype))[0])
        for dtype in ("float32", "bfloat16")
    )
    assert narrow != wide
    assert narrow == pytest.approx(wide, rel=0.05)


@pytest.mark.slow
def test_it_learns_more_of_digits_than_each_pixel_alone_tells():
    train, test = (jnp.asarray(data.load("digits", split)[:]["image"]) for split in ("train", "test"))
    cfg = ddpm.Config(shape=train.shape[1:], network=MLP((256, 256)), num_steps=200, target="x0")
    gaussian = ddpm.process(cfg)

    @jax.jit
    def fit(state):
        def step(state, key):
            rows = jax.random.randint(key, (128,), 0, len(train))
            return ddpm.train_step(state, {"image": train[rows]}, cfg)

        state, _ = jax.lax.scan(step, state, jax.random.split(jax.random.key(1), 600))
        shuffled = test[:, jax.random.permutation(jax.random.key(3), 8)]
        scores = [ddpm.score(state, x, cfg).mean() for x in (test, shuffled)]
        return ddpm.loss(state.ema, {"image": test}, jax.random.key(2), cfg)[0], scores

    found, (typical, shuffled) = fit(ddpm.init(jax.random.key(0), cfg))
    # The best prediction of each pixel from its own mean and variance.
    alpha, sigma = (level[:, None] for level in processes.levels(gaussian, np.arange(200)))
    variances = np.asarray(train).reshape(len(train), -1).var(0)
    left = (sigma**2 * variances / (alpha**2 * variances + sigma**2)).mean()
    assert found < 0.95 * left
    assert typical > shuffled
