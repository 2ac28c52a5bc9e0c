"""Consistency models of Gaussian data, whose flow is linear, so that the function they learn is known."""

import dataclasses
import functools
import itertools
import json
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import jaxgen
from experiments.studies import distill
from jaxgen import data, keys, types
from jaxgen.diffusion import consistency, curricula, edm
from jaxgen.diffusion.networks import MLP

SMALL = consistency.Config(network=MLP((32,)), curriculum=curricula.Doubling(4, 32, 300))
TRAINED = consistency.Config(network=MLP((64, 64)))
RANDOM = tuple(
    dataclasses.replace(SMALL, distribution=distribution, conditional=True)
    for distribution in (curricula.LogNormal(), curricula.Uniform())
)
OPTIONS = {"network.attention_sizes": (8,)}

MEAN, STD, SMALLEST = 0.3, 0.4, 0.002


def shrink(level):
    """How much nearer to the mean the flow from a level to the smallest brings a point."""
    return ((STD**2 + SMALLEST**2) / (STD**2 + level**2)) ** 0.5


class Exact(nn.Module):
    """The F of the exact consistency function, and for the parameter 1 in place of 0 that of the denoiser."""

    @nn.compact
    def __call__(self, x, t, label=None, train=False):
        denoises = self.param("denoises", nn.initializers.zeros, ())
        level = jnp.exp(t / 250)[:, None]
        both = (module.preconditioners(level, consistency.Config()) for module in (edm, consistency))
        skip, out, into, _ = (jnp.where(denoises, *pair) for pair in zip(*both, strict=True))
        x = x / into
        kept = jnp.where(denoises, STD**2 / (STD**2 + level**2), shrink(level))
        return (MEAN + kept * (x - MEAN) - skip * x) / jnp.where(out > 1e-9, out, jnp.inf)


EXACT = consistency.Config(
    shape=(3,), network=Exact(), objective=consistency.Training(embedding_scale=1000.0)
)
DENOISES = {"denoises": 1.0}
init = jax.jit(consistency.init, static_argnums=1)
POINTS = consistency.Config(shape=(2,), network=MLP((16,)), curriculum=curricula.Doubling(4, 32))


@pytest.fixture(scope="module")
def exact():
    return init(jax.random.key(0), EXACT)


def test_data_stay_as_they_are_whatever_the_network():
    rng = np.random.default_rng(0)
    state = init(jax.random.key(0), POINTS)
    ema = jax.tree.map(lambda x: x + 0.3 * rng.normal(size=x.shape).astype(np.float32), state.ema)
    function = jax.jit(consistency.function(state._replace(ema=ema), POINTS))
    x = jnp.asarray(rng.normal(size=(50, 2)), jnp.float32)
    np.testing.assert_array_equal(function(x, jnp.full(50, POINTS.smallest_level)), x)
    assert float(jnp.abs(function(x, jnp.full(50, 1.0)) - x).max()) > 0.1


def test_the_exact_function_maps_a_path_to_its_end(exact):
    level = np.geomspace(SMALLEST, 80.0, 9, dtype=np.float32)
    x = MEAN + np.outer(1 / shrink(level), np.float32([-1.0, 0.2, 2.0]))
    found = jax.jit(consistency.function(exact, EXACT))(x, level)
    np.testing.assert_allclose(found, np.broadcast_to(x[0], (9, 3)), rtol=1e-4, atol=1e-4)


def test_distilling_what_is_exact_leaves_the_error_of_the_solver(exact):
    """A step of Heun is of third order, so the squared distance falls 64 times when steps are halved."""
    cfg = dataclasses.replace(
        EXACT,
        objective=consistency.Distillation(),
        distribution=curricula.Uniform(),
        weights="uniform",
        huber_scale=1e6,
    )
    with jax.enable_x64(True):
        x = MEAN + STD * jax.random.normal(jax.random.key(0), (20_000, 3), jnp.float64)
        loss = jax.jit(
            lambda intervals, teacher: consistency.loss(
                exact.params, {"x": x}, jax.random.key(1), cfg, intervals, None, teacher
            )[1]["mse"]
        )
        errors = [float(loss(intervals, DENOISES)) for intervals in (100, 200, 400)]
    assert errors[0] < 1e-7
    for coarse, fine in itertools.pairwise(errors):
        assert coarse / fine == pytest.approx(64, rel=0.15)


