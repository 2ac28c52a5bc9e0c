"""Affine flow, x = mean + L z (Cholesky 1924; the generator of a Gaussian).

The simplest flow: noise z ~ N(0, I) goes through a lower-triangular matrix with a positive diagonal,

    x = mean + L z   =>   p(x) = N(x; mean, L L'),     log p(x) = log N(L^-1 (x - mean)) - sum_i log L_ii.

Maximum likelihood finds the mean of the data and the Cholesky factor of their covariance. So does
`reverse_kl`, the divergence to a given Gaussian, by gradients through reparameterised draws. Either way the
answer is known in closed form, which is what this model is for.

The diagonal of L is softplus(.) + 1e-5.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxgen import keys, values
from jaxgen.arguments import checked
from jaxgen.flow import bijectors, density
from jaxgen.types import Batch, Metrics


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(density.Config):
    """Hyperparameters of the affine flow."""

    optimizer: values.Optimizer = values.Adam(1e-2)
    """The optimizer."""


class State(NamedTuple):
    """What training changes."""

    step: Array
    key: Array
    params: Any
    opt_state: Any


def flow(cfg: Config) -> bijectors.Bijector:
    """The bijector."""
    return bijectors.triangular(cfg.num_dims)


@checked
def init(key: Array, cfg: Config, batch: Batch | None = None) -> State:
    """A fresh state; `batch`, if given, sets the mean and the diagonal of L to its own."""
    params_key, data_key, step_key = keys.named(key, "params", "data", "steps")
    x = None if batch is None else density.training_data(data_key, batch, cfg)
    params = flow(cfg).init(params_key, x)
    opt_state = values.gradient_transformation(cfg.optimizer).init(params)
    return State(jnp.zeros((), jnp.int32), step_key, params, opt_state)


@checked
def loss(params: Any, batch: Batch, key: Array, cfg: Config) -> tuple[Array, Metrics]:
    """Mean negative log-likelihood in nats per example, of dequantised data."""
    nll = -density.log_prob(flow(cfg), params, density.training_data(key, batch, cfg)).mean()
    return nll, {"nll": nll}


@checked
def train_step(state: State, batch: Batch, cfg: Config) -> tuple[State, Metrics]:
    """One step on `batch["image"]` or `batch["x"]`, (B, *shape)."""
    key = jax.random.fold_in(state.key, state.step)
    grads, metrics = jax.grad(loss, has_aux=True)(state.params, batch, key, cfg)
    optimizer = values.gradient_transformation(cfg.optimizer)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return state._replace(step=state.step + 1, params=params, opt_state=opt_state), metrics


@checked
def sample(key: Array, state: State, n: int, cfg: Config) -> Array:
    """n draws from p(x), (n, *shape)."""
    return decode(state, jax.random.normal(key, (n, cfg.num_dims)), cfg)


def measure(cfg: Config) -> str:
    """What `log_prob` is of: a density, of dequantised pixels if the data have levels."""
    del cfg
    return "density"


@checked
def log_prob(state: State, x: Array, cfg: Config) -> Array:
    """log p(x) of real numbers x (B, *shape) in nats, (B,)."""
    return density.log_prob(flow(cfg), state.params, x)


@checked
def encode(state: State, x: Array, cfg: Config) -> Array:
    """z = L^-1 (x - mean), (B, D)."""
    return flow(cfg).forward(state.params, x.reshape(x.shape[0], cfg.num_dims))[0]


@checked
def decode(state: State, z: Array, cfg: Config) -> Array:
    """x = mean + L z of z (B, D), (B, *shape)."""
    return flow(cfg).inverse(state.params, z)[0].reshape(z.shape[0], *cfg.shape)


def reverse_kl(
    params: Any,
    key: Array,
    target_log_prob: Callable[[Array], Array],
    n: int,
    cfg: Config,
    *,
    path: bool = False,
) -> Array:
    """KL(p || target), see `density.reverse_kl`."""
    return density.reverse_kl(flow(cfg), params, key, target_log_prob, n, cfg, path=path)
