"""Likelihoods of bits, of real numbers, and of levels under a mixture of logistics."""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen import distributions
from jaxgen.fields import NonNegativeInt, PositiveFloat, PositiveInt
from jaxgen.likelihoods.base import Likelihood, sharpened


@dataclasses.dataclass(frozen=True)
class Bernoulli(Likelihood):
    """Independent bits, written -1 and 1; the output is their logits.

    Bits drawn once for each picture come from data that `data.transforms.binarised` has drawn.
    """

    binarisation: Literal["dynamic", "threshold"] = "dynamic"
    """Draw the bits from the grey values afresh at every presentation, or cut the grey values at 1/2."""

    measure = "bits"

    def first_bias(self, mean: Array) -> Array:
        """The logits of the mean grey value, kept in [0.01, 0.99]."""
        mean = jnp.clip((mean + 1) / 2, 0.01, 0.99)
        return jnp.log(mean) - jnp.log1p(-mean)

    def targets(self, key: Array | None, x: Array) -> Array:
        """Bits of grey values x on [-1, 1]; without a key these are cut at 1/2."""
        if self.binarisation == "threshold" or key is None:
            one = x > 0
        else:
            one = distributions.bernoulli(key, (x + 1) / 2)
        return jnp.where(one, 1.0, -1.0)

    def inputs(self, x: Array) -> Array:
        """x on [0, 1]: black is 0, for a large constant input slows the first layer down by nats."""
        return (x + 1) / 2

    def log_prob(self, params: Any, output: Array, x: Array) -> Array:
        """log P(x | z) of bits, (B,)."""
        return distributions.bernoulli_log_prob((x + 1) / 2, output)

    def mean(self, params: Any, output: Array) -> Array:
        """E[x | z] on [-1, 1]."""
        return 2 * jax.nn.sigmoid(output) - 1

    def sample(self, key: Array, params: Any, output: Array) -> Array:
        """Bits, -1 and 1."""
        return 2.0 * distributions.bernoulli(key, jax.nn.sigmoid(output)) - 1

    def sharpened(
        self, output: Array, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
    ) -> Array:
        """Logits over the temperature; see `Softmax.sharpened`, of two symbols."""
        logits = sharpened(jnp.stack([jnp.zeros_like(output), output], -1), temperature, top_k, top_p)
        return logits[..., 1] - logits[..., 0]


@dataclasses.dataclass(frozen=True)
class Gaussian(Likelihood):
    """Independent real numbers; the output is their means, with predicted noise also their log-variances."""

    noise: Literal["fixed", "learned", "predicted"] = "fixed"
    """The standard deviation is given, learned for all dimensions together, or decoded for each one."""
    std: PositiveFloat = 0.1
    """Standard deviation of p(x | z), or where it starts."""
    dequantize: bool = True
    """Add uniform noise as wide as the distance of two levels in training, if the data have levels."""
    levels: NonNegativeInt | None = None
    """Values that a pixel of the data has, 0 for real numbers; filled in from the Config."""

    measure = "density"

    def num_outputs(self, num_channels: int) -> int:
        """One number for each channel, with predicted noise two."""
        return num_channels * (2 if self.noise == "predicted" else 1)

    def init(self) -> dict[str, Array]:
        """The logarithm of the standard deviation, where it is learned."""
        return {"log_std": jnp.log(jnp.float32(self.std))} if self.noise == "learned" else {}

    def first_bias(self, mean: Array) -> Array:
        """The mean of the data, and the variance that `std` has."""
        return jnp.concatenate([mean, 0 * mean], -1) if self.noise == "predicted" else mean

    def training_targets(self, key: Array, x: Array) -> Array:
        """Levels spread over the distance to the next ones, so that no density of them is unbounded."""
        if not (self.dequantize and self.levels):
            return x
        return x + 2 / (self.levels - 1) * (jax.random.uniform(key, x.shape) - 0.5)

    def log_prob(self, params: Any, output: Array, x: Array) -> Array:
        """log p(x | z), a density, (B,)."""
        return distributions.normal_log_prob(x, *self._moments(params, output))

    def mean(self, params: Any, output: Array) -> Array:
        """E[x | z]."""
        return self._moments(params, output)[0]

    def sample(self, key: Array, params: Any, output: Array) -> Array:
        """Real numbers."""
        mean, log_variance = self._moments(params, output)
        return mean + jnp.exp(0.5 * log_variance) * jax.random.normal(key, mean.shape)

    def _moments(self, params: Any, output: Array) -> tuple[Array, Array]:
        """Mean and log-variance, the latter of the mean's shape or ()."""
        if self.noise == "predicted":
            mean, log_variance = jnp.split(output, 2, -1)
            return mean, jnp.clip(log_variance + 2 * math.log(self.std), -10.0, 10.0)
        log_std = params["log_std"] if self.noise == "learned" else math.log(self.std)
        return output, jnp.float32(2 * log_std)


