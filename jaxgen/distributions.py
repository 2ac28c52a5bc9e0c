"""Log-densities and divergences used by more than one family, in nats.

All of them work in float32 whatever the compute dtype, and sum over every axis but the first: (B, ...) ->
(B,).
"""

import math

import jax
import jax.numpy as jnp
from jax import Array


def sum_per_example(x: Array) -> Array:
    """Sum over every axis but the first, (B, ...) -> (B,)."""
    return x.reshape(x.shape[0], -1).sum(-1)


def bernoulli_log_prob(x: Array, logits: Array) -> Array:
    """log p(x) of independent bits x in {0, 1} with p(1) = sigmoid(logits), (B,)."""
    # Flat before the arithmetic, which XLA then fuses with the sum.
    x, logits = (a.reshape(a.shape[0], -1) for a in (x, logits.astype(jnp.float32)))
    return (x * logits - jax.nn.softplus(logits)).sum(-1)


def bernoulli(key: Array, probability: Array) -> Array:
    """Independent bits, True with the given probability in [0, 1], (B, ...).

    Sixteen random bits decide each, so a probability counts to within 2^-16, and 0 and 1 are certain.
    """
    size = math.prod(probability.shape[1:])
    words = jax.random.bits(key, (probability.shape[0], -(-size // 2)), jnp.uint32)
    halves = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(probability.shape[0], -1)[:, :size]
    return halves.reshape(probability.shape).astype(jnp.float32) < 2.0**16 * probability


def normal_log_prob(x: Array, mean: Array | float = 0.0, log_variance: Array | float = 0.0) -> Array:
    """log N(x; mean, exp(log_variance)) with independent coordinates, (B,)."""
    mean, log_variance = jnp.float32(mean), jnp.float32(log_variance)
    squares = (x - mean) ** 2 * jnp.exp(-log_variance)
    return -0.5 * sum_per_example(squares + log_variance + math.log(2 * math.pi))


def kl_normal(mean: Array, log_variance: Array) -> Array:
    """KL(N(mean, exp(log_variance)) || N(0, I)) with independent coordinates, (B,).

    Kingma & Welling 2014, appendix B.
    """
    mean, log_variance = jnp.float32(mean), jnp.float32(log_variance)
    return 0.5 * sum_per_example(mean**2 + jnp.exp(log_variance) - 1.0 - log_variance)
