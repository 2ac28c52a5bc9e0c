"""Variational autoencoder (Kingma & Welling 2014; Rezende, Mohamed & Wierstra 2014).

A latent z ~ p(z) is decoded into the parameters of p(x | z); an encoder proposes q(z | x), by default N(m(x),
diag s(x)^2) where the prior is N(0, I), and both networks maximise the evidence lower bound

    log p(x) >= E_q[log p(x | z)] - beta KL(q(z | x) || p(z)),     z = m(x) + s(x) * eps,   eps ~ N(0, I),

with the KL term in closed form. beta = 1 is the VAE; any other value is the beta-VAE of Higgins et al. 2017,
and another divergence may stand for the KL (Deasy et al. 2020); whatever is maximised, `elbo` reports
beta = 1 and the KL. `iwae` gives the importance-weighted bound of Burda et al. 2016,

    log p(x) >= E[log 1/K sum_k w_k],     w_k = p(x, z_k) / q(z_k | x),     z_k ~ q(z | x),

which rises with K towards log p(x) and is how the held-out likelihood is estimated. It can be the objective
too, with the doubly reparameterised gradient of Tucker et al. 2019, in which the encoder learns through z
alone: sum_k (w_k / sum_j w_j)^2 (d log w_k / d z_k) (d z_k / d encoder). Most of K draws weigh next to
nothing: with `IWAE(backward=5)` the gradient, still unbiased, goes through a few drawn again by weight.

The latents can also be log-normal, or one-hot variables trained through the Gumbel-Softmax (Jang et al. 2017;
Maddison et al. 2017), whose bounds are of exact one-hot draws. With `conditional` everything is given the
label: p(x | z, y), q(z | x, y) (Sohn et al. 2015), and a bound without a label is one on log p(x), all labels
being equally likely.

Departs from the papers: Adam in place of AdaGrad; the log-variance of q is clipped to [-10, 10], or where
log-normal draws stay finite; under the Gaussian likelihood the levels of pixels are dequantised in
training with uniform noise one level wide, so that the density is bounded; the temperature falls at every
step.
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxgen import distributions, keys, labels, likelihoods, values
from jaxgen.arguments import checked
from jaxgen.autoencoder import objectives, posteriors
from jaxgen.autoencoder.flows import Flow
from jaxgen.autoencoder.networks import ConvDecoder, ConvEncoder, DenseDecoder, DenseEncoder, with_first_bias
from jaxgen.autoencoder.objectives import ELBO, IWAE, DReG, Objective
from jaxgen.autoencoder.posteriors import Categorical, LogNormal, Posterior
from jaxgen.fields import NonNegativeInt, PositiveInt
from jaxgen.labels import Label
from jaxgen.likelihoods import Bernoulli, Likelihood, LogisticMixture
from jaxgen.nn import variables
from jaxgen.types import Batch, Metrics, observed


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(values.Value):
    """Hyperparameters of the variational autoencoder."""

    shape: tuple[PositiveInt, ...] = (8, 8, 1)
    """Shape of one example."""
    num_classes: NonNegativeInt = 0
    """Number of labels of the data; 0 if they have none."""
    levels: NonNegativeInt = 256
    """Values that a pixel of the data has, spread evenly over [-1, 1]; 0 for real numbers."""
    num_latents: PositiveInt = 16
    """Dimensions of z, or its one-hot variables."""
    encoder: DenseEncoder | ConvEncoder | nn.Module = DenseEncoder()
    """Network of q(z | x): takes x (B, *shape), bits as 0 and 1, and one-hot labels if conditional, and gives
    what the posterior reads, mean and log-variance, as a pair (B, num_latents) or side by side, or logits."""
    decoder: DenseDecoder | ConvDecoder | nn.Module = DenseDecoder()
    """Network of p(x | z): takes z (B, num_latents), or one-hot (B, num_latents, num_categories), and one-hot
    labels if conditional, and gives (B, *shape) with the likelihood's parameters side by side at the end."""
    likelihood: Bernoulli | likelihoods.Gaussian | LogisticMixture | Likelihood | None = None
    """p(x | z), of bits drawn from the grey values, of real numbers, or of the levels of pixels; None is the
    first for pictures, (H, W, C), and the second with a learned standard deviation for all other data."""
    posterior: posteriors.Gaussian | LogNormal | Categorical | Flow | Posterior = posteriors.Gaussian()
    """q(z | x) and p(z), normal, positive with a normal logarithm, one-hot with a uniform prior, or normal
    and moved by flows."""
    objective: ELBO | IWAE | DReG | Objective = ELBO()
    """The bound to maximise, and the draws of z that it takes."""
    conditional: bool = False
    """Give the label to both networks."""
    optimizer: values.Optimizer = values.Adam(1e-3)
    """Optimizer of both networks."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype of the networks; parameters, likelihoods and the KL stay float32."""


