"""Posteriors and priors by flows: the Gaussian ones where they are the identity, densities, and bounds."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.autoencoder import posteriors, vae
from jaxgen.autoencoder.flows import Flow, GivenSteps, Steps
from jaxgen.autoencoder.objectives import ELBO, IWAE, DReG, GeometricJS, SampledKL
from jaxgen.flow.spline import Autoregressive, Coupling
from jaxgen.flow.transforms import RationalQuadratic
from jaxgen.likelihoods import Gaussian
from jaxgen.nn.masked import MADE
from jaxgen.nn.mlp import MLP
from tests.autoencoder.linear import LinearDecoder, dense
from tests.flow.check import in_float64, mass, shaken

IAF = GivenSteps(3, Autoregressive(MADE((16,))), num_context=4)
PRIOR = Steps(2, Coupling(MLP((16,))))
BOTH = Flow(IAF, PRIOR)
KINDS = {"iaf": Flow(IAF), "prior": Flow(None, PRIOR), "both": BOTH}
SMALL = vae.Config(shape=(5,), levels=0, num_latents=2, likelihood=Gaussian(std=0.5), **dense(16))


def bound(flow, num_latents=2, scale=0.0):
    """The distributions with parameters moved from their first values."""
    return flow.bound(shaken(jax.jit(flow.init, static_argnums=1)(jax.random.key(0), num_latents), scale))


def encoded(flow, count=6, num_latents=2):
    """q of an encoder's random output."""
    output = np.random.default_rng(0).normal(size=(count, flow.num_outputs(num_latents)))
    return flow.read(0.5 * jnp.float32(output), num_latents)


def state_of(cfg, scale=0.2):
    state = jax.jit(functools.partial(vae.init, cfg=cfg))(jax.random.key(0))
    return state._replace(params=shaken(state.params, scale))


def data_of(count=8):
    return jnp.float32(np.random.default_rng(1).normal(size=(count, 5)))


