"""Samplers with the exact model of Gaussian data: mean, variance, order of convergence, their relations."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.diffusion import processes, samplers, schedules
from tests.diffusion import exact

SHORT = processes.gaussian(schedules.betas("linear", 50))
PROCESS = processes.gaussian(schedules.betas("linear", 1000))
MODEL = exact.model(PROCESS)
DETERMINISTIC = {
    "ddim": samplers.ddim,
    "dpm_solver_pp": samplers.dpm_solver_pp,
    "edm_heun": samplers.edm_heun,
    "euler": lambda *args: samplers.euler_ancestral(*args, eta=0.0),
}


def run(name, x, num_steps):
    if name in ("ddim", "dpm_solver_pp"):
        times = samplers.spaced(1000, num_steps, "linspace")
        return DETERMINISTIC[name](MODEL, x, PROCESS, times)
    return DETERMINISTIC[name](exact.denoise, x, schedules.karras(num_steps))


def exact_line(name):
    """Slope and value at 0 of x -> x_0: the exact trajectory to the last level, then the mean there."""
    if name in ("ddim", "dpm_solver_pp"):
        variances, (alpha, _) = exact.variances(PROCESS), processes.levels(PROCESS, np.arange(1000))
        start, end = (alpha[-1], variances[-1]), (alpha[0], variances[0])
    else:
        start, end = ((1.0, exact.STD**2 + level**2) for level in (80.0, 0.002))
    shrink = end[0] * exact.STD**2 / end[1]
    slope = np.sqrt(end[1] / start[1]) * shrink
    return slope, exact.MEAN - slope * start[0] * exact.MEAN


@pytest.mark.parametrize(
    ("name", "order"), [("ddim", 1), ("dpm_solver_pp", 2), ("edm_heun", 2), ("euler", 1)]
)
def test_errors_fall_at_the_stated_order(name, order):
    with jax.enable_x64(True):
        slope, offset = exact_line(name)
        errors = []
        for num_steps in (80, 160):
            low, high = run(name, jnp.array([[0.0], [1.0]]), num_steps)[:, 0]
            errors.append(np.array([(high - low) / slope - 1, low - offset]))
    assert np.abs(errors[0][0] / errors[1][0]) == pytest.approx(2**order, rel=0.1)
    assert np.all(np.abs(errors[1]) < 0.03)


def moments(x):
    return float(x.mean()), float(x.std())


def learned(process):
    """The exact model, with the exponent that makes its variance that of the exact reverse step."""
    variances = exact.variances(process)
    small = processes.posterior_tables(process)[3][1:]
    true = process.betas[1:] * variances[:-1] / variances[1:]
    exponent = np.append(0.0, np.log(true / small) / np.log(process.betas[1:] / small))
    model = exact.model(process)
    return lambda x, t: (model(x, t), jnp.asarray(exponent, x.dtype)[t][:, None])


@pytest.mark.slow
def test_every_random_sampler_reaches_the_distribution():
    process = processes.gaussian(schedules.betas("cosine", 100))
    times = np.arange(100)[::-1]
    x = jax.random.normal(jax.random.key(0), (20_000, 2))
    key = jax.random.key(1)
    model, sigmas = exact.model(process), schedules.karras(60)
    drawn = {
        "ddpm": samplers.ddpm(learned(process), x, process, times, key, variance="learned"),
        "ddim": samplers.ddim(model, x, process, times, eta=0.5, key=key),
        "churn": samplers.edm_heun(exact.denoise, 80.0 * x, sigmas, churn=20.0, key=key),
        "ancestral": samplers.euler_ancestral(exact.denoise, 80.0 * x, schedules.karras(200), key=key),
    }
    for name, sample in drawn.items():
        assert moments(sample) == pytest.approx((exact.MEAN, exact.STD), abs=0.02), name
    # The variances of the paper are exact for s = 1 and s = 0: between them one is too wide, one too narrow.
    large, small = (
        samplers.ddpm(model, x, process, times, key, variance=name).std()
        for name in ("fixed_large", "fixed_small")
    )
    assert small < exact.STD < large


def test_eta_of_one_is_ddpm_to_the_same_noise():
    process = processes.gaussian(schedules.betas("linear", 50))
    x, key = jax.random.normal(jax.random.key(0), (4, 3)), jax.random.key(1)
    for times in (np.arange(50)[::-1], np.array([49, 30, 7])):
        first = samplers.ddpm(exact.model(process), x, process, times, key, variance="fixed_small")
        second = samplers.ddim(exact.model(process), x, process, times, eta=1.0, key=key)
        np.testing.assert_allclose(first, second, atol=2e-5)


def test_a_learned_variance_lies_between_the_fixed_ones():
    x, times, key = jnp.ones((2, 3)), samplers.spaced(1000, 9), jax.random.key(0)
    for exponent, name in ((1.0, "fixed_large"), (0.0, "fixed_small")):
        model = lambda x, t, exponent=exponent: (MODEL(x, t), jnp.full_like(x, exponent))
        first = samplers.ddpm(model, x, PROCESS, times, key, variance="learned")
        second = samplers.ddpm(MODEL, x, PROCESS, times, key, variance=name)
        np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-5)


def test_ddpm_steps_are_the_posterior():
    """One step of the full chain from x0 known: its mean and variance are `processes.posterior`'s."""
    process = processes.gaussian(schedules.betas("linear", 3))
    x, x0 = jnp.full((50_000, 1), 0.4), 0.9
    model = lambda x, t: jnp.full_like(x, x0)
    times, options = [2, 1, 0], {"target": "x0", "variance": "fixed_small"}
    frames = samplers.ddpm.path(model, x, process, times, jax.random.key(0), **options).frames(3)
    mean, variance = processes.posterior(process, jnp.full((1, 1), x0), x[:1], jnp.array([2]))
    std = float(jnp.sqrt(variance[0, 0]))
    assert moments(frames[0]) == pytest.approx((float(mean[0, 0]), std), abs=0.005)
    np.testing.assert_allclose(frames[2], x0, rtol=1e-6)


