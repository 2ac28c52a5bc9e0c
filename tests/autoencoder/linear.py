"""Networks of tests: linear ones, under which a Gaussian VAE has exact answers, and small ones."""

import flax.linen as nn
import jax.numpy as jnp

from jaxgen.autoencoder.networks import ConvDecoder, ConvEncoder, DenseDecoder, DenseEncoder


def dense(*widths, **options):
    """Fields of a Config: fully connected networks, the decoder with the widths reversed."""
    return {"encoder": DenseEncoder(widths, **options), "decoder": DenseDecoder(widths[::-1], **options)}


def convolutional(*channels, **options):
    """Fields of a Config: convolutional networks, the decoder with the channels reversed."""
    return {"encoder": ConvEncoder(channels, **options), "decoder": ConvDecoder(channels[::-1], **options)}


class LinearEncoder(nn.Module):
    @nn.compact
    def __call__(self, x):
        log_variance = self.param("log_variance", nn.initializers.zeros, (2,))
        return nn.Dense(2)(x), jnp.broadcast_to(log_variance, (len(x), 2))


class LinearDecoder(nn.Module):
    @nn.compact
    def __call__(self, z):
        return nn.Dense(5)(z)
