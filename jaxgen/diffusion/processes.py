"""The Gaussian diffusion process, and what there is to predict of it.

Data are scaled down and noise is added, in T steps that compose to one,

    q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t I),     x_t = alpha_t x_0 + sigma_t eps,
    alpha_t = sqrt(alpha_bar_t),  sigma_t = sqrt(1 - alpha_bar_t),  alpha_bar_t = prod_{s <= t} (1 - beta_s)

(Sohl-Dickstein et al. 2015; Ho, Jain & Abbeel 2020). Here t counts from 0: index t = 0 is the first noisy
step, and alpha_bar before it is 1.

Tables are computed in float64 and cast to the dtype of the data when they are used. A process passed through
`jax.jit` as an argument is rounded to float32 first: close over it instead.
"""

from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

Target = Literal["eps", "x0", "v", "score"]
"""What is predicted: the noise, the data, alpha eps - sigma x_0 (Salimans & Ho 2022), or -eps / sigma."""


class Gaussian(NamedTuple):
    """A process; both (T,), float64."""

    betas: Any
    alpha_bar: Any


def gaussian(betas: Any) -> Gaussian:
    """The process of a schedule (T,). Raises ValueError for a beta outside (0, 1]; only the last may be 1."""
    betas = np.asarray(betas, np.float64)
    if betas.ndim != 1 or not np.all((betas > 0) & (betas <= 1)) or np.any(betas[:-1] == 1):
        raise ValueError("betas are a row of numbers in (0, 1), of which the last may be 1")
    return Gaussian(betas, np.cumprod(1 - betas))


def levels(process: Gaussian, t: Any) -> tuple[Any, Any]:
    """alpha_t and sigma_t, shaped as t."""
    xp = process.alpha_bar.__array_namespace__()
    return _take(xp.sqrt(process.alpha_bar), t), _take(xp.sqrt(1 - process.alpha_bar), t)


def log_snr(process: Gaussian, t: Any) -> Any:
    """log(alpha_t^2 / sigma_t^2), shaped as t; -inf where no signal is left."""
    xp = process.alpha_bar.__array_namespace__()
    with np.errstate(divide="ignore"):
        return _take(xp.log(process.alpha_bar) - xp.log1p(-process.alpha_bar), t)


def q_sample(process: Gaussian, x0: Array, t: Array, noise: Array) -> Array:
    """x_t of data x0 (B, ...) at times t (B,), with noise ~ N(0, I), (B, ...)."""
    alpha, sigma = (spread(level, x0) for level in levels(process, t))
    return alpha * x0 + sigma * noise


def transition(process: Gaussian, x: Array, t: Array, noise: Array) -> Array:
    """x_t of x_{t-1} = x, one step: sqrt(1 - beta_t) x + sqrt(beta_t) noise, (B, ...)."""
    xp = process.betas.__array_namespace__()
    kept, added = xp.sqrt(1 - process.betas), xp.sqrt(process.betas)
    return spread(_take(kept, t), x) * x + spread(_take(added, t), x) * noise


def posterior(process: Gaussian, x0: Array, x_t: Array, t: Array) -> tuple[Array, Array]:
    """Mean (B, ...) and variance (B, 1, ...) of q(x_{t-1} | x_t, x_0); at t = 0 that is x_0 itself."""
    _, clean, noisy, variance = posterior_tables(process)
    mean = spread(_take(clean, t), x0) * x0 + spread(_take(noisy, t), x0) * x_t
    return mean, spread(_take(variance, t), x0)


def posterior_tables(process: Gaussian) -> tuple[Any, Any, Any, Any]:
    """alpha_bar_{t-1}; the weights of x_0 and of x_t in the posterior mean; its variance. Each (T,)."""
    betas, alpha_bar = process
    xp = alpha_bar.__array_namespace__()
    before = xp.concatenate([xp.ones(1, dtype=alpha_bar.dtype), alpha_bar[:-1]])
    clean = xp.sqrt(before) * betas / (1 - alpha_bar)
    noisy = xp.sqrt(1 - betas) * (1 - before) / (1 - alpha_bar)
    return before, clean, noisy, betas * (1 - before) / (1 - alpha_bar)


def split(output: Array, x_t: Array, alpha: Any, sigma: Any, target: str) -> tuple[Array, Array]:
    """(x_0, eps) by a prediction `output` of the target, all (B, ...); alpha and sigma broadcast to it.

    From eps or the score x_0 is undefined where alpha is 0, and from x_0 eps is where sigma is.
    """
    if target == "v":
        return alpha * x_t - sigma * output, sigma * x_t + alpha * output
    if target == "x0":
        return output, (x_t - alpha * output) / sigma
    if target not in ("eps", "score"):
        raise ValueError(f"no target {target!r}: there are eps, x0, v, score")
    eps = -sigma * output if target == "score" else output
    return (x_t - sigma * eps) / alpha, eps


def join(x0: Array, eps: Array, alpha: Any, sigma: Any, target: str) -> Array:
    """The target of data x0 and noise eps, (B, ...): what a network learns to predict."""
    if target == "v":
        return alpha * eps - sigma * x0
    if target == "score":
        return -eps / sigma
    if target not in ("eps", "x0"):
        raise ValueError(f"no target {target!r}: there are eps, x0, v, score")
    return eps if target == "eps" else x0


def convert(process: Gaussian, output: Array, x_t: Array, t: Array, source: str, target: str) -> Array:
    """A prediction of `source` at x_t (B, ...) and t (B,) as one of `target`: "eps", "x0", "v", "score"."""
    alpha, sigma = (spread(level, x_t) for level in levels(process, t))
    return join(*split(output, x_t, alpha, sigma, source), alpha, sigma, target)


def spread(row: Any, x: Array) -> Array:
    """Numbers (B,) as the dtype of x and with its rank, (B, 1, ...)."""
    row = jnp.asarray(row, x.dtype)
    return row.reshape(row.shape + (1,) * (x.ndim - row.ndim))


def _take(table, t):
    """Entries of a table at t, in float64 where both are numpy's, else in JAX."""
    if isinstance(table, np.ndarray) and isinstance(t, np.ndarray | np.integer | int):
        return table[t]
    return jnp.asarray(table)[t]
