"""Autoencoder (Hinton & Salakhutdinov 2006) and denoising autoencoder (Vincent et al. 2008).

An encoder f squeezes x into a few numbers z and a decoder g gives it back; both networks minimise

    E |x - g(f(y))|^2,     y = x, or y drawn from a corruption C(y | x).

Under Gaussian corruption of standard deviation s the best r = g(f(.)) is the posterior mean E[x | y], which
tells the score of the noisy data: (r(y) - y) / s^2 = grad log p_s(y) (Alain & Bengio 2014).

Nothing here says how z is distributed, and it is not N(0, I). `train_step` keeps the mean and covariance of
the latest codes in the State, and `sample` decodes draws of that Gaussian; a mixture of Gaussians fits codes
better: `classical.gmm.fit` it to those of a trained encoder, and `decode` its samples.

Departs from the papers: all layers are trained at once by Adam from random weights, ReLU in place of the
logistic function, a linear output, codes without noise.
"""

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxgen import distributions
from jaxgen.nn import conv
from jaxgen.types import Batch, Metrics, observed


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Hyperparameters of the autoencoder."""

    shape: tuple[int, ...] = (8, 8, 1)
    """Shape of one example."""
    num_latents: int = 16
    """Dimensions of z."""
    network: Literal["mlp", "conv"] = "mlp"
    """Fully connected, or strided convolutions, each of which halves height and width."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the encoder's layers (mlp; none make it linear) or its channels (conv); the decoder mirrors
    them."""
    reconstruction: Literal["l2", "l1"] = "l2"
    """Squares or absolute values of the error, summed over an example."""
    noise: Literal["none", "gaussian", "masking", "salt_and_pepper"] = "none"
    """Corruption of the encoder's input in training; anything but none makes it a denoising autoencoder."""
    noise_level: float = 0.3
    """Standard deviation of Gaussian noise, or the fraction of entries the other kinds hit."""
    mask_value: float = -1.0
    """What masked entries become: -1 is black."""
    learning_rate: float = 1e-3
    """Adam's step size."""
    decay: float = 0.99
    """Of the mean and covariance of the codes, from one step to the next."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype of the networks; parameters, errors and moments stay float32."""
    encoder: nn.Module | None = None
    """Your own network: (B, *shape) -> (B, num_latents)."""
    decoder: nn.Module | None = None
    """Your own network: (B, num_latents) -> (B, *shape)."""
    optimizer: optax.GradientTransformation | None = None
    """Your own optimizer, in place of Adam."""


class DenseEncoder(nn.Module):
    """(B, *shape) -> codes (B, num_latents)."""

    cfg: Config

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = x.reshape(x.shape[0], -1)
        for width in self.cfg.hidden:
            x = nn.relu(_dense(width, self.cfg)(x))
        return _dense(self.cfg.num_latents, self.cfg)(x)


class DenseDecoder(nn.Module):
    """(B, num_latents) -> (B, *shape)."""

    cfg: Config

    @nn.compact
    def __call__(self, z: Array) -> Array:
        for width in reversed(self.cfg.hidden):
            z = nn.relu(_dense(width, self.cfg)(z))
        return _dense(math.prod(self.cfg.shape), self.cfg, name="out")(z).reshape(-1, *self.cfg.shape)


class ConvEncoder(nn.Module):
    """As `DenseEncoder`, with 4x4 convolutions of stride 2."""

    cfg: Config

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for channels in self.cfg.hidden:
            x = conv.Conv(channels, (4, 4), (2, 2), padding=((1, 1), (1, 1)), dtype=self.cfg.dtype)(x)
            x = nn.relu(x)
        return _dense(self.cfg.num_latents, self.cfg)(x.reshape(x.shape[0], -1))


