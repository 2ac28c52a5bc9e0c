"""What a decoder's output can mean: distributions of the data as tuples of arrays, batch first."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen import distributions


class Bernoulli(NamedTuple):
    """Independent bits, written -1 and 1."""

    logits: Array  # (B, *shape)

    def log_prob(self, x: Array) -> Array:
        """log p(x), (B,)."""
        return distributions.bernoulli_log_prob((x + 1) / 2, self.logits)

    def mean(self) -> Array:
        """E[x] on [-1, 1], (B, *shape)."""
        return 2 * jax.nn.sigmoid(self.logits) - 1

    def sample(self, key: Array) -> Array:
        """A draw, (B, *shape)."""
        return 2.0 * distributions.bernoulli(key, jax.nn.sigmoid(self.logits)) - 1


class Gaussian(NamedTuple):
    """Independent real numbers."""

    location: Array  # (B, *shape)
    log_variance: Array  # (B, *shape) or ()

    def log_prob(self, x: Array) -> Array:
        """log p(x), (B,)."""
        return distributions.normal_log_prob(x, self.location, self.log_variance)

    def mean(self) -> Array:
        """E[x], (B, *shape)."""
        return self.location

    def sample(self, key: Array) -> Array:
        """A draw, (B, *shape)."""
        noise = jax.random.normal(key, self.location.shape)
        return self.location + jnp.exp(0.5 * self.log_variance) * noise


class LogisticMixture(NamedTuple):
    """8-bit pixels of one or three channels under a discretised mixture of logistics."""

    parameters: Array  # (B, height, width, 3 or 10 times the components)
    num_channels: int

    def log_prob(self, x: Array) -> Array:
        """log P(x), (B,)."""
        return distributions.discretized_logistic_mixture_log_prob(x, self.parameters)

    def mean(self) -> Array:
        """E[x] to within half a level, (B, height, width, channels)."""
        return distributions.discretized_logistic_mixture_mean(self.parameters, self.num_channels)

    def sample(self, key: Array) -> Array:
        """A draw, (B, height, width, channels)."""
        return distributions.discretized_logistic_mixture_sample(key, self.parameters, self.num_channels)


Likelihood = Bernoulli | Gaussian | LogisticMixture


def spread_mixture(num_components: int, num_channels: int) -> Array:
    """Parameters of a mixture whose components lie evenly over [-1, 1], to start from."""
    ones = jnp.ones(num_components)
    means = [jnp.linspace(-1.0, 1.0, num_components)] * num_channels
    coefficients = [0 * ones] * num_channels * (num_channels > 1)
    return jnp.concatenate([0 * ones, *means, *[-2 * ones] * num_channels, *coefficients])
