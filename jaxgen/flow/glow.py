"""Glow: a flow of images with invertible 1x1 convolutions (Kingma & Dhariwal 2018).

A level squeezes squares of 2x2 pixels into channels, and takes steps of three bijectors: an actnorm, a
convolution that mixes the channels of a position, and a coupling whose network reads half of them, x1,

    y = (x - b) exp(-l),      log |det| = -H W sum l,
    y = L U x,                log |det| = H W sum log u,         u the diagonal of U,
    y2 = (x2 + t(x1)) sigmoid(s(x1) + 2),     log |det| = sum log sigmoid(s(x1) + 2).

After each level but the last, half of the channels is noise, of a Gaussian that a network reads off the other
half. It is standardised by that, so that the flow has one noise, standard normal, and its temperature is that
of all Gaussians. If conditional, the Gaussian of the last level is the label's own.

Departs from the paper: the matrix of the 1x1 convolution begins as a rotation without a permutation, see
`multiscale.rotation`; scales of couplings are at least exp(-5), and Gaussians' within exp(-5) and exp(5); a
scale and shift of each pixel come first; Adam in place of Adamax.
"""

import dataclasses
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
from jaxgen.flow.transforms import Additive, Affine, Flipped, SigmoidAffine, Transform
from jaxgen.nn.couplings import ConvNet, ZeroConv
from jaxgen.types import Batch, Metrics, observed


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(density.Conditional):
    """Hyperparameters of Glow."""

    num_levels: PositiveInt = 2
    """Levels, each of which halves height and width."""
    num_steps: PositiveInt = 4
    """Steps of an actnorm, a 1x1 convolution and a coupling in each level."""
    transform: SigmoidAffine | Affine | Additive | Transform = SigmoidAffine()
    """How a coupling moves its half."""
    network: ConvNet | nn.Module = ConvNet()
    """Network of a coupling: takes half of the channels of images, and gives `num_outputs` numbers for each
    position."""
    preprocessing: Standardize | Logit | Preprocessing = Standardize()
    """What the data go through before the levels."""
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
    """The bijector from vectors to noise: preprocessing, and all levels.

    Raises ValueError for data that are no images, sides that cannot be halved so often, and no steps.
    """
    multiscale.check(cfg.shape, cfg.num_levels)
    return bijectors.chain(
        cfg.preprocessing.bijector(cfg.num_dims, cfg.levels),
        multiscale.shaped(cfg.shape),
        levels(cfg, cfg.shape, cfg.num_levels),
    )


def levels(cfg: Config, shape: multiscale.Shape, num_levels: int) -> bijectors.Bijector:
    """So many levels, from images of this shape to noise (B, D)."""
    shape = multiscale.squeezed(shape)
    steps = bijectors.scanned(lambda _: step(cfg, shape), cfg.num_steps)
    if num_levels == 1:
        gaussian = conditioned.coupling(
            ZeroConv(), Flipped(Affine()), jnp.zeros(shape, bool), cfg.num_context
        )
        return bijectors.chain(multiscale.squeeze(), steps, gaussian, multiscale.flattened(shape))
    gaussian = multiscale.channel_coupling(ZeroConv(), Flipped(Affine()), shape)
    rest = levels(cfg, multiscale.halved(shape), num_levels - 1)
    return bijectors.chain(multiscale.squeeze(), steps, gaussian, multiscale.factored(shape, rest))


def step(cfg: Config, shape: multiscale.Shape) -> bijectors.Bijector:
    """A step of the flow: actnorm, 1x1 convolution, coupling."""
    return bijectors.chain(
        multiscale.everywhere(bijectors.diagonal(shape[-1])),
        multiscale.everywhere(multiscale.rotation(shape[-1])),
        multiscale.channel_coupling(cfg.network, cfg.transform, shape),
    )


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
