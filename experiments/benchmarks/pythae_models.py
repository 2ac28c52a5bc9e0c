"""The VAE of pythae, served to `pythae_vae.py`; needs pythae, not jaxgen."""

import itertools
import math
import time
from importlib.metadata import version

import numpy as np
import torch
from pythae.data.datasets import DatasetOutput
from pythae.models import VAE, VAEConfig
from train_step import NUM_BATCHES, serve

NAMES = {
    "encoder.Dense_0": ("encoder.layers.0.0",),
    "encoder.Dense_1": ("encoder.embedding", "encoder.log_var"),
    "decoder.Dense_0": ("decoder.layers.0.0",),
    "decoder.out": ("decoder.layers.1.0",),
}
"""Layers of jaxgen, and those of pythae that do the same."""


class Side:
    """pythae's own networks, loss and estimate of the likelihood."""

    def __init__(self, sizes, variant, threads):
        del variant
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        height, width, channels = sizes.shape
        config = VAEConfig(
            input_dim=(channels, height, width), latent_dim=sizes.num_latents, reconstruction_loss="bce"
        )
        self.model = VAE(config)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        images = torch.rand(NUM_BATCHES * sizes.batch_size, channels, height, width)
        self.batches = images.chunk(NUM_BATCHES)

    def seconds(self, count):
        """Wall-clock time of `count` training steps."""
        since = time.perf_counter()
        for image in itertools.islice(itertools.cycle(self.batches), count):
            loss = self.model(DatasetOutput(data=image)).loss
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        loss.item()
        return time.perf_counter() - since

    def likelihood_seconds(self, num_examples, num_samples, at_once):
        """Wall-clock time of its importance-sampled likelihood, `at_once` draws a pass."""
        x = self.batches[0][:num_examples].round()
        since = time.perf_counter()
        with torch.no_grad():
            self.model.get_nll(x, num_samples, at_once)
        return time.perf_counter() - since

    def check(self, given, num_samples):
        """Take over weights, inputs and noise; the loss, and the mean log-likelihood."""
        arrays = {name: torch.from_numpy(array) for name, array in np.load(given).items()}
        parameters = dict(self.model.named_parameters())
        with torch.no_grad():
            for (ours, theirs), kind in itertools.product(NAMES.items(), ("weight", "bias")):
                parts = arrays[f"weight:{ours}.{kind}"].chunk(len(theirs))
                for name, part in zip(theirs, parts, strict=True):
                    parameters[f"{name}.{kind}"].copy_(part)
            bits, noise = (arrays["bits"] + 1) / 2, arrays["noise"]
            sample = self.model._sample_gauss
            self.model._sample_gauss = lambda mean, std: (mean + noise * std, noise)
            loss = self.model(DatasetOutput(data=bits)).loss.item()
            self.model._sample_gauss = sample
            bound = float(self.model.get_nll(bits, num_samples, num_samples))
        assert math.isfinite(bound)
        return {"loss": loss, "log_likelihood": bound}

    def versions(self):
        return {"pythae": version("pythae"), "torch": torch.__version__}


if __name__ == "__main__":
    serve(Side)