class State(NamedTuple):
    """What training changes. `params` has the networks, and what other parts learn."""

    step: Array
    key: Array
    params: Any
    opt_state: Any


def measure(cfg: Config) -> str:
    """What `elbo` and `iwae` are of: "bits", "density", "levels", or what a likelihood of one's own says."""
    return _likelihood(cfg).measure


@checked
def init(key: Array, cfg: Config, batch: Batch | None = None) -> State:
    """A fresh state; `batch`, if given, sets the output bias of our decoders to the batch's mean.

    Raises ValueError for a shape that the networks or the likelihood cannot take, and for parts that do not
    go together.
    """
    labels.check_conditional(cfg)
    likelihood = _likelihood(cfg)
    likelihood.check(cfg.shape)
    cfg.objective.check(cfg.posterior)
    encoder_key, decoder_key, step_key = keys.named(key, "encoder", "decoder", "steps")
    label = _one_hot(0 if cfg.conditional else None, 1, cfg)
    own = cfg.posterior.init(keys.named(key, "posterior"), cfg.num_latents)
    z = cfg.posterior.bound(own).mean(cfg.posterior.prior(1, cfg.num_latents))
    params = {
        **({"posterior": own} if own else {}),  # none for most
        "encoder": variables.init(_encoder(cfg), encoder_key, jnp.zeros((1, *cfg.shape)), *label),
        "decoder": variables.init(_decoder(cfg), decoder_key, z, *label),
        "likelihood": likelihood.init(),
    }
    if batch is not None:
        params["decoder"] = with_first_bias(params["decoder"], observed(batch), likelihood.first_bias)
    opt_state = values.gradient_transformation(cfg.optimizer).init(params)
    return State(jnp.zeros((), jnp.int32), step_key, params, opt_state)


@checked
def loss(params: Any, batch: Batch, key: Array, cfg: Config, step: Array | int = 0) -> tuple[Array, Metrics]:
    """Mean over the batch of what is minimised, by default -E_q[log p(x | z)] + KL, in nats per example.

    `batch["label"]` (B,) is needed if conditional. `step` sets the temperature of categorical latents; as
    their draws are relaxed, the value beside the loss is then called "relaxed_elbo": it bounds nothing.
    """
    value, (metrics, _) = _objective(params, batch, key, cfg, step)
    return value, metrics


@checked
def train_step(state: State, batch: Batch, cfg: Config) -> tuple[State, Metrics]:
    """One step on `batch["image"]` or `batch["x"]`, (B, *shape), `batch["label"]` (B,) if conditional."""
    key = jax.random.fold_in(state.key, state.step)
    grads, (metrics, after) = jax.grad(_objective, has_aux=True)(state.params, batch, key, cfg, state.step)
    optimizer = values.gradient_transformation(cfg.optimizer)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = variables.with_stats(optax.apply_updates(state.params, updates), after)
    return state._replace(step=state.step + 1, params=params, opt_state=opt_state), metrics


@checked
def sample(key: Array, state: State, n: int, cfg: Config, label: Label = None, mean: bool = True) -> Array:
    """n decoded draws of the prior, (n, *shape): means of p(x | z), or with `mean=False` draws from it.

    If conditional, of the `label` given, one for all or (n,), else of labels drawn uniformly. Raises
    ValueError for a label of an unconditional model and for a label of no class, here and below.
    """
    latent_key, noise_key, label_key = keys.named(key, "latents", "noise", "label")
    label = labels.drawn(label_key, label, n, labels.count(cfg))
    z = _latents(state.params, cfg).prior_sample(latent_key, n, cfg.num_latents)
    if mean:
        return decode(state, z, cfg, label)
    output = _output(state.params, z, _one_hot(label, n, cfg), cfg)
    return _likelihood(cfg).sample(noise_key, state.params["likelihood"], output)


