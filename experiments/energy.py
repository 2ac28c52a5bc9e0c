"""Energies and scores: train, evaluate and picture one of them.

python experiments/energy.py ebm
python experiments/energy.py ebm --data checkerboard
python experiments/energy.py ebm_digits
python experiments/energy.py score
python experiments/energy.py score --data rings
python experiments/energy.py score_digits
"""

import jaxgen.interrupts  # noqa: F401 - first, see there

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import plot
from jaxgen.diffusion import networks
from jaxgen.energy import ebm, score_matching
from jaxgen.energy.networks import MLP, ConvNet
from jaxgen.evaluation import outliers, samples
from jaxgen.evaluation.comparison import compare
from jaxgen.evaluation.metric import metric
from jaxgen.script import Options, System, main, pictures, sampler
from jaxgen.values import Adam, Cosine

GRID_SIDE = 300
NUM_SHOWN, NUM_COMPARED = 5000, 359
LOWEST = -12.0
"""Nats of log-density, below which the picture shows no differences."""
LENGTHS = (0, 60, 300, 1200)
"""Langevin steps of the samples that are compared."""


def evaluate_ebm(key, state, train, test, cfg, folder):
    """Of points, the likelihood by quadrature and a picture of the log-density; of digits, samples by length.

    density.png: the true log-density, if it is known, and the model's. chains.png: samples after more and
    more steps, a row each. The AUROC tells test examples from others whose pixels are shuffled.
    """
    score = jax.jit(lambda x: ebm.score(state, x, cfg))
    if cfg.shape == (2,):
        return evaluate_plane(key, score, state, test, cfg, folder)
    x = np.asarray(test[:]["image"])
    shuffled = np.random.default_rng(0).permuted(x.reshape(len(x), -1), axis=1).reshape(x.shape)
    apart = outliers.evaluate(*(np.asarray(score(images)) for images in (x, shuffled)))
    metrics = {"auroc_shuffled": metric(apart["auroc"], "of pairs", len(x))}
    draws = {f"{steps} steps": sampler(ebm, state, cfg, num_steps=steps) for steps in LENGTHS}
    return metrics | compare(draws, train, test, NUM_COMPARED, key=key, picture=folder / "chains.png")


def evaluate_plane(key, score, state, test, cfg, folder):
    """exp(-E) normalised over the square that chains are kept in, at the midpoints of a grid."""
    side = ebm.bound(cfg) * (2 * np.arange(GRID_SIDE) + 1 - GRID_SIDE) / GRID_SIDE
    grid = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    log_p = np.asarray(score(jnp.float32(grid)), np.float64)
    log_z = np.logaddexp.reduce(log_p) + 2 * np.log(side[1] - side[0])
    nll = log_z - np.asarray(score(test[:]["x"]), np.float64).mean()
    maps = {"model": log_p - log_z}
    floor = None
    if test.log_density is not None:
        maps = {"data": test.log_density(grid), **maps}
        floor = -test.log_density(test[:]["x"]).mean()
    maps = {name: np.maximum(values, LOWEST).reshape(GRID_SIDE, GRID_SIDE) for name, values in maps.items()}
    caption = "The log-density in nats, bright where it is high, with one scale for all panels."
    plot.save_maps(folder / "density.png", maps, side, side, caption)
    save_points(key, ebm, state, test, cfg, folder)
    return {"nll_quadrature": metric(nll, "nats, density", len(test), floor)}


def evaluate_score(key, state, train, test, cfg, folder):
    """The loss on the test set, where 1/2 is no model; a picture of points, or distances by sampler.

    samplers.png: samples with the last noise and without it, and of fewer steps, a row each.
    """
    loss = jax.jit(lambda batch: score_matching.loss(state.ema, batch, key, cfg)[0])
    metrics = {"loss": metric(loss(test[:2000]), "squared, a dimension", min(len(test), 2000), 0.0)}
    if cfg.shape == (2,):
        save_points(key, score_matching, state, test, cfg, folder)
        return metrics
    settings = {
        "denoised": {},
        "noisy": {"denoise": False},
        "3 steps a level": {"steps_per_level": 3},
    }
    draws = {name: sampler(score_matching, state, cfg, **options) for name, options in settings.items()}
    return metrics | compare(draws, train, test, NUM_COMPARED, key=key, picture=folder / "samplers.png")


def save_points(key, family, state, test, cfg, folder):
    """Test points beside as many samples."""
    x = samples.drawn(key, sampler(family, state, cfg), NUM_SHOWN)
    pictures.save_points(folder, test[:NUM_SHOWN]["x"], x)


def points(steps, **options):
    """Points in the plane, whose samples take long chains."""
    every = {"sample_every": steps, "save_every": steps}
    return Options(data="moons", steps=steps, batch_size=256, num_samples=5000, **every, **options)


MORDATCH = "Du & Mordatch 2019"
SONG = "Song & Ermon 2019"

# Chains of points have the temperature 1, so that exp(-E) is a density if steps are much smaller than the
# variance across a moon, 0.0025 (see `ebm`). Of five settings this one had the highest likelihood of 2000
# training examples kept apart, after 5000 steps; the length was not tuned. Chains of digits that start at
# noise end in a few bright sixes and fives: their Frechet distance is 14 after 300 steps, 53 after 1200.
SYSTEMS = {
    "ebm": System(
        family=ebm,
        config=ebm.Config(
            network=MLP((128, 128, 128)),
            num_steps=30,
            step_size=4e-4,
            noise=None,
            gradient_clip=None,
            buffer_size=1000,
            restarts=2e-3,
            regularization=1e-2,
            optimizer=Adam(3e-4, beta1=0.0, schedule=Cosine(20_000), gradient_clip=1.0),
        ),
        paper=MORDATCH,
        options=points(20_000),
        evaluate=evaluate_ebm,
    ),
    "ebm_digits": System(
        family=ebm,
        config=ebm.Config(network=ConvNet((16, 32, 64))),
        paper=MORDATCH,
        options=Options(steps=4000, batch_size=64, sample_every=2000, save_every=1000),
        evaluate=evaluate_ebm,
    ),
    "score": System(
        family=score_matching,
        config=score_matching.Config(
            network=networks.MLP((128, 128, 128)),
            num_levels=10,
            optimizer=Adam(1e-3, schedule=Cosine(20_000), gradient_clip=1.0),
        ),
        paper=SONG,
        options=points(20_000),
        evaluate=evaluate_score,
    ),
    "score_digits": System(
        family=score_matching,
        config=score_matching.Config(
            num_levels=15,
            smallest_level=0.05,
            epsilon=5e-4,
            steps_per_level=10,
            optimizer=Adam(1e-3, schedule=Cosine(4000), gradient_clip=1.0),
        ),
        paper=SONG,
        options=Options(steps=4000, batch_size=64, sample_every=4000, save_every=1000),
        evaluate=evaluate_score,
    ),
}

if __name__ == "__main__":
    main(SYSTEMS)
