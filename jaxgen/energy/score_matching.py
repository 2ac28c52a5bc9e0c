"""Denoising score matching at several noise levels, NCSN (Vincent 2011; Song & Ermon 2019).

A network s(x, sigma) learns the score of data with noise of standard deviation sigma, which is the best
prediction of -noise / sigma from what the noise has made of an example:

    loss = 1/2 mean over levels of sigma^2 E |s(x + sigma z, sigma) + z / sigma|^2,     z ~ N(0, I),

with levels in geometric progression, sigma_1 > ... > sigma_L. With one level it is the denoising score
matching of Vincent 2011, whose optimum is the gradient of log of the data's density with kernels of width
sigma. Draws come from annealed Langevin dynamics, whose steps at level i are epsilon sigma_i^2 / sigma_L^2,
and the last of them can be denoised, x + sigma_L^2 s(x, sigma_L) (Jolicoeur-Martineau et al. 2021).

The output of the network is divided by sigma, as in Song & Ermon 2020; the first level is the largest
distance between training examples, their technique 1; parameters are averaged, their technique 5.

Departs from the papers: the network is given x / sqrt(1 + sigma^2), and the level by sinusoids of
250 log(sigma) in place of normalizations of its own for each; the loss is a mean over
dimensions; chains start at N(0, sigma_1^2) in place of uniform noise.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxgen import keys, labels, values
from jaxgen.arguments import checked
from jaxgen.diffusion import networks
from jaxgen.diffusion.processes import spread
from jaxgen.energy import langevin
from jaxgen.fields import PositiveFloat, PositiveInt
from jaxgen.labels import Label
from jaxgen.nn import variables
from jaxgen.types import Batch, Metrics, observed

LARGEST_LEVEL = 1.0
"""First noise level for data that nobody has measured, the paper's."""

MEASURED = 1000
"""Examples of which `from_data` takes the largest distance, at most."""


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(networks.Config):
    """Hyperparameters of denoising score matching, beside those of `diffusion.networks`."""

    num_levels: PositiveInt = 20
    """Noise levels, L; with one, it is `smallest_level`."""
    smallest_level: PositiveFloat = 0.01
    """Last noise level, sigma_L."""
    largest_level: PositiveFloat | None = None
    """First noise level, sigma_1; by default `from_data` measures the largest distance between examples, and
    1 is taken until it has."""
    epsilon: PositiveFloat = 2e-5
    """Step size of the sampler at the last level, less than 4 sigma_L^2."""
    steps_per_level: PositiveInt = 100
    """Steps of the sampler at each level, T."""


class State(NamedTuple):
    """What training changes."""

    step: Array
    key: Array
    params: Any
    opt_state: Any
    ema: Any  # averaged parameters


def from_data(dataset: Any, cfg: Config) -> Config:
    """The config with the largest distance between examples of a data set, where it has no first level.

    That is of at most MEASURED examples, spread over the data set, to three digits.
    """
    if cfg.largest_level is not None:
        return cfg
    rows = np.unique(np.linspace(0, len(dataset) - 1, MEASURED).astype(int))
    x = np.asarray(observed(dataset[rows]), np.float64).reshape(len(rows), -1)
    squares = (x**2).sum(1)
    largest = float(np.sqrt(np.max(squares[:, None] + squares - 2 * x @ x.T)))
    return dataclasses.replace(cfg, largest_level=float(f"{largest:.3g}"))


@checked
def init(key: Array, cfg: Config, batch: Batch | None = None) -> State:
    """A fresh state; `batch` is not used.

    Raises ValueError for a shape that the network cannot take, for levels that do not decrease, and for steps
    of the sampler so large that it diverges.
    """
    del batch
    noise_levels(cfg)
    _check_epsilon(cfg.epsilon, cfg)
    params_key, step_key = keys.named(key, "params", "steps")
    params = networks.init(params_key, cfg)
    ema = jax.tree.map(jnp.copy, params)
    opt_state = values.gradient_transformation(cfg.optimizer).init(params)
    return State(jnp.zeros((), jnp.int32), step_key, params, opt_state, ema)


