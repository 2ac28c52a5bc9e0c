"""Consistency models: data from noise in one call (Song, Dhariwal, Chen & Sutskever 2023).

The probability flow of `edm` joins every noisy x to one point of the data. A consistency function maps all
points of a path to its end, which is where noise is of the smallest level e. That it leaves those as they are
is built in, and that it is the same along a path is learned, between neighbours of levels s' < s,

    f(x; s) = c_skip x + c_out F(c_in x; c_noise),     f(x; e) = x,
    c_skip = d^2 / ((s - e)^2 + d^2),  c_out = d (s - e) / sqrt(s^2 + d^2),
    loss = E w |f(x; s) - f_(x'; s')|,     |a| the pseudo-Huber norm sqrt(a^2 + c^2) - c,

with d, c_in and c_noise as in `edm` and no gradient through the target f_. Trained on data alone, the
neighbours are x = y + s n and x' = y + s' n, of one noise n. Distilled (`distil`), x' is where one Heun step
along the flow of a trained `edm` takes x. The levels grow in number with time: close ones teach the most, but
far ones what to start from.

The defaults are the recipe of Song & Dhariwal 2024: levels double in number, s is log-normal, w is one over
s - s', and f_ has the parameters being trained. The first paper trains by curriculum "root" with 1 to 150
intervals and target_decay 0.9, distils with 17 intervals throughout, both with levels and weights "uniform".

Departs from the papers: Adam, not rectified; no learned distance of pictures. The level is embedded by the
sinusoids of `edm`, but of 10 c_noise in place of 1000: neighbours agree the sooner the smoother f is in s.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxgen import distributions
from jaxgen.diffusion import edm, networks, schedules
from jaxgen.types import Batch, Metrics, observed

TRAINING = {"log_level_mean", "log_level_std", "dropout", "learning_rate", "warmup_steps", "gradient_clip"}
TRAINING |= {"ema_decay", "optimizer"}
"""Fields of the config that a student does not take from its teacher: how it is trained."""


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Hyperparameters of a consistency model."""

    shape: tuple[int, ...] = (8, 8, 1)
    """Shape of one example."""
    num_classes: int = 0
    """Conditional only: number of labels."""
    conditional: bool = False
    """Give the label to the network."""
    objective: Literal["training", "distillation"] = "training"
    """Learn from data alone, or from the flow of a teacher, which `distil` puts into the state."""
    data_std: float = 0.5
    """Standard deviation of the data."""
    smallest_level: float = 0.002
    """Noise level at which a sample is taken for data."""
    largest_level: float = 80.0
    """Noise level from which one call makes data."""
    exponent: float = 7.0
    """Levels are equal steps of their root of this order: the higher, the more small ones."""
    curriculum: Literal["doubling", "root"] = "doubling"
    """How the intervals between levels grow in number: in stages of equal length, or as the root of time."""
    first_intervals: int = 10
    """Intervals between levels at first."""
    last_intervals: int = 1280
    """Intervals between levels in the end."""
    curriculum_steps: int = 10_000
    """Steps the curriculum takes, usually all of the run."""
    levels: Literal["lognormal", "uniform"] = "lognormal"
    """How often the levels are met in training: as those of a log-normal distribution, or equally."""
    log_level_mean: float = -1.1
    """lognormal only: mean of the logarithm of the level."""
    log_level_std: float = 2.0
    """lognormal only: standard deviation of the logarithm of the level."""
    weights: Literal["inverse", "uniform"] = "inverse"
    """Weight of a pair: one over the difference of its levels, or one."""
    huber_scale: float = 0.00054
    """c over the root of the dimensions; the larger, the more the distance is a squared one, over 2 c."""
    target_decay: float = 0.0
    """Decay of the averaged parameters of the target at the first number of levels, nearer to 1 with more; 0
    for the parameters being trained."""
    embedding_scale: float = 10.0
    """c_noise is embedded times this: the larger, the better the network can tell levels apart."""
    network: Literal["unet", "mlp"] = "unet"
    """U-Net for images, or fully connected."""
    hidden: tuple[int, ...] = (128, 128, 128)
    """mlp only: widths of the layers."""
    width: int = 32
    """unet only: channels at full size."""
    multipliers: tuple[int, ...] = (1, 2)
    """unet only: times width, the channels at full size, at half, ...; odd sizes are padded inside."""
    num_blocks: int = 1
    """unet only: residual blocks at each size on the way down, one more on the way up."""
    attention_sizes: tuple[int, ...] = ()
    """unet only: heights of the feature maps with self-attention; the smallest map has it once anyway."""
    num_heads: int = 1
    """unet only: heads of the attention."""
    num_groups: int = 8
    """unet only: groups of the normalization."""
    patch: int = 1
    """unet only: side of the squares of pixels taken as one position."""
    dropout: float = 0.0
    """Share of the hidden features dropped in training, the same ones at both levels."""
    learning_rate: float = 1e-3
    """Adam's step size."""
    warmup_steps: int = 0
    """Steps in which the step size rises linearly from zero."""
    gradient_clip: float = 1.0
    """Largest norm of a gradient; longer ones are shortened to it."""
    ema_decay: float = 0.999
    """Decay of the averaged parameters that samples are drawn from; grows to this in the first steps."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype of the network; parameters, levels and losses stay float32."""
    denoiser: nn.Module | None = None
    """Your own network F: c_in x (B, *shape), scaled c_noise (B,), labels (B,) or None with num_classes for
    none, train -> (B, *shape)."""
    optimizer: optax.GradientTransformation | None = None
    """Your own optimizer, in place of Adam."""


