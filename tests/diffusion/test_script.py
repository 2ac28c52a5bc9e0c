"""The experiment script: the paper's network, and what an evaluation leaves."""

import dataclasses
import functools
import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxgen import data, experiment
from jaxgen.diffusion import ddpm

SCRIPT = Path(__file__).parents[2] / "experiments" / "diffusion.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("diffusion_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_network_for_cifar10_is_that_of_the_paper(script):
    cfg = dataclasses.replace(script.SYSTEMS["ddpm_cifar10"].config, shape=(32, 32, 3))
    state = jax.eval_shape(functools.partial(ddpm.init, cfg=cfg), jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(state.params)) == 35_746_307
    assert script.SYSTEMS["ddpm_cifar10"].published["cifar10", script.INCEPTION][0] == 3.17


@pytest.mark.slow
def test_an_evaluation_leaves_numbers_and_pictures(script, tmp_path):
    train, test = data.load("digits"), data.load("digits", "test")
    cfg = experiment.shape_to(train, ddpm.Config(network="mlp", hidden=(8,), num_steps=20))
    state = ddpm.init(jax.random.key(0), cfg)
    metrics = script.evaluate(
        jax.random.key(1),
        state,
        train,
        test,
        cfg,
        tmp_path,
        num_images=20,
        num_compared=100,
        settings={name: script.SETTINGS[name] for name in ("dpm_solver_pp 10", "ddim 50")},
    )
    names = [name for name in metrics if name.startswith("frechet")]
    assert [name.rsplit(", ")[1] for name in names] == ["dpm_solver_pp 10"]
    nats, bits = (metrics[name]["value"] for name in ("negative_elbo", "elbo_bits_per_dim"))
    assert bits == pytest.approx(nats / (64 * np.log(2)))
    assert bits > 4.0  # the network is untrained: digits have 17 levels
    assert {path.name for path in tmp_path.iterdir()} == {"forward.png", "backward.png", "samplers.png"}
