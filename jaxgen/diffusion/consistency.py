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
s - s', and f_ has the parameters being trained. The first paper trains by curriculum `Root()` and
with target_decay 0.9, distils with 17 intervals throughout, both with uniform levels and weights.

Departs from the papers: Adam, not rectified; no learned distance of pictures. The level is embedded by the
sinusoids of `edm`, but of 10 c_noise in place of 1000: neighbours agree the sooner the smoother f is in s.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxgen import distributions, keys, values
from jaxgen.arguments import checked
from jaxgen.diffusion import edm, guidance, networks, scan, schedules
from jaxgen.diffusion.curricula import Distillation, Doubling, Fixed, LogNormal, Root, Training, Uniform
from jaxgen.diffusion.processes import spread
from jaxgen.fields import Decay, NonNegativeFloat, PositiveFloat
from jaxgen.labels import Label
from jaxgen.nn import variables
from jaxgen.types import Batch, Metrics, observed


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(networks.Config):
    """Hyperparameters of a consistency model, beside those of `networks`."""

    objective: Training | Distillation = Training()
    """What neighbours are learned from."""
    data_std: PositiveFloat | None = None
    """Standard deviation of the data; by default `from_data` measures it, and 0.5 is taken until it has."""
    smallest_level: PositiveFloat = 0.002
    """Noise level at which a sample is taken for data."""
    largest_level: PositiveFloat = 80.0
    """Noise level from which one call makes data."""
    exponent: PositiveFloat = 7.0
    """Levels are equal steps of their root of this order: the higher, the more small ones."""
    curriculum: Doubling | Root | Fixed | values.Value = Doubling()
    """How the intervals between levels grow in number."""
    distribution: LogNormal | Uniform | values.Value = LogNormal()
    """How often the levels are met in training."""
    weights: Literal["inverse", "uniform"] = "inverse"
    """Weight of a pair: one over the difference of its levels, or one."""
    huber_scale: NonNegativeFloat = 0.00054
    """c over the root of the dimensions; the larger, the more the distance is a squared one, over 2 c."""
    target_decay: Decay = 0.0
    """Decay of the averaged parameters of the target at the first number of levels, nearer to 1 with more; 0
    for the parameters being trained."""


class State(NamedTuple):
    """What training changes, and the teacher, which it does not."""

    step: Array
    key: Array
    params: Any
    opt_state: Any
    ema: Any  # averaged parameters, for sampling
    target: Any  # averaged parameters of the target, () where it has none of its own
    teacher: Any  # parameters of the teacher, () in training on data alone


def from_data(dataset: Any, cfg: Config) -> Config:
    """The config with the standard deviation of a data set, where it has none: see `edm.from_data`."""
    std = edm.from_data(dataset, edm.Config(data_std=cfg.data_std)).data_std
    return dataclasses.replace(cfg, data_std=std)


@checked
def init(key: Array, cfg: Config, batch: Batch | None = None) -> State:
    """A fresh state, its teacher as untrained as itself (see `distil`); `batch` is not used.

    Raises ValueError for a shape the network cannot take.
    """
    del batch
    params_key, step_key = keys.named(key, "params", "steps")
    params = networks.init(params_key, cfg)
    return _start(step_key, params, params, cfg)


def distil(key: Array, teacher: edm.State, teacher_cfg: edm.Config, cfg: Config) -> tuple[Config, State]:
    """The config and first state of a student of a trained `edm`, started from its averaged parameters.

    The config is `cfg` with the data, the levels and the network of the teacher, but for its dropout. To
    train the student with `fit`, give it the state as `start`.
    """
    names = ("shape", "num_classes", "conditional", "dtype", "data_std", "smallest_level", "largest_level")
    shared = {name: getattr(teacher_cfg, name) for name in (*names, "exponent")}
    network = teacher_cfg.network
    if hasattr(network, "dropout"):
        network = network.clone(dropout=getattr(cfg.network, "dropout", 0.0))
    cfg = dataclasses.replace(cfg, objective=Distillation(), network=network, **shared)
    return cfg, _start(key, teacher.ema, teacher.ema, cfg)


