"""How near a model's samples come to held-out data: every distance of `evaluation`, with its floor.

Each number stands beside its floor, the same number for as many real training examples in place of samples:
the mean and the standard deviation over `FLOOR_DRAWS` random choices of them. The features of the default
extractor were fitted on the training split, so training examples may score a little better than fresh data
of the same law would. Differences of the size of the spread rank nothing.

Pictures go through a feature extractor, whose name is part of the metric's; points are compared as they are,
and where the data have known modes these are counted. Sequences of symbols have no such distances.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from jaxgen import plot
from jaxgen.evaluation import features, frechet, kid, memorisation, modes, prdc, scores
from jaxgen.evaluation.features import small_cnn
from jaxgen.evaluation.metric import Metric, metric
from jaxgen.types import observed

FLOOR_DRAWS = 10
"""Choices of training examples over which a floor and its spread are taken."""

SUBSET_SIZE = 1000
"""Examples of a subset of the kernel distance."""

NUM_SHOWN = 24
"""Samples shown with their neighbours."""

Draw = Callable[[Array, int], Any]
"""(key, n) -> n samples."""


def measure(
    draw: Draw,
    train: Any,
    test: Any,
    n: int = 10_000,
    extractor: str | None = None,
    *,
    key: Array | None = None,
    folder: Path | None = None,
) -> dict[str, Metric]:
    """Distances between samples and the test split, as many of each as there are at most; by name.

    Args:
        draw: (key, n) -> n samples, in the space of the data. It is called with one n for all batches but is
            not compiled here: give a compiled function where that is worth it.
        train: the training split, all of it: the floor is of its examples, and samples nearer to it than to
            the test split show what the model has memorised.
        test: the test split.
        n: most samples to draw; the test split and the training split may hold fewer.
        extractor: features of pictures, by name (`features.load`); by default the small network trained on
            this data set if there is one, else random convolutions.
        key: of the draws and of the choice of examples; `jax.random.key(0)` by default.
        folder: where to leave neighbours.png, samples over the training examples nearest to them.

    Raises:
        ValueError: samples that are not finite, or pictures the extractor cannot take.
    """
    if np.issubdtype(np.asarray(observed(test[:1])).dtype, np.integer):
        return {}
    draw_key, rows_key, subsets_key = jax.random.split(jax.random.key(0) if key is None else key, 3)
    n = min(n, len(test), len(train))
    fake = drawn(draw_key, draw, n)
    real = np.asarray(observed(test[_rows(jax.random.fold_in(rows_key, 0), len(test), n)]))
    controls = [_rows(jax.random.fold_in(rows_key, 1 + index), len(train), n) for index in range(FLOOR_DRAWS)]
    if fake.ndim != 4:
        everything = np.asarray(observed(train[:])).reshape(len(train), -1)
        found = _compare(real.reshape(n, -1), everything, controls, fake.reshape(n, -1), key=subsets_key)
        if getattr(test, "modes", None) is not None:
            found |= _modes(test.modes, fake, [everything[rows] for rows in controls])
        return _metrics(found, n, "")
    loaded = features.load(extractor or default_extractor(train), train)
    fake = np.clip(fake, -1, 1)
    of_real, of_train, of_fake = (features.of(loaded, x) for x in (real, train, fake))
    found = _compare(of_real, of_train, controls, of_fake, key=subsets_key)
    if loaded.classify is not None:
        sets = features.probabilities(loaded, fake), features.probabilities(loaded, train)
        score = lambda probabilities: {"classifier_score": scores.classifier_score(probabilities)[0]}
        found |= _beside_floors(score(sets[0]), [score(sets[1][rows]) for rows in controls])
    if folder is not None:
        nearest, _ = memorisation.nearest_training(of_fake[:NUM_SHOWN], of_train)
        plot.save_pairs(folder / "neighbours.png", fake[:NUM_SHOWN], train[nearest]["image"])
    return _metrics(found, n, f" ({loaded.name})")


def default_extractor(dataset: Any) -> str:
    """The best extractor of a set of pictures that needs nothing: "small-cnn" or "random-conv"."""
    size = small_cnn.SIZES.get(dataset.name)
    return "small-cnn" if dataset.shape == (size, size, 1) else "random-conv"


def drawn(key: Array, draw: Draw, n: int, batch_size: int = 500) -> np.ndarray:
    """n samples of draw(key, batch_size), a batch at a time, (n, *shape) float32."""
    batch_size = min(batch_size, n)
    keys = (jax.random.fold_in(key, index) for index in range(-(-n // batch_size)))
    return np.concatenate([np.asarray(draw(key, batch_size), np.float32) for key in keys])[:n]


def label_accuracy(key: Array, draw: Any, test: Any, n: int) -> dict[str, Metric]:
    """How often the classifier of the data set sees the label asked for in n samples, as many of each.

    Args:
        draw: (key, labels (m,)) -> pictures (m, H, W, C), which is compiled.

    The floor is on test images. Empty for data sets without a classifier.
    """
    if default_extractor(test) != "small-cnn":
        return {}
    extractor = features.load("small-cnn", test)
    label = np.arange(n) % test.num_classes
    drawn, floor = (
        (features.probabilities(extractor, images).argmax(-1) == wanted).mean()
        for images, wanted in ((of_labels(key, draw, label), label), (test[:n]["image"], test[:n]["label"]))
    )
    return {f"label_accuracy ({extractor.name})": metric(drawn, "of samples", n, floor)}


def of_labels(key: Array, draw: Any, label: np.ndarray, *arguments: Any, batch_size: int = 500) -> np.ndarray:
    """Samples of labels (N,) by draw(key, labels, *arguments), compiled, a batch at a time, (N, *shape)."""
    compiled, parts = jax.jit(draw), np.array_split(label, -(-len(label) // batch_size))
    keys = (jax.random.fold_in(key, index) for index in range(len(parts)))
    drawn = (compiled(key, part, *arguments) for key, part in zip(keys, parts, strict=True))
    return np.concatenate([np.asarray(x, np.float32) for x in drawn])


class _Found(NamedTuple):
    value: float
    floor: float
    spread: float
    unit: str = ""


def _rows(key: Array, available: int, n: int) -> np.ndarray:
    return np.sort(np.asarray(jax.random.permutation(key, available)[:n]))


def _compare(real, everything, controls, fake, *, key):
    """What each metric finds; `controls` are rows of `everything`, the training split."""

    # Subsets of all examples are all the same.
    subsets = 1 if len(real) <= SUBSET_SIZE else 100

    def statistics(other):
        distance = kid.kernel_distance(real, other, subsets, SUBSET_SIZE, key)[0]
        return {"frechet": _frechet(real, other), "kernel": distance, **prdc.prdc(real, other)}

    found = _beside_floors(statistics(fake), [statistics(everything[rows]) for rows in controls])
    nearer = memorisation.closer_to_training(fake, everything, real)
    fraction, floor = nearer["fraction"], nearer["held_out"]
    # Of a binomial fraction of half as many: nearest neighbours often come in pairs.
    spread = math.sqrt(2 * floor * (1 - floor) / len(real))
    return {**found, "nearer_to_training": _Found(fraction, floor, spread, "of samples")}


def _beside_floors(values, floors, units=None):
    """The values of metrics by name, with the mean and spread of those of the floors."""
    found = {}
    for name, value in values.items():
        drawn = [floor[name] for floor in floors]
        unit = "" if units is None else units[name]
        found[name] = _Found(value, float(np.mean(drawn)), float(np.std(drawn, ddof=1)), unit)
    return found


def _frechet(first, second):
    first, second = frechet.Moments().update(first), frechet.Moments().update(second)
    return frechet.frechet_distance(first.mean, first.covariance, second.mean, second.covariance)


def _modes(known, fake, controls):
    found, *floors = (modes.mode_statistics(x, *known) for x in (fake, *controls))
    units = {"modes": f"of {len(known.centers)}", "high_quality": "of samples", "reverse_kl": "nats"}
    return _beside_floors(found, floors, units)


def _metrics(found, n, suffix):
    return {
        f"{name}{suffix}": metric(value, unit, n, floor, spread)
        for name, (value, floor, spread, unit) in found.items()
    }
