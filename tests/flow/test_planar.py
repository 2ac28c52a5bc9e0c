"""Planar and radial flows: they invert, integrate to one, and fit densities of both kinds."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen.flow import density, planar
from jaxgen.flow.planar import Planar, Radial
from jaxgen.values import SGD
from tests.flow.check import assert_bijector, initial, mass, wide

DATA = "moons"
# Standardised data leave gradients near 0, whose signs Adam would follow: SGD for what must be reproduced.
SMALL = planar.Config(num_layers=3, optimizer=SGD(1e-2))
TRAINED = planar.Config(num_layers=8)
OPTIONS, ELSEWHERE = {"levels": 17}, ("preprocessing",)  # of pixels: test_losses.py
POINTS = planar.Config(shape=(2,), levels=0, num_layers=2)


@pytest.mark.parametrize("layer", [Planar(), Radial()], ids=["planar", "radial"])
def test_layers_invert_and_know_their_volume(layer):
    bijector = layer.bijector(3)
    assert_bijector(bijector, initial(bijector, 1.0), wide(3))


@pytest.mark.parametrize(("layer", "direct"), [(Planar(), "sampling"), (Radial(), "density")])
def test_the_density_is_one(layer, direct):
    flow = planar.flow(dataclasses.replace(POINTS, layer=layer, direct=direct))
    params = initial(flow, 0.2)
    assert mass(lambda x: density.log_prob(flow, params, x)) == pytest.approx(1.0, abs=2e-3)


def test_the_closed_form_is_from_data_to_noise_or_back():
    x = wide(2)[:20]
    for direct, closed in (("density", "forward"), ("sampling", "inverse")):
        flow = planar.flow(dataclasses.replace(POINTS, num_layers=1, direct=direct))
        params = jax.jit(flow.init)(jax.random.key(0))
        layer = jax.tree.map(lambda a: a[0], params[1])
        np.testing.assert_allclose(
            jax.jit(getattr(flow, closed))(params, x)[0], planar.planar(2).forward(layer, x)[0], rtol=1e-6
        )


def test_the_equations_of_the_paper():
    """x + u tanh(w'x + b) and x + beta h (x - c), in numbers worked out by hand."""
    x = jnp.array([[1.0, 2.0]])
    w, u, b = np.array([0.5, -1.0]), np.array([2.0, 1.0]), 0.3
    params = {"w": jnp.float32(w), "u": jnp.float32(u), "b": jnp.float32(b)}
    inner = w @ u
    u_hat = u + (np.log1p(np.exp(inner)) - 1 + planar.MARGIN - inner) * w / (w @ w)
    bent = np.tanh(w @ np.array([1.0, 2.0]) + b)
    y, log_det = planar.planar(2).forward(params, x)
    np.testing.assert_allclose(y[0], np.array([1.0, 2.0]) + u_hat * bent, rtol=1e-5)
    assert log_det[0] == pytest.approx(np.log(1 + (1 - bent**2) * (u_hat @ w)), rel=1e-5)
    zeros = {"center": jnp.zeros(2), "alpha": jnp.zeros(()), "beta": jnp.float32(1.0)}
    alpha, beta = np.log(2) + planar.MARGIN, np.log1p(np.e) - np.log(2)
    factor = 1 + beta / (alpha + np.sqrt(5))
    np.testing.assert_allclose(planar.radial(2).forward(zeros, x)[0][0], factor * np.array([1, 2]), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("layer", [Planar(), Radial()], ids=["planar", "radial"])
def test_parameters_that_overflow_stay_finite(layer):
    """Also where a planar layer has no direction, and at the centre of a radial one."""
    bijector = layer.bijector(2)
    params = bijector.init(jax.random.key(0))

    def total(params, x):
        y, log_det = bijector.forward(params, x)
        return (y.sum() + log_det.sum()), (y, log_det)

    run = jax.jit(jax.grad(total, (0, 1), has_aux=True))
    for value in (0.0, 1e3, -1e3):
        extreme = jax.tree.map(lambda a, v=value: jnp.full_like(a, v), params)
        for x in (jnp.zeros((1, 2)), jnp.full((1, 2), value)):
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(run(extreme, x)))
    against = {"w": jnp.array([30.0, 0.0]), "u": jnp.array([-30.0, 0.0]), "b": jnp.zeros(())}
    assert np.isfinite(planar.planar(2).forward(against, jnp.zeros((1, 2)))[1]).all()


def test_the_root_has_derivatives_of_every_order():
    """x + a tanh(x) = y by bisection: first and second derivatives in both modes by the implicit function."""
    with jax.enable_x64(True):

        @jax.jit
        def solve(a):
            ends = jnp.array([-5.0, -5.0]), jnp.array([5.0, 5.0])
            return planar.root(lambda s: s + a * jnp.tanh(s) - jnp.array([1.0, -2.0]), *ends).sum()

        a, step = jnp.float64(0.7), 1e-5
        gradient = jax.jit(jax.grad(solve))
        first = float(solve(a + step) - solve(a - step)) / (2 * step)
        assert float(jax.jvp(solve, (a,), (jnp.ones_like(a),))[1]) == pytest.approx(first, rel=1e-7)
        assert float(gradient(a)) == pytest.approx(first, rel=1e-7)
        second = float(gradient(a + step) - gradient(a - step)) / (2 * step)
        assert jax.jacfwd(gradient)(a) == pytest.approx(second, rel=1e-6)


def test_no_layer_is_refused():
    with pytest.raises(ValueError, match="must be at least 1"):
        planar.init(jax.random.key(0), dataclasses.replace(POINTS, num_layers=0))


@pytest.mark.slow
@pytest.mark.parametrize("layer", [Planar(), Radial()], ids=["planar", "radial"])
def test_it_approximates_an_energy(layer):
    """Two bumps known up to a factor: the divergence falls to near log Z, and never below."""
    bumps = jnp.array([[-1.0, 0.0], [1.0, 0.0]])
    target = lambda x: jax.nn.logsumexp(-2 * ((x[:, None] - bumps) ** 2).sum(-1), -1)
    log_z = np.log(2 * np.pi / 4 * 2)
    cfg = dataclasses.replace(POINTS, layer=layer, num_layers=8, direct="sampling")
    params = planar.init(jax.random.key(0), cfg).params
    optimizer = optax.adam(5e-3)

    def step(carry, key):
        params, opt_state = carry
        grads = jax.grad(planar.reverse_kl)(params, key, target, 256, cfg)
        updates, opt_state = optimizer.update(grads, opt_state)
        return (optax.apply_updates(params, updates), opt_state), None

    train = jax.jit(lambda carry, keys: jax.lax.scan(step, carry, keys)[0])
    trained, _ = train((params, optimizer.init(params)), jax.random.split(jax.random.key(1), 3000))
    divergence = lambda p: log_z + float(planar.reverse_kl(p, jax.random.key(2), target, 20_000, cfg))
    assert -0.01 < divergence(trained) < 0.1 < divergence(params)
