"""Evaluation itself, put to the test: which metrics notice that real data are spoilt?

python experiments/studies/calibration.py --data fashion_mnist

Frechet and kernel distance, recall and coverage do under all nine kinds of damage. Precision and density rise
under weak noise, and do not notice copies or missing classes.
"""

import jaxgen.interrupts  # noqa: F401 - first, see there

import dataclasses
import time
from pathlib import Path

import jax
import numpy as np
import scipy.ndimage

from jaxgen import data, plot, script
from jaxgen.evaluation import features, frechet, kid, prdc, scores
from jaxgen.run import directory
from jaxgen.script import result

COLUMNS = ("frechet", "kernel", "classifier_score", "precision", "recall", "density", "coverage")
BLURS, NOISES, COPIES = (0.5, 1.0, 2.0), (0.1, 0.2, 0.4), (2, 10)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Real training images against real test images, and against spoilt ones."""

    data: str = "fashion_mnist"
    """A set of labelled images."""
    data_dir: Path | None = None
    """Where prepared data sets lie."""
    extractor: str = "small-cnn"
    """Features the metrics are taken of."""
    seed: int = 0
    """Of the noise and of the subsets."""
    results: Path = Path("experiments/results/calibration")
    """Folder for the table."""


def spoil(images: np.ndarray, labels: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """The test images (N, H, W, C) as they are and spoilt, all sets as large as the one short of a class."""
    count = int((labels != 0).sum())
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(images))
    some = images[order[:count]]
    blur = lambda sigma: scipy.ndimage.gaussian_filter(some, (0, sigma, sigma, 0))
    noise = lambda sigma: np.clip(some + sigma * rng.standard_normal(some.shape, np.float32), -1, 1)
    return {
        "real": some,
        **{f"blurred {sigma}": blur(sigma) for sigma in BLURS},
        **{f"noised {sigma}": noise(sigma) for sigma in NOISES},
        "one class dropped": images[labels != 0],
        **{f"each {n} times": some[rng.permutation(count) // n] for n in COPIES},
    }


def measure(
    reference: np.ndarray, extractor: features.Extractor, images: np.ndarray, key: jax.Array
) -> dict[str, float]:
    """Every metric of `images` against the features of the reference."""
    fake = features.of(extractor, images)
    moments = [(x.mean(0, np.float64), np.cov(x.astype(np.float64), rowvar=False)) for x in (reference, fake)]
    size = min(1000, len(fake), len(reference))
    return {
        "frechet": frechet.frechet_distance(*moments[0], *moments[1]),
        "kernel": kid.kernel_distance(reference, fake, subset_size=size, key=key)[0],
        "classifier_score": scores.classifier_score(features.probabilities(extractor, images))[0],
        **prdc.prdc(reference, fake, k=5),
    }


def calibrate(options: Options) -> dict[str, dict[str, float]]:
    """Every metric of every set of `spoil` against as many training images."""
    train, test = (data.load(options.data, split, options.data_dir) for split in ("train", "test"))
    extractor = features.load(options.extractor, train)
    everything = test[:]
    sets = spoil(everything["image"], everything["label"], options.seed)
    rng = np.random.default_rng(options.seed)
    chosen = np.sort(rng.permutation(len(train))[: len(sets["real"])])
    reference = features.of(extractor, train[chosen]["image"])
    key = jax.random.key(options.seed)
    return {name: measure(reference, extractor, images, key) for name, images in sets.items()}


def table(rows: dict[str, dict[str, float]]) -> str:
    """Markdown, a row a set."""
    lines = ["| Test images | " + " | ".join(COLUMNS) + " |", "|" + "---|" * (len(COLUMNS) + 1)]
    for name, row in rows.items():
        lines.append(f"| {name} | " + " | ".join(f"{row[column]:.4g}" for column in COLUMNS) + " |")
    return "\n".join(lines) + "\n"


def main(options: Options) -> None:
    """Print the table and write it as JSON and Markdown, with a picture of the spoilt images."""
    since = time.perf_counter()
    rows = calibrate(options)
    train, test = (data.load(options.data, split, options.data_dir) for split in ("train", "test"))
    sets = spoil(test[:]["image"], test[:]["label"], options.seed)
    stem = options.results / result.file_name(options.data)
    stem.parent.mkdir(parents=True, exist_ok=True)
    plot.save_grid(stem.with_suffix(".png"), np.concatenate([x[:12] for x in sets.values()]), columns=12)
    facts = {
        "data": options.data,
        "extractor": features.load(options.extractor, train).name,
        "n": len(sets["real"]),
        "seed": options.seed,
    }
    result.save(stem.with_suffix(".json"), {**facts, "rows": rows}, since)
    head = f"Features of {facts['extractor']}, {facts['n']} training against {facts['n']} test images.\n\n"
    directory.write_text(stem.with_suffix(".md"), head + table(rows))
    print(head + table(rows))


if __name__ == "__main__":
    script.run_script(main, Options)
