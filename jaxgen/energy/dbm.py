"""Deep Boltzmann machine (Salakhutdinov & Hinton 2009).

Layers x_0 = v, x_1, ..., x_L of bits, each joined to the next by weights,

    E(x) = -sum_l b_l'x_l - sum_l x_{l-1}'W_l x_l,     p(v) = sum over hidden layers of exp(-E) / Z.

Given all layers with even numbers those with odd numbers are independent bits, and the other way round: it
is a machine of two layers (`bipartite`) of which the data are a part of one. The gradient of a lower bound
on log p(v) is the difference of two means of that of -E: under a factorial posterior m, whose fixed point

    m_l = sigmoid(b_l + W_l'm_{l-1} + W_{l+1} m_{l+1}),     log p(v) >= -E(v, m) + H(m) - log Z,

is found by turns of odd and even layers, none of which lowers the bound, and under the model, by persistent
chains. `from_rbms` starts it from restricted machines that were trained one after the other, each with two
copies of the layers that will get input from both sides.

Departs from the paper: states of even layers are summed over in the model's part of the gradient; `centred`
has the enhanced gradient of Cho, Raiko & Ilin 2011 (see Melchior, Fischer & Wiskott 2016), which does not
change when bits are called by their opposites and needs no pretraining.
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

from jaxgen import keys, values
from jaxgen.arguments import checked
from jaxgen.energy import bipartite
from jaxgen.energy.bipartite import Bits, Machine, flat
from jaxgen.energy.chains import Persistent, from_biases
from jaxgen.fields import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from jaxgen.types import Batch, Metrics, observed


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(values.Value):
    """Hyperparameters of the deep Boltzmann machine."""

    shape: tuple[PositiveInt, ...] = (8, 8, 1)
    """Shape of one example, which is flattened to D numbers."""
    levels: NonNegativeInt = 256
    """Values that a pixel of the data has, spread evenly over [-1, 1]; 0 for real numbers."""
    widths: tuple[PositiveInt, ...] = (128, 128)
    """Units of the hidden layers, two or more of them."""
    visible: Bits = Bits()
    """The visible units."""
    chains: Persistent = Persistent(100, 5)
    """The chains that give the states of the model."""
    most_turns: NonNegativeInt = 25
    """Most turns of the posterior, each of the odd layers and then of the even ones."""
    tolerance: NonNegativeFloat = 1e-4
    """Turns end where none of the probabilities changes by more."""
    centred: bool = False
    """Follow the gradient of centred bits."""
    weight_decay: NonNegativeFloat = 2e-4
    """Weight of half the sum of squared weights in what is minimised."""
    largest_norm: PositiveFloat | None = None
    """Largest norm of the weights into a unit from the layer below; longer ones are shortened to it."""
    optimizer: values.Optimizer = values.SGD(0.005)
    """How the parameters follow the gradient."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Units of all layers, the visible one first."""
        return math.prod(self.shape), *self.widths


class Params(NamedTuple):
    """Weights between neighbouring layers, and biases of all layers."""

    weights: tuple[Array, ...]  # (n_{l-1}, n_l) for l = 1 ... L
    biases: tuple[Array, ...]  # (n_l,) for l = 0 ... L


class State(NamedTuple):
    """What training changes."""

    step: Array
    key: Array
    params: Params
    opt_state: Any
    chains: Array  # (num_chains, n_1 + n_3 + ...), states of the odd layers


@checked
def init(key: Array, cfg: Config, batch: Batch | None = None) -> State:
    """A fresh state with weights N(0, 0.01^2); `batch`, if given, sets visible biases to its mean.

    Raises ValueError for fewer than two hidden layers, and for data that are no pictures.
    """
    cfg.visible.check(cfg.levels)
    if len(cfg.widths) < 2 or min(cfg.widths) < 1:
        raise ValueError(f"a deep machine has 2 hidden layers or more, of 1 unit or more, not {cfg.widths}")
    weight_key, data_key = keys.named(key, "weights", "data")
    weights = tuple(
        0.01 * jax.random.normal(jax.random.fold_in(weight_key, index), shape)
        for index, shape in enumerate(itertools.pairwise(cfg.sizes))
    )
    biases = [jnp.zeros(size) for size in cfg.sizes]
    if batch is not None:
        biases[0] = cfg.visible.first_bias(cfg.visible.units(data_key, flat(observed(batch))))
    return around(key, Params(weights, tuple(biases)), cfg)


def around(key: Array, params: Params, cfg: Config) -> State:
    """A fresh state with these parameters."""
    chain_key, step_key = keys.named(key, "first chains", "steps")
    opt_state = values.gradient_transformation(cfg.optimizer).init(params)
    chains = cfg.chains.init(chain_key, Machine(), two_layers(params))
    return State(jnp.zeros((), jnp.int32), step_key, params, opt_state, chains)


