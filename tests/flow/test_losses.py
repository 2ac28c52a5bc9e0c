"""The losses of all flows: their sign and size where the answer is known, and that a step goes down."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.flow import affine, maf, planar, realnvp, spline
from jaxgen.values import SGD
from tests.flow import test_maf, test_planar, test_realnvp, test_spline

FLOWS = {
    "affine": (affine, affine.Config(shape=(3,), levels=0)),
    "realnvp": (realnvp, test_realnvp.POINTS),
    "maf": (maf, test_maf.POINTS),
    "spline": (spline, test_spline.POINTS),
}
LAYERS = {
    "planar": (planar, dataclasses.replace(test_planar.POINTS, shape=(3,))),
    "realnvp": (realnvp, test_realnvp.POINTS),
    "maf": (maf, test_maf.POINTS),
    "spline": (spline, test_spline.POINTS),
}
STD = np.array([2.0, 0.5, 3.0])


def batch():
    """Points of mean 1 and of the standard deviations STD exactly."""
    x = np.random.default_rng(0).normal(size=(200, 3))
    return {"x": jnp.float32(1 + STD * (x - x.mean(0)) / x.std(0))}


@pytest.mark.parametrize("name", FLOWS)
def test_the_loss_of_a_flow_that_has_learned_nothing(name):
    """It is the Gaussian with the mean and the variances of its first batch, whose entropy is known."""
    family, cfg = FLOWS[name]

    @jax.jit
    def start(batch):
        state = family.init(jax.random.key(0), cfg, batch)
        return family.loss(state.params, batch, jax.random.key(1), cfg)

    value, metrics = start(batch())
    expected = 1.5 * (1 + np.log(2 * np.pi)) + np.log(STD).sum()
    assert float(value) == pytest.approx(expected, abs=1e-3)
    assert float(metrics["nll"]) == float(value)


@pytest.mark.parametrize("name", ["planar", *(pytest.param(n, marks=pytest.mark.slow) for n in FLOWS)])
def test_steps_raise_the_likelihood(name):
    family, cfg = (LAYERS | FLOWS)[name]
    x = {"x": jnp.abs(batch()["x"])}
    cfg = dataclasses.replace(cfg, optimizer=SGD(1e-3))
    state = jax.jit(functools.partial(family.init, cfg=cfg))(jax.random.key(0), batch=x)

    @jax.jit
    def step(state):
        log_prob = family.log_prob(state, x["x"], cfg).mean()
        return *family.train_step(state, x, cfg), log_prob

    log_probs = []
    for _ in range(5):
        state, metrics, log_prob = step(state)
        assert float(metrics["nll"]) == pytest.approx(-float(log_prob), abs=1e-4)
        log_probs.append(float(log_prob))
    assert (np.diff(log_probs) > 0).all()


@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_as_many_as_asked_for(name):
    family, cfg = LAYERS[name]
    cfg = dataclasses.replace(cfg, num_layers=7)
    params = jax.eval_shape(lambda: family.init(jax.random.key(0), cfg)).params
    assert {leaf.shape[0] for leaf in jax.tree.leaves(params[1])} == {7}
