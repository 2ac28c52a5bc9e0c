"""Deep belief network (Hinton, Osindero & Teh 2006).

A restricted Boltzmann machine generates its visible layer, and from there each layer generates the next lower
one as independent bits,

    p(v, h_1, ..., h_L) = p(h_{L-1}, h_L) prod_{l < L-1} p(h_l | h_{l+1}),     h_0 = v,

with a recognition network q(h_{l+1} | h_l) in place of the posterior. `from_rbms` stacks machines that were
trained one after the other, each on states of the one below; a step is the contrastive wake-sleep
algorithm, by which layers below the top have weights of their own upwards and downwards: states drawn
upwards teach the weights downwards, the top machine goes from them by some Gibbs steps to a dream, and
states drawn downwards from that teach the weights upwards. With `conditional` a label is joined to the
layer below the top.

    log p(v) >= E_q[sum_l log p(h_l | h_{l+1}) + log f(h_{L-1})] + H(q) - log Z,

with f and Z of the top machine.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxgen import keys, labels, values
from jaxgen.arguments import checked
from jaxgen.energy import bipartite
from jaxgen.energy.bipartite import Bits, Machine, flat
from jaxgen.energy.chains import from_biases
from jaxgen.fields import NonNegativeFloat, NonNegativeInt, PositiveInt
from jaxgen.labels import Label
from jaxgen.nn.sigmoid_layers import (
    Layer,
    downwards,
    log_downwards,
    log_upwards,
    means_above,
    means_below,
    upwards,
)
from jaxgen.types import Batch, Metrics, observed


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(values.Value):
    """Hyperparameters of the deep belief network."""

    shape: tuple[PositiveInt, ...] = (8, 8, 1)
    """Shape of one example, which is flattened to D numbers."""
    num_classes: NonNegativeInt = 0
    """Number of labels of the data; 0 if they have none."""
    levels: NonNegativeInt = 256
    """Values that a pixel of the data has, spread evenly over [-1, 1]; 0 for real numbers."""
    widths: tuple[PositiveInt, ...] = (128, 256)
    """Units of the hidden layers, two or more of them; the last two are the top machine."""
    visible: Bits = Bits()
    """The visible units."""
    conditional: bool = False
    """Join the label to the layer below the top: p(x, label)."""
    num_steps: PositiveInt = 3
    """Gibbs steps of the top machine between states drawn upwards and the dream."""
    weight_decay: NonNegativeFloat = 0.0
    """Weight of half the sum of squared weights of the top machine in what is minimised."""
    optimizer: values.Optimizer = values.SGD(1e-3)
    """How the parameters follow the gradient."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Units of all layers, the visible one first."""
        return math.prod(self.shape), *self.widths


class Params(NamedTuple):
    """The layers below the top, downwards and upwards, and the machine at the top."""

    generative: tuple[Layer, ...]
    recognition: tuple[Layer, ...]
    top: bipartite.Params


class State(NamedTuple):
    """What training changes."""

    step: Array
    key: Array
    params: Params
    opt_state: Any


@checked
def init(key: Array, cfg: Config, batch: Batch | None = None) -> State:
    """A fresh state with weights N(0, 0.01^2); `batch`, if given, sets visible biases to its mean.

    Raises ValueError for fewer than two hidden layers, and for data that are no pictures.
    """
    labels.check_conditional(cfg)
    cfg.visible.check(cfg.levels)
    if len(cfg.widths) < 2 or min(cfg.widths) < 1:
        raise ValueError(f"a deep network has 2 hidden layers or more, of 1 unit or more, not {cfg.widths}")
    if cfg.num_steps < 1:
        raise ValueError(f"num_steps must be 1 or more, got {cfg.num_steps}")
    weight_key, data_key = keys.named(key, "weights", "data")
    joined = [0] * (len(cfg.widths) - 1) + [labels.count(cfg)]
    machines = []
    for index, ((low, high), more) in enumerate(zip(itertools.pairwise(cfg.sizes), joined, strict=True)):
        weight = 0.01 * jax.random.normal(jax.random.fold_in(weight_key, index), (low + more, high))
        machines.append(bipartite.Params(weight, jnp.zeros(low + more), jnp.zeros(high)))
    if batch is not None:
        bias = cfg.visible.first_bias(cfg.visible.units(data_key, flat(observed(batch))))
        machines[0] = machines[0]._replace(visible_bias=bias)
    return around(key, from_rbms(machines), cfg)


def around(key: Array, params: Params, cfg: Config) -> State:
    """A fresh state with these parameters."""
    opt_state = values.gradient_transformation(cfg.optimizer).init(params)
    return State(jnp.zeros((), jnp.int32), keys.named(key, "steps"), params, opt_state)


def from_rbms(machines: Sequence[bipartite.Params]) -> Params:
    """The network of restricted machines, each of which was trained on states of the one below.

    A machine on top whose weights are those below transposed leaves p(v) as it is, and what it learns after
    that raises the bound.
    """
    *below, top = machines
    generative = tuple(Layer(jnp.array(machine.weight), machine.visible_bias) for machine in below)
    recognition = tuple(Layer(jnp.array(machine.weight), machine.hidden_bias) for machine in below)
    return Params(generative, recognition, top)


def transposed(below: bipartite.Params, fresh: bipartite.Params) -> bipartite.Params:
    """`fresh` parameters of the machine on top of `below`, with as many of its units as there are transposed.

    Where none is left over, p(v) stays what it is but for the weights of further hidden units, which are
    small at first. If `fresh` has fewer hidden units than `below` has visible ones, it is returned as it is.
    """
    (low, high), width = below.weight.shape, len(fresh.hidden_bias)
    if width < low:
        return fresh
    return bipartite.Params(
        fresh.weight.at[:high, :low].set(below.weight.T),
        fresh.visible_bias.at[:high].set(below.hidden_bias),
        fresh.hidden_bias.at[:low].set(below.visible_bias),
    )


