"""Samplers: from noise to data with any model, in as many calls of it as one can afford.

As functions they know no network. Those of a discrete process are given model(x_t, t), t (B,) int32, which
returns the `target` ("eps", "x0" or "v"), and decreasing `timesteps` (S,) from the time of `x` on; after the
last comes x_0 itself, so S calls. Those of noise levels are given denoise(x, sigma), sigma (B,), which
returns E[x_0 | x], and decreasing `sigmas` (S,); after the last comes 0.

Each is one `lax.scan` over coefficients, so a jitted sampler compiles once for a number of steps: timesteps,
sigmas, eta and churn may all be traced. Times that are not are checked, and their coefficients are computed
in float64. `clip` cuts every estimate of x_0 to [-clip, clip]. All return x_0, (B, ...); states on the way
are those of the sampler's path:

    frames = samplers.ddim.path(model, x, process, timesteps).frames(10)

As values they are parts of a Config. DDIM, DDPM, DPMSolverPP and Heun are for the process of `ddpm`; those
for the noise levels of `edm` are in `level_samplers`, and those for the velocity of `flow_matching` in `ode`.
"""

import dataclasses
from typing import Any

from jax import Array

from jaxgen.diffusion import scan
from jaxgen.diffusion.level_samplers import edm_heun, euler_ancestral
from jaxgen.diffusion.process_samplers import (
    SPACINGS,
    ddim,
    ddim_inversion,
    ddpm,
    dpm_solver_pp,
    heun,
    spaced,
)
from jaxgen.diffusion.processes import Gaussian
from jaxgen.diffusion.scan import Model, Path
from jaxgen.fields import NonNegativeFloat, PositiveInt

__all__ = [
    "DDIM",
    "DDPM",
    "SPACINGS",
    "DPMSolverPP",
    "Heun",
    "Model",
    "Path",
    "ddim",
    "ddim_inversion",
    "ddpm",
    "dpm_solver_pp",
    "edm_heun",
    "euler_ancestral",
    "heun",
    "spaced",
]


@dataclasses.dataclass(frozen=True)
class DDIM(scan.Steps):
    """Denoising diffusion implicit models (Song, Meng & Ermon 2021)."""

    steps: PositiveInt = 50
    """Calls of the network; as many as the process has steps, where these are fewer."""
    eta: NonNegativeFloat = 0.0
    """Noise that a step adds, as a share of what ancestral sampling adds; 0 is deterministic."""

    def __call__(
        self,
        model: Model,
        x: Array,
        process: Gaussian,
        key: Array,
        *,
        target: str = "eps",
        variance: str = "fixed_large",
        clip: float | None = None,
    ) -> Path:
        """The path from noise x (B, ...) to data.

        Args:
            model: returns the `target`, and if the `variance` is learned also its exponent, as `ddpm` says.
        """
        key_or_none = key if scan.is_not_zero(self.eta) else None
        times = _times(process, self.steps)
        model = _of_target(model, variance)
        return ddim.path(model, x, process, times, eta=self.eta, key=key_or_none, target=target, clip=clip)


@dataclasses.dataclass(frozen=True)
class DDPM(scan.Steps):
    """Ancestral sampling (Ho, Jain & Abbeel 2020)."""

    steps: PositiveInt = 1000
    """Calls of the network; as many as the process has steps, where these are fewer."""

    def __call__(
        self,
        model: Model,
        x: Array,
        process: Gaussian,
        key: Array,
        *,
        target: str = "eps",
        variance: Any = "fixed_large",
        clip: float | None = None,
    ) -> Path:
        """The path from noise to data, as that of `DDIM`."""
        options: dict[str, Any] = {"target": target, "variance": variance, "clip": clip}
        return ddpm.path(model, x, process, _times(process, self.steps), key, **options)


@dataclasses.dataclass(frozen=True)
class DPMSolverPP(scan.Steps):
    """DPM-Solver++ (2M), of second order (Lu et al. 2022)."""

    steps: PositiveInt = 20
    """Calls of the network; as many as the process has steps, where these are fewer."""

    def __call__(
        self,
        model: Model,
        x: Array,
        process: Gaussian,
        key: Array,
        *,
        target: str = "eps",
        variance: str = "fixed_large",
        clip: float | None = None,
    ) -> Path:
        """The path from noise to data, as that of `DDIM`; it draws no noise."""
        del key
        times, model = _times(process, self.steps), _of_target(model, variance)
        return dpm_solver_pp.path(model, x, process, times, target=target, clip=clip)


@dataclasses.dataclass(frozen=True)
class Heun(scan.Steps):
    """Heun's method, of second order (Karras et al. 2022)."""

    steps: PositiveInt = 49
    """Calls of the network, two at each time and one at the last; the process has at least as many steps."""

    def __call__(
        self,
        model: Model,
        x: Array,
        process: Gaussian,
        key: Array,
        *,
        target: str = "eps",
        variance: str = "fixed_large",
        clip: float | None = None,
    ) -> Path:
        """The path from noise to data, as that of `DDIM`; it draws no noise."""
        del key
        num_times = (min(self.steps, len(process.betas)) + 1) // 2
        times, model = spaced(len(process.betas), num_times), _of_target(model, variance)
        return heun.path(model, x, process, times, target=target, clip=clip)


def _times(process, steps):
    return spaced(len(process.betas), min(steps, len(process.betas)))


def _of_target(model, variance):
    """The model without the exponent of a learned variance, which ancestral sampling alone needs."""
    return (lambda x, t: model(x, t)[0]) if variance == "learned" else model
