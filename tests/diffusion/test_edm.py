"""EDM where the network's zero at the start is exact: Gaussian data of the standard deviation it is told."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import data
from jaxgen.diffusion import edm
from jaxgen.diffusion.level_samplers import Ancestral, Heun
from jaxgen.diffusion.networks import MLP

SMALL = edm.Config(network=MLP((32,)))
RANDOM = (
    edm.Config(network=MLP((8,), dropout=0.5), sampler=Heun(5, churn=2.0), conditional=True),
    edm.Config(network=MLP((8,)), sampler=Ancestral(5)),
)
OPTIONS = {"network.attention_sizes": (8,)}

CFG = edm.Config(shape=(2,), network=MLP((64, 64)), data_std=0.5)


init = jax.jit(edm.init, static_argnums=1)
loss = jax.jit(edm.loss, static_argnums=3)


@pytest.fixture(scope="module")
def state():
    return init(jax.random.key(0), CFG)


def test_preconditioners_keep_unit_variances():
    level = jnp.geomspace(0.002, 80.0, 20)
    skip, out, into, noise = edm.preconditioners(level, CFG)
    np.testing.assert_allclose(into**2 * (level**2 + 0.25), 1.0, rtol=1e-5)
    # The target (y - c_skip x) / c_out of y of variance 1/4 and x = y + level n.
    np.testing.assert_allclose(((1 - skip) ** 2 * 0.25 + skip**2 * level**2) / out**2, 1.0, rtol=1e-4)
    np.testing.assert_allclose(jnp.exp(4 * noise), level, rtol=1e-5)


def test_the_standard_deviation_is_that_of_the_data_if_none_is_given():
    x = np.random.default_rng(0).normal(2.0, 0.3, (2000, 2)).astype(np.float32)
    dataset = data.Dataset("points", "train", {"x": x})
    unknown = dataclasses.replace(CFG, data_std=None)
    assert edm.from_data(dataset, unknown).data_std == pytest.approx(x.std(), rel=2e-3)
    assert edm.from_data(dataset, CFG) == CFG


def test_the_score_weighs_every_level_as_the_loss_does(state):
    x = np.array([[0.0, 0.0], [0.3, -0.6], [2.0, 2.0]])
    noise = np.asarray(jax.random.normal(jax.random.key(0), (2,)))
    wanted = 0
    for level in 0.5 * np.array([0.1, 0.2, 0.4, 0.8]):
        denoised = 0.25 / (0.25 + level**2) * (x + level * noise)  # E[y | x] of data N(0, 1/4)
        wanted -= ((denoised - x) ** 2).mean(1) * (0.25 + level**2) / (0.25 * level**2) / 4
    np.testing.assert_allclose(edm.score(state, jnp.asarray(x, jnp.float32), CFG), wanted, rtol=1e-4)


@pytest.mark.slow
def test_every_level_counts_alike_at_first(state):
    y = 0.5 * jax.random.normal(jax.random.key(1), (100_000, 2))
    for options in ({}, {"log_level_mean": 2.0}, {"log_level_mean": -3.0, "log_level_std": 0.1}):
        value, metrics = loss(state.params, {"x": y}, jax.random.key(2), dataclasses.replace(CFG, **options))
        assert float(value) == pytest.approx(1.0, abs=0.02)
    assert float(metrics["mse"]) == pytest.approx(np.exp(-6), rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"steps": 40},
        *({"sampler": s} for s in (Heun(40, churn=10.0), Ancestral(250), Ancestral(80, eta=0.0))),
    ],
)
def test_samples_of_the_exact_model_are_the_data(state, options):
    x = edm.sample(jax.random.key(3), state, 20_000, CFG, **options)
    assert float(x.mean()) == pytest.approx(0.0, abs=0.02)
    assert float(x.std()) == pytest.approx(0.5, abs=0.02)


@pytest.mark.slow
def test_options_of_the_sampler_are_heeded(state):
    """Those of the config, where the call gives none; a trajectory ends in the sample."""
    key = jax.random.key(3)

    @functools.partial(jax.jit, static_argnums=(0, 1, 2))
    def draw(of_config, sampler=None, steps=None):
        cfg = dataclasses.replace(CFG, sampler=of_config)
        return edm.sample(key, state, 5, cfg, sampler=sampler, steps=steps)

    samplers = Heun(4), Heun(6), Heun(6, churn=5.0), Ancestral(6), Ancestral(6, eta=0.3)
    found = [np.asarray(draw(sampler)) for sampler in samplers]
    for index, one in enumerate(found):
        assert all(np.abs(one - other).max() > 1e-3 for other in found[:index])
    np.testing.assert_array_equal(draw(Heun(4), None, 6), found[1])
    np.testing.assert_array_equal(draw(Heun(4), Ancestral(6)), found[3])
    path = jax.jit(lambda: edm.trajectory(key, state, 5, CFG, sampler=Heun(6, churn=5.0), frames=2))
    frames = path()
    np.testing.assert_allclose(frames[-1], found[2], rtol=1e-4, atol=1e-5)
    assert frames.shape == (2, 5, 2)


def test_the_sampler_is_given_the_levels_of_the_config(state):
    seen = []

    @dataclasses.dataclass(frozen=True)
    class Spy(Heun):
        def __call__(self, denoise, x, sigmas, key):
            seen.append((float(x.std()), sigmas))
            return super().__call__(denoise, x, sigmas, key)

    cfg = dataclasses.replace(CFG, smallest_level=0.1, largest_level=10.0, exponent=3.0, sampler=Spy(4))
    edm.sample(jax.random.key(0), state, 2000, cfg)
    ((std, sigmas),) = seen
    np.testing.assert_allclose(sigmas, np.linspace(10 ** (1 / 3), 0.1 ** (1 / 3), 4) ** 3, rtol=1e-6)
    assert std == pytest.approx(10.0, rel=0.05)


@pytest.mark.slow
def test_it_learns_two_points_and_samples_them():
    cfg = dataclasses.replace(CFG, shape=(1,), data_std=1.0)
    x = jnp.where(jnp.arange(256) % 4 == 0, -1.0, 1.0)[:, None]

    @jax.jit
    def fit(state):
        step = lambda state, _: edm.train_step(state, {"x": x}, cfg)
        state, metrics = jax.lax.scan(step, state, length=500)
        return state, metrics, edm.sample(jax.random.key(1), state, 2000, cfg)

    state, metrics, drawn = fit(init(jax.random.key(0), cfg))
    assert metrics["loss"][-50:].mean() < 0.5
    assert float(jnp.abs(jnp.abs(drawn) - 1).mean()) < 0.1
    assert float((drawn > 0).mean()) == pytest.approx(0.75, abs=0.06)
    near, far = (edm.score(state, jnp.full((1, 1), value), cfg)[0] for value in (1.0, 0.3))
    assert near > far


def test_guidance_is_affine_between_the_two_models():
    cfg = dataclasses.replace(CFG, conditional=True, num_classes=3)
    state = init(jax.random.key(0), cfg)
    rng = np.random.default_rng(0)
    ema = jax.tree.map(lambda x: x + 0.3 * rng.normal(size=x.shape).astype(np.float32), state.ema)
    state = state._replace(ema=ema)
    x, level, label = jnp.ones((2, 2)), jnp.ones(2), jnp.array([0, 2])
    guided = jax.jit(lambda scale: edm.denoiser(state, cfg, label, scale)(x, level))
    given, ignoring = (jax.jit(edm.denoiser(state, cfg, which))(x, level) for which in (label, None))
    assert float(jnp.abs(given - ignoring).max()) > 1e-3
    for scale in (0.0, 1.0, 2.5):
        wanted = ignoring + scale * (given - ignoring)
        np.testing.assert_allclose(guided(scale), wanted, rtol=1e-4, atol=1e-5)


def test_what_does_not_go_together_is_refused(state):
    draw = functools.partial(edm.sample, jax.random.key(0), state, 2, CFG)
    with pytest.raises(ValueError, match="cannot be guided"):
        draw(guidance=2.0)
    with pytest.raises(ValueError, match="at least 1"):
        draw(steps=0)
    with pytest.raises(ValueError, match="use network mlp"):
        edm.init(jax.random.key(0), edm.Config(shape=(2,)))
    with pytest.raises(ValueError, match="needs labels"):
        edm.init(jax.random.key(0), edm.Config(conditional=True))
    cfg = dataclasses.replace(CFG, conditional=True, num_classes=3)
    with pytest.raises(ValueError, match='the batch has no "label"'):
        edm.loss(state.params, {"x": jnp.zeros((1, 2))}, jax.random.key(0), cfg)
