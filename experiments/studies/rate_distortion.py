"""Compression by autoencoders: the rate of quantised codes against the distortion of what they decode to.

python experiments/studies/rate_distortion.py
python experiments/studies/rate_distortion.py --data fashion_mnist --steps 5000

Principal components are quantised and coded in the same way. The rate is what an ideal entropy coder spends
on test images with the frequencies of the training set, dimensions apart; the decoder itself is not counted.
"""

import jaxgen.interrupts  # first, see there

import dataclasses
import time
from pathlib import Path

import jax
import numpy as np

import jaxgen
from jaxgen import data, plot, script, types
from jaxgen.autoencoder import ae
from jaxgen.evaluation import denoise
from jaxgen.fields import PositiveInt
from jaxgen.latent import quantize
from jaxgen.script import result


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Train an autoencoder for each number of latents, and quantise its codes to each number of levels."""

    data: str = "digits"
    """Data set of images."""
    data_dir: Path | None = None
    """Where prepared data sets lie."""
    latents: tuple[int, ...] = (2, 4, 8, 16, 32)
    """Dimensions of the codes."""
    levels: tuple[int, ...] = (2, 4, 8, 16, 32)
    """Levels of each dimension."""
    steps: PositiveInt = 3000
    """Training steps of each model."""
    batch_size: PositiveInt = 128
    """Examples a step."""
    seed: int = 0
    """Of the models and their training."""
    results: Path = Path("experiments/results/rate_distortion")
    """Folder for the table and the curves."""


def autoencoder(options, train, num_latents):
    """(encode, decode) of an autoencoder trained on `train`."""
    cfg = types.shape_to(train, ae.Config(num_latents=num_latents))
    fit = {"steps": options.steps, "batch_size": options.batch_size, "key": jax.random.key(options.seed)}
    state = jaxgen.fit(ae, cfg, train, **fit)
    return jax.jit(lambda x: ae.encode(state, x, cfg)), jax.jit(lambda z: ae.decode(state, z, cfg))


def principal_components(options, train, num_latents):
    """(encode, decode) of the projection on the directions of largest variance."""
    from sklearn.decomposition import PCA

    pca = PCA(num_latents, random_state=options.seed).fit(train[:]["image"].reshape(len(train), -1))
    return (
        lambda x: pca.transform(x.reshape(len(x), -1)),
        lambda z: np.clip(pca.inverse_transform(np.asarray(z)), -1, 1).reshape(-1, *train.shape),
    )


def measure(encode, decode, train, test, levels):
    """[{levels, bits_per_pixel, psnr}] on the test split, the last row without quantisation."""
    parts = [encode(batch["image"]) for batch in data.in_order(train, 500)]
    codes, x = np.concatenate(parts), test[:]["image"]
    z, rows = encode(x), []
    for count in levels:
        quantizer = quantize.fit(codes, count)
        sent = quantize.quantize(quantizer, z)
        rate = quantize.code_length(quantizer, sent).mean() / x[0].size
        rows.append((count, float(rate), decode(quantize.dequantize(quantizer, sent))))
    rows.append((None, None, decode(z)))
    return [
        {"levels": count, "bits_per_pixel": rate, "psnr": float(denoise.psnr(x, estimate).mean())}
        for count, rate, estimate in rows
    ]


def save_curves(path, rows):
    """PSNR over rate, a panel a model: a curve a number of latents, and what each reaches unquantised."""
    panels = []
    for model in dict.fromkeys(row["model"] for row in rows):
        curves, levels = [], {}
        for num_latents in dict.fromkeys(row["num_latents"] for row in rows):
            *own, exact = [row for row in rows if (row["model"], row["num_latents"]) == (model, num_latents)]
            rate, psnr = ([row[name] for row in own] for name in ("bits_per_pixel", "psnr"))
            curves.append(plot.Curve(rate, psnr, f"{num_latents} latents"))
            levels[f"{num_latents}, not quantised"] = exact["psnr"]
        panels.append(plot.Panel(curves, model, "bits a pixel", "PSNR, dB", levels, log="x"))
    lowest, highest = (bound(row["psnr"] for row in rows) for bound in (min, max))
    limits = None, (lowest - 0.5, highest + 0.5)
    plot.save_panels(path, [panel._replace(limits=limits) for panel in panels], size=(6, 4.5))


def main(options: Options) -> None:
    """Print a line a setting, and write them as JSON with the curves."""
    since, rows = time.perf_counter(), []
    train, test = (data.load(options.data, split, options.data_dir) for split in ("train", "test"))
    for model in (autoencoder, principal_components):
        for num_latents in options.latents:
            encode, decode = model(options, train, num_latents)
            for row in measure(encode, decode, train, test, options.levels):
                name = model.__name__.replace("_", " ")
                rows.append({"model": name, "num_latents": num_latents, **row})
                print(", ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    options.results.mkdir(parents=True, exist_ok=True)
    save_curves(options.results / f"{options.data}.png", rows)
    facts = {"data": options.data, "n": len(test), "seed": options.seed, "rows": rows}
    result.save(options.results / f"{options.data}.json", facts, since)


if __name__ == "__main__":
    script.run_script(main, Options)
