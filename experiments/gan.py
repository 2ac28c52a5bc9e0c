"""Adversarial models: train one of the classic papers, evaluate and picture it.

python experiments/gan.py dcgan --data fashion_mnist
python experiments/gan.py ring_pacgan
python experiments/gan.py ring_pacgan --data grid
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import data, plot
from jaxgen.data import points
from jaxgen.evaluation import features, frechet, kid, modes, prdc, report
from jaxgen.experiment import Options, System, main
from jaxgen.gan import gan, presets

MIXTURES = {
    "ring": (points.ring_centers(), points.RING_STD),
    "grid": (points.grid_centers(), points.GRID_STD),
}
NUM_POINTS = 2500
"""Samples of a mixture that are judged, as in Lin et al. 2018."""
SMALL_CNN = ("digits", "mnist", "fashion_mnist")
"""Sets with a classifier of their own for features."""
MOST_IMAGES = 5000
"""Images that are judged at most; as many as there are in the test set."""


def evaluate(key, state, test, cfg, folder):
    """Modes of a mixture of points, or distances of images by their features, beside what real data get."""
    if len(cfg.shape) == 3:
        return evaluate_images(key, state, test, cfg, folder)
    x = draw(key, state, cfg, NUM_POINTS)
    real = test[:NUM_POINTS]["x"]
    plot.save_points(folder / "points.png", {"data": real, "samples": x})
    if test.name not in MIXTURES:
        distance, error = kid.kernel_distance(real, x, key=key)
        return {"kernel_distance": report.metric(distance, f"+- {error:.2g}", len(x))}
    floors = modes.mode_statistics(real, *MIXTURES[test.name])
    units = {"modes": f"of {len(MIXTURES[test.name][0])}", "high_quality": "share", "reverse_kl": "nats"}
    return {
        name: report.metric(value, units[name], len(x), floors[name])
        for name, value in modes.mode_statistics(x, *MIXTURES[test.name]).items()
    }


def evaluate_images(key, state, test, cfg, folder):
    """Frechet and kernel distance, precision, recall, density, coverage: samples against test images.

    Floors are of training images against the same test images, as many of each. One row of the picture
    classes.png is a class, one of truncation.png a limit on the codes, one of interpolation.png a way between
    two codes.
    """
    pictures(key, state, test, cfg, folder)
    train = data.load(test.name, "train")
    extractor = features.load("small-cnn" if test.name in SMALL_CNN else "random-conv", test)
    n = min(len(test), MOST_IMAGES)
    chosen = np.sort(np.random.default_rng(0).permutation(len(train))[: min(n, len(train))])
    reference, floor, fake = (
        features.of(extractor, images)
        for images in (test[:n]["image"], train[chosen]["image"], draw(key, state, cfg, n))
    )
    rows = {"value": measure(key, reference, fake), "floor": measure(key, reference, floor)}
    unit = {"frechet_distance": extractor.name, "kernel_distance": extractor.name}
    metrics = {
        name: report.metric(value, unit.get(name, "share"), n, rows["floor"][name])
        for name, value in rows["value"].items()
    }
    if cfg.conditioning not in ("none", "info") and extractor.classify is not None:
        label = np.arange(n) % cfg.num_classes
        shares = [
            (features.probabilities(extractor, images).argmax(-1) == labels).mean()
            for images, labels in (
                (draw(key, state, cfg, n, label), label),
                (test[:n]["image"], test[:n]["label"]),
            )
        ]
        metrics["label_accuracy"] = report.metric(shares[0], f"share, by {extractor.name}", n, shares[1])
    return metrics


def measure(key, real, fake):
    moments = [(x.mean(0, np.float64), np.cov(x.astype(np.float64), rowvar=False)) for x in (real, fake)]
    return {
        "frechet_distance": frechet.frechet_distance(*moments[0], *moments[1]),
        "kernel_distance": kid.kernel_distance(real, fake, key=key)[0],
        **prdc.prdc(real, fake, k=5),
    }


def pictures(key, state, test, cfg, folder):
    side = 10
    if cfg.conditioning != "none":
        label = jnp.repeat(jnp.arange(gan.num_labels(cfg)), side)
        plot.save_grid(folder / "classes.png", gan.sample(key, state, len(label), cfg, label=label), side)
    limits = (0.25, 0.5, 1.0, 2.0)
    rows = [gan.sample(key, state, side, cfg, truncation=limit) for limit in limits]
    plot.save_grid(folder / "truncation.png", jnp.concatenate(rows), side)
    first, second = jax.random.normal(key, (2, 6, 1, cfg.num_latents))
    z = slerp(first, second, jnp.linspace(0, 1, side)[:, None]).reshape(-1, cfg.num_latents)
    label = (
        jnp.repeat(jnp.arange(6) % max(gan.num_labels(cfg), 1), side) if cfg.conditioning != "none" else None
    )
    plot.save_grid(folder / "interpolation.png", gan.decode(state, z, cfg, label), side)


def slerp(first, second, share):
    """The way from code to code (..., L) along a great circle, by angle and by length; shares (S, 1)."""
    norms = [jnp.linalg.norm(z, axis=-1, keepdims=True) for z in (first, second)]
    cosine = (first * second).sum(-1, keepdims=True) / (norms[0] * norms[1])
    angle = jnp.arccos(jnp.clip(cosine, -1 + 1e-6, 1 - 1e-6))
    return (jnp.sin((1 - share) * angle) * first + jnp.sin(share * angle) * second) / jnp.sin(angle)


def draw(key, state, cfg, n, label=None, batch_size=500):
    """n samples, of classes `label` (n,) if given, a batch at a time, on the host."""
    sample = jax.jit(lambda key, state, label: gan.sample(key, state, batch_size, cfg, label=label))
    batches = -(-n // batch_size)
    if label is None:
        labels = [None] * batches
    else:
        labels = np.resize(label, (batches, batch_size))
    keys = jax.random.split(key, batches)
    drawn = [np.asarray(sample(*pair)) for pair in zip(keys, [state] * batches, labels, strict=True)]
    return np.concatenate(drawn)[:n]


PACGAN = "Lin et al. 2018, table 1 (ring of radius 1, std 0.01; reverse KL of high-quality samples only)"
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
        options=Options(data="ring", steps=10_000, batch_size=100 * count, sample_every=2000),
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
