"""MAF and IAF: each the inverse of the other, and the Gaussian optimum where that is known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.flow import bijectors, density, maf
from jaxgen.nn.masked import MADE
from jaxgen.values import SGD, Adam, Cosine
from tests.flow.check import assert_bijector, initial, mass, shaken, wide

DATA = "moons"
# Standardised data leave gradients near 0, whose signs Adam would follow: SGD for what must be reproduced.
SMALL = maf.Config(num_layers=2, network=MADE((16,)), optimizer=SGD(1e-2))
TRAINED = maf.Config(num_layers=3, network=MADE((32,)))
RANDOM = (dataclasses.replace(SMALL, conditional=True),)
OPTIONS, ELSEWHERE = {"levels": 17}, ("preprocessing",)  # of pixels: test_losses.py
POINTS = maf.Config(shape=(3,), levels=0, num_layers=3, network=MADE((8,)))
IAF = dataclasses.replace(POINTS, direct="sampling")


def test_it_inverts_and_knows_its_volume():
    flow = maf.flow(POINTS)
    assert_bijector(flow, initial(flow), wide(3))


def test_maf_and_iaf_invert_each_other():
    """With the same weights; what is at both ends is the identity at first."""
    forth, back = (maf.flow(dataclasses.replace(cfg, num_layers=4)) for cfg in (POINTS, IAF))
    params = jax.jit(forth.init)(jax.random.key(0))
    params = (params[0], shaken(params[1], 0.2), params[2])
    x = wide(3)[:40]
    y, log_det = jax.jit(forth.forward)(params, x)
    again, back_log_det = jax.jit(back.forward)(params, y)
    np.testing.assert_allclose(again, x, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(log_det, -back_log_det, rtol=1e-4, atol=1e-4)
    assert jnp.abs(y - x).max() > 0.1


def test_the_equation_of_the_paper():
    """z_i = (x_i - mu_i) exp(-alpha_i), of what the network gives for the numbers before."""
    layer = bijectors.chain(maf.layer(POINTS), bijectors.reverse())  # which undoes the order's reversal
    params = initial(layer, 0.5)
    x = wide(3)[:20]
    network = MADE((8,), num_outputs=6)
    alpha, mu = jnp.moveaxis(network.apply({"params": params[0][0]}, x).reshape(-1, 3, 2), -1, 0)
    alpha = 5 * jnp.tanh(alpha / 5)
    z, log_det = jax.jit(layer.forward)(params, x)
    np.testing.assert_allclose(z, (x - mu) * jnp.exp(-alpha), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(log_det, -alpha.sum(-1), rtol=1e-4, atol=1e-4)


def test_the_jacobian_of_a_layer_is_triangular():
    layer = bijectors.chain(maf.layer(POINTS), bijectors.reverse())
    params = initial(layer, 0.5)
    forward = lambda x: layer.forward(params, x[None])[0][0]
    jacobian = jax.jit(jax.jacfwd(forward))(jnp.array([0.3, -1.0, 2.0]))
    np.testing.assert_allclose(jnp.triu(jacobian, 1), 0, atol=1e-7)
    assert (np.abs(jacobian[np.tril_indices(3)]) > 1e-6).all()


@pytest.mark.parametrize("cfg", [POINTS, pytest.param(IAF, marks=pytest.mark.slow)], ids=["maf", "iaf"])
def test_density_integrates_to_one(cfg):
    cfg = dataclasses.replace(cfg, shape=(2,), num_layers=2)
    flow = maf.flow(cfg)
    params = initial(flow, 0.2)
    assert mass(lambda x: density.log_prob(flow, params, x)) == pytest.approx(1.0, abs=3e-3)


def test_one_dimension_is_enough_and_sees_the_label():
    """Its only input is the context, through hidden units of degree 0."""
    cfg = dataclasses.replace(POINTS, shape=(1,), num_classes=2, conditional=True)
    state = jax.jit(maf.init, static_argnums=1)(jax.random.key(0), cfg)
    state = state._replace(params=shaken(state.params, 0.2))
    x = jnp.linspace(-8, 8, 801)[:, None]
    density_of = jax.jit(lambda label: jnp.exp(maf.log_prob(state, x, cfg, label)))
    densities = [density_of(label) for label in (0, 1)]
    np.testing.assert_allclose([d.sum() * 0.02 for d in densities], 1.0, atol=1e-3)
    assert jnp.abs(densities[0] - densities[1]).max() > 0.01


def test_no_layer_is_refused():
    with pytest.raises(ValueError, match="must be at least 1"):
        maf.init(jax.random.key(0), dataclasses.replace(POINTS, num_layers=0))


@pytest.mark.slow
def test_one_layer_reaches_the_gaussian_optimum():
    """Conditional means of a Gaussian are linear, and its conditional variances constant."""
    factor = np.array([[2.0, 0.0, 0.0], [-0.7, 0.5, 0.0], [0.3, -1.2, 1.5]])
    x = np.random.default_rng(0).normal(size=(1000, 3))
    x -= x.mean(0)
    x = jnp.float32(x @ np.linalg.inv(np.linalg.cholesky(x.T @ x / len(x))).T @ factor.T)
    cfg = dataclasses.replace(
        POINTS, num_layers=1, network=MADE(()), optimizer=Adam(0.02, schedule=Cosine(2000))
    )
    state = maf.init(jax.random.key(0), cfg, {"x": x})
    step = lambda state, _: maf.train_step(state, {"x": x}, cfg)
    _, metrics = jax.jit(lambda state: jax.lax.scan(step, state, length=2000))(state)
    lowest = 1.5 * (1 + np.log(2 * np.pi)) + np.log(np.diag(factor)).sum()
    # The scales see the numbers before too: they may fit a sample a little better than its Gaussian.
    assert lowest - 0.02 < metrics["nll"][-1] < lowest + 0.002
