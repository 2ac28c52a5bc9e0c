"""Monotone functions of one number, whose parameters a network gives: the parts of couplings and of
autoregressive flows.

`forward(raw, x)` and `inverse(raw, y)` take raw (..., num_parameters), the output of a network, and numbers
(...), and return the result and the logarithm of the slope of the map which is called, both (...). With raw =
0 they are the identity, but for `SigmoidAffine`, so that a flow whose last layers are zero at first begins as
one. One's own is a frozen dataclass that derives from `Transform`.
"""

import dataclasses
import math
from typing import Annotated

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen.fields import FiniteFloat, PositiveFloat, Range
from jaxgen.flow import splines
from jaxgen.values import Value

MAX_SLOPE = 1000.0
"""Largest slope of a spline at a knot; its inverse is the smallest."""
MIN_BIN = 1e-3
"""Smallest width and height of a bin of a spline, as a share of all."""


class Transform(Value):
    """A kind of monotone functions, see the module."""

    @property
    def num_parameters(self) -> int:
        """Numbers that a network gives for each number of the data."""
        raise NotImplementedError

    def forward(self, raw: Array, x: Array) -> tuple[Array, Array]:
        """y and log(dy/dx)."""
        raise NotImplementedError

    def inverse(self, raw: Array, y: Array) -> tuple[Array, Array]:
        """x and log(dx/dy)."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Additive(Transform):
    """y = x + t, which changes no volume (Dinh et al. 2015)."""

    @property
    def num_parameters(self) -> int:
        """t."""
        return 1

    def forward(self, raw: Array, x: Array) -> tuple[Array, Array]:
        """y and 0."""
        return x + raw[..., 0], jnp.zeros_like(raw[..., 0])

    def inverse(self, raw: Array, y: Array) -> tuple[Array, Array]:
        """x and 0."""
        return y - raw[..., 0], jnp.zeros_like(raw[..., 0])


@dataclasses.dataclass(frozen=True)
class Affine(Transform):
    """y = x exp(s) + t, with s = m tanh(s' / m) bounded (Dinh et al. 2017)."""

    max_log_scale: PositiveFloat = 5.0
    """m, the bound of s; the smaller, the less can one layer stretch and shrink."""

    @property
    def num_parameters(self) -> int:
        """s' and t."""
        return 2

    def forward(self, raw: Array, x: Array) -> tuple[Array, Array]:
        """y and s."""
        log_scale, shift = self._read(raw)
        return x * jnp.exp(log_scale) + shift, log_scale

    def inverse(self, raw: Array, y: Array) -> tuple[Array, Array]:
        """x and -s."""
        log_scale, shift = self._read(raw)
        return (y - shift) * jnp.exp(-log_scale), -log_scale

    def _read(self, raw: Array) -> tuple[Array, Array]:
        return soft_bounded(raw[..., 0], self.max_log_scale), raw[..., 1]


@dataclasses.dataclass(frozen=True)
class SigmoidAffine(Transform):
    """y = (x + t) sigmoid(s + offset), which only shrinks (Kingma & Dhariwal 2018, their code)."""

    offset: FiniteFloat = 2.0
    """With s = 0 the scale is the sigmoid of it."""
    max_log_scale: PositiveFloat = 5.0
    """Scales are no smaller than exp(-max_log_scale). The inverse of n couplings can stretch by
    exp(n max_log_scale), and float32 ends at exp(88): a smaller number keeps samples of deep flows finite."""

    @property
    def num_parameters(self) -> int:
        """s and t."""
        return 2

    def forward(self, raw: Array, x: Array) -> tuple[Array, Array]:
        """y and the logarithm of the scale."""
        log_scale = self._log_scale(raw)
        return (x + raw[..., 1]) * jnp.exp(log_scale), log_scale

    def inverse(self, raw: Array, y: Array) -> tuple[Array, Array]:
        """x and minus the logarithm of the scale."""
        log_scale = self._log_scale(raw)
        return y * jnp.exp(-log_scale) - raw[..., 1], -log_scale

    def _log_scale(self, raw: Array) -> Array:
        return jnp.maximum(jax.nn.log_sigmoid(raw[..., 0] + self.offset), -self.max_log_scale)


@dataclasses.dataclass(frozen=True)
class RationalQuadratic(Transform):
    """A rational-quadratic spline between -bound and bound, and the identity outside (Durkan et al. 2019)."""

    num_bins: Annotated[int, Range(least=1, below=1 / MIN_BIN)] = 8
    """Pieces of the spline."""
    bound: PositiveFloat = 4.0
    """Where the spline ends and the identity begins; the data are standardised before."""

    @property
    def num_parameters(self) -> int:
        """Widths, heights, and the slopes at the inner knots."""
        return 3 * self.num_bins - 1

    def forward(self, raw: Array, x: Array) -> tuple[Array, Array]:
        """y and log(dy/dx)."""
        return splines.forward(self.knots(raw), x)

    def inverse(self, raw: Array, y: Array) -> tuple[Array, Array]:
        """x and log(dx/dy)."""
        return splines.inverse(self.knots(raw), y)

    def knots(self, raw: Array) -> splines.Knots:
        """The knots that raw (..., 3 num_bins - 1) stands for."""
        widths, heights, slopes = jnp.split(raw, (self.num_bins, 2 * self.num_bins), -1)
        slopes = jnp.exp(soft_bounded(slopes, math.log(MAX_SLOPE)))
        one = jnp.ones_like(raw[..., :1])
        return splines.Knots(
            self._edges(widths), self._edges(heights), jnp.concatenate([one, slopes, one], -1)
        )

    def _edges(self, raw: Array) -> Array:
        """num_bins + 1 ascending numbers from -bound to bound."""
        shares = MIN_BIN + (1 - MIN_BIN * self.num_bins) * jax.nn.softmax(raw, -1)
        inner = self.bound * (2 * jnp.cumsum(shares, -1)[..., :-1] - 1)
        end = jnp.full_like(raw[..., :1], self.bound)
        return jnp.concatenate([-end, inner, end], -1)


@dataclasses.dataclass(frozen=True)
class Flipped(Transform):
    """Another transform the other way round."""

    transform: Affine | RationalQuadratic | Transform = Affine()
    """The other transform."""

    @property
    def num_parameters(self) -> int:
        """Those of the other transform."""
        return self.transform.num_parameters

    def forward(self, raw: Array, x: Array) -> tuple[Array, Array]:
        """The other's inverse."""
        return self.transform.inverse(raw, x)

    def inverse(self, raw: Array, y: Array) -> tuple[Array, Array]:
        """The other's forward."""
        return self.transform.forward(raw, y)


def soft_bounded(x: Array, bound: float) -> Array:
    """bound tanh(x / bound): x near 0, and never beyond the bound."""
    return bound * jnp.tanh(x / bound)
