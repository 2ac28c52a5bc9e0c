"""Energy-based model, trained by Langevin dynamics from a replay buffer (Du & Mordatch 2019).

A network E gives a density up to its normaliser, p(x) = exp(-E(x)) / Z. The gradient of the negative
log-likelihood needs draws of the model in place of Z,

    d/dtheta -log p(x) = dE(x)/dtheta - E_{x~ ~ p}[dE(x~)/dtheta],
    loss = mean E(x) - mean E(x~) + alpha mean(E(x)^2 + E(x~)^2),

where alpha keeps the energies near 0. They come from K steps of Langevin dynamics,

    x~ <- x~ - step_size / 2 dE(x~)/dx~ + noise eps,     eps ~ N(0, I),

which start at what earlier steps have arrived at: a buffer of chains, of which a step takes one for each
example, begins a few anew from uniform noise, and puts the ends back in their places.

With noise = sqrt(step_size) chains tend to p as the step size goes to 0. Where p has the variance s^2 in some
direction, theirs is s^2 / (1 - step_size / (4 s^2)) there: steps that are not much smaller than s^2 teach an
energy that is too steep, and from s^2 on, one that never ends to grow. The paper has much larger steps for
pictures, with less noise: exp(-E) is then not what chains draw from, see `langevin`, and what they
reach in K steps is what is learned.

Departs from the paper: data are on [-1, 1], so that the paper's step size of 10 on [0, 1], without the half,
is 80 here; the noise is added after the gradient step, as the paper's equation has it and its code does not;
chains replace the rows of the buffer that they continue, not random ones; there is no KL term.
"""

import dataclasses
import math
from typing import Annotated, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxgen import keys, values
from jaxgen.arguments import checked
from jaxgen.energy import langevin
from jaxgen.energy.networks import MLP, ConvNet
from jaxgen.fields import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Range
from jaxgen.likelihoods import Gaussian
from jaxgen.nn import variables
from jaxgen.types import Batch, Metrics, observed

MARGIN = 1.1
"""`from_data` bounds points by their largest coordinate times this."""

MEASURED = 10_000
"""Examples of which `from_data` takes the largest coordinate, at most."""


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(values.Value):
    """Hyperparameters of the energy-based model."""

    shape: tuple[PositiveInt, ...] = (8, 8, 1)
    """Shape of one example."""
    levels: NonNegativeInt = 256
    """Values that a pixel of the data has, spread evenly over [-1, 1]; 0 for real numbers."""
    network: MLP | ConvNet | nn.Module = ConvNet()
    """The energy: takes x (B, *shape), and `train`, whether it is being trained, and gives (B,)."""
    num_steps: PositiveInt = 60
    """Langevin steps of every chain in a training step, K."""
    step_size: PositiveFloat = 20.0
    """Step size of the Langevin dynamics, of which a step takes half the gradient."""
    noise: NonNegativeFloat | None = 0.01
    """Standard deviation of the noise of a Langevin step; None for sqrt(step_size), the dynamics of p."""
    gradient_clip: PositiveFloat | None = 0.03
    """Largest magnitude of each entry of dE/dx in a Langevin step, or None for no limit."""
    buffer_size: PositiveInt = 10_000
    """Chains in the replay buffer, at least as many as a batch has examples."""
    restarts: Annotated[float, Range(above=0, most=1)] = 0.05
    """Share of the chains that begin anew from noise in a training step."""
    regularization: NonNegativeFloat = 0.1
    """Weight of the squared energies in the loss, alpha."""
    bound: PositiveFloat | None = None
    """Chains start uniformly in [-bound, bound] and are kept in it, as data are; by default 1 for images, and
    for points what `from_data` measures."""
    dequantize: bool = True
    """Add uniform noise as wide as the distance of two levels in training, if the data have levels."""
    optimizer: values.Optimizer = values.Adam(1e-4, beta1=0.0, gradient_clip=0.1)
    """The optimizer."""