def test_first_order_dpm_solver_is_ddim():
    times, x = np.array([999, 500]), jnp.array([[0.3], [-1.0]])
    first, second = (f(MODEL, x, PROCESS, times) for f in (samplers.ddim, samplers.dpm_solver_pp))
    np.testing.assert_allclose(first, second, rtol=1e-5)


def test_heun_of_a_process_is_heun_by_noise_level():
    times, x = samplers.spaced(1000, 12), jax.random.normal(jax.random.key(0), (3, 2))
    alpha, sigma = processes.levels(PROCESS, times)
    calls, wanted = [], samplers.edm_heun(exact.denoise, x / alpha[0], sigma / alpha)
    model = lambda x, t: (calls.append(t), MODEL(x, t))[1]
    np.testing.assert_allclose(samplers.heun(model, x, PROCESS, times), wanted, atol=2e-5)
    assert len(calls) == 3  # traced twice inside the loop, once after it: 2 S - 1 calls of S times
    ends = processes.gaussian(schedules.zero_terminal_snr(PROCESS.betas))
    with pytest.raises(ValueError, match="no signal"):
        samplers.heun(MODEL, x, ends, times, target="v")


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_heun_of_few_steps_does_not_overshoot(schedule):
    """Of data of mean 0 and standard deviation 0.3 the exact model shrinks noise to no more, as DDIM does."""
    process = processes.gaussian(schedules.betas(schedule, 1000))
    alpha, sigma = processes.levels(process, np.arange(1000))
    gain = np.float32(sigma / ((0.3 * alpha) ** 2 + sigma**2))
    model = lambda x, t: jnp.asarray(gain)[t][:, None] * x
    x = jnp.ones((1, 1))
    for num_steps in (3, 5, 10, 18):
        times = samplers.spaced(1000, num_steps)
        first, second = (draw(model, x, process, times)[0, 0] for draw in (samplers.ddim, samplers.heun))
        assert first - 1e-5 <= second < 0.3
    assert float(second) == pytest.approx(0.3, abs=0.012 if schedule == "cosine" else 0.04)


