"""EDM: diffusion in terms of noise levels alone (Karras, Aittala, Aila & Laine 2022).

Noise of level s is added to data that are not scaled, x = y + s n, and a denoiser estimates y. It is a
network F between preconditioners that keep its input and its target at unit variance for every s,

    D(x; s) = c_skip x + c_out F(c_in x; c_noise),     loss = E |D(y + s n; s) - y|^2 / c_out^2,
    c_skip = d^2 / (s^2 + d^2),  c_out = s d / sqrt(s^2 + d^2),
    c_in = 1 / sqrt(s^2 + d^2),  c_noise = log(s) / 4,

with d the standard deviation of the data and log s normal. Samples follow dx/ds = (x - D) / s from the
largest level to none by Heun's method.

Departs from the paper: float32 throughout; 1000 c_noise is embedded, by sinusoids made for times to 1000; no
augmentation of the training pictures.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxgen import distributions, keys, values
from jaxgen.arguments import checked
from jaxgen.diffusion import networks, samplers, scan, schedules
from jaxgen.diffusion.guidance import drawn, dropped, guided
from jaxgen.diffusion.level_samplers import Ancestral, Heun
from jaxgen.diffusion.processes import spread
from jaxgen.fields import FiniteFloat, Fraction, NonNegativeFloat, PositiveFloat
from jaxgen.labels import Label
from jaxgen.nn import variables
from jaxgen.types import Batch, Metrics, observed

DATA_STD = 0.5
"""Standard deviation of the paper's pictures, for data that nobody has measured."""

MEASURED = 2000
"""Examples of which `from_data` takes the standard deviation, at most."""

SCORE_LEVELS = (0.1, 0.2, 0.4, 0.8)
"""Noise levels, in units of the data's standard deviation, at which `score` looks."""


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(networks.Config):
    """Hyperparameters of EDM, beside those of `networks`."""

    label_dropout: Fraction = 0.1
    """Share of training examples whose label is withheld from a conditional model."""
    data_std: PositiveFloat | None = None
    """Standard deviation of the data; by default `from_data` measures it, and 0.5 is taken until it has."""
    log_level_mean: FiniteFloat = -1.2
    """Mean of the logarithm of the training noise level."""
    log_level_std: NonNegativeFloat = 1.2
    """Standard deviation of the logarithm of the training noise level."""
    smallest_level: PositiveFloat = 0.002
    """Last noise level of the sampler before none."""
    largest_level: PositiveFloat = 80.0
    """First noise level of the sampler."""
    exponent: PositiveFloat = 7.0
    """Levels of the sampler are equal steps of their root of this order: the higher, the more small ones."""
    sampler: Heun | Ancestral | values.Value = Heun()
    """How `sample` draws where it is not told."""


class State(NamedTuple):
    """What training changes."""

    step: Array
    key: Array
    params: Any
    opt_state: Any
    ema: Any  # averaged parameters


def from_data(dataset: Any, cfg: Config) -> Config:
    """The config with the standard deviation of a data set, where it has none.

    That is of at most MEASURED examples, spread over the data set, to three digits, so that machines which
    sum in another order agree.
    """
    if cfg.data_std is not None:
        return cfg
    rows = np.unique(np.linspace(0, len(dataset) - 1, MEASURED).astype(int))
    std = float(np.std(np.asarray(observed(dataset[rows]), np.float64)))
    return dataclasses.replace(cfg, data_std=float(f"{std:.3g}"))


@checked
def init(key: Array, cfg: Config, batch: Batch | None = None) -> State:
    """A fresh state; `batch` is not used. Raises ValueError for a shape the network cannot take."""
    del batch
    params_key, step_key = keys.named(key, "params", "steps")
    params = networks.init(params_key, cfg)
    ema = jax.tree.map(jnp.copy, params)
    opt_state = values.gradient_transformation(cfg.optimizer).init(params)
    return State(jnp.zeros((), jnp.int32), step_key, params, opt_state, ema)


def preconditioners(level: Array, cfg: Config) -> tuple[Array, Array, Array, Array]:
    """c_skip, c_out, c_in and c_noise of noise levels (B,), each (B,)."""
    std = data_std(cfg)
    total = jnp.sqrt(level**2 + std**2)
    return (std / total) ** 2, level * std / total, 1 / total, 0.25 * jnp.log(level)


def data_std(cfg: Any) -> float:
    """The standard deviation of the data that a config goes by."""
    return DATA_STD if cfg.data_std is None else cfg.data_std


@checked
def loss(params: Any, batch: Batch, key: Array, cfg: Config) -> tuple[Array, Metrics]:
    """Mean over the batch of the weighted squared error a dimension, which is 1 for F = 0 at data of std
    `data_std`; `batch["label"]` (B,) is needed if conditional.
    """
    value, (metrics, _) = _objective(params, batch, key, cfg)
    return value, metrics


