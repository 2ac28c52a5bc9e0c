"""Adversarial models: train one of the classic papers, evaluate and picture it.

python experiments/gan.py dcgan --data fashion_mnist
python experiments/gan.py ring_pacgan
python experiments/gan.py ring_pacgan --data grid
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import plot
from jaxgen.evaluation import features, report, samples
from jaxgen.experiment import Options, System, main
from jaxgen.gan import gan, presets
from jaxgen.latent import interpolate

NUM_POINTS = 2500
"""Samples of a mixture that are judged, as in Lin et al. 2018."""
SIDE = 10


def evaluate(key, state, train, test, cfg, folder):
    """Pictures, and how often samples have the label asked for; distances are measured for every run.

    One row of the picture classes.png is a class, one of truncation.png a limit on the codes, one of
    interpolation.png an arc between two codes.
    """
    del train
    if len(cfg.shape) == 1:
        x = samples.draw(key, gan, state, NUM_POINTS, cfg)
        plot.save_points(folder / "points.png", {"data": test[:NUM_POINTS]["x"], "samples": x})
        return {}
    conditional = cfg.conditioning != "none"
    if conditional:
        label = jnp.repeat(jnp.arange(gan.num_labels(cfg)), SIDE)
        plot.save_grid(folder / "classes.png", gan.sample(key, state, len(label), cfg, label=label), SIDE)
    rows = [gan.sample(key, state, SIDE, cfg, truncation=limit) for limit in (0.25, 0.5, 1.0, 2.0)]
    plot.save_grid(folder / "truncation.png", jnp.concatenate(rows), SIDE)
    ends = jax.random.normal(key, (2, 6, cfg.num_latents))
    z = interpolate.path(*ends, SIDE, interpolate.slerp).swapaxes(0, 1).reshape(-1, cfg.num_latents)
    label = jnp.repeat(jnp.arange(6) % gan.num_labels(cfg), SIDE) if conditional else None
    plot.save_grid(folder / "interpolation.png", gan.decode(state, z, cfg, label), SIDE)
    return label_accuracy(key, state, test, cfg) if conditional and cfg.conditioning != "info" else {}


def label_accuracy(key, state, test, cfg):
    """How often the classifier of the data set sees the label asked for; the floor is on test images."""
    if samples.default_extractor(test) != "small-cnn":
        return {}
    extractor = features.load("small-cnn", test)
    n = min(len(test), 5000)
    label = np.arange(n) % cfg.num_classes
    draw = jax.jit(lambda key, label: gan.sample(key, state, len(label), cfg, label=label))
    parts = np.array_split(label, -(-n // 500))
    fake = np.concatenate([draw(jax.random.fold_in(key, index), part) for index, part in enumerate(parts)])
    found, floor = (
        (features.probabilities(extractor, images).argmax(-1) == wanted).mean()
        for images, wanted in ((fake, label), (test[:n]["image"], test[:n]["label"]))
    )
    return {f"label_accuracy ({extractor.name})": report.metric(found, "of samples", n, floor)}


PACGAN = "Lin et al. 2018, table 1 (ring of radius 1, std 0.01)"
RING = {"gan": (6.3, 0.982, 0.45), "pacgan": (7.9, 0.956, 0.07)}
GRID = {"gan": (17.3, 0.948, 0.70), "pacgan": (23.8, 0.913, 0.13)}


def published(name):
    """The figures of Lin et al. for the mixtures, by (data, metric)."""
    return {
        (data_name, metric): (value, PACGAN)
        for data_name, rows in (("ring", RING), ("grid", GRID))
        for metric, value in zip(("modes", "high_quality", "reverse_kl"), rows.get(name, ()), strict=False)
    }


def on_points(name, paper, config, **changes):
    """A system for mixtures of points: batches of 100 judgements, as in Lin et al. 2018."""
    count = config.packing * config.discriminator_steps
    return System(
        family=gan,
        config=presets.points(config, learning_rate=1e-4, **changes),
        paper=paper,
        options=Options(
            data="ring",
            steps=10_000,
            batch_size=100 * count,
            sample_every=2000,
            num_samples=NUM_POINTS,
        ),
        evaluate=evaluate,
        published=published(name),
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
PACKED = dataclasses.replace(presets.NSGAN, packing=2)
SYSTEMS |= {
    "ring_gan": on_points("gan", "Goodfellow et al. 2014", presets.NSGAN, beta1=0.8),
    "ring_pacgan": on_points("pacgan", "Lin et al. 2018", PACKED, beta1=0.8),
    "ring_wgan_gp": on_points("wgan_gp", "Gulrajani et al. 2017", presets.WGAN_GP, penalty_weight=0.1),
    "ring_r3gan": on_points("r3gan", "Huang et al. 2024", presets.R3GAN, penalty_weight=0.1),
}

if __name__ == "__main__":
    main(SYSTEMS)
