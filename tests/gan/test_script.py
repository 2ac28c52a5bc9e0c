"""The experiment script: its systems, and what it leaves of a conditional model of images."""

import jax

from experiments import gan as experiment
from jaxgen import data, types
from jaxgen.gan import gan, presets

KEY = jax.random.key(0)


def test_every_preset_is_a_system():
    assert set(presets.PRESETS) < set(experiment.SYSTEMS)
    for name, system in experiment.SYSTEMS.items():
        count = system.config.packing * system.config.discriminator_steps
        assert system.options.batch_size % count == 0, name
    assert experiment.SYSTEMS["ring_pacgan"].published["grid", "modes"][0] == 23.8


def test_pictures_and_labels_of_conditional_images(tmp_path):
    test = data.load("digits", "test")
    cfg = gan.Config(conditioning="concat", generator_widths=(8,), discriminator_widths=(8,), num_latents=4)
    cfg = types.shape_to(test, cfg)
    (metric,) = experiment.evaluate(KEY, gan.init(KEY, cfg), None, test, cfg, tmp_path).values()
    assert metric["value"] < 0.5 < 0.95 < metric["floor"]
    assert {path.stem for path in tmp_path.glob("*.png")} == {"classes", "truncation", "interpolation"}