@pytest.mark.parametrize("name", ["ddim", "dpm_solver_pp", "ddpm", "heun"])
def test_all_targets_are_one_model(name):
    extra = (jax.random.key(0),) if name == "ddpm" else ()
    x, times = jax.random.normal(jax.random.key(1), (3, 2)), samplers.spaced(1000, 12)
    draw = getattr(samplers, name)
    results = [
        draw(exact.model(PROCESS, target), x, PROCESS, times, *extra, target=target)
        for target in ("eps", "x0", "v")
    ]
    np.testing.assert_allclose(results[0], results[1], atol=1e-4)
    np.testing.assert_allclose(results[0], results[2], atol=1e-4)


@pytest.mark.parametrize("name", ["ddim", "dpm_solver_pp", "ddpm"])
def test_pure_noise_is_a_start_for_v_but_not_for_eps(name):
    process = processes.gaussian(schedules.zero_terminal_snr(schedules.betas("linear", 100)))
    extra = (jax.random.key(0),) if name == "ddpm" else ()
    x, times = jax.random.normal(jax.random.key(1), (20_000, 1)), np.arange(100)[::-1]
    draw = getattr(samplers, name)
    sample = draw(exact.model(process, "v"), x, process, times, *extra, target="v")
    assert moments(sample) == pytest.approx((exact.MEAN, exact.STD), abs=0.03)
    with pytest.raises(ValueError, match="predict v or x0"):
        draw(MODEL, x, process, times, *extra)


def test_clipping_holds_every_estimate_in_range():
    times, x = samplers.spaced(1000, 10), jnp.array([[30.0], [-30.0]])
    wild = lambda x, t: jnp.zeros_like(x)  # no noise at all: x_0 = x / alpha
    for draw in (samplers.ddim, samplers.dpm_solver_pp):
        np.testing.assert_allclose(draw(wild, x, PROCESS, times, clip=1.0), [[1.0], [-1.0]], atol=1e-5)
    sample = samplers.ddpm(wild, x, PROCESS, times, jax.random.key(0), clip=1.0)
    assert np.all(np.abs(sample) <= 1.0)


def test_inversion_then_sampling_returns_the_data():
    x0 = jax.random.normal(jax.random.key(0), (5, 3))
    errors = []
    for num_steps, iterations in ((20, 1), (160, 1), (20, 12)):
        times = samplers.spaced(1000, num_steps)
        noise = samplers.ddim_inversion(MODEL, x0, PROCESS, times, iterations=iterations)
        errors.append(float(jnp.abs(samplers.ddim(MODEL, noise, PROCESS, times) - x0).max()))
    assert errors[1] < errors[0] / 4
    assert errors[2] < 1e-4


def test_frames_are_states_on_the_way():
    x, times = jnp.ones((2, 3)), samplers.spaced(1000, 10)
    path = samplers.dpm_solver_pp.path(MODEL, x, PROCESS, times)
    frames, sample = path.frames(4), samplers.dpm_solver_pp(MODEL, x, PROCESS, times)
    assert frames.shape == (4, 2, 3)
    np.testing.assert_array_equal(frames[-1], sample)
    np.testing.assert_array_equal(frames, path.frames(10)[np.array([1, 4, 6, 9])])
    first, last = samplers.edm_heun.path(exact.denoise, x, [80.0, 1.0]).frames(2)
    assert not np.array_equal(first, last)
    np.testing.assert_array_equal(last, samplers.edm_heun(exact.denoise, x, [80.0, 1.0]))


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (samplers.DDIM(7), lambda model, x, key: samplers.ddim(model, x, SHORT, samplers.spaced(50, 7))),
        (
            samplers.DDIM(7, eta=0.5),
            lambda model, x, key: samplers.ddim(model, x, SHORT, samplers.spaced(50, 7), eta=0.5, key=key),
        ),
        (samplers.DDPM(), lambda model, x, key: samplers.ddpm(model, x, SHORT, samplers.spaced(50, 50), key)),
        (
            samplers.DPMSolverPP(6),
            lambda model, x, key: samplers.dpm_solver_pp(model, x, SHORT, samplers.spaced(50, 6)),
        ),
        (samplers.Heun(9), lambda model, x, key: samplers.heun(model, x, SHORT, samplers.spaced(50, 5))),
    ],
    ids=lambda value: str(value) if dataclasses.is_dataclass(value) else "",
)
def test_a_sampler_of_a_config_is_the_function_at_spaced_times(value, wanted):
    x, key, model = jnp.ones((2, 3)), jax.random.key(0), exact.model(SHORT)
    np.testing.assert_array_equal(value(model, x, SHORT, key).end(), wanted(model, x, key))
    # A model of a learned variance says two things, of which all but ancestral sampling need one.
    both = lambda x, t: (model(x, t), jnp.ones_like(x))
    found = value(both, x, SHORT, key, variance="learned").end()
    np.testing.assert_allclose(found, wanted(model, x, key), rtol=1e-4, atol=1e-5)


