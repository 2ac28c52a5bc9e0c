"""What `ddpm` minimises: squared errors, the variational bound, or both."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen import values
from jaxgen.diffusion import processes
from jaxgen.fields import NonNegativeFloat


@dataclasses.dataclass(frozen=True)
class Simple(values.Value):
    """The mean squared error of what the network predicts (Ho, Jain & Abbeel 2020)."""

    teaches_variance: ClassVar[bool] = False

    min_snr: NonNegativeFloat = 0.0
    """Weigh errors of x_0 by min(SNR, this) in place of the target's own weight (Hang et al. 2023); 0 does
    not."""

    def __call__(
        self, mse: Array, bits: Callable[[bool], Array], t: Array, gaussian: processes.Gaussian, target: str
    ) -> tuple[Array, dict[str, Array]]:
        """The loss, () and metrics of the batch.

        Args:
            mse: squared error of each example a dimension, (B,).
            bits: the mean of the bound in bits a dimension; given True, the predicted target is held, so that
                only the variance learns.
            t: times of the examples, (B,).
            target: what is predicted.
        """
        del bits
        return (self.weights(gaussian, target)[t] * mse).mean(), {}

    def weights(self, gaussian: processes.Gaussian, target: str) -> Array:
        """Weight of the squared error of the target at each time, (T,)."""
        num_steps = len(gaussian.betas)
        if not self.min_snr:
            return jnp.ones(num_steps)
        snr = np.exp(processes.log_snr(gaussian, np.arange(num_steps)))
        own: Any = {"eps": snr, "x0": 1.0, "v": snr + 1}[target]
        return jnp.float32(np.minimum(snr, self.min_snr) / own)


@dataclasses.dataclass(frozen=True)
class Hybrid(Simple):
    """The squared error, and a little of the bound, which trains the variance (Nichol & Dhariwal 2021)."""

    teaches_variance: ClassVar[bool] = True

    weight: NonNegativeFloat = 1e-3
    """Weight of the bound, in bits a dimension."""

    def __call__(
        self, mse: Array, bits: Callable[[bool], Array], t: Array, gaussian: processes.Gaussian, target: str
    ) -> tuple[Array, dict[str, Array]]:
        """As that of `Simple`."""
        found = bits(True)
        simple = (self.weights(gaussian, target)[t] * mse).mean()
        return simple + self.weight * found, {"bits_per_dim": found}


@dataclasses.dataclass(frozen=True)
class Bound(values.Value):
    """The variational bound itself, in bits a dimension."""

    teaches_variance: ClassVar[bool] = True

    def __call__(
        self, mse: Array, bits: Callable[[bool], Array], t: Array, gaussian: processes.Gaussian, target: str
    ) -> tuple[Array, dict[str, Array]]:
        """As that of `Simple`."""
        del mse, t, gaussian, target
        found = bits(False)
        return found, {"bits_per_dim": found}
