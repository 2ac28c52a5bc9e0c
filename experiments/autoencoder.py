"""Autoencoders: train, evaluate and picture one of them.

python experiments/autoencoder.py vae
python experiments/autoencoder.py vae --data mnist --num-latents 2
python experiments/autoencoder.py burda_vae --run-dir runs/burda_vae
python experiments/autoencoder.py iwae --start runs/burda_vae
python experiments/autoencoder.py iaf_vae
python experiments/autoencoder.py prior_vae
python experiments/autoencoder.py conv_vae
python experiments/autoencoder.py conditional_vae
python experiments/autoencoder.py autoencoder
python experiments/autoencoder.py denoising_autoencoder --corruption masking --corruption.share 0.5
python experiments/autoencoder.py vq_vae
"""

import jaxgen.interrupts  # noqa: F401 - first, see there

import dataclasses
import functools

import jax
import numpy as np
import scipy.ndimage

from jaxgen import data, plot, values
from jaxgen.autoencoder import ae, posteriors, vae, vq_vae
from jaxgen.autoencoder.corruptions import GaussianNoise
from jaxgen.autoencoder.flows import Flow, GivenSteps, Steps
from jaxgen.autoencoder.networks import ConvDecoder, ConvEncoder, DenseDecoder, DenseEncoder
from jaxgen.autoencoder.objectives import ELBO, IWAE
from jaxgen.autoencoder.posteriors import Categorical
from jaxgen.autoencoder.vector_networks import ResidualDecoder, ResidualEncoder
from jaxgen.classical import gmm
from jaxgen.data import transforms
from jaxgen.evaluation import denoise, likelihood
from jaxgen.evaluation.metric import metric
from jaxgen.flow.spline import Autoregressive, Coupling
from jaxgen.latent import interpolate
from jaxgen.likelihoods import LogisticMixture
from jaxgen.nn.masked import MADE
from jaxgen.nn.mlp import MLP
from jaxgen.script import Options, System, likelihoods, main, pictures
from jaxgen.types import observed

MANIFOLD_SIDE = 20
STRIP_LENGTH = 11
NUM_SAMPLES = 64


def evaluate(key, state, train, test, cfg, folder, num_samples):
    """The bounds on the test set; pictures of reconstructions, and of the latent space if it is a plane."""
    batch = test[:500]
    if len(cfg.shape) == 3:
        few = test[: pictures.NUM_EXAMPLES]
        x, label = few["image"], few["label"] if cfg.conditional else None
        pictures.save_reconstructions(folder, x, vae.reconstruct(state, x, cfg, label))
        if cfg.conditional:
            draw = lambda label: vae.sample(key, state, len(label), cfg, label)
            pictures.save_classes(folder, draw, cfg.num_classes, test.label_names)
        elif cfg.num_latents == 2 and isinstance(cfg.posterior, posteriors.Gaussian):
            images = vae.decode(state, interpolate.prior_quantiles(MANIFOLD_SIDE), cfg)
            caption = "The latent plane, decoded at quantiles of the prior, which are dense in its middle."
            plot.save_grid(folder / "manifold.png", images, MANIFOLD_SIDE, gap=0, caption=caption)
    if cfg.num_latents == 2 and not isinstance(cfg.posterior, Categorical) and "label" in batch:
        batch = test[:2000]
        codes = vae.encode(state, observed(batch), cfg, batch["label"] if cfg.conditional else None)
        save_codes(folder, codes, batch["label"], test.label_names)
    metrics = likelihoods(key, vae, state, test, cfg, num_samples)
    if cfg.conditional:
        metrics[f"nll_iwae_{num_samples}_given_label"] = given_label(key, state, test, cfg, num_samples)
    return metrics


def save_codes(folder, codes, label, names):
    """codes.png: a latent plane by class."""
    caption = "Codes of test examples in the latent plane, coloured by class."
    plot.save_labelled_points(folder / "codes.png", codes, label, names, caption)


