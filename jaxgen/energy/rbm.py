"""Restricted Boltzmann machine (Smolensky 1986; Hinton 2002).

Visible units v and binary hidden units h with the energy E(v, h) = -b'v - c'h - v'W h have conditionals that
are independent bits, and a density with an unknown normaliser,

    p(v) = f(v) / Z,     log f(v) = b'v + sum_j log(1 + exp(c_j + (W'v)_j)),

whose gradient is that of log f at the data minus its mean under the model. The latter comes from Gibbs
sampling: a few steps from the data (CD-k), persistent chains (PCD, Tieleman 2008) or parallel tempering,
see `chains`. Visible units can be real numbers with Gaussian noise; with `conditional` a label is joined to
them, p(v, label), and p(label | v) is exact (Larochelle & Bengio 2008). log Z, and so the likelihood, is
estimated by `ais.log_partition`.

Departs from the papers: states are drawn everywhere but in the gradient, which sums over hidden units
exactly; sparsity is a cross-entropy with the mean activity of the batch, not of a running average.
"""

import dataclasses
import math
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxgen import keys, labels, values
from jaxgen.arguments import checked
from jaxgen.energy.bipartite import Bits, Gaussian, Machine, Params, flat
from jaxgen.energy.chains import Chains, ContrastiveDivergence, Persistent, Tempered, from_biases
from jaxgen.fields import NonNegativeFloat, NonNegativeInt, PositiveInt, Range
from jaxgen.labels import Label
from jaxgen.types import Batch, Metrics, observed


@dataclasses.dataclass(frozen=True)
class Sparsity(values.Value):
    """Hidden units that are rarely on (Lee, Ekanadham & Ng 2008; Hinton 2010)."""

    target: Annotated[float, Range(above=0, below=1)] = 0.1
    """Share of the examples for which a hidden unit is to be on."""
    cost: NonNegativeFloat = 0.01
    """Weight of the cross-entropy between that share and the mean of p(h = 1 | v)."""

    def __call__(self, mean: Array) -> Array:
        """The cost of hidden units with these mean activities (H,), in nats."""
        mean = jnp.clip(mean, 1e-6, 1 - 1e-6)
        return -self.cost * (self.target * jnp.log(mean) + (1 - self.target) * jnp.log1p(-mean)).sum()


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(values.Value):
    """Hyperparameters of the restricted Boltzmann machine."""

    shape: tuple[PositiveInt, ...] = (8, 8, 1)
    """Shape of one example, which is flattened to D numbers."""
    num_classes: NonNegativeInt = 0
    """Number of labels of the data; 0 if they have none."""
    levels: NonNegativeInt = 256
    """Values that a pixel of the data has, spread evenly over [-1, 1]; 0 for real numbers."""
    num_hidden: PositiveInt = 128
    """Hidden units."""
    visible: Bits | Gaussian = Bits()
    """Visible units: bits, or real numbers."""
    conditional: bool = False
    """Join the label to the visible units: p(x, label)."""
    chains: ContrastiveDivergence | Persistent | Tempered | Chains = Persistent()
    """Where the states of the model come from that the gradient compares data with."""
    weight_decay: NonNegativeFloat = 1e-4
    """Weight of half the sum of squared weights in what is minimised."""
    sparsity: Sparsity | values.Value | None = None
    """What is asked of the mean activity of hidden units, if anything."""
    copies: tuple[PositiveInt, PositiveInt] = (1, 1)
    """Copies of the visible and of the hidden layer, to train one layer of a deep machine: see `dbm`."""
    optimizer: values.Optimizer = values.SGD(0.05, momentum=0.9)
    """How the parameters follow the gradient."""

    @property
    def num_dims(self) -> int:
        """D."""
        return math.prod(self.shape)


class State(NamedTuple):
    """What training changes. States of visible units end with a one-hot label if conditional."""

    step: Array
    key: Array
    params: Params
    opt_state: Any
    chains: Any


@checked
def init(key: Array, cfg: Config, batch: Batch | None = None) -> State:
    """A fresh state with weights N(0, 0.01^2); `batch`, if given, sets visible biases to its mean (Hinton
    2010).

    Raises ValueError for data that the units cannot take.
    """
    labels.check_conditional(cfg)
    cfg.visible.check(cfg.levels)
    weight_key, chain_key, data_key, step_key = keys.named(key, "weights", "first chains", "data", "steps")
    model = machine(cfg)
    weight = 0.01 * jax.random.normal(weight_key, (cfg.num_dims + model.num_labels, cfg.num_hidden))
    visible_bias = jnp.zeros(cfg.num_dims + model.num_labels)
    if batch is not None:
        bias = cfg.visible.first_bias(cfg.visible.units(data_key, flat(observed(batch))))
        visible_bias = visible_bias.at[: cfg.num_dims].set(bias)
    params = Params(weight, visible_bias, jnp.zeros(cfg.num_hidden))
    opt_state = values.gradient_transformation(cfg.optimizer).init(params)
    chains = cfg.chains.init(chain_key, model, params)
    return State(jnp.zeros((), jnp.int32), step_key, params, opt_state, chains)


def machine(cfg: Config) -> Machine:
    """What the parameters of a Config mean: energies, conditionals, Gibbs sampling."""
    return Machine(cfg.visible, labels.count(cfg), cfg.copies)


