"""How near a model's samples come to held-out data: every distance of `evaluation`, with its floor.

Each number stands beside its floor, the same number for as many real training examples in place of samples:
the mean and the standard deviation over `FLOOR_DRAWS` random choices of them. The features of the default
extractor were fitted on the training split, so training examples may score a little better than fresh data
of the same law would. Differences of the size of the spread rank nothing.

Pictures go through a feature extractor, whose name is part of the metric's; points are compared as they are,
and where the data have known modes these are counted. Sequences of symbols have no such distances.
"""

import functools
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
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

LEAST = {
    "frechet": 2,
    "kernel": 4,
    "precision, recall, density and coverage": 6,
}
"""Examples that a metric needs; with fewer it is left out."""

LEAST_SCORED = 10
"""Samples that the score by a classifier needs."""

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
        key: of the draws, `jax.random.key(0)` by default. The choice of real examples does not depend on it,
            so that the same data and n have the same floors.
        folder: where to leave neighbours.png, samples over the training examples nearest to them.

    Metrics that the examples are too few for, by `LEAST`, are left out with a warning, and so is a picture
    that cannot be written.

    Raises:
        ValueError: samples that are not finite, or pictures the extractor cannot take.
    """
    if _are_symbols(test):
        return {}
    lacking = too_few(train, test, n)
    if lacking:
        warnings.warn(lacking, stacklevel=2)
    against = real_data(train, test, n, extractor)
    n = len(against.test)
    fake = drawn(draw_key(key), draw, n)
    of_fake = against.features(fake)
    found = _compare(against, of_fake)
    if against.extractor is None:
        if getattr(test, "modes", None) is not None:
            found |= _modes(test.modes, of_fake, against.floors())
        return _metrics(found, n)
    if against.extractor.classify is not None and n >= LEAST_SCORED:
        of_classes = functools.partial(features.probabilities, against.extractor)
        score = lambda probabilities: {"classifier_score": scores.classifier_score(probabilities)[0]}
        of_train = of_classes(train)
        floors = [score(of_train[rows]) for rows in against.controls]
        found |= _beside_floors(score(of_classes(np.clip(fake, -1, 1))), floors)
    if folder is not None:
        nearest, _ = memorisation.nearest_training(of_fake[:NUM_SHOWN], against.train)
        try:
            plot.save_pairs(
                folder / "neighbours.png",
                np.clip(fake[:NUM_SHOWN], -1, 1),
                train[nearest]["image"],
                titles=("sample", "nearest"),
                caption="Samples, each over the training example that is nearest to it in features.",
            )
        except (OSError, ValueError) as error:
            warnings.warn(f"neighbours.png cannot be drawn: {error}", stacklevel=2)
    return _metrics(found, n, f" ({against.extractor.name})")


def check(train: Any, test: Any, n: int, extractor: str | None = None) -> str:
    """What `measure` will leave out, in a line, or "": known before a model is trained.

    Raises ValueError for an extractor that does not exist, or does not take these pictures.
    """
    if not n or _are_symbols(test):
        return ""
    if len(test.shape) == 3 and not re.fullmatch(r"pca\d+", extractor or ""):  # which is fitted
        loaded = features.load(extractor or default_extractor(train), train)
        jax.eval_shape(loaded.extract, jax.ShapeDtypeStruct((1, *test.shape), np.float32))
    return too_few(train, test, n)


def too_few(train: Any, test: Any, n: int) -> str:
    """The metrics that so many samples, or the examples that there are, are too few for, in a line; or ""."""
    n = min(n, len(test), len(train))
    names = [name for name, least in LEAST.items() if n < least]
    return f"{n} examples are too few for {', '.join(names)}: left out" if names else ""


class Real(NamedTuple):
    """Real data that samples are compared with, the same for all models of a data set and number n."""

    test: np.ndarray  # features of n test examples, (n, d)
    train: np.ndarray  # of the whole training split, (M, d)
    controls: list[np.ndarray]  # n rows of `train` for each draw of the floor
    extractor: features.Extractor | None  # of pictures

    def features(self, x: np.ndarray) -> np.ndarray:
        """Of samples (N, *shape), (N, d); pixels beyond [-1, 1] are cut off."""
        if self.extractor is None:
            return x.reshape(len(x), -1)
        return features.of(self.extractor, np.clip(x, -1, 1))

    def floors(self) -> list[np.ndarray]:
        """The features of the training examples of each draw of the floor."""
        return [self.train[rows] for rows in self.controls]


def real_data(train: Any, test: Any, n: int, extractor: str | None = None) -> Real:
    """The arguments are as those of `measure`; its choice of examples depends on their numbers alone."""
    n = min(n, len(test), len(train))
    key = jax.random.split(jax.random.key(0), 3)[1]
    chosen, *controls = (
        _rows(jax.random.fold_in(key, index), len(dataset), n)
        for index, dataset in enumerate((test, *[train] * FLOOR_DRAWS))
    )
    real = np.asarray(observed(test[chosen]))
    if real.ndim != 4:
        everything = np.asarray(observed(train[:]))
        return Real(real.reshape(n, -1), everything.reshape(len(train), -1), controls, None)
    loaded = features.load(extractor or default_extractor(train), train)
    return Real(features.of(loaded, real), features.of(loaded, train), controls, loaded)


def draw_key(key: Array | None) -> Array:
    """The key of the draws, for the key given to `measure`."""
    return jax.random.split(jax.random.key(0) if key is None else key, 3)[0]


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


def mean_and_spread(draws: Sequence[Mapping[str, float]]) -> tuple[dict[str, float], dict[str, float]]:
    """The means and the standard deviations of numbers by name over several draws."""
    drawn = {name: [draw[name] for draw in draws] for name in draws[0]}
    means = {name: float(np.mean(values)) for name, values in drawn.items()}
    return means, {name: float(np.std(values, ddof=1)) for name, values in drawn.items()}


class _Found(NamedTuple):
    value: float
    floor: float
    spread: float
    unit: str = ""


def _are_symbols(dataset: Any) -> bool:
    """Sequences of symbols have no distances."""
    return bool(np.issubdtype(np.asarray(observed(dataset[:1])).dtype, np.integer))


def _rows(key: Array, available: int, n: int) -> np.ndarray:
    return np.sort(np.asarray(jax.random.permutation(key, available)[:n]))


def frechet_distances(against: Real, of_fake: np.ndarray) -> tuple[float, list[float]]:
    """The Frechet distance of samples by their features (n, d), and those of the draws of the floor."""
    distance, *floors = (_frechet(against.test, other) for other in (of_fake, *against.floors()))
    return distance, floors


def _compare(against, of_fake):
    """What each metric finds."""
    # Subsets of all examples are all the same.
    subsets = 1 if len(against.test) <= SUBSET_SIZE else 100
    key = jax.random.split(jax.random.key(0), 3)[2]

    def statistics(other):
        found, enough = {}, [name for name, least in LEAST.items() if len(against.test) >= least]
        if "frechet" in enough:
            found["frechet"] = _frechet(against.test, other)
        if "kernel" in enough:
            found["kernel"] = kid.kernel_distance(against.test, other, subsets, SUBSET_SIZE, key)[0]
        if "precision, recall, density and coverage" in enough:
            found |= prdc.prdc(against.test, other)
        return found

    found = _beside_floors(statistics(of_fake), [statistics(other) for other in against.floors()])
    nearer = memorisation.closer_to_training(of_fake, against.train, against.test)
    fraction, floor = nearer["fraction"], nearer["held_out"]
    # Of a binomial fraction of half as many: nearest neighbours often come in pairs.
    spread = math.sqrt(2 * floor * (1 - floor) / len(against.test))
    return {**found, "nearer_to_training": _Found(fraction, floor, spread, "of samples")}


def _beside_floors(values, floors, units=None):
    """The values of metrics by name, with the mean and spread of those of the floors."""
    floor, spread = mean_and_spread(floors)
    return {
        name: _Found(value, floor[name], spread[name], "" if units is None else units[name])
        for name, value in values.items()
    }


def _frechet(first, second):
    first, second = frechet.Moments().update(first), frechet.Moments().update(second)
    return frechet.frechet_distance(first.mean, first.covariance, second.mean, second.covariance)


def _modes(known, fake, controls):
    found, *floors = (modes.mode_statistics(x, *known) for x in (fake, *controls))
    units = {"modes": f"of {len(known.centers)}", "high_quality": "of samples", "reverse_kl": "nats"}
    return _beside_floors(found, floors, units)


def _metrics(found, n, suffix=""):
    return {
        f"{name}{suffix}": metric(value, unit, n, floor, spread)
        for name, (value, floor, spread, unit) in found.items()
    }