def test_a_step_count_compiles_once():
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=2)
    def draw(x, times, eta, key):
        return samplers.ddim(MODEL, x, PROCESS, times, eta=eta, key=key)

    x, key = jax.random.normal(jax.random.key(0), (2, 3)), jax.random.key(1)
    for times, eta in (([999, 500, 3], 0.0), ([900, 20, 0], 1.0), ([999, 20], 0.3)):
        traced = draw(x, jnp.array(times), eta, key)
        known = samplers.ddim(MODEL, x, PROCESS, times, eta=eta, key=key)
        np.testing.assert_allclose(traced, known, rtol=1e-3, atol=1e-4)


def test_heun_calls_the_model_twice_a_step_but_once_at_the_end():
    levels = []
    denoise = lambda x, sigma: (levels.append(1), exact.denoise(x, sigma))[1]
    with jax.disable_jit():
        samplers.edm_heun(denoise, jnp.ones((1, 1)), schedules.karras(5))
    assert len(levels) == 9


@pytest.mark.parametrize("spacing", samplers.SPACINGS)
def test_spaced_times_fit_the_process(spacing):
    for total, count in ((1000, 10), (1000, 1000), (1000, 7), (7, 5), (1, 1)):
        times = samplers.spaced(total, count, spacing)
        assert times.shape == (count,)
        assert np.all(np.diff(times) < 0)
        assert 0 <= times[-1] <= times[0] < total


def test_what_cannot_be_sampled_is_refused():
    x, key = jnp.ones((1, 1)), jax.random.key(0)
    short = processes.gaussian(schedules.betas("linear", 5))
    with pytest.raises(ValueError, match="6 sampling steps, but the process has only 5"):
        samplers.ddim(MODEL, x, short, [5, 4, 3, 2, 1, 0])
    with pytest.raises(ValueError, match="has 5, take 1 to as many"):
        samplers.spaced(5, 6)
    with pytest.raises(ValueError, match="must decrease"):
        samplers.dpm_solver_pp(MODEL, x, short, [3, 3, 0])
    with pytest.raises(ValueError, match="0 to 4, got 5 to 0"):
        samplers.ddpm(MODEL, x, short, [5, 0], key)
    with pytest.raises(ValueError, match="at least one integer"):
        samplers.ddim(MODEL, x, short, [])
    with pytest.raises(ValueError, match="eta other than 0 draws noise"):
        samplers.ddim(MODEL, x, short, [4, 2], eta=1.0)
    with pytest.raises(ValueError, match="more noise than there is"):
        samplers.ddim(MODEL, x, short, [4, 2], eta=5.0, key=key)
    with pytest.raises(ValueError, match="churn other than 0"):
        samplers.edm_heun(exact.denoise, x, [1.0], churn=1.0)
    with pytest.raises(ValueError, match="decreasing positive"):
        samplers.edm_heun(exact.denoise, x, [1.0, 0.0])
    with pytest.raises(ValueError, match="at least 1 noise level"):
        schedules.karras(0)
    with pytest.raises(ValueError, match="no variance"):
        samplers.ddpm(MODEL, x, short, [4], key, variance="large")
    with pytest.raises(ValueError, match="3 frames of 2 steps"):
        samplers.ddim.path(MODEL, x, short, [4, 2]).frames(3)
    for value in (samplers.DDIM, samplers.DDPM, samplers.DPMSolverPP, samplers.Heun):
        with pytest.raises(ValueError, match="at least 1"):
            value(0)
