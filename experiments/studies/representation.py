"""What a model has learned without labels: a linear classifier on its features.

python experiments/gan.py dcgan --data fashion_mnist --steps 8000 --run-dir runs/dcgan
python experiments/studies/representation.py runs/dcgan
python experiments/boltzmann.py rbm --data fashion_mnist --run-dir runs/rbm
python experiments/studies/representation.py runs/rbm

Of a GAN all feature maps of the discriminator are pooled to a grid of 4x4 by their largest entries and joined
(Radford et al. 2016); of other models features are what `encode` gives. Beside them stand k-means features
(Coates et al. 2011) and the pixels; each gets the same classifier and the same labels, of which every class
has as many. The table is written after each. The same command goes on from there, and another model joins the
table of its data.
"""

import jaxgen.interrupts  # first, see there

import dataclasses
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import jaxgen
from jaxgen import data, plot, script
from jaxgen.evaluation import probe
from jaxgen.fields import PositiveInt
from jaxgen.gan import gan
from jaxgen.run import directory
from jaxgen.script import result

GRID = 4
"""Cells along either side, that feature maps are pooled to."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Accuracy of a linear classifier on held-out images, by features and number of labels."""

    run: tyro.conf.Positional[Path]
    """Directory of a run on labelled images, of a GAN or of a model that encodes."""
    data_dir: Path | None = None
    """Where prepared data sets lie."""
    labels: tuple[int, ...] = (1000, 5000)
    """Labelled training images."""
    draws: PositiveInt = 3
    """Sets of labelled images of each size, at most as many as the largest can be split into."""
    strengths: tuple[float, ...] = (3e-3, 3e-2)
    """Inverse strengths of regularisation, of which a fifth of the labels choose one."""
    num_centroids: PositiveInt = 400
    """Of k-means."""
    seed: int = 0
    """Of the choice of labels and of k-means."""
    results: Path = Path("experiments/results/representation")
    """Folder for the table and the curves."""


def grid_max(maps, size):
    """The largest entries of maps (B, H, W, C) in each of size x size cells, (B, size, size, C).

    Cells overlap where `size` does not divide a side: the i-th has the entries from floor(i n / size) up to,
    and without, ceil((i + 1) n / size).
    """
    for axis in (1, 2):
        n = maps.shape[axis]
        cells = [range(i * n // size, -(-(i + 1) * n // size)) for i in range(size)]
        maps = jnp.stack([maps.take(np.array(cell), axis).max(axis) for cell in cells], axis)
    return maps


def features_of(family, state, cfg):
    """Images (B, H, W, C) to (B, features): feature maps of a discriminator on a grid, or codes."""

    def features(x):
        if family is gan:
            found = [grid_max(each, GRID) for each in gan.feature_maps(state, x, cfg)]
        else:
            found = [family.encode(state, x, cfg)]
        return jnp.concatenate([each.reshape(len(x), -1) for each in found], -1)

    return batched(jax.jit(features))


def batched(function, batch_size=500):
    """`function` of all images, so many at a time."""
    return lambda x: np.concatenate([function(x[i : i + batch_size]) for i in range(0, len(x), batch_size)])


def balanced_rows(labels, count, seed):
    """Rows of `count` labels (N,), drawn so that every stretch of as many as there are classes has each."""
    rng, classes = np.random.default_rng(seed), np.unique(labels)
    if count % len(classes) or count // len(classes) > np.bincount(labels)[classes].min():
        raise ValueError(f"{count} labels are not equally many of each of {len(classes)} classes")
    drawn = [rng.permutation(np.flatnonzero(labels == each))[: count // len(classes)] for each in classes]
    return np.stack(drawn, 1).reshape(-1)


def accuracies(train_features, train_labels, test_features, test_labels, counts, draws, strengths):
    """[{labels, accuracy, standard_error, draws, C, num_features}] for each count of labels.

    The draws are stretches of the training examples, one after the other; the error is of their mean, and
    there is a C of each.
    """
    rows = []
    for count in counts:
        parts = range(0, min(draws, len(train_labels) // count) * count, count)
        found = [
            probe.linear_probe(
                train_features[start : start + count],
                train_labels[start : start + count],
                test_features,
                test_labels,
                strengths,
            )
            for start in parts
        ]
        values = np.array([each["accuracy"] for each in found])
        error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else None
        facts = {"draws": len(values), "C": [each["C"] for each in found]}
        facts["num_features"] = train_features.shape[1]
        rows.append({"labels": count, "accuracy": float(values.mean()), "standard_error": error, **facts})
    return rows


def save_curves(path, rows):
    """Accuracy over labels, a curve for each kind of features."""
    curves = []
    for name in dict.fromkeys(row["features"] for row in rows):
        own = [row for row in rows if row["features"] == name]
        labels, accuracy = ([row[key] for row in own] for key in ("labels", "accuracy"))
        errors = [row["standard_error"] or 0.0 for row in own]
        curves.append(plot.Curve(labels, accuracy, name, error=errors))
    panel = plot.Panel(curves, x_label="labels", y_label="accuracy on the test split", log="x")
    plot.save_panels(path, [panel], size=(6.5, 4.5))


def main(options: Options) -> None:
    """Print a line for each features and number of labels, and write them as JSON with the curves."""
    since = time.perf_counter()
    family, cfg, state = jaxgen.load(options.run)
    if family is not gan and not hasattr(family, "encode"):
        raise ValueError(f"{options.run} is a run of {family.__name__}, which has no features")
    name = directory.read_description(directory.resolve(options.run))["data"]
    train, test = (data.load(name, split, options.data_dir, cfg.shape[0]) for split in ("train", "test"))
    chosen = balanced_rows(np.asarray(train[:]["label"]), max(options.labels), options.seed)
    labelled, unseen = train[chosen], test[:]
    key = jax.random.key(options.seed)

    def kmeans():
        codebook = probe.fit_kmeans(key, train[:]["image"], options.num_centroids)
        return lambda x: probe.kmeans_features(codebook, x)

    own = "discriminator" if family is gan else family.__name__.rpartition(".")[2]
    kinds = {
        own: lambda: features_of(family, state, cfg),
        "pixels": lambda: lambda x: x.reshape(len(x), -1),
        "k-means": kmeans,
    }
    settings = {"data": name, "n": len(test), "seed": options.seed}
    settings |= {"labels": list(options.labels), "draws": options.draws}
    settings |= {"strengths": list(options.strengths), "num_centroids": options.num_centroids}
    stem = options.results / result.file_name(name)
    stem.parent.mkdir(parents=True, exist_ok=True)
    rows, minutes = resumed(stem.with_suffix(".json"), settings)
    for kind, represent in kinds.items():
        facts = {"features": kind, "steps": int(state.step)} if kind == own else {"features": kind}
        if any(facts.items() <= row.items() for row in rows):
            continue
        rows = [row for row in rows if row["features"] != kind]
        function = represent()
        found = accuracies(
            *(function(labelled["image"]), labelled["label"], function(unseen["image"]), unseen["label"]),
            *(options.labels, options.draws, options.strengths),
        )
        for row in found:
            rows.append({**facts, **row})
            print(", ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
        save_curves(stem.with_suffix(".png"), rows)
        result.save(stem.with_suffix(".json"), {**settings, "rows": rows}, since - 60 * minutes)


def resumed(path, settings):
    """The rows and the minutes of a table that was begun under the same settings."""
    written = json.loads(path.read_text()) if path.exists() else {}
    same = all(written.get(name) == value for name, value in settings.items())
    return (written["rows"], written["minutes"]) if same else ([], 0.0)


if __name__ == "__main__":
    script.run_script(main, Options)
