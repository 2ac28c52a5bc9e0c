"""Hidden Markov model (Baum et al. 1970; Rabiner 1989).

A Markov chain over K hidden states, z_1 ~ pi, z_t ~ A[z_{t-1}], emits x_t ~ p(x | z_t). Everything is
computed from a table of emission log-likelihoods (T, K), by `forward`, `smooth`, `viterbi` and
`posterior_sample`. A state emits symbols (`Categorical`) or vectors from a mixture of Gaussians (`Gaussian`).

Baum-Welch is expectation maximisation: expected counts of starts, moves and emissions are normalised. `fit`
runs it to convergence in one compiled loop; `train_step` averages the counts of batches over time (Cappe
2011). Sequences of different lengths are padded at the end and masked.

Departs from the textbook: Dirichlet pseudo-counts make it a maximum a posteriori fit; probabilities that are
zero stay zero, which is how a left-to-right model keeps its structure; a state that is never visited keeps
its parameters.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen.classical.emissions import Categorical as Categorical
from jaxgen.classical.emissions import Emission, normalised
from jaxgen.classical.emissions import Gaussian as Gaussian
from jaxgen.classical.emissions import Gaussians as Gaussians
from jaxgen.classical.forward_backward import forward as forward
from jaxgen.classical.forward_backward import forward_associative as forward_associative
from jaxgen.classical.forward_backward import posterior_sample as posterior_sample
from jaxgen.classical.forward_backward import smooth as smooth
from jaxgen.classical.forward_backward import viterbi as viterbi
from jaxgen.types import Batch, Metrics


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Hyperparameters of the hidden Markov model."""

    shape: tuple[int, ...] = (16,)
    """Shape of one sequence: (T,) symbols, or (T, D) vectors."""
    num_states: int = 4
    """Number of hidden states."""
    emission: Categorical | Gaussian | Emission = Categorical()
    """What a state emits: a symbol, or a vector."""
    left_to_right: bool = False
    """Start in the first state, and move only to the same state or the next one."""
    transition_prior: float = 0.0
    """Pseudo-counts per sequence for every possible start and move."""
    max_steps: int = 100
    """Maximum number of EM steps of `fit`."""
    tolerance: float = 1e-4
    """`fit` stops when a step raises the mean log-likelihood of a sequence by less than this, in nats."""
    stepwise_power: float = 0.7
    """`train_step` gives the counts of step t the weight (t + 1)^-power, in (0.5, 1]; 0 forgets the past."""


class Params(NamedTuple):
    """Probabilities, not their logarithms."""

    initial: Array  # (K,)
    transition: Array  # (K, K), rows sum to 1
    emission: Any  # as the emission has them: (K, S), rows sum to 1, or Gaussians


class Counts(NamedTuple):
    """Expected counts."""

    initial: Array  # (K,) per sequence
    transition: Array  # (K, K) per sequence
    emission: Any  # (K, S) per sequence, or Moments of K M Gaussians


class State(NamedTuple):
    """What training changes."""

    step: Array
    key: Array
    params: Params
    counts: Counts  # averaged over the steps so far


def from_data(dataset: Any, cfg: Config) -> Config:
    """`cfg` with the number of symbols in `dataset`, where states emit symbols and it is not set."""
    if not isinstance(cfg.emission, Categorical) or cfg.emission.num_symbols is not None:
        return cfg
    number = int(np.max(dataset[:]["tokens"])) + 1
    return dataclasses.replace(cfg, emission=dataclasses.replace(cfg.emission, num_symbols=number))