def noise_levels(cfg: Config) -> np.ndarray:
    """sigma_1 > ... > sigma_L in geometric progression, (L,) float64.

    Raises ValueError for levels that do not decrease.
    """
    largest = LARGEST_LEVEL if cfg.largest_level is None else cfg.largest_level
    if not 0 < cfg.smallest_level < largest:
        raise ValueError(
            f"smallest_level must be between 0 and largest_level, got {cfg.smallest_level} and {largest}"
        )
    return np.geomspace(cfg.smallest_level, largest, cfg.num_levels)[::-1]


@checked
def loss(params: Any, batch: Batch, key: Array, cfg: Config) -> tuple[Array, Metrics]:
    """Mean over the batch of 1/2 |sigma s(x + sigma z, sigma) + z|^2 a dimension, at levels drawn evenly.

    It is 1/2 for s = 0. `batch["label"]` (B,) is needed if conditional.
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
    epsilon: float | None = None,
    steps_per_level: int | None = None,
    denoise: bool = True,
) -> Array:
    """n draws by annealed Langevin dynamics with the averaged parameters, (n, *shape).

    If conditional, of the `label` given, one for all or (n,), else of labels drawn uniformly.

    Args:
        epsilon, steps_per_level: in place of the config's.
        denoise: whether the last noise is taken off, which draws at level sigma_L still have.

    Raises ValueError for a label of an unconditional model, for a label of no class, for a negative number of
    steps, and for steps so large that chains diverge.
    """
    start_key, chain_key, label_key = keys.named(key, "first states", "chains", "label")
    label = labels.drawn(label_key, label, n, labels.count(cfg))
    sigmas = noise_levels(cfg)
    epsilon = cfg.epsilon if epsilon is None else epsilon
    _check_epsilon(epsilon, cfg)
    steps = cfg.steps_per_level if steps_per_level is None else steps_per_level
    at_level = lambda x, level: log_gradient(state, x, cfg, label, level=level)
    x = sigmas[0] * jax.random.normal(start_key, (n, *cfg.shape))
    x = langevin.annealed(chain_key, at_level, x, sigmas, epsilon, steps)
    return x + sigmas[-1] ** 2 * at_level(x, sigmas[-1]) if denoise else x


def log_gradient(state: State, x: Array, cfg: Config, label: Label = None, *, level: Any = None) -> Array:
    """s(x, level), (B, *shape): the gradient of log p(x) of data with noise of standard deviation `level`.

    By the averaged parameters; of one level for all, by default the last, or of one for each example, (B,).
    If conditional it is that of log p(x | label), for the `label` given, one for all or (B,).

    Raises ValueError for a label of an unconditional model, for a label of no class, and for a conditional
    model that is given none.
    """
    count = x.shape[0]
    level = jnp.asarray(cfg.smallest_level if level is None else level, x.dtype)
    label = labels.given(label, count, labels.count(cfg))
    return _score(state.ema, x, jnp.broadcast_to(level, (count,)), label, cfg)[0]


def _check_epsilon(epsilon: float, cfg: Config) -> None:
    largest = 4 * cfg.smallest_level**2
    if not 0 < epsilon < largest:
        raise ValueError(f"epsilon must be in (0, {largest:g}), 4 smallest_level^2, got {epsilon:g}")


def _objective(params: Any, batch: Batch, key: Array, cfg: Config) -> tuple[Array, tuple[Metrics, Any]]:
    """The loss, its metrics, and the variables of the network afterwards."""
    level_key, noise_key, dropout_key = keys.named(key, "level", "noise", "dropout")
    x, label = observed(batch), labels.of_batch(batch, labels.count(cfg))
    rows = jax.random.randint(level_key, (x.shape[0],), 0, cfg.num_levels)
    sigma = jnp.asarray(noise_levels(cfg), x.dtype)[rows]
    noise = jax.random.normal(noise_key, x.shape, x.dtype)
    found, after = _score(params, x + spread(sigma, x) * noise, sigma, label, cfg, dropout_key)
    value = 0.5 * ((spread(sigma, x) * found + noise) ** 2).mean()
    return value, ({"loss": value}, after)


def _score(
    params: Any, x: Array, sigma: Array, label: Any, cfg: Config, dropout_key: Any = None
) -> tuple[Array, Any]:
    """The score of x (B, *shape) at levels sigma (B,), and the network's variables afterwards.

    The network is in training if there is a key.
    """
    scaled = x / spread(jnp.sqrt(1 + sigma**2), x)
    output, after = networks.apply(params, scaled, 250 * jnp.log(sigma), label, cfg, dropout_key)
    return output / spread(sigma, x), after
