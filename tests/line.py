"""The smallest family there is, for tests of the loop: a mean learned by noisy gradient steps, and a trap.

At `cfg.bad_step` the loss becomes NaN, after `cfg.bad_state_step` the state does.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    shape: tuple[int, ...] = (2,)
    learning_rate: float = 0.05
    bad_step: int = -1
    bad_state_step: int = -1
    transform: object = None


class State(NamedTuple):
    step: Array
    key: Array
    params: Array


def init(key, cfg, batch=None):
    return State(jnp.zeros((), jnp.int32), key, jnp.zeros(cfg.shape))


def loss(params, batch, key, cfg):
    return 0.5 * ((params - batch["x"]) ** 2).sum(-1).mean(), {}


def train_step(state, batch, cfg):
    key = jax.random.fold_in(state.key, state.step)
    residual = state.params - batch["x"] + 0.1 * jax.random.normal(key, batch["x"].shape)
    loss = jnp.where(state.step == cfg.bad_step, jnp.nan, 0.5 * (residual**2).sum(-1).mean())
    params = state.params - cfg.learning_rate * residual.mean(0)
    params = jnp.where(state.step == cfg.bad_state_step, jnp.nan, params)
    return State(state.step + 1, state.key, params), {"loss": loss, "index": state.step.astype(jnp.float32)}


def sample(key, state, n, cfg):
    return state.params + jax.random.normal(key, (n, *cfg.shape))