@pytest.mark.parametrize("num_layers", [3, pytest.param(4, marks=pytest.mark.slow)])
def test_steps_that_are_the_identity_leave_the_gaussian(num_layers):
    """At any number of steps: the order of the variables is turned back."""
    flow = Flow(dataclasses.replace(IAF, num_layers=num_layers), PRIOR)
    latents, q, key = bound(flow, 3), encoded(flow, 6, 3), jax.random.key(2)
    z, log_q = jax.jit(latents.proposed)(key, q)
    plain = posteriors.Gaussian()
    np.testing.assert_allclose(z, plain.sample(key, q[:2]), rtol=1e-6)
    np.testing.assert_allclose(log_q, plain.log_prob(q[:2], z), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(latents.mean(q), q[0], rtol=1e-6)
    np.testing.assert_allclose(latents.prior_log_prob(z), plain.prior_log_prob(z), rtol=1e-5)
    drawn = latents.prior_sample(key, 7, 3)
    np.testing.assert_allclose(drawn, jax.random.normal(key, (7, 3)), rtol=1e-6)


@pytest.mark.slow
def test_no_flow_at_all_is_the_gaussian_vae_with_a_sampled_kl():
    cfg = dataclasses.replace(SMALL, posterior=Flow(None))
    plain = dataclasses.replace(SMALL, objective=ELBO(divergence=SampledKL()))
    state, x, key = state_of(plain), data_of(), jax.random.key(3)
    for function in (
        lambda cfg: vae.loss(state.params, {"x": x}, key, cfg)[0],
        lambda cfg: vae.iwae(key, state, x, cfg, 5),
        lambda cfg: vae.encode(state, x, cfg),
        lambda cfg: vae.sample(key, state, 4, cfg, mean=False),
    ):
        np.testing.assert_allclose(function(cfg), function(plain), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_draws_have_the_density_that_any_point_has():
    """What a draw says of itself by one call of each network, the inverse says of the point it is."""
    with jax.enable_x64(True):
        flow = Flow(dataclasses.replace(IAF, num_layers=4), PRIOR)
        q, params = in_float64((encoded(flow, 6, 3), bound(flow, 3, 0.3).params))
        latents = flow.bound(params)
        z, log_q = jax.jit(latents.proposed)(jax.random.key(1), q)
        assert log_q.dtype == jnp.float64
        np.testing.assert_allclose(jax.jit(latents.log_prob)(q, z), log_q, atol=2e-6)  # N is float32 in part
        assert jnp.abs(z - posteriors.Gaussian().sample(jax.random.key(1), q[:2])).max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["both", pytest.param("spline", marks=pytest.mark.slow)])
def test_densities_integrate_to_one(name):
    flow = BOTH
    if name == "spline":
        steps = {"transform": RationalQuadratic(4)}
        flow = Flow(dataclasses.replace(IAF, **steps), dataclasses.replace(PRIOR, **steps))
    latents, q = bound(flow, 2, 0.1), encoded(flow, 1)
    every = lambda z: jax.tree.map(lambda a: jnp.broadcast_to(a, (len(z), *a.shape[1:])), q)
    assert mass(lambda z: latents.log_prob(every(z), z)) == pytest.approx(1.0, abs=3e-3)
    assert mass(latents.prior_log_prob) == pytest.approx(1.0, abs=3e-3)


@pytest.mark.slow
def test_draws_are_of_their_densities():
    """By the mean of x^2 and of |x_1 - x_2| under the draws, and under the density on a grid."""
    latents, q = bound(BOTH, 2, 0.1), encoded(BOTH, 1)
    repeated = jax.tree.map(lambda a: a.repeat(100_000, 0), q)
    ticks = jnp.linspace(-8, 8, 321)
    grid = jnp.stack(jnp.meshgrid(ticks, ticks), -1).reshape(-1, 2)
    moments = lambda z: jnp.stack([*(z**2).T, jnp.abs(z[:, 0] - z[:, 1])])
    on_grid = jax.tree.map(lambda a: jnp.broadcast_to(a, (len(grid), *a.shape[1:])), q)
    for draws, log_density in (
        (latents.sample(jax.random.key(1), repeated), latents.log_prob(on_grid, grid)),
        (latents.prior_sample(jax.random.key(2), 100_000, 2), latents.prior_log_prob(grid)),
    ):
        expected = (moments(grid) * jnp.exp(log_density)).sum(1) * 0.05**2
        np.testing.assert_allclose(moments(draws).mean(1), expected, rtol=0.03)


def linear_model(posterior):
    """x = z W + b + 0.5 eps with a decoder that is linear, and log p(x) of data in closed form."""
    cfg = dataclasses.replace(SMALL, posterior=posterior, decoder=LinearDecoder())
    state, x = state_of(cfg), data_of(64)
    layer = state.params["decoder"]["Dense_0"]
    covariance = layer["kernel"].T @ layer["kernel"] + 0.25 * jnp.eye(5)
    return cfg, state, x, jax.scipy.stats.multivariate_normal.logpdf(x, layer["bias"], covariance)


@pytest.mark.slow
def test_bounds_are_below_the_likelihood_of_a_linear_model_and_approach_it():
    cfg, state, x, exact = linear_model(Flow(IAF))
    every = jax.jit(lambda keys: jax.vmap(lambda key: vae.elbo(key, state, x, cfg))(keys))
    elbo = every(jax.random.split(jax.random.key(2), 400))
    assert (elbo.mean(0) < exact + 4 * elbo.std(0) / 20).all()
    means = [elbo.mean(1)]
    for function in (
        lambda key: vae.iwae(key, state, x, cfg, 1).mean(),
        lambda key: vae.loss(state.params, {"x": x}, key, cfg)[1]["elbo"],
    ):
        means.append(jax.jit(jax.vmap(function))(jax.random.split(jax.random.key(4), 400)))
        error = jnp.sqrt((means[0].var() + means[-1].var()) / 400)
        assert jnp.abs(means[0].mean() - means[-1].mean()) < 5 * error
    bounds = [jax.jit(lambda k=k: vae.iwae(jax.random.key(3), state, x, cfg, k))() for k in (20, 2000)]
    assert elbo.mean() < bounds[0].mean() < bounds[1].mean() < exact.mean() + 0.01
    assert bounds[1].mean() > exact.mean() - 0.1


@pytest.mark.slow
def test_a_prior_by_a_flow_enters_the_likelihood():
    """log p(x) by quadrature over the plane of z, where the prior is no Gaussian."""
    cfg, state, x, _ = linear_model(BOTH)
    latents, ticks = cfg.posterior.bound(state.params["posterior"]), jnp.linspace(-8, 8, 401)
    grid = jnp.stack(jnp.meshgrid(ticks, ticks), -1).reshape(-1, 2)
    mean = vae.decode(state, grid, cfg)
    log_likelihood = jax.scipy.stats.norm.logpdf(x[:8, None], mean, 0.5).sum(-1)
    exact = jax.nn.logsumexp(log_likelihood + latents.prior_log_prob(grid), 1) + 2 * np.log(0.04)
    bound = jax.jit(lambda: vae.iwae(jax.random.key(3), state, x[:8], cfg, 4000))()
    assert jnp.abs(bound - exact).mean() < 0.1
    normal = jax.nn.logsumexp(log_likelihood - 0.5 * (grid**2).sum(1), 1) - np.log(2 * np.pi)
    assert jnp.abs(normal + 2 * np.log(0.04) - exact).mean() > 0.3


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_gradients_reach_the_encoder_the_context_and_the_flows(name):
    cfg = dataclasses.replace(SMALL, posterior=KINDS[name])
    state = state_of(cfg)
    grads = jax.jit(jax.grad(lambda p: vae.loss(p, {"x": data_of()}, jax.random.key(4), cfg)[0]))(
        state.params
    )
    assert set(grads["posterior"]) == {"iaf": {"posterior"}, "prior": {"prior"}}.get(
        name, {"posterior", "prior"}
    )
    for leaf in jax.tree.leaves(grads["posterior"]):
        assert jnp.abs(leaf).max() > 1e-6
    kernel = grads["encoder"]["Dense_1"]["kernel"]  # of mean, log-variance and context, side by side
    assert kernel.shape[1] == 4 + (0 if name == "prior" else 4)
    assert (jnp.abs(kernel).max(0) > 1e-6).all()


@pytest.mark.slow
@pytest.mark.parametrize("objective", [ELBO(num_samples=2), IWAE(5), IWAE(5, backward=5), DReG(3)], ids=repr)
def test_every_objective_trains_what_it_reports(objective):
    posterior = KINDS["prior"] if isinstance(objective, DReG) else BOTH
    cfg = dataclasses.replace(SMALL, posterior=posterior, objective=objective)
    state, batch = state_of(cfg), {"x": data_of(256)}
    value, metrics = vae.loss(state.params, batch, jax.random.key(5), cfg)
    bound = vae.iwae(
        jax.random.key(6), state, batch["x"], cfg, 1 if isinstance(objective, ELBO) else objective.num_samples
    ).mean()
    assert float(value) == pytest.approx(-float(bound), rel=0.05)
    assert float(metrics["elbo"]) <= -float(value) + 1e-3
    step = jax.jit(functools.partial(vae.train_step, cfg=cfg))
    first = float(value)
    for _ in range(30):
        state, metrics = step(state, batch)
    assert float(metrics["loss"]) < first


@pytest.mark.slow
def test_a_resampled_gradient_has_the_mean_of_the_whole_one():
    """Through the flows too: the draws carry their densities along."""
    grads = []
    for backward in (0, 3):
        cfg = dataclasses.replace(SMALL, posterior=BOTH, objective=IWAE(6, backward=backward))
        params = state_of(dataclasses.replace(cfg, objective=ELBO())).params
        value = lambda p, key, cfg=cfg: vae.loss(p, {"x": data_of()}, key, cfg)[0]
        every = jax.jit(lambda keys, p=params, v=value: jax.vmap(lambda k: jax.grad(v)(p, k))(keys))
        found = every(jax.random.split(jax.random.key(1), 3000))["posterior"]
        grads.append(found)
    for whole, some in zip(*map(jax.tree.leaves, grads), strict=True):
        error = jnp.sqrt((whole.var(0) + some.var(0)) / 3000)
        assert (jnp.abs(whole.mean(0) - some.mean(0)) < 5 * error + 1e-6).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"posterior": Flow(IAF), "objective": DReG(3)},
            "Flow has parameters that DReG cannot hold: use IWAE",
        ),
        (
            {"posterior": BOTH, "objective": ELBO(divergence=GeometricJS())},
            "is for Gaussian or LogNormal latents",
        ),
        ({"posterior": Flow(None, PRIOR), "num_latents": 1}, "a coupling needs at least two dimensions"),
    ],
)
def test_what_does_not_go_together_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        vae.init(jax.random.key(0), dataclasses.replace(SMALL, **options))


