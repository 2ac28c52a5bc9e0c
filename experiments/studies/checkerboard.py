"""Checkerboards of upsampling: a generator's power at the frequencies of its strides (Odena et al. 2016).

python experiments/studies/checkerboard.py --data fashion_mnist --steps 200 --runs runs/dcgan

DCGAN with transposed convolutions, which have other weights for even pixels than for odd ones, beside DCGAN
with a repetition of pixels and a plain convolution; both before training and after, and the data themselves.
"""

import jaxgen.interrupts  # first, see there

import dataclasses
import functools
import time
from pathlib import Path
from typing import Literal

import jax
import numpy as np

import jaxgen
from jaxgen import data, plot, script, types
from jaxgen.evaluation import samples, spectrum
from jaxgen.fields import PositiveInt
from jaxgen.gan import gan, presets
from jaxgen.script import result

PERIODS = (2, 4)
"""Pixels: the strides of the last doubling, and of the last two together."""
NUM_SAMPLES, NUM_SHOWN = 1000, 8
ENLARGED = 4
"""Side of the square that shows an entry of a spectrum."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Train DCGAN with each kind of upsampling, and measure the spectra of its samples."""

    data: str = "digits"
    """Data set of images, of sides divisible by 4."""
    data_dir: Path | None = None
    """Where prepared data sets lie."""
    upsampling: tuple[Literal["transposed", "nearest"], ...] = ("transposed", "nearest")
    """How generators double the size."""
    steps: PositiveInt = 1000
    """Training steps of each."""
    batch_size: PositiveInt = 64
    """Examples a step."""
    inits: PositiveInt = 10
    """Untrained generators of each kind."""
    seed: int = 0
    """Of the models and their training."""
    runs: tuple[Path, ...] = ()
    """Directories of runs of DCGAN on the same data, to be measured too."""
    run_dir: Path | None = None
    """Where the trainings are kept, so that the same command continues them."""
    results: Path = Path("experiments/results/checkerboard")
    """Folder for the table and the pictures."""


def shares(images):
    """{"period 2", "period 4"}: the share of the power of images (N, H, W, C) with these periods."""
    return {f"period {period}": spectrum.periodic_share(images, period) for period in PERIODS}


def untrained(cfg, count, seed):
    """Samples of so many generators as they start, (count, N, H, W, C)."""
    init = jax.jit(functools.partial(gan.init, cfg=cfg))
    draw = jax.jit(lambda key, state: gan.sample(key, state, NUM_SAMPLES // count, cfg))
    pairs = [jax.random.split(jax.random.key(seed + index)) for index in range(count)]
    return np.stack([draw(draw_key, init(init_key)) for init_key, draw_key in pairs])


def trained(cfg, train, options):
    """Samples of a generator after training, (N, H, W, C)."""
    state = jaxgen.fit(
        gan,
        cfg,
        train,
        steps=options.steps,
        batch_size=options.batch_size,
        key=jax.random.key(options.seed),
        run_dir=options.run_dir and options.run_dir / cfg.generator.upsampling,
    )
    return samples.drawn(jax.random.key(options.seed), script.sampler(gan, state, cfg), NUM_SAMPLES)


def row_of(name, sets):
    """The mean shares of sets (S, N, H, W, C), and the lowest and the highest of one set."""
    found = [shares(images) for images in sets]
    columns = {key: np.array([each[key] for each in found]) for key in found[0]}
    bounds = {"mean": np.mean, "lowest": np.min, "highest": np.max}
    spread = {key: {name: float(of(x)) for name, of in bounds.items()} for key, x in columns.items()}
    return {"images": name, "sets": len(sets), "n": sets.shape[0] * sets.shape[1], **spread}


def save_pictures(stem, sets):
    """Two grids: <stem>.png has a row of images for each set, <stem>-spectra.png its mean spectrum, in turn.

    Every image runs from its lowest to its highest value. A spectrum is in decibels below its largest entry,
    black at 50 of them; its middle is the mean brightness, its edges are stripes and boards of single pixels.
    """
    shown = np.concatenate([images[:NUM_SHOWN] for images in sets])
    low, high = (bound(shown, axis=(1, 2, 3), keepdims=True) for bound in (np.min, np.max))
    plot.save_grid(stem.with_suffix(".png"), 2 * (shown - low) / np.maximum(high - low, 1e-12) - 1, NUM_SHOWN)
    power = np.stack([np.fft.fftshift(spectrum.power(images)) for images in sets])
    decibels = 10 * np.log10(np.maximum(power / power.max((1, 2), keepdims=True), 1e-8))
    grey = (1 + decibels / 25)[..., None].repeat(ENLARGED, 1).repeat(ENLARGED, 2)
    plot.save_grid(stem.with_name(f"{stem.name}-spectra.png"), grey, len(sets))


def main(options: Options) -> None:
    """Print a line a set of images, and write them as JSON with the pictures."""
    since = time.perf_counter()
    train, test = (data.load(options.data, split, options.data_dir) for split in ("train", "test"))
    sets = {"data": test[:NUM_SAMPLES]["image"][None]}
    for upsampling in options.upsampling:
        generator = presets.DCGAN.generator.clone(upsampling=upsampling)
        cfg = types.shape_to(train, dataclasses.replace(presets.DCGAN, generator=generator))
        sets[f"{upsampling}, untrained"] = untrained(cfg, options.inits, options.seed)
        if options.steps:
            sets[f"{upsampling}, {options.steps} steps"] = trained(cfg, train, options)[None]
    for run in options.runs:
        _, cfg, state = jaxgen.load(run)
        images = samples.drawn(jax.random.key(options.seed), script.sampler(gan, state, cfg), NUM_SAMPLES)
        sets[f"{cfg.generator.upsampling}, {state.step} steps"] = images[None]
    rows = [row_of(name, images) for name, images in sets.items()]
    noise = {f"period {period}": (period**2 - 1) / (np.prod(train.shape[:2]) - 1) for period in PERIODS}
    for row in [{"images": "white noise, expected", **noise}, *rows]:
        print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    options.results.mkdir(parents=True, exist_ok=True)
    stem = options.results / result.file_name(options.data)
    save_pictures(stem, [images[0] for images in sets.values()])
    facts = {"data": options.data, "seed": options.seed, "white_noise": noise, "rows": rows}
    result.save(stem.with_suffix(".json"), facts, since)


if __name__ == "__main__":
    script.run_script(main, Options)
