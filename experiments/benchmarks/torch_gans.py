"""The same adversarial networks in PyTorch, served to `gan_step.py`; needs torch and NumPy, not jaxgen.

Layers have the names that Linen gives them, so that weights find their places.
"""

from typing import ClassVar

import torch
from torch import nn
from torch_models import GAN, HALVE, LAYOUTS, Flatten, Side, adam, gan_networks, sequential
from train_step import serve

EMA_DECAY = 0.999


def discriminator(sizes, normalized):
    (height, width, channels), (narrow, wide) = sizes.shape, sizes.hidden
    body = sequential(
        ("Conv_0", nn.Conv2d(channels, narrow, **HALVE)),
        nn.LeakyReLU(0.2),
        ("Conv_1", nn.Conv2d(narrow, wide, **HALVE, bias=not normalized)),
        *[("BatchNorm_0", nn.BatchNorm2d(wide))] * normalized,
        nn.LeakyReLU(0.2),
        Flatten(),
    )
    return sequential(("body", body), ("Dense_0", nn.Linear(height * width // 16 * wide, 1)))


class DCGAN(GAN):
    """Steps of the discriminator, each on its part of the batch, one of the generator, and of its average."""

    normalized, turns, rates = True, 1, {"lr": 2e-4, "betas": (0.5, 0.999)}

    def __init__(self, sizes, variant):
        self.latent_shape = sizes.batch_size // self.turns, sizes.num_latents
        networks = {
            "generator": gan_networks(sizes)["generator"],
            "discriminator": discriminator(sizes, self.normalized),
        }
        self.networks = nn.ModuleDict(networks).to(memory_format=LAYOUTS[variant])
        self.optimizers = {
            name: adam(network, variant, **self.rates) for name, network in self.networks.items()
        }
        self.averaged = [
            tensor.detach()
            for tensor in self.networks["generator"].state_dict(keep_vars=True).values()
            if tensor.is_floating_point()
        ]
        self.average = [tensor.clone() for tensor in self.averaged]

    def train_step(self, image):
        total = torch.zeros(())
        for part in image.chunk(self.turns):
            loss = self.discriminator_loss(part, torch.randn(self.latent_shape))
            self.gradient("discriminator", loss)
            self.optimizers["discriminator"].step()
            total += loss.detach()
        loss = self.generator_loss(torch.randn(self.latent_shape))
        self.gradient("generator", loss)
        self.optimizers["generator"].step()
        torch._foreach_lerp_(self.average, self.averaged, 1 - EMA_DECAY)
        return total + loss.detach()


class WGANGP(DCGAN):
    """The Wasserstein loss with a penalty on the critic's gradient, differentiated twice."""

    normalized, turns, rates = False, 5, {"lr": 1e-4, "betas": (0.5, 0.9)}
    weight = 10.0

    def share(self, count):
        return torch.rand(count)

    def discriminator_loss(self, real, z):
        with torch.no_grad():
            fake = self.networks["generator"](z)
        critic = self.networks["discriminator"]
        share = self.share(len(real)).reshape(-1, 1, 1, 1)
        between = (share * real + (1 - share) * fake).requires_grad_()
        (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
        norm = torch.sqrt(slope.square().sum((1, 2, 3)) + 1e-12)
        return critic(fake).mean() - critic(real).mean() + self.weight * (norm - 1).square().mean()

    def generator_loss(self, z):
        return -self.networks["discriminator"](self.networks["generator"](z)).mean()

    def check(self, bits, noise):
        self.share = lambda count: torch.linspace(0, 1, count)
        losses = super().check(bits, noise)
        del self.share  # random again from here on
        return losses


class GANSide(Side):
    """One of them in one variant."""

    systems: ClassVar = {"dcgan": DCGAN, "wgan_gp": WGANGP}


if __name__ == "__main__":
    serve(GANSide)
