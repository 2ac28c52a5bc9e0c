"""Autoregressive models: train, evaluate and let one of them go on where data stop.

python experiments/autoregressive.py made
python experiments/autoregressive.py pixelcnn
python experiments/autoregressive.py gated_pixelcnn
python experiments/autoregressive.py gated_pixelcnn --data digits --conditional
python experiments/autoregressive.py pixelrnn
python experiments/autoregressive.py pixelcnn_pp
python experiments/autoregressive.py pixelcnn_pp --data fashion_mnist --batch-size 16
python experiments/autoregressive.py transformer
python experiments/autoregressive.py wavenet
python experiments/autoregressive.py wavenet --data sounds:FOLDER
python experiments/autoregressive.py codes
python experiments/autoregressive.py codes --start runs/my_vq_vae

Names that end in _large are of sizes for a GPU:

python experiments/autoregressive.py gated_pixelcnn_large
"""

import jaxgen.interrupts  # noqa: F401 - first, see there

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import scipy.signal

from jaxgen import plot
from jaxgen.autoencoder import vq_vae
from jaxgen.autoencoder.vector_networks import ResidualDecoder, ResidualEncoder
from jaxgen.autoregressive import (
    codes,
    made,
    pixelcnn,
    pixelcnn_pp,
    pixelrnn,
    sequential,
    transformer,
    wavenet,
)
from jaxgen.autoregressive.made import MADE
from jaxgen.autoregressive.pixelcnn import GatedPixelCNN, PixelCNN
from jaxgen.autoregressive.pixelcnn_pp import PixelCNNPP
from jaxgen.autoregressive.pixelrnn import DiagonalBiLSTM
from jaxgen.autoregressive.transformer import Transformer
from jaxgen.autoregressive.wavenet import WaveNet
from jaxgen.data.sound import RATE
from jaxgen.evaluation.comparison import compare
from jaxgen.evaluation.metric import metric
from jaxgen.likelihoods import LogisticMixture
from jaxgen.script import Options, System, likelihoods, main, pictures, sampler
from jaxgen.script.stages import first_stage
from jaxgen.types import observed
from jaxgen.values import Adam, Cosine

NUM_COMPLETED, NUM_COMPLETIONS, NUM_COMPARED = 12, 6, 10_000


