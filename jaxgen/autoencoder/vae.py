"""Variational autoencoder (Kingma & Welling 2014; Rezende, Mohamed & Wierstra 2014).

A latent z ~ p(z) is decoded into the parameters of p(x | z); an encoder proposes q(z | x), by default N(m(x),
diag s(x)^2) where the prior is N(0, I), and both networks climb the evidence lower bound

    log p(x) >= E_q[log p(x | z)] - beta KL(q(z | x) || p(z)),     z = m(x) + s(x) * eps,   eps ~ N(0, I),

with the KL term in closed form. beta = 1 is the VAE; any other value is the beta-VAE of Higgins et al. 2017,
and another divergence may stand for the KL (Deasy et al. 2020); whatever is climbed, `elbo` reports beta = 1
and the KL. `iwae` gives the importance-weighted bound of Burda et al. 2016,

    log p(x) >= E[log 1/K sum_k w_k],     w_k = p(x, z_k) / q(z_k | x),     z_k ~ q(z | x),

which rises with K towards log p(x) and is how the held-out likelihood is estimated. It can be the objective
too, with the doubly reparameterised gradient of Tucker et al. 2019, in which the encoder learns through z
alone: sum_k (w_k / sum_j w_j)^2 (d log w_k / d z_k) (d z_k / d encoder). Most of K draws weigh next to
nothing: with `num_backward_samples` the gradient, still unbiased, goes through a few drawn again by weight.

The latents can also be log-normal, or one-hot variables trained through the Gumbel-Softmax (Jang et al. 2017;
Maddison et al. 2017), whose bounds are of exact one-hot draws. With `conditional` everything is given the
label: p(x | z, y), q(z | x, y) (Sohn et al. 2015), and a bound without a label is one on log p(x), all labels
being equally likely.

Departs from the papers: Adam in place of AdaGrad; the log-variance of q is clipped to [-10, 10], or where
log-normal draws stay finite; under the Gaussian likelihood 8-bit pixels are dequantised with uniform noise
one level wide, so that the density is bounded; the temperature falls at every step.
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
from jaxgen.autoencoder import likelihoods, networks, posteriors
from jaxgen.autoencoder.networks import ConvDecoder, ConvEncoder, DenseDecoder, DenseEncoder
from jaxgen.types import Batch, Metrics, observed


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Hyperparameters of the variational autoencoder."""

    shape: tuple[int, ...] = (8, 8, 1)
    """Shape of one example."""
    num_latents: int = 16
    """Dimensions of z, or its one-hot variables."""
    network: Literal["mlp", "conv"] = "mlp"
    """Fully connected, or strided convolutions, each of which halves height and width, rounding down."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the encoder's layers (mlp) or its channels (conv); the decoder mirrors them."""
    activation: Literal["relu", "tanh"] = "relu"
    """Nonlinearity of the hidden layers."""
    likelihood: Literal["bernoulli", "gaussian", "logistic_mixture"] = "bernoulli"
    """p(x | z): bits drawn from the grey values, real numbers with noise, or the 256 levels of a pixel."""
    binarisation: Literal["dynamic", "static", "threshold"] = "dynamic"
    """Bernoulli only: draw the bits afresh at every presentation, once for each picture, or cut at 1/2."""
    noise: Literal["fixed", "learned", "predicted"] = "fixed"
    """Gaussian only: the standard deviation is given, learned for all dimensions, or decoded for each one."""
    noise_std: float = 0.1
    """Gaussian only: standard deviation of p(x | z), or where it starts."""
    dequantize: bool = True
    """Gaussian only: add uniform noise one 8-bit level wide; turn off for continuous data."""
    num_components: int = 10
    """Logistic mixture only: logistics a pixel."""
    posterior: Literal["gaussian", "lognormal", "categorical"] = "gaussian"
    """q(z | x) and p(z): normal, positive with a normal logarithm, or one-hot with a uniform prior."""
    num_categories: int = 10
    """Categorical only: classes of each variable."""
    temperature: float = 1.0
    """Categorical only: temperature of the Gumbel-Softmax at the first step."""
    temperature_decay: float = 3e-5
    """Categorical only: the temperature falls by exp(-temperature_decay) at every step."""
    min_temperature: float = 0.5
    """Categorical only: where the temperature stays."""
    straight_through: bool = False
    """Categorical only: decode exact draws, with the gradient of the relaxed ones."""
    conditional: bool = False
    """Give the label to both networks."""
    num_classes: int = 0
    """Conditional only: number of labels."""
    objective: Literal["elbo", "iwae", "dreg"] = "elbo"
    """Bound to climb: evidence, importance-weighted, or that with the doubly reparameterised gradient."""
    num_importance_samples: int = 1
    """Draws of z for each training example, averaged by the elbo and weighted by the others."""
    num_backward_samples: int = 0
    """Iwae only: differentiate through so many of the draws, drawn again by their weights; 0 for all."""
    divergence: Literal["kl", "sampled_kl", "geometric_js", "dual_geometric_js"] = "kl"
    """Elbo only: what keeps q near p, the KL, exact or at the draws, or a skew-geometric Jensen-Shannon."""
    skew: float = 0.5
    """Geometric Jensen-Shannon only: 0 is KL(q || p) and 1 is KL(p || q), reversed in the dual."""
    beta: float = 1.0
    """Elbo only: weight of the divergence."""
    learning_rate: float = 1e-3
    """Adam's step size."""
    decay_steps: int = 0
    """Steps over which the step size falls to zero along a half cosine; 0 keeps it constant."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype of the networks; parameters, likelihoods and the KL stay float32."""
    encoder: nn.Module | None = None
    """Your own network: x (B, *shape), bits as 0 and 1, and one-hot labels if conditional -> mean and
    log-variance of z or log z, each (B, num_latents), or logits (B, num_latents, num_categories)."""
    decoder: nn.Module | None = None
    """Your own network: z, shaped as above, and one-hot labels if conditional -> logits or means of p(x | z),
    (B, *shape); means and then log-variances, or a mixture's parameters, in the last axis."""
    optimizer: optax.GradientTransformation | None = None
    """Your own optimizer, in place of Adam."""


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

    Raises ValueError for a shape the networks or the likelihood cannot take, and options that do not go
    together.
    """
    _check(cfg)
    encoder_key, decoder_key, step_key = jax.random.split(key, 3)
    encoder, decoder = _networks(cfg)
    label = _one_hot(jnp.zeros(1, jnp.int32), cfg)
    z = _prior(1, cfg).expectation()
    params = {
        "encoder": encoder.init(encoder_key, jnp.zeros((1, *cfg.shape)), *label).get("params", {}),
        "decoder": decoder.init(decoder_key, z, *label).get("params", {}),
    }
    if cfg.likelihood == "gaussian" and cfg.noise == "learned":
        params["log_noise_std"] = jnp.log(jnp.float32(cfg.noise_std))
    if batch is not None and cfg.decoder is None:
        out = params["decoder"]["out"]
        out["bias"] = likelihoods.first_bias(observed(batch), cfg).reshape(out["bias"].shape)
    return State(jnp.zeros((), jnp.int32), step_key, params, optimizer(cfg).init(params))


def loss(params: Any, batch: Batch, key: Array, cfg: Config, step: Array | int = 0) -> tuple[Array, Metrics]:
    """Mean over the batch of what is minimised, by default -E_q[log p(x | z)] + beta KL, in nats per example.

    `batch["label"]` (B,) is needed if conditional. `step` sets the temperature of categorical latents; as
    their draws are relaxed, the value beside the loss is then called "relaxed_elbo": it bounds nothing.
    """
    data_key, latent_key, backward_key = jax.random.split(key, 3)
    x, label = likelihoods.targets(data_key, observed(batch), cfg), _one_hot(batch.get("label"), cfg)
    posterior = _posterior(params, x, label, cfg)
    # From here on a row is one draw.
    rows, x, label = jax.tree.map(lambda a: a.repeat(cfg.num_importance_samples, 0), (posterior, x, label))
    z = _relaxed_draw(latent_key, rows, step, cfg)
    if cfg.objective != "elbo":
        return _importance_weighted_loss(params, backward_key, z, rows, x, label, cfg)
    log_likelihood, kl = _likelihood(params, z, label, cfg).log_prob(x).mean(), posterior.kl().mean()
    value = cfg.beta * _divergence(posterior, rows, z, cfg).mean() - log_likelihood
    name = "relaxed_elbo" if cfg.posterior == "categorical" and not cfg.straight_through else "elbo"
    return value, {"loss": value, name: log_likelihood - kl, "reconstruction": -log_likelihood, "kl": kl}


def _importance_weighted_loss(params, key, z, posterior, x, label, cfg):
    """The negative importance-weighted bound, from num_importance_samples rows for each example."""

    def log_weights(params, *rows):
        z, posterior, x, label = rows
        log_likelihood = _likelihood(params, z, label, cfg).log_prob(x)
        kl = posterior.log_prob(z) - posteriors.prior(posterior).log_prob(z)
        return log_likelihood - kl, log_likelihood, kl

    still = jax.lax.stop_gradient((params, z, posterior, x, label))
    forward_only = cfg.num_backward_samples > 0
    log_weight, log_likelihood, kl = log_weights(
        *(still if forward_only else (params, z, posterior, x, label))
    )
    log_weight = log_weight.reshape(-1, cfg.num_importance_samples)
    bound = jax.nn.logsumexp(log_weight, 1) - math.log(cfg.num_importance_samples)
    share = jax.lax.stop_gradient(jax.nn.softmax(log_weight, 1))
    if cfg.objective == "dreg":
        # The decoder's gradient has each weight's share once, the encoder's, which comes through z, twice.
        z = still[1] + share.reshape(-1, 1) * (z - still[1])
        again = log_weights(params, z, still[2], x, label)[0].reshape(share.shape)
        bound = _with_gradient_of((share * again).sum(1), bound)
    elif forward_only:
        # The gradient is the mean of those of log w_k under the shares, so draws by share estimate it.
        index = distributions.systematic_resample(key, share, cfg.num_backward_samples)
        index = (index + cfg.num_importance_samples * jnp.arange(len(index))[:, None]).ravel()
        drawn = jax.tree.map(lambda a: a[index], (z, posterior, x, label))
        again = log_weights(params, *drawn)[0].reshape(-1, cfg.num_backward_samples)
        bound = _with_gradient_of(again.mean(1), bound)
    value, elbo = -bound.mean(), log_weight.mean()
    return value, {"loss": value, "elbo": elbo, "reconstruction": -log_likelihood.mean(), "kl": kl.mean()}


def _with_gradient_of(surrogate: Array, value: Array) -> Array:
    return jax.lax.stop_gradient(value - surrogate) + surrogate


def train_step(state: State, batch: Batch, cfg: Config) -> tuple[State, Metrics]:
    """One step on `batch["image"]` or `batch["x"]`, (B, *shape), `batch["label"]` (B,) if conditional."""
    key = jax.random.fold_in(state.key, state.step)
    grads, metrics = jax.grad(loss, has_aux=True)(state.params, batch, key, cfg, state.step)
    updates, opt_state = optimizer(cfg).update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return state._replace(step=state.step + 1, params=params, opt_state=opt_state), metrics


def temperature(step: Array | int, cfg: Config) -> Array:
    """Temperature of the Gumbel-Softmax at a step, ()."""
    falling = cfg.temperature * jnp.exp(-cfg.temperature_decay * jnp.float32(step))
    return jnp.maximum(falling, cfg.min_temperature)


def sample(
    key: Array, state: State, n: int, cfg: Config, label: Array | int | None = None, mean: bool = True
) -> Array:
    """n decoded draws of the prior, (n, *shape): means of p(x | z), or with `mean=False` draws from it.

    If conditional, of the `label` given, one for all or (n,), else of labels drawn uniformly.
    """
    latent_key, noise_key, label_key = jax.random.split(key, 3)
    if cfg.conditional and label is None:
        label = jax.random.randint(label_key, (n,), 0, cfg.num_classes)
    z = _prior(n, cfg).sample(latent_key)
    likelihood = _likelihood(state.params, z, _one_hot(label, cfg, n), cfg)
    return likelihood.mean() if mean else likelihood.sample(noise_key)


def elbo(key: Array, state: State, x: Array, cfg: Config, label: Array | None = None) -> Array:
    """E_q[log p(x | z)] - KL with one draw of z, a lower bound on log p(x) in nats, (B,).

    Under the Gaussian likelihood the density is that of the dequantised pixels on [-1, 1]. If conditional the
    bound is on log p(x | label), or without a label on log p(x), as `iwae` gives it with one draw.
    """
    if cfg.conditional and label is None:
        return iwae(key, state, x, cfg, num_samples=1)
    data_key, latent_key = jax.random.split(key)
    x, labels = likelihoods.targets(data_key, x, cfg), _one_hot(label, cfg)
    posterior = _posterior(state.params, x, labels, cfg)
    z = posterior.sample(latent_key)
    return _likelihood(state.params, z, labels, cfg).log_prob(x) - posterior.kl()


def iwae(
    key: Array, state: State, x: Array, cfg: Config, num_samples: int = 1000, label: Array | None = None
) -> Array:
    """Importance-weighted lower bound on log p(x) with `num_samples` draws of z, in nats, (B,).

    The draws are streamed one at a time through a running log-sum-exp, so memory does not grow with their
    number. If conditional the bound is on log p(x | label), or without a label on log p(x): then every class
    has its own draws, and p(x) is the mean over classes.
    """
    if cfg.conditional and label is None:
        given = lambda c: iwae(key, state, x, cfg, num_samples, jnp.full(x.shape[0], c))
        bounds = jax.lax.map(given, jnp.arange(cfg.num_classes))
        return jax.nn.logsumexp(bounds, 0) - jnp.log(cfg.num_classes)
    data_key, latent_key = jax.random.split(key)
    x, labels = likelihoods.targets(data_key, x, cfg), _one_hot(label, cfg)
    posterior = _posterior(state.params, x, labels, cfg)
    prior = posteriors.prior(posterior)

    def propose(key):
        z = posterior.sample(key)
        return z, posterior.log_prob(z)

    def log_joint(z):
        return _likelihood(state.params, z, labels, cfg).log_prob(x) + prior.log_prob(z)

    return distributions.importance_weighted_bound(latent_key, propose, log_joint, num_samples)


def encode(state: State, x: Array, cfg: Config, label: Array | None = None) -> Array:
    """Posterior mean E_q[z | x] of data x (B, *shape), (B, num_latents); categorical: the probabilities.

    `label` (B,) is needed if conditional, here and below.
    """
    return _posterior(state.params, x, _one_hot(label, cfg), cfg).expectation()


def decode(state: State, z: Array, cfg: Config, label: Array | None = None) -> Array:
    """E[x | z] in the space of the data, (B, *shape); z as `encode` gives it."""
    return _likelihood(state.params, z, _one_hot(label, cfg, len(z)), cfg).mean()


def to_codes(state: State, x: Array, cfg: Config) -> Array:
    """Real-valued codes of data x (B, *shape), (B, num_latents), the posterior means."""
    return encode(state, x, cfg)


def from_codes(state: State, z: Array, cfg: Config) -> Array:
    """Data of codes as `to_codes` gives them, (B, *shape)."""
    return decode(state, z, cfg)


def reconstruct(state: State, x: Array, cfg: Config, label: Array | None = None) -> Array:
    """x decoded from its posterior mean, (B, *shape)."""
    return decode(state, encode(state, x, cfg, label), cfg, label)


def _one_hot(label: Array | int | None, cfg: Config, n: int | None = None) -> tuple[Array, ...]:
    """What the networks are given beside their input: nothing, or one-hot labels (B, num_classes)."""
    if not cfg.conditional:
        return ()
    if label is None:
        raise ValueError("this VAE is conditional: give the label of every example")
    label = jnp.asarray(label)
    return (jax.nn.one_hot(label if n is None else jnp.broadcast_to(label, (n,)), cfg.num_classes),)


def _prior(n: int, cfg: Config) -> posteriors.Posterior:
    zeros = jnp.zeros((n, cfg.num_latents))
    if cfg.posterior == "categorical":
        return posteriors.Categorical(jnp.zeros((n, cfg.num_latents, cfg.num_categories)))
    return posteriors.FROM_ENCODER[cfg.posterior]((zeros, zeros))


def _posterior(params: Any, x: Array, label: tuple[Array, ...], cfg: Config) -> posteriors.Posterior:
    if cfg.likelihood == "bernoulli":
        x = (x + 1) / 2  # black as 0: a large constant input slows the first layer down by nats
    output = _networks(cfg)[0].apply({"params": params["encoder"]}, x, *label)
    return posteriors.FROM_ENCODER[cfg.posterior](output)


def _relaxed_draw(key: Array, posterior: posteriors.Posterior, step: Array | int, cfg: Config) -> Array:
    """A draw that a gradient passes through, of categorical latents at the temperature of the step."""
    if isinstance(posterior, posteriors.Categorical):
        return posterior.relaxed(key, temperature(step, cfg), cfg.straight_through)
    return posterior.sample(key)


def _divergence(posterior: Any, rows: Any, z: Array, cfg: Config) -> Array:
    if cfg.divergence == "kl":
        return posterior.kl()
    if cfg.divergence == "sampled_kl":
        return rows.log_prob(z) - posteriors.prior(rows).log_prob(z)
    # Of log-normals too: like a KL, it does not change under the exponential that both sides share.
    dual = cfg.divergence == "dual_geometric_js"
    q = posterior.mean, posterior.log_variance
    return distributions.geometric_js_normal(*q, alpha=cfg.skew, dual=dual)


def _likelihood(params: Any, z: Array, label: tuple[Array, ...], cfg: Config) -> likelihoods.Likelihood:
    output = jnp.float32(_networks(cfg)[1].apply({"params": params["decoder"]}, z, *label))
    if cfg.likelihood == "bernoulli":
        return likelihoods.Bernoulli(output)
    if cfg.likelihood == "logistic_mixture":
        return likelihoods.LogisticMixture(output, cfg.shape[-1])
    if cfg.noise == "predicted":
        mean, log_variance = jnp.split(output, 2, -1)
        return likelihoods.Gaussian(mean, jnp.clip(log_variance + 2 * math.log(cfg.noise_std), -10.0, 10.0))
    log_std = params["log_noise_std"] if cfg.noise == "learned" else math.log(cfg.noise_std)
    return likelihoods.Gaussian(output, jnp.float32(2 * log_std))


def _networks(cfg: Config) -> tuple[nn.Module, nn.Module]:
    encoder, decoder = (ConvEncoder, ConvDecoder) if cfg.network == "conv" else (DenseEncoder, DenseDecoder)
    return cfg.encoder or encoder(cfg), cfg.decoder or decoder(cfg)


def _check(cfg: Config) -> None:
    if cfg.conditional and not cfg.num_classes:
        raise ValueError("a conditional VAE needs labels: this data set has none, or num_classes is not set")
    if cfg.likelihood == "logistic_mixture" and (len(cfg.shape) != 3 or cfg.shape[2] not in (1, 3)):
        raise ValueError(f"logistic_mixture is for images of 1 or 3 channels, got {cfg.shape}: try gaussian")
    if cfg.posterior == "categorical" and (cfg.objective != "elbo" or cfg.divergence != "kl"):
        raise ValueError(
            "relaxed categorical latents have no density here: keep objective elbo, divergence kl"
        )
    if cfg.objective != "elbo" and (cfg.beta != 1 or cfg.divergence != "kl"):
        raise ValueError("an importance-weighted objective has no divergence to replace or weigh: use elbo")
    if cfg.num_backward_samples and cfg.objective != "iwae":
        raise ValueError("num_backward_samples is for objective iwae")
    if cfg.network == "conv" and (cfg.encoder is None or cfg.decoder is None):
        networks.check_shape(cfg)
