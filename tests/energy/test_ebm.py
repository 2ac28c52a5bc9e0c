"""The energy-based model where exact draws are known, and the bookkeeping of its replay buffer."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgen
from jaxgen import data, keys, shard, types
from jaxgen.energy import ebm
from jaxgen.energy.networks import MLP, ConvNet
from jaxgen.nn import norm
from jaxgen.values import SGD, Adam

SMALL = ebm.Config(network=MLP((16,)), num_steps=2, buffer_size=128, restarts=0.5)
RANDOM = (
    dataclasses.replace(SMALL, network=MLP((8,), normalization="spectral"), noise=None, gradient_clip=None),
)
FURTHER = (dataclasses.replace(SMALL, network=ConvNet((4, 8))),)
TRAINED = ebm.Config(
    network=MLP((64,)),
    num_steps=20,
    buffer_size=500,
    optimizer=Adam(1e-3, beta1=0.0, gradient_clip=0.1),
)
OPTIONS = {"network.widths": (12,)}

POINTS = dataclasses.replace(
    SMALL, shape=(2,), levels=0, bound=2.0, num_steps=3, step_size=0.1, noise=None, gradient_clip=None
)
KEY = jax.random.key(0)


class Quadratic(nn.Module):
    """|L'(x - m)|^2 / 2 of two numbers: minus the log-density of N(m, (L L')^-1) up to its normaliser."""

    @nn.compact
    def __call__(self, x, train=False):
        factor = self.param("factor", nn.initializers.constant(jnp.array([[1.5, 0.0], [0.4, 0.8]])), (2, 2))
        mean = self.param("mean", nn.initializers.constant(jnp.array([0.3, -0.2])), (2,))
        return 0.5 * (((x - mean) @ factor) ** 2).sum(-1)


class Pair(nn.Module):
    """What forgets to drop its last axis."""

    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(1)(x.reshape(len(x), -1))


class Noisy(nn.Module):
    """Batch normalization and dropout, which a network of one's own may have."""

    @nn.compact
    def __call__(self, x, train):
        x = norm.BatchNorm(not train)(nn.Dense(8)(x.reshape(len(x), -1)))
        return nn.Dense(1)(nn.Dropout(0.5, deterministic=not train)(nn.silu(x)))[:, 0]


QUADRATIC = dataclasses.replace(POINTS, network=Quadratic(), optimizer=SGD(0.1))

init = jax.jit(ebm.init, static_argnums=1)
step = jax.jit(ebm.train_step, static_argnums=2)
loss = jax.jit(ebm.contrastive_loss, static_argnums=5)


@pytest.fixture(scope="module")
def state():
    return init(KEY, QUADRATIC)


def chains(key, state, x, cfg, num_steps):
    """Langevin steps on the energy of `Quadratic`, by hand."""
    factor, mean = (np.asarray(state.params[name]) for name in ("factor", "mean"))
    noise, x = cfg.noise or cfg.step_size**0.5, np.asarray(x)
    for k in range(num_steps):
        slope = (x - mean) @ factor @ factor.T
        if cfg.gradient_clip is not None:
            assert (np.abs(slope) > cfg.gradient_clip).any()
            slope = np.clip(slope, -cfg.gradient_clip, cfg.gradient_clip)
        eps = np.asarray(jax.random.normal(jax.random.fold_in(key, k), x.shape))
        x = np.clip(x - 0.5 * cfg.step_size * slope + noise * eps, -cfg.bound, cfg.bound)
    return x


def exact_draws(params, n):
    """Points with exactly the mean and the covariance of N(m, (L L')^-1)."""
    z = np.random.default_rng(0).normal(size=(n, 2))
    z = z - z.mean(0)
    white = np.linalg.solve(np.linalg.cholesky(z.T @ z / n), z.T).T
    return params["mean"] + white @ np.linalg.inv(np.asarray(params["factor"], np.float64))


