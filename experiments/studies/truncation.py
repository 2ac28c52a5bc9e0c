"""Fidelity against diversity: precision and recall of a generator whose codes are truncated.

python experiments/gan.py dcgan --data fashion_mnist --steps 8000 --run-dir runs/dcgan
python experiments/studies/truncation.py runs/dcgan

Every coordinate of z is drawn anew until it lies within psi of 0 (Brock et al. 2019). All sets of samples
come from the same random numbers. The floor is that of as many training images in place of samples, with its
spread over draws of them.
"""

import jaxgen.interrupts  # first, see there

import dataclasses
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import jaxgen
from jaxgen import data, plot, script
from jaxgen.evaluation import features, frechet, prdc, samples
from jaxgen.fields import PositiveInt
from jaxgen.gan import gan
from jaxgen.run import directory
from jaxgen.script import result

BATCH_SIZE = 500


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Precision, recall, density, coverage and Frechet distance by the limit on the codes."""

    run: tyro.conf.Positional[Path]
    """Directory of a run of experiments/gan.py on images."""
    data_dir: Path | None = None
    """Where prepared data sets lie."""
    limits: tuple[float, ...] = (0.1, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0)
    """Values of psi; samples without a limit are always measured."""
    num_samples: PositiveInt = 2000
    """Samples at each limit, and test images they are measured against."""
    extractor: str | None = None
    """Features of pictures, by name; by default the best for these data that needs nothing."""
    seed: int = 0
    """Of the codes and of the choice of images."""
    results: Path = Path("experiments/results/truncation")
    """Folder for the table and the curves."""


def draw(key, state, n, cfg, limit):
    """n samples of codes within `limit`, which may be infinite, (n, H, W, C)."""
    keys = (jax.random.fold_in(key, index) for index in range(-(-n // BATCH_SIZE)))
    return np.concatenate([_draw(key, state, cfg, jnp.float32(limit)) for key in keys])[:n]


@jax.jit
def _draw(key, state, cfg, limit):
    return gan.sample(key, state, BATCH_SIZE, cfg, truncation=limit)


def measure(real, fake):
    """{"precision", "recall", "density", "coverage", "frechet"} of features (N, d), and their spread.

    "variance" is that of the features about their mean, summed over dimensions.
    """
    first, second = (frechet.Moments().update(x) for x in (real, fake))
    distance = frechet.frechet_distance(first.mean, first.covariance, second.mean, second.covariance)
    return {**prdc.prdc(real, fake), "frechet": distance, "variance": float(np.trace(second.covariance))}


def save_curves(path, rows, floor):
    """Precision and recall over psi, one over the other, and the Frechet distance; dashes are the floor's."""
    *limited, whole = rows
    limits = [row["limit"] for row in limited]

    def over_limits(*names):
        curves = [
            plot.Curve(limits, [row[name] for row in limited], name, f"C{index}o-")
            for index, name in enumerate(names)
        ]
        ends = limits[0], limits[-1]
        curves += [
            plot.Curve(ends, (whole[name],) * 2, f"{name}, no limit", f"C{index}:")
            for index, name in enumerate(names)
        ]
        return plot.Panel(curves, x_label="psi", levels={f"{name}, training": floor[name] for name in names})

    recall, precision = ([row[name] for row in rows] for name in ("recall", "precision"))
    texts = [
        # Where points crowd, only the last of them has room for its label.
        f"{row['limit'] or 'no limit'}"
        if row is whole
        or all(abs(row["recall"] - other["recall"]) > 0.05 for other in rows if other is not row)
        else ""
        for row in rows
    ]
    training = plot.Curve(floor["recall"], floor["precision"], "training images", "k*")
    against = plot.Panel(
        [plot.Curve(recall, precision, names=texts), training],
        "labels: psi",
        "recall",
        "precision",
        limits=((0, 1.1), (0, 1.1)),
    )
    panels = [
        over_limits("precision", "recall")._replace(y_label="precision, recall", limits=(None, (0, 1))),
        against,
        over_limits("frechet")._replace(y_label="Frechet distance", log="y"),
    ]
    plot.save_panels(path, panels, size=(4.2, 3.8))


def main(options: Options) -> None:
    """Print a line a limit, and write them as JSON with the curves."""
    since, rows = time.perf_counter(), []
    family, cfg, state = jaxgen.load(options.run)
    if family is not gan:
        raise ValueError(f"{options.run} is a run of {family.__name__}: give one of experiments/gan.py")
    name = directory.read_description(directory.resolve(options.run))["data"]
    train, test = (data.load(name, split, options.data_dir, cfg.shape[0]) for split in ("train", "test"))
    extractor = features.load(options.extractor or samples.default_extractor(train), train)
    n, rng = min(options.num_samples, len(test), len(train)), np.random.default_rng(options.seed)
    real, *controls = (
        features.of(extractor, dataset[np.sort(rng.permutation(len(dataset))[:n])]["image"])
        for dataset in (test, *[train] * samples.FLOOR_DRAWS)
    )
    key = jax.random.key(options.seed)
    for limit in (*sorted(options.limits), np.inf):
        found = measure(real, features.of(extractor, np.clip(draw(key, state, n, cfg, limit), -1, 1)))
        rows.append({"limit": limit if np.isfinite(limit) else None, **found})
        print(", ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    floor, floor_spread = samples.mean_and_spread([measure(real, control) for control in controls])
    options.results.mkdir(parents=True, exist_ok=True)
    save_curves(options.results / f"{result.file_name(name)}.png", rows, floor)
    facts = {
        "data": name,
        "run": {"steps": int(state.step), "num_params": sum(x.size for x in jax.tree.leaves(state.params))},
        "extractor": extractor.name,
        "n": n,
        "seed": options.seed,
    }
    path = options.results / f"{result.file_name(name)}.json"
    result.save(path, {**facts, "floor": floor, "floor_spread": floor_spread, "rows": rows}, since)


if __name__ == "__main__":
    script.run_script(main, Options)
