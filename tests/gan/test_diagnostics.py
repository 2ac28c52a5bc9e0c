"""Diagnostics: slopes in closed form, diversity by its expectation, and the warnings of runs gone wrong."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.gan import diagnostics, gan
from jaxgen.gan.losses import LOSSES
from jaxgen.gan.networks import mlp
from jaxgen.script import loggers
from jaxgen.values import SGD, Adam

KEY = jax.random.key(0)
REAL, FAKE = jnp.array([2.0, -1.0, 3.0, 4.0]), jnp.array([-1.0, 5.0, 1.0, -2.0])
CFG = gan.Config(
    shape=(2,), num_latents=2, generator=mlp.Generator((16,)), discriminator=mlp.Discriminator((64,))
)
BATCH = {"x": jax.random.normal(jax.random.key(1), (64, 2))}


def test_verdicts_are_counted():
    absolute, relative = (diagnostics.verdicts(LOSSES[name], REAL, FAKE) for name in ("hinge", "wasserstein"))
    assert (absolute["real_accuracy"], absolute["fake_accuracy"]) == (0.75, 0.5)
    assert (relative["real_accuracy"], relative["fake_accuracy"]) == (0.75, 0.75)  # means 2 and 0.75


def test_slopes_are_their_closed_forms():
    sigmoid = jax.nn.sigmoid
    wrong = (sigmoid(-REAL).mean() + sigmoid(FAKE).mean()) / 2
    inside = ((REAL < 1).mean() + (FAKE > -1).mean()) / 2
    for name, of_discriminator, of_generator in (
        ("minimax", wrong, sigmoid(FAKE).mean()),
        ("non_saturating", wrong, sigmoid(-FAKE).mean()),
        ("hinge", inside, 1.0),
        ("wasserstein", 1.0, 1.0),
        ("relativistic", sigmoid(FAKE - REAL).mean(), sigmoid(REAL - FAKE).mean()),
    ):
        loss = LOSSES[name]
        slope = diagnostics.verdicts(loss, REAL, FAKE)["discriminator_slope"]
        assert slope == pytest.approx(float(of_discriminator), rel=1e-5), name
        assert diagnostics.generator_slope(loss, REAL, FAKE) == pytest.approx(
            float(of_generator), rel=1e-5
        ), name


@pytest.mark.slow
def test_diversity_is_the_ratio_of_spreads_and_blind_to_place():
    x, y = jax.random.normal(KEY, (2, 4000, 3, 3, 1))
    assert diagnostics.diversity(x, 0.25 * y + 7) == pytest.approx(0.25, rel=0.02)
    assert diagnostics.diversity(x, jnp.ones_like(x)) == 0
    assert np.isfinite(diagnostics.diversity(jnp.ones_like(x), y))
    two_of_many = jnp.where(jax.random.bernoulli(KEY, shape=(4000, 1, 1, 1)), x[:1], x[1:2])
    expected = (
        0.5
        * jnp.linalg.norm((x[0] - x[1]).ravel())
        / jnp.linalg.norm((x - y).reshape(4000, -1), axis=1).mean()
    )
    assert diagnostics.diversity(x, two_of_many) == pytest.approx(float(expected), rel=0.05)


def test_a_good_log_line_gets_no_warning():
    assert diagnostics.warnings({"discriminator_slope": 0.4, "generator_slope": 0.5, "diversity": 0.9}) == []
    assert diagnostics.warnings({"loss": 0.0}) == []


@pytest.mark.slow
def test_runs_gone_wrong_are_told():
    """Examples far from the data, of which the discriminator grows sure; then also all of them alike."""
    rules = {"generator_optimizer": SGD(0.0), "discriminator_optimizer": Adam(0.02, beta1=0.5)}
    cfg = dataclasses.replace(CFG, loss="minimax", **rules)
    step = functools.partial(gan.train_step, cfg=cfg)
    train = jax.jit(lambda state: jax.lax.scan(lambda s, _: step(s, BATCH), state, length=200)[1])
    state = gan.init(KEY, cfg)
    last = state.params["generator"]["Dense_1"]
    for spread, said in ((1.0, 2), (0.01, 3)):
        moved = {"kernel": spread * last["kernel"], "bias": last["bias"] + 6.0}
        params = {**state.params, "generator": {**state.params["generator"], "Dense_1": moved}}
        metrics = train(state._replace(params=params))
        end = {name: float(values[-20:].mean()) for name, values in metrics.items()}
        lines = diagnostics.warnings(end)
        assert ["sure of every example" in lines[0], "loss is flat" in lines[1], len(lines)] == [
            True,
            True,
            said,
        ]
    assert "copies of a few" in lines[2]


def test_a_script_says_each_warning_once_while_it_stands(capsys, tmp_path):
    log = loggers.on_log("none", tmp_path, gan, CFG)
    for step, diversity in enumerate((0.9, 0.1, 0.05, 0.9, 0.1)):
        log(step, {"diversity": diversity}, None)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert [line.split(":")[1].strip() for line in said] == ["step 1", "step 4"]