def init(key: Array, cfg: Config, batch: Batch | None = None) -> State:
    """A fresh state: random rows, and Gaussians at the k-means clusters of the frames of `batch`."""
    initial_key, transition_key, emission_key, step_key = jax.random.split(key, 4)
    k = cfg.num_states
    if cfg.left_to_right:
        initial = jax.nn.one_hot(0, k)
        transition = 0.5 * (jnp.eye(k) + jnp.eye(k, k=1)).at[-1, -1].set(2.0)
    else:
        initial = jax.random.dirichlet(initial_key, jnp.ones(k))
        transition = jax.random.dirichlet(transition_key, jnp.ones(k), (k,))
    frames = None if batch is None else _frames(cfg.emission.sequences(batch), cfg)
    emission = cfg.emission.init(emission_key, k, frames, cfg.shape[1:])
    params = Params(initial, transition, emission)
    return State(jnp.zeros((), jnp.int32), step_key, params, _no_counts(params, cfg))


def train_step(state: State, batch: Batch, cfg: Config) -> tuple[State, Metrics]:
    """One Baum-Welch step on "tokens" (B, T) or "x" (B, T, D), and on "mask" if the batch has one.

    The metric "nll" is that before the step, in nats per sequence.
    """
    x = cfg.emission.sequences(batch)
    new, log_z = _expectation(x, batch.get("mask"), state.params, cfg)
    rate = (state.step + 1.0) ** -cfg.stepwise_power
    moved = lambda old, new: old + rate * (new - old)
    counts = Counts(
        moved(state.counts.initial, new.initial),
        moved(state.counts.transition, new.transition),
        cfg.emission.blend(state.counts.emission, new.emission, rate),
    )
    params = _maximisation(counts, state.params, cfg)
    return state._replace(step=state.step + 1, params=params, counts=counts), {"nll": -log_z.mean()}


def fit(
    x: Any, cfg: Config, mask: Any = None, params: Params | None = None, key: Array | None = None
) -> State:
    """Baum-Welch on all sequences x, (N, T) symbols or (N, T, D) vectors, compiled as one loop.

    It is initialised from `params`, or by `init` with `key` (`jax.random.key(0)` if not given). `mask` (N, T)
    is False in padding. `state.step` counts the steps taken.

    Raises:
        ValueError: x of another shape, symbols outside 0..num_symbols - 1, values that are not finite, an
            empty sequence, or sequences that are impossible under the model.
    """
    x = jnp.asarray(x)
    mask = None if mask is None else jnp.asarray(mask, bool)
    if not isinstance(x, jax.core.Tracer):
        _check(x, jnp.ones(x.shape[:2], bool) if mask is None else mask, cfg)
    key = jax.random.key(0) if key is None else key
    state, log_likelihood = _fit(x, mask, params, key, cfg)
    if not isinstance(x, jax.core.Tracer) and not bool(jnp.isfinite(log_likelihood)):
        raise ValueError("some sequence is impossible under the model: set the priors above 0")
    return state


def sample(key: Array, state: State, n: int, cfg: Config) -> Array:
    """n sequences of cfg.shape[0] steps, (n, *shape)."""
    path_key, emission_key = jax.random.split(key)
    path = sample_states(path_key, state, n, cfg)
    return cfg.emission.draw(emission_key, state.params.emission, path).reshape(n, *cfg.shape)


def sample_states(key: Array, state: State, n: int, cfg: Config) -> Array:
    """n paths of hidden states, (n, T) int32."""
    keys = jax.random.split(key, cfg.shape[0])
    log_initial, log_transition = jnp.log(state.params.initial), jnp.log(state.params.transition)
    first = jax.random.categorical(keys[0], log_initial, shape=(n,))

    def move(current, key):
        following = jax.random.categorical(key, log_transition[current])
        return following, following

    _, rest = jax.lax.scan(move, first, keys[1:])
    return jnp.concatenate([first[None], rest]).T.astype(jnp.int32)


def log_prob(state: State, x: Array, cfg: Config, mask: Array | None = None) -> Array:
    """Exact log p(x) of sequences x, (B, T) or (B, T, D), in nats, (B,)."""
    return _over_sequences(forward, state.params, _tables(state.params, x, cfg), mask)[0]


def measure(cfg: Config) -> str:
    """What `log_prob` is of: symbols or real numbers."""
    return cfg.emission.measure