class ConvDecoder(nn.Module):
    """As `DenseDecoder`, with 4x4 transposed convolutions of stride 2."""

    cfg: Config

    @nn.compact
    def __call__(self, z: Array) -> Array:
        *widths, last = self.cfg.hidden
        height, width = halved(self.cfg.shape, len(self.cfg.hidden))
        x = nn.relu(_dense(height * width * last, self.cfg)(z)).reshape(-1, height, width, last)
        for channels in reversed(widths):
            x = nn.relu(conv.ConvTranspose(channels, (4, 4), (2, 2), dtype=self.cfg.dtype)(x))
        return conv.ConvTranspose(self.cfg.shape[2], (4, 4), (2, 2), dtype=self.cfg.dtype, name="out")(x)


class Moments(NamedTuple):
    """Of the codes of the latest steps."""

    mean: Array  # (num_latents,)
    covariance: Array  # (num_latents, num_latents)


class State(NamedTuple):
    """What training changes."""

    step: Array
    key: Array
    params: Any
    opt_state: Any
    codes: Moments


def optimizer(cfg: Config) -> optax.GradientTransformation:
    """The config's own optimizer, or Adam."""
    return optax.adam(cfg.learning_rate) if cfg.optimizer is None else cfg.optimizer


def init(key: Array, cfg: Config, batch: Batch | None = None) -> State:
    """A fresh state; `batch`, if given, sets the output bias to the batch's mean.

    Raises ValueError for a shape the convolutional networks cannot halve as often as they must.
    """
    encoder_key, decoder_key, step_key = jax.random.split(key, 3)
    encoder, decoder = _networks(cfg)
    params = {
        "encoder": encoder.init(encoder_key, jnp.zeros((1, *cfg.shape))).get("params", {}),
        "decoder": decoder.init(decoder_key, jnp.zeros((1, cfg.num_latents))).get("params", {}),
    }
    if batch is not None and cfg.decoder is None:
        x, bias = observed(batch), params["decoder"]["out"]["bias"]
        params["decoder"]["out"]["bias"] = x.reshape(-1, bias.size).mean(0)
    codes = Moments(jnp.zeros(cfg.num_latents), jnp.eye(cfg.num_latents))
    return State(jnp.zeros((), jnp.int32), step_key, params, optimizer(cfg).init(params), codes)


def loss(params: Any, batch: Batch, key: Array, cfg: Config) -> tuple[Array, Metrics]:
    """Mean over the batch of the error of each reconstruction, summed over its entries."""
    value, (metrics, _) = _objective(params, batch, key, cfg)
    return value, metrics


def train_step(state: State, batch: Batch, cfg: Config) -> tuple[State, Metrics]:
    """One step on `batch["image"]` or `batch["x"]`, (B, *shape)."""
    key = jax.random.fold_in(state.key, state.step)
    grads, (metrics, z) = jax.grad(_objective, has_aux=True)(state.params, batch, key, cfg)
    updates, opt_state = optimizer(cfg).update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    codes = update_moments(state.codes, z, jnp.minimum(cfg.decay, state.step / (state.step + 1)))
    return State(state.step + 1, state.key, params, opt_state, codes), metrics


def sample(key: Array, state: State, n: int, cfg: Config) -> Array:
    """n decoded draws, (n, *shape), of the Gaussian of the latest training codes."""
    mean, covariance = state.codes
    variances, axes = jnp.linalg.eigh(covariance)  # which may be singular
    roots = axes * jnp.sqrt(jnp.maximum(variances, 0.0))
    noise = jax.random.normal(key, (n, cfg.num_latents))
    return decode(state, mean + jnp.matmul(noise, roots.T, precision="highest"), cfg)


def encode(state: State, x: Array, cfg: Config) -> Array:
    """Codes of data x (B, *shape), (B, num_latents)."""
    return _encode(state.params, x, cfg)


def decode(state: State, z: Array, cfg: Config) -> Array:
    """Data of codes z (B, num_latents), (B, *shape)."""
    return _decode(state.params, z, cfg)


def to_codes(state: State, x: Array, cfg: Config) -> Array:
    """Real-valued codes of data x (B, *shape), (B, num_latents)."""
    return encode(state, x, cfg)


def from_codes(state: State, z: Array, cfg: Config) -> Array:
    """Data of codes as `to_codes` gives them, (B, *shape)."""
    return decode(state, z, cfg)