def evaluate(key, state, train, test, cfg, folder, family):
    """Likelihoods of the test set, also in bits a symbol; test data continued from half of them."""
    metrics = likelihoods(key, family, state, test, cfg)
    if family.measure(cfg) == "symbols":
        bits = metrics["nll"]["value"] / (math.prod(cfg.shape) * math.log(2))
        metrics["bits_per_symbol"] = metric(bits, "bits", len(test))
    if getattr(cfg.network, "orders", "natural") == "natural":
        batch = test[:NUM_COMPLETED]
        label = jnp.asarray(batch["label"]) if cfg.conditional else None
        x = sequential.likelihood(cfg).targets(key, jnp.asarray(observed(batch)))
        go_on = jax.jit(lambda key, prefix: family.sample(key, state, len(x), cfg, label, prefix=prefix))
        prefix = x[:, : x.shape[1] // 2]
        completed = [go_on(jax.random.fold_in(key, i), prefix) for i in range(NUM_COMPLETIONS)]
        if len(cfg.shape) == 3:
            hidden = jnp.concatenate([prefix, jnp.zeros_like(x[:, x.shape[1] // 2 :])], 1)
            rows = jnp.stack([hidden, *completed, x], 1)
            plot.save_grid(
                folder / "completions.png",
                rows.reshape(-1, *cfg.shape),
                NUM_COMPLETIONS + 2,
                column_titles=["given", *["model"] * NUM_COMPLETIONS, "test"],
                caption="The upper halves of test examples, continued by the model, and the whole examples.",
            )
        elif "audio" in batch:
            save_sound(folder, np.asarray(x), np.asarray(completed[0]))
    if cfg.conditional and len(cfg.shape) == 3:
        draw = jax.jit(lambda label: family.sample(key, state, len(label), cfg, label))
        pictures.save_classes(folder, draw, cfg.num_classes, test.label_names)
    return metrics


def evaluate_codes(key, state, train, test, cfg, folder):
    """Held-out nats and bits of a code; pictures of reconstructions, and of codes drawn one by one."""
    x = jnp.asarray(test[:2000]["image"])
    nll = -jax.jit(lambda x: codes.code_log_prob(state, x, cfg))(x).mean()
    bits = nll / (math.prod(codes.prior(cfg).shape) * math.log(2))
    shown = x[: pictures.NUM_EXAMPLES]
    pictures.save_reconstructions(folder, shown, codes.reconstruct(state, shown, cfg))
    alone = sampler(vq_vae, state.first, codes.first_config(cfg))
    caption = "Decoded codes that were drawn one by one, without the prior."
    plot.save_grid(folder / "independent_codes.png", alone(key, 64), caption=caption)
    metrics = {"code_nll": metric(nll, "nats, codes", len(x)), "bits_per_code": metric(bits, "bits", len(x))}
    temperatures = {f"temperature {t:g}": {"temperature": t} for t in (0.8, 0.9, 1.0)}
    draws = {name: sampler(codes, state, cfg, **options) for name, options in temperatures.items()}
    draws |= {"independent codes": alone, "reconstructions": held_out(state, test, cfg)}
    return metrics | compare(draws, train, test, NUM_COMPARED, key=key)


def held_out(state, test, cfg):
    """Reconstructions of test pictures in the place of samples, `draw(key, n)`."""

    def draw(key, n):
        rows = np.asarray(jax.random.randint(key, (n,), 0, len(test)))
        return codes.reconstruct(state, jnp.asarray(test[rows]["image"]), cfg)

    return draw


def save_sound(folder, x, continued):
    """Four test sounds and what the model makes of their first halves: waves, and spectrograms in dB."""
    time = np.arange(x.shape[1]) / RATE
    panels, maps = [], {}
    for index in range(4):
        curves = [
            plot.Curve(time, continued[index], "continued", "-"),
            plot.Curve(time, x[index], "test", "-"),
        ]
        panels.append(plot.Panel(curves, x_label="seconds"))
        for name, sound in (("test", x[index]), ("continued", continued[index])):
            frequency, places, power = scipy.signal.spectrogram(sound, RATE, nperseg=128, noverlap=112)
            maps[f"{name} {index}"] = np.maximum(10 * np.log10(power + 1e-12), -90)
    caption = "Test sounds, and what the model makes of their first halves."
    plot.save_panels(folder / "waves.png", panels, columns=1, size=(12, 2.2), caption=caption)
    caption = "The same sounds by frequency in kHz over time in seconds, in decibels."
    plot.save_maps(folder / "spectrograms.png", maps, places, frequency / 1000, caption, aspect="auto")


def system(paper, family, options, learning_rate=1e-3, published=None, **hyperparameters):
    optimizer = Adam(learning_rate, schedule=Cosine(options.steps), gradient_clip=1.0)
    return System(
        family=family,
        config=family.Config(optimizer=optimizer, **hyperparameters),
        paper=paper,
        options=options,
        evaluate=functools.partial(evaluate, family=family),
        published=published or {},
    )


def binarised(paper, family, steps, batch_size=64, learning_rate=1e-3, **hyperparameters):
    """A model of MNIST, whose bits are drawn afresh from the grey values at every presentation."""
    options = Options(
        data="mnist", steps=steps, batch_size=batch_size, sample_every=steps, save_every=steps // 4
    )
    return system(paper, family, options, learning_rate, **hyperparameters)


GERMAIN = "Germain, Gregor, Murray & Larochelle 2015"
PIXELCNN = "van den Oord, Kalchbrenner & Kavukcuoglu 2016"
GATED = "van den Oord, Kalchbrenner, Vinyals, Espeholt, Graves & Kavukcuoglu 2016"
SALIMANS = "Salimans, Karpathy, Chen & Kingma 2017"
WAVENET = "van den Oord, Dieleman, Zen, Simonyan, Vinyals, Graves, Kalchbrenner, Senior & Kavukcuoglu 2016"
TRANSFORMER = "Radford, Narasimhan, Salimans & Sutskever 2018"

# Sizes are guesses at what 45 minutes of one core can train. Nothing was tuned but the kernels and the
# batches of PixelCNN on MNIST, by speed and by the training loss of the first thousand steps.
SYSTEMS = {
    "made": binarised(GERMAIN, made, 40_000, 100, network=MADE((1000, 1000))),
    "pixelcnn": binarised(PIXELCNN, pixelcnn, 16_000, 16, network=PixelCNN(24, 5, 5, 15)),
    "gated_pixelcnn": binarised(GATED, pixelcnn, 16_000, 16, network=GatedPixelCNN(24, 5, 5, 15)),
    "pixelrnn": binarised(PIXELCNN, pixelrnn, 1000, network=DiagonalBiLSTM(2)),
    "pixelcnn_pp": system(
        SALIMANS,
        pixelcnn_pp,
        Options(steps=1500, batch_size=64, sample_every=1500, save_every=500),
        likelihood=LogisticMixture(5),
        network=PixelCNNPP(24, 1, 1),
    ),
    "transformer": binarised(TRANSFORMER, transformer, 2000, 16, network=Transformer(64, 2, 2, "relu")),
    "wavenet": system(
        WAVENET,
        wavenet,
        Options(data="tones", steps=2000, batch_size=16, sample_every=2000, save_every=1000),
        network=WaveNet(num_blocks=2, num_layers=7),
    ),
    # The first stage has the sizes and steps of `vq_vae` on Fashion-MNIST in experiments/autoencoder.py.
    "codes": System(
        family=codes,
        config=codes.Config(
            first=vq_vae.Config(
                num_codes=128,
                code_size=32,
                encoder=ResidualEncoder((32, 64)),
                decoder=ResidualDecoder((64, 32)),
            ),
            prior=pixelcnn.Config(
                network=GatedPixelCNN(48, 5, first_kernel=5),
                optimizer=Adam(1e-3, schedule=Cosine(3000), gradient_clip=1.0),
            ),
        ),
        paper="van den Oord, Vinyals & Kavukcuoglu 2017",
        options=Options(data="fashion_mnist", steps=3000, sample_every=3000, save_every=1000),
        before=functools.partial(first_stage, steps=3000),
        evaluate=evaluate_codes,
    ),
    # Sizes for a few minutes of a large GPU. Lengths are what these minutes allowed; nothing was tuned.
    "made_large": binarised(GERMAIN, made, 35_000, 100, 3e-4, network=MADE((8000, 8000))),
    "gated_pixelcnn_large": binarised(GATED, pixelcnn, 1200, 64, network=GatedPixelCNN(64, 12, 5, 15)),
}

if __name__ == "__main__":
    main(SYSTEMS)
