"""Autoencoders: train, evaluate and picture one of them.

python experiments/autoencoder.py vae
python experiments/autoencoder.py vae --data mnist --num-latents 2
python experiments/autoencoder.py conv_vae
python experiments/autoencoder.py conditional_vae
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import data, plot
from jaxgen.autoencoder import vae
from jaxgen.evaluation import likelihood, report
from jaxgen.experiment import Options, System, main
from jaxgen.types import observed

MANIFOLD_SIDE = 20


def evaluate(key, state, test, cfg, folder, num_samples):
    """The bounds on the test set; pictures of reconstructions, and of the latent space if it is a plane."""
    batch = test[:500]
    if len(cfg.shape) == 3:
        x, label = batch["image"][:48], batch["label"][:48] if cfg.conditional else None
        plot.save_pairs(folder / "reconstructions.png", x, vae.reconstruct(state, x, cfg, label))
        if cfg.conditional:
            label = np.repeat(np.arange(cfg.num_classes), 10)
            plot.save_grid(folder / "classes.png", vae.sample(key, state, len(label), cfg, label), columns=10)
        elif cfg.num_latents == 2 and cfg.posterior == "gaussian":
            images = vae.decode(state, prior_quantiles(MANIFOLD_SIDE), cfg)
            plot.save_grid(folder / "manifold.png", images, columns=MANIFOLD_SIDE, gap=0)
    if cfg.num_latents == 2 and cfg.posterior != "categorical" and "label" in batch:
        batch = test[:2000]
        codes = vae.encode(state, observed(batch), cfg, batch["label"])
        plot.save_labelled_points(folder / "codes.png", codes, batch["label"], test.label_names)
    metrics = likelihood.evaluate(key, vae, state, test, cfg, num_samples)
    if cfg.conditional:
        metrics[f"nll_iwae_{num_samples}_given_label"] = given_label(key, state, test, cfg, num_samples)
    return metrics


def given_label(key, state, test, cfg, num_samples):
    """A bound on -log p(x | label), where the others are on -log p(x)."""
    bound = jax.jit(lambda key, x, label: vae.iwae(key, state, x, cfg, num_samples, label))
    values = [
        bound(jax.random.fold_in(key, index), observed(batch), batch["label"])
        for index, batch in enumerate(data.in_order(test, 500))
    ]
    return report.metric(-np.concatenate(values).mean(), "nats", len(test))


def prior_quantiles(side):
    """A square of codes at evenly spaced quantiles of the prior N(0, I), top row first, (side^2, 2)."""
    quantiles = jax.scipy.stats.norm.ppf(np.linspace(0.05, 0.95, side))
    return jnp.stack(jnp.meshgrid(quantiles, -quantiles), -1).reshape(-1, 2)


BURDA = vae.Config(
    num_latents=50, hidden=(200, 200), activation="tanh", learning_rate=2e-3, decay_steps=300_000
)
IWAE = "Burda, Grosse & Salakhutdinov 2016, table 1 ({}, 1 stochastic layer)"
JANG = "Jang, Gu & Poole 2017, table 1 (20 variables of 10 categories, fixed binarisation)"

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
        config=BURDA,
        paper="Kingma & Welling 2014, the network of Burda et al. 2016",
        options=Options(data="mnist", steps=300_000, log_every=5000, sample_every=50_000, save_every=50_000),
        evaluate=functools.partial(evaluate, num_samples=5000),
        published={("mnist", "nll_iwae_5000"): (86.76, IWAE.format("VAE"))},
    ),
    "iwae": System(
        family=vae,
        config=dataclasses.replace(BURDA, objective="iwae", num_importance_samples=50),
        paper="Burda, Grosse & Salakhutdinov 2016",
        options=Options(data="mnist", steps=300_000, log_every=5000, sample_every=50_000, save_every=50_000),
        evaluate=functools.partial(evaluate, num_samples=5000),
        published={("mnist", "nll_iwae_5000"): (84.78, IWAE.format("IWAE, k = 50"))},
    ),
    "beta_vae": System(
        family=vae,
        config=vae.Config(num_latents=10, beta=4.0),
        paper="Higgins et al. 2017",
        options=Options(steps=5000),
        evaluate=functools.partial(evaluate, num_samples=1000),
    ),
    "conditional_vae": System(
        family=vae,
        config=vae.Config(conditional=True, num_latents=20, hidden=(400, 400)),
        paper="Sohn, Lee & Yan 2015",
        options=Options(data="mnist", steps=20_000),
        evaluate=functools.partial(evaluate, num_samples=100),
    ),
    "categorical_vae": System(
        family=vae,
        config=vae.Config(posterior="categorical", num_latents=20, hidden=(512, 256), binarisation="static"),
        paper="Jang, Gu & Poole 2017",
        options=Options(data="mnist", steps=50_000, log_every=500, sample_every=10_000, save_every=10_000),
        evaluate=functools.partial(evaluate, num_samples=1000),
        published={("mnist", "negative_elbo"): (101.5, JANG)},
    ),
    "logistic_vae": System(
        family=vae,
        config=vae.Config(likelihood="logistic_mixture", network="conv", hidden=(32, 64), num_latents=32),
        paper="Kingma & Welling 2014, the likelihood of Salimans et al. 2017",
        options=Options(data="fashion_mnist", steps=3000),
        evaluate=functools.partial(evaluate, num_samples=100),
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
