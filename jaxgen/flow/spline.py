"""Neural spline flows, of couplings or autoregressive (Durkan, Bekasov, Murray & Papamakarios 2019).

In place of a scale and a shift, a network gives the knots of a monotone rational-quadratic function,

    z_i = spline(x_i; widths, heights, slopes),     log |det| = sum_i log spline'(x_i),

which is the identity outside of [-bound, bound]. It has an inverse in closed form, and with enough bins it
can have any shape, so that few layers do. What the network reads is one half of x (`Coupling`), or the
dimensions before x_i (`Autoregressive`). Between the layers the order of the dimensions is reversed, or they
are mixed by a linear map too (`LU`).

Departs from the paper: slopes are exp(.) within [1/1000, 1000]; plain networks in place of residual ones; a
scale and shift of each dimension at both ends, set by the first batch.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

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
from jaxgen.flow.transforms import RationalQuadratic, Transform
from jaxgen.nn.masked import MADE
from jaxgen.nn.mlp import MLP
from jaxgen.types import Batch, Metrics


class Layer(values.Value):
    """What the networks of a spline flow read."""

    def bijector(self, transform: Transform, num_dims: int, num_context: int) -> bijectors.Bijector:
        """The layer for vectors of so many numbers."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Coupling(Layer):
    """The first half of the dimensions is read and the second moved: one call of the network either way."""

    network: MLP | nn.Module = MLP()
    """Takes x (B, D) whose moved half is 0, and one-hot labels if conditional, and gives `num_outputs`
    numbers."""

    def bijector(self, transform: Transform, num_dims: int, num_context: int) -> bijectors.Bijector:
        """`conditioned.coupling`."""
        mask = jnp.arange(num_dims) < num_dims // 2
        return conditioned.coupling(self.network, transform, mask, num_context)


@dataclasses.dataclass(frozen=True)
class Autoregressive(Layer):
    """The dimensions before each are read: one call of the network for a density, D for samples."""

    network: MADE | nn.Module = MADE()
    """Takes x (B, D), and one-hot labels if conditional, and gives `num_outputs` numbers, those of x_i
    depending on the dimensions before it alone."""

    def bijector(self, transform: Transform, num_dims: int, num_context: int) -> bijectors.Bijector:
        """`conditioned.autoregressive`."""
        return conditioned.autoregressive(self.network, transform, num_dims, num_context)


class Mixing(values.Value):
    """What stands between the layers of a spline flow."""

    def bijector(self, num_dims: int) -> bijectors.Bijector:
        """A linear bijector of vectors of so many numbers."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Reverse(Mixing):
    """The order of the dimensions is reversed."""

    def bijector(self, num_dims: int) -> bijectors.Bijector:
        """`bijectors.reverse`."""
        del num_dims
        return bijectors.reverse()


@dataclasses.dataclass(frozen=True)
class LU(Mixing):
    """The order of the dimensions is reversed, and a learned linear map applied."""

    def bijector(self, num_dims: int) -> bijectors.Bijector:
        """`bijectors.reverse`, then `bijectors.lu`."""
        return bijectors.chain(bijectors.reverse(), bijectors.lu(num_dims))


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(density.Conditional):
    """Hyperparameters of neural spline flows."""

    num_layers: PositiveInt = 4
    """Layers of splines."""
    layer: Coupling | Autoregressive | Layer = Coupling()
    """What the networks read."""
    transform: RationalQuadratic | Transform = RationalQuadratic()
    """The splines."""
    mixing: Reverse | LU | Mixing = Reverse()
    """What stands before each layer."""
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

    Raises ValueError for fewer than one layer, and for couplings of data of one dimension.
    """
    return bijectors.chain(
        cfg.preprocessing.bijector(cfg.num_dims, cfg.levels),
        bijectors.scanned(lambda _: layer(cfg), cfg.num_layers),
        bijectors.diagonal(cfg.num_dims),
    )


def layer(cfg: Config) -> bijectors.Bijector:
    """The dimensions mixed, and then moved by splines."""
    moved = cfg.layer.bijector(cfg.transform, cfg.num_dims, cfg.num_context)
    return bijectors.chain(cfg.mixing.bijector(cfg.num_dims), moved)


@checked
def init(key: Array, cfg: Config, batch: Batch | None = None) -> State:
    """A fresh state; `batch`, if given, sets the scales and shifts.

    Raises ValueError for fewer than one layer, couplings of data of one dimension, preprocessing that the
    data cannot have, and a conditional flow of data without labels.
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