@dataclasses.dataclass(frozen=True)
class LogisticMixture(Likelihood):
    """Levels of pixels of one or three channels, under a mixture of logistics integrated over each level.

    The output are the parameters that `distributions.discretized_logistic_mixture_log_prob` takes.
    """

    num_components: PositiveInt = 10
    """Logistics in the mixture of a pixel."""
    shape: tuple[PositiveInt, ...] | None = None
    """Shape of an example; filled in from the Config."""
    levels: NonNegativeInt | None = None
    """Values that a pixel of the data has; filled in from the Config."""

    measure = "levels"

    def check(self, shape: tuple[int, ...]) -> None:
        """Raises ValueError for what is no image of one or three channels, or has no levels."""
        if len(shape) != 3 or shape[2] not in (1, 3):
            raise ValueError(
                f"a mixture of logistics is for images of 1 or 3 channels, got {shape}: try Gaussian"
            )
        if not self.levels or self.levels < 2:
            raise ValueError(
                "a mixture of logistics is for pixels with levels, not for real numbers: try Gaussian"
            )

    def num_outputs(self, num_channels: int) -> int:
        """The parameters of the mixture of a pixel."""
        return self.num_components * (3 if num_channels == 1 else 10)

    def symbol_size(self, num_channels: int) -> int:
        """All channels of a pixel."""
        return num_channels

    def first_bias(self, mean: Array) -> Array:
        """A mixture whose components lie evenly over [-1, 1]."""
        num_channels, ones = mean.shape[-1], jnp.ones(self.num_components)
        means = [jnp.linspace(-1.0, 1.0, self.num_components)] * num_channels
        coefficients = [0 * ones] * num_channels * (num_channels > 1)
        spread = jnp.concatenate([0 * ones, *means, *[-2 * ones] * num_channels, *coefficients])
        return jnp.broadcast_to(spread, (*mean.shape[:-1], spread.size))

    def targets(self, key: Array | None, x: Array) -> Array:
        """x at the nearest of the levels spread evenly over [-1, 1]; 17 levels in 8 bits lie beside them."""
        half = ((self.levels or 256) - 1) / 2
        return jnp.round((x + 1) * half) / half - 1

    def log_prob(self, params: Any, output: Array, x: Array) -> Array:
        """log P(x | z) of levels, (B,)."""
        return distributions.discretized_logistic_mixture_log_prob(x, output, self.levels or 256)

    def mean(self, params: Any, output: Array) -> Array:
        """E[x | z] to within half a level."""
        return distributions.discretized_logistic_mixture_mean(output, (self.shape or (1,))[-1])

    def sample(self, key: Array, params: Any, output: Array) -> Array:
        """Levels."""
        num_channels = (self.shape or (1,))[-1]
        return distributions.discretized_logistic_mixture_sample(
            key, output, num_channels, self.levels or 256
        )

    def sharpened(
        self, output: Array, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
    ) -> Array:
        """Logits of components over the temperature, and scales by it, down to the smallest of a mixture.

        At temperature 0 it is the mean of the likeliest component.
        Raises ValueError for top_k or top_p.
        """
        if top_k is not None or top_p is not None:
            raise ValueError("a mixture of logistics has no top_k or top_p: it has a temperature")
        if temperature == 1.0:
            return output
        num_channels, size = (self.shape or (1,))[-1], self.num_components
        logits, means, log_scales, rest = jnp.split(
            output, [size, (1 + num_channels) * size, (1 + 2 * num_channels) * size], -1
        )
        logits = sharpened(logits, temperature)
        log_scales = log_scales + (math.log(temperature) if temperature else -math.inf)
        return jnp.concatenate([logits, means, log_scales, rest], -1)