class State(NamedTuple):
    """What training changes, and the teacher, which it does not."""

    step: Array
    key: Array
    params: Any
    opt_state: Any
    ema: Any  # averaged parameters, for sampling
    target: Any  # averaged parameters of the target, () where it has none of its own
    teacher: Any  # parameters of the teacher, () in training on data alone


def optimizer(cfg: Config) -> optax.GradientTransformation:
    """The config's own optimizer, or Adam with warm-up and clipping."""
    if cfg.optimizer is not None:
        return cfg.optimizer
    rate: Any = cfg.learning_rate
    if cfg.warmup_steps:
        rate = optax.linear_schedule(0.0, rate, cfg.warmup_steps)
    return optax.chain(optax.clip_by_global_norm(cfg.gradient_clip), optax.adam(rate))


def init(key: Array, cfg: Config, batch: Batch | None = None) -> State:
    """A fresh state, its teacher as untrained as itself (see `distil`); `batch` is not used.

    Raises ValueError for a shape the network cannot take, and for a curriculum that shrinks.
    """
    del batch
    networks.check(cfg)
    if not 1 <= cfg.first_intervals <= cfg.last_intervals:
        raise ValueError(
            f"levels grow in number, from {cfg.first_intervals} intervals to {cfg.last_intervals} they do not"
        )
    params_key, step_key = jax.random.split(key)
    label = jnp.zeros(1, jnp.int32) if cfg.conditional else None
    inputs = jnp.zeros((1, *cfg.shape)), jnp.zeros(1), label, False
    params = networks.build(cfg).init(params_key, *inputs).get("params", {})
    return _start(step_key, params, params, cfg)


def distil(key: Array, teacher: edm.State, teacher_cfg: edm.Config, cfg: Config) -> tuple[Config, State]:
    """The config and first state of a student of a trained `edm`, started from its averaged parameters.

    The config is `cfg` with the data, the levels and the network of the teacher. To train the student with
    `fit`, give it the state as `start`.
    """
    names = {field.name for field in dataclasses.fields(Config)} - TRAINING
    shared = {name: getattr(teacher_cfg, name) for name in names if hasattr(teacher_cfg, name)}
    cfg = dataclasses.replace(cfg, objective="distillation", embedding_scale=1000.0, **shared)
    return cfg, _start(key, teacher.ema, teacher.ema, cfg)


def preconditioners(level: Array, cfg: Config) -> tuple[Array, Array, Array, Array]:
    """c_skip, c_out, c_in and c_noise of levels (B,), each (B,); the first are 1 and 0 at the smallest."""
    above, total = level - cfg.smallest_level, jnp.sqrt(level**2 + cfg.data_std**2)
    skip = cfg.data_std**2 / (above**2 + cfg.data_std**2)
    return skip, cfg.data_std * above / total, 1 / total, 0.25 * jnp.log(level)


