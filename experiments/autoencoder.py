"""Autoencoders: train, evaluate and picture one of them.

python experiments/autoencoder.py vae
python experiments/autoencoder.py vae --data mnist --num-latents 2
python experiments/autoencoder.py conv_vae
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import plot
from jaxgen.autoencoder import vae
from jaxgen.evaluation import likelihood
from jaxgen.experiment import Options, System, main

MANIFOLD_SIDE = 20


def evaluate(key, state, test, cfg, folder, num_samples):
    """The bounds on the test set; pictures of reconstructions, and of the latent space if it is a plane."""
    batch = test[:500]
    if len(cfg.shape) == 3:
        x = batch["image"][:48]
        plot.save_pairs(folder / "reconstructions.png", x, vae.reconstruct(state, x, cfg))
        if cfg.num_latents == 2:
            images = vae.decode(state, prior_quantiles(MANIFOLD_SIDE), cfg)
            plot.save_grid(folder / "manifold.png", images, columns=MANIFOLD_SIDE, gap=0)
    if cfg.num_latents == 2 and "label" in batch:
        batch = test[:2000]
        codes = vae.encode(state, batch["image" if "image" in batch else "x"], cfg)
        plot.save_labelled_points(folder / "codes.png", codes, batch["label"], test.label_names)
    return likelihood.evaluate(key, vae, state, test, cfg, num_samples)


def prior_quantiles(side):
    """A square of codes at evenly spaced quantiles of the prior N(0, I), top row first, (side^2, 2)."""
    quantiles = jax.scipy.stats.norm.ppf(np.linspace(0.05, 0.95, side))
    return jnp.stack(jnp.meshgrid(quantiles, -quantiles), -1).reshape(-1, 2)


IWAE = "Burda, Grosse & Salakhutdinov 2016, table 1 (VAE, 1 stochastic layer)"

SYSTEMS = {
    "vae": System(
        family=vae,
        config=vae.Config(),
        paper="Kingma & Welling 2014",
        options=Options(steps=5000),
        evaluate=functools.partial(evaluate, num_samples=1000),
    ),
    "burda_vae": System(
        family=vae,
        config=vae.Config(
            num_latents=50, hidden=(200, 200), activation="tanh", learning_rate=2e-3, decay_steps=300_000
        ),
        paper="Kingma & Welling 2014, the network of Burda et al. 2016",
        options=Options(data="mnist", steps=300_000, log_every=5000, sample_every=50_000, save_every=50_000),
        evaluate=functools.partial(evaluate, num_samples=5000),
        published={("mnist", "nll_iwae_5000"): (86.76, IWAE)},
    ),
    "conv_vae": System(
        family=vae,
        config=vae.Config(network="conv", hidden=(32, 64), num_latents=32),
        paper="Kingma & Welling 2014",
        options=Options(data="fashion_mnist", steps=3000),
        evaluate=functools.partial(evaluate, num_samples=100),
    ),
}

if __name__ == "__main__":
    main(SYSTEMS)
