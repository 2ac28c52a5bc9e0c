"""Flow matching with the exact velocity of Gaussian data, densities along an ODE, transport by assignment."""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from jaxgen import keys
from jaxgen.diffusion import flow_matching, ode
from jaxgen.diffusion.networks import MLP
from jaxgen.values import Adam

SMALL = flow_matching.Config(network=MLP((32,)), sampler=ode.Heun(5))
RANDOM = tuple(
    dataclasses.replace(
        SMALL,
        network=MLP((8,), dropout=0.5),
        coupling=flow_matching.Optimal(),
        times=times,
        conditional=True,
    )
    for times in ("uniform", "logit_normal")
)
OPTIONS = {"network.attention_sizes": (8,)}

STD = 0.4


class Exact(nn.Module):
    """E[x - eps | x_t] of data N(0, STD^2)."""

    def __call__(self, x, t, label=None, train=False):
        t = (t / 1000)[:, None]
        return x * (t * STD**2 - (1 - t)) / (t**2 * STD**2 + (1 - t) ** 2)


EXACT = flow_matching.Config(shape=(3,), levels=0, network=Exact())
POINTS = flow_matching.Config(
    shape=(2,), levels=0, network=MLP((64, 64)), optimizer=Adam(2e-3, gradient_clip=1.0)
)


init = jax.jit(flow_matching.init, static_argnums=1)
loss = jax.jit(flow_matching.loss, static_argnums=3)


@pytest.fixture(scope="module")
def exact():
    return init(jax.random.key(0), EXACT)


def test_the_exact_flow_scales_noise_at_the_order_of_the_method(exact):
    with jax.enable_x64(True):
        noise = jax.random.normal(jax.random.key(0), (4, 3), jnp.float64)
        for solver, order in ((ode.Euler, 1), (ode.Midpoint, 2), (ode.Heun, 2), (ode.RK4, 4)):
            flow = lambda steps, solver=solver: flow_matching.flow(exact, noise, EXACT, sampler=solver(steps))
            errors = [
                np.abs(flow(steps) - STD * noise).max() for steps in ((80, 160) if order == 4 else (20, 40))
            ]
            assert errors[0] / errors[1] > 0.8 * 2**order, solver
    x = flow_matching.sample(jax.random.key(1), exact, 20_000, EXACT)
    assert float(x.std()) == pytest.approx(STD, rel=0.02)


def test_the_loss_of_the_exact_velocity_is_the_variance_left(exact):
    x = STD * jax.random.normal(jax.random.key(0), (100_000, 3))
    value, metrics = loss(exact.params, {"x": x}, jax.random.key(1), EXACT)
    t = (np.arange(1000) + 0.5) / 1000
    left = STD**2 / (t**2 * STD**2 + (1 - t) ** 2)  # Var[x - eps | x_t]
    assert float(value) == pytest.approx(left.mean(), rel=0.02)
    assert float(metrics["transport_cost"]) == pytest.approx(1 + STD**2, rel=0.02)


def test_the_likelihood_is_the_closed_form(exact):
    x = STD * jax.random.normal(jax.random.key(0), (5, 3))
    wanted = jax.scipy.stats.norm.logpdf(x, 0.0, STD).sum(-1)
    found = flow_matching.log_prob(exact, x, EXACT, steps=50)
    np.testing.assert_allclose(found, wanted, atol=1e-3)


def test_estimated_divergence_has_the_exact_one_as_mean():
    weight = jnp.array([[0.5, -1.0], [2.0, -0.3]])
    velocity = lambda x, t: jnp.tanh(x @ weight.T) * (1 + t)
    x = jax.random.normal(jax.random.key(0), (3, 2))
    slope, exact = ode.with_divergence(velocity, x, jnp.float32(0.5), None)
    jacobian = jax.vmap(jax.jacfwd(lambda x: velocity(x[None], 0.5)[0]))(x)
    np.testing.assert_allclose(exact, jnp.trace(jacobian, axis1=1, axis2=2), rtol=1e-5)
    np.testing.assert_allclose(slope, velocity(x, 0.5))
    # The four sign vectors are all there are: their mean is the expectation.
    signs = jnp.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    probes = jnp.broadcast_to(signs[:, None], (4, 3, 2))
    np.testing.assert_allclose(ode.with_divergence(velocity, x, 0.5, probes)[1], exact, rtol=1e-5)
    assert np.abs(ode.with_divergence(velocity, x, 0.5, probes[:1])[1] - exact).max() > 0.1


