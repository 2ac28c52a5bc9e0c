"""Those of `samplers` that go by noise level: denoise(x, sigma) is E[x_0 | x], and `sigmas` decrease.

`Heun` and `Ancestral` are the values that the Config of `edm` holds.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen.diffusion import scan
from jaxgen.fields import NonNegativeFloat, PositiveInt


@scan.Sampler
def edm_heun(
    denoise: scan.Model,
    x: Array,
    sigmas: Any,
    *,
    churn: Array | float = 0.0,
    key: Array | None = None,
    churn_range: tuple[float, float] = (0.0, math.inf),
    churn_noise: float = 1.0,
    steepest: float = math.inf,
) -> scan.Path:
    """Heun's method for dx / dsigma = (x - D(x)) / sigma (Karras et al. 2022), x_0 (B, ...) in 2 S - 1 calls.

    Second order; the step to 0 is Euler's, and so are those on which the level falls by more than the factor
    `steepest`. `churn` first raises each level within `churn_range` by the factor
    1 + min(churn / S, sqrt 2 - 1), with fresh noise of std `churn_noise` times what that asks for.

    Args:
        x: already scaled to the first level, sigmas[0] times standard normal noise.

    Raises ValueError for churn other than 0 without a key.
    """
    sigma, sigma_next = _sigmas(sigmas)
    scan.check_key(key, churn, "churn")
    count = len(sigma)

    def slope(x, level):
        return (x - denoise(x, scan.times(level, x))) / level

    def raised(x, level, index):
        if key is None:
            return x, level
        within = (level >= churn_range[0]) & (level <= churn_range[1])
        growth = jnp.where(within, jnp.minimum(churn / count, math.sqrt(2) - 1), 0.0).astype(x.dtype)
        added = churn_noise * level * jnp.sqrt(growth * (2 + growth))
        return x + added * scan.noise(key, index, x), level * (1 + growth)

    def step(x, row, index):
        x, level = raised(x, row["sigma"], index)
        change = row["sigma_next"] - level
        first = slope(x, level)
        second = slope(x + change * first, row["sigma_next"])
        second = jnp.where(level > steepest * row["sigma_next"], first, second)
        return x + change * 0.5 * (first + second)

    def last(x, row, index):
        x, level = raised(x, row["sigma"], index)
        return denoise(x, scan.times(level, x))

    return scan.Path(step, x, {"sigma": sigma, "sigma_next": sigma_next}, last)


@scan.Sampler
def euler_ancestral(
    denoise: scan.Model,
    x: Array,
    sigmas: Any,
    *,
    eta: Array | float = 1.0,
    key: Array | None = None,
) -> scan.Path:
    """Euler steps that go below the next level and add noise back up to it, x_0 (B, ...) in S calls.

        up = min(s', eta s' / s sqrt(s^2 - s'^2)),    down^2 = s'^2 - up^2,    s to s' the step,

    which is the posterior's noise at eta = 1. eta = 0 is Euler's method, first order and deterministic.

    Raises ValueError for eta other than 0 without a key.
    """
    sigma, sigma_next = _sigmas(sigmas)
    scan.check_key(key, eta, "eta")

    def step(x, row, index):
        level, following = row["sigma"], row["sigma_next"]
        slope = (x - denoise(x, scan.times(level, x))) / level
        if key is None:
            return x + (following - level) * slope
        up = eta * following / level * jnp.sqrt((level - following) * (level + following))
        up = jnp.minimum(up, following).astype(x.dtype)
        down = jnp.sqrt((following - up) * (following + up))
        return x + (down - level) * slope + up * scan.noise(key, index, x)

    return scan.Path(step, x, {"sigma": sigma, "sigma_next": sigma_next})


@dataclasses.dataclass(frozen=True)
class Heun(scan.Steps):
    """Heun's method, of second order (Karras et al. 2022)."""

    steps: PositiveInt = 18
    """Noise levels; the network is called twice at each, and once at the last."""
    churn: NonNegativeFloat = 0.0
    """Noise that is added before each step, as in `edm_heun`."""

    def __call__(self, denoise: scan.Model, x: Array, sigmas: Any, key: Array) -> scan.Path:
        """The path from noise x (B, ...) at the first of the levels to data."""
        key_or_none = key if scan.is_not_zero(self.churn) else None
        return edm_heun.path(denoise, x, sigmas, churn=self.churn, key=key_or_none)


@dataclasses.dataclass(frozen=True)
class Ancestral(scan.Steps):
    """Euler steps with noise added back, or without it plain Euler steps."""

    steps: PositiveInt = 35
    """Noise levels, and calls of the network."""
    eta: NonNegativeFloat = 1.0
    """Noise that is added back, as a share of the posterior's; 0 is Euler's method."""

    def __call__(self, denoise: scan.Model, x: Array, sigmas: Any, key: Array) -> scan.Path:
        """The path from noise x (B, ...) at the first of the levels to data."""
        key_or_none = key if scan.is_not_zero(self.eta) else None
        return euler_ancestral.path(denoise, x, sigmas, eta=self.eta, key=key_or_none)


def _sigmas(sigmas):
    """Levels (S,) and what follows each of them."""
    if isinstance(sigmas, jax.core.Tracer):
        return sigmas, jnp.append(sigmas[1:], 0.0)
    sigmas = np.asarray(sigmas, np.float64)
    if sigmas.ndim != 1 or not len(sigmas) or np.any(np.diff(sigmas) >= 0) or sigmas[-1] <= 0:
        raise ValueError("sigmas are a row of decreasing positive numbers; the 0 after them is understood")
    return sigmas, np.append(sigmas[1:], 0.0)