def given_label(key, state, test, cfg, num_samples):
    """A bound on -log p(x | label), where the others are on -log p(x)."""
    bound = jax.jit(lambda key, x, label: vae.iwae(key, state, x, cfg, num_samples, label))
    values = [
        bound(jax.random.fold_in(key, index), observed(batch), batch["label"])
        for index, batch in enumerate(data.in_order(test, 500))
    ]
    return metric(-np.concatenate(values).mean(), "nats", len(test))


def evaluate_autoencoder(key, state, train, test, cfg, folder):
    """The error on the test set; pictures of reconstructions, of lines between codes, of what codes are not.

    Codes of a plain autoencoder have no prior. `codes` shows classes of unequal areas, `square` what the
    decoder makes of the holes between them, `prior_standard_normal` draws of a prior it was not trained with,
    beside those of densities of the training codes: a Gaussian, and a mixture of them.
    """
    batch = test[:2000]
    codes = ae.encode(state, observed(batch), cfg)
    mixture_cfg = gmm.Config(shape=(cfg.num_latents,), num_components=2 * (test.num_classes or 10))
    mixture = gmm.fit(ae.encode(state, observed(train[:10_000]), cfg), mixture_cfg, key=key)
    normal = jax.random.normal(key, (NUM_SAMPLES, cfg.num_latents))
    drawn = {
        "standard normal": ae.decode(state, normal, cfg),
        "gaussian": ae.sample(key, state, NUM_SAMPLES, cfg),
        "mixture": ae.decode(state, gmm.sample(key, mixture, NUM_SAMPLES, mixture_cfg), cfg),
    }
    for name, x in drawn.items():
        fitted = "" if name == "standard normal" else " that was fitted to the training codes"
        caption = f"Decoded draws of a prior of codes, a {name} one{fitted}."
        plot.save_samples(folder / f"prior_{name.replace(' ', '_')}.png", x, caption)
    if len(cfg.shape) == 3:
        x = batch["image"][: pictures.NUM_EXAMPLES]
        pictures.save_reconstructions(folder, x, ae.reconstruct(state, x, cfg))
        between = interpolate.path(codes[:8], codes[8:16], STRIP_LENGTH).swapaxes(0, 1)
        images = ae.decode(state, between.reshape(-1, cfg.num_latents), cfg)
        caption = "Straight lines between the codes of two test examples, a row each."
        plot.save_grid(folder / "interpolations.png", images, STRIP_LENGTH, caption=caption)
        if cfg.num_latents == 2:
            images = ae.decode(state, interpolate.bounding_square(codes, MANIFOLD_SIDE), cfg)
            caption = "The square around the codes of test examples, decoded, with the holes between them."
            plot.save_grid(folder / "square.png", images, MANIFOLD_SIDE, gap=0, caption=caption)
    if cfg.num_latents == 2 and "label" in batch:
        save_codes(folder, codes, batch["label"], test.label_names)
    return reconstruction_error(key, ae, state, test, cfg)


def evaluate_denoising(key, state, train, test, cfg, folder):
    """PSNR of the noisy test images, and by a median filter and the model, in dB, at the level of training.

    The curves go on to levels the model was not trained at.
    """
    if cfg.corruption is None or len(cfg.shape) != 3:
        return evaluate_autoencoder(key, state, train, test, cfg, folder)
    clean = test[:2000]["image"]
    strength = dataclasses.fields(cfg.corruption)[0].name  # the standard deviation, or the share of entries
    trained = getattr(cfg.corruption, strength)
    rows = {}
    for factor in (0.25, 0.5, 0.75, 1.0, 1.5, 2.0):
        level = factor * trained
        noisy = np.asarray(dataclasses.replace(cfg.corruption, **{strength: level})(key, clean))
        estimates = {
            "noisy": noisy,
            "median_filter": scipy.ndimage.median_filter(noisy, (1, 3, 3, 1)),
            "autoencoder": np.asarray(ae.reconstruct(state, noisy, cfg)),
        }
        rows[level] = {name: denoise.psnr(clean, images).mean() for name, images in estimates.items()}
        if factor == 1:
            shown = {"clean": clean, **estimates}
            plot.save_grid(
                folder / "denoised.png",
                np.concatenate([images[:12] for images in shown.values()]),
                columns=12,
                row_titles=[name.replace("_", " ") for name in shown],
                caption="Test examples, clean and noisy, and as a median filter and the model denoise them.",
            )
    curves = [plot.Curve(list(rows), [row[name] for row in rows.values()], name) for name in rows[trained]]
    x_label = f"{strength} of {type(cfg.corruption).__name__}"
    panel = plot.Panel(curves, x_label=x_label, y_label="PSNR, dB")
    caption = f"Denoising at levels around that of training, {trained:g}; higher is better."
    plot.save_panels(folder / "psnr.png", [panel], size=(6, 4), caption=caption)
    reached = rows[trained].items()
    metrics = {f"psnr_{name}": metric(value, "dB", len(clean)) for name, value in reached}
    return metrics | reconstruction_error(key, ae, state, test, cfg)


