"""What the tricks of NVIL do to score-function gradients: their noise, and how far training comes with them.

python experiments/studies/gradients.py

The same belief network is trained on digits by each estimator. The noise of the gradient of its recognition
network is measured as training goes on, on one batch of training data at the parameters of the moment, by its
variance over draws of the hidden units divided by the squared length of its mean.
"""

import jaxgen.interrupts  # first, see there

import dataclasses
import functools
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import jaxgen
from jaxgen import data, keys, plot, script
from jaxgen.belief import nvil
from jaxgen.belief.nvil import NVIL, VIMCO
from jaxgen.evaluation import likelihood
from jaxgen.fields import PositiveInt
from jaxgen.run import shard
from jaxgen.script import result
from jaxgen.values import Adam

BATCH_SIZE, NUM_DRAWS = 64, 400
NONE = NVIL(learned=False, centred=False, normalised=False, local=False)
CENTRED = dataclasses.replace(NONE, centred=True)
ESTIMATORS = {
    "none": NONE,
    "centred": CENTRED,
    "centred, normalised": dataclasses.replace(CENTRED, normalised=True),
    "centred, local": dataclasses.replace(CENTRED, local=True),
    "centred, learned": dataclasses.replace(CENTRED, learned=True),
    "all, NVIL": NVIL(),
    "VIMCO, 5 draws": VIMCO(5),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Noise of gradients and the bound on held-out digits, by estimator and step."""

    estimators: tuple[str, ...] = tuple(ESTIMATORS)
    """Names of the estimators."""
    steps: PositiveInt = 4000
    """Training steps."""
    measurements: PositiveInt = 8
    """How often the noise is measured."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the first parameters and of training."""
    results: tyro.conf.Positional[Path] = Path("experiments/results/gradients")
    """Folder for the table and the curves."""


@functools.partial(jax.jit, static_argnames="cfg")
def noise(key, state, batch, cfg):
    """Variance of the recognition network's gradient over the squared length of its mean.

    The length is of two halves of the draws, whose errors are independent.
    """

    def gradient(key):
        grads = jax.grad(nvil.estimate, has_aux=True)(state.params, batch, key, cfg, state.signal)[0]
        leaves = jax.tree.leaves(grads.net.recognition)
        return jnp.concatenate([leaf.ravel() for leaf in leaves])

    draws = jax.lax.map(gradient, jax.random.split(key, NUM_DRAWS))
    one, two = draws[: NUM_DRAWS // 2].mean(0), draws[NUM_DRAWS // 2 :].mean(0)
    return draws.var(0, ddof=1).sum() / (one * two).sum()


def train(name, seed, dataset, test, options):
    """Noise at each measurement, and at the end the negative bound with one draw on test data."""
    cfg = nvil.Config(widths=(64, 32), estimator=ESTIMATORS[name], optimizer=Adam(1e-3))
    cfg = jaxgen.types.from_data(nvil, dataset, cfg)
    every = options.steps // options.measurements
    key, found = jax.random.key(seed), []
    fit_key, noise_key, test_key = keys.named(key, "training", "noise", "test")
    batch = dataset[:BATCH_SIZE]
    with tempfile.TemporaryDirectory() as folder:
        for step in range(every, options.steps + 1, every):
            state = jaxgen.fit(
                nvil,
                cfg,
                dataset,
                steps=step,
                batch_size=BATCH_SIZE,
                key=fit_key,
                run_dir=folder,
                mesh=shard.mesh(1),
                sample_every=0,
                save_every=0,
            )
            found.append(float(noise(jax.random.fold_in(noise_key, step), state, batch, cfg)))
    value = lambda key, x: nvil.iwae(key, state, x, cfg, 1)
    bound = likelihood.reported(test_key, value, test, nvil.measure(cfg), "negative_elbo")
    return found, float(bound["negative_elbo"]["value"])


def pooled(noises):
    """The harmonic mean of noises, and those one standard error below and above it.

    Inverses are averaged: those of one measurement are of either sign where noise is large.
    """
    inverse = 1 / np.array(noises).ravel()
    mean, error = inverse.mean(), inverse.std(ddof=1) / np.sqrt(inverse.size) if inverse.size > 1 else 0.0
    return {
        "pooled": round(float(1 / mean), 1),
        "pooled_interval": [round(float(1 / (mean + sign * error)), 1) for sign in (1, -1)],
    }


def main(options: Options) -> None:
    """Print a line an estimator, and write them as JSON with the curves."""
    since, rows = time.perf_counter(), []
    dataset, test = data.load("digits"), data.load("digits", "test")
    steps = np.arange(1, options.measurements + 1) * (options.steps // options.measurements)
    for name in options.estimators:
        runs = [train(name, seed, dataset, test, options) for seed in options.seeds]
        bounds = [bound for _, bound in runs]
        noises = [noise for noise, _ in runs]
        row = {"estimator": name, **pooled(noises), "noise": noises, "negative_elbo": bounds}
        rows.append(row)
        print(name, row["pooled"], row["pooled_interval"], np.round(bounds, 2), flush=True)
    # What is not positive is a squared mean that is lost in the errors of its estimate.
    means = {row["estimator"]: 1 / np.mean(1 / np.array(row["noise"]), 0) for row in rows}
    curves = [plot.Curve(steps, np.where(y > 0, y, np.nan), name) for name, y in means.items()]
    panel = plot.Panel(
        curves, "gradient of the recognition network", "steps", "variance / squared mean", log="y"
    )
    options.results.mkdir(parents=True, exist_ok=True)
    plot.save_panels(options.results / "noise.png", [panel], size=(6.5, 4.2))
    facts = {"data": "digits", "steps": steps.tolist(), "seeds": options.seeds, "draws": NUM_DRAWS}
    result.save(options.results / "noise.json", {**facts, "rows": rows}, since)


if __name__ == "__main__":
    script.run_script(main, Options)