def test_the_gradient_is_that_of_the_likelihood_by_exact_draws():
    """Of a Gaussian, whose normaliser is known; the energies of a quadratic need no more than moments."""
    with jax.enable_x64(True):
        cfg = dataclasses.replace(QUADRATIC, regularization=0.0)
        params = {"factor": jnp.array([[1.5, 0.0], [0.4, 0.8]]), "mean": jnp.array([0.3, -0.2])}
        x = jax.random.normal(KEY, (50, 2)) @ jnp.array([[1.0, 0.3], [0.0, 0.6]]) + 0.5
        drawn = jnp.asarray(exact_draws(params, 200))

        def nll(params):
            normaliser = jnp.log(2 * jnp.pi) - jnp.linalg.slogdet(params["factor"])[1]
            return ebm.energy(params, {}, x, cfg).mean() + normaliser

        @jax.jit
        def derivatives(params):
            contrast = lambda params: ebm.contrastive_loss(params, {}, x, drawn, KEY, cfg)[0]
            wanted = jax.grad(nll)(params)
            return jax.grad(contrast)(params), wanted, jax.jvp(contrast, (params,), (wanted,))[1]

        found, wanted, forward = derivatives(params)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-9), found, wanted)
        assert min(float(jnp.abs(g).max()) for g in jax.tree.leaves(wanted)) > 0.1
        squares = sum(float((g**2).sum()) for g in jax.tree.leaves(wanted))
        assert float(forward) == pytest.approx(squares, rel=1e-6)


def test_the_loss_is_that_of_the_paper(state):
    """And no gradient goes through the samples."""
    cfg = dataclasses.replace(QUADRATIC, regularization=0.3)
    x, drawn = jnp.array([[0.3, 0.8], [1.3, 0.0]]), jnp.array([[-1.0, 1.0]])
    on_x, on_drawn = (-np.asarray(ebm.score(state, points, cfg)) for points in (x, drawn))
    by_hand = [0.5 * (0.4**2 + 0.8**2), 0.5 * ((1.5 + 0.08) ** 2 + 0.16**2)]
    np.testing.assert_allclose(on_x, by_hand, rtol=1e-5)
    value, (_, metrics) = loss(state.params, {}, x, drawn, KEY, cfg)
    wanted = on_x.mean() - on_drawn.mean() + 0.3 * ((on_x**2).mean() + (on_drawn**2).mean())
    assert float(value) == float(metrics["contrastive_loss"]) == pytest.approx(wanted, rel=1e-5)
    assert float(metrics["data_energy"]) == pytest.approx(on_x.mean(), rel=1e-5)
    assert float(metrics["sample_energy"]) == pytest.approx(on_drawn.mean(), rel=1e-5)
    of_samples = jax.grad(lambda s: ebm.contrastive_loss(state.params, {}, x, s, KEY, cfg)[0])(drawn)
    np.testing.assert_array_equal(of_samples, 0.0)


def test_chains_follow_the_energy_downhill(state):
    """Each entry of the gradient is cut, and what leaves the bound is put back on it."""
    cfg = dataclasses.replace(QUADRATIC, noise=0.6, gradient_clip=0.5, bound=1.0)
    x = jnp.array([[0.3, 0.1], [-1.0, 0.9], [1.0, 1.0]])
    found = jax.jit(lambda state: ebm.chains(KEY, state, x, cfg, 2))(state)
    np.testing.assert_allclose(found, chains(KEY, state, x, cfg, 2), rtol=1e-5, atol=1e-6)
    assert (jnp.abs(found) == 1.0).any()


@pytest.mark.slow
def test_long_chains_have_the_moments_of_the_density(state):
    cfg = dataclasses.replace(QUADRATIC, bound=20.0, step_size=0.05)
    x = np.asarray(jax.jit(lambda state: ebm.sample(KEY, state, 10_000, cfg, num_steps=800))(state))
    covariance = np.linalg.inv(np.asarray(state.params["factor"] @ state.params["factor"].T))
    np.testing.assert_allclose(x.mean(0), state.params["mean"], atol=0.06)
    np.testing.assert_allclose(np.cov(x.T), covariance, atol=0.08)


def test_a_share_of_the_chains_begins_anew():
    """Rows are different ones; the others go on where they are."""
    cfg = dataclasses.replace(POINTS, restarts=0.25, buffer_size=2000)
    buffer = 10.0 + jnp.arange(4000.0).reshape(2000, 2)
    rows, x = jax.jit(lambda key: ebm.starts(key, buffer, 1500, cfg))(KEY)
    assert len(set(np.asarray(rows).tolist())) == 1500
    kept = np.asarray((x == buffer[rows]).all(1))
    new = np.asarray(x)[~kept]
    assert (~kept).mean() == pytest.approx(0.25, abs=0.05)
    assert np.abs(new).max() < 2.0
    assert new.std() == pytest.approx(2 / 3**0.5, rel=0.1)  # uniform on [-2, 2]


