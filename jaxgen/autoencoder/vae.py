"""Variational autoencoder (Kingma & Welling 2014; Rezende, Mohamed & Wierstra 2014).

A latent z ~ N(0, I) is decoded into the parameters of p(x | z); an encoder proposes q(z | x) = N(m(x), diag
s(x)^2), and both networks climb the evidence lower bound

    log p(x) >= E_q[log p(x | z)] - beta KL(q(z | x) || p(z)),     z = m(x) + s(x) * eps,   eps ~ N(0, I),

with the KL term in closed form. beta = 1 is the VAE; any other value is the beta-VAE of Higgins et al. 2017,
whose objective is no bound: `elbo` always reports beta = 1. `iwae` gives the importance-weighted bound of
Burda et al. 2016,

    log p(x) >= E[log 1/K sum_k p(x, z_k) / q(z_k | x)],     z_k ~ q(z | x),

which rises with K towards log p(x) and is how the held-out likelihood is estimated.

Departs from the papers: Adam in place of AdaGrad; the log-variance of q is clipped to [-10, 10]; under the
Gaussian likelihood 8-bit pixels are dequantised with uniform noise one level wide, so that the density is
bounded.
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

PIXEL_STEP = 2 / 255
"""Distance of neighbouring 8-bit levels on [-1, 1]."""


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Hyperparameters of the variational autoencoder."""

    shape: tuple[int, ...] = (8, 8, 1)
    """Shape of one example."""
    num_latents: int = 16
    """Dimensions of z."""
    network: Literal["mlp", "conv"] = "mlp"
    """Fully connected, or strided convolutions, each of which halves height and width."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the encoder's layers (mlp) or its channels (conv); the decoder mirrors them."""
    activation: Literal["relu", "tanh"] = "relu"
    """Nonlinearity of the hidden layers."""
    likelihood: Literal["bernoulli", "gaussian"] = "bernoulli"
    """p(x | z): bits drawn from the grey values, or real numbers with constant noise."""
    binarisation: Literal["dynamic", "threshold"] = "dynamic"
    """Bernoulli only: draw the bits afresh at every presentation, or compare the grey value with one half."""
    noise_std: float = 0.1
    """Gaussian only: standard deviation of p(x | z), or where it starts if learned."""
    learn_noise_std: bool = False
    """Gaussian only: learn one standard deviation shared by all dimensions."""
    dequantize: bool = True
    """Gaussian only: add uniform noise one 8-bit level wide; turn off for continuous data."""
    beta: float = 1.0
    """Weight of the KL term."""
    learning_rate: float = 1e-3
    """Adam's step size."""
    decay_steps: int = 0
    """Steps over which the step size falls to zero along a half cosine; 0 keeps it constant."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype of the networks; parameters, likelihoods and the KL stay float32."""
    encoder: nn.Module | None = None
    """Your own network: (B, *shape), bits as 0 and 1 -> mean and log-variance of q, each (B, num_latents)."""
    decoder: nn.Module | None = None
    """Your own network: (B, num_latents) -> logits or means of p(x | z), (B, *shape)."""
    optimizer: optax.GradientTransformation | None = None
    """Your own optimizer, in place of Adam."""


class DenseEncoder(nn.Module):
    """(B, *shape) -> mean and log-variance of q(z | x), each (B, num_latents)."""

    cfg: Config

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        x = x.reshape(x.shape[0], -1)
        for width in self.cfg.hidden:
            x = _activate(_dense(width, self.cfg)(x), self.cfg)
        return _split(_dense(2 * self.cfg.num_latents, self.cfg)(x))


class DenseDecoder(nn.Module):
    """(B, num_latents) -> logits or means of p(x | z), (B, *shape)."""

    cfg: Config

    @nn.compact
    def __call__(self, z: Array) -> Array:
        for width in reversed(self.cfg.hidden):
            z = _activate(_dense(width, self.cfg)(z), self.cfg)
        return _dense(math.prod(self.cfg.shape), self.cfg, name="out")(z).reshape(-1, *self.cfg.shape)


class ConvEncoder(nn.Module):
    """As `DenseEncoder`, with 4x4 convolutions of stride 2."""

    cfg: Config

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        for channels in self.cfg.hidden:
            x = conv.Conv(channels, (4, 4), (2, 2), padding=((1, 1), (1, 1)), dtype=self.cfg.dtype)(x)
            x = _activate(x, self.cfg)
        return _split(_dense(2 * self.cfg.num_latents, self.cfg)(x.reshape(x.shape[0], -1)))


