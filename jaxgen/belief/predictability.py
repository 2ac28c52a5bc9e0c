"""Predictability minimisation (Schmidhuber 1992): codes whose units are independent.

An encoder gives each example a code y of m units in (0, 1). For each unit a predictor P_i guesses it from the
others, and the two play a game on

    V = E sum_i (P_i(y_without_i) - y_i)^2:

predictors lower V, and the encoder raises it while a decoder keeps the information. At best P_i is the mean
of y_i given the others, so V is what they leave of its variance. It is largest where no unit tells anything
about another, and at m / 4 every unit is a fair coin. It is the first adversarial game between networks.

With independent units the code has a density, the product of those of the units. `sample` draws bits by the
mean activities of the latest steps and decodes them.

Departs from the paper: the decoder and the encoder's other term come from one reconstruction error; both
players use Adam.
"""

import dataclasses
import math
from typing import Annotated, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxgen import distributions, keys, values
from jaxgen.arguments import checked
from jaxgen.autoencoder.networks import ConvDecoder, ConvEncoder, DenseDecoder, DenseEncoder, with_first_bias
from jaxgen.fields import Decay, NonNegativeFloat, PositiveInt, Range
from jaxgen.nn import variables
from jaxgen.types import Batch, Metrics, observed


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(values.Value):
    """Hyperparameters of predictability minimisation."""

    shape: tuple[PositiveInt, ...] = (8, 8, 1)
    """Shape of one example."""
    num_units: Annotated[int, Range(least=2)] = 16
    """Units of the code, two or more."""
    encoder: DenseEncoder | ConvEncoder | nn.Module = DenseEncoder()
    """Network that takes x (B, *shape) and gives logits of the units (B, num_units)."""
    decoder: DenseDecoder | ConvDecoder | nn.Module = DenseDecoder()
    """Network that takes codes (B, num_units) and gives data (B, *shape)."""
    predictor_width: PositiveInt = 64
    """Units of the one hidden layer of each predictor."""
    weight: NonNegativeFloat = 1.0
    """Weight of unpredictability beside the squared error of a reconstruction, summed over its entries."""
    steps_per_step: PositiveInt = 3
    """Steps of the predictors between two of the encoder."""
    decay: Decay = 0.99
    """Decay of the mean activities of the units, from one step to the next."""
    optimizer: values.Optimizer = values.Adam(1e-3)
    """How the encoder and the decoder follow their gradient."""
    predictor_optimizer: values.Optimizer = values.Adam(1e-3)
    """How the predictors follow theirs."""


class Predictors(NamedTuple):
    """One network for each unit, with a hidden layer of tanh units and a logit as output."""

    weight: Array  # (m, m, W), of which a unit's own is not used
    bias: Array  # (m, W)
    output: Array  # (m, W)
    constant: Array  # (m,)


class State(NamedTuple):
    """What training changes."""

    step: Array
    key: Array
    params: Any
    predictors: Predictors
    opt_state: Any
    predictor_opt_state: Any
    activity: Array  # (m,)


@checked
def init(key: Array, cfg: Config, batch: Batch | None = None) -> State:
    """A fresh state; `batch`, if given, sets the output bias of our decoders to the batch's mean."""
    encoder_key, decoder_key, one_key, two_key, step_key = keys.named(
        key, "encoder", "decoder", "predictors", "outputs", "steps"
    )
    params = {
        "encoder": variables.init(_encoder(cfg), encoder_key, jnp.zeros((1, *cfg.shape))),
        "decoder": variables.init(_decoder(cfg), decoder_key, jnp.zeros((1, cfg.num_units))),
    }
    if batch is not None:
        params["decoder"] = with_first_bias(params["decoder"], observed(batch), lambda mean: mean)
    m, width = cfg.num_units, cfg.predictor_width
    predictors = Predictors(
        jax.random.normal(one_key, (m, m, width)) / math.sqrt(m),
        jnp.zeros((m, width)),
        jax.random.normal(two_key, (m, width)) / math.sqrt(width),
        jnp.zeros(m),
    )
    return State(
        jnp.zeros((), jnp.int32),
        step_key,
        params,
        predictors,
        values.gradient_transformation(cfg.optimizer).init(params),
        values.gradient_transformation(cfg.predictor_optimizer).init(predictors),
        jnp.full(m, 0.5, jnp.float32),
    )


def predicted(predictors: Predictors, y: Array) -> Array:
    """What each unit of codes y (B, m) is by the others, (B, m)."""
    weight = predictors.weight * (1 - jnp.eye(y.shape[-1]))[:, :, None]
    hidden = jnp.tanh(jnp.einsum("bj,ijw->biw", 2 * y - 1, weight) + predictors.bias)
    return jax.nn.sigmoid((hidden * predictors.output).sum(-1) + predictors.constant)


def predictor_loss(predictors: Predictors, y: Array) -> Array:
    """V at codes y (B, m): the squared error of all predictors, ()."""
    return ((predicted(predictors, y) - y) ** 2).sum(-1).mean()


@checked
def loss(
    params: Any, batch: Batch, key: Array, cfg: Config, predictors: Predictors | None = None
) -> tuple[Array, Metrics]:
    """What encoder and decoder lower: squared errors of an example's reconstruction, minus the weighted V.

    Without predictors V is what the mean of the batch leaves, as if units were guessed from nothing.
    """
    value, (metrics, _) = _objective(params, batch, key, cfg, predictors)
    return value, metrics


