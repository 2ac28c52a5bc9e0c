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
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxgen import distributions
from jaxgen.diffusion import networks, samplers, schedules
from jaxgen.types import Batch, Metrics, observed

SCORE_LEVELS = (0.1, 0.2, 0.4, 0.8)
"""Noise levels, in units of the data's standard deviation, at which `score` looks."""


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(networks.Config):
    """Hyperparameters of EDM, beside those of `networks`."""

    label_dropout: float = 0.1
    """Conditional only: share of training examples whose label is withheld."""
    data_std: float = 0.5
    """Standard deviation of the data."""
    log_level_mean: float = -1.2
    """Mean of the logarithm of the training noise level."""
    log_level_std: float = 1.2
    """Standard deviation of the logarithm of the training noise level."""
    smallest_level: float = 0.002
    """Last noise level of the sampler before none."""
    largest_level: float = 80.0
    """First noise level of the sampler."""
    exponent: float = 7.0
    """Levels of the sampler are equal steps of their root of this order: the higher, the more small ones."""
    sampling_steps: int = 18
    """Noise levels of `sample` where it is not told; Heun's method calls the network twice a level."""


class State(NamedTuple):
    """What training changes."""

    step: Array
    key: Array
    params: Any
    opt_state: Any
    ema: Any  # averaged parameters


def init(key: Array, cfg: Config, batch: Batch | None = None) -> State:
    """A fresh state; `batch` is not used. Raises ValueError for a shape the network cannot take."""
    del batch
    networks.check(cfg)
    params_key, step_key = jax.random.split(key)
    label = jnp.zeros(1, jnp.int32) if cfg.conditional else None
    inputs = jnp.zeros((1, *cfg.shape)), jnp.zeros(1), label, False
    params = networks.build(cfg).init(params_key, *inputs).get("params", {})
    ema = jax.tree.map(jnp.copy, params)
    return State(jnp.zeros((), jnp.int32), step_key, params, networks.optimizer(cfg).init(params), ema)


def preconditioners(level: Array, cfg: Config) -> tuple[Array, Array, Array, Array]:
    """c_skip, c_out, c_in and c_noise of noise levels (B,), each (B,)."""
    total = jnp.sqrt(level**2 + cfg.data_std**2)
    return (cfg.data_std / total) ** 2, level * cfg.data_std / total, 1 / total, 0.25 * jnp.log(level)


def loss(params: Any, batch: Batch, key: Array, cfg: Config) -> tuple[Array, Metrics]:
    """Mean over the batch of the weighted squared error a dimension, which is 1 for F = 0 at data of std
    `data_std`; `batch["label"]` (B,) is needed if conditional.
    """
    level_key, noise_key, label_key, dropout_key = jax.random.split(key, 4)
    y = observed(batch)
    count = y.shape[0]
    level = jnp.exp(cfg.log_level_mean + cfg.log_level_std * jax.random.normal(level_key, (count,)))
    x = y + _spread(level, y) * jax.random.normal(noise_key, y.shape)
    label = networks.labels(batch.get("label"), count, cfg)
    if label is not None:
        dropped = jax.random.bernoulli(label_key, cfg.label_dropout, (count,))
        label = jnp.where(dropped, cfg.num_classes, label)
    error = _denoise(params, x, level, label, cfg, dropout_key) - y
    mse = distributions.sum_per_example(error**2) / y[0].size
    value = (mse / preconditioners(level, cfg)[1] ** 2).mean()
    return value, {"loss": value, "mse": mse.mean()}


def train_step(state: State, batch: Batch, cfg: Config) -> tuple[State, Metrics]:
    """One step on `batch["image"]` or `batch["x"]`, (B, *shape), `batch["label"]` (B,) if conditional."""
    key = jax.random.fold_in(state.key, state.step)
    grads, metrics = jax.grad(loss, has_aux=True)(state.params, batch, key, cfg)
    updates, opt_state = networks.optimizer(cfg).update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = networks.average(state.ema, params, state.step, cfg.ema_decay)
    metrics = {**metrics, "grad_norm": optax.tree.norm(grads)}
    return State(state.step + 1, state.key, params, opt_state, ema), metrics


