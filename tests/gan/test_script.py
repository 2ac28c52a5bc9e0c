"""The experiment script: its systems, and what it leaves of a conditional model of images."""

import importlib.util
from pathlib import Path

import jax
import pytest

from jaxgen import data, experiment
from jaxgen.gan import gan, presets

SCRIPT = Path(__file__).parents[2] / "experiments" / "gan.py"
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("gan_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_preset_is_a_system(script):
    assert set(presets.PRESETS) < set(script.SYSTEMS)
    for name, system in script.SYSTEMS.items():
        count = system.config.packing * system.config.discriminator_steps
        assert system.options.batch_size % count == 0, name
    assert script.SYSTEMS["ring_pacgan"].published["grid", "modes"][0] == 23.8


def test_pictures_and_labels_of_conditional_images(script, tmp_path):
    test = data.load("digits", "test")
    cfg = gan.Config(conditioning="concat", generator_widths=(8,), discriminator_widths=(8,), num_latents=4)
    cfg = experiment.shape_to(test, cfg)
    (metric,) = script.evaluate(KEY, gan.init(KEY, cfg), None, test, cfg, tmp_path).values()
    assert metric["value"] < 0.5 < 0.95 < metric["floor"]
    assert {path.stem for path in tmp_path.glob("*.png")} == {"classes", "truncation", "interpolation"}
