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
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxgen import distributions, keys, values
from jaxgen.arguments import checked
from jaxgen.autoencoder.corruptions import Corruption, GaussianNoise, Masking, SaltAndPepper
from jaxgen.autoencoder.networks import ConvDecoder, ConvEncoder, DenseDecoder, DenseEncoder, with_first_bias
from jaxgen.fields import Decay, PositiveInt
from jaxgen.nn import variables
from jaxgen.types import Batch, Metrics, observed


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(values.Value):
    """Hyperparameters of the autoencoder."""

    shape: tuple[PositiveInt, ...] = (8, 8, 1)
    """Shape of one example."""
    num_latents: PositiveInt = 16
    """Dimensions of z."""
    encoder: DenseEncoder | ConvEncoder | nn.Module = DenseEncoder()
    """Network that takes x (B, *shape) and gives codes (B, num_latents)."""
    decoder: DenseDecoder | ConvDecoder | nn.Module = DenseDecoder()
    """Network that takes codes (B, num_latents) and gives data (B, *shape)."""
    reconstruction: Literal["l2", "l1"] = "l2"
    """Squares or absolute values of the error, summed over an example."""
    corruption: GaussianNoise | Masking | SaltAndPepper | Corruption | None = None
    """Corruption of the encoder's input in training; with one this is a denoising autoencoder."""
    decay: Decay = 0.99
    """Decay of the mean and covariance of the codes, from one step to the next."""
    optimizer: values.Optimizer = values.Adam(1e-3)
    """Optimizer of both networks."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype of the networks; parameters, errors and moments stay float32."""


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


@checked
def init(key: Array, cfg: Config, batch: Batch | None = None) -> State:
    """A fresh state; `batch`, if given, sets the output bias of our decoders to the batch's mean.

    Raises ValueError for a shape that the convolutional networks cannot take.
    """
    encoder_key, decoder_key, step_key = keys.named(key, "encoder", "decoder", "steps")
    params = {
        "encoder": variables.init(_encoder(cfg), encoder_key, jnp.zeros((1, *cfg.shape))),
        "decoder": variables.init(_decoder(cfg), decoder_key, jnp.zeros((1, cfg.num_latents))),
    }
    if batch is not None:
        params["decoder"] = with_first_bias(params["decoder"], observed(batch), lambda mean: mean)
    codes = Moments(jnp.zeros(cfg.num_latents), jnp.eye(cfg.num_latents))
    opt_state = values.gradient_transformation(cfg.optimizer).init(params)
    return State(jnp.zeros((), jnp.int32), step_key, params, opt_state, codes)


@checked
def loss(params: Any, batch: Batch, key: Array, cfg: Config) -> tuple[Array, Metrics]:
    """Mean over the batch of the error of each reconstruction, summed over its entries."""
    value, (metrics, *_) = _objective(params, batch, key, cfg)
    return value, metrics


@checked
def train_step(state: State, batch: Batch, cfg: Config) -> tuple[State, Metrics]:
    """One step on `batch["image"]` or `batch["x"]`, (B, *shape)."""
    key = jax.random.fold_in(state.key, state.step)
    grads, (metrics, z, after) = jax.grad(_objective, has_aux=True)(state.params, batch, key, cfg)
    optimizer = values.gradient_transformation(cfg.optimizer)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = variables.with_stats(optax.apply_updates(state.params, updates), after)
    codes = update_moments(state.codes, z, jnp.minimum(cfg.decay, state.step / (state.step + 1)))
    return State(state.step + 1, state.key, params, opt_state, codes), metrics


@checked
def sample(key: Array, state: State, n: int, cfg: Config) -> Array:
    """n decoded draws, (n, *shape), of the Gaussian of the latest training codes."""
    mean, covariance = state.codes
    variances, axes = jnp.linalg.eigh(covariance)  # which may be singular
    roots = axes * jnp.sqrt(jnp.maximum(variances, 0.0))
    noise = jax.random.normal(key, (n, cfg.num_latents))
    return decode(state, mean + jnp.matmul(noise, roots.T, precision="highest"), cfg)


@checked
def encode(state: State, x: Array, cfg: Config) -> Array:
    """Codes of data x (B, *shape), (B, num_latents)."""
    return _encode(state.params, x, cfg)


@checked
def decode(state: State, z: Array, cfg: Config) -> Array:
    """Data of codes z (B, num_latents), (B, *shape)."""
    return _decode(state.params, z, cfg)


def to_codes(state: State, x: Array, cfg: Config) -> Array:
    """Real-valued codes of data x (B, *shape), (B, num_latents)."""
    return encode(state, x, cfg)


def from_codes(state: State, codes: Array, cfg: Config) -> Array:
    """Data of codes as `to_codes` gives them, (B, *shape)."""
    return decode(state, codes, cfg)


@checked
def reconstruct(state: State, x: Array, cfg: Config) -> Array:
    """x encoded and decoded, (B, *shape): denoised, if the model was trained to and x is noisy."""
    return decode(state, encode(state, x, cfg), cfg)


@checked
def score(state: State, x: Array, cfg: Config) -> Array:
    """Minus the error of reconstructing x, summed over its entries, (B,): higher is more typical."""
    return -_error(reconstruct(state, x, cfg), x, cfg)


def update_moments(moments: Moments, z: Array, decay: Array | float) -> Moments:
    """Moments of a mixture: `decay` parts of the old and 1 - decay of the codes z (B, num_latents)."""
    mean = z.mean(0)
    centred = z - mean
    covariance = jnp.matmul(centred.T, centred, precision="highest") / len(z)
    shift = mean - moments.mean
    between = decay * (1 - decay) * jnp.outer(shift, shift)
    covariance = decay * moments.covariance + (1 - decay) * covariance + between
    return Moments(moments.mean + (1 - decay) * shift, covariance)


def _objective(
    params: Any, batch: Batch, key: Array, cfg: Config
) -> tuple[Array, tuple[Metrics, Array, dict[str, Any]]]:
    """The loss, its metrics, the codes, and the networks with the statistics that they leave."""
    x, (encoder_key, decoder_key) = observed(batch), keys.named(key, "encoder", "decoder")
    seen = x if cfg.corruption is None else cfg.corruption(keys.named(key, "corruption"), x)
    z, encoder = variables.train(_encoder(cfg), params["encoder"], encoder_key, seen)
    z = jnp.float32(z)
    output, decoder = variables.train(_decoder(cfg), params["decoder"], decoder_key, z)
    output = jnp.float32(output)
    value = _error(output, x, cfg).mean()
    metrics = {"loss": value, "mse": ((output - x) ** 2).mean()}
    return value, (metrics, z, {"encoder": encoder, "decoder": decoder})


def _error(output: Array, x: Array, cfg: Config) -> Array:
    difference = output - x
    return distributions.sum_per_example(jnp.abs(difference) if cfg.reconstruction == "l1" else difference**2)


def _encode(params: Any, x: Array, cfg: Config) -> Array:
    return jnp.float32(variables.apply(_encoder(cfg), params["encoder"], x))


def _decode(params: Any, z: Array, cfg: Config) -> Array:
    return jnp.float32(variables.apply(_decoder(cfg), params["decoder"], z))


def _encoder(cfg: Config) -> nn.Module:
    return values.filled(cfg.encoder, num_outputs=cfg.num_latents, dtype=cfg.dtype)


def _decoder(cfg: Config) -> nn.Module:
    return values.filled(cfg.decoder, shape=cfg.shape, dtype=cfg.dtype)