def evaluate_vq_vae(key, state, train, test, cfg, folder):
    """The error on the test set and how many codes it uses; a picture of reconstructions."""
    if len(cfg.shape) == 3:
        x = test[: pictures.NUM_EXAMPLES]["image"]
        pictures.save_reconstructions(folder, x, vq_vae.reconstruct(state, x, cfg))
    encode = jax.jit(lambda x: vq_vae.encode(state, x, cfg))
    counts = sum(
        np.bincount(np.ravel(encode(observed(batch))), minlength=cfg.num_codes)
        for batch in data.in_order(test, 500)
    )
    perplexity = vq_vae.perplexity(counts / counts.sum())
    return reconstruction_error(key, vq_vae, state, test, cfg) | {
        "perplexity": metric(perplexity, f"of {cfg.num_codes} codes", len(test)),
        "codes_used": metric((counts > 0).mean(), "fraction", len(test)),
    }


def reconstruction_error(key, family, state, test, cfg):
    """Mean squared error of a value of the data, for pictures on [-1, 1]."""

    def error(key, x):
        return ((family.reconstruct(state, x, cfg) - x) ** 2).reshape(len(x), -1).mean(1)

    value = likelihood.per_example(key, error, test).mean()
    return {"reconstruction_mse": metric(value, "squared", len(test))}


BURDA = vae.Config(
    num_latents=50,
    encoder=DenseEncoder((200, 200), "tanh"),
    decoder=DenseDecoder((200, 200), "tanh"),
    optimizer=values.Adam(2e-3, schedule=values.Cosine(300_000)),
)
CONV_VAE = vae.Config(encoder=ConvEncoder((32, 64)), decoder=ConvDecoder((64, 32)), num_latents=32)
BURDA_TABLE = "Burda, Grosse & Salakhutdinov 2016, table 1 ({}, 1 stochastic layer)"


def burda(paper, published=(), **parts):
    """The VAE of Burda et al. 2016 on MNIST."""
    return System(
        family=vae,
        config=dataclasses.replace(BURDA, **parts),
        paper=paper,
        options=Options(data="mnist", steps=300_000, log_every=5000, sample_every=50_000, save_every=50_000),
        evaluate=functools.partial(evaluate, num_samples=5000),
        published=dict(published),
    )


