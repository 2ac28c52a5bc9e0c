"""Probabilistic PCA (Tipping & Bishop 1999), as an example of how a family file reads.

A latent z ~ N(0, I) of few dimensions is mapped linearly to the data and spherical noise is added,

    x = W z + mu + eps,   eps ~ N(0, s^2 I)   =>   p(x) = N(x; mu, W W' + s^2 I),

so the likelihood is exact and its maximum is known in closed form: the principal subspace, with s^2 the
mean of the discarded eigenvalues. Here it is reached by gradient ascent, as every deep family is; the
closed form is what the test compares with. It is the linear special case of a Gaussian VAE.

Departs from the paper: log s is learned unconstrained; no EM.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxgen import values
from jaxgen.arguments import checked
from jaxgen.fields import PositiveInt
from jaxgen.types import Batch, Metrics, observed


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(values.Value):
    """Hyperparameters of probabilistic PCA."""

    shape: tuple[PositiveInt, ...] = (8, 8, 1)
    """Shape of one example, which is flattened to D numbers."""
    num_latents: PositiveInt = 10
    """Dimensions of z, fewer than D."""
    optimizer: values.Optimizer = values.Adam(1e-2)
    """How the parameters climb the likelihood."""

    @property
    def num_dims(self) -> int:
        """D."""
        return math.prod(self.shape)


class Params(NamedTuple):
    """W, mu and log s."""

    weight: Array  # (D, num_latents)
    mean: Array  # (D,)
    log_scale: Array  # (), log s


class State(NamedTuple):
    """What training changes."""

    step: Array
    key: Array
    params: Params
    opt_state: Any


@checked
def init(key: Array, cfg: Config, batch: Batch | None = None) -> State:
    """A fresh state; `batch`, if given, sets the mean to the batch's.

    Raises ValueError for as many latents as dimensions, or more.
    """
    if not 0 < cfg.num_latents < cfg.num_dims:
        raise ValueError(
            f"num_latents must be 1 to {cfg.num_dims - 1} for {cfg.shape}, got {cfg.num_latents}"
        )
    init_key, step_key = jax.random.split(key)
    weight = 0.1 * jax.random.normal(init_key, (cfg.num_dims, cfg.num_latents))
    mean = jnp.zeros(cfg.num_dims) if batch is None else _flat(observed(batch)).mean(0)
    params = Params(weight, mean.astype(weight.dtype), jnp.zeros(()))
    return State(
        jnp.zeros((), jnp.int32), step_key, params, values.gradient_transformation(cfg.optimizer).init(params)
    )


@checked
def loss(params: Params, batch: Batch, key: Array, cfg: Config) -> tuple[Array, Metrics]:
    """Mean negative log-likelihood in nats per example. `key` is unused: nothing is sampled."""
    del key, cfg
    nll = -_log_density(params, _flat(observed(batch))).mean()
    return nll, {"nll": nll, "noise_std": jnp.exp(params.log_scale)}


@checked
def train_step(state: State, batch: Batch, cfg: Config) -> tuple[State, Metrics]:
    """One step on `batch["image"]` or `batch["x"]`, (B, *shape)."""
    key = jax.random.fold_in(state.key, state.step)
    grads, metrics = jax.grad(loss, has_aux=True)(state.params, batch, key, cfg)
    updates, opt_state = values.gradient_transformation(cfg.optimizer).update(
        grads, state.opt_state, state.params
    )
    params = optax.apply_updates(state.params, updates)
    return state._replace(step=state.step + 1, params=params, opt_state=opt_state), metrics


@checked
def sample(key: Array, state: State, n: int, cfg: Config) -> Array:
    """n draws from p(x), (n, *shape)."""
    latent_key, noise_key = jax.random.split(key)
    x = decode(state, jax.random.normal(latent_key, (n, cfg.num_latents)), cfg)
    return x + jnp.exp(state.params.log_scale) * jax.random.normal(noise_key, x.shape)


def measure(cfg: Config) -> str:
    """What `log_prob` is of: a density of real numbers."""
    del cfg
    return "density"


@checked
def log_prob(state: State, x: Array, cfg: Config) -> Array:
    """Exact log p(x) in nats, (B,)."""
    del cfg
    return _log_density(state.params, _flat(x))


@checked
def encode(state: State, x: Array, cfg: Config) -> Array:
    """Posterior mean E[z | x], (B, num_latents)."""
    weight, mean, log_scale = state.params
    precision = weight.T @ weight + jnp.exp(2 * log_scale) * jnp.eye(cfg.num_latents)
    return jnp.linalg.solve(precision, weight.T @ (_flat(x) - mean).T).T


@checked
def decode(state: State, z: Array, cfg: Config) -> Array:
    """E[x | z], (B, *shape)."""
    return (z @ state.params.weight.T + state.params.mean).reshape(-1, *cfg.shape)


def _log_density(params: Params, x: Array) -> Array:
    num_dims = x.shape[-1]
    cov = params.weight @ params.weight.T + jnp.exp(2 * params.log_scale) * jnp.eye(num_dims)
    return jnp.asarray(jax.scipy.stats.multivariate_normal.logpdf(x, params.mean, cov))


def _flat(x: Array) -> Array:
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))
