"""Sigmoid belief network, learned with Gibbs sampling (Neal 1992).

Binary units in layers generate each other downwards, p(v, h) = p(h_L) prod_l p(h_l | h_{l+1}), each unit with
probability sigmoid(its field). Given v the units of a layer depend on each other ("explaining away"), so they
are drawn one after the other from p(unit | all other units), whose log-odds are

    the unit's field + sum over units c below of [log p(c | unit = 1) - log p(c | unit = 0)],

in some sweeps over all hidden units, downwards through the layers. The gradient of log p(v) is that of
log p(v, h) at states h drawn so.

Departs from the paper: sweeps begin at draws of the prior at every step, as data are no longer few enough to
keep the states of each example.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxgen import distributions, keys, values
from jaxgen.arguments import checked
from jaxgen.belief import sigmoid_net
from jaxgen.belief.sigmoid_net import Generative
from jaxgen.energy.bipartite import Bits, flat
from jaxgen.fields import NonNegativeFloat, NonNegativeInt, PositiveInt
from jaxgen.nn import sigmoid_layers
from jaxgen.types import Batch, Metrics, observed


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(values.Value):
    """Hyperparameters of the sigmoid belief network."""

    shape: tuple[PositiveInt, ...] = (8, 8, 1)
    """Shape of one example, which is flattened to D bits."""
    levels: NonNegativeInt = 256
    """Values that a pixel of the data has, spread evenly over [-1, 1]; 0 for real numbers."""
    widths: tuple[PositiveInt, ...] = (32,)
    """Units of the hidden layers, the lowest first."""
    visible: Bits = Bits()
    """How pixels become bits."""
    num_sweeps: PositiveInt = 10
    """Sweeps of Gibbs sampling over all hidden units in a step."""
    weight_decay: NonNegativeFloat = 0.0
    """Weight of half the sum of squared weights in what is minimised."""
    optimizer: values.Optimizer = values.SGD(0.05, momentum=0.5)
    """How the parameters follow the gradient."""


class State(NamedTuple):
    """What training changes."""

    step: Array
    key: Array
    params: Generative
    opt_state: Any


@checked
def init(key: Array, cfg: Config, batch: Batch | None = None) -> State:
    """A fresh state; `batch`, if given, sets biases of visible units to its mean.

    Raises ValueError for no hidden layer, and for data that are no pictures.
    """
    params = sigmoid_net.init(key, cfg, batch).generative
    opt_state = values.gradient_transformation(cfg.optimizer).init(params)
    return State(jnp.zeros((), jnp.int32), keys.named(key, "steps"), params, opt_state)


def posterior(
    key: Array,
    net: Generative,
    v: Array,
    num_sweeps: int,
    start: list[Array] | None = None,
    weight: Array | float = 1.0,
) -> list[Array]:
    """States of all layers after so many sweeps of Gibbs sampling, v (B, D) first.

    They start at those given, or at a draw of the prior. `weight` is the power of p(v | h_1) in what the
    sweeps leave invariant; at 1 that is the posterior. Raises ValueError for a negative number of sweeps.
    """
    if num_sweeps < 0:
        raise ValueError(f"num_sweeps must not be negative, got {num_sweeps}")
    start_key, sweep_key = keys.named(key, "first states", "sweeps")
    hidden = (sigmoid_net.dream(start_key, net, len(v)) if start is None else start)[1:]

    def sweep(index, hidden):
        return _sweep(jax.random.fold_in(sweep_key, index), net, v, hidden, weight)

    return [v, *jax.lax.fori_loop(0, num_sweeps, sweep, hidden)]


def _sweep(key: Array, net: Generative, v: Array, hidden: list[Array], weight: Array | float) -> list[Array]:
    """One draw of every hidden unit given all others, the highest layer first."""
    hidden = list(hidden)
    for index in reversed(range(len(hidden))):
        h, below = hidden[index], net.layers[index]
        if index + 1 < len(hidden):
            own = sigmoid_layers.field_below(net.layers[index + 1], hidden[index + 1])
        else:
            own = jnp.broadcast_to(net.prior, h.shape)
        low = hidden[index - 1] if index else v
        power = 1.0 if index else weight
        uniform = jax.random.uniform(jax.random.fold_in(key, index), (h.shape[1], len(h)), h.dtype)

        def unit(field, column, low=low, power=power):
            state, own, to_below, uniform = column
            off = field - state[:, None] * to_below
            on = off + to_below
            children = low @ to_below + (jax.nn.softplus(off) - jax.nn.softplus(on)).sum(1)
            state = (uniform < jax.nn.sigmoid(own + power * children)).astype(state.dtype)
            return off + state[:, None] * to_below, state

        columns = h.T, own.T, below.weight.T, uniform
        hidden[index] = jax.lax.scan(unit, sigmoid_layers.field_below(below, h), columns)[1].T
    return hidden


@checked
def loss(params: Generative, batch: Batch, key: Array, cfg: Config) -> tuple[Array, Metrics]:
    """Minus the mean log p(v, h) at states drawn from the posterior, plus weight decay, in nats.

    Its gradient is that of -log p(v) if the sweeps have reached the posterior, its value is not -log p(v).
    """
    data_key, gibbs_key = keys.named(key, "data", "Gibbs sweeps")
    v = sigmoid_net.bits(data_key, observed(batch), cfg)
    states = posterior(gibbs_key, jax.lax.stop_gradient(params), v, cfg.num_sweeps)
    nll = -sigmoid_net.log_joint(params, states).mean()
    squares = sum((layer.weight**2).sum() for layer in params.layers)
    return nll + 0.5 * cfg.weight_decay * squares, {"loss": nll}


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
    return sigmoid_net.sample(key, state.params, n, cfg)


def measure(cfg: Config) -> str:
    """What `elbo` is of."""
    return cfg.visible.measure


def exact_log_prob(state: State, x: Array, cfg: Config, *, key: Array | None = None) -> Array:
    """log p(x) of x (B, *shape) by the sum over all hidden states, (B,) nats.

    Bits are drawn from grey values with a key, else cut at 1/2. Raises ValueError for more than 20 hidden
    units.
    """
    return sigmoid_net.log_prob(state.params, sigmoid_net.bits(key, x, cfg))


@checked
def elbo(key: Array, state: State, x: Array, cfg: Config, num_temperatures: int = 1000) -> Array:
    """log p(x) of x (B, *shape) by annealed importance sampling (Neal 2001), (B,) nats.

    The hidden units go from the prior to the posterior by p(h) p(x | h)^beta with one sweep at each of
    `num_temperatures` values of beta. The mean lies below log p(x), the nearer the more there are. Bits are
    drawn from grey values.

    Raises ValueError for no temperature.
    """
    if num_temperatures < 1:
        raise ValueError(f"num_temperatures must be 1 or more, got {num_temperatures}")
    data_key, start_key, sweep_key = keys.named(key, "data", "prior", "annealing")
    v = sigmoid_net.bits(data_key, x, cfg)
    first = sigmoid_net.dream(start_key, state.params, len(v))[1:]

    def cooler(carry, index):
        total, hidden = carry
        beta = (index + 1) / num_temperatures
        field = sigmoid_layers.field_below(state.params.layers[0], hidden[0])
        total += distributions.bernoulli_log_prob(v, field) / num_temperatures
        key = jax.random.fold_in(sweep_key, index)
        return (total, _sweep(key, state.params, v, hidden, beta)), None

    start = jnp.zeros(len(v)), first
    return jax.lax.scan(cooler, start, jnp.arange(num_temperatures))[0][0]


@checked
def encode(state: State, x: Array, cfg: Config, *, num_sweeps: int = 100) -> Array:
    """States of the lowest hidden layer after `num_sweeps` from a draw of the prior, (B, n_1).

    The draws are always the same ones. Grey values are cut at 1/2.
    """
    v = cfg.visible.units(None, flat(x))
    return posterior(jax.random.key(0), state.params, v, num_sweeps)[1]


@checked
def decode(state: State, z: Array, cfg: Config) -> Array:
    """E[x | h_1] for states or means z of the lowest hidden layer (B, n_1), (B, *shape)."""
    return sigmoid_net.pixels(state.params, z, cfg)


@checked
def reconstruct(state: State, x: Array, cfg: Config) -> Array:
    """x by a draw of its hidden units, (B, *shape)."""
    return decode(state, encode(state, x, cfg), cfg)