def test_steps_descend_against_chains_that_go_on_in_the_buffer(state):
    """Their ends stand in the rows they came from, by the parameters before the step; the rest stays."""
    far = 3 * jax.random.normal(KEY, (8, 2))
    x = jnp.clip(far, -2, 2)
    assert (x != far).any()

    @jax.jit
    def by_hand(state):
        key = jax.random.fold_in(state.key, state.step)
        start_key, chain_key = keys.named(key, "starts", "chains")
        return chain_key, *ebm.starts(start_key, state.buffer, 8, QUADRATIC)

    gradient = jax.jit(
        jax.grad(lambda params, ends: ebm.contrastive_loss(params, {}, x, ends, KEY, QUADRATIC)[0])
    )
    touched = set()
    for _ in range(3):
        chain_key, rows, start = by_hand(state)
        ends = chains(chain_key, state, start, QUADRATIC, 3)
        grads = gradient(state.params, ends)
        after, metrics = step(state, {"x": far}, QUADRATIC)
        np.testing.assert_allclose(after.buffer[rows], ends, rtol=1e-5, atol=1e-6)
        rest = np.setdiff1d(np.arange(128), rows)
        np.testing.assert_array_equal(after.buffer[rest], state.buffer[rest])
        assert (after.buffer[rows] != state.buffer[rows]).all()
        wanted = jax.tree.map(lambda p, g: p - 0.1 * g, state.params, grads)
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), after.params, wanted
        )
        squares = sum(float((g**2).sum()) for g in jax.tree.leaves(grads))
        assert float(metrics["grad_norm"]) == pytest.approx(squares**0.5, rel=1e-4)
        touched |= set(np.asarray(rows).tolist())
        state = after
    assert len(touched) > 12
    assert float(jnp.abs(state.buffer).max()) <= 2.0


def test_samples_start_at_noise_and_take_the_steps_asked_for(state):
    """By default as many as chains of the buffer have on average: 3 / 0.5."""
    draw = lambda n: ebm.sample(KEY, state, 400, QUADRATIC, num_steps=n)
    noise = draw(0)
    assert float(noise.min()) == pytest.approx(-2.0, abs=0.05)
    assert float(noise.max()) == pytest.approx(2.0, abs=0.05)
    assert float(noise.std()) == pytest.approx(2 / 3**0.5, rel=0.1)
    wanted = chains(keys.named(KEY, "chains"), state, noise, QUADRATIC, 6)
    np.testing.assert_allclose(jax.jit(draw, static_argnums=0)(None), wanted, rtol=1e-5, atol=1e-6)
    programs = [str(jax.make_jaxpr(lambda n=n: draw(n))()) for n in (None, 6, 5)]
    assert programs[0] == programs[1] != programs[2]


def test_levels_are_spread_and_kept_within_the_bound():
    x = jnp.repeat(jnp.linspace(-1.0, 1.0, 17), 500).reshape(-1, 1, 1, 1)
    cfg = dataclasses.replace(SMALL, shape=(1, 1, 1), levels=17)
    spread = np.asarray(ebm.targets(KEY, x, cfg)).reshape(17, 500)
    inner = spread[1:-1] - np.linspace(-1, 1, 17)[1:-1, None]
    assert 0.0620 < inner.max() <= 0.0625  # half the distance of two levels
    assert -0.0625 <= inner.min() < -0.0620
    assert spread.max() == 1.0
    assert spread.min() == -1.0
    for options in ({"dequantize": False}, {"levels": 0}):
        np.testing.assert_array_equal(ebm.targets(KEY, x, dataclasses.replace(cfg, **options)), x)


def test_the_bound_is_that_of_the_data():
    points = data.load("moons")
    cfg = types.from_data(ebm, points, SMALL)
    assert cfg.bound == pytest.approx(1.1 * np.abs(points[:]["x"]).max(), rel=0.01)
    assert types.from_data(ebm, points, dataclasses.replace(SMALL, bound=5.0)).bound == 5.0
    digits = types.from_data(ebm, data.load("digits"), SMALL)
    assert ebm.bound(digits) == 1.0
    assert digits.levels == 17