@checked
def train_step(state: State, batch: Batch, cfg: Config) -> tuple[State, Metrics]:
    """One step on `batch["image"]` or `batch["x"]`, (B, *shape), `batch["label"]` (B,) if conditional."""
    key = jax.random.fold_in(state.key, state.step)
    grads, (metrics, after) = jax.grad(_objective, has_aux=True)(state.params, batch, key, cfg)
    optimizer = values.gradient_transformation(cfg.optimizer)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = variables.with_stats(optax.apply_updates(state.params, updates), after)
    ema = cfg.average(state.ema, params, state.step)
    metrics = {**metrics, "grad_norm": optax.tree.norm(grads)}
    return State(state.step + 1, state.key, params, opt_state, ema), metrics


@checked
def sample(
    key: Array,
    state: State,
    n: int,
    cfg: Config,
    label: Label = None,
    *,
    sampler: Any = None,
    steps: int | None = None,
    guidance: Array | float | None = None,
) -> Array:
    """n draws by the averaged parameters, (n, *shape).

    If conditional, of the `label` given, one for all or (n,), else of labels drawn uniformly.

    Args:
        sampler: one of those of `level_samplers`, such as `Heun(18, churn=10.0)`; by default the config's.
        steps: noise levels, in place of the sampler's.
        guidance: weight of the label, see `jaxgen.diffusion.guidance`; None for the plain model.

    Raises ValueError for a label or guidance of an unconditional model, and for a label of no class.
    """
    return _path(key, state, n, cfg, label, sampler, steps, guidance).end()


def trajectory(
    key: Array, state: State, n: int, cfg: Config, label: Label = None, *, frames: int = 10, **options: Any
) -> Array:
    """States on the way from noise to the draws that `sample` returns, which are the last of them.

    (frames, n, *shape). The options are those of `sample`. Raises ValueError as `sample` does, and for more
    frames than steps.
    """
    return _path(key, state, n, cfg, label, **options).frames(frames)


def denoiser(
    state: State, cfg: Config, label: Label = None, guidance: Array | float | None = None
) -> samplers.Model:
    """The averaged D(x, level) as `samplers` take it, labelled and guided.

    Raises ValueError for a label or guidance of an unconditional model, and for a label of no class.
    """
    denoise = lambda x, level, label: _denoise(state.ema, x, level, label, cfg)[0]
    return guided(denoise, label, guidance, cfg)


@checked
def score(state: State, x: Array, cfg: Config) -> Array:
    """How well noise is told from x: minus the weighted squared error over several levels, (B,).

    Higher is more typical. All examples get the same noise, so the ranking has no randomness of its own.
    """
    model = denoiser(state, cfg)

    def error(level):
        noise = jnp.broadcast_to(jax.random.normal(jax.random.key(0), x.shape[1:]), x.shape)
        levels = jnp.full(x.shape[0], level)
        wrong = model(x + level * noise, levels) - x
        mse = distributions.sum_per_example(wrong**2) / math.prod(x.shape[1:])
        return mse / preconditioners(levels, cfg)[1] ** 2

    return -jax.lax.map(error, data_std(cfg) * jnp.asarray(SCORE_LEVELS)).mean(0)


def _objective(params: Any, batch: Batch, key: Array, cfg: Config) -> tuple[Array, tuple[Metrics, Any]]:
    """The loss, its metrics, and the variables of the network afterwards."""
    level_key, noise_key, label_key, dropout_key = keys.named(key, "level", "noise", "label", "dropout")
    y = observed(batch)
    count = y.shape[0]
    level = jnp.exp(cfg.log_level_mean + cfg.log_level_std * jax.random.normal(level_key, (count,)))
    x = y + spread(level, y) * jax.random.normal(noise_key, y.shape)
    denoised, after = _denoise(params, x, level, dropped(label_key, batch, cfg), cfg, dropout_key)
    error = denoised - y
    mse = distributions.sum_per_example(error**2) / y[0].size
    value = (mse / preconditioners(level, cfg)[1] ** 2).mean()
    return value, ({"loss": value, "mse": mse.mean()}, after)


def _path(key, state, n, cfg, label, sampler=None, steps=None, guidance=None):
    start_key, noise_key, label_key = keys.named(key, "start", "noise", "label")
    sampler = scan.with_steps(cfg.sampler if sampler is None else sampler, steps)
    model = denoiser(state, cfg, drawn(label_key, label, n, cfg), guidance)
    levels = schedules.karras(sampler.steps, cfg.smallest_level, cfg.largest_level, cfg.exponent)
    x = levels[0] * jax.random.normal(start_key, (n, *cfg.shape))
    return sampler(model, x, levels, noise_key)


def _denoise(params, x, level, label, cfg, dropout_key=None):
    """D(x, level), and the network's variables afterwards."""
    skip, out, into, noise = preconditioners(level, cfg)
    output, after = networks.apply(params, spread(into, x) * x, 1000 * noise, label, cfg, dropout_key)
    return spread(skip, x) * x + spread(out, x) * output, after