def preconditioners(level: Array, cfg: Config) -> tuple[Array, Array, Array, Array]:
    """c_skip, c_out, c_in and c_noise of levels (B,), each (B,); the first are 1 and 0 at the smallest."""
    std, above = edm.data_std(cfg), level - cfg.smallest_level
    total = jnp.sqrt(level**2 + std**2)
    skip = std**2 / (above**2 + std**2)
    return skip, std * above / total, 1 / total, 0.25 * jnp.log(level)


def noise_level(index: Array, intervals: Array | int, cfg: Config) -> Array:
    """Level of an index from 0, the smallest, to `intervals`, the largest."""
    small, large = (level ** (1 / cfg.exponent) for level in (cfg.smallest_level, cfg.largest_level))
    return (small + index / intervals * (large - small)) ** cfg.exponent


def draw_index(key: Array, n: int, intervals: Array | int, cfg: Config) -> Array:
    """Indices of the lower of two neighbouring levels, (n,) int32."""
    distribution: Any = cfg.distribution
    ends = (cfg.smallest_level, cfg.largest_level)
    return distribution(key, n, intervals, *ends, cfg.exponent)


@checked
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
        teacher: parameters of the denoiser whose flow joins the neighbours, for distillation.

    Raises ValueError for distillation without a teacher.
    """
    if cfg.objective.has_teacher and teacher is None:
        raise ValueError("distillation learns from a teacher: give its parameters, see `distil`")
    value, (metrics, _) = _objective(params, batch, key, cfg, intervals, target, teacher)
    return value, metrics


@checked
def train_step(state: State, batch: Batch, cfg: Config) -> tuple[State, Metrics]:
    """One step on `batch["image"]` or `batch["x"]`, (B, *shape), `batch["label"]` (B,) if conditional."""
    key = jax.random.fold_in(state.key, state.step)
    curriculum: Any = cfg.curriculum
    intervals = curriculum(state.step)
    target = state.target if cfg.target_decay else None
    teacher = state.teacher if cfg.objective.has_teacher else None
    gradient = jax.grad(_objective, has_aux=True)
    grads, (metrics, after) = gradient(state.params, batch, key, cfg, intervals, target, teacher)
    optimizer = values.gradient_transformation(cfg.optimizer)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = variables.with_stats(optax.apply_updates(state.params, updates), after)
    ema = cfg.average(state.ema, params, state.step)
    changed = {"params": params, "opt_state": opt_state, "ema": ema}
    if cfg.target_decay:
        decay = cfg.target_decay ** ((curriculum.first + 1) / (intervals + 1))
        changed["target"] = optax.incremental_update(params, state.target, 1 - decay)
    metrics = {**metrics, "grad_norm": optax.tree.norm(grads), "intervals": jnp.float32(intervals)}
    return state._replace(step=state.step + 1, **changed), metrics


@checked
def sample(
    key: Array,
    state: State,
    n: int,
    cfg: Config,
    label: Label = None,
    *,
    steps: int | None = None,
    levels: Any = None,
) -> Array:
    """n draws by the averaged parameters, (n, *shape), in `steps` network calls, one by default.

    They start at the largest level and, on more than one, noise the result to lower `levels`, decreasing from
    the first to take its place, by default in equal steps of their root down to the smallest, which is left
    out. If conditional, of the `label` given, one for all or (n,), else of labels drawn uniformly.

    Raises ValueError for a label of an unconditional model, for a label of no class, for levels that do not
    decrease, and for both steps and levels.
    """
    return _path(key, state, n, cfg, label, steps, levels).end()


def trajectory(
    key: Array, state: State, n: int, cfg: Config, label: Label = None, *, frames: int = 1, **options: Any
) -> Array:
    """What the calls for the draws that `sample` returns give one after another, those being the last.

    (frames, n, *shape). The options are those of `sample`. Raises ValueError as `sample` does, and for more
    frames than calls.
    """
    return _path(key, state, n, cfg, label, **options).frames(frames)


def function(state: State, cfg: Config, label: Label = None) -> Callable[[Array, Array], Array]:
    """The averaged f(x, level), of x (B, *shape) and levels (B,) -> (B, *shape).

    Raises ValueError for a label of an unconditional model, and for a label of no class.
    """
    predict = lambda x, level, label: _apply(state.ema, x, level, label, cfg)[0]
    return guidance.guided(predict, label, None, cfg)


@scan.Sampler
def multistep(
    consistency: Callable[[Array, Array], Array], x: Array, levels: Any, key: Array, smallest: float
) -> scan.Path:
    """Data x (B, ...) noised to each of decreasing `levels` (S,) and mapped back, in turn, (B, ...).

    From zeros and a large first level these are samples; from data and a smaller one, variations of them.
    Raises ValueError for levels that do not decrease, or not to above the `smallest`, that of x itself.
    """
    levels = np.asarray(levels, np.float64)
    if levels.ndim != 1 or not len(levels) or np.any(np.diff(levels) >= 0) or levels[-1] <= smallest:
        raise ValueError(f"levels are a row of at least one number, decreasing to above {smallest}")

    def step(x, row, index):
        x = x + row["added"] * scan.noise(key, index, x)
        return consistency(x, scan.times(row["level"], x))

    return scan.Path(step, x, {"level": levels, "added": np.sqrt(levels**2 - smallest**2)})


def _objective(params, batch, key, cfg, intervals, target, teacher):
    """The loss, its metrics, and the variables of the network afterwards."""
    index_key, noise_key, dropout_key = keys.named(key, "index", "noise", "dropout")
    y = observed(batch)
    count = y.shape[0]
    curriculum: Any = cfg.curriculum
    intervals = curriculum.last if intervals is None else intervals
    index = draw_index(index_key, count, intervals, cfg)
    low, high = (noise_level(i, intervals, cfg).astype(y.dtype) for i in (index, index + 1))
    noise = jax.random.normal(noise_key, y.shape, y.dtype)
    label = guidance.of_batch(batch, cfg)
    x = y + spread(high, y) * noise
    if cfg.objective.has_teacher:
        near = _heun(teacher, x, high, low, label, cfg)
    else:
        near = y + spread(low, y) * noise
    wanted, _ = _apply(params if target is None else target, near, low, label, cfg, dropout_key)
    found, after = _apply(params, x, high, label, cfg, dropout_key)
    error = found - jax.lax.stop_gradient(wanted)
    square = distributions.sum_per_example(error**2)
    c = cfg.huber_scale * math.sqrt(y[0].size)
    distance = square / (jnp.sqrt(square + c**2) + c)
    weight = 1 / (high - low) if cfg.weights == "inverse" else 1.0
    value = (weight * distance).mean()
    return value, ({"loss": value, "mse": (square / y[0].size).mean()}, after)


def _path(key, state, n, cfg, label, steps=None, levels=None):
    noise_key, label_key = keys.named(key, "noise", "label")
    if levels is None:
        steps = 1 if steps is None else steps
        scan.check_steps(steps)
        levels = schedules.karras(steps + 1, cfg.smallest_level, cfg.largest_level, cfg.exponent)[:-1]
    elif steps is not None:
        raise ValueError("give the number of steps or the levels, not both")
    model = function(state, cfg, guidance.drawn(label_key, label, n, cfg))
    return multistep.path(model, jnp.zeros((n, *cfg.shape)), levels, noise_key, cfg.smallest_level)


def _start(key, params, teacher, cfg):
    copy = lambda tree: jax.tree.map(jnp.copy, tree)
    params = copy(params)
    target = copy(params) if cfg.target_decay else ()
    teacher = copy(teacher) if cfg.objective.has_teacher else ()
    opt_state = values.gradient_transformation(cfg.optimizer).init(params)
    return State(jnp.zeros((), jnp.int32), key, params, opt_state, copy(params), target, teacher)


def _heun(teacher, x, level, following, label, cfg):
    """One step of the flow of a denoiser from a level to one below, both (B,)."""

    def slope(x, level):
        denoised, _ = _apply(teacher, x, level, label, cfg, coefficients=edm.preconditioners)
        return (x - denoised) / spread(level, x)

    change = spread(following - level, x)
    first = slope(x, level)
    return x + change * 0.5 * (first + slope(x + change * first, following))


def _apply(params, x, level, label, cfg, dropout_key=None, coefficients=preconditioners):
    """f(x, level), and the network's variables afterwards; in training if there is a key."""
    skip, out, into, noise = coefficients(level, cfg)
    noise = cfg.objective.embedding_scale * noise
    output, after = networks.apply(params, spread(into, x) * x, noise, label, cfg, dropout_key)
    return spread(skip, x) * x + spread(out, x) * output, after
