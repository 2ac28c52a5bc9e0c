"""The same systems in PyTorch, served to `train_step.py`; needs torch and NumPy, not jaxgen.

They run on the GPU if there is one, with products in TensorFloat-32 there, as JAX has them.

Layers have the names that Linen gives them, so that weights find their places.
"""

import itertools
import math
import time
from collections import OrderedDict
from typing import ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from train_step import NUM_BATCHES, peak_memory, serve

HALVE = {"kernel_size": 4, "stride": 2, "padding": 1}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LAYOUTS = {"plain": torch.contiguous_format, "tuned": torch.channels_last}
"""Of images in memory. "plain" is PyTorch as it comes; "tuned" also has Adam's fused update."""


class Flatten(nn.Module):
    """(B, C, H, W) -> (B, H W C), for which images with channels last need no copy."""

    def forward(self, x):
        return x.permute(0, 2, 3, 1).flatten(1)


class Unflatten(nn.Module):
    """(B, H W C) -> (B, C, H, W)."""

    def __init__(self, height, width, channels):
        super().__init__()
        self.shape = height, width, channels

    def forward(self, x):
        return x.unflatten(1, self.shape).permute(0, 3, 1, 2)


def sequential(*layers):
    """Layers in a row; one given as (name, layer) has a name, which Linen's parameters go by."""
    named = [layer if isinstance(layer, tuple) else (f"_{i}", layer) for i, layer in enumerate(layers)]
    return nn.Sequential(OrderedDict(named))


def dense_networks(sizes):
    pixels, (narrow, wide), latents = math.prod(sizes.shape), sizes.hidden, sizes.num_latents
    encoder = sequential(
        nn.Flatten(),
        ("Dense_0", nn.Linear(pixels, narrow)),
        nn.ReLU(),
        ("Dense_1", nn.Linear(narrow, wide)),
        nn.ReLU(),
        ("Dense_2", nn.Linear(wide, 2 * latents)),
    )
    height, width, channels = sizes.shape
    decoder = sequential(
        ("Dense_0", nn.Linear(latents, wide)),
        nn.ReLU(),
        ("Dense_1", nn.Linear(wide, narrow)),
        nn.ReLU(),
        ("out", nn.Linear(narrow, pixels)),
        nn.Unflatten(1, (channels, height, width)),
    )
    return {"encoder": encoder, "decoder": decoder}


def conv_networks(sizes):
    (height, width, channels), (narrow, wide) = sizes.shape, sizes.hidden
    space = height // 4, width // 4, wide
    encoder = sequential(
        ("Conv_0", nn.Conv2d(channels, narrow, **HALVE)),
        nn.ReLU(),
        ("Conv_1", nn.Conv2d(narrow, wide, **HALVE)),
        nn.ReLU(),
        Flatten(),
        ("Dense_0", nn.Linear(math.prod(space), 2 * sizes.num_latents)),
    )
    decoder = sequential(
        ("Dense_0", nn.Linear(sizes.num_latents, math.prod(space))),
        nn.ReLU(),
        Unflatten(*space),
        ("ConvTranspose_0", nn.ConvTranspose2d(wide, narrow, **HALVE)),
        nn.ReLU(),
        ("out", nn.ConvTranspose2d(narrow, channels, **HALVE)),
    )
    return {"encoder": encoder, "decoder": decoder}


def gan_networks(sizes):
    (height, width, channels), (narrow, wide) = sizes.shape, sizes.hidden
    space = height // 4, width // 4, wide
    generator = sequential(
        ("Dense_0", nn.Linear(sizes.num_latents, math.prod(space), bias=False)),
        Unflatten(*space),
        ("BatchNorm_0", nn.BatchNorm2d(wide)),
        nn.ReLU(),
        ("ConvTranspose_0", nn.ConvTranspose2d(wide, narrow, **HALVE, bias=False)),
        ("BatchNorm_1", nn.BatchNorm2d(narrow)),
        nn.ReLU(),
        ("ConvTranspose_1", nn.ConvTranspose2d(narrow, channels, **HALVE)),
        nn.Tanh(),
    )
    discriminator = sequential(
        ("Conv_0", nn.Conv2d(channels, narrow, **HALVE)),
        nn.LeakyReLU(0.2),
        ("Conv_1", nn.Conv2d(narrow, wide, **HALVE, bias=False)),
        ("BatchNorm_0", nn.BatchNorm2d(wide)),
        nn.LeakyReLU(0.2),
        Flatten(),
        ("Dense_0", nn.Linear(math.prod(space), 1)),
    )
    return {"generator": generator, "discriminator": discriminator}


