"""How many modes of a mixture adversarial networks reach, by the protocol of Lin et al. 2018.

python experiments/studies/modes.py
python experiments/studies/modes.py --data grid --systems pacgan r3gan --steps 400000

All seeds of a system train at once, and every seed sees its own part of one shuffled stream of the data. Left
alone, every system trains for about five minutes on one core; the protocol's 400 epochs are 400,000 steps,
and take hours there.
"""

import jaxgen.interrupts  # first, see there

import contextlib
import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Literal

import jax
import numpy as np

import jaxgen
from jaxgen import data, plot, script, shard, values
from jaxgen.data import points
from jaxgen.evaluation import modes
from jaxgen.evaluation.samples import FLOOR_DRAWS, mean_and_spread
from jaxgen.fields import PositiveInt
from jaxgen.gan import gan, presets
from jaxgen.run.seeds import Seeds
from jaxgen.script import result

NUM_POINTS = 2500
"""Samples that are judged, as in Lin et al. 2018."""
LOOKS = 10
"""How often a training is looked at on its way."""
METRICS = ("modes", "high_quality", "reverse_kl")
CENTERS = {"ring": (points.ring_centers, points.RING_STD), "grid": (points.grid_centers, points.GRID_STD)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Train every system on a mixture with several seeds at once, and count the modes of its samples."""

    data: Literal["ring", "grid"] = "ring"
    """8 Gaussians on the unit circle with std 0.01, or 25 on a square of side 8 with std 0.05."""
    systems: tuple[Literal["gan", "pacgan", "wgan_gp", "r3gan"], ...] = ("gan", "pacgan", "wgan_gp", "r3gan")
    """Presets, of `jaxgen.gan.presets.POINTS`."""
    seeds: PositiveInt = 5
    """Networks trained at once."""
    steps: PositiveInt | None = None
    """Steps of the generator; by default what takes five seeds about five minutes on one core."""
    seed: int = 0
    """From which all seeds follow."""
    run_dir: Path | None = None
    """Where the trainings are kept, a folder for each system; the same command goes on from the last look."""
    results: Path = Path("experiments/results/modes")
    """Folder for the table and the picture."""


def main(options: Options) -> None:
    """Print a line a look, and write what is reached so far as JSON with a picture of the samples."""
    since = time.perf_counter()
    options.results.mkdir(parents=True, exist_ok=True)
    stem = "-".join([options.data, *(options.systems if options.systems != tuple(presets.POINTS) else ())])
    train = data.load(options.data)
    parts = (train[NUM_POINTS * index : NUM_POINTS * (index + 1)]["x"] for index in range(FLOOR_DRAWS))
    floor, floor_spread = mean_and_spread(
        [modes.mode_statistics(x, *centers_of(options.data)) for x in parts]
    )
    facts = {
        "data": options.data,
        "n": NUM_POINTS,
        "seed": options.seed,
        "seeds": options.seeds,
        "floor": floor,
        "floor_spread": floor_spread,
    }
    rows, pictures = {}, {}
    with contextlib.ExitStack() as stack:
        runs = options.run_dir or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name in options.systems:
            for row, samples in measure(options, name, train, runs / name):
                rows[name], pictures[name] = row, samples
                save_samples(options.results / f"{stem}.png", pictures, train)
                result.save(options.results / f"{stem}.json", {**facts, "systems": rows}, since)
    print("\n".join(table(options.data, rows)))


def measure(options, name, train, run_dir):
    """What the seeds of one system reach, and their samples (seeds, N, 2), at every look not yet passed."""
    preset = presets.POINTS[name]
    steps = options.steps or preset.steps
    cfg = presets.decaying(preset.config, steps) if preset.decays else preset.config
    several, key, history = Seeds(gan, options.seeds), jax.random.key(options.seed), []
    draw = jax.jit(lambda key, state: several.sample_each(key, state, NUM_POINTS, cfg))
    for until in sorted({max(1, steps * look // LOOKS) for look in range(1, LOOKS + 1)}):
        state = jaxgen.fit(
            several,
            cfg,
            train,
            steps=until,
            batch_size=options.seeds * preset.batch_size,
            key=key,
            run_dir=run_dir,
            mesh=shard.mesh(1),
            sample_every=0,
        )
        step = int(state.step)
        if step > until:
            continue  # an earlier command went beyond
        samples = np.asarray(draw(jax.random.fold_in(key, 1), state))
        found = [modes.mode_statistics(x, *centers_of(train.name)) for x in samples]
        history.append({"step": step, **{metric: mean_and_error(found, metric) for metric in METRICS}})
        minutes = result.training_minutes(run_dir)
        print(f"{name} on {train.name}, step {step} ({minutes:.1f} minutes):", words(history[-1]), flush=True)
        reached = {
            metric: {
                "mean": history[-1][metric][0],
                "standard_error": history[-1][metric][1],
                "values": [row[metric] for row in found],
                "published": modes.PUBLISHED.get((train.name, name), {}).get(metric),
            }
            for metric in METRICS
        }
        facts = {
            "paper": preset.paper,
            "steps": step,
            "batch_size": preset.batch_size,
            "minutes": round(minutes, 1),
        }
        yield {**facts, **reached, "history": list(history), "config": json_config(cfg)}, samples


def mean_and_error(found, metric):
    """The mean over seeds, and its standard error (0 of one seed)."""
    values = np.array([row[metric] for row in found], float)
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
    return float(values.mean()), float(error)


def centers_of(name):
    centers, std = CENTERS[name]
    return centers(), std


def words(row):
    """One line of a table: mean and standard error of every metric."""
    (modes_, error), (quality, quality_error), (divergence, divergence_error) = (row[m] for m in METRICS)
    return (
        f"modes {modes_:.1f} +- {error:.1f}, high quality {100 * quality:.1f} +- {100 * quality_error:.1f} %,"
        f" reverse KL {divergence:.3f} +- {divergence_error:.3f}"
    )


def table(name, rows):
    """Lines: what every system reached over what was published of it."""
    lines = []
    for system, row in rows.items():
        lines.append(f"{system:8} reached   {words(row['history'][-1])}")
        if (name, system) in modes.PUBLISHED:
            lines.append(f"{'':8} published {words(modes.PUBLISHED[name, system])}")
    return lines


def json_config(cfg):
    return {field.name: values.to_json(getattr(cfg, field.name)) for field in values.options(cfg)}


def save_samples(path, pictures, train):
    """Samples over data: a row a system, a column a seed."""
    points = np.asarray(train[:NUM_POINTS]["x"])
    limit = 1.2 * float(np.abs(points).max())
    panels = [
        plot.Panel(
            [plot.Curve(*points.T, style="C7."), plot.Curve(*x.T, style="C0.")],
            y_label="" if seed else name,
            limits=((-limit, limit), (-limit, limit)),
            frame=False,
        )
        for name, samples in pictures.items()
        for seed, x in enumerate(samples)
    ]
    plot.save_panels(path, panels, columns=len(next(iter(pictures.values()))), size=(2.2, 2.3))


if __name__ == "__main__":
    script.run_script(main, Options)