@checked
def elbo(key: Array, state: State, x: Array, cfg: Config, label: Label = None) -> Array:
    """E_q[log p(x | z)] - KL with one draw of z, a lower bound on log p(x) in nats, (B,).

    See `measure`: bits are drawn from x here, and a density is at x as it stands, so that levels are to be
    dequantised first. If conditional the bound is on log p(x | label), or without a label on log p(x), as
    `iwae` gives it with one draw.
    """
    if cfg.conditional and label is None:
        return iwae(key, state, x, cfg, num_samples=1)
    data_key, latent_key = keys.named(key, "data", "latents")
    x, hot = _likelihood(cfg).targets(data_key, x), _one_hot(label, len(x), cfg)
    posterior, q = _latents(state.params, cfg), _posterior(state.params, x, hot, cfg)
    z, log_q = posterior.proposed(latent_key, q)
    return _log_likelihood(state.params, z, x, hot, cfg) - posterior.kl_at(q, z, log_q)


@checked
def iwae(
    key: Array, state: State, x: Array, cfg: Config, num_samples: int = 1000, label: Label = None
) -> Array:
    """Importance-weighted lower bound on log p(x) with `num_samples` draws of z, in nats, (B,).

    The draws are streamed one at a time through a running log-sum-exp, so memory does not grow with their
    number. What it is of is as in `elbo`. If conditional the bound is on log p(x | label), or without a label
    on log p(x): then every class has its own draws, and p(x) is the mean over classes.
    """
    data_key, latent_key = keys.named(key, "data", "latents")
    x = _likelihood(cfg).targets(data_key, x)
    if not cfg.conditional or label is not None:
        return _iwae(latent_key, state, x, cfg, num_samples, label)

    def given(c):
        own_key = jax.random.fold_in(latent_key, c)
        return _iwae(own_key, state, x, cfg, num_samples, jnp.full(x.shape[0], c))

    bounds = jax.lax.map(given, jnp.arange(cfg.num_classes))
    return jax.nn.logsumexp(bounds, 0) - jnp.log(cfg.num_classes)


@checked
def encode(state: State, x: Array, cfg: Config, label: Label = None) -> Array:
    """Posterior mean E_q[z | x] of data x (B, *shape), (B, num_latents).

    Of categorical latents it is the probabilities, of flows what the mean before them becomes.

    `label` (B,) is needed if conditional, here and below.
    """
    q = _posterior(state.params, x, _one_hot(label, len(x), cfg), cfg)
    return _latents(state.params, cfg).mean(q)


@checked
def decode(state: State, z: Array, cfg: Config, label: Label = None) -> Array:
    """E[x | z] in the space of the data, (B, *shape); z as `encode` gives it."""
    output = _output(state.params, z, _one_hot(label, len(z), cfg), cfg)
    return _likelihood(cfg).mean(state.params["likelihood"], output)


@checked
def reconstruct(state: State, x: Array, cfg: Config, label: Label = None) -> Array:
    """x decoded from its posterior mean, (B, *shape)."""
    return decode(state, encode(state, x, cfg, label), cfg, label)


def to_codes(state: State, x: Array, cfg: Config) -> Array:
    """Real-valued codes of data x (B, *shape): posterior means, (B, num_latents)."""
    return encode(state, x, cfg)


def from_codes(state: State, codes: Array, cfg: Config) -> Array:
    """Data of codes as `to_codes` gives them, (B, *shape)."""
    return decode(state, codes, cfg)