def copies(num_hidden: int) -> list[tuple[int, int]]:
    """For each of the restricted machines to start from, the `copies` to train it with."""
    return [(2, 1), *[(2, 2)] * (num_hidden - 2), (1, 2)]


def from_rbms(machines: Sequence[bipartite.Params]) -> Params:
    """The deep machine of restricted ones, trained with `copies`, each on states of the one below.

    A hidden layer gets half of what both its machines give it, which is all of what they are with one copy.
    """
    weights = tuple(machine.weight for machine in machines)
    between = [(low.hidden_bias + high.visible_bias) / 2 for low, high in itertools.pairwise(machines)]
    return Params(weights, (machines[0].visible_bias, *between, machines[-1].hidden_bias))


def two_layers(params: Params) -> bipartite.Params:
    """The machine whose visible units are the odd layers, and whose hidden ones are the even layers, v first.

    Its partition function is that of the deep machine, and `ais.log_partition` estimates it.
    """
    odd, even = range(1, len(params.biases), 2), range(0, len(params.biases), 2)
    size = lambda layer: len(params.biases[layer])

    def block(row, column):
        if column == row - 1:
            return params.weights[row - 1].T
        return params.weights[row] if column == row + 1 else jnp.zeros((size(row), size(column)))

    weight = jnp.block([[block(row, column) for column in even] for row in odd])
    join = lambda layers: jnp.concatenate([params.biases[layer] for layer in layers])
    return bipartite.Params(weight, join(odd), join(even))


def mean_field(params: Params, v: Array, cfg: Config) -> tuple[Array, Array]:
    """The factorial posterior of visible states v (B, D): probabilities of odd and of even layers, v among
    these.

    It starts at a pass upwards that counts twice what comes from below, except into the last layer.
    """
    machine, joined = Machine(), two_layers(params)
    layers = [v]
    for index, weight in enumerate(params.weights):
        twice = 2 if index < len(params.weights) - 1 else 1
        layers.append(jax.nn.sigmoid(params.biases[index + 1] + twice * layers[-1] @ weight))
    clamped = lambda even: jnp.concatenate([v, even[:, v.shape[1] :]], -1)

    def turn(carry):
        odd, even, _, count = carry
        new_odd = machine.visible_mean(joined, even)
        new_even = clamped(machine.hidden_mean(joined, new_odd))
        moved = (jnp.abs(after - before) for before, after in ((odd, new_odd), (even, new_even)))
        change = jnp.maximum(*(each.max(initial=0.0) for each in moved))  # 0 of no examples
        return new_odd, new_even, change, count + 1

    start = jnp.concatenate(layers[1::2], -1), jnp.concatenate(layers[::2], -1)
    going = lambda carry: (carry[2] > cfg.tolerance) & (carry[3] < cfg.most_turns)
    return jax.lax.while_loop(going, turn, (*start, jnp.inf, 0))[:2]


def contrast(params: Params, odd: Array, even: Array, model_odd: Array, cfg: Config) -> tuple[Array, Metrics]:
    """The mean of -E under the model minus that under the posterior, plus the cost of weights, in nats.

    Args:
        odd, even: probabilities that `mean_field` gives, held fixed.
        model_odd: states of the odd layers drawn from the model; even layers are summed over.
    """
    joined = two_layers(params)
    data = ((even @ joined.weight.T) * odd).sum(-1) + odd @ joined.visible_bias + even @ joined.hidden_bias
    gap = Machine().log_unnormalized(joined, model_odd).mean() - data.mean()
    decay = 0.5 * cfg.weight_decay * sum((weight**2).sum() for weight in params.weights)
    return gap + decay, {"contrast": gap}


@checked
def train_step(state: State, batch: Batch, cfg: Config) -> tuple[State, Metrics]:
    """One step on the examples of a batch, (B, *shape)."""
    key = jax.random.fold_in(state.key, state.step)
    data_key, chain_key = keys.named(key, "data", "chains")
    v = cfg.visible.units(data_key, flat(observed(batch)))
    odd, even = mean_field(state.params, v, cfg)
    joined = two_layers(state.params)
    chains, model_odd = cfg.chains.advance(chain_key, Machine(), joined, state.chains, v)
    grads, metrics = jax.grad(contrast, has_aux=True)(state.params, odd, even, model_odd, cfg)
    model_even = Machine().hidden_mean(joined, model_odd)
    if cfg.centred:
        means = [(data.mean(0) + model.mean(0)) / 2 for data, model in ((odd, model_odd), (even, model_even))]
        grads = centred(grads, _layers(means[0], means[1], cfg))
    updates, opt_state = values.gradient_transformation(cfg.optimizer).update(
        grads, state.opt_state, state.params
    )
    params = optax.apply_updates(state.params, updates)
    if cfg.largest_norm is not None:
        params = params._replace(weights=tuple(_shortened(w, cfg.largest_norm) for w in params.weights))
    back = machine_mean(joined, odd, cfg)
    metrics["reconstruction_error"] = ((cfg.visible.data(back) - cfg.visible.data(v)) ** 2).mean()
    metrics["activity"] = odd.mean()
    return State(state.step + 1, state.key, params, opt_state, chains), metrics


