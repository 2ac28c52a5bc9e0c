"""What every likelihood has, and distributions with likelier draws."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen.values import Value

TINY = float(np.finfo(np.float32).tiny)
"""What is smaller is 0 in float32."""


class Likelihood(Value):
    """A distribution of x (B, *shape) given a network's output (B, *shape[:-1], num_outputs).

    `params` are what `init` gives, parameters of the likelihood itself that are trained with the networks.
    Its fields `shape` and `levels` are filled in from the Config where they are None. An autoregressive model
    has it of symbols: x (B, T, symbol_size) and output (B, T, num_outputs).
    """

    measure: str
    """What `log_prob` is of: "density", "levels", "bits", "counts" or "symbols"."""

    def check(self, shape: tuple[int, ...]) -> None:
        """Raises ValueError for a shape of data that the likelihood cannot take."""

    def num_outputs(self, num_channels: int) -> int:
        """Numbers that the network gives for a position of the data, which has num_channels."""
        return num_channels

    def symbol_size(self, num_channels: int) -> int:
        """How many of num_channels an autoregressive model predicts at once, by default one."""
        del num_channels
        return 1

    def init(self) -> dict[str, Array]:
        """Parameters of the likelihood itself, before training."""
        return {}

    def first_bias(self, mean: Array) -> Array:
        """The output (..., num_outputs) at which an undecided decoder starts, by the mean of x (..., C)."""
        return mean

    def targets(self, key: Array | None, x: Array) -> Array:
        """What the likelihood is of, given data x; without a key nothing is drawn."""
        return x

    def training_targets(self, key: Array, x: Array) -> Array:
        """What the likelihood is of in training."""
        return self.targets(key, x)

    def inputs(self, x: Array) -> Array:
        """What a network is given of data or targets x, (..., C) -> (..., F)."""
        return x

    def log_prob(self, params: Any, output: Array, x: Array) -> Array:
        """log p(x | z) of targets x, (B,), summed over all their positions."""
        raise NotImplementedError

    def mean(self, params: Any, output: Array) -> Array:
        """E[x | z], (B, *shape)."""
        raise NotImplementedError

    def sample(self, key: Array, params: Any, output: Array) -> Array:
        """A draw of x given z, (B, *shape)."""
        raise NotImplementedError

    def sharpened(
        self, output: Array, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
    ) -> Array:
        """The output of a distribution with likelier draws.

        At temperature 0 only the likeliest is drawn, at 1 all are as they were. `top_k` keeps so many of the
        likeliest symbols, `top_p` as few of them as together have this probability (Holtzman et al. 2020).
        Raises ValueError for what the likelihood cannot do.
        """
        if temperature != 1.0 or top_k is not None or top_p is not None:
            raise ValueError(f"{type(self).__name__} knows no temperature, top_k or top_p")
        return output


def sharpened(
    logits: Array, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Array:
    """Logits (..., K) of a distribution with likelier draws, see `Likelihood.sharpened`.

    Of equally likely symbols at the border all are kept. Raises ValueError for a temperature that is no
    finite number from 0 on, top_k below 1, and top_p outside of (0, 1].
    """
    if not 0 <= temperature < np.inf:
        raise ValueError(f"a temperature is a finite number from 0 on, not {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be in (0, 1], got {top_p}")
    largest = logits.max(-1, keepdims=True)
    if temperature < TINY:
        return jnp.where(logits == largest, 0.0, -jnp.inf)
    logits = (logits - largest) / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        lowest = jax.lax.top_k(logits, top_k)[0][..., -1:]
        logits = jnp.where(logits >= lowest, logits, -jnp.inf)
    if top_p is not None:
        descending = -jnp.sort(-logits, -1)
        probability = jax.nn.softmax(descending)
        needed = probability.cumsum(-1) - probability < max(top_p, TINY)  # those before have less than top_p
        lowest = jnp.where(needed, descending, jnp.inf).min(-1, keepdims=True)
        logits = jnp.where(logits >= lowest, logits, -jnp.inf)
    return logits