def _objective(
    params: Any, batch: Batch, key: Array, cfg: Config, step: Array | int
) -> tuple[Array, tuple[Metrics, Any]]:
    """The loss, its metrics, and the parameters with the statistics that the networks leave."""
    data_key, latent_key, objective_key = keys.named(key, "data", "latents", "objective")
    encoder_key, decoder_key = keys.named(key, "encoder", "decoder")
    x = _likelihood(cfg).training_targets(data_key, observed(batch))
    label = _one_hot(labels.of_batch(batch, labels.count(cfg)), len(x), cfg)
    inputs = _likelihood(cfg).inputs(x)
    output, encoder = variables.train(_encoder(cfg), params["encoder"], encoder_key, inputs, *label)
    posterior, q = _latents(params, cfg), cfg.posterior.read(output, cfg.num_latents)
    repeated = jax.tree.map(lambda a: a.repeat(cfg.objective.num_samples, 0), (q, x, label))
    rows = objectives.Rows(*posterior.proposed(latent_key, repeated[0], step), *repeated)

    def decoded(params, z, label):
        return variables.train(_decoder(cfg), params["decoder"], decoder_key, z, *label)

    def log_likelihood(params, z, x, label):
        return _likelihood(cfg).log_prob(params["likelihood"], jnp.float32(decoded(params, z, label)[0]), x)

    value, metrics = cfg.objective(objective_key, params, log_likelihood, posterior, q, rows)
    decoder = params["decoder"]
    if isinstance(decoder, variables.Variables):  # what the objective has made of it is not seen here
        _, decoder = decoded(params, rows.z, rows.label)
    return value, (metrics, {**params, "encoder": encoder, "decoder": decoder})


def _iwae(key: Array, state: State, x: Array, cfg: Config, num_samples: int, label: Label) -> Array:
    """The bound of `iwae` for targets x, (B,)."""
    hot = _one_hot(label, len(x), cfg)
    posterior, q = _latents(state.params, cfg), _posterior(state.params, x, hot, cfg)

    def log_joint(z):
        return _log_likelihood(state.params, z, x, hot, cfg) + posterior.prior_log_prob(z)

    propose = lambda key: posterior.proposed(key, q)
    return distributions.importance_weighted_bound(key, propose, log_joint, num_samples)


def _one_hot(label: Label, n: int, cfg: Config) -> tuple[Array, ...]:
    """What the networks are given beside their input: nothing, or one-hot labels (n, num_classes)."""
    given = labels.given(label, n, labels.count(cfg))
    return () if given is None else (jax.nn.one_hot(given, cfg.num_classes),)


def _latents(params: Any, cfg: Config) -> Posterior:
    """The kind of latents, with what it has learned."""
    return cfg.posterior.bound(params.get("posterior", {}))


def _posterior(params: Any, x: Array, label: tuple[Array, ...], cfg: Config) -> Any:
    """q(z | x) in the form that `cfg.posterior` reads it."""
    x = _likelihood(cfg).inputs(x)
    output = variables.apply(_encoder(cfg), params["encoder"], x, *label)
    return cfg.posterior.read(output, cfg.num_latents)


def _output(params: Any, z: Array, label: tuple[Array, ...], cfg: Config) -> Array:
    """The parameters of p(x | z) as the decoder gives them."""
    return jnp.float32(variables.apply(_decoder(cfg), params["decoder"], z, *label))


def _log_likelihood(params: Any, z: Array, x: Array, label: tuple[Array, ...], cfg: Config) -> Array:
    """log p(x | z) of targets, (B,)."""
    return _likelihood(cfg).log_prob(params["likelihood"], _output(params, z, label, cfg), x)


def _likelihood(cfg: Config) -> Likelihood:
    chosen = cfg.likelihood
    if chosen is None:
        chosen = Bernoulli() if len(cfg.shape) == 3 else likelihoods.Gaussian("learned", std=1.0)
    return values.filled(chosen, shape=cfg.shape, levels=cfg.levels)


def _encoder(cfg: Config) -> nn.Module:
    num_outputs = cfg.posterior.num_outputs(cfg.num_latents)
    return values.filled(cfg.encoder, num_outputs=num_outputs, dtype=cfg.dtype)


def _decoder(cfg: Config) -> nn.Module:
    shape = (*cfg.shape[:-1], _likelihood(cfg).num_outputs(cfg.shape[-1]))
    return values.filled(cfg.decoder, shape=shape, dtype=cfg.dtype)
