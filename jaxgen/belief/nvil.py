"""Neural variational inference and learning (Mnih & Gregor 2014), and VIMCO (Mnih & Rezende 2016).

A sigmoid belief network p(v, h) and a recognition network q(h | v) both raise the bound
E_q[log p(v, h) - log q(h | v)]. As states are discrete, q follows the score-function gradient,

    grad_q bound = E_q[(l - C) grad log q(h | v)],     l = log p(v, h) - log q(h | v),

for any C that does not depend on h. `NVIL` keeps its variance low: C is the output of a small network of v
plus a running mean of what is left, the signal is divided by its running standard deviation if that is above
1, and the factor of each layer keeps only the terms of l that depend on that layer or on those above,

    l_i = sum_{j >= i} [log p(h_j | h_{j+1}) - log q(h_{j+1} | h_j)] + log p(h_L),

with a network C_i(h_i) for each layer. `VIMCO` raises the bound of several draws, where the other draws of an
example say what to expect of each.
"""

import dataclasses
import math
from typing import Annotated, Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxgen import keys, values
from jaxgen.arguments import checked
from jaxgen.belief import sigmoid_net
from jaxgen.energy.bipartite import Bits, flat
from jaxgen.fields import Fraction, NonNegativeInt, PositiveInt, Range
from jaxgen.nn import sigmoid_layers
from jaxgen.types import Batch, Metrics, observed


class Baseline(NamedTuple):
    """A network with one hidden layer of tanh units, which predicts the signal of one layer."""

    weight: Array  # (n_l, W)
    bias: Array  # (W,)
    output: Array  # (W,)
    constant: Array  # ()

    def __call__(self, states: Array) -> Array:
        """The prediction for states (B, n_l) of the layer below, (B,) nats."""
        return jnp.tanh((2 * states - 1) @ self.weight + self.bias) @ self.output + self.constant


class Signal(NamedTuple):
    """Running mean and variance of the signal of each layer that baselines leave, (L,)."""

    mean: Array
    variance: Array


class Params(NamedTuple):
    """Both networks, and the baselines, if there are any."""

    net: sigmoid_net.Params
    baselines: tuple[Baseline, ...]


@runtime_checkable
class Estimator(Protocol):
    """How the gradient of the recognition network is estimated."""

    def init(self, key: Array, sizes: tuple[int, ...]) -> tuple[Baseline, ...]:
        """Baselines, before training, of layers with these numbers of units, the visible one first."""

    def __call__(
        self, params: Params, v: Array, key: Array, signal: Signal
    ) -> tuple[Array, tuple[Metrics, Signal]]:
        """What is minimised at v (B, D), metrics, and the signal's new statistics."""