class VAE:
    """Bernoulli variational autoencoder: its loss is one number, for all parameters."""

    def __init__(self, sizes, variant):
        build = conv_networks if sizes.network == "conv" else dense_networks
        self.networks = nn.ModuleDict(build(sizes)).to(memory_format=LAYOUTS[variant])
        self.optimizer = adam(self.networks, variant, lr=1e-3)

    def loss(self, bits, noise=None):
        mean, log_variance = self.networks["encoder"](bits).chunk(2, 1)
        log_variance = log_variance.clamp(-10, 10)
        noise = torch.randn_like(mean) if noise is None else noise
        logits = self.networks["decoder"](mean + torch.exp(0.5 * log_variance) * noise)
        nll = functional.binary_cross_entropy_with_logits(logits, bits, reduction="sum") / len(bits)
        kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(1).mean()
        return nll + kl

    def train_step(self, image):
        loss = self.loss(torch.bernoulli((image + 1) / 2))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def check(self, bits, noise):
        loss = self.loss((bits + 1) / 2, noise)
        loss.backward()
        return {"loss": loss}


class GAN:
    """One update of the discriminator, then one of the generator, each with fakes of its own."""

    def __init__(self, sizes, variant):
        self.latent_shape = sizes.batch_size, sizes.num_latents
        self.networks = nn.ModuleDict(gan_networks(sizes)).to(memory_format=LAYOUTS[variant])
        self.optimizers = {
            name: adam(network, variant, lr=2e-4, betas=(0.5, 0.999))
            for name, network in self.networks.items()
        }

    def discriminator_loss(self, real, z):
        with torch.no_grad():
            fake = self.networks["generator"](z)
        discriminator = self.networks["discriminator"]
        return (
            functional.softplus(-discriminator(real)).mean() + functional.softplus(discriminator(fake)).mean()
        )

    def generator_loss(self, z):
        return functional.softplus(-self.networks["discriminator"](self.networks["generator"](z))).mean()

    def gradient(self, name, loss):
        """Of one network's parameters only: nothing is computed for the other's."""
        parameters = list(self.networks[name].parameters())
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient

    def train_step(self, image):
        total = self.discriminator_loss(image, torch.randn(self.latent_shape))
        self.gradient("discriminator", total)
        self.optimizers["discriminator"].step()
        loss = self.generator_loss(torch.randn(self.latent_shape))
        self.gradient("generator", loss)
        self.optimizers["generator"].step()
        return (total + loss).detach()

    def check(self, bits, noise):
        losses = {
            "discriminator": self.discriminator_loss(bits, noise),
            "generator": self.generator_loss(noise),
        }
        for name, loss in losses.items():
            self.gradient(name, loss)
        return losses


def adam(module, variant, **options):
    return torch.optim.Adam(module.parameters(), **options, fused=True if variant == "tuned" else None)


class Side:
    """One system in one variant."""

    systems: ClassVar = {"mlp": VAE, "conv": VAE, "gan": GAN}

    def __init__(self, sizes, variant, threads):
        torch.set_num_threads(threads)
        torch.set_default_device(DEVICE)
        torch.set_float32_matmul_precision("high" if DEVICE == "cuda" else "highest")
        torch.manual_seed(0)
        height, width, channels = sizes.shape
        images = 2 * torch.rand(NUM_BATCHES * sizes.batch_size, channels, height, width) - 1
        self.layout = LAYOUTS[variant]
        self.batches = images.contiguous(memory_format=self.layout).chunk(NUM_BATCHES)
        self.system = self.systems[sizes.network](sizes, variant)

    def seconds(self, count):
        """Wall-clock time of `count` training steps."""
        total, since = torch.zeros(()), time.perf_counter()
        for batch in itertools.islice(itertools.cycle(self.batches), count):
            total += self.system.train_step(batch)
        total.item()
        return time.perf_counter() - since

    def check(self, given, answered):
        """Take over weights and inputs, write this side's losses and gradients."""
        arrays = {name: torch.from_numpy(array).to(DEVICE) for name, array in np.load(given).items()}
        parameters = dict(self.system.networks.named_parameters())
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(arrays[f"weight:{name}"])
        bits = arrays["bits"].contiguous(memory_format=self.layout)
        losses = self.system.check(bits, arrays["noise"])
        written = {f"loss:{name}": loss.detach().cpu().numpy() for name, loss in losses.items()}
        written |= {
            f"gradient:{name}": parameter.grad.cpu().numpy() for name, parameter in parameters.items()
        }
        np.savez(answered, **written)

    def peak_memory(self):
        return peak_memory()

    def versions(self):
        return {"torch": torch.__version__}


if __name__ == "__main__":
    serve(Side)