def num_intervals(step: Array | int, cfg: Config) -> Array:
    """Intervals between the levels at a step of training, () int32: one fewer than the levels."""
    first, last, total = cfg.first_intervals, cfg.last_intervals, cfg.curriculum_steps
    if cfg.curriculum == "doubling":
        stage = max(int(total / (math.log2(last // first) + 1)), 1)
        doublings = jnp.minimum(jnp.asarray(step) // stage, (last // first).bit_length())
        return jnp.minimum(first * 2**doublings, last).astype(jnp.int32)
    share = jnp.minimum(jnp.asarray(step) / total, 1.0)
    root = jnp.sqrt(share * ((last + 1) ** 2 - (first + 1) ** 2) + (first + 1) ** 2)
    return jnp.clip(jnp.ceil(root - 1), first, last).astype(jnp.int32)


def noise_level(index: Array, intervals: Array | int, cfg: Config) -> Array:
    """Level of an index from 0, the smallest, to `intervals`, the largest."""
    small, large = _roots(cfg)
    return (small + index / intervals * (large - small)) ** cfg.exponent


def draw_index(key: Array, n: int, intervals: Array | int, cfg: Config) -> Array:
    """Indices of the lower of two neighbouring levels, (n,) int32.

    Those of a log-normal level within the range, rounded down to the levels there are: as likely as the
    distribution has mass between the neighbours.
    """
    if cfg.levels == "uniform":
        return jax.random.randint(key, (n,), 0, intervals)
    ends = (math.log(cfg.smallest_level), math.log(cfg.largest_level))
    low, high = ((end - cfg.log_level_mean) / cfg.log_level_std for end in ends)
    log_level = cfg.log_level_mean + cfg.log_level_std * jax.random.truncated_normal(key, low, high, (n,))
    small, large = _roots(cfg)
    position = (jnp.exp(log_level / cfg.exponent) - small) / (large - small)
    return jnp.clip((position * intervals).astype(jnp.int32), 0, intervals - 1)


def loss(
    params: Any,
    batch: Batch,
    key: Array,
    cfg: Config,
    intervals: Array | int | None = None,
    target: Any = None,
    teacher: Any = None,
) -> tuple[Array, Metrics]:
    """Mean over the batch of the weighted distance; `batch["label"]` (B,) is needed if conditional.

    Args:
        intervals: between the levels; as many as the curriculum ends with by default.
        target: parameters of the target; by default `params`, without their gradient.
        teacher: parameters of the denoiser whose flow joins the neighbours; by default they share the noise.
    """
    index_key, noise_key, dropout_key = jax.random.split(key, 3)
    y = observed(batch)
    count = y.shape[0]
    intervals = cfg.last_intervals if intervals is None else intervals
    index = draw_index(index_key, count, intervals, cfg)
    low, high = (noise_level(i, intervals, cfg).astype(y.dtype) for i in (index, index + 1))
    noise = jax.random.normal(noise_key, y.shape, y.dtype)
    label = networks.labels(batch.get("label"), count, cfg)
    x = y + _spread(high, y) * noise
    if teacher is None:
        near = y + _spread(low, y) * noise
    else:
        near = _heun(teacher, x, high, low, label, cfg)
    wanted = _apply(params if target is None else target, near, low, label, cfg, dropout_key)
    error = _apply(params, x, high, label, cfg, dropout_key) - jax.lax.stop_gradient(wanted)
    square = distributions.sum_per_example(error**2)
    c = cfg.huber_scale * math.sqrt(y[0].size)
    distance = square / (jnp.sqrt(square + c**2) + c)
    weight = 1 / (high - low) if cfg.weights == "inverse" else 1.0
    value = (weight * distance).mean()
    return value, {"loss": value, "mse": (square / y[0].size).mean()}


def train_step(state: State, batch: Batch, cfg: Config) -> tuple[State, Metrics]:
    """One step on `batch["image"]` or `batch["x"]`, (B, *shape), `batch["label"]` (B,) if conditional."""
    key = jax.random.fold_in(state.key, state.step)
    intervals = num_intervals(state.step, cfg)
    target = state.target if cfg.target_decay else None
    teacher = state.teacher if cfg.objective == "distillation" else None
    gradient = jax.grad(loss, has_aux=True)
    grads, metrics = gradient(state.params, batch, key, cfg, intervals, target, teacher)
    updates, opt_state = optimizer(cfg).update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    decay = jnp.minimum(cfg.ema_decay, (1.0 + state.step) / (10.0 + state.step))
    after = {"params": params, "opt_state": opt_state}
    after["ema"] = optax.incremental_update(params, state.ema, 1 - decay)
    if cfg.target_decay:
        decay = cfg.target_decay ** ((cfg.first_intervals + 1) / (intervals + 1))
        after["target"] = optax.incremental_update(params, state.target, 1 - decay)
    metrics = {**metrics, "grad_norm": optax.tree.norm(grads), "intervals": jnp.float32(intervals)}
    return state._replace(step=state.step + 1, **after), metrics


def sample(
    key: Array,
    state: State,
    n: int,
    cfg: Config,
    label: Array | int | None = None,
    *,
    steps: int = 1,
    levels: Any = None,
) -> Array:
    """n draws by the averaged parameters, (n, *shape), in `steps` network calls.

    They start at the largest level and, on more than one, noise the result to lower `levels`, decreasing from
    the first to take its place, by default in equal steps of their root down to the smallest, which is left
    out. If conditional, of the `label` given, one for all or (n,), else of labels drawn uniformly.

    Raises ValueError for a label of an unconditional model, and for levels that do not decrease.
    """
    noise_key, label_key = jax.random.split(key)
    if cfg.conditional and label is None:
        label = jax.random.randint(label_key, (n,), 0, cfg.num_classes)
    if levels is None:
        levels = schedules.karras(steps + 1, cfg.smallest_level, cfg.largest_level, cfg.exponent)[:-1]
    nothing = jnp.zeros((n, *cfg.shape))
    return multistep(function(state, cfg, label), nothing, levels, noise_key, cfg.smallest_level)


def function(state: State, cfg: Config, label: Array | int | None = None) -> Callable[[Array, Array], Array]:
    """The averaged f(x, level), of x (B, *shape) and levels (B,) -> (B, *shape).

    Raises ValueError for a label of an unconditional model.
    """
    if not cfg.conditional and label is not None:
        raise ValueError("an unconditional model takes no label: train with conditional")
    return lambda x, level: _apply(state.ema, x, level, networks.labels(label, x.shape[0], cfg), cfg)


def multistep(
    consistency: Callable[[Array, Array], Array], x: Array, levels: Any, key: Array, smallest: float
) -> Array:
    """Data x (B, ...) noised to each of decreasing `levels` (S,) and mapped back, in turn, (B, ...).

    From zeros and a large first level these are samples; from data and a smaller one, variations of them.
    Raises ValueError for levels that do not decrease, or not to above the `smallest`, that of x itself.
    """
    levels = np.asarray(levels, np.float64)
    if levels.ndim != 1 or not len(levels) or np.any(np.diff(levels) >= 0) or levels[-1] <= smallest:
        raise ValueError(f"levels are a row of at least one number, decreasing to above {smallest}")
    added = np.sqrt(levels**2 - smallest**2)

    def step(x, row):
        level, std, index = row
        x = x + std * jax.random.normal(jax.random.fold_in(key, index), x.shape, x.dtype)
        return consistency(x, jnp.full(x.shape[0], level)), None

    rows = jnp.asarray(levels, x.dtype), jnp.asarray(added, x.dtype), jnp.arange(len(levels))
    return jax.lax.scan(step, x, rows)[0]


def _start(key, params, teacher, cfg):
    copy = lambda tree: jax.tree.map(jnp.copy, tree)
    params = copy(params)
    target = copy(params) if cfg.target_decay else ()
    teacher = copy(teacher) if cfg.objective == "distillation" else ()
    opt_state = optimizer(cfg).init(params)
    return State(jnp.zeros((), jnp.int32), key, params, opt_state, copy(params), target, teacher)


def _heun(teacher, x, level, following, label, cfg):
    """One step of the flow of a denoiser from a level to one below, both (B,)."""

    def slope(x, level):
        denoised = _apply(teacher, x, level, label, cfg, coefficients=edm.preconditioners)
        return (x - denoised) / _spread(level, x)

    change = _spread(following - level, x)
    first = slope(x, level)
    return x + change * 0.5 * (first + slope(x + change * first, following))


def _apply(params, x, level, label, cfg, dropout_key=None, coefficients=preconditioners):
    skip, out, into, noise = coefficients(level, cfg)
    rngs = None if dropout_key is None else {"dropout": dropout_key}
    inputs = _spread(into, x) * x, cfg.embedding_scale * noise, label, dropout_key is not None
    output: Any = networks.build(cfg).apply({"params": params}, *inputs, rngs=rngs)
    output = output.astype(jnp.promote_types(output.dtype, jnp.float32))
    return _spread(skip, x) * x + _spread(out, x) * output


def _roots(cfg):
    return (level ** (1 / cfg.exponent) for level in (cfg.smallest_level, cfg.largest_level))


def _spread(row, x):
    return row.reshape(row.shape + (1,) * (x.ndim - row.ndim))
