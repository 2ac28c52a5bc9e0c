"""Outlier detection: models trained on one data set tell its test split from another set by their scores.

python experiments/studies/outliers.py
python experiments/studies/outliers.py --inside fashion_mnist --outside mnist --steps 5000
"""

import jaxgen.interrupts  # first, see there

import dataclasses
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jaxgen
from jaxgen import data, script, types
from jaxgen.autoencoder import ae, vae
from jaxgen.classical import gmm
from jaxgen.evaluation import likelihood, outliers
from jaxgen.fields import PositiveInt
from jaxgen.flow import realnvp
from jaxgen.flow.preprocessing import Logit, dequantised
from jaxgen.script import result


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Area under the ROC curve of the scores of an autoencoder, a VAE and a flow, and of plain statistics."""

    inside: str = "digits"
    """Set the models are trained on."""
    outside: str = "factors"
    """Set whose test split is foreign, brought to the size of the first."""
    data_dir: Path | None = None
    """Where prepared data sets lie."""
    steps: PositiveInt = 2000
    """Training steps of each model."""
    batch_size: PositiveInt = 128
    """Examples a step."""
    num_latents: PositiveInt = 16
    """Dimensions of the codes."""
    num_samples: PositiveInt = 50
    """Draws of the importance-weighted bound."""
    limit: PositiveInt = 2000
    """Test examples of each set."""
    seed: int = 0
    """Of the models and their training."""
    results: Path | None = None
    """JSON file for the table."""


def scores(options, train):
    """{name: (key, x) -> (B,), higher for typical examples} of models trained on `train`."""
    key = jax.random.key(options.seed)
    fit = {"steps": options.steps, "batch_size": options.batch_size, "key": key}

    def fitted(family):
        cfg = types.shape_to(train, family.Config(num_latents=options.num_latents))
        return cfg, jaxgen.fit(family, cfg, train, **fit)

    flow_cfg = types.from_data(realnvp, train, realnvp.Config(preprocessing=Logit()))
    flow = jaxgen.fit(realnvp, flow_cfg, train, **fit)
    plain_cfg, plain = fitted(ae)
    vae_cfg, trained = fitted(vae)
    images = [batch["image"] for batch in data.in_order(train, 500)]
    codes = np.concatenate([ae.encode(plain, x, plain_cfg) for x in images])
    brightness = np.mean([x.mean() for x in images])
    density_cfg = gmm.Config(shape=(options.num_latents,), num_components=train.num_classes or 10)
    density = gmm.fit(codes, density_cfg, key=key)
    return {
        "brightness near the mean": lambda key, x: -jnp.abs(x.mean((1, 2, 3)) - brightness),
        "autoencoder: error": lambda key, x: ae.score(plain, x, plain_cfg),
        "autoencoder: density of the code": lambda key, x: gmm.log_prob(
            density, ae.encode(plain, x, plain_cfg), density_cfg
        ),
        "vae: elbo": lambda key, x: vae.elbo(key, trained, x, vae_cfg),
        f"vae: iwae, {options.num_samples}": lambda key, x: vae.iwae(
            key, trained, x, vae_cfg, options.num_samples
        ),
        "flow: density": lambda key, x: realnvp.log_prob(
            flow, dequantised(key, x, flow_cfg.levels), flow_cfg
        ),
    }


def main(options: Options) -> None:
    """Print a line a score, and write them as JSON."""
    since = time.perf_counter()
    part = f"test[:{options.limit}]"
    train, inside = (data.load(options.inside, split, options.data_dir) for split in ("train", part))
    foreign = data.load(options.outside, part, options.data_dir, image_size=train.shape[0])
    if foreign.shape != train.shape:
        raise ValueError(f"{options.outside} is {foreign.shape} and {options.inside} {train.shape}: no match")
    key = jax.random.key(options.seed + 1)
    table = {
        name: outliers.evaluate(
            *(likelihood.per_example(key, score, dataset) for dataset in (inside, foreign))
        )
        for name, score in scores(options, train).items()
    }
    print(f"{options.inside} (test, {len(inside)}) against {options.outside} (test, {len(foreign)})")
    for name, values in table.items():
        print(f"{name:34}", ", ".join(f"{metric} {value:.3f}" for metric, value in values.items()))
    if options.results:
        names = ("inside", "outside", "steps", "batch_size", "num_latents", "num_samples", "limit", "seed")
        facts = {name: getattr(options, name) for name in names}
        result.save(options.results, {**facts, "scores": table}, since)


if __name__ == "__main__":
    script.run_script(main, Options)
