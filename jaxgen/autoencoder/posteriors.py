"""Posteriors q(z | x) of a VAE: what the encoder's output means, and the prior p(z) that belongs to it.

A posterior of one's own is a frozen dataclass that derives from `Posterior`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen import distributions
from jaxgen.fields import NonNegativeFloat, PositiveFloat, PositiveInt
from jaxgen.values import Value


class Posterior(Value):
    """A kind of distributions of z (B, num_latents, ...).

    Each is told by `q`, a tree of arrays whose first axis is that of the batch. The prior is the one whose
    encoder gives zeros, unless `prior` says otherwise.
    """

    reparameterised: bool = True
    """Whether `draw` has a density, `log_prob`, that objectives may weigh it by."""
    exact: bool = True
    """Whether `draw` is a draw of q, so that the ELBO of training is a bound."""
    closed_form: bool = True
    """Whether there is `kl`; without it log q(z) - log p(z) at the draws takes its place."""
    told_by_q: bool = True
    """Whether `q` holds all that the density of z given x depends on."""

    def init(self, key: Array, num_latents: int) -> Any:
        """Parameters that q or p(z) have beside those of the encoder; none here."""
        return {}

    def bound(self, params: Any) -> "Posterior":
        """The distributions with their parameters, which all methods below may need."""
        return self

    def num_outputs(self, num_latents: int) -> int:
        """Numbers that the encoder gives for an example."""
        raise NotImplementedError

    def read(self, output: Any, num_latents: int) -> Any:
        """q of an encoder's output (B, num_outputs)."""
        raise NotImplementedError

    def prior(self, n: int, num_latents: int) -> Any:
        """p(z) in the form of `read`, n times."""
        return self.read(jnp.zeros((n, self.num_outputs(num_latents))), num_latents)

    def sample(self, key: Array, q: Any) -> Array:
        """A draw of z, (B, num_latents, ...)."""
        raise NotImplementedError

    def draw(self, key: Array, q: Any, step: Array | int) -> Array:
        """A draw for training step number `step`, differentiable in q."""
        return self.sample(key, q)

    def proposed(self, key: Array, q: Any, step: Array | int | None = None) -> tuple[Array, Array]:
        """A draw of z, that of `draw` if a step is given, and log q(z), (B,)."""
        z = self.sample(key, q) if step is None else self.draw(key, q, step)
        return z, self.log_prob(q, z)

    def prior_sample(self, key: Array, n: int, num_latents: int) -> Array:
        """n draws of p(z), (n, num_latents, ...)."""
        return self.sample(key, self.prior(n, num_latents))

    def prior_log_prob(self, z: Array) -> Array:
        """log p(z), (B,)."""
        return self.log_prob(self.prior(len(z), z.shape[1]), z)

    def log_prob(self, q: Any, z: Array) -> Array:
        """log q(z), (B,)."""
        raise NotImplementedError

    def kl(self, q: Any) -> Array:
        """KL(q || p), (B,)."""
        raise NotImplementedError

    def kl_at(self, q: Any, z: Array, log_q: Array) -> Array:
        """`kl` of q, or without a closed form log q(z) - log p(z) at draws z, which it is on average."""
        return self.kl(q) if self.closed_form else log_q - self.prior_log_prob(z)

    def mean(self, q: Any) -> Array:
        """E_q[z], (B, num_latents, ...)."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Gaussian(Posterior):
    """Independent z ~ N(mean, exp(log_variance)) and the prior N(0, I); q is (mean, log_variance).

    The encoder gives both, as a pair (B, num_latents) or side by side; the log-variance is kept in [-10, 10].
    """

    def num_outputs(self, num_latents: int) -> int:
        """Two numbers for each latent variable."""
        return 2 * num_latents

    def read(self, output: Any, num_latents: int) -> tuple[Array, Array]:
        """Mean and log-variance, (B, num_latents)."""
        mean, log_variance = _pair(output)
        return mean, jnp.clip(log_variance, -10.0, 10.0)

    def sample(self, key: Array, q: Any) -> Array:
        """A draw of z, differentiable in q."""
        mean, log_variance = q
        return mean + jnp.exp(0.5 * log_variance) * jax.random.normal(key, mean.shape)

    def log_prob(self, q: Any, z: Array) -> Array:
        """log q(z), (B,)."""
        return distributions.normal_log_prob(z, *q)

    def kl(self, q: Any) -> Array:
        """KL to N(0, I), (B,)."""
        return distributions.kl_normal(*q)

    def mean(self, q: Any) -> Array:
        """E_q[z]."""
        return q[0]


@dataclasses.dataclass(frozen=True)
class LogNormal(Posterior):
    """Independent positive z with log z ~ N(mean, exp(log_variance)); log z ~ N(0, I) in the prior.

    The encoder gives mean and log-variance of log z, as a pair (B, num_latents) or side by side. They are
    kept where no draw overflows float32.
    """

    def num_outputs(self, num_latents: int) -> int:
        """Two numbers for each latent variable."""
        return 2 * num_latents

    def read(self, output: Any, num_latents: int) -> tuple[Array, Array]:
        """Mean and log-variance of log z, (B, num_latents)."""
        mean, log_variance = _pair(output)
        return jnp.clip(mean, -8.0, 8.0), jnp.clip(log_variance, -10.0, 2.0)

    def sample(self, key: Array, q: Any) -> Array:
        """A draw of z, differentiable in q."""
        return jnp.exp(Gaussian().sample(key, q))

    def log_prob(self, q: Any, z: Array) -> Array:
        """log q(z), (B,)."""
        return distributions.lognormal_log_prob(z, *q)

    def kl(self, q: Any) -> Array:
        """KL to the exponential of N(0, I), (B,)."""
        return distributions.kl_lognormal(*q)

    def mean(self, q: Any) -> Array:
        """E_q[z]."""
        mean, log_variance = q
        return jnp.exp(mean + 0.5 * jnp.exp(log_variance))


@dataclasses.dataclass(frozen=True)
class Categorical(Posterior):
    """Independent one-hot variables z (B, num_latents, num_categories) and a uniform prior; q are the logits.

    They are trained through the Gumbel-Softmax (Jang et al. 2017; Maddison et al. 2017).
    """

    num_categories: PositiveInt = 10
    """Categories of each variable."""
    temperature: PositiveFloat = 1.0
    """Temperature of the Gumbel-Softmax at the first step."""
    temperature_decay: NonNegativeFloat = 3e-5
    """The temperature falls by the factor exp(-temperature_decay) at every step."""
    min_temperature: PositiveFloat = 0.5
    """The temperature below which it does not fall."""
    straight_through: bool = False
    """Decode exact draws, with the gradient of the relaxed ones."""

    reparameterised = False

    @property
    def exact(self) -> bool:  # type: ignore[override]
        """Relaxed draws are not those of q."""
        return self.straight_through

    def num_outputs(self, num_latents: int) -> int:
        """A logit for each category of each variable."""
        return num_latents * self.num_categories

    def read(self, output: Any, num_latents: int) -> Array:
        """Logits (B, num_latents, num_categories)."""
        return jnp.float32(output).reshape(-1, num_latents, self.num_categories)

    def sample(self, key: Array, q: Any) -> Array:
        """A draw of z, one-hot, without a gradient."""
        return jax.nn.one_hot(jax.random.categorical(key, q), self.num_categories)

    def draw(self, key: Array, q: Any, step: Array | int) -> Array:
        """A relaxed draw at the temperature of the step, see `distributions.gumbel_softmax`."""
        return distributions.gumbel_softmax(key, q, self.temperature_at(step), self.straight_through)

    def temperature_at(self, step: Array | int) -> Array:
        """Temperature of the Gumbel-Softmax at a step, ()."""
        falling = self.temperature * jnp.exp(-self.temperature_decay * jnp.float32(step))
        return jnp.maximum(falling, min(self.temperature, self.min_temperature))

    def log_prob(self, q: Any, z: Array) -> Array:
        """log q(z) of one-hot z, (B,)."""
        # What is not drawn counts as nothing, also where it cannot be drawn.
        return distributions.sum_per_example(jnp.where(z == 0, 0.0, z * jax.nn.log_softmax(q)))

    def kl(self, q: Any) -> Array:
        """KL to uniform categories, (B,)."""
        return distributions.kl_categorical(q)

    def mean(self, q: Any) -> Array:
        """E_q[z], the probabilities."""
        return jax.nn.softmax(q)


def _pair(output: Any) -> tuple[Array, Array]:
    """Two arrays (B, num_latents) in float32, from a pair or from one array with both side by side."""
    first, second = output if isinstance(output, tuple | list) else jnp.split(output, 2, -1)
    return jnp.float32(first), jnp.float32(second)