@pytest.mark.slow
@pytest.mark.parametrize(
    "network", [MLP((8, 8), normalization="spectral"), ConvNet((4,), normalization="spectral")]
)
def test_spectral_normalization_bounds_the_slope(network):
    """Each layer of the MLP is 1-Lipschitz, and SiLU 1.1; the singular vectors move in a step."""
    cfg = dataclasses.replace(SMALL, network=network)
    state = init(KEY, cfg)
    grown = jax.tree.map(lambda p: 10.0 * p, state.params)
    x = jax.random.normal(KEY, (20, 8, 8, 1))
    slope = jax.jit(jax.grad(lambda x: ebm.energy(grown, state.stats, x, cfg).sum()))(x)
    largest = float(jnp.sqrt((slope**2).sum((1, 2, 3))).max())
    if isinstance(network, MLP):
        assert largest < 1.1**2 * 1.05
    plain = dataclasses.replace(cfg, network=network.clone(normalization="none"))
    assert not init(KEY, plain).stats
    others = init(jax.random.key(1), cfg)._replace(stats=state.stats)  # those of its own weights may stay
    after, _ = step(others, {"image": jnp.clip(x, -1, 1)}, cfg)
    for name, vectors in after.stats["spectral"].items():
        assert (vectors["kernel/u"] != state.stats["spectral"][name]["kernel/u"]).any()


@pytest.mark.slow
def test_networks_of_ones_own_keep_their_statistics():
    cfg = dataclasses.replace(SMALL, network=Noisy())
    state, x = init(KEY, cfg), jax.random.normal(KEY, (16, 8, 8, 1)).clip(-1, 1)
    after, metrics = step(state, {"image": x}, cfg)
    mean = lambda state: state.stats["batch_stats"]["BatchNorm_0"]["mean"]
    assert (mean(after) != mean(state)).any()
    assert np.isfinite(float(metrics["contrastive_loss"]))


@pytest.mark.slow
def test_weights_that_diverge_stop_the_run():
    """With the step named."""
    cfg = dataclasses.replace(SMALL, network=MLP((16, 16)), optimizer=SGD(1e4))
    run = functools.partial(jaxgen.fit, ebm, cfg, data.load("digits"), key=KEY, mesh=shard.mesh(1))
    with pytest.raises(FloatingPointError, match=r"became NaN or infinite at step \d+: try a smaller step"):
        run(steps=60, batch_size=16)


def test_what_cannot_be_is_refused():
    for options, match in (
        ({"network": Pair()}, r"one number an example, \(2,\) for two, and not \(2, 1\)"),
        ({"network": ConvNet(), "shape": (2,)}, "use network mlp"),
    ):
        with pytest.raises((ValueError, TypeError), match=match):
            jax.eval_shape(lambda options=options: ebm.init(KEY, dataclasses.replace(SMALL, **options)))
    with pytest.raises(ValueError, match="129 examples need as many chains, the buffer has 128"):
        jax.eval_shape(lambda s: ebm.train_step(s, {"x": jnp.zeros((129, 2))}, POINTS), init(KEY, POINTS))


@pytest.mark.slow
def test_it_learns_the_density_of_a_mixture():
    """By quadrature over the bound, exp(-E) has a likelihood near the best."""
    cfg = dataclasses.replace(
        POINTS,
        shape=(1,),
        network=MLP((32, 32)),
        bound=3.0,
        num_steps=20,
        step_size=0.04,
        buffer_size=1000,
        restarts=0.05,
        regularization=0.01,
        optimizer=Adam(3e-3, beta1=0.0),
    )
    x = jnp.where(jnp.arange(512) % 4 == 0, -1.2, 1.0) + 0.4 * jax.random.normal(KEY, (512,))

    @jax.jit
    def fit(state):
        advance = lambda state, _: ebm.train_step(state, {"x": x[:, None]}, cfg)
        return jax.lax.scan(advance, state, length=300)[0]

    grid = np.linspace(-3, 3, 601)
    width = grid[1] - grid[0]
    true = 0.25 * np.exp(-((grid + 1.2) ** 2) / 0.32) + 0.75 * np.exp(-((grid - 1.0) ** 2) / 0.32)
    true /= true.sum() * width

    def divergence(state):
        log_p = np.asarray(ebm.score(state, jnp.float32(grid)[:, None], cfg), np.float64)
        log_p -= np.log(np.exp(log_p).sum() * width)
        return (true * (np.log(true + 1e-30) - log_p)).sum() * width

    state = init(KEY, cfg)
    after = fit(state)
    assert divergence(state) > 0.3
    assert divergence(after) < 0.05