@pytest.mark.slow
def test_the_probability_flow_of_a_mixture_carries_its_density():
    """Variance-preserving diffusion of three Gaussians in the plane, with the exact score."""
    weights, std = jnp.array([0.5, 0.3, 0.2]), 0.3
    means = jnp.array([[1.0, 0.0], [-1.0, 1.0], [0.0, -1.2]])

    def mixture(x, alpha):
        variance = (alpha * std) ** 2 + 1 - alpha**2
        squares = ((x[:, None] - alpha * means) ** 2).sum(-1)
        logs = jnp.log(weights) - squares / (2 * variance) - jnp.log(2 * math.pi * variance)
        return jax.nn.logsumexp(logs, -1)

    def velocity(x, t):
        alpha = jnp.exp(-0.25 * 19.9 * t**2 - 0.05 * t)
        return -0.5 * (0.1 + 19.9 * t) * (x + jax.grad(lambda x: mixture(x, alpha).sum())(x))

    x = jax.random.normal(jax.random.key(0), (40, 2))
    normal = lambda x: jax.scipy.stats.norm.logpdf(x).sum(-1)
    found = jax.jit(lambda x: ode.log_prob(velocity, x, jnp.linspace(0.0, 1.0, 101), normal))(x)
    np.testing.assert_allclose(found, mixture(x, 1.0), atol=0.01)


@pytest.mark.slow
def test_transport_tends_to_the_optimal_assignment():
    x, noise = jax.random.normal(jax.random.key(0), (2, 24, 3))
    cost = ((x[:, None] - noise) ** 2).sum(-1)
    _, best = scipy.optimize.linear_sum_assignment(cost)
    lowest = cost[np.arange(24), best].mean()
    transport = jax.jit(flow_matching.transport)
    found, soft = (
        np.asarray(cost)[np.arange(24), transport(jax.random.key(1), x, noise, entropy)].mean()
        for entropy in (0.003, 10.0)
    )
    assert float(found) == pytest.approx(float(lowest), rel=0.2)
    assert soft > 2 * lowest
    order = jax.random.permutation(jax.random.key(3), 24)
    partners = transport(jax.random.key(1), noise[order] + 0.05, noise, 0.003)
    np.testing.assert_array_equal(partners, order)
    # Every noise is drawn equally often, whatever the plan.
    keys = jax.random.split(jax.random.key(2), 4000)
    drawn = jax.jit(jax.vmap(lambda key: flow_matching.transport(key, x, noise, 0.1)))(keys)
    np.testing.assert_allclose(np.bincount(drawn.ravel(), minlength=24) / 4000, 1.0, atol=0.1)


@pytest.mark.slow
def test_transport_far_from_zero_is_that_of_float64():
    """The cheapest pairs of points one apart, ten thousand away."""
    rng = np.random.default_rng(0)
    noise = np.float32(10_000 + rng.uniform(-1, 1, (24, 3)))
    x = np.float32(noise[rng.permutation(24)] + rng.normal(0, 0.02, (24, 3)))
    cost = ((x[:, None].astype(np.float64) - noise.astype(np.float64)) ** 2).sum(-1)
    _, best = scipy.optimize.linear_sum_assignment(cost)
    np.testing.assert_array_equal(flow_matching.transport(jax.random.key(0), x, noise, 1e-3), best)
    # A shift of one side changes no plan if the entropy, a share of the mean cost, stays as much.
    x, noise = (jnp.asarray(a - 10_000) for a in (x, noise))
    share = float((cost.mean() + 3 * 5.0**2 + 2 * 5.0 * (x - noise.mean(0)).sum(-1).mean()) / cost.mean())
    keys = jax.random.split(jax.random.key(0), 50)
    drawn = [
        np.asarray(jax.vmap(lambda key, x=x, e=e: flow_matching.transport(key, x, noise, e))(keys))
        for x, e in ((x, 0.1), (x + 5.0, 0.1 / share), (x + 5.0, 0.1))
    ]
    assert (drawn[0] == drawn[1]).mean() > 0.99
    assert (drawn[0] == drawn[2]).mean() < 0.9