@dataclasses.dataclass(frozen=True)
class NVIL(values.Value):
    """One draw of q for each example and a signal of low variance (Mnih & Gregor 2014)."""

    learned: bool = True
    """Subtract from the signal of each layer what a network predicts from the layer below."""
    centred: bool = True
    """Subtract a running mean from the signal."""
    normalised: bool = True
    """Divide the signal by its running standard deviation if that is above 1."""
    local: bool = True
    """Keep only those terms in the signal of a layer that depend on it."""
    decay: Fraction = 0.8
    """Decay of the running mean and variance."""
    width: PositiveInt = 100
    """Hidden units of the networks that predict signals."""

    def init(self, key: Array, sizes: tuple[int, ...]) -> tuple[Baseline, ...]:
        """One network for each layer but the highest, which predicts 0 at first."""
        if not self.learned:
            return ()
        weight = lambda index, size: jax.random.normal(jax.random.fold_in(key, index), (size, self.width))
        zeros = lambda: jnp.zeros(self.width)
        return tuple(
            Baseline(weight(index, size) / math.sqrt(size), zeros(), zeros(), jnp.zeros(()))
            for index, size in enumerate(sizes[:-1])
        )

    def __call__(
        self, params: Params, v: Array, key: Array, signal: Signal
    ) -> tuple[Array, tuple[Metrics, Signal]]:
        """Minus the bound with one draw, whose gradient is the estimate, and the errors of baselines."""
        net = params.net
        states = sigmoid_layers.upwards(key, jax.lax.stop_gradient(net.recognition), v)
        log_p = sigmoid_net.log_terms(net.generative, states)
        log_q = sigmoid_layers.log_upwards(net.recognition, states)
        gain = jax.lax.stop_gradient(log_p.at[-2].add(log_p[-1])[:-1] - log_q)  # (L, B)
        above = jnp.cumsum(gain[::-1], 0)[::-1]
        raw = above if self.local else jnp.broadcast_to(above[0], above.shape)
        predicted = jnp.zeros_like(raw)
        if self.learned:
            pairs = zip(params.baselines, states[:-1], strict=True)
            predicted = jnp.stack([baseline(h) for baseline, h in pairs])
        left = raw - jax.lax.stop_gradient(predicted)
        average = lambda old, new: self.decay * old + (1 - self.decay) * new
        signal = Signal(average(signal.mean, left.mean(1)), average(signal.variance, left.var(1)))
        factor, target = left, raw
        if self.centred:
            factor, target = left - signal.mean[:, None], raw - signal.mean[:, None]
        if self.normalised:
            factor = factor / jnp.maximum(1, jnp.sqrt(signal.variance))[:, None]
        surrogate = (factor * log_q).sum(0).mean() + log_p.sum(0).mean()
        error = 0.5 * ((predicted - target) ** 2).sum(0).mean()
        bound = gain.sum(0).mean()
        metrics = {"loss": -bound, "signal": jnp.sqrt((factor**2).mean())}
        # Its value is the bound, its gradient that of the surrogate and of the baselines' errors.
        taught = error - surrogate
        return taught - jax.lax.stop_gradient(taught) - bound, (metrics, signal)


@dataclasses.dataclass(frozen=True)
class VIMCO(values.Value):
    """Several draws of q for each example, each of which has the others for a baseline."""

    num_samples: Annotated[int, Range(least=2)] = 5
    """Draws of q for each example, two or more."""

    def init(self, key: Array, sizes: tuple[int, ...]) -> tuple[Baseline, ...]:
        """There are no baselines to learn."""
        return ()

    def __call__(
        self, params: Params, v: Array, key: Array, signal: Signal
    ) -> tuple[Array, tuple[Metrics, Signal]]:
        """Minus the bound with K draws, whose gradient is the estimate."""
        net, count = params.net, self.num_samples
        many = jnp.repeat(v[None], count, 0).reshape(-1, v.shape[1])
        states = sigmoid_layers.upwards(key, jax.lax.stop_gradient(net.recognition), many)
        log_q = sigmoid_layers.log_upwards(net.recognition, states).sum(0).reshape(count, -1)
        log_w = sigmoid_net.log_joint(net.generative, states).reshape(count, -1) - log_q
        bound = jax.nn.logsumexp(log_w, 0) - math.log(count)
        factor = jax.lax.stop_gradient(bound - left_out(log_w))
        taught = (factor * log_q).sum(0)
        value = bound + taught - jax.lax.stop_gradient(taught)
        metrics = {"loss": -bound.mean(), "signal": jnp.sqrt((factor**2).mean())}
        return -value.mean(), (metrics, signal)


def left_out(log_w: Array) -> Array:
    """The bound of log-weights (K, B) after each is replaced by the geometric mean of the others, (K, B)."""
    count = len(log_w)
    others = (log_w.sum(0) - log_w) / (count - 1)
    own = jnp.eye(count, dtype=bool)[:, :, None]
    return jax.nn.logsumexp(jnp.where(own, others[:, None], log_w), 1) - math.log(count)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(values.Value):
    """Hyperparameters of a belief network that is learned by score-function gradients."""

    shape: tuple[PositiveInt, ...] = (8, 8, 1)
    """Shape of one example, which is flattened to D bits."""
    levels: NonNegativeInt = 256
    """Values that a pixel of the data has, spread evenly over [-1, 1]; 0 for real numbers."""
    widths: tuple[PositiveInt, ...] = (64, 32)
    """Units of the hidden layers, the lowest first."""
    visible: Bits = Bits()
    """How pixels become bits."""
    estimator: NVIL | VIMCO | Estimator = NVIL()
    """How the gradient of the recognition network is estimated."""
    optimizer: values.Optimizer = values.Adam(1e-3)
    """How all parameters follow their gradients."""