def machine(cfg: Config) -> Machine:
    """What the parameters of the top machine mean."""
    return Machine(num_labels=labels.count(cfg))


@checked
def loss(params: Params, batch: Batch, key: Array, cfg: Config) -> tuple[Array, Metrics]:
    """Minus the log-probabilities of drawn states, and the contrast of the top machine, in nats per example.

    Its gradient is the step of the contrastive wake-sleep algorithm, and its value bounds nothing.
    `batch["label"]` (B,) is needed if conditional.
    """
    data_key, wake_key, top_key, dream_key = keys.named(key, "data", "wake", "top", "dream")
    v = cfg.visible.units(data_key, flat(observed(batch)))
    held = jax.lax.stop_gradient(params)
    awake = upwards(wake_key, held.recognition, v)
    label, model = labels.of_batch(batch, labels.count(cfg)), machine(cfg)
    h = model.joined(awake[-1], label)
    model_h = model.gibbs(top_key, held.top, h, cfg.num_steps)
    dream = downwards(dream_key, held.generative, model_h[:, : awake[-1].shape[-1]])
    wake = -log_downwards(params.generative, awake).sum(0).mean()
    sleep = -log_upwards(params.recognition, dream).sum(0).mean()
    log_f = lambda h: model.log_unnormalized(params.top, h).mean()
    top = log_f(model_h) - log_f(h) + 0.5 * cfg.weight_decay * (params.top.weight**2).sum()
    return wake + sleep + top, {"wake": wake, "sleep": sleep, "contrast": top}


@checked
def train_step(state: State, batch: Batch, cfg: Config) -> tuple[State, Metrics]:
    """One step on the examples of a batch, (B, *shape), and `batch["label"]` (B,) if conditional."""
    key = jax.random.fold_in(state.key, state.step)
    grads, metrics = jax.grad(loss, has_aux=True)(state.params, batch, key, cfg)
    updates, opt_state = values.gradient_transformation(cfg.optimizer).update(
        grads, state.opt_state, state.params
    )
    params = optax.apply_updates(state.params, updates)
    return State(state.step + 1, state.key, params, opt_state), metrics


@checked
def sample(
    key: Array, state: State, n: int, cfg: Config, label: Label = None, *, num_steps: int = 1000
) -> Array:
    """n draws by `num_steps` Gibbs steps of the top machine from noise and a pass downwards, (n, *shape).

    Pixels are means given the layer above. If conditional the label stays what it is, or without one is drawn
    along.
    """
    start_key, step_key, down_key = keys.named(key, "first states", "Gibbs steps", "downwards")
    labels.check(label, labels.count(cfg))
    hot = None if label is None else jax.nn.one_hot(labels.spread(label, n), cfg.num_classes)
    top = state.params.top
    h = machine(cfg).gibbs(step_key, top, from_biases(start_key, machine(cfg), top, n), num_steps, hot)
    states = downwards(down_key, state.params.generative, h[:, : cfg.sizes[-2]])
    return _pixels(state.params, states[1], cfg)


def measure(cfg: Config) -> str:
    """What `unnormalized_elbo` is of."""
    return cfg.visible.measure


def unnormalized_elbo(key: Array, state: State, x: Array, cfg: Config, label: Label = None) -> Array:
    """A lower bound on log p(x) + log Z with one draw of the hidden layers, of x (B, *shape), (B,) nats.

    Bits are drawn from grey values. log Z is that of the top machine. If conditional and without a label it
    is summed over labels.
    """
    data_key, wake_key = keys.named(key, "data", "wake")
    states = upwards(wake_key, state.params.recognition, cfg.visible.units(data_key, flat(x)))
    by_label = _log_top(state.params, states[-1], cfg, label)
    log_p, log_q = (
        log_downwards(state.params.generative, states),
        log_upwards(state.params.recognition, states),
    )
    return log_p.sum(0) - log_q.sum(0) + by_label


@checked
def classify(state: State, x: Array, cfg: Config) -> Array:
    """log p(label | h) with h the recognition network's means of x, (B, num_classes).

    Raises ValueError for a model without labels.
    """
    if not cfg.conditional:
        raise ValueError("this network has no label in its top machine: train it with conditional=True")
    h = encode(state, x, cfg)
    return jax.nn.log_softmax(
        machine(cfg).log_unnormalized(state.params.top, machine(cfg).with_every_label(h))
    )


@checked
def encode(state: State, x: Array, cfg: Config) -> Array:
    """Recognised means of the layer below the top, for grey values as they are, (B, n_{L-1})."""
    return means_above(state.params.recognition, cfg.visible.inputs(flat(x)))


@checked
def reconstruct(state: State, x: Array, cfg: Config) -> Array:
    """x by means upwards to the layer below the top and downwards again, (B, *shape)."""
    h = encode(state, x, cfg)
    return _pixels(state.params, means_below(state.params.generative[1:], h), cfg)


def _pixels(params: Params, h: Array, cfg: Config) -> Array:
    """E[x | h_1], (B, *shape)."""
    return cfg.visible.data(means_below(params.generative[:1], h)).reshape(-1, *cfg.shape)


def _log_top(params: Params, h: Array, cfg: Config, label: Label) -> Array:
    """log f of the top machine, (B,)."""
    labels.check(label, labels.count(cfg))
    if cfg.conditional and label is None:
        return jax.nn.logsumexp(
            machine(cfg).log_unnormalized(params.top, machine(cfg).with_every_label(h)), -1
        )
    given = labels.given(label, len(h), labels.count(cfg))
    return machine(cfg).log_unnormalized(params.top, machine(cfg).joined(h, given))