def log_likelihoods(params: Params, x: Array, cfg: Config) -> Array:
    """The table log p(x_t | z_t = k) of one sequence x, (T,) or (T, D): (T, K), -inf for unknown symbols."""
    return cfg.emission.log_likelihoods(params.emission, x)[0]


def decode_states(state: State, x: Array, cfg: Config, mask: Array | None = None) -> Array:
    """The likeliest path of each sequence, (B, T) int32."""
    return _over_sequences(viterbi, state.params, _tables(state.params, x, cfg), mask)[0]


@functools.partial(jax.jit, static_argnums=4)
def _fit(x, mask, params, key, cfg):
    batch = {"tokens" if len(cfg.shape) == 1 else "x": x} | ({} if mask is None else {"mask": mask})
    x = cfg.emission.sequences(batch)
    start = init(key, cfg, batch).params if params is None else jax.tree.map(jnp.asarray, params)

    def body(carry):
        params, _, previous, _, steps = carry
        counts, log_z = _expectation(x, mask, params, cfg)
        following = _maximisation(counts, params, cfg)
        return following, counts, log_z.mean(), previous, steps + 1

    def unfinished(carry):
        _, _, current, previous, steps = carry
        return (steps < cfg.max_steps) & ((steps < 2) | (current - previous >= cfg.tolerance))

    low = jnp.full((), -jnp.inf, start.initial.dtype)
    carry = start, _no_counts(start, cfg), low, low, jnp.int32(0)
    found, counts, log_likelihood, _, steps = jax.lax.while_loop(unfinished, body, carry)
    return State(steps, key, found, counts), log_likelihood


def _over_sequences(function, params, tables, mask):
    """`function` of each sequence's table, all of them (B, T, K)."""
    log_initial, log_transition = jnp.log(params.initial), jnp.log(params.transition)
    return jax.vmap(lambda table, mask: function(log_initial, log_transition, table, mask))(tables, mask)


def _tables(params, x, cfg):
    """The emission log-likelihoods of sequences x, (B, T, K)."""
    return jax.vmap(lambda x: log_likelihoods(params, x, cfg))(x)


def _expectation(x, mask, params, cfg):
    """Expected counts, and log p(x) (B,)."""
    frames = _frames(x, cfg)
    table, found = cfg.emission.log_likelihoods(params.emission, frames)
    tables = table.reshape(*x.shape[:2], -1)
    log_z, posterior, moves = _over_sequences(smooth, params, tables, mask)
    posteriors = posterior.reshape(table.shape)
    emission = cfg.emission.counts(params.emission, frames, posteriors, found, len(x))
    return Counts(posterior[:, 0].mean(0), moves.mean(0), emission), log_z


def _maximisation(counts, previous, cfg):
    possible = lambda p: cfg.transition_prior * (p > 0)
    initial = normalised(counts.initial + possible(previous.initial), previous.initial)
    transition = normalised(counts.transition + possible(previous.transition), previous.transition)
    return Params(initial, transition, cfg.emission.maximisation(counts.emission, previous.emission))


def _frames(x, cfg):
    """All time steps of sequences (B, T, ...), one after the other, (B T, ...)."""
    return x.reshape(-1, *cfg.shape[1:])


def _no_counts(params, cfg):
    emission = cfg.emission.no_counts(params.emission)
    return Counts(jnp.zeros_like(params.initial), jnp.zeros_like(params.transition), emission)


def _check(x, mask, cfg):
    if x.ndim != 1 + len(cfg.shape) or x.shape[2:] != cfg.shape[1:] or mask.shape != x.shape[:2]:
        raise ValueError(f"x must be (N, T, {cfg.shape[1:]}) with a mask (N, T), not {x.shape}, {mask.shape}")
    if not bool(mask[:, :1].all()) or x.shape[1] == 0:
        raise ValueError("a sequence of length 0 has no likelihood: leave it out")
    if bool((mask[:, 1:] & ~mask[:, :-1]).any()):
        raise ValueError("the mask must be True up to each sequence's end and False after it")
    cfg.emission.check(x[mask])