def test_the_loss_is_the_weighted_pseudo_huber_distance(exact):
    """Of neighbours that share their noise, written out."""
    y = MEAN + STD * jax.random.normal(jax.random.key(0), (500, 3))
    key = jax.random.key(1)
    for options in ({}, {"weights": "uniform", "distribution": curricula.Uniform(), "huber_scale": 0.1}):
        cfg = dataclasses.replace(EXACT, **options)
        loss = functools.partial(consistency.loss, cfg=cfg, intervals=20)
        value, metrics = jax.jit(loss)(exact.params, {"x": y}, key)
        index_key, noise_key = keys.named(key, "index", "noise")
        drawn = jax.jit(lambda key, cfg=cfg: consistency.draw_index(key, 500, 20, cfg))
        index = np.asarray(drawn(index_key))
        grid = np.linspace(SMALLEST ** (1 / 7), 80 ** (1 / 7), 21) ** 7
        noise = np.asarray(jax.random.normal(noise_key, y.shape), np.float64)
        low, high = (
            MEAN + shrink(level)[:, None] * (np.asarray(y) + level[:, None] * noise - MEAN)
            for level in (grid[index], grid[index + 1])
        )
        square = ((high - low) ** 2).sum(-1)
        c = cfg.huber_scale * math.sqrt(3)
        weight = 1 / np.diff(grid)[index] if cfg.weights == "inverse" else 1.0
        assert float(value) == pytest.approx(float((weight * (np.sqrt(square + c**2) - c)).mean()), rel=1e-3)
        assert float(metrics["mse"]) == pytest.approx(float(square.mean()) / 3, rel=1e-3)


def test_no_gradient_goes_through_the_target():
    """A copy of the parameters as the target changes nothing, other parameters do."""
    params = jax.tree.map(lambda x: x + 0.1, init(jax.random.key(0), POINTS).params)
    batch = {"x": jax.random.normal(jax.random.key(1), (64, 2))}
    gradient = jax.jit(
        lambda params, target: jax.grad(
            lambda params: consistency.loss(params, batch, jax.random.key(2), POINTS, 8, target)[0]
        )(params)
    )
    own, other = gradient(params, None), gradient(params, params)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), own, other)
    moved = gradient(params, jax.tree.map(lambda x: x + 0.1, params))
    assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(*map(jax.tree.leaves, (own, moved)), strict=True))


@pytest.mark.slow
def test_the_target_follows_more_slowly_the_more_levels_there_are():
    """And the loss is to it, not to the parameters being trained."""
    cfg = dataclasses.replace(POINTS, target_decay=0.9, curriculum=curricula.Doubling(4, 32, 400))
    state = init(jax.random.key(0), cfg)
    moved = jax.tree.map(lambda leaf: leaf + 0.1, state.params)
    state = state._replace(target=moved, step=jnp.int32(150))
    batch = {"x": jax.random.normal(jax.random.key(1), (16, 2))}
    after, metrics = jax.jit(functools.partial(consistency.train_step, cfg=cfg))(state, batch)
    assert metrics["intervals"] == 8
    decay = 0.9 ** (5 / 9)  # of 5 levels at first, and 9 now
    wanted = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, moved, after.params)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), after.target, wanted)
    key = jax.random.fold_in(state.key, 150)
    found, own = (
        consistency.loss(state.params, batch, key, cfg, 8, target)[0] for target in (moved, state.params)
    )
    assert float(metrics["loss"]) == pytest.approx(float(found), rel=1e-4)
    assert abs(found - own) > 1e-3


def test_levels_grow_in_number_as_the_papers_say():
    improved = curricula.Doubling(steps=400_000)
    steps = np.array([0, 49_999, 50_000, 120_000, 349_999, 350_000, 399_999, 10**9])
    found = improved(steps)
    np.testing.assert_array_equal(found, [10, 10, 20, 40, 640, 1280, 1280, 1280])
    first = curricula.Root(steps=1000)
    steps = np.arange(0, 1000, 7)
    levels = np.ceil(np.sqrt(steps / 1000 * (151**2 - 2**2) + 2**2) - 1) + 1
    np.testing.assert_array_equal(first(steps) + 1, levels)
    assert set(np.asarray(curricula.Fixed()(np.arange(0, 10**6, 10**5)))) == {17}
    assert set(np.asarray(curricula.Doubling(17, 17)(np.arange(0, 10**6, 10**5)))) == {17}


@pytest.mark.slow
def test_levels_are_drawn_as_a_log_normal_says():
    cfg = consistency.Config()
    drawn = consistency.draw_index(jax.random.key(0), 200_000, 20, cfg)
    grid = np.asarray(consistency.noise_level(jnp.arange(21), 20, cfg), np.float64)
    np.testing.assert_allclose(grid[[0, -1]], [0.002, 80.0], rtol=1e-5)
    mass = np.diff(scipy.stats.norm.cdf(np.log(grid), -1.1, 2.0))
    counts = np.bincount(drawn, minlength=20)
    assert scipy.stats.chisquare(counts, 200_000 * mass / mass.sum()).pvalue > 1e-3
    evenly = consistency.draw_index(
        jax.random.key(1), 20_000, 20, dataclasses.replace(cfg, distribution=curricula.Uniform())
    )
    low = dataclasses.replace(cfg, distribution=curricula.LogNormal(-5.0, 0.1))
    lowest = consistency.draw_index(jax.random.key(2), 1000, 20, low)
    np.testing.assert_allclose(np.log(consistency.noise_level(lowest + 0.5, 20, low)), -5.0, atol=1.0)
    assert scipy.stats.chisquare(np.bincount(evenly, minlength=20)).pvalue > 1e-3


