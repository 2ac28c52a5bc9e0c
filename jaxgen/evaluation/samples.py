"""How near a model's samples come to held-out data: every distance of `evaluation`, with its floor.

Each number stands beside the same number for as many real training examples in place of samples, its floor.
Pictures go through a feature extractor, whose name is part of the metric's;
points are compared as they are, and where the data have known modes these are counted. Sequences of symbols
have no such distances.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array

from jaxgen import plot
from jaxgen.evaluation import features, frechet, kid, memorisation, modes, prdc, scores
from jaxgen.evaluation.features import small_cnn
from jaxgen.evaluation.metric import Metric, metric
from jaxgen.types import observed

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
        train: the training split, from which come the floor and the nearest neighbours.
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
    real, control = (
        np.asarray(observed(dataset[_rows(jax.random.fold_in(rows_key, index), len(dataset), n)]))
        for index, dataset in enumerate((test, train))
    )
    if fake.ndim != 4:
        found = _compare(*(x.reshape(n, -1) for x in (real, control, fake)), key=subsets_key)
        if getattr(test, "modes", None) is not None:
            found |= _modes(test.modes, fake, control)
        return _metrics(found, n, "")
    loaded = features.load(extractor or default_extractor(train), train)
    fake = np.clip(fake, -1, 1)
    sets = [features.of(loaded, x) for x in (real, control, fake)]
    found = _compare(*sets, key=subsets_key)
    if loaded.classify is not None:
        score = [scores.classifier_score(features.probabilities(loaded, x))[0] for x in (fake, control)]
        found["classifier_score"] = score[0], score[1], ""
    if folder is not None:
        save_neighbours(folder / "neighbours.png", fake[:NUM_SHOWN], sets[2][:NUM_SHOWN], train, loaded)
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


def save_neighbours(
    path: Path, samples: np.ndarray, sample_features: np.ndarray, train: Any, extractor: features.Extractor
) -> None:
    """Samples (N, H, W, C), each over the training example whose features are nearest to its own (N, d)."""
    nearest, _ = memorisation.nearest_training(sample_features, features.of(extractor, train))
    plot.save_pairs(path, samples, train[nearest]["image"])


def _rows(key: Array, available: int, n: int) -> np.ndarray:
    return np.sort(np.asarray(jax.random.permutation(key, available)[:n]))


def _compare(real, control, fake, *, key):
    """{metric: (value, floor, unit)}."""
    samples, floor = (
        {
            "frechet": _frechet(real, other),
            "kernel": kid.kernel_distance(real, other, key=key)[0],
            **prdc.prdc(real, other),
        }
        for other in (fake, control)
    )
    found = {name: (samples[name], floor[name], "") for name in samples}
    nearer = memorisation.closer_to_training(fake, control, real)
    found["nearer_to_training"] = nearer["fraction"], nearer["expected"], "of samples"
    return found


def _frechet(first, second):
    first, second = frechet.Moments().update(first), frechet.Moments().update(second)
    return frechet.frechet_distance(first.mean, first.covariance, second.mean, second.covariance)


def _modes(known, fake, control):
    found, floor = (modes.mode_statistics(x, *known) for x in (fake, control))
    units = {"modes": f"of {len(known.centers)}", "high_quality": "of samples", "reverse_kl": "nats"}
    return {metric: (found[metric], floor[metric], unit) for metric, unit in units.items()}


def _metrics(found, n, suffix):
    return {f"{name}{suffix}": metric(value, unit, n, floor) for name, (value, floor, unit) in found.items()}
