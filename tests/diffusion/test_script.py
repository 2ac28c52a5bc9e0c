"""The experiment script: the paper's network, and what an evaluation leaves."""

import dataclasses
import functools
import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxgen
from jaxgen import data, experiment
from jaxgen.autoencoder import vq_vae
from jaxgen.diffusion import ddpm, latent

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


@pytest.mark.slow
def test_latent_diffusion_trains_its_first_stage_or_takes_one(script, tmp_path):
    train, test = data.load("digits"), data.load("digits", "test")
    first_cfg = vq_vae.Config(hidden=(8,), num_codes=8, code_size=2)
    cfg = latent.config(first_cfg, network="mlp", hidden=(8,), num_steps=10, conditional=True, num_classes=10)
    options = experiment.Options(run_dir=tmp_path / "run", batch_size=64)
    found, state = script.first_stage(train, cfg, options, steps=5)
    assert found == cfg
    _, _, first = jaxgen.load(tmp_path / "run" / "first")
    assert int(first.step) == 5
    np.testing.assert_array_equal(state.first.params["codebook"], first.params["codebook"])
    codes = latent.encode(state, train[:2000]["image"], cfg)
    assert float(codes.std()) == pytest.approx(1.0, abs=1e-4)
    # A run may also start from it, whatever its own options say.
    options = dataclasses.replace(options, run_dir=None, start=tmp_path / "run" / "first")
    other = latent.config(vq_vae.Config(hidden=(3,)), **{"network": "mlp", "hidden": (8,)})
    found, again = script.first_stage(train, other, options, steps=1)
    assert latent.first_config(found) == first_cfg
    np.testing.assert_array_equal(again.first.params["codebook"], first.params["codebook"])
    with pytest.raises(ValueError, match=r"is of data \(8, 8, 1\), and these are \(4, 4, 1\)"):
        script.first_stage(train, dataclasses.replace(cfg, shape=(4, 4, 1)), options, steps=1)

    metrics = script.evaluate_latent(
        jax.random.key(1),
        state,
        train,
        test,
        cfg,
        tmp_path,
        num_compared=50,
        settings={"ddim 10": script.SETTINGS["ddim 10"]},
    )
    names = [name.rsplit(", ")[-1] for name in metrics if name.startswith("frechet")]
    assert names == ["ddim 10", "first stage alone", "reconstructions"]
    assert metrics["loss"]["value"] == pytest.approx(1.0, abs=0.05)  # the network is untrained
    pictures = {"reconstructions.png", "backward.png", "samplers.png"}
    assert {path.name for path in tmp_path.glob("*.png")} == pictures
