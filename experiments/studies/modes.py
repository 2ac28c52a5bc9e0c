"""How many modes of a mixture adversarial networks reach, by the protocol of Lin et al. 2018.

python experiments/studies/modes.py
python experiments/studies/modes.py --data grid --systems pacgan r3gan --steps 400000

All seeds of a system train at once. Left alone, every system trains for about five minutes on one core; the
protocol's 400 epochs are 400,000 steps, and take hours there.
"""

import dataclasses
import functools
import time
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import data, script, values
from jaxgen.data import points
from jaxgen.evaluation import modes
from jaxgen.gan import gan, presets
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
    seeds: int = 5
    """Networks trained at once."""
    steps: int | None = None
    """Steps of the generator; by default what takes five seeds about five minutes on one core."""
    seed: int = 0
    """From which all seeds follow."""
    results: Path = Path("experiments/results/modes")
    """Folder for the table and the picture."""


def main(options: Options) -> None:
    """Print a line a look, and write what is reached so far as JSON with a picture of the samples."""
    since = time.perf_counter()
    options.results.mkdir(parents=True, exist_ok=True)
    stem = "-".join([options.data, *(options.systems if options.systems != tuple(presets.POINTS) else ())])
    train = data.load(options.data)
    facts = {
        "data": options.data,
        "n": NUM_POINTS,
        "seeds": options.seeds,
        "floor": modes.mode_statistics(train[:NUM_POINTS]["x"], *centers_of(options.data)),
    }
    rows, pictures = {}, {}
    for name in options.systems:
        for row, samples in measure(options, name, train):
            rows[name], pictures[name] = row, samples
            save_samples(options.results / f"{stem}.png", pictures, train)
            result.save(options.results / f"{stem}.json", {**facts, "systems": rows}, since)
    print("\n".join(table(options.data, rows)))


def measure(options, name, train):
    """What the seeds of one system reach, and their samples (seeds, N, 2), at every look."""
    preset, since = presets.POINTS[name], time.perf_counter()
    steps = options.steps or preset.steps
    cfg = presets.decaying(preset.config, steps) if preset.decays else preset.config
    keys = jax.random.split(jax.random.key(options.seed), options.seeds)
    draw = jax.jit(jax.vmap(lambda key, state: gan.sample(key, state, NUM_POINTS, cfg)))
    history = []
    for step, states in training(cfg, train, preset.batch_size, keys, steps):
        samples = np.asarray(draw(jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys), states))
        found = [modes.mode_statistics(x, *centers_of(train.name)) for x in samples]
        history.append({"step": step, **{metric: mean_and_error(found, metric) for metric in METRICS}})
        minutes = (time.perf_counter() - since) / 60
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


def training(cfg, train, batch_size, keys, steps):
    """(step, states) on the way; the states of all seeds are one State with a leading axis."""
    shared = data.batches(train, batch_size, seed=0)
    seeds = jax.vmap(jax.random.bits)(keys)

    def one(state, seed, batches):
        batch = dataclasses.replace(batches, seed=seed)(state.step)
        return gan.train_step(state, batch, cfg)[0]

    @functools.partial(jax.jit, donate_argnums=0)
    def many(states, batches, count):
        step = jax.vmap(functools.partial(one, batches=batches))
        return jax.lax.fori_loop(0, count, lambda _, states: step(states, seeds), states)

    states, done = jax.jit(jax.vmap(functools.partial(gan.init, cfg=cfg)))(keys), 0
    for look in range(1, LOOKS + 1):
        until = steps * look // LOOKS
        if until > done:
            states, done = many(states, shared, until - done), until
            yield done, states


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
    from matplotlib.figure import Figure

    columns = len(next(iter(pictures.values())))
    figure = Figure(figsize=(2.2 * columns, 2.3 * len(pictures)), layout="constrained")
    axes = figure.subplots(len(pictures), columns, squeeze=False, sharex=True, sharey=True)
    limit = 1.2 * float(jnp.abs(train[:NUM_POINTS]["x"]).max())
    for row, (name, samples) in zip(axes, pictures.items(), strict=True):
        row[0].set_ylabel(name)
        for panel, x in zip(row, samples, strict=True):
            panel.scatter(*train[:NUM_POINTS]["x"].T, s=2, color="0.8", linewidths=0)
            panel.scatter(*x.T, s=2, alpha=0.4, color="C0", linewidths=0)
            panel.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", xticks=[], yticks=[])
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    script.run_script(main, Options)