@pytest.mark.slow
def test_an_encoder_without_context_and_a_triple():
    flow = Flow(dataclasses.replace(IAF, num_context=0))
    latents, q = bound(flow, 2, 0.3), encoded(flow)
    assert q[2].shape == (6, 0)
    assert jnp.isfinite(latents.proposed(jax.random.key(0), q)[1]).all()
    whole = jnp.arange(16.0).reshape(2, 8)
    parts = (whole[:, :2], whole[:, 2:4], whole[:, 4:])
    for found, expected in zip(BOTH.read(parts, 2), BOTH.read(whole, 2), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
def test_a_posterior_that_is_curved_is_found_by_iaf_and_not_by_a_gaussian():
    """Of a decoder that makes z_2 - z_1^2 of z, the posterior is a bent ridge."""
    grid_free = jax.random.normal(jax.random.key(0), (512, 2))
    target = lambda z: -0.5 * (z**2).sum(-1) - 0.5 * ((z[:, 1] - z[:, 0] ** 2 + 1) / 0.2) ** 2
    del grid_free
    import optax

    reached = {}
    for name, flow in (
        ("gaussian", Flow(None)),
        ("iaf", Flow(GivenSteps(4, Autoregressive(MADE((32,))), num_context=0))),
    ):
        params = {"q": jnp.zeros((1, 4)), "flow": flow.init(jax.random.key(1), 2)}

        def loss(params, key, flow=flow):
            q = jax.tree.map(lambda a: a.repeat(256, 0), flow.read(params["q"], 2))
            z, log_q = flow.bound(params["flow"]).proposed(key, q)
            return (log_q - target(z)).mean()

        optimizer = optax.adam(3e-3)

        def step(carry, key, loss=loss, optimizer=optimizer):
            params, opt_state = carry
            value, grads = jax.value_and_grad(loss)(params, key)
            updates, opt_state = optimizer.update(grads, opt_state)
            return (optax.apply_updates(params, updates), opt_state), value

        keys = jax.random.split(jax.random.key(2), 1500)
        run = jax.jit(lambda carry, keys, step=step: jax.lax.scan(step, carry, keys))
        reached[name] = float(run((params, optimizer.init(params)), keys)[1][-100:].mean())
    ticks = jnp.linspace(-6, 6, 801)
    plane = jnp.stack(jnp.meshgrid(ticks, ticks), -1).reshape(-1, 2)
    least = -float(jax.nn.logsumexp(target(plane)) + 2 * np.log(ticks[1] - ticks[0]))
    assert least - 0.02 < reached["iaf"] < least + 0.1
    assert reached["gaussian"] > least + 0.3