class State(NamedTuple):
    """What training changes."""

    step: Array
    key: Array
    params: Any
    stats: Any  # singular vectors and running statistics of the network, by collection
    opt_state: Any
    buffer: Array  # (buffer_size, *shape)


def from_data(dataset: Any, cfg: Config) -> Config:
    """The config with the bound of a data set of points, where it has none; that of images is 1."""
    if cfg.bound is not None or len(cfg.shape) == 3:
        return cfg
    rows = np.unique(np.linspace(0, len(dataset) - 1, MEASURED).astype(int))
    largest = MARGIN * float(np.abs(np.asarray(observed(dataset[rows]), np.float64)).max())
    return dataclasses.replace(cfg, bound=float(f"{largest:.3g}"))


@checked
def init(key: Array, cfg: Config, batch: Batch | None = None) -> State:
    """A fresh state, with uniform noise in the buffer; `batch` is not used.

    Raises ValueError for a shape that the network cannot take, a network whose output is no energy, and
    numbers that make no sense.
    """
    del batch
    params_key, buffer_key, step_key = keys.named(key, "params", "first chains", "steps")
    x = jnp.zeros((2, *cfg.shape))
    params, stats = variables.parted(variables.init(cfg.network, params_key, x))
    shape = jax.eval_shape(lambda: energy(params, stats, x, cfg)).shape
    if shape != (2,):
        raise ValueError(f"an energy is one number an example, (2,) for two, and not {shape}")
    opt_state = values.gradient_transformation(cfg.optimizer).init(params)
    buffer = uniform(buffer_key, cfg.buffer_size, cfg)
    return State(jnp.zeros((), jnp.int32), step_key, params, stats, opt_state, buffer)


def contrastive_loss(
    params: Any, stats: Any, x: Array, samples: Array, key: Array, cfg: Config
) -> tuple[Array, tuple[Any, Metrics]]:
    """The loss by data x (B, *shape) and samples of the model, (N, *shape), through which no gradient goes.

    Without regularization its gradient is that of the mean negative log-likelihood, if the samples are exact
    draws. Returns the loss, and the network's new statistics, which move by the data alone, with metrics.
    """
    data_key, sample_key = keys.named(key, "data dropout", "sample dropout")
    samples = jax.lax.stop_gradient(samples)
    on_data, moved = _energies(params, stats, x, data_key, cfg, list(stats))
    # Singular vectors move by the data's pass alone.
    others = [name for name in stats if name != "spectral"]
    on_samples, _ = _energies(params, moved, samples, sample_key, cfg, others)
    squares = (on_data**2).mean() + (on_samples**2).mean()
    value = on_data.mean() - on_samples.mean() + cfg.regularization * squares
    metrics = {"data_energy": on_data.mean(), "sample_energy": on_samples.mean()}
    return value, (moved, {"contrastive_loss": value, **metrics})


@checked
def train_step(state: State, batch: Batch, cfg: Config) -> tuple[State, Metrics]:
    """One step on `batch["image"]` or `batch["x"]`, (B, *shape), against as many chains of the buffer.

    Raises ValueError for more examples than the buffer has chains.
    """
    key = jax.random.fold_in(state.key, state.step)
    data_key, start_key, chain_key, dropout_key = keys.named(key, "data", "starts", "chains", "dropout")
    x = targets(data_key, observed(batch), cfg)
    rows, start = starts(start_key, state.buffer, len(x), cfg)
    samples = chains(chain_key, state, start, cfg)
    grads, (stats, metrics) = jax.grad(contrastive_loss, has_aux=True)(
        state.params, state.stats, x, samples, dropout_key, cfg
    )
    optimizer = values.gradient_transformation(cfg.optimizer)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    buffer = state.buffer.at[rows].set(samples)
    metrics = {**metrics, "grad_norm": optax.tree.norm(grads)}
    return State(state.step + 1, state.key, params, stats, opt_state, buffer), metrics


