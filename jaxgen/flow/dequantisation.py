"""Noise within the levels of pixels, as values: uniform, or as a flow of its own learns it (Ho et al. 2019).

With noise u of density q(u | x) in each level, pixels x of a model p of real numbers have

    log P(x) >= E_q [log p(x + u) - log q(u | x)],

which is the tighter the nearer q is to what p says of the places within a level (Theis et al. 2016; Ho et
al. 2019). A `Dequantisation` draws x + u, and gives log q relative to uniform noise. The bound then is in the
convention of a density, that of log p(x + u) with uniform noise, for which the term is 0.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jaxgen import distributions, keys
from jaxgen.fields import PositiveInt
from jaxgen.flow import bijectors, conditioned
from jaxgen.flow.multiscale import checkerboard
from jaxgen.flow.preprocessing import dequantised
from jaxgen.flow.transforms import Affine
from jaxgen.nn.couplings import ResNet
from jaxgen.values import Value


class Dequantisation(Value):
    """A kind of noise, see the module."""

    def init(self, key: Array, shape: tuple[int, ...], levels: int, x: Array | None = None) -> Any:
        """Parameters, for images of this shape; images x (B, *shape) set those that depend on data.

        Raises ValueError for a kind that these images cannot have.
        """
        raise NotImplementedError

    def draw(self, key: Array, params: Any, x: Array, levels: int) -> tuple[Array, Array]:
        """Images x (B, H, W, C) with noise, and the log of its density relative to uniform noise, (B,)."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Uniform(Dequantisation):
    """Any place within a level is as likely."""

    def init(self, key: Array, shape: tuple[int, ...], levels: int, x: Array | None = None) -> Any:
        """There are no parameters."""
        del key, shape, levels, x
        return ()

    def draw(self, key: Array, params: Any, x: Array, levels: int) -> tuple[Array, Array]:
        """`preprocessing.dequantised`, and 0."""
        del params
        return dequantised(key, x, levels), bijectors.no_change(x)


@dataclasses.dataclass(frozen=True)
class Variational(Dequantisation):
    """A flow of couplings that read the image says where within a level (Ho et al. 2019, section 3.1).

    Their last function is that of the normal distribution in place of the logistic one, so that the noise is
    uniform at first, and the couplings are affine in place of mixtures.
    """

    num_layers: PositiveInt = 4
    """Couplings."""
    network: ResNet | nn.Module = ResNet(width=16, num_blocks=1)
    """Network of a coupling: takes noise (B, H, W, C) and images (B, H, W, C), and gives `num_outputs`
    numbers for each position."""

    def init(self, key: Array, shape: tuple[int, ...], levels: int, x: Array | None = None) -> Any:
        """Those of the couplings. Raises ValueError for data without levels."""
        if levels < 2:
            raise ValueError("variational dequantisation is for pixels, and these data have no levels")
        noise_key, params_key = keys.named(key, "noise", "params")
        noise = None if x is None else jax.random.normal(noise_key, x.shape, x.dtype)
        return self._couplings(shape).init(params_key, noise, x)

    def draw(self, key: Array, params: Any, x: Array, levels: int) -> tuple[Array, Array]:
        """x + u, and log q(u | x) where u is measured in levels."""
        noise = jax.random.normal(key, x.shape, x.dtype)
        y, log_det = self._couplings(x.shape[1:]).inverse(params, noise, x)
        u = jax.scipy.special.ndtr(y) - 0.5
        # Of y under the couplings, less that under the normal distribution, under which u would be uniform.
        log_ratio = distributions.normal_log_prob(noise) - log_det - distributions.normal_log_prob(y)
        return x + 2 / (levels - 1) * u.astype(x.dtype), log_ratio

    def _couplings(self, shape: tuple[int, ...]) -> bijectors.Bijector:
        def layer(index):
            mask = checkerboard(shape, index)
            return conditioned.coupling(self.network, Affine(), mask, num_context=shape[-1])

        return bijectors.scanned(layer, self.num_layers)


def nearest(x: Array, levels: int) -> Array:
    """The level of pixels on [-1, 1] that is nearest to each of x; x itself without `levels`."""
    if not levels:
        return x
    return jnp.clip(jnp.round((x + 1) / 2 * (levels - 1)), 0, levels - 1) * 2 / (levels - 1) - 1
