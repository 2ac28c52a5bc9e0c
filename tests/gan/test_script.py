"""The experiment script: its systems, and what it leaves of a conditional model of images."""

import json

import jax
import pytest
import tyro

from experiments import gan as experiment
from jaxgen import data, types, values
from jaxgen.gan import gan, presets
from jaxgen.gan.conditioning import Concat
from jaxgen.gan.networks import mlp
from jaxgen.gan.penalties import R1
from jaxgen.script import command_line

KEY = jax.random.key(0)


def test_every_preset_is_a_system():
    assert set(presets.PRESETS) < set(experiment.SYSTEMS)
    for name, system in experiment.SYSTEMS.items():
        count = system.config.packing * system.config.discriminator_steps
        assert system.options.batch_size % count == 0, name


@pytest.mark.slow
def test_pictures_and_labels_of_conditional_images(tmp_path):
    test = data.load("digits", "test")
    cfg = gan.Config(
        conditioning=Concat(),
        generator=mlp.Generator((8,)),
        discriminator=mlp.Discriminator((8,)),
        num_latents=4,
    )
    cfg = types.shape_to(test, cfg)
    (metric,) = experiment.evaluate(KEY, gan.init(KEY, cfg), None, test, cfg, tmp_path).values()
    assert metric["value"] < 0.5 < 0.95 < metric["floor"]
    assert {path.stem for path in tmp_path.glob("*.png")} == {"classes", "truncation", "interpolation"}


def test_parts_are_chosen_by_name_and_all_of_them_are_explained():
    words = {
        "generator": {"mlp", "dcgan", "resnet", "r3gan"},
        "discriminator": {"mlp", "dcgan", "resnet", "r3gan"},
        "penalty": {"none", "gradient_penalty", "dragan", "r1", "r2", "r1_r2"},
        "conditioning": {"none", "concat", "projection", "auxiliary", "info"},
        "augmentation": {"none", "diff_augment", "adaptive"},
        "instance-noise": {"none", "instance_noise"},
        "minibatch": {"none", "group_stddev", "minibatch_discrimination"},
    }
    found = command_line._alternatives(gan.Config(), deep=False)
    assert {name: set(found[name][1]) for name in words} == words
    for name, classes in words.items():
        for word in classes - {"none"}:
            cfg, rest = command_line.choose(gan.Config(), [f"--{name}", word])
            assert rest == []
            part = getattr(cfg, name.replace("-", "_"))
            assert type(part) is found[name][1][word]
            assert values.from_json(json.loads(json.dumps(values.to_json(part)))) == part
            sentences = command_line.sentences(type(part))
            for field in values.options(part):
                assert sentences[field.name].endswith("."), (word, field.name)
    arguments = ["--generator", "dcgan", "--penalty", "r1", "--augmentation", "adaptive"]
    cfg, rest = command_line.choose(gan.Config(), arguments)
    options = tyro.cli(
        command_line.option_type(cfg, "model"), args=["--penalty.gamma", "0.5", "--penalty.every", "4"]
    )
    assert command_line.chosen(options).penalty == R1(0.5, every=4)