def contrast(params: Params, v: Array, model_v: Array, cfg: Config) -> tuple[Array, Metrics]:
    """mean log f(model_v) - mean log f(v), plus the costs of weights and of activity, in nats.

    Its gradient is that of the negative log-likelihood where `model_v` (N, V) are exact draws of the model.
    """
    model = machine(cfg)
    log_f = lambda v: model.log_unnormalized(params, v).mean()
    gap = log_f(jax.lax.stop_gradient(model_v)) - log_f(v)
    activity = model.hidden_mean(params, v).mean(0)
    penalty = 0.5 * cfg.weight_decay * (params.weight**2).sum()
    if cfg.sparsity is not None:
        penalty += cfg.sparsity(activity)  # type: ignore[operator]
    back = model.visible_mean(params, model.hidden_mean(params, v))
    error = ((cfg.visible.data(back) - cfg.visible.data(v)) ** 2)[:, : cfg.num_dims].mean()
    return gap + penalty, {"contrast": gap, "reconstruction_error": error, "activity": activity.mean()}


@checked
def train_step(state: State, batch: Batch, cfg: Config) -> tuple[State, Metrics]:
    """One step on the examples of a batch, (B, *shape), and `batch["label"]` (B,) if conditional."""
    key = jax.random.fold_in(state.key, state.step)
    data_key, chain_key = keys.named(key, "data", "chains")
    x = flat(observed(batch))
    v = machine(cfg).joined(cfg.visible.units(data_key, x), labels.of_batch(batch, labels.count(cfg)))
    chains, model_v = cfg.chains.advance(chain_key, machine(cfg), state.params, state.chains, v)
    grads, metrics = jax.grad(contrast, has_aux=True)(state.params, v, model_v, cfg)
    optimizer = values.gradient_transformation(cfg.optimizer)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return State(state.step + 1, state.key, params, opt_state, chains), metrics


@checked
def sample(
    key: Array, state: State, n: int, cfg: Config, label: Label = None, *, num_steps: int = 1000
) -> Array:
    """n states after `num_steps` Gibbs steps that start at noise: means of pixels given h, (n, *shape).

    Chains that mix slowly have not forgotten their start after so many. If conditional the label stays what
    it is, or without one is drawn along. Gaussian noise is left out of the last step.
    """
    start_key, step_key = keys.named(key, "first states", "Gibbs steps")
    model = machine(cfg)
    clamped = _one_hot(label, n, cfg)
    v = from_biases(start_key, model, state.params, n)
    v = model.gibbs(step_key, state.params, v, num_steps, clamped)
    h = model.sample_hidden(keys.named(key, "last hidden"), state.params, v)
    return _data(model.visible_mean(state.params, h), cfg)


def measure(cfg: Config) -> str:
    """What `log_unnormalized` is of: bits, or a density of real numbers."""
    return cfg.visible.measure


def log_unnormalized(
    state: State, x: Array, cfg: Config, label: Label = None, *, key: Array | None = None
) -> Array:
    """log f(x) = log p(x) + log Z of x (B, *shape), (B,) nats: minus the free energy.

    Bits are drawn from grey values with a key, else cut at 1/2. If conditional and without a label it is
    summed over labels.
    """
    labels.check(label, labels.count(cfg))
    v = cfg.visible.units(key, flat(x))
    if not cfg.conditional or label is not None:
        given = labels.given(label, len(x), labels.count(cfg))
        return machine(cfg).log_unnormalized(state.params, machine(cfg).joined(v, given))
    return jax.nn.logsumexp(_by_label(state.params, v, cfg), -1)


@checked
def score(state: State, x: Array, cfg: Config) -> Array:
    """log p(x) up to a constant, (B,): higher for more typical data."""
    return log_unnormalized(state, x, cfg)


@checked
def classify(state: State, x: Array, cfg: Config) -> Array:
    """log p(label | x), exactly, (B, num_classes). Raises ValueError for a model without labels."""
    if not cfg.conditional:
        raise ValueError("this machine has no label among its visible units: train it with conditional=True")
    return jax.nn.log_softmax(_by_label(state.params, cfg.visible.inputs(flat(x)), cfg))


@checked
def encode(state: State, x: Array, cfg: Config) -> Array:
    """p(h = 1 | x) of grey values as they are, (B, num_hidden); if conditional the mean over p(label | x)."""
    v = cfg.visible.inputs(flat(x))
    if not cfg.conditional:
        return machine(cfg).hidden_mean(state.params, v)
    hidden = machine(cfg).hidden_mean(state.params, machine(cfg).with_every_label(v))
    return (jnp.exp(classify(state, x, cfg))[..., None] * hidden).sum(1)


@checked
def decode(state: State, z: Array, cfg: Config) -> Array:
    """E[x | h] for states or means z of the hidden units (B, num_hidden), (B, *shape)."""
    return _data(machine(cfg).visible_mean(state.params, z), cfg)


@checked
def reconstruct(state: State, x: Array, cfg: Config) -> Array:
    """x by way of the means of its hidden units, (B, *shape)."""
    return decode(state, encode(state, x, cfg), cfg)


def _by_label(params: Params, v: Array, cfg: Config) -> Array:
    """log f(v, label) for every label, (B, num_classes)."""
    return machine(cfg).log_unnormalized(params, machine(cfg).with_every_label(v))


def _one_hot(label: Label, n: int, cfg: Config) -> Array | None:
    labels.check(label, labels.count(cfg))
    return None if label is None else jax.nn.one_hot(labels.spread(label, n), cfg.num_classes)


def _data(v: Array, cfg: Config) -> Array:
    """The data of states of visible units."""
    return cfg.visible.data(v[..., : cfg.num_dims]).reshape(-1, *cfg.shape)