def centred(grads: Params, offsets: Sequence[Array]) -> Params:
    """The direction in which the gradient of bits minus `offsets`, one (n_l,) a layer, moves the parameters.

    With d the difference of two means, d((x - o)(y - p)') = d(xy') - o d(y)' - d(x) p' for weights, and
    biases make up for what the weights change at the offsets.
    """
    weights = tuple(
        weight - jnp.outer(low, grads.biases[i + 1]) - jnp.outer(grads.biases[i], high)
        for i, (weight, (low, high)) in enumerate(
            zip(grads.weights, itertools.pairwise(offsets), strict=True)
        )
    )
    biases = list(grads.biases)
    for i, weight in enumerate(weights):
        biases[i] -= weight @ offsets[i + 1]
        biases[i + 1] -= offsets[i] @ weight
    return Params(weights, tuple(biases))


@checked
def sample(key: Array, state: State, n: int, cfg: Config, *, num_steps: int = 1000) -> Array:
    """n states after `num_steps` Gibbs steps that start at noise: means of pixels given the rest, (n,
    *shape).

    Chains that mix slowly have not forgotten their start after so many.
    """
    start_key, step_key = keys.named(key, "first states", "Gibbs steps")
    joined = two_layers(state.params)
    odd = from_biases(start_key, Machine(), joined, n)
    odd = Machine().gibbs(step_key, joined, odd, num_steps)
    return cfg.visible.data(machine_mean(joined, odd, cfg)).reshape(n, *cfg.shape)


def measure(cfg: Config) -> str:
    """What `unnormalized_elbo` is of."""
    return cfg.visible.measure


def unnormalized_elbo(state: State, x: Array, cfg: Config, *, key: Array | None = None) -> Array:
    """-E(x, m) + H(m), a lower bound on log p(x) + log Z of x (B, *shape), (B,) nats.

    Bits are drawn from grey values with a key, else cut at 1/2.
    """
    odd, even = mean_field(state.params, cfg.visible.units(key, flat(x)), cfg)
    return bound(state.params, odd, even)


def bound(params: Params, odd: Array, even: Array) -> Array:
    """-E + H of a factorial posterior with these probabilities, (B,) nats; v among `even` has no entropy."""
    joined = two_layers(params)
    energy = ((even @ joined.weight.T) * odd).sum(-1) + odd @ joined.visible_bias + even @ joined.hidden_bias
    entropy = -sum(jax.scipy.special.xlogy(p, p).sum(-1) for m in (odd, even) for p in (m, 1 - m))
    return energy + entropy


@checked
def score(state: State, x: Array, cfg: Config) -> Array:
    """A lower bound on log p(x) up to a constant, (B,): higher for more typical data."""
    return unnormalized_elbo(state, x, cfg)


@checked
def encode(state: State, x: Array, cfg: Config) -> Array:
    """The posterior's probabilities of all hidden layers for grey values as they are, (B, sum of widths)."""
    odd, even = mean_field(state.params, cfg.visible.inputs(flat(x)), cfg)
    return jnp.concatenate(_layers(odd, even, cfg)[1:], -1)


@checked
def reconstruct(state: State, x: Array, cfg: Config) -> Array:
    """x by way of the posterior's probabilities, (B, *shape)."""
    odd, _ = mean_field(state.params, cfg.visible.inputs(flat(x)), cfg)
    return cfg.visible.data(machine_mean(two_layers(state.params), odd, cfg)).reshape(-1, *cfg.shape)


def machine_mean(joined: bipartite.Params, odd: Array, cfg: Config) -> Array:
    """E[v] given states or probabilities of the odd layers, (..., D)."""
    return Machine().hidden_mean(joined, odd)[..., : cfg.sizes[0]]


def _layers(odd: Array, even: Array, cfg: Config) -> list[Array]:
    """All layers of what is given for odd and for even ones, (..., n_l)."""
    found: dict[int, Array] = {}
    for joined, first in ((odd, 1), (even, 0)):
        sizes = cfg.sizes[first::2]
        parts = jnp.split(joined, list(itertools.accumulate(sizes))[:-1], -1)
        found |= dict(zip(range(first, len(cfg.sizes), 2), parts, strict=True))
    return [found[layer] for layer in range(len(cfg.sizes))]


def _shortened(weight: Array, largest: float) -> Array:
    norm = jnp.linalg.norm(weight, axis=0, keepdims=True)
    return weight * jnp.minimum(1.0, largest / jnp.maximum(norm, 1e-12))