SYSTEMS = {
    "vae": System(
        family=vae,
        config=vae.Config(),
        paper="Kingma & Welling 2014",
        options=Options(steps=5000),
        evaluate=functools.partial(evaluate, num_samples=1000),
    ),
    "burda_vae": burda(
        "Kingma & Welling 2014, the network of Burda et al. 2016",
        published={("mnist", "nll_iwae_5000"): (86.76, BURDA_TABLE.format("VAE"))},
    ),
    "iwae": System(
        family=vae,
        config=dataclasses.replace(
            BURDA,
            objective=IWAE(50, backward=5),
            optimizer=values.Adam(3e-4, schedule=values.Cosine(120_000)),
        ),
        paper="Burda, Grosse & Salakhutdinov 2016",
        options=Options(
            data="mnist",
            steps=120_000,
            batch_size=20,
            log_every=5000,
            sample_every=20_000,
            save_every=20_000,
        ),
        evaluate=functools.partial(evaluate, num_samples=5000),
        published={("mnist", "nll_iwae_5000"): (84.78, BURDA_TABLE.format("IWAE, k = 50"))},
    ),
    "iaf_vae": burda(
        "Kingma, Salimans, Jozefowicz, Chen, Sutskever & Welling 2016, the network of Burda et al. 2016",
        posterior=Flow(GivenSteps(4, Autoregressive(MADE((200,))), num_context=50)),
    ),
    "prior_vae": burda(
        "Huang, Touati, Dinh, Drozdzal, Havaei, Charlin & Courville 2017, the network of Burda et al. 2016",
        posterior=Flow(None, Steps(6, Coupling(MLP((200,))))),
    ),
    "beta_vae": System(
        family=vae,
        config=vae.Config(num_latents=10, objective=ELBO(beta=4.0)),
        paper="Higgins et al. 2017",
        options=Options(steps=5000),
        evaluate=functools.partial(evaluate, num_samples=1000),
    ),
    "conditional_vae": System(
        family=vae,
        config=vae.Config(
            conditional=True,
            num_latents=20,
            encoder=DenseEncoder((400, 400)),
            decoder=DenseDecoder((400, 400)),
        ),
        paper="Sohn, Lee & Yan 2015",
        options=Options(data="mnist", steps=20_000),
        evaluate=functools.partial(evaluate, num_samples=100),
    ),
    # Jang et al. have 101.5 (table 1, 20 variables of 10 categories) on another binarisation.
    "categorical_vae": System(
        family=vae,
        config=vae.Config(
            num_latents=20,
            encoder=DenseEncoder((512, 256)),
            decoder=DenseDecoder((256, 512)),
            posterior=Categorical(num_categories=10),
        ),
        transform=transforms.binarised,
        paper="Jang, Gu & Poole 2017",
        options=Options(data="mnist", steps=50_000, log_every=500, sample_every=10_000, save_every=10_000),
        evaluate=functools.partial(evaluate, num_samples=1000),
    ),
    "logistic_vae": System(
        family=vae,
        config=dataclasses.replace(CONV_VAE, likelihood=LogisticMixture(10)),
        paper="Kingma & Welling 2014, the likelihood of Salimans et al. 2017",
        options=Options(data="fashion_mnist", steps=3000),
        evaluate=functools.partial(evaluate, num_samples=100),
    ),
    "conv_vae": System(
        family=vae,
        config=CONV_VAE,
        paper="Kingma & Welling 2014",
        options=Options(data="fashion_mnist", steps=3000),
        evaluate=functools.partial(evaluate, num_samples=100),
    ),
    "autoencoder": System(
        family=ae,
        config=ae.Config(num_latents=2),
        paper="Hinton & Salakhutdinov 2006",
        options=Options(steps=5000),
        evaluate=evaluate_autoencoder,
    ),
    "conv_autoencoder": System(
        family=ae,
        config=ae.Config(encoder=ConvEncoder((32, 64)), decoder=ConvDecoder((64, 32)), num_latents=32),
        paper="Hinton & Salakhutdinov 2006, with convolutions",
        options=Options(data="fashion_mnist", steps=3000),
        evaluate=evaluate_autoencoder,
    ),
    "denoising_autoencoder": System(
        family=ae,
        config=ae.Config(
            num_latents=128,
            encoder=DenseEncoder((512, 512)),
            decoder=DenseDecoder((512, 512)),
            corruption=GaussianNoise(0.5),
        ),
        paper="Vincent et al. 2008",
        options=Options(data="mnist", steps=5000),
        evaluate=evaluate_denoising,
    ),
    "vq_vae": System(
        family=vq_vae,
        config=vq_vae.Config(
            num_codes=128,
            code_size=32,
            encoder=ResidualEncoder((32, 64)),
            decoder=ResidualDecoder((64, 32)),
        ),
        paper="van den Oord, Vinyals & Kavukcuoglu 2017",
        options=Options(data="fashion_mnist", steps=3000),
        evaluate=evaluate_vq_vae,
    ),
}

if __name__ == "__main__":
    main(SYSTEMS)
