"""What a decoder's output can mean: distributions of the data as tuples of arrays, batch first."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen import distributions

PIXEL_STEP = 2 / 255
"""Distance of neighbouring 8-bit levels on [-1, 1]."""


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


def targets(key: Array, x: Array, cfg: Any) -> Array:
    """What the density is of: bits written -1 and 1, or pixels, spread over their level if it is Gaussian."""
    if cfg.likelihood == "logistic_mixture":
        return x
    if cfg.likelihood == "gaussian":
        noise = PIXEL_STEP * (jax.random.uniform(key, x.shape) - 0.5)
        return x + noise if cfg.dequantize else x
    if cfg.binarisation == "threshold":
        return jnp.where(x > 0, 1.0, -1.0)
    if cfg.binarisation == "static":
        return jnp.where(_static_bits(x), 1.0, -1.0)
    return jnp.where(distributions.bernoulli(key, (x + 1) / 2), 1.0, -1.0)


def first_bias(x: Array, cfg: Any) -> Array:
    """The output bias at which an undecided decoder predicts the mean of x, or, a mixture, any level."""
    mean = x.mean(0) if cfg.network == "mlp" else x.mean((0, 1, 2))
    if cfg.likelihood == "bernoulli":
        mean = jnp.clip((mean + 1) / 2, 0.01, 0.99)
        return jnp.log(mean) - jnp.log1p(-mean)
    if cfg.likelihood == "logistic_mixture":
        spread = spread_mixture(cfg.num_components, cfg.shape[-1])
        return jnp.broadcast_to(spread, (*mean.shape[:-1], spread.size))
    return jnp.concatenate([mean, 0 * mean], -1) if cfg.noise == "predicted" else mean


def _static_bits(x: Array) -> Array:
    """Bits with the grey values as probabilities, drawn by a key that is a hash of the picture."""
    levels = jnp.round((x + 1) * 127.5).astype(jnp.uint32).reshape(x.shape[0], -1)
    key = jax.random.key(0)
    multipliers = jax.random.bits(key, levels.shape[1:]) | 1
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, (levels * multipliers).sum(-1))
    return jax.vmap(lambda key, p: distributions.bernoulli(key, p[None])[0])(keys, (x + 1) / 2)
