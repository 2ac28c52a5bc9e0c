"""What all flows share: log p(x) = log N(z; 0, I) + log |det dz/dx| with z = forward(x), and its two losses.

A flow is a `bijectors.Bijector` of vectors. Maximum likelihood trains `forward` on data. The other way round,
`reverse_kl` trains `inverse` to turn noise into draws of a density that is known up to a constant factor.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen import distributions, labels, values
from jaxgen.fields import NonNegativeInt, PositiveInt
from jaxgen.flow.bijectors import Bijector
from jaxgen.flow.preprocessing import dequantised
from jaxgen.types import Batch, observed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(values.Value):
    """What the Configs of all flows have."""

    shape: tuple[PositiveInt, ...] = (8, 8, 1)
    """Shape of one example, which is flattened to D numbers."""
    levels: NonNegativeInt = 256
    """Values of a pixel, spread over [-1, 1], dequantised by noise one level wide; 0 for real numbers."""
    optimizer: values.Optimizer = values.Adam(1e-3, gradient_clip=10.0)
    """The optimizer."""

    def __post_init__(self) -> None:
        if self.levels < 0 or self.levels == 1:
            raise ValueError(f"levels must be 2 or more, or 0 for real numbers, got {self.levels}")

    @property
    def num_dims(self) -> int:
        """D."""
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conditional(Config):
    """What the Configs of flows have that can be given a label, as a one-hot context."""

    num_classes: NonNegativeInt = 0
    """Number of labels of the data; 0 if they have none."""
    conditional: bool = False
    """Give the label to the networks: p(x | label)."""

    @property
    def num_context(self) -> int:
        """Length of the context."""
        return labels.count(self)


def training_data(key: Array, batch: Batch, cfg: Config) -> Array:
    """The examples of a batch, dequantised and flat, (B, D)."""
    x = dequantised(key, observed(batch), cfg.levels)
    return x.reshape(x.shape[0], cfg.num_dims)


def log_prob(flow: Bijector, params: Any, x: Array, context: Array | None = None) -> Array:
    """log p(x) of x (B, ...) in nats, (B,)."""
    z, log_det = flow.forward(params, x.reshape(x.shape[0], math.prod(x.shape[1:])), context)
    return distributions.normal_log_prob(z) + log_det


def marginal_log_prob(flow: Bijector, params: Any, x: Array, cfg: Conditional) -> Array:
    """log p(x) in nats, (B,), of a conditional flow whose labels are all as likely."""
    given = lambda label: log_prob(flow, params, x, context(label, x.shape[0], cfg))
    return jax.nn.logsumexp(jax.lax.map(given, jnp.arange(cfg.num_classes)), 0) - math.log(cfg.num_classes)


def reverse_kl(
    flow: Bijector,
    params: Any,
    key: Array,
    target_log_prob: Callable[[Array], Array],
    n: int,
    cfg: Config,
    context: Array | None = None,
    *,
    path: bool = False,
) -> Array:
    """KL(p || target) by n draws of the flow p, up to the target's unknown constant, () nats.

    Rezende & Mohamed 2015, equation 15: E[log p(x) - log target(x)] over x = inverse(noise).

    Args:
        target_log_prob: x (n, *shape) -> (n,) nats; it need not be normalised.
        path: follow the parameters through the draws alone, not in log p. The gradient is the same on
            average, and has no variance where the flow is the target (Roeder, Wu & Duvenaud 2017); it takes
            `forward` too.
    """
    z = jax.random.normal(key, (n, cfg.num_dims))
    x, log_det = flow.inverse(params, z, context)
    if path:
        log_p = log_prob(flow, jax.lax.stop_gradient(params), x, context)
    else:
        log_p = distributions.normal_log_prob(z) - log_det
    return (log_p - target_log_prob(x.reshape(n, *cfg.shape))).mean()


def context(label: labels.Label, n: int, cfg: Conditional) -> Array | None:
    """One-hot labels of n examples, (n, num_classes); None for an unconditional flow.

    Raises ValueError as `labels.given` does.
    """
    return _one_hot(labels.given(label, n, labels.count(cfg)), cfg)


def batch_context(batch: Batch, cfg: Conditional) -> Array | None:
    """The context to train on. Raises ValueError for a batch without the labels a conditional flow needs."""
    return _one_hot(labels.of_batch(batch, labels.count(cfg)), cfg)


def _one_hot(label, cfg):
    return None if label is None else jax.nn.one_hot(label, cfg.num_classes)
