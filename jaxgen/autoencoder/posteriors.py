"""What an encoder can propose for the latents: distributions as tuples of arrays, batch first.

Of each kind, the one whose arrays are all zero is the prior: N(0, I), its exponential, uniform categories.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen import distributions


class Gaussian(NamedTuple):
    """Independent z ~ N(mean, exp(log_variance))."""

    mean: Array  # (B, num_latents)
    log_variance: Array

    def sample(self, key: Array) -> Array:
        """A draw z, (B, num_latents), differentiable in mean and log-variance."""
        return self.mean + jnp.exp(0.5 * self.log_variance) * jax.random.normal(key, self.mean.shape)

    def log_prob(self, z: Array) -> Array:
        """log q(z), (B,)."""
        return distributions.normal_log_prob(z, self.mean, self.log_variance)

    def kl(self) -> Array:
        """KL to the prior, (B,)."""
        return distributions.kl_normal(self.mean, self.log_variance)

    def expectation(self) -> Array:
        """E[z], (B, num_latents)."""
        return self.mean


class LogNormal(NamedTuple):
    """Independent positive z with log z ~ N(mean, exp(log_variance))."""

    mean: Array  # (B, num_latents)
    log_variance: Array

    def sample(self, key: Array) -> Array:
        """A draw z, (B, num_latents), differentiable in mean and log-variance."""
        return jnp.exp(Gaussian(*self).sample(key))

    def log_prob(self, z: Array) -> Array:
        """log q(z), (B,)."""
        return distributions.lognormal_log_prob(z, self.mean, self.log_variance)

    def kl(self) -> Array:
        """KL to the prior, (B,)."""
        return distributions.kl_lognormal(self.mean, self.log_variance)

    def expectation(self) -> Array:
        """E[z], (B, num_latents)."""
        return jnp.exp(self.mean + 0.5 * jnp.exp(self.log_variance))


class Categorical(NamedTuple):
    """Independent variables, each one-hot among num_categories."""

    logits: Array  # (B, num_latents, num_categories)

    def sample(self, key: Array) -> Array:
        """An exact draw z, one-hot (B, num_latents, num_categories), without a gradient."""
        return jax.nn.one_hot(jax.random.categorical(key, self.logits), self.logits.shape[-1])

    def relaxed(self, key: Array, temperature: Array | float, hard: bool) -> Array:
        """A differentiable stand-in for `sample`, see `distributions.gumbel_softmax`."""
        return distributions.gumbel_softmax(key, self.logits, temperature, hard)

    def log_prob(self, z: Array) -> Array:
        """log q(z) of one-hot z, (B,)."""
        return distributions.sum_per_example(z * jax.nn.log_softmax(self.logits))

    def kl(self) -> Array:
        """KL to the prior, (B,)."""
        return distributions.kl_categorical(self.logits)

    def expectation(self) -> Array:
        """E[z], the probabilities, (B, num_latents, num_categories)."""
        return jax.nn.softmax(self.logits)


Posterior = Gaussian | LogNormal | Categorical


def gaussian(output: tuple[Array, Array]) -> Gaussian:
    """From an encoder's mean and log-variance, the latter kept in [-10, 10]."""
    mean, log_variance = map(jnp.float32, output)
    return Gaussian(mean, jnp.clip(log_variance, -10.0, 10.0))


def lognormal(output: tuple[Array, Array]) -> LogNormal:
    """From an encoder's mean and log-variance of log z, kept where no draw overflows float32."""
    mean, log_variance = map(jnp.float32, output)
    return LogNormal(jnp.clip(mean, -8.0, 8.0), jnp.clip(log_variance, -10.0, 2.0))


def categorical(output: Array) -> Categorical:
    """From an encoder's logits."""
    return Categorical(jnp.float32(output))


FROM_ENCODER: dict[str, Callable[[Any], Posterior]] = {
    "gaussian": gaussian,
    "lognormal": lognormal,
    "categorical": categorical,
}
"""By the names of `vae.Config.posterior`."""


def prior(posterior: Posterior) -> Posterior:
    """The prior of a posterior's kind and shape."""
    return jax.tree.map(jnp.zeros_like, posterior)
