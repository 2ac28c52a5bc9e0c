"""Classifier-free guidance of a diffusion model: how sure samples are of their class against how they vary.

python experiments/studies/guidance.py
python experiments/studies/guidance.py --data fashion_mnist --steps 6000 --patch 2
"""

import jaxgen.interrupts  # first, see there

import dataclasses
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jaxgen
from jaxgen import data, plot, script, shard, types
from jaxgen.diffusion import ddpm, networks, samplers
from jaxgen.evaluation import features, frechet, prdc, samples
from jaxgen.fields import PositiveInt
from jaxgen.script import result
from jaxgen.values import Adam, Cosine

COLUMNS = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Train a conditional model, or take a trained one, and measure its samples at every guidance scale."""

    data: str = "digits"
    """A data set with labels whose classifier jaxgen holds: digits, mnist or fashion_mnist."""
    data_dir: Path | None = None
    """Where prepared data sets lie."""
    guidance: tuple[float, ...] = (0.0, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0)
    """Scales: 0 ignores the label, 1 is the plain conditional model."""
    run: Path | None = None
    """Directory of a run of a conditional `ddpm` on these data; by default one is trained here."""
    steps: PositiveInt = 1500
    """Training steps, if it is trained here."""
    batch_size: PositiveInt = 64
    """Examples a step."""
    patch: PositiveInt = 1
    """Side of the squares of pixels the network takes as one position."""
    calls: PositiveInt = 20
    """Network calls of the sampler, DPM-Solver++; guidance doubles each."""
    num_samples: PositiveInt = 2000
    """Most samples at each scale; the test split may hold fewer."""
    seed: int = 0
    """Of the training and the samples, the same noise at every scale."""
    results: Path = Path("experiments/results/guidance")
    """Folder for the table and the pictures."""


def trained(options: Options, train: data.Dataset) -> tuple[ddpm.State, ddpm.Config]:
    """The state of the options' run, or of one trained for them."""
    if options.run is not None:
        family, cfg, state = jaxgen.load(options.run)
        if family is not ddpm or not cfg.conditional or cfg.shape != train.shape:
            raise ValueError(f"{options.run} holds no conditional ddpm of {options.data}")
        return state, cfg
    cfg = ddpm.Config(
        conditional=True,
        network=networks.UNet(patch=options.patch),
        optimizer=Adam(1e-3, schedule=Cosine(decay_steps=options.steps), gradient_clip=1.0),
    )
    cfg = types.from_data(ddpm, train, cfg)
    key = jax.random.key(options.seed)
    return jaxgen.fit(
        ddpm, cfg, train, steps=options.steps, batch_size=options.batch_size, key=key, mesh=shard.mesh(1)
    ), cfg


def measure(options, state, cfg, train, test):
    """Rows of accuracy, Frechet distance, precision, recall and spread; the floor; a picture's rows.

    The floor is what draws of training data get in the samples' place, their means and standard deviations.
    Spread is the mean variance of the features within a class, that of test data being 1.
    """
    extractor = features.load("small-cnn", test)
    n = min(options.num_samples, len(test))
    label, key = np.arange(n) % cfg.num_classes, jax.random.key(options.seed + 1)
    real = features.of(extractor, test[:n]["image"])
    within = spread(real, np.asarray(test[:n]["label"]))

    def draw(key, label, scale):
        how = samplers.DPMSolverPP(options.calls)
        return ddpm.sample(key, state, len(label), cfg, label, sampler=how, guidance=scale)

    def row(images, wanted):
        found = features.of(extractor, images)
        moments = [frechet.Moments().update(x) for x in (real, found)]
        distance = frechet.frechet_distance(*(part for m in moments for part in (m.mean, m.covariance)))
        seen = features.probabilities(extractor, images).argmax(-1)
        quality = prdc.prdc(real, found)
        return {
            "accuracy": float((seen == wanted).mean()),
            "frechet": float(distance),
            "precision": quality["precision"],
            "recall": quality["recall"],
            "spread": float(spread(found, wanted) / within),
        }

    rows, pictures = [], []
    for scale in options.guidance:
        images = samples.of_labels(key, draw, label, scale)
        rows.append({"guidance": scale, **row(images, label)})
        pictures.append(images[:COLUMNS])
        print(", ".join(f"{name} {value:.4g}" for name, value in rows[-1].items()), flush=True)
    floors = []
    for index in range(samples.FLOOR_DRAWS):
        order = jax.random.permutation(jax.random.fold_in(key, index), len(train))
        chosen = train[np.sort(np.asarray(order[:n]))]
        floors.append(row(chosen["image"], np.asarray(chosen["label"])))
    return rows, samples.mean_and_spread(floors), jnp.concatenate(pictures)


def spread(x: np.ndarray, label: np.ndarray) -> float:
    """Mean over classes of the total variance of features (N, d) within each."""
    return float(np.mean([x[label == c].var(0).sum() for c in np.unique(label)]))


def save_curves(path, rows, floor):
    """Every measure over the guidance scale; the dashes are real data's."""
    scales = [row["guidance"] for row in rows]
    panels = [
        plot.Panel(
            [plot.Curve(scales, [row[name] for row in rows])],
            name,
            "guidance",
            levels={"training data": floor[name]},
        )
        for name in ("accuracy", "frechet", "recall", "spread")
    ]
    plot.save_panels(path, panels, columns=4, size=(2.75, 3.2))


def main(options: Options) -> None:
    """Print a line a scale, and write them as JSON with the curves and a row of samples a scale."""
    since = time.perf_counter()
    train, test = (data.load(options.data, split, options.data_dir) for split in ("train", "test"))
    state, cfg = trained(options, train)
    rows, (floor, floor_spread), pictures = measure(options, state, cfg, train, test)
    options.results.mkdir(parents=True, exist_ok=True)
    plot.save_grid(options.results / f"{options.data}.png", pictures, COLUMNS)
    save_curves(options.results / f"{options.data}-curves.png", rows, floor)
    facts = {
        "data": options.data,
        "n": min(options.num_samples, len(test)),
        "seed": options.seed,
        "training_data": floor,
        "training_data_spread": floor_spread,
    }
    result.save(options.results / f"{options.data}.json", {**facts, "rows": rows}, since)


if __name__ == "__main__":
    script.run_script(main, Options)