class ConvDecoder(nn.Module):
    """As `DenseDecoder`, with 4x4 transposed convolutions of stride 2."""

    cfg: Config

    @nn.compact
    def __call__(self, z: Array) -> Array:
        *widths, last = self.cfg.hidden
        scale = 2 ** len(self.cfg.hidden)
        height, width = (size // scale for size in self.cfg.shape[:2])
        x = _activate(_dense(height * width * last, self.cfg)(z), self.cfg)
        x = x.reshape(-1, height, width, last)
        for channels in reversed(widths):
            x = conv.ConvTranspose(channels, (4, 4), (2, 2), dtype=self.cfg.dtype)(x)
            x = _activate(x, self.cfg)
        return conv.ConvTranspose(self.cfg.shape[2], (4, 4), (2, 2), dtype=self.cfg.dtype, name="out")(x)


class State(NamedTuple):
    """What training changes."""

    step: Array
    key: Array
    params: Any
    opt_state: Any


def optimizer(cfg: Config) -> optax.GradientTransformation:
    """The config's own optimizer, or Adam."""
    if cfg.optimizer is not None:
        return cfg.optimizer
    if cfg.decay_steps:
        return optax.adam(optax.cosine_decay_schedule(cfg.learning_rate, cfg.decay_steps))
    return optax.adam(cfg.learning_rate)


def init(key: Array, cfg: Config, batch: Batch | None = None) -> State:
    """A fresh state; `batch`, if given, sets the output bias to the batch's mean.

    Raises ValueError for a shape the convolutional networks cannot halve as often as they must.
    """
    encoder_key, decoder_key, step_key = jax.random.split(key, 3)
    encoder, decoder = _networks(cfg)
    params = {
        "encoder": encoder.init(encoder_key, jnp.zeros((1, *cfg.shape)))["params"],
        "decoder": decoder.init(decoder_key, jnp.zeros((1, cfg.num_latents)))["params"],
    }
    if cfg.likelihood == "gaussian" and cfg.learn_noise_std:
        params["log_noise_std"] = jnp.log(jnp.float32(cfg.noise_std))
    if batch is not None and cfg.decoder is None:
        params["decoder"]["out"]["bias"] = _mean_bias(observed(batch), params["decoder"]["out"]["bias"], cfg)
    return State(jnp.zeros((), jnp.int32), step_key, params, optimizer(cfg).init(params))


def loss(params: Any, batch: Batch, key: Array, cfg: Config) -> tuple[Array, Metrics]:
    """Mean of -E_q[log p(x | z)] + beta KL over the batch, in nats per example, with one draw of z."""
    log_likelihood, kl = _bound_terms(params, observed(batch), key, cfg)
    log_likelihood, kl = log_likelihood.mean(), kl.mean()
    value = cfg.beta * kl - log_likelihood
    return value, {"loss": value, "elbo": log_likelihood - kl, "reconstruction": -log_likelihood, "kl": kl}


def train_step(state: State, batch: Batch, cfg: Config) -> tuple[State, Metrics]:
    """One step on `batch["image"]` or `batch["x"]`, (B, *shape)."""
    key = jax.random.fold_in(state.key, state.step)
    grads, metrics = jax.grad(loss, has_aux=True)(state.params, batch, key, cfg)
    updates, opt_state = optimizer(cfg).update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return state._replace(step=state.step + 1, params=params, opt_state=opt_state), metrics


def sample(key: Array, state: State, n: int, cfg: Config, mean: bool = True) -> Array:
    """n decoded draws of the prior, (n, *shape): means of p(x | z), or with `mean=False` draws from it."""
    latent_key, noise_key = jax.random.split(key)
    z = jax.random.normal(latent_key, (n, cfg.num_latents))
    x = decode(state, z, cfg)
    if mean:
        return x
    if cfg.likelihood == "bernoulli":
        return 2.0 * distributions.bernoulli(noise_key, (x + 1) / 2) - 1
    return x + jnp.exp(0.5 * _noise_log_variance(state.params, cfg)) * jax.random.normal(noise_key, x.shape)


def elbo(key: Array, state: State, x: Array, cfg: Config) -> Array:
    """E_q[log p(x | z)] - KL with one draw of z, a lower bound on log p(x) in nats, (B,).

    Under the Gaussian likelihood the density is that of the dequantised pixels on [-1, 1].
    """
    log_likelihood, kl = _bound_terms(state.params, x, key, cfg)
    return log_likelihood - kl


def iwae(key: Array, state: State, x: Array, cfg: Config, num_samples: int = 1000) -> Array:
    """Importance-weighted lower bound on log p(x) with `num_samples` draws of z, in nats, (B,).

    The draws are streamed one at a time through a running log-sum-exp, so memory does not grow with their
    number.
    """
    data_key, latent_key = jax.random.split(key)
    x = _targets(data_key, x, cfg)
    posterior = _encode(state.params, x, cfg)

    def accumulate(carry, index):
        largest, total = carry
        z, noise = _draw(jax.random.fold_in(latent_key, index), *posterior)
        log_posterior = distributions.normal_log_prob(noise) - 0.5 * posterior[1].sum(-1)
        log_weight = (
            _log_likelihood(state.params, x, z, cfg) + distributions.normal_log_prob(z) - log_posterior
        )
        new_largest = jnp.maximum(largest, log_weight)
        total = total * jnp.exp(largest - new_largest) + jnp.exp(log_weight - new_largest)
        return (new_largest, total), None

    start = jnp.full(x.shape[0], -jnp.inf), jnp.zeros(x.shape[0])
    (largest, total), _ = jax.lax.scan(accumulate, start, jnp.arange(num_samples))
    return largest + jnp.log(total) - math.log(num_samples)


def encode(state: State, x: Array, cfg: Config) -> Array:
    """Posterior mean E_q[z | x] of data x (B, *shape), (B, num_latents)."""
    return _encode(state.params, x, cfg)[0]


def decode(state: State, z: Array, cfg: Config) -> Array:
    """E[x | z] in the space of the data, (B, *shape)."""
    output = _decode(state.params, z, cfg)
    return 2 * jax.nn.sigmoid(output) - 1 if cfg.likelihood == "bernoulli" else output


def reconstruct(state: State, x: Array, cfg: Config) -> Array:
    """x decoded from its posterior mean, (B, *shape)."""
    return decode(state, encode(state, x, cfg), cfg)


def _bound_terms(params: Any, x: Array, key: Array, cfg: Config) -> tuple[Array, Array]:
    """One-draw estimate of E_q[log p(x | z)] and the exact KL, each (B,)."""
    data_key, latent_key = jax.random.split(key)
    x = _targets(data_key, x, cfg)
    posterior = _encode(params, x, cfg)
    z, _ = _draw(latent_key, *posterior)
    return _log_likelihood(params, x, z, cfg), distributions.kl_normal(*posterior)


def _targets(key: Array, x: Array, cfg: Config) -> Array:
    """What the density is of: bits written -1 and 1, or pixels spread over their level."""
    if cfg.likelihood == "gaussian":
        noise = PIXEL_STEP * (jax.random.uniform(key, x.shape) - 0.5)
        return x + noise if cfg.dequantize else x
    if cfg.binarisation == "threshold":
        return jnp.where(x > 0, 1.0, -1.0)
    return jnp.where(distributions.bernoulli(key, (x + 1) / 2), 1.0, -1.0)


def _encode(params: Any, x: Array, cfg: Config) -> tuple[Array, Array]:
    if cfg.likelihood == "bernoulli":
        x = (x + 1) / 2  # black as 0: a large constant input slows the first layer down by nats
    mean, log_variance = _networks(cfg)[0].apply({"params": params["encoder"]}, x)
    return jnp.float32(mean), jnp.clip(jnp.float32(log_variance), -10.0, 10.0)


def _draw(key: Array, mean: Array, log_variance: Array) -> tuple[Array, Array]:
    noise = jax.random.normal(key, mean.shape)
    return mean + jnp.exp(0.5 * log_variance) * noise, noise


def _decode(params: Any, z: Array, cfg: Config) -> Array:
    return jnp.float32(_networks(cfg)[1].apply({"params": params["decoder"]}, z))


def _log_likelihood(params: Any, x: Array, z: Array, cfg: Config) -> Array:
    output = _decode(params, z, cfg)
    if cfg.likelihood == "bernoulli":
        return distributions.bernoulli_log_prob((x + 1) / 2, output)
    return distributions.normal_log_prob(x, output, _noise_log_variance(params, cfg))


def _noise_log_variance(params: Any, cfg: Config) -> Array | float:
    return 2 * (params["log_noise_std"] if cfg.learn_noise_std else math.log(cfg.noise_std))


def _networks(cfg: Config) -> tuple[nn.Module, nn.Module]:
    if cfg.network == "conv" and (cfg.encoder is None or cfg.decoder is None):
        _check_shape(cfg)
    encoder, decoder = (ConvEncoder, ConvDecoder) if cfg.network == "conv" else (DenseEncoder, DenseDecoder)
    return cfg.encoder or encoder(cfg), cfg.decoder or decoder(cfg)


def _check_shape(cfg: Config) -> None:
    scale = 2 ** len(cfg.hidden)
    if len(cfg.shape) != 3 or any(size % scale or not size for size in cfg.shape[:2]):
        fitting = [max(1, round(size / scale)) * scale for size in cfg.shape[:2]]
        raise ValueError(
            f"{len(cfg.hidden)} convolutions of stride 2 need (height, width, channels) with height and width"
            f" divisible by {scale}, got {cfg.shape}: {fitting} would fit, or fewer entries in `hidden`"
        )


def _mean_bias(x: Array, bias: Array, cfg: Config) -> Array:
    """The output bias at which an undecided decoder predicts the mean of x."""
    mean = x.reshape(-1, bias.size).mean(0) if cfg.network == "mlp" else x.mean((0, 1, 2))
    if cfg.likelihood == "bernoulli":
        mean = jnp.clip((mean + 1) / 2, 0.01, 0.99)
        return jnp.log(mean) - jnp.log1p(-mean)
    return mean


def _dense(width: int, cfg: Config, name: str | None = None) -> nn.Dense:
    return nn.Dense(width, dtype=cfg.dtype, kernel_init=nn.initializers.glorot_uniform(), name=name)


def _activate(x: Array, cfg: Config) -> Array:
    return nn.tanh(x) if cfg.activation == "tanh" else nn.relu(x)


def _split(x: Array) -> tuple[Array, Array]:
    mean, log_variance = jnp.split(x, 2, -1)
    return mean, log_variance
