"""Disentanglement of the beta-VAE against beta, on pictures whose factors are known.

python experiments/studies/disentangle.py
python experiments/studies/disentangle.py --betas 1 4 16 --steps 2000
"""

import jaxgen.interrupts  # first, see there

import dataclasses
import time
from pathlib import Path

import jax
import numpy as np

import jaxgen
from jaxgen import data, plot, script, shard
from jaxgen.autoencoder import vae
from jaxgen.autoencoder.objectives import ELBO
from jaxgen.data.factors import FACTORS
from jaxgen.evaluation import disentangle, likelihood
from jaxgen.fields import PositiveInt
from jaxgen.latent import interpolate
from jaxgen.likelihoods import Bernoulli
from jaxgen.script import result

TRAVERSAL = np.linspace(-2.0, 2.0, 9)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Train one VAE for each beta and each seed on `factors`, and measure its codes on the test split."""

    betas: tuple[float, ...] = (0.25, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
    """Weights of the KL term."""
    seeds: tuple[int, ...] = (0, 1)
    """Of initial weights and training; each has a column of its own."""
    steps: PositiveInt = 6000
    """Training steps of each model."""
    batch_size: PositiveInt = 128
    """Examples a step."""
    num_latents: PositiveInt = 8
    """Dimensions of z."""
    results: Path = Path("experiments/results/disentanglement")
    """Folder for the table and the pictures."""


def measure(options: Options, beta: float, seed: int, folder: Path) -> dict[str, float]:
    """What one model reaches on the test split; leaves a picture of its traversals."""
    train, test = data.load("factors"), data.load("factors", "test")
    cfg = vae.Config(
        shape=train.shape,
        num_latents=options.num_latents,
        likelihood=Bernoulli("threshold"),
        objective=ELBO(beta),
    )
    key = jax.random.key(seed)
    state = jaxgen.fit(
        vae, cfg, train, steps=options.steps, batch_size=options.batch_size, key=key, mesh=shard.mesh(1)
    )
    batch = test[:]
    codes, factors = np.asarray(vae.encode(state, batch["image"], cfg)), batch["factors"]
    order = np.argsort(-codes.std(0))  # the dimensions in use first
    z = vae.encode(state, batch["image"][:1], cfg)[0]
    path = [interpolate.traverse(z, int(dimension), TRAVERSAL) for dimension in order]
    images = vae.decode(state, np.concatenate(path), cfg)
    plot.save_grid(folder / f"beta-{beta:g}-seed-{seed}.png", images, columns=len(TRAVERSAL))
    bound = jax.jit(lambda key, x: vae.elbo(key, state, x, cfg))
    return {
        "mutual_information_gap": disentangle.mutual_information_gap(codes, factors),
        "dci_disentanglement": disentangle.dci(codes, factors)["disentanglement"],
        "negative_elbo": -likelihood.per_example(key, bound, test).mean(),
        "dimensions_in_use": int((codes.std(0) > 0.1).sum()),
    }


def save_curve(path: Path, rows: list[dict[str, float]]) -> None:
    """The gap of every model against beta, and the mean over seeds."""
    betas = sorted({row["beta"] for row in rows})
    gaps = [[row["mutual_information_gap"] for row in rows if row["beta"] == beta] for beta in betas]
    mean = plot.Curve(betas, [np.mean(values) for values in gaps], "mean", "-")
    every = [row["beta"] for row in rows], [row["mutual_information_gap"] for row in rows]
    panel = plot.Panel([mean, plot.Curve(*every, "a seed", "o")], x_label="beta", log="x")
    plot.save_panels(path, [panel._replace(y_label="mutual information gap")], size=(6, 4))


def main(options: Options) -> None:
    """Print a line a model, and write them as JSON with a curve and the traversals."""
    since = time.perf_counter()
    options.results.mkdir(parents=True, exist_ok=True)
    rows = []
    for beta in options.betas:
        for seed in options.seeds:
            rows.append({"beta": beta, "seed": seed, **measure(options, beta, seed, options.results)})
            print(", ".join(f"{name} {value:.4g}" for name, value in rows[-1].items()), flush=True)
    save_curve(options.results / "gap.png", rows)
    facts = {
        "data": "factors",
        "factors": list(FACTORS),
        "n": len(data.load("factors", "test")),
    }
    result.save(options.results / "gap.json", {**facts, "rows": rows}, since)


if __name__ == "__main__":
    script.run_script(main, Options)