def test_a_trajectory_follows_the_exact_flow(exact):
    key = jax.random.key(1)
    frames = flow_matching.trajectory(key, exact, 50, EXACT, steps=40, frames=4)
    np.testing.assert_allclose(frames[-1], flow_matching.sample(key, exact, 50, EXACT, steps=40), rtol=1e-5)
    noise = jax.random.normal(keys.named(key, "noise"), (50, 3))
    for frame, t in zip(frames, (0.25, 0.5, 0.75, 1.0), strict=True):
        np.testing.assert_allclose(frame, math.sqrt((1 - t) ** 2 + (t * STD) ** 2) * noise, atol=1e-3)


class Predictions(nn.Module):
    """Zero; what is left of the loss is the squared distance of data and noise."""

    def __call__(self, x, t, label=None, train=False):
        return jnp.zeros_like(x)


@pytest.mark.parametrize(
    ("levels", "level", "tolerance"), [(17, 15, 4e-4), (256, 200, 4e-4), (2, 0, 0.01), (0, 0, 0.01)]
)
def test_pixels_are_dequantised_by_noise_one_level_wide(levels, level, tolerance):
    """With no noise to pair with, the loss is E|x + u|^2 = x^2 + width^2 / 12, x the level itself."""
    cfg = flow_matching.Config(shape=(1,), levels=levels, network=Predictions())
    exact = 2 * level / (levels - 1) - 1 if levels else 0.3
    stored = 2 * round(level * 255 / (levels - 1)) / 255 - 1 if levels else 0.3  # as 8 bits have it
    batch = {"x": jnp.full((400_000, 1), stored), "noise": jnp.zeros((400_000, 1))}
    found = float(loss({}, batch, jax.random.key(2), cfg)[0])
    width = 2 / (levels - 1) if levels else 0.0
    assert found == pytest.approx(exact**2 + width**2 / 12, rel=tolerance)


class Times(nn.Module):
    """The time itself."""

    def __call__(self, x, t, label=None, train=False):
        return jnp.broadcast_to(t[:, None] / 1000, x.shape)


@pytest.mark.parametrize("times", ["uniform", "logit_normal"])
def test_training_times_are_drawn_as_said(times):
    """Of data and noise that are 0 the loss is the mean square of the times."""
    cfg = flow_matching.Config(shape=(1,), levels=0, network=Times(), times=times)
    batch = {"x": jnp.zeros((200_000, 1)), "noise": jnp.zeros((200_000, 1))}
    z = np.random.default_rng(0).normal(size=400_000)
    wanted = 1 / 3 if times == "uniform" else (1 / (1 + np.exp(-z)) ** 2).mean()
    assert float(loss({}, batch, jax.random.key(1), cfg)[0]) == pytest.approx(wanted, rel=0.01)


@pytest.mark.slow
def test_pairs_of_a_conditional_model_keep_their_labels():
    cfg = dataclasses.replace(POINTS, conditional=True, num_classes=3)
    state = jax.jit(functools.partial(flow_matching.init, cfg=cfg))(jax.random.key(0))
    for label, wanted in ((2, 2), (None, 3)):
        reflow = lambda key, label=label: flow_matching.reflow(key, state, 4, cfg, label, steps=1)
        pairs = jax.jit(reflow)(jax.random.key(1))
        np.testing.assert_array_equal(pairs["label"], wanted)
    assert np.isfinite(loss(state.params, pairs, jax.random.key(0), cfg)[0])


