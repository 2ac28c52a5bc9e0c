"""MAF and IAF: autoregressive flows (Papamakarios, Pavlakou & Murray 2017; Kingma et al. 2016).

Each dimension is scaled and shifted by what a masked network, MADE, says of the dimensions before it,

    MAF:  z_i = (x_i - mu_i(x_1 ... x_{i-1})) exp(-alpha_i(x_1 ... x_{i-1})),     log |det| = -sum_i alpha_i.
    IAF:  x_i = (z_i - mu_i(z_1 ... z_{i-1})) exp(-alpha_i(z_1 ... z_{i-1})),

They are one function in opposite directions: a density that takes one call of the network a layer and
samples that take one for each dimension, or the other way round. The order of the dimensions is reversed from
layer to layer.

Departs from the papers: a scale and shift of each dimension at both ends, set by the first batch, in place
of batch normalisation; alpha is bounded; IAF is written in the parameters of MAF, which gives the functions
x_i = z_i exp(s_i) + t_i of the paper, and is here a density of data and not a posterior.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxgen import keys, labels, values
from jaxgen.arguments import checked
from jaxgen.fields import PositiveInt
from jaxgen.flow import bijectors, conditioned, density
from jaxgen.flow.preprocessing import Logit, Preprocessing, Standardize
from jaxgen.flow.transforms import Affine, Flipped, Transform
from jaxgen.nn.masked import MADE
from jaxgen.types import Batch, Metrics


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(density.Conditional):
    """Hyperparameters of MAF and IAF."""

    num_layers: PositiveInt = 5
    """Masked networks."""
    direct: Literal["density", "sampling"] = "density"
    """What takes one call of each network, the density as in MAF, or sampling as in IAF."""
    transform: Affine | Transform = Affine()
    """How a dimension is moved, where the density is direct; its inverse where sampling is."""
    network: MADE | nn.Module = MADE()
    """Network of a layer: takes x (B, D), and one-hot labels if conditional, and gives `num_outputs` numbers,
    those of x_i depending on the dimensions before it alone."""
    preprocessing: Standardize | Logit | Preprocessing = Standardize()
    """What the data go through before the layers."""


class State(NamedTuple):
    """What training changes."""

    step: Array
    key: Array
    params: Any
    opt_state: Any


def flow(cfg: Config) -> bijectors.Bijector:
    """The bijector: preprocessing, layers, and a scale and shift of each dimension.

    Raises ValueError for fewer than one layer.
    """
    layers = bijectors.scanned(lambda _: layer(cfg), cfg.num_layers)
    return bijectors.chain(
        cfg.preprocessing.bijector(cfg.num_dims, cfg.levels),
        bijectors.inverted(layers) if cfg.direct == "sampling" else layers,
        bijectors.diagonal(cfg.num_dims),
    )


def layer(cfg: Config) -> bijectors.Bijector:
    """One layer of MAF: a masked network, after which the order is reversed."""
    moved = conditioned.autoregressive(cfg.network, Flipped(cfg.transform), cfg.num_dims, cfg.num_context)
    return bijectors.chain(moved, bijectors.reverse())


@checked
def init(key: Array, cfg: Config, batch: Batch | None = None) -> State:
    """A fresh state; `batch`, if given, sets the scales and shifts.

    Raises ValueError for fewer than one layer, preprocessing that the data cannot have, and a conditional
    flow of data without labels.
    """
    labels.check_conditional(cfg)
    params_key, data_key, step_key = keys.named(key, "params", "data", "steps")
    x = context = None
    if batch is not None:
        x, context = density.training_data(data_key, batch, cfg), density.batch_context(batch, cfg)
    params = flow(cfg).init(params_key, x, context)
    opt_state = values.gradient_transformation(cfg.optimizer).init(params)
    return State(jnp.zeros((), jnp.int32), step_key, params, opt_state)


@checked
def loss(params: Any, batch: Batch, key: Array, cfg: Config) -> tuple[Array, Metrics]:
    """Mean negative log-likelihood in nats per example, of dequantised data.

    `batch["label"]` (B,) is needed if conditional.
    """
    x, context = density.training_data(key, batch, cfg), density.batch_context(batch, cfg)
    nll = -density.log_prob(flow(cfg), params, x, context).mean()
    return nll, {"nll": nll}


@checked
def train_step(state: State, batch: Batch, cfg: Config) -> tuple[State, Metrics]:
    """One step on `batch["image"]` or `batch["x"]`, (B, *shape), `batch["label"]` (B,) if conditional."""
    key = jax.random.fold_in(state.key, state.step)
    grads, metrics = jax.grad(loss, has_aux=True)(state.params, batch, key, cfg)
    optimizer = values.gradient_transformation(cfg.optimizer)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return state._replace(step=state.step + 1, params=params, opt_state=opt_state), metrics


@checked
def sample(
    key: Array, state: State, n: int, cfg: Config, label: labels.Label = None, *, temperature: float = 1.0
) -> Array:
    """n draws, (n, *shape), of noise with `temperature` as its standard deviation.

    If conditional, of the `label` given, one for all or (n,), else of labels drawn uniformly.
    """
    noise_key, label_key = keys.named(key, "noise", "label")
    label = labels.drawn(label_key, label, n, labels.count(cfg))
    return decode(state, temperature * jax.random.normal(noise_key, (n, cfg.num_dims)), cfg, label)


def measure(cfg: Config) -> str:
    """What `log_prob` is of: a density, of dequantised pixels if the data have levels."""
    del cfg
    return "density"


@checked
def log_prob(state: State, x: Array, cfg: Config, label: labels.Label = None) -> Array:
    """log p(x) of real numbers x (B, *shape) in nats, (B,).

    If conditional it is log p(x | label), or without a label log p(x), all labels being equally likely.
    """
    if cfg.conditional and label is None:
        return density.marginal_log_prob(flow(cfg), state.params, x, cfg)
    return density.log_prob(flow(cfg), state.params, x, density.context(label, x.shape[0], cfg))


@checked
def encode(state: State, x: Array, cfg: Config, label: labels.Label = None) -> Array:
    """The noise that becomes x, (B, D). `label` is needed if conditional, here and below."""
    context = density.context(label, x.shape[0], cfg)
    return flow(cfg).forward(state.params, x.reshape(x.shape[0], cfg.num_dims), context)[0]


@checked
def decode(state: State, z: Array, cfg: Config, label: labels.Label = None) -> Array:
    """The data that noise z (B, D) becomes, (B, *shape)."""
    x, _ = flow(cfg).inverse(state.params, z, density.context(label, z.shape[0], cfg))
    return x.reshape(z.shape[0], *cfg.shape)


def reverse_kl(
    params: Any,
    key: Array,
    target_log_prob: Callable[[Array], Array],
    n: int,
    cfg: Config,
    label: labels.Label = None,
    *,
    path: bool = False,
) -> Array:
    """KL(p || target) up to a constant, see `density.reverse_kl`."""
    context = density.context(label, n, cfg)
    return density.reverse_kl(flow(cfg), params, key, target_log_prob, n, cfg, context, path=path)