def sample(
    key: Array,
    state: State,
    n: int,
    cfg: Config,
    label: Array | int | None = None,
    *,
    sampler: Literal["heun", "ancestral", "euler"] = "heun",
    steps: int | None = None,
    guidance: Array | float | None = None,
    churn: Array | float = 0.0,
    frames: int = 0,
) -> Any:
    """n draws by the averaged parameters, (n, *shape), over `steps` noise levels; 2 steps - 1 calls by Heun.

    If conditional, of the `label` given, one for all or (n,), else of labels drawn uniformly. `churn` adds
    noise to Heun's steps. With `frames` also as many states on the way, (frames, n, *shape).

    Raises ValueError for a label or guidance of an unconditional model, and for churn with another sampler.
    """
    start_key, noise_key, label_key = jax.random.split(key, 3)
    if cfg.conditional and label is None:
        label = jax.random.randint(label_key, (n,), 0, cfg.num_classes)
    steps = cfg.sampling_steps if steps is None else steps
    levels = schedules.karras(steps, cfg.smallest_level, cfg.largest_level, cfg.exponent)
    x = levels[0] * jax.random.normal(start_key, (n, *cfg.shape))
    model = denoiser(state, cfg, label, guidance)
    if sampler not in ("heun", "ancestral", "euler"):
        raise ValueError(f"no sampler {sampler!r}: there are heun, ancestral, euler")
    churned = isinstance(churn, jax.core.Tracer) or bool(np.any(churn))
    if churned and sampler != "heun":
        raise ValueError(f"churn belongs to heun, not to {sampler}")
    drawn = noise_key if churned or sampler == "ancestral" else None
    if sampler == "heun":
        return samplers.edm_heun(model, x, levels, churn=churn, key=drawn, frames=frames)
    eta = float(sampler == "ancestral")
    return samplers.euler_ancestral(model, x, levels, eta=eta, key=drawn, frames=frames)


def denoiser(
    state: State, cfg: Config, label: Array | int | None = None, guidance: Array | float | None = None
) -> samplers.Model:
    """The averaged D(x, level) as `samplers` take it, with guidance as in `ddpm.predictor`.

    Raises ValueError for a label or guidance of an unconditional model.
    """
    if not cfg.conditional and (guidance is not None or label is not None):
        raise ValueError("an unconditional model takes no label and cannot be guided: train with conditional")

    def model(x, level):
        labels = networks.labels(label, x.shape[0], cfg)
        if guidance is None:
            return _denoise(state.ema, x, level, labels, cfg)
        twice = lambda a: jnp.concatenate([a, a])
        both = jnp.concatenate([labels, jnp.full_like(labels, cfg.num_classes)])
        given, ignoring = jnp.split(_denoise(state.ema, twice(x), twice(level), both, cfg), 2)
        return (1 - guidance) * ignoring + guidance * given

    return model


def score(state: State, x: Array, cfg: Config) -> Array:
    """How well noise is told from x: minus the weighted squared error over several levels, (B,).

    Higher is more typical. All examples get the same noise, so the ranking has no randomness of its own.
    """
    model = denoiser(state, cfg)

    def error(level):
        noise = jnp.broadcast_to(jax.random.normal(jax.random.key(0), x.shape[1:]), x.shape)
        levels = jnp.full(x.shape[0], level)
        wrong = model(x + level * noise, levels) - x
        return distributions.sum_per_example(wrong**2) / x[0].size / preconditioners(levels, cfg)[1] ** 2

    return -jax.lax.map(error, cfg.data_std * jnp.asarray(SCORE_LEVELS)).mean(0)


def _denoise(params, x, level, label, cfg, dropout_key=None):
    skip, out, into, noise = preconditioners(level, cfg)
    rngs = None if dropout_key is None else {"dropout": dropout_key}
    inputs = _spread(into, x) * x, 1000 * noise, label, dropout_key is not None
    output = jnp.float32(networks.build(cfg).apply({"params": params}, *inputs, rngs=rngs))
    return _spread(skip, x) * x + _spread(out, x) * output


def _spread(row, x):
    return row.reshape(row.shape + (1,) * (x.ndim - row.ndim))
