"""Schedules and processes against Bayes' rule, their own composition, and the definitions of the papers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.diffusion import processes, schedules

TARGETS = ("eps", "x0", "v", "score")


@pytest.mark.parametrize("num_steps", [1, 2, 10, 100, 1000, 4000])
@pytest.mark.parametrize("name", schedules.SCHEDULES)
def test_any_number_of_steps_ends_in_noise(name, num_steps):
    betas = schedules.betas(name, num_steps)
    process = processes.gaussian(betas)
    assert betas.shape == (num_steps,)
    assert betas.dtype == np.float64
    assert np.all((betas > 0) & (betas < 1))
    assert np.all(np.diff(process.alpha_bar) < 0)
    left = process.alpha_bar[-1]
    prior_kl = 0.5 * (left * 1.0 - left - np.log1p(-left))  # nats a dimension, for x_0 = 1
    assert prior_kl < 0.01


def test_the_schedules_are_those_of_the_papers():
    linear = schedules.betas("linear", 1000)
    np.testing.assert_allclose(linear, np.linspace(1e-4, 0.02, 1000), rtol=1e-12)
    quadratic = schedules.betas("quadratic", 1000, first=0.00085, last=0.012)
    np.testing.assert_allclose(quadratic, np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, rtol=1e-12)
    cosine = schedules.betas("cosine", 1000)
    cut = np.flatnonzero(cosine == schedules.MAX_BETA)
    np.testing.assert_array_equal(cut, np.arange(1000 - len(cut), 1000))
    assert 1 <= len(cut) < 5
    u = np.arange(1, 991) / 1000
    curve = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(processes.gaussian(cosine).alpha_bar[:990], curve, rtol=1e-9)
    assert processes.gaussian(schedules.betas("sigmoid", 1000)).alpha_bar[499] == pytest.approx(0.5)


def test_a_schedule_is_a_value_too():
    for value, name, options in (
        (schedules.Linear(first=0.001, last=0.1), "linear", {"first": 0.001, "last": 0.1}),
        (schedules.Quadratic(0.00085, 0.012), "quadratic", {"first": 0.00085, "last": 0.012}),
        (schedules.Cosine(offset=0.1), "cosine", {"offset": 0.1}),
        (schedules.Sigmoid(0.0, 3.0, 0.7), "sigmoid", {"start": 0.0, "end": 3.0, "temperature": 0.7}),
    ):
        np.testing.assert_array_equal(value(50), schedules.betas(name, 50, **options))
        np.testing.assert_array_equal(type(value)()(50), schedules.betas(name, 50))
        assert np.abs(value(50) - type(value)()(50)).max() > 1e-4


def test_the_same_schedule_in_fewer_steps_keeps_the_noise():
    for name in schedules.SCHEDULES:
        fine, coarse = (processes.gaussian(schedules.betas(name, count)).alpha_bar for count in (4000, 400))
        np.testing.assert_allclose(coarse[199], fine[1999], rtol=0.03)


def test_zero_terminal_snr_keeps_the_start_and_loses_the_end():
    before = schedules.betas("linear", 1000)
    after = schedules.zero_terminal_snr(before)
    process = processes.gaussian(after)
    assert after[-1] == 1
    assert process.alpha_bar[-1] == 0
    assert process.alpha_bar[0] == pytest.approx(1 - before[0])
    assert np.all(np.diff(process.alpha_bar) < 0)
    assert processes.log_snr(process, 999) == -np.inf


def test_v_is_finite_where_no_signal_is_left():
    process = processes.gaussian(schedules.zero_terminal_snr(schedules.betas("linear", 10)))
    x0, eps = jax.random.normal(jax.random.key(0), (2, 3, 4))
    t = jnp.full(3, 9)
    x = processes.q_sample(process, x0, t, eps)
    np.testing.assert_array_equal(x, eps)
    v = processes.join(x0, eps, 0.0, 1.0, "v")
    np.testing.assert_array_equal(processes.convert(process, v, x, t, "v", "x0"), x0)
    np.testing.assert_array_equal(processes.convert(process, v, x, t, "v", "eps"), eps)


def test_karras_levels():
    sigmas = schedules.karras(18)
    assert (sigmas[0], sigmas[-1]) == pytest.approx((80.0, 0.002))
    i = np.arange(18)
    wanted = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(sigmas, wanted, rtol=1e-12)


def test_one_step_after_another_is_the_closed_form():
    process = processes.gaussian(schedules.betas("cosine", 40))
    x0 = jnp.full((200_000,), 1.5)
    mean, variance = 1.5, 0.0

    def step(x, inputs):
        t, key = inputs
        return processes.transition(process, x, jnp.full(x.shape, t), jax.random.normal(key, x.shape)), None

    x, _ = jax.lax.scan(step, x0, (jnp.arange(20), jax.random.split(jax.random.key(0), 20)))
    for beta in process.betas[:20]:
        mean, variance = np.sqrt(1 - beta) * mean, (1 - beta) * variance + beta
    alpha, sigma = processes.levels(process, 19)
    assert (alpha * 1.5, sigma**2) == pytest.approx((mean, variance), rel=1e-12)
    noise = jax.random.normal(jax.random.key(1), x0.shape)
    for sample in (x, processes.q_sample(process, x0, jnp.full(x0.shape, 19), noise)):
        assert float(sample.mean()) == pytest.approx(mean, abs=5 * np.sqrt(variance / len(x0)))
        assert float(sample.var()) == pytest.approx(variance, rel=0.02)


def test_the_posterior_is_bayes_rule():
    process = processes.gaussian(schedules.betas("linear", 10))
    x0, x_t = jnp.array([[0.3], [-0.8]]), jnp.array([[0.5], [1.1]])
    for t in range(1, 10):
        mean, variance = processes.posterior(process, x0, x_t, jnp.full(2, t))
        # N(x; sqrt(before) x0, 1 - before) N(x_t; sqrt(1 - beta) x, beta), normalized over x.
        before, beta = process.alpha_bar[t - 1], process.betas[t]
        precision = 1 / (1 - before) + (1 - beta) / beta
        weighted = np.sqrt(before) * x0 / (1 - before) + np.sqrt(1 - beta) * x_t / beta
        np.testing.assert_allclose(mean, weighted / precision, rtol=1e-5)
        np.testing.assert_allclose(variance, np.full((2, 1), 1 / precision), rtol=1e-5)
    mean, variance = processes.posterior(process, x0, x_t, jnp.zeros(2, jnp.int32))
    np.testing.assert_allclose(mean, x0, rtol=1e-6)
    np.testing.assert_array_equal(variance, 0)


@pytest.mark.parametrize("source", TARGETS)
@pytest.mark.parametrize("target", TARGETS)
def test_conversions_are_inverse_and_true(source, target):
    with jax.enable_x64(True):
        process = processes.gaussian(schedules.betas("linear", 100))
        x0, eps = jax.random.normal(jax.random.key(0), (2, 100, 3), jnp.float64)
        t = jnp.arange(100)
        alpha, sigma = (row[:, None] for row in processes.levels(process, np.arange(100)))
        x = processes.q_sample(process, x0, t, eps)
        known = {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0, "score": -(x - alpha * x0) / sigma**2}
        there = processes.convert(process, known[source], x, t, source, target)
        assert there.dtype == jnp.float64
        np.testing.assert_allclose(there, known[target], atol=1e-9)
        np.testing.assert_allclose(
            processes.convert(process, there, x, t, target, source), known[source], atol=1e-9
        )


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="linear, quadratic, cosine, sigmoid"):
        schedules.betas("line", 10)
    with pytest.raises(ValueError, match="at least 1 step"):
        schedules.betas("linear", 0)
    with pytest.raises(ValueError, match="one step"):
        schedules.zero_terminal_snr(np.array([0.5]))
    with pytest.raises(ValueError, match="the last may be 1"):
        processes.gaussian([0.1, 1.0, 0.2])
    with pytest.raises(ValueError, match="no target"):
        processes.join(0.0, 0.0, 1.0, 1.0, "epsilon")
