"""Those of `samplers` that go through the times of a discrete process, with model(x_t, t)."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxgen.diffusion import processes, scan
from jaxgen.diffusion.level_samplers import edm_heun
from jaxgen.diffusion.processes import Gaussian

Model = scan.Model

STEEPEST = 3.0
"""The factor by which the level may fall on a step of Heun's method for it to be of second order."""

SPACINGS = ("trailing", "leading", "linspace")


def spaced(num_training_steps: int, num_steps: int, spacing: str = "trailing") -> np.ndarray:
    """`num_steps` decreasing times out of T = `num_training_steps`, (num_steps,) int.

    "trailing" steps down from T - 1 by T / S, "leading" ends at 0 and starts short of T - 1, "linspace" does
    both. Samples are drawn from noise, so what starts short of T - 1 starts from too much of it.

    Raises ValueError for more steps than the process has.
    """
    if not 1 <= num_steps <= num_training_steps:
        raise ValueError(
            f"cannot sample in {num_steps} steps: the process has {num_training_steps}, take 1 to as many"
        )
    if spacing == "trailing":
        times = num_training_steps - 1 - (np.arange(num_steps) * num_training_steps) // num_steps
    elif spacing == "leading":
        times = (np.arange(num_steps) * (num_training_steps // num_steps))[::-1]
    elif spacing == "linspace":
        times = np.round(np.linspace(num_training_steps - 1, 0, num_steps))
    else:
        raise ValueError(f"no spacing {spacing!r}: there are {', '.join(SPACINGS)}")
    return times.astype(np.int32)


@scan.Sampler
def ddpm(
    model: Model,
    x: Array,
    process: Gaussian,
    timesteps: Any,
    key: Array,
    *,
    target: str = "eps",
    variance: Literal["fixed_large", "fixed_small", "learned"] = "fixed_large",
    clip: float | None = None,
) -> scan.Path:
    """Ancestral sampling of the reverse chain (Ho, Jain & Abbeel 2020), x_0 (B, ...).

    Each step draws x_s ~ N(mu(x_0, x_t), variance), mu the posterior mean of the chain that keeps only these
    times, and the last is its mean. The variance is beta ("fixed_large"), that of the posterior
    ("fixed_small"), or between the two ("learned"): then the model returns the target and f, exponents of
    beta^f posterior^(1 - f), 0 to 1 (Nichol & Dhariwal 2021, with f for (v + 1) / 2).
    """
    if variance not in ("fixed_large", "fixed_small", "learned"):
        raise ValueError(f"no variance {variance!r}: there are fixed_large, fixed_small, learned")
    times, (alpha, sigma), (alpha_next, sigma_next) = _levels(process, timesteps, target)
    xp = sigma.__array_namespace__()
    ratio = alpha / alpha_next
    beta = (sigma - ratio * sigma_next) * (sigma + ratio * sigma_next)
    small = beta * (sigma_next / sigma) ** 2
    large = xp.where(sigma_next > 0, beta, 0.0)  # the last step is its mean
    rows = {
        "t": times,
        "alpha": alpha,
        "sigma": sigma,
        "clean": alpha_next * beta / sigma**2,
        "noisy": ratio * (sigma_next / sigma) ** 2,
        "large": large,
        "small": small,
    }

    def step(x, row, index):
        output = model(x, scan.times(row["t"], x))
        output, exponent = output if variance == "learned" else (output, 1.0)
        x0, _ = _estimate(output, x, row["alpha"], row["sigma"], target, clip)
        mean = row["clean"] * x0 + row["noisy"] * x
        if variance == "learned":
            floor = jnp.finfo(x.dtype).tiny
            logs = [jnp.log(jnp.maximum(row[name], floor)) for name in ("large", "small")]
            std = jnp.exp(0.5 * (exponent * logs[0] + (1 - exponent) * logs[1]))
            std = jnp.where(row["small"] > 0, std, 0.0)
        else:
            std = jnp.sqrt(row[variance.removeprefix("fixed_")])
        return mean + std * scan.noise(key, index, x)

    return scan.Path(step, x, rows)


@scan.Sampler
def ddim(
    model: Model,
    x: Array,
    process: Gaussian,
    timesteps: Any,
    *,
    eta: Array | float = 0.0,
    key: Array | None = None,
    target: str = "eps",
    clip: float | None = None,
) -> scan.Path:
    """Denoising diffusion implicit models (Song, Meng & Ermon 2021), x_0 (B, ...).

        x_s = alpha_s x_0 + sqrt(sigma_s^2 - d^2) eps + d z,
        d = eta sigma_s / sigma_t sqrt(1 - alpha_t^2 / alpha_s^2).

    eta = 0 is deterministic, and first order in the step; eta = 1 is `ddpm` with "fixed_small", to the same
    noise. After clipping eps is what the clipped x_0 leaves.

    Raises ValueError for eta != 0 without a key, and for an eta whose noise would exceed sigma_s.
    """
    times, (alpha, sigma), (alpha_next, sigma_next) = _levels(process, timesteps, target)
    xp = sigma.__array_namespace__()
    added = sigma_next / sigma * xp.sqrt(1 - (alpha / alpha_next) ** 2)
    scan.check_key(key, eta, "eta")
    known = not isinstance(eta, jax.core.Tracer) and isinstance(added, np.ndarray)
    if known and np.any(np.asarray(eta) * added > sigma_next * (1 + 1e-6)):
        raise ValueError(f"eta = {eta} asks for more noise than there is at the next step: take 0 to 1")
    names = ("t", "alpha", "sigma", "alpha_next", "sigma_next", "added")
    rows = dict(zip(names, (times, alpha, sigma, alpha_next, sigma_next, added), strict=True))

    def step(x, row, index):
        output = model(x, scan.times(row["t"], x))
        x0, eps = _estimate(output, x, row["alpha"], row["sigma"], target, clip)
        if key is None:
            return row["alpha_next"] * x0 + row["sigma_next"] * eps
        std = (eta * row["added"]).astype(x.dtype)
        rest = jnp.sqrt(jnp.maximum((row["sigma_next"] - std) * (row["sigma_next"] + std), 0.0))
        return row["alpha_next"] * x0 + rest * eps + std * scan.noise(key, index, x)

    return scan.Path(step, x, rows)


@scan.Sampler
def ddim_inversion(
    model: Model,
    x0: Array,
    process: Gaussian,
    timesteps: Any,
    *,
    target: str = "eps",
    iterations: int = 1,
) -> scan.Path:
    """The noise x_T that `ddim` at eta = 0 turns into the data x0 (B, ...), with the same `timesteps`.

    Each step of the sampler is undone from its end: x_t solves x_t = alpha_t (x_s - sigma_s eps(x_t, t)) /
    alpha_s + sigma_t eps(x_t, t) by fixed-point iteration from x_t = x_s. One `iterations` is the usual
    inversion, whose error falls with the step; more of them undo the sampler itself.
    """
    times, (alpha, sigma), (alpha_next, sigma_next) = _levels(process, timesteps, target)
    names = ("t", "alpha", "sigma", "alpha_next", "sigma_next")
    values = (times, alpha, sigma, alpha_next, sigma_next)
    rows = {name: value[::-1] for name, value in zip(names, values, strict=True)}

    def step(x, row, index):
        del index

        def iterate(_, guess):
            output = model(guess, scan.times(row["t"], x))
            _, eps = processes.split(output, guess, row["alpha"], row["sigma"], target)
            return row["alpha"] / row["alpha_next"] * (x - row["sigma_next"] * eps) + row["sigma"] * eps

        return lax.fori_loop(0, iterations, iterate, x)

    return scan.Path(step, x0, rows)


@scan.Sampler
def dpm_solver_pp(
    model: Model,
    x: Array,
    process: Gaussian,
    timesteps: Any,
    *,
    target: str = "eps",
    clip: float | None = None,
) -> scan.Path:
    """DPM-Solver++ (2M): second order in log(alpha / sigma), one call a step (Lu et al. 2022), x_0 (B, ...).

        x_s = sigma_s / sigma_t x_t + alpha_s (1 - e^-h) ((1 + 1/2r) x_0(x_t) - 1/2r x_0(x_before)),

    h the step in lambda = log(alpha / sigma) and r the last one over it. The first step has no estimate
    before it and the last, to lambda = inf, cannot look ahead: both are first order, that is `ddim`.
    """
    times, (alpha, sigma), (alpha_next, sigma_next) = _levels(process, timesteps, target)
    xp = sigma.__array_namespace__()
    with np.errstate(divide="ignore", invalid="ignore"):
        level = xp.log(alpha) - xp.log(sigma)
        h = level[1:] - level[:-1]
        weight = 0.5 * h[1:] / h[:-1]  # 0 after a step from pure noise, whose h is infinite
        edge = xp.zeros(1, dtype=sigma.dtype)
        before = xp.concatenate([edge, weight, edge])[: len(sigma)]
        shrink = alpha_next - sigma_next * alpha / sigma  # alpha_s (1 - e^-h), whatever h
    rows = {
        "t": times,
        "alpha": alpha,
        "sigma": sigma,
        "kept": sigma_next / sigma,
        "shrink": shrink,
        "before": before,
    }

    def step(carry, row, index):
        del index
        x, last = carry
        output = model(x, scan.times(row["t"], x))
        x0, _ = _estimate(output, x, row["alpha"], row["sigma"], target, clip)
        ahead = x0 + row["before"] * (x0 - last)
        return row["kept"] * x + row["shrink"] * ahead, x0

    return scan.Path(step, (x, jnp.zeros_like(x)), rows)


@scan.Sampler
def heun(
    model: Model,
    x: Array,
    process: Gaussian,
    timesteps: Any,
    *,
    target: str = "eps",
    clip: float | None = None,
) -> scan.Path:
    """`edm_heun` for a discrete process, x_0 (B, ...) in 2 S - 1 calls: x_t / alpha_t is data at noise level
    sigma_t / alpha_t. The states of its path are of that scale too.

    Steps on which the level falls by more than the factor STEEPEST, such as the first of a cosine schedule,
    are Euler's: the mean of two slopes at levels so far apart overshoots.

    Raises ValueError for a start without any signal.
    """
    times, (alpha, sigma), _ = _levels(process, timesteps, target)
    if isinstance(alpha, np.ndarray) and alpha[0] == 0:
        raise ValueError("Heun's method cannot start where no signal is left: start later")
    sigmas = sigma / alpha
    places = jnp.log(jnp.asarray(sigmas, x.dtype))

    def denoise(y, level):
        t = jnp.asarray(times)[jnp.argmin(jnp.abs(places - jnp.log(level[:, None])), axis=1)]
        scale = processes.spread(1 / jnp.sqrt(1 + level**2), x)
        x_t = scale * y
        estimate = processes.convert(process, model(x_t, t), x_t, t, target, "x0")
        return estimate if clip is None else jnp.clip(estimate, -clip, clip)

    return edm_heun.path(denoise, x / jnp.asarray(alpha[0], x.dtype), sigmas, steepest=STEEPEST)


def _levels(process, timesteps, target):
    """Times, and (alpha, sigma) at each of them and at what follows it, checked where they are known."""
    known = not isinstance(timesteps, jax.core.Tracer)
    times = np.asarray(timesteps) if known else timesteps
    if known:
        total = len(process.alpha_bar)
        if times.ndim != 1 or not np.issubdtype(times.dtype, np.integer) or not len(times):
            raise ValueError("timesteps are a row of at least one integer")
        if len(times) > total:
            raise ValueError(f"{len(times)} sampling steps, but the process has only {total}")
        if np.any(np.diff(times) >= 0):
            raise ValueError("timesteps must decrease: sampling goes from noise to data")
        if times[0] >= total or times[-1] < 0:
            raise ValueError(f"timesteps must lie in 0 to {total - 1}, got {times[0]} to {times[-1]}")
    alpha, sigma = processes.levels(process, times)
    if target == "eps" and isinstance(alpha, np.ndarray) and np.any(alpha == 0):
        raise ValueError("eps says nothing of x_0 where no signal is left: predict v or x0, or start later")
    xp = alpha.__array_namespace__()
    shift = lambda row, end: xp.concatenate([row[1:], xp.full(1, end, dtype=row.dtype)])
    return times, (alpha, sigma), (shift(alpha, 1.0), shift(sigma, 0.0))


def _estimate(output, x, alpha, sigma, target, clip):
    """(x_0, eps) of a prediction, x_0 cut to the range of the data if there is one."""
    x0, eps = processes.split(output, x, alpha, sigma, target)
    if clip is None:
        return x0, eps
    x0 = jnp.clip(x0, -clip, clip)
    return x0, (x - alpha * x0) / sigma