def reconstruct(state: State, x: Array, cfg: Config) -> Array:
    """x encoded and decoded, (B, *shape): denoised, if the model was trained to and x is noisy."""
    return decode(state, encode(state, x, cfg), cfg)


def score(state: State, x: Array, cfg: Config) -> Array:
    """Minus the error of reconstructing x, summed over its entries, (B,): higher is more typical."""
    return -_error(reconstruct(state, x, cfg), x, cfg)


def corrupt(key: Array, x: Array, cfg: Config) -> Array:
    """x (B, *shape) as the encoder sees it in training: a fresh draw of the noise for every entry."""
    if cfg.noise == "none":
        return x
    if cfg.noise == "gaussian":
        return x + cfg.noise_level * jax.random.normal(key, x.shape)
    uniform = jax.random.uniform(key, x.shape)
    if cfg.noise == "masking":
        return jnp.where(uniform < cfg.noise_level, cfg.mask_value, x)
    extreme = jnp.where(uniform < cfg.noise_level / 2, -1.0, 1.0)
    return jnp.where(uniform < cfg.noise_level, extreme, x)


def update_moments(moments: Moments, z: Array, decay: Array | float) -> Moments:
    """Moments of a mixture: `decay` parts of the old and 1 - decay of the codes z (B, num_latents)."""
    mean = z.mean(0)
    centred = z - mean
    covariance = jnp.matmul(centred.T, centred, precision="highest") / len(z)
    shift = mean - moments.mean
    between = decay * (1 - decay) * jnp.outer(shift, shift)
    covariance = decay * moments.covariance + (1 - decay) * covariance + between
    return Moments(moments.mean + (1 - decay) * shift, covariance)


def halved(shape: tuple[int, ...], times: int) -> tuple[int, int]:
    """Height and width of (height, width, channels) after `times` convolutions of stride 2.

    Raises ValueError, naming sizes that would do, where transposed convolutions could not give them back.
    """
    scale = 2**times
    if times < 1:
        raise ValueError("convolutional networks need at least one entry in `hidden`")
    if len(shape) != 3 or any(size % scale or not size for size in shape[:2]):
        fitting = [max(1, round(size / scale)) * scale for size in shape[:2]]
        raise ValueError(
            f"{times} convolutions of stride 2 need (height, width, channels) with height and width divisible"
            f" by {scale}, got {shape}: {fitting} would fit, or fewer entries in `hidden`"
        )
    return shape[0] // scale, shape[1] // scale


def _objective(params: Any, batch: Batch, key: Array, cfg: Config) -> tuple[Array, tuple[Metrics, Array]]:
    x = observed(batch)
    z = _encode(params, corrupt(key, x, cfg), cfg)
    output = _decode(params, z, cfg)
    value = _error(output, x, cfg).mean()
    return value, ({"loss": value, "mse": ((output - x) ** 2).mean()}, z)


def _error(output: Array, x: Array, cfg: Config) -> Array:
    difference = output - x
    return distributions.sum_per_example(jnp.abs(difference) if cfg.reconstruction == "l1" else difference**2)


def _encode(params: Any, x: Array, cfg: Config) -> Array:
    return jnp.float32(_networks(cfg)[0].apply({"params": params["encoder"]}, x))


def _decode(params: Any, z: Array, cfg: Config) -> Array:
    return jnp.float32(_networks(cfg)[1].apply({"params": params["decoder"]}, z))


def _networks(cfg: Config) -> tuple[nn.Module, nn.Module]:
    if cfg.network == "conv" and (cfg.encoder is None or cfg.decoder is None):
        halved(cfg.shape, len(cfg.hidden))
    encoder, decoder = (ConvEncoder, ConvDecoder) if cfg.network == "conv" else (DenseEncoder, DenseDecoder)
    return cfg.encoder or encoder(cfg), cfg.decoder or decoder(cfg)


def _dense(width: int, cfg: Config, name: str | None = None) -> nn.Dense:
    return nn.Dense(width, dtype=cfg.dtype, kernel_init=nn.initializers.glorot_uniform(), name=name)
