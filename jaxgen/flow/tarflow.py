"""TarFlow: a transformer autoregressive flow of images (Zhai et al. 2025).

An image is a sequence of square patches, each scaled and shifted by what a causal transformer says of the
patches before it,

    z_i = (x_i - mu_i(x_1 ... x_{i-1})) exp(-alpha_i(x_1 ... x_{i-1})),     log |det| = -sum_i alpha_i,

with z_1 = x_1, and the order of the patches is reversed from block to block. It is MAF with patches in place
of numbers: the density takes one call of each transformer, and samples one for each patch, with the keys and
values of the patches before kept.

The paper trains on data with Gaussian noise, `noise=GaussianNoise(0.05)`, in place of the uniform noise of
dequantisation. The samples of such a model have that noise too, and are denoised by Tweedie's formula,

    E[x | x + noise] = x + std^2 grad log p(x).

Whatever the noise, `log_prob` is the density p of real numbers that the flow has, and `evaluation.likelihood`
takes it of uniformly dequantised pixels: the mass of p in the interval of each level is a probability, and
E_u[log p(x + u)] bounds its logarithm, so the bits/dim are a valid bound, only not the one that training with
Gaussian noise minimises.

Departs from the paper: the pixels are standardised at both ends; alpha is bounded; no guidance.
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
from jaxgen.fields import PositiveFloat, PositiveInt
from jaxgen.flow import bijectors, conditioned, density, preprocessing
from jaxgen.flow.preprocessing import Logit, Preprocessing, Standardize
from jaxgen.flow.transforms import Affine, Flipped, Transform
from jaxgen.nn import patches, variables
from jaxgen.nn.causal import Transformer
from jaxgen.types import Batch, Metrics, observed
from jaxgen.values import Value


class Noise(Value):
    """What is added to the data in training, and what becomes of it in samples."""

    def noisy(self, key: Array, x: Array, levels: int) -> Array:
        """Data x (B, ...) with noise; `levels` as in the Config."""
        raise NotImplementedError

    def denoised(self, x: Array, log_prob: Callable[[Array], Array]) -> Array:
        """Samples x without their noise, by their density."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Dequantisation(Noise):
    """Uniform noise as wide as the levels of a pixel are apart, which stays in samples."""

    def noisy(self, key: Array, x: Array, levels: int) -> Array:
        """See `preprocessing.dequantised`."""
        return preprocessing.dequantised(key, x, levels)

    def denoised(self, x: Array, log_prob: Callable[[Array], Array]) -> Array:
        """x."""
        return x


@dataclasses.dataclass(frozen=True)
class GaussianNoise(Noise):
    """Gaussian noise, which is taken from samples again."""

    std: PositiveFloat = 0.05
    """Its standard deviation."""

    def noisy(self, key: Array, x: Array, levels: int) -> Array:
        """x + std n."""
        return x + self.std * jax.random.normal(key, x.shape, x.dtype)

    def denoised(self, x: Array, log_prob: Callable[[Array], Array]) -> Array:
        """x + std^2 grad log p(x), the mean of what was there before the noise (Efron 2011)."""
        return x + self.std**2 * jax.grad(lambda x: log_prob(x).sum())(x)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(density.Conditional):
    """Hyperparameters of TarFlow."""

    patch: PositiveInt = 2
    """Side of the squares of pixels that are tokens; it must divide height and width."""
    num_layers: PositiveInt = 4
    """Blocks, each with a transformer of its own."""
    transform: Affine | Transform = Affine()
    """How a number is moved, by its inverse."""
    network: Transformer | nn.Module = Transformer()
    """Network of a block: takes tokens (B, n, size), and one-hot labels if conditional, with `cache` and
    `start` for one token alone, and gives `num_outputs` numbers for each and the cache, which begins as
    `empty_cache`, those of token i depending on the tokens up to i alone."""
    preprocessing: Standardize | Logit | Preprocessing = Standardize()
    """What the data go through before the blocks."""
    noise: Dequantisation | GaussianNoise | Noise = Dequantisation()
    """What is added to the data in training."""