class State(NamedTuple):
    """What training changes."""

    step: Array
    key: Array
    params: Params
    opt_state: Any
    signal: Signal


@checked
def init(key: Array, cfg: Config, batch: Batch | None = None) -> State:
    """A fresh state; `batch`, if given, sets biases of visible units to its mean.

    Raises ValueError for no hidden layer, and for data that are no pictures.
    """
    net = sigmoid_net.init(key, cfg, batch)
    baselines = cfg.estimator.init(keys.named(key, "baselines"), (math.prod(cfg.shape), *cfg.widths))
    params = Params(net, baselines)
    opt_state = values.gradient_transformation(cfg.optimizer).init(params)
    return State(jnp.zeros((), jnp.int32), keys.named(key, "steps"), params, opt_state, first_signal(cfg))


def first_signal(cfg: Config) -> Signal:
    """Statistics of the signal before training, which are 0."""
    return Signal(jnp.zeros(len(cfg.widths)), jnp.zeros(len(cfg.widths)))


@checked
def loss(params: Params, batch: Batch, key: Array, cfg: Config) -> tuple[Array, Metrics]:
    """A draw of minus the bound, in nats per example, whose gradient is the estimate of a first step."""
    value, (metrics, _) = estimate(params, batch, key, cfg, first_signal(cfg))
    return value, metrics


def estimate(
    params: Params, batch: Batch, key: Array, cfg: Config, signal: Signal
) -> tuple[Array, tuple[Metrics, Signal]]:
    """A draw of minus the bound, whose gradient is the estimate of a step that comes to these statistics of
    the signal; and the statistics after it.
    """
    data_key, draw_key = keys.named(key, "data", "states")
    v = sigmoid_net.bits(data_key, observed(batch), cfg)
    return cfg.estimator(params, v, draw_key, signal)


@checked
def train_step(state: State, batch: Batch, cfg: Config) -> tuple[State, Metrics]:
    """One step on the examples of a batch, (B, *shape)."""
    key = jax.random.fold_in(state.key, state.step)
    grads, (metrics, signal) = jax.grad(estimate, has_aux=True)(state.params, batch, key, cfg, state.signal)
    optimizer = values.gradient_transformation(cfg.optimizer)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return State(state.step + 1, state.key, params, opt_state, signal), metrics


@checked
def sample(key: Array, state: State, n: int, cfg: Config) -> Array:
    """n draws, means of pixels given the lowest hidden layer, (n, *shape)."""
    return sigmoid_net.sample(key, state.params.net.generative, n, cfg)


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
    return sigmoid_net.elbo(draw_key, state.params.net, sigmoid_net.bits(data_key, x, cfg), num_samples)


def exact_log_prob(state: State, x: Array, cfg: Config, *, key: Array | None = None) -> Array:
    """log p(x) of x (B, *shape) by the sum over all hidden states, (B,) nats.

    Bits are drawn from grey values with a key, else cut at 1/2. Raises ValueError for more than 20 hidden
    units.
    """
    return sigmoid_net.log_prob(state.params.net.generative, sigmoid_net.bits(key, x, cfg))


@checked
def encode(state: State, x: Array, cfg: Config) -> Array:
    """Recognised means of the highest layer, for grey values as they are, (B, n_L)."""
    return sigmoid_layers.means_above(state.params.net.recognition, cfg.visible.inputs(flat(x)))


@checked
def reconstruct(state: State, x: Array, cfg: Config) -> Array:
    """x by means upwards and downwards again, (B, *shape)."""
    return sigmoid_net.reconstruct(state.params.net, x, cfg)
