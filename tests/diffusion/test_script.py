"""The experiment script: the paper's network, and what an evaluation leaves."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

import jaxgen
from experiments import diffusion as experiment
from jaxgen import data, script, types
from jaxgen.autoencoder import vq_vae
from jaxgen.autoencoder.networks import DenseDecoder
from jaxgen.autoencoder.vector_networks import DenseEncoder
from jaxgen.autoregressive import codes, pixelcnn
from jaxgen.diffusion import ddpm, latent
from jaxgen.diffusion.networks import MLP
from jaxgen.script import result, stages


def test_the_network_for_cifar10_is_that_of_the_paper():
    cfg = dataclasses.replace(experiment.SYSTEMS["ddpm_cifar10"].config, shape=(32, 32, 3))
    state = jax.eval_shape(functools.partial(ddpm.init, cfg=cfg), jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(state.params)) == 35_746_307
    published = experiment.SYSTEMS["ddpm_cifar10"].published
    assert set(published) == {("cifar10", "negative_elbo_bits_per_dim")}  # others are of another protocol


@pytest.mark.slow
def test_an_evaluation_leaves_numbers_and_pictures(tmp_path):
    train, test = data.load("digits"), data.load("digits", "test")
    cfg = types.from_data(ddpm, train, ddpm.Config(network=MLP((8,)), num_steps=20))
    state = ddpm.init(jax.random.key(0), cfg)
    metrics = experiment.evaluate(
        jax.random.key(1),
        state,
        train,
        test,
        cfg,
        tmp_path,
        num_images=20,
        num_compared=100,
        settings={name: experiment.SETTINGS[name] for name in ("dpm_solver_pp 10", "ddim 50")},
    )
    names = [name for name in metrics if name.startswith("frechet")]
    assert [name.rsplit(", ")[1] for name in names] == ["dpm_solver_pp 10"]
    nats, bits = (metrics[name]["value"] for name in ("negative_elbo", "negative_elbo_bits_per_dim"))
    assert bits == pytest.approx(nats / (64 * np.log(2)))
    assert bits > np.log2(17) - 1  # the network is untrained, and digits have 17 levels
    assert {path.name for path in tmp_path.iterdir()} == {"forward.png", "backward.png", "samplers.png"}


def test_a_model_that_cannot_be_built_around_its_first_stage_is_refused_before_that_is_trained(tmp_path):
    train = data.load("digits")
    cfg = types.from_data(codes, train, codes.Config(prior=pixelcnn.Config()))
    options = script.Options(run_dir=tmp_path / "run")
    with pytest.raises(ValueError, match="try a Transformer"):
        stages.first_stage(train, cfg, options, steps=1)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_latent_diffusion_trains_its_first_stage_or_takes_one(tmp_path):
    first_cfg = vq_vae.Config(
        encoder=DenseEncoder(8, (8,)), decoder=DenseDecoder((8,)), num_codes=8, code_size=2
    )
    tiny = ddpm.Config(network=MLP((8,)), num_steps=10)
    settings = {"ddim 10": experiment.SETTINGS["ddim 10"]}
    system = experiment.System(
        family=latent,
        config=latent.Config(first=first_cfg, prior=tiny),
        paper="",
        evaluate=functools.partial(experiment.evaluate_latent, num_compared=50, settings=settings),
        before=functools.partial(stages.first_stage, steps=5),
    )
    options = experiment.Options(steps=2, batch_size=64, num_samples=0, run_dir=tmp_path / "run")
    state = script.run_system("latent", system, options, system.config)
    _, _, first = jaxgen.load(tmp_path / "run" / "first")
    assert (int(first.step), int(state.step)) == (5, 2)
    np.testing.assert_array_equal(state.first.params["codebook"], first.params["codebook"])
    train = data.load("digits")
    codes = latent.encode(state, train[:2000]["image"], system.config)
    assert float(codes.std()) == pytest.approx(1.0, abs=1e-4)
    metrics = json.loads((tmp_path / "run" / "report.json").read_text())["metrics"]
    names = [name.rsplit(", ")[-1] for name in metrics if name.startswith("frechet")]
    assert names == ["ddim 10", "first stage alone", "reconstructions"]
    assert metrics["loss"]["value"] == pytest.approx(1.0, abs=0.1)  # the network is hardly trained
    pictures = {path.name for path in (tmp_path / "run").glob("*.png")}
    assert {"reconstructions.png", "backward.png", "samplers.png"} < pictures
    assert result.training_minutes(tmp_path / "run") > result.training_minutes(tmp_path / "run" / "first") > 0

    # Another run starts from that first stage, whatever its own options say, or from the whole.
    other = latent.Config(
        first=vq_vae.Config(encoder=DenseEncoder(8, (3,)), decoder=DenseDecoder((3,))), prior=tiny
    )
    options = experiment.Options(start=tmp_path / "run" / "first")
    cfg, again = system.before(train, other, options)
    assert latent.first_config(cfg) == first_cfg
    np.testing.assert_array_equal(again.first.params["codebook"], first.params["codebook"])
    with pytest.raises(ValueError, match=r"is of data \(8, 8, 1\), and these are \(4, 4, 1\)"):
        system.before(train, dataclasses.replace(other, shape=(4, 4, 1)), options)
    options = experiment.Options(start=tmp_path / "run")
    np.testing.assert_array_equal(system.before(train, cfg, options)[1].scale, state.scale)
