"""RealNVP of images: couplings by checkerboards and by channels, at several scales (Dinh et al. 2017).

A coupling keeps what a mask m selects, and moves the rest by what a network reads there,

    y = m x + (1 - m) (x exp(s(m x)) + t(m x)),     log |det| = sum (1 - m) s(m x).

At each scale three couplings keep the black or the white squares of a checkerboard by turns, squares of 2x2
pixels are squeezed into channels, three couplings keep either half of the channels, and then half of them is
noise as it is. The last scale has four couplings by checkerboards. `realnvp.py` is the flow of vectors.

Departs from the paper: an actnorm (Kingma & Dhariwal 2018) after each coupling and within the networks, set
by the first batch, in place of batch normalisation; s is bounded by a constant in place of a learned scale; a
scale and shift of each pixel follow the logit; the first half of the channels of a position is its upper row.
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
from jaxgen.flow import bijectors, conditioned, density, multiscale
from jaxgen.flow.dequantisation import Dequantisation, Uniform, Variational, nearest
from jaxgen.flow.preprocessing import Logit, Preprocessing, Standardize
from jaxgen.flow.transforms import Additive, Affine, Transform
from jaxgen.nn.couplings import ResNet
from jaxgen.types import Batch, Metrics, observed


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(density.Conditional):
    """Hyperparameters of RealNVP of images."""

    num_levels: PositiveInt = 2
    """Scales that are squeezed, which halves height and width; one more follows them."""
    num_couplings: PositiveInt = 3
    """Couplings of either kind at each scale; the last scale has one more."""
    transform: Affine | Additive | Transform = Affine()
    """How a coupling moves what it does not keep."""
    network: ResNet | nn.Module = ResNet()
    """Network of a coupling: takes images whose moved part is 0, and one-hot labels if conditional, and gives
    `num_outputs` numbers for each position."""
    preprocessing: Logit | Standardize | Preprocessing = Logit()
    """What the data go through before the couplings."""
    dequantisation: Uniform | Variational | Dequantisation = Uniform()
    """The noise within the levels of pixels."""
    average: values.Average | values.Value = values.Average()
    """The average of the parameters, which samples and likelihoods are of."""


class State(NamedTuple):
    """What training changes."""

    step: Array
    key: Array
    params: Any  # {"flow", "noise"}
    opt_state: Any
    ema: Any  # averaged parameters


def flow(cfg: Config) -> bijectors.Bijector:
    """The bijector from vectors to noise: preprocessing, and all scales.

    Raises ValueError for data that are no images, sides that cannot be halved so often, and no couplings.
    """
    multiscale.check(cfg.shape, cfg.num_levels)
    return bijectors.chain(
        cfg.preprocessing.bijector(cfg.num_dims, cfg.levels),
        multiscale.shaped(cfg.shape),
        scales(cfg, cfg.shape, cfg.num_levels),
    )


def scales(cfg: Config, shape: multiscale.Shape, num_levels: int) -> bijectors.Bijector:
    """The scales of so many squeezes, from images of this shape to noise (B, D)."""
    if not num_levels:
        last = couplings(cfg, shape, multiscale.checkerboard, cfg.num_couplings + 1)
        return bijectors.chain(last, multiscale.flattened(shape))
    small = multiscale.squeezed(shape)
    return bijectors.chain(
        couplings(cfg, shape, multiscale.checkerboard, cfg.num_couplings),
        multiscale.squeeze(),
        couplings(cfg, small, multiscale.half_of_channels, cfg.num_couplings),
        multiscale.factored(small, scales(cfg, multiscale.halved(small), num_levels - 1)),
    )


def couplings(
    cfg: Config, shape: multiscale.Shape, mask: Callable[[multiscale.Shape, Array | int], Array], count: int
) -> bijectors.Bijector:
    """So many couplings whose masks take turns, each with an actnorm after it."""

    def layer(index):
        moved = conditioned.coupling(cfg.network, cfg.transform, mask(shape, index), cfg.num_context)
        return bijectors.chain(moved, multiscale.everywhere(bijectors.diagonal(shape[-1])))

    return bijectors.scanned(layer, count)


@checked
def init(key: Array, cfg: Config, batch: Batch | None = None) -> State:
    """A fresh state; `batch`, if given, sets the scales and shifts, those within the networks included.

    Raises ValueError as `flow` does, for preprocessing and dequantisation that the data cannot have, and for
    a conditional flow of data without labels.
    """
    labels.check_conditional(cfg)
    params_key, noise_key, data_key, step_key = keys.named(key, "params", "noise", "data", "steps")
    x = context = None
    if batch is not None:
        x, context = observed(batch), density.batch_context(batch, cfg)
    noise = cfg.dequantisation.init(noise_key, cfg.shape, cfg.levels, x)
    if x is not None:
        x, _ = cfg.dequantisation.draw(data_key, noise, x, cfg.levels)
        x = x.reshape(x.shape[0], cfg.num_dims)
    params = {"flow": flow(cfg).init(params_key, x, context), "noise": noise}
    opt_state = values.gradient_transformation(cfg.optimizer).init(params)
    ema = jax.tree.map(jnp.copy, params)
    return State(jnp.zeros((), jnp.int32), step_key, params, opt_state, ema)


@checked
def loss(params: Any, batch: Batch, key: Array, cfg: Config) -> tuple[Array, Metrics]:
    """Mean negative log-likelihood of dequantised data in nats per example, or the bound on it.

    `batch["label"]` (B,) is needed if conditional.
    """
    x, log_ratio = cfg.dequantisation.draw(key, params["noise"], observed(batch), cfg.levels)
    log_prob = density.log_prob(flow(cfg), params["flow"], x, density.batch_context(batch, cfg))
    nll = (log_ratio - log_prob).mean()
    return nll, {"nll": nll}


@checked
def train_step(state: State, batch: Batch, cfg: Config) -> tuple[State, Metrics]:
    """One step on `batch["image"]` (B, *shape), `batch["label"]` (B,) if conditional."""
    key = jax.random.fold_in(state.key, state.step)
    grads, metrics = jax.grad(loss, has_aux=True)(state.params, batch, key, cfg)
    optimizer = values.gradient_transformation(cfg.optimizer)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = cfg.average(state.ema, params, state.step)  # type: ignore[operator]
    return State(state.step + 1, state.key, params, opt_state, ema), metrics


@checked
def sample(
    key: Array, state: State, n: int, cfg: Config, label: labels.Label = None, *, temperature: float = 1.0
) -> Array:
    """n draws, (n, *shape), of noise with `temperature` as its standard deviation; 0 gives the mode of noise.

    If conditional, of the `label` given, one for all or (n,), else of labels drawn uniformly.
    """
    noise_key, label_key = keys.named(key, "noise", "label")
    label = labels.drawn(label_key, label, n, labels.count(cfg))
    return decode(state, temperature * jax.random.normal(noise_key, (n, cfg.num_dims)), cfg, label)


def measure(cfg: Config) -> str:
    """What `log_prob` and `elbo` are of: a density, of dequantised pixels if the data have levels."""
    del cfg
    return "density"


@checked
def log_prob(state: State, x: Array, cfg: Config, label: labels.Label = None) -> Array:
    """log p(x) of real numbers x (B, *shape) in nats, (B,).

    If conditional it is log p(x | label), or without a label log p(x), all labels being equally likely.
    """
    if cfg.conditional and label is None:
        return density.marginal_log_prob(flow(cfg), state.ema["flow"], x, cfg)
    return density.log_prob(flow(cfg), state.ema["flow"], x, density.context(label, x.shape[0], cfg))


@checked
def elbo(key: Array, state: State, x: Array, cfg: Config, label: labels.Label = None) -> Array:
    """A lower bound on the log-probability of the level of each pixel, by one draw of noise, (B,) nats.

    In the convention of a density: the probability of a level is spread evenly over it. Any noise that x has
    within the levels is thus of no account. `label` as in `log_prob`.
    """
    x, log_ratio = cfg.dequantisation.draw(key, state.ema["noise"], nearest(x, cfg.levels), cfg.levels)
    return log_prob(state, x, cfg, label) - log_ratio


@checked
def encode(state: State, x: Array, cfg: Config, label: labels.Label = None) -> Array:
    """The noise that becomes x, (B, D). `label` is needed if conditional, here and below."""
    context = density.context(label, x.shape[0], cfg)
    return flow(cfg).forward(state.ema["flow"], x.reshape(x.shape[0], cfg.num_dims), context)[0]


@checked
def decode(state: State, z: Array, cfg: Config, label: labels.Label = None) -> Array:
    """The data that noise z (B, D) becomes, (B, *shape)."""
    x, _ = flow(cfg).inverse(state.ema["flow"], z, density.context(label, z.shape[0], cfg))
    return x.reshape(z.shape[0], *cfg.shape)
