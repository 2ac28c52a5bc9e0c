"""Neural spline flows, of couplings and autoregressive, with and without linear layers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgen
from jaxgen import data, types
from jaxgen.flow import density, spline
from jaxgen.flow.spline import LU, Autoregressive, Coupling
from jaxgen.flow.transforms import RationalQuadratic
from jaxgen.nn.masked import MADE
from jaxgen.nn.mlp import MLP
from jaxgen.values import SGD, Adam, Cosine
from tests.flow.check import assert_bijector, initial, mass, shaken

DATA = "moons"
# Standardised data leave gradients near 0, whose signs Adam would follow: SGD for what must be reproduced.
SMALL = spline.Config(
    num_layers=2, layer=Coupling(MLP((16,))), transform=RationalQuadratic(4), optimizer=SGD(1e-2)
)
TRAINED = spline.Config(num_layers=2, layer=Coupling(MLP((32,))))
RANDOM = (dataclasses.replace(SMALL, conditional=True),)
OPTIONS, ELSEWHERE = {"levels": 17}, ("preprocessing",)  # of pixels: test_losses.py
POINTS = dataclasses.replace(SMALL, shape=(3,), levels=0)
LAYERS = {
    "coupling": POINTS,
    "autoregressive": dataclasses.replace(POINTS, layer=Autoregressive(MADE((8,))), mixing=LU()),
}


def points(num_dims, seed=0):
    """Inside of the box, at its faces, and far outside."""
    x = jnp.float32(2 * np.random.default_rng(seed).normal(size=(60, num_dims)))
    return jnp.concatenate([x[:40], 4.0 * jnp.sign(x[40:50]), 1e3 * x[50:]])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["coupling", pytest.param("autoregressive", marks=pytest.mark.slow)])
def test_it_inverts_and_knows_its_volume(name):
    flow = spline.flow(LAYERS[name])
    assert_bijector(flow, initial(flow), points(3))


@pytest.mark.parametrize("name", ["coupling", pytest.param("autoregressive", marks=pytest.mark.slow)])
def test_density_integrates_to_one(name):
    cfg = dataclasses.replace(LAYERS[name], shape=(2,))
    flow = spline.flow(cfg)
    params = initial(flow, 0.2)
    assert mass(lambda x: density.log_prob(flow, params, x)) == pytest.approx(1.0, abs=3e-3)


def test_far_outside_of_the_box_it_is_linear():
    """Finite and invertible there, with the volume change of the linear maps alone."""
    flow = spline.flow(dataclasses.replace(POINTS, num_layers=1))
    params = jax.jit(flow.init)(jax.random.key(0))
    params = (params[0], shaken(params[1], 1.0), params[2])
    x = jnp.array([[1e4, -1e4, 1e4], [0.5, 0.3, -0.2]])
    y, log_det = jax.jit(flow.forward)(params, x)
    np.testing.assert_allclose(jnp.sort(y[0]), jnp.sort(x[0]), rtol=1e-6)
    assert log_det[0] == 0
    assert log_det[1] != 0


def test_every_dimension_is_moved():
    """With a reversal between two couplings of halves, also of an odd number of dimensions."""
    flow = spline.flow(dataclasses.replace(POINTS, shape=(5,)))
    params = jax.jit(flow.init)(jax.random.key(0))
    params = (params[0], shaken(params[1], 1.0), params[2])
    x = points(5)[:40]
    assert (jnp.abs(jax.jit(flow.forward)(params, x)[0] - x).max(0) > 1e-3).all()


def test_linear_layers_mix_all_dimensions():
    cfg = dataclasses.replace(POINTS, num_layers=1)

    def count(mixing):
        flow = spline.flow(dataclasses.replace(cfg, mixing=mixing))
        return sum(a.size for a in jax.tree.leaves(jax.eval_shape(flow.init, jax.random.key(0))))

    assert count(LU()) == count(spline.Reverse()) + 2 * 9


def test_one_dimension_needs_the_autoregressive_layer():
    with pytest.raises(ValueError, match="use an autoregressive flow"):
        spline.init(jax.random.key(0), dataclasses.replace(POINTS, shape=(1,)))
    cfg = dataclasses.replace(LAYERS["autoregressive"], shape=(1,))
    state = jax.eval_shape(lambda: spline.init(jax.random.key(0), cfg))
    assert jax.eval_shape(lambda s: spline.log_prob(s, jnp.zeros((3, 1)), cfg), state).shape == (3,)
    with pytest.raises(ValueError, match="must be at least 1"):
        spline.init(jax.random.key(0), dataclasses.replace(cfg, num_layers=0))


@pytest.mark.slow
def test_it_learns_the_checkerboard():
    """To 0.15 nats of its entropy in seconds; it can come no nearer than 0 on data it has not seen."""
    train, test = data.load("checkerboard"), data.load("checkerboard", "test")
    cfg = types.from_data(
        spline,
        train,
        spline.Config(
            layer=Autoregressive(MADE((64, 64))),
            transform=RationalQuadratic(16),
            optimizer=Adam(3e-3, schedule=Cosine(1000)),
        ),
    )
    state = jaxgen.fit(spline, cfg, train, steps=1000, batch_size=512, key=jax.random.key(0))
    nll = -spline.log_prob(state, test[:]["x"], cfg).mean()
    assert np.log(32) - 0.01 < nll < np.log(32) + 0.15