@pytest.mark.parametrize("options", [{"steps": 1}, {"steps": 4}, {"levels": (80.0, 0.8)}])
def test_samples_of_the_exact_function_are_the_data(exact, options):
    draw = jax.jit(lambda key: consistency.sample(key, exact, 50_000, EXACT, **options))
    x = np.asarray(draw(jax.random.key(3)))
    np.testing.assert_allclose(x.mean(0), MEAN, atol=0.01)
    np.testing.assert_allclose(np.cov(x.T), STD**2 * np.eye(3), atol=0.01)


def test_a_trajectory_is_of_its_calls(exact):
    """Of the exact function each call gives data, of the noise of the calls of `sample`."""
    key, levels = jax.random.key(3), (80.0, 5.0, 0.4)

    @jax.jit
    def draw():
        frames = consistency.trajectory(key, exact, 7, EXACT, levels=levels, frames=3)
        one = consistency.sample(key, exact, 7, EXACT), consistency.trajectory(key, exact, 7, EXACT)[0]
        return frames, consistency.sample(key, exact, 7, EXACT, levels=levels), one

    frames, last, first = draw()
    np.testing.assert_allclose(frames[-1], last, rtol=1e-6)
    for x in first:
        np.testing.assert_allclose(frames[0], x, rtol=1e-4, atol=1e-5)


def test_the_standard_deviation_comes_from_the_data():
    points = data.Dataset("mine", "train", {"x": np.float32([[1.0, -1.0], [3.0, -3.0]])})
    for family in (edm, consistency):
        cfg = types.from_data(family, points, family.Config())
        assert (cfg.shape, cfg.data_std) == ((2,), 2.24)  # the root of 5, to three digits
        given = types.from_data(family, points, family.Config(data_std=0.3))
        assert given.data_std == 0.3
        level = jnp.array([3.0])
        for one, other, same in ((cfg, given, False), (family.Config(), family.Config(data_std=0.5), True)):
            found = [family.preconditioners(level, c)[1] for c in (one, other)]
            assert (found[0] == found[1]) == same


def test_variations_of_data_keep_what_a_level_leaves(exact):
    x = MEAN + STD * jax.random.normal(jax.random.key(0), (50_000, 3))
    function = consistency.function(exact, EXACT)
    varied = consistency.multistep(function, x, (0.3,), jax.random.key(1), SMALLEST)
    correlation = np.corrcoef(x[:, 0], varied[:, 0])[0, 1]
    assert correlation == pytest.approx(STD / math.sqrt(STD**2 + 0.3**2), abs=0.01)
    assert float(varied.std()) == pytest.approx(STD, rel=0.01)


@pytest.fixture(scope="module")
def teacher():
    cfg = edm.Config(shape=(2,), network=MLP((32,), dropout=0.2), data_std=0.7, exponent=5.0)
    return cfg, jax.jit(edm.init, static_argnums=1)(jax.random.key(0), cfg)


@pytest.mark.slow
def test_a_student_starts_as_its_teacher_and_leaves_it_alone(teacher):
    teacher_cfg, teacher_state = teacher
    cfg, state = consistency.distil(
        jax.random.key(1), teacher_state, teacher_cfg, dataclasses.replace(POINTS, target_decay=0.9)
    )
    assert (cfg.objective, cfg.data_std, cfg.exponent) == (consistency.Distillation(), 0.7, 5.0)
    assert cfg.network == MLP((32,))  # dropout is how the student is trained
    assert cfg.curriculum == POINTS.curriculum
    fresh = jax.eval_shape(lambda: consistency.init(jax.random.key(1), cfg))
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, state)
    same = functools.partial(jax.tree.map, np.testing.assert_array_equal)
    for tree in (state.params, state.ema, state.target, state.teacher):
        same(tree, teacher_state.ema)
    x = jax.random.normal(jax.random.key(2), (32, 2))
    step = jax.jit(consistency.train_step, static_argnums=2)
    after, _ = step(state, {"x": x}, cfg)
    same(after.teacher, teacher_state.ema)
    # The target is the average of the first paper: at the first number of levels the decay is as given.
    average = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, state.target, after.params)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), after.target, average)
    assert any(
        np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (after.params, state.params)), strict=True)
    )


