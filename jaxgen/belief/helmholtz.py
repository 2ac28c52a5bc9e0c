"""Helmholtz machine and the wake-sleep algorithm (Dayan, Hinton, Neal & Zemel 1995; Hinton et al. 1995).

A sigmoid belief network p(v, h) and a recognition network q(h | v) teach each other: awake, hidden states
drawn by q from data teach p; asleep, states of all layers drawn by p teach q,

    wake = -E_data E_q[log p(v, h)],     sleep = -E_p[log q(h | v)].

Wake lowers a bound on -log p(v), while sleep minimises KL(p(h | v) || q(h | v)) on dreams and not that
bound. Reweighted wake-sleep (Bornschein & Bengio 2015) draws h_1, ..., h_K from q and weights them by
w_k = softmax_k(log p(v, h_k) - log q(h_k | v)), so that they are nearly draws of the posterior; they teach p,
and q on data too.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxgen import keys, values
from jaxgen.arguments import checked
from jaxgen.belief import sigmoid_net
from jaxgen.belief.sigmoid_net import Params
from jaxgen.energy.bipartite import Bits, flat
from jaxgen.fields import NonNegativeFloat, NonNegativeInt, PositiveInt
from jaxgen.nn import sigmoid_layers
from jaxgen.types import Batch, Metrics, observed


@dataclasses.dataclass(frozen=True)
class WakeSleep(values.Value):
    """One draw of q for each example, and as many dreams as there are examples."""

    def __call__(self, params: Params, v: Array, key: Array) -> tuple[Array, Metrics]:
        """The sum of what teaches both networks, of v (B, D), in nats per example."""
        wake_key, dream_key = keys.named(key, "wake", "dream")
        held = jax.lax.stop_gradient(params)
        awake = sigmoid_layers.upwards(wake_key, held.recognition, v)
        wake = -sigmoid_net.log_joint(params.generative, awake).mean()
        sleep = _sleep(dream_key, params, len(v))
        return wake + sleep, {"wake": wake, "sleep": sleep}


@dataclasses.dataclass(frozen=True)
class Reweighted(values.Value):
    """Reweighted wake-sleep: several weighted draws of q for each example."""

    num_samples: PositiveInt = 5
    """Draws of q for each example."""
    wake: NonNegativeFloat = 1.0
    """Weight of teaching q by weighted draws on data."""
    sleep: NonNegativeFloat = 1.0
    """Weight of teaching q by dreams."""

    def __post_init__(self) -> None:
        if not self.wake + self.sleep:
            raise ValueError("something has to teach q: give wake or sleep a positive weight")

    def __call__(self, params: Params, v: Array, key: Array) -> tuple[Array, Metrics]:
        """The sum of what teaches both networks, of v (B, D), in nats per example."""
        wake_key, dream_key = keys.named(key, "wake", "dream")
        held = jax.lax.stop_gradient(params)
        many = jnp.repeat(v[None], self.num_samples, 0).reshape(-1, v.shape[1])
        awake = sigmoid_layers.upwards(wake_key, held.recognition, many)
        log_p = sigmoid_net.log_joint(params.generative, awake).reshape(self.num_samples, -1)
        log_q = sigmoid_layers.log_upwards(params.recognition, awake).sum(0).reshape(self.num_samples, -1)
        weights = jax.nn.softmax(jax.lax.stop_gradient(log_p - log_q), 0)
        wake, recognition = (-(weights * terms).sum(0).mean() for terms in (log_p, log_q))
        sleep = _sleep(dream_key, params, len(v)) if self.sleep else jnp.zeros(())
        metrics = {"wake": wake, "recognition": recognition, "sleep": sleep}
        return wake + self.wake * recognition + self.sleep * sleep, metrics


def _sleep(key: Array, params: Params, n: int) -> Array:
    """-log q(h | v) of n dreams, in nats per dream."""
    dream = sigmoid_net.dream(key, jax.lax.stop_gradient(params.generative), n)
    return -sigmoid_layers.log_upwards(params.recognition, dream).sum(0).mean()


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(values.Value):
    """Hyperparameters of the Helmholtz machine."""

    shape: tuple[PositiveInt, ...] = (8, 8, 1)
    """Shape of one example, which is flattened to D bits."""
    levels: NonNegativeInt = 256
    """Values that a pixel of the data has, spread evenly over [-1, 1]; 0 for real numbers."""
    widths: tuple[PositiveInt, ...] = (64, 32)
    """Units of the hidden layers, the lowest first."""
    visible: Bits = Bits()
    """How pixels become bits."""
    objective: WakeSleep | Reweighted | values.Value = WakeSleep()
    """What teaches the two networks."""
    optimizer: values.Optimizer = values.Adam(1e-3)
    """How the parameters of both networks follow their gradients."""


class State(NamedTuple):
    """What training changes."""

    step: Array
    key: Array
    params: Params
    opt_state: Any


@checked
def init(key: Array, cfg: Config, batch: Batch | None = None) -> State:
    """A fresh state; `batch`, if given, sets biases of visible units to its mean.

    Raises ValueError for no hidden layer, and for data that are no pictures.
    """
    params = sigmoid_net.init(key, cfg, batch)
    opt_state = values.gradient_transformation(cfg.optimizer).init(params)
    return State(jnp.zeros((), jnp.int32), keys.named(key, "steps"), params, opt_state)


@checked
def loss(params: Params, batch: Batch, key: Array, cfg: Config) -> tuple[Array, Metrics]:
    """The sum of what teaches both networks, in nats per example; its value bounds nothing."""
    data_key, state_key = keys.named(key, "data", "states")
    v = sigmoid_net.bits(data_key, observed(batch), cfg)
    total, metrics = cfg.objective(params, v, state_key)  # type: ignore[operator]
    return total, {"loss": total, **metrics}


@checked
def train_step(state: State, batch: Batch, cfg: Config) -> tuple[State, Metrics]:
    """One step on the examples of a batch, (B, *shape)."""
    key = jax.random.fold_in(state.key, state.step)
    grads, metrics = jax.grad(loss, has_aux=True)(state.params, batch, key, cfg)
    optimizer = values.gradient_transformation(cfg.optimizer)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    return State(state.step + 1, state.key, optax.apply_updates(state.params, updates), opt_state), metrics


@checked
def sample(key: Array, state: State, n: int, cfg: Config) -> Array:
    """n draws, means of pixels given the lowest hidden layer, (n, *shape)."""
    return sigmoid_net.sample(key, state.params.generative, n, cfg)


def measure(cfg: Config) -> str:
    """What `elbo` is of."""
    return cfg.visible.measure


@checked
def elbo(key: Array, state: State, x: Array, cfg: Config) -> Array:
    """A lower bound on log p(x) with one draw of q, of x (B, *shape), (B,) nats. Bits are drawn from grey
    values.
    """
    return iwae(key, state, x, cfg, 1)


@checked
def iwae(key: Array, state: State, x: Array, cfg: Config, num_samples: int) -> Array:
    """A lower bound on log p(x) with `num_samples` weighted draws of q, of x (B, *shape), (B,) nats."""
    data_key, draw_key = keys.named(key, "data", "proposals")
    return sigmoid_net.elbo(draw_key, state.params, sigmoid_net.bits(data_key, x, cfg), num_samples)


def exact_log_prob(state: State, x: Array, cfg: Config, *, key: Array | None = None) -> Array:
    """log p(x) of x (B, *shape) by the sum over all hidden states, (B,) nats.

    Bits are drawn from grey values with a key, else cut at 1/2. Raises ValueError for more than 20 hidden
    units.
    """
    return sigmoid_net.log_prob(state.params.generative, sigmoid_net.bits(key, x, cfg))


@checked
def encode(state: State, x: Array, cfg: Config) -> Array:
    """Recognised means of the highest layer, for grey values as they are, (B, n_L)."""
    return sigmoid_layers.means_above(state.params.recognition, cfg.visible.inputs(flat(x)))


@checked
def reconstruct(state: State, x: Array, cfg: Config) -> Array:
    """x by means upwards and downwards again, (B, *shape)."""
    return sigmoid_net.reconstruct(state.params, x, cfg)
