"""Adversarial models: train one of the classic papers, evaluate and picture it.

python experiments/gan.py dcgan --data fashion_mnist
python experiments/gan.py ring_pacgan
python experiments/gan.py ring_pacgan --data grid
python experiments/gan.py stacked_pacgan
"""

import jaxgen.interrupts  # noqa: F401 - first, see there

import dataclasses

import jax.numpy as jnp
import numpy as np

from jaxgen import data, plot, script
from jaxgen.evaluation import features, modes, samples
from jaxgen.evaluation.metric import metric
from jaxgen.gan import conditioning, gan, presets
from jaxgen.latent import interpolate
from jaxgen.script import Options, System, main, pictures

NUM_STACKED = 26_000
"""Pictures of three digits that are judged, as in Lin et al. 2018."""
NUM_POINTS = 2500
"""Samples of a mixture that are judged, as in Lin et al. 2018."""
SIDE = 10


def evaluate(key, state, train, test, cfg, folder):
    """Pictures, and how often samples have the label asked for; distances are measured for every run.

    One row of the picture classes.png is a class, one of truncation.png a limit on the codes, one of
    interpolation.png an arc between two codes, one of codes.png a continuous code of InfoGAN.
    """
    del train
    if len(cfg.shape) == 1:
        x = samples.drawn(key, script.sampler(gan, state, cfg), NUM_POINTS)
        pictures.save_points(folder, test[:NUM_POINTS]["x"], x)
        return {}
    classes = gan.num_labels(cfg)
    if classes:
        draw = lambda label: gan.sample(key, state, len(label), cfg, label=label)
        names = () if isinstance(cfg.conditioning, conditioning.Info) else test.label_names
        pictures.save_classes(folder, draw, classes, names)
    limits = (0.25, 0.5, 1.0, 2.0)
    plot.save_grid(
        folder / "truncation.png",
        jnp.concatenate([gan.sample(key, state, SIDE, cfg, truncation=limit) for limit in limits]),
        SIDE,
        row_titles=[f"{limit:g}" for limit in limits],
        caption="Samples of codes whose entries are kept below a limit, a row for each limit.",
    )
    ends = gan.draw_codes(key, 12, cfg).reshape(2, 6, -1)
    z = interpolate.path(*ends, SIDE, interpolate.slerp).swapaxes(0, 1).reshape(SIDE * 6, -1)
    label = jnp.repeat(jnp.arange(6) % classes, SIDE) if classes else None
    caption = "Arcs between two random codes, a row each."
    plot.save_grid(folder / "interpolation.png", gan.decode(state, z, cfg, label), SIDE, caption=caption)
    if gan.conditioning_of(cfg).num_continuous_codes:
        save_codes(folder / "codes.png", ends[0, 0], state, cfg)
    if not classes or isinstance(cfg.conditioning, conditioning.Info):
        return {}
    draw = lambda key, label: gan.sample(key, state, len(label), cfg, label=label)
    return samples.label_accuracy(key, draw, test, min(len(test), 5000))


def save_codes(path, z, state, cfg):
    """Each continuous code in turn from -2 to 2, twice as far as in training, under three of the classes."""
    dimensions = range(cfg.num_latents, len(z))
    rows = [interpolate.traverse(z, dimension, jnp.linspace(-2, 2, SIDE)) for dimension in dimensions]
    codes, classes = jnp.concatenate(rows), range(min(3, gan.num_labels(cfg))) or [None]
    images = [gan.decode(state, codes, cfg, label) for label in classes]
    titles = [f"code {index}" for index in range(len(rows))] * len(classes)
    caption = "Every continuous code from -2 to 2 while all others stay, under one class after the other."
    plot.save_grid(path, jnp.concatenate(images), SIDE, row_titles=titles, caption=caption)


def evaluate_stacked(key, state, train, test, cfg, folder):
    """How many of the thousand triples of digits are among the samples, by a classifier of each channel."""
    x = samples.drawn(key, script.sampler(gan, state, cfg), NUM_STACKED)
    reached, floor = (modes.stacked_mode_statistics(read_digits(images)) for images in (x, test[:]["image"]))
    return {
        "modes": metric(reached["modes"], "of 1000", len(x), floor["modes"]),
        "reverse_kl": metric(reached["reverse_kl"], "nats", len(x), floor["reverse_kl"]),
    }


def read_digits(images):
    """The digit that the classifier of MNIST sees in each channel of images (N, 28, 28, C), (N, C)."""
    channels = np.moveaxis(images, -1, 0)[..., None]
    extractor = features.load("small-cnn", data.Dataset("mnist", "test", {"image": channels[0]}))
    return np.stack([features.probabilities(extractor, channel).argmax(-1) for channel in channels], 1)


def on_stacked(preset):
    """A system for stacked MNIST in a tenth of the 100,000 steps of Lin et al. 2018.

    After these, their DCGAN has 78.9 modes and a reverse KL of 4.50, their PacDCGAN 1000 and 0.06.
    """
    config = dataclasses.replace(preset, shape=(28, 28, 3))
    return System(
        family=gan,
        config=config,
        paper="Lin et al. 2018",
        options=Options(data="stacked_mnist", steps=10_000, batch_size=64 * config.packing, num_samples=2000),
        evaluate=evaluate_stacked,
    )


def on_points(name):
    """A system for mixtures of points, in the protocol of Lin et al. 2018.

    R3GAN trains as long as for its numbers in results/modes; after 10,000 steps its quality is lower.
    """
    preset, steps = presets.POINTS[name], 30_000 if name == "r3gan" else 10_000
    return System(
        family=gan,
        config=presets.decaying(preset.config, steps) if preset.decays else preset.config,
        paper=preset.paper,
        options=Options(
            data="ring",
            steps=steps,
            batch_size=preset.batch_size,
            sample_every=2000,
            num_samples=NUM_POINTS,
        ),
        evaluate=evaluate,
    )


SYSTEMS = {
    name: System(
        family=gan,
        config=preset.config,
        paper=preset.paper,
        options=Options(steps=5000, batch_size=64 * preset.config.discriminator_steps),
        evaluate=evaluate,
    )
    for name, preset in presets.PRESETS.items()
}
SYSTEMS |= {
    "stacked_dcgan": on_stacked(presets.DCGAN),
    "stacked_pacgan": on_stacked(presets.PACGAN),
}
SYSTEMS |= {f"ring_{name}": on_points(name) for name in presets.POINTS}

if __name__ == "__main__":
    main(SYSTEMS)