@pytest.mark.slow
def test_a_student_of_the_exact_denoiser_learns_where_its_flow_goes():
    """The teacher is an untrained `edm`, which is exact for data N(0, data_std^2)."""
    teacher_cfg = edm.Config(shape=(1,), network=MLP((64,)))
    teacher_state = jax.jit(edm.init, static_argnums=1)(jax.random.key(0), teacher_cfg)
    options = consistency.Config(curriculum=curricula.Doubling(10, 40, 600))
    cfg, state = consistency.distil(jax.random.key(1), teacher_state, teacher_cfg, options)
    level = jnp.geomspace(0.05, 60.0, 40)
    x = jnp.sqrt(level**2 + 0.25)[:, None]
    gain = math.sqrt(0.25 + SMALLEST**2)

    @jax.jit
    def fit(state):
        def step(state, key):
            return consistency.train_step(state, {"x": 0.5 * jax.random.normal(key, (128, 1))}, cfg)

        return jax.lax.scan(step, state, jax.random.split(jax.random.key(2), 600))[0]

    error = lambda state: float(jnp.abs(consistency.function(state, cfg)(x, level) - gain).mean())
    before, after = error(state), error(fit(state))
    assert before > 0.2
    assert after < 0.1


@pytest.mark.slow
def test_one_call_draws_a_ring_learned_from_points():
    cfg = consistency.Config(
        shape=(2,), data_std=1.0, network=MLP(), curriculum=curricula.Doubling(10, 80, 3000)
    )

    @jax.jit
    def fit(state):
        def step(state, key):
            angle = jax.random.uniform(key, (256,), maxval=2 * math.pi)
            points = 1.5 * jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1)
            return consistency.train_step(state, {"x": points}, cfg)

        return jax.lax.scan(step, state, jax.random.split(jax.random.key(1), 3000))[0]

    x = consistency.sample(jax.random.key(2), fit(consistency.init(jax.random.key(0), cfg)), 4000, cfg)
    radius, angle = np.linalg.norm(x, axis=-1), np.arctan2(x[:, 1], x[:, 0])
    assert np.abs(radius - 1.5).mean() < 0.15
    quarters = np.histogram(angle, 4, (-math.pi, math.pi))[0] / 4000
    np.testing.assert_allclose(quarters, 0.25, atol=0.05)


@pytest.mark.slow
def test_the_script_distils_a_run(tmp_path):
    train = data.load("digits")
    cfg = types.from_data(edm, train, edm.Config(network=MLP((8,))))
    run_dir = tmp_path / "teacher"
    options = {"steps": 2, "batch_size": 32, "sample_every": 0}
    teacher = jaxgen.fit(edm, cfg, train, key=jax.random.key(0), run_dir=run_dir, **options)
    distill.main(distill.Options(teacher=run_dir, steps=3, batch_size=32, num_samples=50))
    family, cfg, state = jaxgen.load(tmp_path / "teacher-distilled")
    assert (family, cfg.objective, int(state.step)) == (consistency, consistency.Distillation(), 3)
    jax.tree.map(np.testing.assert_array_equal, state.teacher, teacher.ema)
    metrics = json.loads((tmp_path / "teacher-distilled" / "report.json").read_text())["metrics"]
    names = [name.partition(", ")[2] for name in metrics if name.startswith("frechet")]
    assert set(names) == {"", "teacher, 35 calls", "1 calls", "2 calls", "4 calls", "8 calls"}
    with pytest.raises(ValueError, match=r"give one of jaxgen\.diffusion\.edm"):
        distill.main(distill.Options(teacher=tmp_path / "teacher-distilled"))


def test_what_does_not_go_together_is_refused(exact):
    with pytest.raises(ValueError, match="takes no label"):
        consistency.sample(jax.random.key(0), exact, 2, EXACT, label=1)
    for levels in ((0.5, 80.0), (80.0, 0.002), ()):
        with pytest.raises(ValueError, match=r"decreasing to above 0\.002"):
            consistency.sample(jax.random.key(0), exact, 2, EXACT, levels=levels)
    with pytest.raises(ValueError, match="steps or the levels, not both"):
        consistency.sample(jax.random.key(0), exact, 2, EXACT, steps=2, levels=(80.0,))
    with pytest.raises(ValueError, match="at least 1 step"):
        consistency.sample(jax.random.key(0), exact, 2, EXACT, steps=0)
    for curriculum in (curricula.Doubling, curricula.Root):
        with pytest.raises(ValueError, match="they do not"):
            curriculum(4, 3)
    distilled = dataclasses.replace(EXACT, objective=consistency.Distillation())
    with pytest.raises(ValueError, match="learns from a teacher"):
        consistency.loss(exact.params, {"x": jnp.zeros((2, 3))}, jax.random.key(0), distilled)
    with pytest.raises(ValueError, match="use network mlp"):
        consistency.init(jax.random.key(0), consistency.Config(shape=(2,)))
