"""Hidden Markov model (Baum et al. 1970; Rabiner 1989).

A Markov chain over K hidden states, z_1 ~ pi, z_t ~ A[z_{t-1}], emits x_t ~ p(x | z_t). Everything is
computed from a table of emission log-likelihoods (T, K), by `forward`, `smooth`, `viterbi` and
`posterior_sample`. Emissions are categorical, or mixtures of Gaussians (one by default).

Baum-Welch is expectation maximisation: expected counts of starts, moves and emissions, normalised. `fit` runs
it to convergence in one compiled loop; `train_step` averages the counts of batches over time (Cappe 2011).
Sequences of unequal length are padded at the end and masked.

Departs from the textbook: Dirichlet pseudo-counts make it a maximum a posteriori fit; probabilities that are
zero stay zero, which is how a left-to-right model keeps its structure; a state nobody visits stays as it is.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen import values
from jaxgen.arguments import checked
from jaxgen.classical.emissions import Gaussians, Symbols, normalised
from jaxgen.classical.forward_backward import forward as forward
from jaxgen.classical.forward_backward import forward_associative as forward_associative
from jaxgen.classical.forward_backward import posterior_sample as posterior_sample
from jaxgen.classical.forward_backward import smooth as smooth
from jaxgen.classical.forward_backward import viterbi as viterbi
from jaxgen.fields import Fraction, NonNegativeFloat, NonNegativeInt, PositiveInt
from jaxgen.types import Batch, Metrics


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(values.Value):
    """Hyperparameters of the hidden Markov model."""

    any_length = True
    """Sequences may be longer or shorter than `shape` says, which is the length of samples."""
    shape: tuple[PositiveInt, ...] = (16,)
    """Shape of one sequence: (T,) symbols, or (T, D) vectors."""
    num_states: PositiveInt = 4
    """Hidden states."""
    emission: Symbols | Gaussians = Symbols()
    """What a state emits, a symbol or a vector; or a Value of one's own with the same methods."""
    left_to_right: bool = False
    """Start in the first state, and move only to the same or the next."""
    transition_prior: NonNegativeFloat = 0.0
    """Pseudo-counts a sequence for every possible start and move."""
    max_steps: NonNegativeInt = 100
    """Most EM steps of `fit`."""
    tolerance: NonNegativeFloat = 1e-4
    """`fit` stops when a step raises the mean log-likelihood by less than this, in nats; 0 never stops it."""
    stepwise_power: Fraction = 0.7
    """`train_step` gives the counts of step t the weight (t + 1)^-power, in (0.5, 1]; 0 forgets the past."""


class Params(NamedTuple):
    """Probabilities, not their logarithms."""

    initial: Array  # (K,)
    transition: Array  # (K, K), rows sum to 1
    emission: Any  # (K, S), rows sum to 1, or `emissions.Mixtures`


class Counts(NamedTuple):
    """Expected counts, a sequence."""

    initial: Array  # (K,)
    transition: Array  # (K, K)
    emission: Any  # (K, S), or Moments of K M Gaussians


class State(NamedTuple):
    """What training changes."""

    step: Array
    key: Array
    params: Params
    counts: Counts  # averaged over the steps so far


def from_data(dataset: Any, cfg: Config) -> Config:
    """`cfg` with the size of the data's alphabet, if it is not given."""
    if not isinstance(cfg.emission, Symbols) or cfg.emission.num_symbols or "tokens" not in dataset[:1]:
        return cfg
    num_symbols = int(dataset[:]["tokens"].max()) + 1
    return dataclasses.replace(cfg, emission=dataclasses.replace(cfg.emission, num_symbols=num_symbols))