@checked
def sample(key: Array, state: State, n: int, cfg: Config, *, num_steps: int | None = None) -> Array:
    """n ends of Langevin chains that start at uniform noise, (n, *shape).

    Args:
        num_steps: of the chains; by default num_steps / restarts of the config, which is the length that
            chains of the buffer have on average when they are begun anew.

    Raises:
        ValueError: a negative number of steps.
    """
    start_key, chain_key = keys.named(key, "first states", "chains")
    num_steps = math.ceil(cfg.num_steps / cfg.restarts) if num_steps is None else num_steps
    return chains(chain_key, state, uniform(start_key, n, cfg), cfg, num_steps)


@checked
def score(state: State, x: Array, cfg: Config) -> Array:
    """-E(x), (B,): log p(x) up to a constant, higher for more typical data."""
    return -energy(state.params, state.stats, x, cfg)


def energy(params: Any, stats: Any, x: Array, cfg: Config) -> Array:
    """E(x) of x (B, *shape), (B,), by the network as it is outside of training."""
    return _at_least_float32(variables.apply(cfg.network, variables.Variables(params, stats), x))


def chains(key: Array, state: State, x: Array, cfg: Config, num_steps: int | None = None) -> Array:
    """x (B, *shape) after Langevin steps, by default those of a training step."""

    def log_gradient(x: Array) -> Array:
        slope = jax.grad(lambda x: energy(state.params, state.stats, x, cfg).sum())(x)
        if cfg.gradient_clip is not None:
            slope = jnp.clip(slope, -cfg.gradient_clip, cfg.gradient_clip)
        return -slope

    num_steps = cfg.num_steps if num_steps is None else num_steps
    within = lambda x: jnp.clip(x, -bound(cfg), bound(cfg))
    return langevin.chain(key, log_gradient, x, num_steps, cfg.step_size, cfg.noise, within)


def starts(key: Array, buffer: Array, n: int, cfg: Config) -> tuple[Array, Array]:
    """Different rows (n,) of the buffer, and where their chains go on, (n, *shape).

    A share `restarts` of them begins anew. Raises ValueError for more chains than there are.
    """
    if n > len(buffer):
        raise ValueError(f"{n} examples need as many chains, the buffer has {len(buffer)}: raise buffer_size")
    row_key, restart_key, noise_key = keys.named(key, "rows", "restarts", "noise")
    rows = jax.random.permutation(row_key, len(buffer))[:n]
    anew = jax.random.bernoulli(restart_key, cfg.restarts, (n,) + (1,) * len(cfg.shape))
    return rows, jnp.where(anew, uniform(noise_key, n, cfg), buffer[rows])


def uniform(key: Array, n: int, cfg: Config) -> Array:
    """Noise that chains start from, (n, *shape)."""
    return jax.random.uniform(key, (n, *cfg.shape), minval=-bound(cfg), maxval=bound(cfg))


def targets(key: Array, x: Array, cfg: Config) -> Array:
    """Data x (B, *shape) as they are learned: dequantised, and like the chains kept within the bound."""
    spread = Gaussian(dequantize=cfg.dequantize, levels=cfg.levels)
    return jnp.clip(spread.training_targets(key, x), -bound(cfg), bound(cfg))


def bound(cfg: Config) -> float:
    """The largest magnitude of a coordinate that a config goes by."""
    return 1.0 if cfg.bound is None else cfg.bound


def _energies(
    params: Any, stats: Any, x: Array, key: Array, cfg: Config, mutable: list[str]
) -> tuple[Array, Any]:
    """E(x) in training, (B,), and the network's new statistics."""
    collections = {"params": params, **stats}
    output, moved = variables.call(cfg.network, collections, x, train=True, key=key, mutable=mutable)
    return _at_least_float32(output), {**stats, **moved}


def _at_least_float32(energies: Any) -> Array:
    return energies.astype(jnp.promote_types(energies.dtype, jnp.float32))
