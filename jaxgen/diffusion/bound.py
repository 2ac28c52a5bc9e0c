"""Terms of the variational bound of a diffusion model (Ho, Jain & Abbeel 2020), each in nats."""

import math

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen import distributions
from jaxgen.diffusion import processes


def term(
    gaussian: processes.Gaussian,
    prediction: Array,
    exponent: Array | None,
    x0: Array,
    x_t: Array,
    t: Array,
    *,
    target: str = "eps",
    variance: str = "fixed_large",
    levels: int = 256,
) -> Array:
    """KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)), or at t = 0 -log p(x_0 | x_1), (B,).

    Args:
        prediction: of the `target`, (B, ...).
        exponent: f of a learned variance beta^f posterior^(1 - f), 0 to 1, (B, ...); None for that named.
        levels: values of a pixel, spread over [-1, 1], to which x0 is rounded at t = 0; 0 for a density.
    """
    estimate = processes.convert(gaussian, prediction, x_t, t, target, "x0")
    mean, _ = processes.posterior(gaussian, estimate, x_t, t)
    true_mean, _ = processes.posterior(gaussian, x0, x_t, t)
    row = lambda table: processes.spread(jnp.float32(table)[t], x0)
    large, small = (row(table) for table in log_variances(gaussian))
    if exponent is not None:
        log_variance = exponent * large + (1 - exponent) * small
    else:
        log_variance = jnp.broadcast_to(large if variance == "fixed_large" else small, x0.shape)
    kl = distributions.kl_normal(true_mean, jnp.broadcast_to(small, x0.shape), mean, log_variance)
    if levels:
        log_prob = distributions.discretized_normal_log_prob(rounded(x0, levels), mean, log_variance, levels)
    else:
        log_prob = distributions.normal_log_prob(x0, mean, log_variance)
    return jnp.where(t == 0, -log_prob, kl)


def rounded(x: Array, levels: int) -> Array:
    """x at the nearest of `levels` values spread over [-1, 1]; as it is for 0 of them.

    Pictures of few levels are kept in 8 bits, so that their values are a little off.
    """
    if not levels:
        return x
    return jnp.round((x + 1) / 2 * (levels - 1)) / (levels - 1) * 2 - 1


def prior_term(gaussian: processes.Gaussian, x0: Array) -> Array:
    """KL(q(x_T | x_0) || N(0, I)), (B,)."""
    alpha, sigma = processes.levels(gaussian, len(gaussian.betas) - 1)
    return distributions.kl_normal(jnp.float32(alpha) * x0, jnp.full(x0.shape, 2 * math.log(sigma)))


def log_variances(gaussian: processes.Gaussian) -> tuple[np.ndarray, np.ndarray]:
    """Logarithms of beta and of the posterior variance, whose first, 0, gives way to the second, (T,)."""
    small = processes.posterior_tables(gaussian)[3]
    small = np.append(small[1:2] if len(small) > 1 else gaussian.betas, small[1:])
    return np.log(gaussian.betas), np.log(small)