class State(NamedTuple):
    """What training changes."""

    step: Array
    key: Array
    params: Any
    opt_state: Any


def flow(cfg: Config, key: Array | None = None) -> bijectors.Bijector:
    """The bijector: preprocessing, blocks of patches, and a scale and shift of each dimension.

    With a key networks are in training, forward: they drop by it.

    Raises ValueError for data that are no images, or that the patch does not divide into two patches or more,
    and for fewer than one block.
    """
    _check(cfg)
    blocks = bijectors.scanned(lambda index: block(cfg, index, key), cfg.num_layers)
    return bijectors.chain(
        cfg.preprocessing.bijector(cfg.num_dims, cfg.levels),
        cut(cfg),
        blocks,
        bijectors.inverted(cut(cfg)),
        bijectors.diagonal(cfg.num_dims),
    )


def cut(cfg: Config) -> bijectors.Bijector:
    """Vectors (B, D) of images as sequences of patches (B, N, patch^2 C), row by row."""

    def forward(params, x, context=None):
        del params, context
        tokens = patches.to_patches(x.reshape(x.shape[0], *cfg.shape), cfg.patch)
        return tokens.reshape(x.shape[0], *sequence(cfg)), bijectors.no_change(x)

    def inverse(params, y, context=None):
        del params, context
        rows, columns = (side // cfg.patch for side in cfg.shape[:2])
        image = patches.from_patches(y.reshape(y.shape[0], rows, columns, y.shape[-1]), cfg.patch)
        return image.reshape(y.shape[0], cfg.num_dims), bijectors.no_change(y)

    return bijectors.Bijector(lambda key, x=None, context=None: (), forward, inverse)


def sequence(cfg: Config) -> tuple[int, int]:
    """The number of patches of an image, and that of the numbers of a patch."""
    size = cfg.patch**2 * cfg.shape[-1]
    return cfg.num_dims // size, size


def block(cfg: Config, index: Array | int, key: Array | None = None) -> bijectors.Bijector:
    """One block: sequences (B, N, size) of which every other block sees the last token first."""
    length, size = sequence(cfg)
    transform = Flipped(cfg.transform)
    network = values.filled(cfg.network, num_outputs=size * transform.num_parameters)
    ordered = lambda x: jnp.where(index % 2 == 1, x[:, ::-1], x)

    def init(key, x=None, context=None):
        del x, context
        given = (jnp.zeros((1, cfg.num_context)),) if cfg.num_context else ()
        return variables.parameters(network, key, jnp.zeros((1, length, size)), *given, may_drop=True)

    def read(params, x, context, own_key=None, **options):
        """Parameters (B, n, size, ...) of the token after each, and the cache; in training with a key."""
        conditioned.check_context(context, cfg.num_context)
        given = () if context is None else (context,)
        if own_key is None:
            output, cache = variables.apply(network, params, x, *given, **options)
        else:
            (output, cache), _ = variables.train(network, params, own_key, x, *given)
        return output.reshape(*x.shape, transform.num_parameters), cache

    def forward(params, x, context=None):
        x = ordered(x)
        raw, _ = read(params, x, context, None if key is None else jax.random.fold_in(key, index))
        raw = jnp.pad(raw[:, :-1], ((0, 0), (1, 0), (0, 0), (0, 0)))  # of the first nothing is said
        y, log_slope = transform.forward(raw, x)
        return ordered(y), bijectors.sum_dims(log_slope)

    def inverse(params, y, context=None):
        def solve(carry, row):
            raw, cache = carry
            place, y = row
            x, log_slope = transform.inverse(raw, y[:, None])
            raw, cache = read(params, x, context, cache=cache, start=place)
            return (raw.astype(dtype), cache), (x[:, 0], log_slope[:, 0])

        count, dtype = y.shape[0], jnp.promote_types(y.dtype, jnp.float32)
        raw = jnp.zeros((count, 1, size, transform.num_parameters), dtype)
        start = raw, network.empty_cache(count, length, dtype)
        rows = jnp.arange(length), ordered(y.astype(dtype)).swapaxes(0, 1)
        x, log_slope = (a.swapaxes(0, 1) for a in jax.lax.scan(solve, start, rows)[1])
        return ordered(x), bijectors.sum_dims(log_slope)

    return bijectors.Bijector(init, forward, inverse)


@checked
def init(key: Array, cfg: Config, batch: Batch | None = None) -> State:
    """A fresh state; `batch`, if given, sets the scales and shifts.

    Raises ValueError for data that `flow` cannot take, preprocessing that they cannot have, and a conditional
    flow of data without labels.
    """
    labels.check_conditional(cfg)
    params_key, data_key, step_key = keys.named(key, "params", "data", "steps")
    x = context = None
    if batch is not None:
        x, context = training_data(data_key, batch, cfg), density.batch_context(batch, cfg)
    params = flow(cfg).init(params_key, x, context)
    opt_state = values.gradient_transformation(cfg.optimizer).init(params)
    return State(jnp.zeros((), jnp.int32), step_key, params, opt_state)


def training_data(key: Array, batch: Batch, cfg: Config) -> Array:
    """The examples of a batch with noise and flat, (B, D)."""
    x = cfg.noise.noisy(key, observed(batch), cfg.levels)
    return x.reshape(x.shape[0], cfg.num_dims)


@checked
def loss(params: Any, batch: Batch, key: Array, cfg: Config) -> tuple[Array, Metrics]:
    """Mean negative log-likelihood in nats per example, of data with noise.

    `batch["label"]` (B,) is needed if conditional.
    """
    data_key, dropout_key = keys.named(key, "data", "dropout")
    x, context = training_data(data_key, batch, cfg), density.batch_context(batch, cfg)
    nll = -density.log_prob(flow(cfg, dropout_key), params, x, context).mean()
    return nll, {"nll": nll}


@checked
def train_step(state: State, batch: Batch, cfg: Config) -> tuple[State, Metrics]:
    """One step on `batch["image"]` (B, *shape), `batch["label"]` (B,) if conditional."""
    key = jax.random.fold_in(state.key, state.step)
    grads, metrics = jax.grad(loss, has_aux=True)(state.params, batch, key, cfg)
    optimizer = values.gradient_transformation(cfg.optimizer)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return state._replace(step=state.step + 1, params=params, opt_state=opt_state), metrics


@checked
def sample(
    key: Array,
    state: State,
    n: int,
    cfg: Config,
    label: labels.Label = None,
    *,
    temperature: float = 1.0,
    denoise: bool = True,
) -> Array:
    """n draws, (n, *shape), of noise with `temperature` as its standard deviation.

    If conditional, of the `label` given, one for all or (n,), else of labels drawn uniformly. With `denoise`
    Gaussian noise of the training data is taken out again.
    """
    noise_key, label_key = keys.named(key, "noise", "label")
    label = labels.drawn(label_key, label, n, labels.count(cfg))
    x = decode(state, temperature * jax.random.normal(noise_key, (n, cfg.num_dims)), cfg, label)
    return cfg.noise.denoised(x, lambda x: log_prob(state, x, cfg, label)) if denoise else x


def measure(cfg: Config) -> str:
    """What `log_prob` is of: a density, of dequantised pixels if the data have levels."""
    del cfg
    return "density"


@checked
def log_prob(state: State, x: Array, cfg: Config, label: labels.Label = None) -> Array:
    """log p(x) of real numbers x (B, *shape) in nats, (B,), with the noise that `noise` adds to the data.

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


def _check(cfg: Config) -> None:
    if len(cfg.shape) != 3:
        raise ValueError(f"TarFlow takes images (height, width, channels), got {cfg.shape}: use maf")
    height, width = cfg.shape[:2]
    fitting = [side for side in range(1, max(height, width)) if height % side == width % side == 0]
    if cfg.patch not in fitting:
        raise ValueError(
            f"{cfg.patch}x{cfg.patch} patches do not cut {height}x{width} images into two or more: take"
            f" a side of {', '.join(map(str, fitting))}"
        )
    if isinstance(cfg.preprocessing, Logit) and isinstance(cfg.noise, GaussianNoise):
        raise ValueError("Gaussian noise leaves the interval of pixels, where the logit is: use standardize")