@pytest.fixture(scope="module")
def ring():
    angle = jax.random.uniform(jax.random.key(5), (2048,), maxval=2 * math.pi)
    return 1.5 * jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1)


@functools.partial(jax.jit, static_argnums=2)
def fit(state, batch, cfg):
    def step(state, key):
        rows = jax.random.randint(key, (128,), 0, len(batch["x"]))
        return flow_matching.train_step(state, jax.tree.map(lambda a: a[rows], batch), cfg)

    return jax.lax.scan(step, state, jax.random.split(jax.random.key(0), 500))


@pytest.mark.slow
def test_it_learns_a_ring_and_reflow_straightens_it(ring):
    state, metrics = fit(init(jax.random.key(0), POINTS), {"x": ring}, POINTS)
    assert metrics["loss"][-50:].mean() < metrics["loss"][:10].mean() - 0.1
    x = flow_matching.sample(jax.random.key(1), state, 2000, POINTS)
    radius = jnp.linalg.norm(x, axis=-1)
    assert float(jnp.abs(radius - 1.5).mean()) < 0.2
    pairs = flow_matching.reflow(jax.random.key(2), state, 2048, POINTS)
    cost = float(((pairs["x"] - pairs["noise"]) ** 2).mean())
    assert cost < 0.5 * float(metrics["transport_cost"].mean())
    assert float(pairs["noise"].std()) == pytest.approx(1.0, abs=0.05)
    # One Euler step of the model of those pairs is nearer to the ring than one of the first.
    again, _ = fit(init(jax.random.key(3), POINTS), pairs, POINTS)
    noise = jax.random.normal(jax.random.key(4), (2000, 2))
    first, second = (
        jnp.abs(
            jnp.linalg.norm(flow_matching.flow(s, noise, POINTS, sampler=ode.Euler(1)), axis=-1) - 1.5
        ).mean()
        for s in (state, again)
    )
    assert second < 0.5 * first


@pytest.mark.slow
def test_optimal_pairs_leave_less_to_average_over(ring):
    params = init(jax.random.key(0), POINTS).params
    costs = [
        loss(params, {"x": ring[:128]}, jax.random.key(1), dataclasses.replace(POINTS, coupling=coupling))[1][
            "transport_cost"
        ]
        for coupling in (
            flow_matching.Independent(),
            flow_matching.Optimal(entropy=1.0),
            flow_matching.Optimal(),
        )
    ]
    assert costs[2] < 0.4 * costs[0]
    assert costs[2] < costs[1] < costs[0]


def test_what_does_not_go_together_is_refused(exact):
    with pytest.raises(ValueError, match="cannot be guided"):
        flow_matching.sample(jax.random.key(0), exact, 2, EXACT, guidance=2.0)
    with pytest.raises(ValueError, match="give log_prob a key"):
        flow_matching.log_prob(exact, jnp.zeros((1, 3)), EXACT, num_probes=1)
    with pytest.raises(ValueError, match="euler, midpoint, heun, rk4"):
        ode.solve(lambda x, t: x, jnp.zeros(1), jnp.linspace(0.0, 1.0, 3), "dopri5")
    with pytest.raises(ValueError, match="at least 1"):
        flow_matching.sample(jax.random.key(0), exact, 2, EXACT, steps=0)
    with pytest.raises(ValueError, match="at least 1"):
        flow_matching.log_prob(exact, jnp.zeros((1, 3)), EXACT, steps=0)
    with pytest.raises(ValueError, match="at least 1"):
        ode.solve(lambda x, t: x, jnp.zeros(1), jnp.zeros(1))
    with pytest.raises(ValueError, match="5 frames of 4 steps"):
        flow_matching.trajectory(jax.random.key(0), exact, 2, EXACT, steps=4, frames=5)