@checked
def init(key: Array, cfg: Config, batch: Batch | None = None) -> State:
    """A fresh state: random rows, and Gaussians at the k-means clusters of the frames of `batch`.

    In a left-to-right model the states are in the order of the mean time of their frames.
    """
    initial_key, transition_key, emission_key, step_key = jax.random.split(key, 4)
    k = cfg.num_states
    if cfg.left_to_right:
        initial = jax.nn.one_hot(0, k)
        transition = 0.5 * (jnp.eye(k) + jnp.eye(k, k=1)).at[-1, -1].set(2.0)
    else:
        initial = jax.random.dirichlet(initial_key, jnp.ones(k))
        transition = jax.random.dirichlet(transition_key, jnp.ones(k), (k,))
    emission = cfg.emission.init(emission_key, batch, cfg)
    if cfg.left_to_right and batch is not None:
        emission = _in_order_of_time(emission, cfg.emission.sequences(batch), batch.get("mask"), cfg)
    params = Params(initial, transition, emission)
    return State(jnp.zeros((), jnp.int32), step_key, params, _zero_counts(params, cfg))


@checked
def train_step(state: State, batch: Batch, cfg: Config) -> tuple[State, Metrics]:
    """One Baum-Welch step on "tokens" (B, T) or "x" (B, T, D) and "mask", if there is one.

    "nll" is that before the step, in nats a sequence.
    """
    new, log_z = _expectation(cfg.emission.sequences(batch), batch.get("mask"), state.params, cfg)
    rate, old = (state.step + 1.0) ** -cfg.stepwise_power, state.counts
    counts = Counts(
        old.initial + rate * (new.initial - old.initial),
        old.transition + rate * (new.transition - old.transition),
        cfg.emission.blend(old.emission, new.emission, rate),
    )
    params = _maximisation(counts, state.params, cfg)
    return state._replace(step=state.step + 1, params=params, counts=counts), {"nll": -log_z.mean()}


