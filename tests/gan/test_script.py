"""The experiment script: its evaluation of points and of images, and the way between two codes."""

import dataclasses
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
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


def test_points_are_judged_by_their_modes(script, tmp_path):
    test = data.load("ring", "test")
    config = presets.points(presets.NSGAN)
    cfg = dataclasses.replace(config, generator_widths=(8,), discriminator_widths=(8,))
    metrics = script.evaluate(KEY, gan.init(KEY, cfg), test, cfg, tmp_path)
    assert metrics["modes"]["value"] == 0
    assert metrics["modes"]["floor"] == 8
    assert metrics["high_quality"]["floor"] == pytest.approx(0.989, abs=0.01)
    assert (tmp_path / "points.png").exists()


def test_images_are_judged_beside_real_ones(script, tmp_path):
    test = data.load("digits", "test")
    cfg = gan.Config(conditioning="concat", generator_widths=(8,), discriminator_widths=(8,), num_latents=4)
    cfg = experiment.shape_to(test, cfg)
    metrics = script.evaluate(KEY, gan.init(KEY, cfg), test, cfg, tmp_path)
    assert metrics["frechet_distance"]["value"] > 10 * metrics["frechet_distance"]["floor"] > 0
    assert metrics["precision"]["value"] < 0.4 < 0.8 < metrics["precision"]["floor"]
    assert metrics["label_accuracy"]["floor"] > 0.95
    assert {path.stem for path in tmp_path.glob("*.png")} == {"classes", "truncation", "interpolation"}


def test_slerp_turns_at_an_even_rate(script):
    first, second = jax.random.normal(KEY, (2, 3, 1, 6))
    way = script.slerp(first, second, jnp.linspace(0, 1, 5)[:, None])
    np.testing.assert_allclose(way[:, 0], first[:, 0], atol=1e-5)
    np.testing.assert_allclose(way[:, -1], second[:, 0], atol=1e-5)
    unit = [z / np.linalg.norm(z, axis=-1, keepdims=True) for z in (first, second)]
    along = script.slerp(*unit, jnp.linspace(0, 1, 5)[:, None])
    np.testing.assert_allclose(np.linalg.norm(along, axis=-1), 1, rtol=1e-5)
    steps = (along[:, 1:] * along[:, :-1]).sum(-1)
    np.testing.assert_allclose(steps, steps[:, :1] * np.ones(4), rtol=1e-5)