@checked
def train_step(state: State, batch: Batch, cfg: Config) -> tuple[State, Metrics]:
    """`steps_per_step` steps of the predictors and one of encoder and decoder on a batch, (B, *shape)."""
    key = jax.random.fold_in(state.key, state.step)
    y, _ = _units(state.params, observed(batch), key, cfg)
    optimizer = values.gradient_transformation(cfg.predictor_optimizer, cfg.steps_per_step)

    def follow(_, carry):
        predictors, opt_state = carry
        grads = jax.grad(predictor_loss)(predictors, y)
        updates, opt_state = optimizer.update(grads, opt_state, predictors)
        return optax.apply_updates(predictors, updates), opt_state

    predictors, predictor_opt_state = jax.lax.fori_loop(
        0, cfg.steps_per_step, follow, (state.predictors, state.predictor_opt_state)
    )
    grads, (metrics, after) = jax.grad(_objective, has_aux=True)(state.params, batch, key, cfg, predictors)
    updates, opt_state = values.gradient_transformation(cfg.optimizer).update(
        grads, state.opt_state, state.params
    )
    params = variables.with_stats(optax.apply_updates(state.params, updates), after)
    decay = jnp.minimum(cfg.decay, state.step / (state.step + 1))
    activity = decay * state.activity + (1 - decay) * y.mean(0)
    return (
        State(state.step + 1, state.key, params, predictors, opt_state, predictor_opt_state, activity),
        metrics,
    )


@checked
def sample(key: Array, state: State, n: int, cfg: Config) -> Array:
    """n decoded draws of independent bits with the latest mean activities of the units, (n, *shape)."""
    mean = jnp.broadcast_to(state.activity, (n, cfg.num_units))
    return decode(state, distributions.bernoulli(key, mean).astype(jnp.float32), cfg)


@checked
def encode(state: State, x: Array, cfg: Config) -> Array:
    """The units of the code of x (B, *shape), in (0, 1), (B, num_units)."""
    return _encode(state.params, x, cfg)


@checked
def decode(state: State, z: Array, cfg: Config) -> Array:
    """Data of codes z (B, num_units), (B, *shape)."""
    return _decode(state.params, z, cfg)


@checked
def reconstruct(state: State, x: Array, cfg: Config) -> Array:
    """x encoded and decoded, (B, *shape)."""
    return decode(state, encode(state, x, cfg), cfg)


def mutual_information(y: Array) -> Array:
    """Mutual information of each two units of codes y (N, m) cut at 1/2, (m, m) nats; on the diagonal the
    entropies of the units.

    It is that of the frequencies, which among N examples are about 1 / (2 N) above the truth.
    """
    on = (y > 0.5).astype(jnp.float32)
    both = on.T @ on / len(y)
    mean = on.mean(0)
    joint = jnp.stack([both, mean[:, None] - both, mean - both, 1 - mean[:, None] - mean + both])
    one = jnp.stack([mean, mean, 1 - mean, 1 - mean])[:, :, None]
    two = jnp.stack([mean, 1 - mean, mean, 1 - mean])[:, None, :]
    seen = (joint > 0) & (one * two > 0)
    ratio = jnp.where(seen, joint, 1.0) / jnp.where(seen, one * two, 1.0)
    return jnp.where(seen, joint * jnp.log(ratio), 0.0).sum(0)


def _objective(
    params: Any, batch: Batch, key: Array, cfg: Config, predictors: Predictors | None
) -> tuple[Array, tuple[Metrics, dict[str, Any]]]:
    """The loss, its metrics, and the networks with the statistics that they leave."""
    x = observed(batch)
    y, encoder = _units(params, x, key, cfg)
    output, decoder = variables.train(_decoder(cfg), params["decoder"], keys.named(key, "decoder"), y)
    error = distributions.sum_per_example((jnp.float32(output) - x) ** 2).mean()
    if predictors is None:
        unpredictability = ((y - y.mean(0)) ** 2).sum(-1).mean()
    else:
        unpredictability = predictor_loss(predictors, y)
    value = error - cfg.weight * unpredictability
    metrics = {"loss": value, "reconstruction": error, "unpredictability": unpredictability}
    return value, (metrics, {"encoder": encoder, "decoder": decoder})


def _units(params: Any, x: Array, key: Array, cfg: Config) -> tuple[Array, Any]:
    """The units of the code in training, and the encoder with the statistics that it leaves."""
    logits, encoder = variables.train(_encoder(cfg), params["encoder"], keys.named(key, "encoder"), x)
    return jax.nn.sigmoid(jnp.float32(logits)), encoder


def _encode(params: Any, x: Array, cfg: Config) -> Array:
    return jax.nn.sigmoid(jnp.float32(variables.apply(_encoder(cfg), params["encoder"], x)))


def _decode(params: Any, z: Array, cfg: Config) -> Array:
    return jnp.float32(variables.apply(_decoder(cfg), params["decoder"], z))


def _encoder(cfg: Config) -> nn.Module:
    return values.filled(cfg.encoder, num_outputs=cfg.num_units)


def _decoder(cfg: Config) -> nn.Module:
    return values.filled(cfg.decoder, shape=cfg.shape)