def fit(
    x: Any, cfg: Config, mask: Any = None, params: Params | None = None, key: Array | None = None
) -> State:
    """Baum-Welch on all sequences x, (N, T) symbols or (N, T, D) vectors, compiled as one loop.

    Starts from `params`, or from `init` with `key` (`jax.random.key(0)` if not given). `mask` (N, T) is False
    in padding. `state.step` counts the steps taken.

    Raises:
        ValueError: x of another shape, symbols outside 0..num_symbols - 1, values that are not finite, an
            empty sequence, or sequences the model cannot emit.
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


@checked
def sample(key: Array, state: State, n: int, cfg: Config) -> Array:
    """n sequences of cfg.shape[0] steps, (n, *shape)."""
    path_key, emission_key = jax.random.split(key)
    path = sample_states(path_key, state, n, cfg)
    x = cfg.emission.sample(emission_key, state.params.emission, path, cfg)
    return x.reshape(n, *cfg.shape)


def sample_states(key: Array, state: State, n: int, cfg: Config) -> Array:
    """n paths of hidden states, (n, T) int32."""
    keys = jax.random.split(key, cfg.shape[0])
    log_initial, log_transition = _log_moves(state.params)
    first = jax.random.categorical(keys[0], log_initial, shape=(n,))

    def move(current, key):
        following = jax.random.categorical(key, log_transition[current])
        return following, following

    _, rest = jax.lax.scan(move, first, keys[1:])
    return jnp.concatenate([first[None], rest]).T.astype(jnp.int32)


def measure(cfg: Config) -> str:
    """What `log_prob` is of: "symbols", or the "density" of vectors."""
    return cfg.emission.measure


@checked
def log_prob(state: State, x: Array, cfg: Config, mask: Array | None = None) -> Array:
    """Exact log p(x) of sequences x, (B, T) or (B, T, D), in nats, (B,)."""
    return forward(*_log_moves(state.params), _tables(state.params, x, cfg), mask)[0]


def log_likelihoods(params: Params, x: Array, cfg: Config) -> Array:
    """The table log p(x_t | z_t = k) of one sequence x, (T,) or (T, D): (T, K), -inf for unknown symbols."""
    return cfg.emission.log_likelihoods(params.emission, x, cfg)


def decode_states(state: State, x: Array, cfg: Config, mask: Array | None = None) -> Array:
    """The likeliest path of each sequence, (B, T) int32."""
    log_initial, log_transition = _log_moves(state.params)
    path = lambda table, mask: viterbi(log_initial, log_transition, table, mask)[0]
    return jax.vmap(path)(_tables(state.params, x, cfg), mask)


@functools.partial(jax.jit, static_argnums=4)
def _fit(x, mask, params, key, cfg):
    batch = {cfg.emission.name: x}
    batch |= {} if mask is None else {"mask": mask}
    x = cfg.emission.sequences(batch)
    start = init(key, cfg, batch).params if params is None else jax.tree.map(jnp.asarray, params)

    def body(carry):
        params, _, previous, _, steps = carry
        counts, log_z = _expectation(x, mask, params, cfg)
        following = _maximisation(counts, params, cfg)
        return following, counts, log_z.mean(), previous, steps + 1

    def unfinished(carry):
        _, _, current, previous, steps = carry
        gains = (steps < 2) | (current - previous >= cfg.tolerance) | (cfg.tolerance == 0)
        return (steps < cfg.max_steps) & gains

    low = jnp.full((), -jnp.inf, start.initial.dtype)
    carry = start, _zero_counts(start, cfg), low, low, jnp.int32(0)
    found, counts, log_likelihood, _, steps = jax.lax.while_loop(unfinished, body, carry)
    return State(steps, key, found, counts), log_likelihood


def _log_moves(params: Params) -> tuple[Array, Array]:
    return jnp.log(params.initial), jnp.log(params.transition)


def _tables(params, x, cfg):
    """The emission log-likelihoods of sequences x, (B, T, K)."""
    frames = x.reshape(-1, *x.shape[2:])
    return log_likelihoods(params, frames, cfg).reshape(*x.shape[:2], cfg.num_states)


def _expectation(x, mask, params, cfg):
    """Expected counts, those of starts and moves per sequence, and log p(x) (B,)."""
    log_z, posterior, moves = smooth(*_log_moves(params), _tables(params, x, cfg), mask)
    emission = cfg.emission.expectation(params.emission, x, posterior, cfg)
    return Counts(posterior[:, 0].mean(0), moves.mean(0), emission), log_z


def _in_order_of_time(emission, x, mask, cfg):
    """The states sorted by the mean time of the frames of x (B, T, ...) that each is likeliest to emit."""
    frames = x.reshape(-1, *x.shape[2:])
    best = cfg.emission.log_likelihoods(emission, frames, cfg).argmax(-1).reshape(x.shape[:2])
    member = jax.nn.one_hot(best, cfg.num_states)
    member = member if mask is None else jnp.where(mask[..., None], member, 0.0)
    time = jnp.arange(x.shape[1])[:, None]
    order = jnp.argsort((member * time).sum((0, 1)) / jnp.maximum(member.sum((0, 1)), 1e-6))
    return jax.tree.map(lambda a: a[order], emission)


def _maximisation(counts, previous, cfg):
    possible = lambda p: cfg.transition_prior * (p > 0)
    initial = normalised(counts.initial + possible(previous.initial), previous.initial)
    transition = normalised(counts.transition + possible(previous.transition), previous.transition)
    emission = cfg.emission.maximisation(counts.emission, previous.emission, cfg)
    return Params(initial, transition, emission)


def _zero_counts(params, cfg):
    emission = cfg.emission.zero_counts(params.emission, cfg)
    return Counts(jnp.zeros_like(params.initial), jnp.zeros_like(params.transition), emission)


def _check(x, mask, cfg):
    if x.ndim != 1 + len(cfg.shape) or x.shape[2:] != cfg.shape[1:] or mask.shape != x.shape[:2]:
        raise ValueError(f"x must be (N, T, {cfg.shape[1:]}) with a mask (N, T), not {x.shape}, {mask.shape}")
    if not bool(mask[:, :1].all()) or x.shape[1] == 0:
        raise ValueError("a sequence of length 0 has no likelihood: leave it out")
    if bool((mask[:, 1:] & ~mask[:, :-1]).any()):
        raise ValueError("the mask must be True up to each sequence's end and False after it")
    cfg.emission.check(x[mask])
