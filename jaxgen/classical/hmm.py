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
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen.classical import gmm
from jaxgen.classical.forward_backward import forward as forward
from jaxgen.classical.forward_backward import forward_associative as forward_associative
from jaxgen.classical.forward_backward import posterior_sample as posterior_sample
from jaxgen.classical.forward_backward import smooth as smooth
from jaxgen.classical.forward_backward import viterbi as viterbi
from jaxgen.types import Batch, Metrics, observed


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Hyperparameters of the hidden Markov model."""

    shape: tuple[int, ...] = (16,)
    """Shape of one sequence: (T,) symbols, or (T, D) vectors."""
    num_states: int = 4
    """Hidden states."""
    emission: Literal["categorical", "gaussian"] = "categorical"
    """What a state emits: a symbol, or a vector."""
    num_symbols: int = 3
    """Categorical only: size of the alphabet."""
    num_mixtures: int = 1
    """Gaussian only: components in each state's mixture."""
    covariance: Literal["full", "diagonal"] = "full"
    """Gaussian only: of each component."""
    regularization: float = 1e-3
    """Gaussian only: added to the variances, in squared units of the data."""
    left_to_right: bool = False
    """Start in the first state, and move only to the same or the next."""
    transition_prior: float = 0.0
    """Pseudo-counts a sequence for every possible start and move."""
    emission_prior: float = 0.0
    """Categorical only: pseudo-counts a sequence for every symbol in every state."""
    max_steps: int = 100
    """Most EM steps of `fit`."""
    tolerance: float = 1e-4
    """`fit` stops when a step gains less than this in mean log-likelihood, nats a sequence."""
    stepwise_power: float = 0.7
    """`train_step` gives the counts of step t the weight (t + 1)^-power, in (0.5, 1]; 0 forgets the past."""


class Gaussians(NamedTuple):
    """Mixtures of Gaussians, one for each state."""

    weights: Array  # (K, M), rows sum to 1
    means: Array  # (K, M, D)
    covariances: Array  # (K, M, D, D) or diagonal (K, M, D)


class Params(NamedTuple):
    """Probabilities, not their logarithms."""

    initial: Array  # (K,)
    transition: Array  # (K, K), rows sum to 1
    emission: Any  # (K, S), rows sum to 1, or Gaussians


class Counts(NamedTuple):
    """Expected counts, a sequence."""

    initial: Array  # (K,)
    transition: Array  # (K, K)
    emission: Any  # (K, S), or gmm.Moments of K M components


class State(NamedTuple):
    """What training changes."""

    step: Array
    key: Array
    params: Params
    counts: Counts  # averaged over the steps so far


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
    if cfg.emission == "categorical":
        emission: Any = jax.random.dirichlet(emission_key, jnp.ones(cfg.num_symbols), (k,))
    else:
        mixture = _mixture(cfg)
        frames = None if batch is None else {"x": _sequences(batch, cfg).reshape(-1, mixture.num_dims)}
        emission = _by_state(gmm.init(emission_key, mixture, frames).params, cfg)
    params = Params(initial, transition, emission)
    return State(jnp.zeros((), jnp.int32), step_key, params, _zero_counts(params, cfg))


def train_step(state: State, batch: Batch, cfg: Config) -> tuple[State, Metrics]:
    """One Baum-Welch step on "tokens" (B, T) or "x" (B, T, D) and "mask", if there is one.

    "nll" is that before the step, in nats a sequence.
    """
    counts, log_z = _expectation(_sequences(batch, cfg), batch.get("mask"), state.params, cfg, centred=False)
    rate = (state.step + 1.0) ** -cfg.stepwise_power
    counts = jax.tree.map(lambda old, new: old + rate * (new - old), state.counts, counts)
    params = _maximisation(counts, state.params, cfg, centred=False)
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


def sample(key: Array, state: State, n: int, cfg: Config) -> Array:
    """n sequences of cfg.shape[0] steps, (n, *shape)."""
    path_key, emission_key = jax.random.split(key)
    path = sample_states(path_key, state, n, cfg)
    emission = state.params.emission
    if cfg.emission == "categorical":
        return jax.random.categorical(emission_key, jnp.log(emission[path])).astype(jnp.int32)
    mixture_key, noise_key = jax.random.split(emission_key)
    component = jax.random.categorical(mixture_key, jnp.log(emission.weights[path]))
    noise = jax.random.normal(noise_key, (*path.shape, emission.means.shape[-1]))
    covariance = emission.covariances[path, component]
    if cfg.covariance == "full":
        noise = jnp.einsum("...de,...e->...d", jnp.linalg.cholesky(covariance), noise)
    else:
        noise = noise * jnp.sqrt(covariance)
    return (emission.means[path, component] + noise).reshape(n, *cfg.shape)


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


def log_likelihoods(params: Params, x: Array, cfg: Config) -> Array:
    """The table log p(x_t | z_t = k) of one sequence x, (T,) or (T, D): (T, K), -inf for unknown symbols."""
    if cfg.emission == "categorical":
        known = (x >= 0) & (x < cfg.num_symbols)
        return jnp.where(known[:, None], jnp.log(params.emission).T[x], -jnp.inf)
    return _over_mixtures(_log_joint(params, x.reshape(len(x), -1), cfg))


def decode_states(state: State, x: Array, cfg: Config, mask: Array | None = None) -> Array:
    """The likeliest path of each sequence, (B, T) int32."""
    return _over_sequences(viterbi, state.params, _tables(state.params, x, cfg), mask)[0]


@functools.partial(jax.jit, static_argnums=4)
def _fit(x, mask, params, key, cfg):
    batch = {"tokens" if cfg.emission == "categorical" else "x": x}
    batch |= {} if mask is None else {"mask": mask}
    x = _sequences(batch, cfg)
    start = init(key, cfg, batch).params if params is None else jax.tree.map(jnp.asarray, params)

    def body(carry):
        params, _, previous, _, steps = carry
        counts, log_z = _expectation(x, mask, params, cfg, centred=True)
        following = _maximisation(counts, params, cfg, centred=True)
        if cfg.emission == "gaussian":
            means = params.emission.means.reshape(counts.emission.first.shape)
            counts = counts._replace(emission=gmm.about_zero(counts.emission, means, _mixture(cfg)))
        return following, counts, log_z.mean(), previous, steps + 1

    def unfinished(carry):
        _, _, current, previous, steps = carry
        return (steps < cfg.max_steps) & ((steps < 2) | (current - previous >= cfg.tolerance))

    low = jnp.full((), -jnp.inf, start.initial.dtype)
    carry = start, _zero_counts(start, cfg), low, low, jnp.int32(0)
    found, counts, log_likelihood, _, steps = jax.lax.while_loop(unfinished, body, carry)
    return State(steps, key, found, counts), log_likelihood


def _over_sequences(function, params, tables, mask):
    """`function` of each sequence's table, all of them (B, T, K)."""
    log_initial, log_transition = jnp.log(params.initial), jnp.log(params.transition)
    return jax.vmap(lambda table, mask: function(log_initial, log_transition, table, mask))(tables, mask)


def _tables(params, x, cfg):
    """The emission log-likelihoods of sequences x, (B, T, K)."""
    return jax.vmap(lambda x: log_likelihoods(params, x, cfg))(x)


def _log_joint(params, frames, cfg):
    """log p(x, m | k) of frames x (N, D) from mixture component m of state k, (N, K, M)."""
    weights, means, covariances = params.emission
    flat = lambda a: a.reshape(-1, *a.shape[2:])
    densities = gmm.log_densities(frames, flat(means), flat(covariances), _mixture(cfg))
    return densities.reshape(-1, *weights.shape) + jnp.log(weights)


def _over_mixtures(log_joint):
    return log_joint[..., 0] if log_joint.shape[-1] == 1 else jax.nn.logsumexp(log_joint, -1)


def _expectation(x, mask, params, cfg, centred):
    """Counts a sequence, and log p(x) (B,); Gaussian moments about the means if `centred`, else about 0."""
    if cfg.emission == "categorical":
        log_z, posterior, moves = _over_sequences(smooth, params, _tables(params, x, cfg), mask)
        rows = posterior.reshape(-1, cfg.num_states)
        emission = jax.ops.segment_sum(rows, x.reshape(-1), cfg.num_symbols).T / len(x)
    else:
        mixture = _mixture(cfg)
        frames = x.reshape(-1, mixture.num_dims)
        log_joint = _log_joint(params, frames, cfg)
        tables = _over_mixtures(log_joint)
        log_z, posterior, moves = _over_sequences(smooth, params, tables.reshape(*x.shape[:2], -1), mask)
        rows = posterior.reshape(tables.shape)
        if cfg.num_mixtures > 1:
            rows = (rows[..., None] * jax.nn.softmax(log_joint, -1)).reshape(len(frames), -1)
        means = params.emission.means.reshape(-1, mixture.num_dims)
        origin = means if centred else jnp.zeros_like(means)
        emission = jax.tree.map(lambda a: a / len(frames), gmm.moment_sums(frames, rows, origin, mixture))
    return Counts(posterior[:, 0].mean(0), moves.mean(0), emission), log_z


def _maximisation(counts, previous, cfg, centred):
    possible = lambda p: cfg.transition_prior * (p > 0)
    initial = _rows(counts.initial + possible(previous.initial), previous.initial)
    transition = _rows(counts.transition + possible(previous.transition), previous.transition)
    if cfg.emission == "categorical":
        emission = _rows(counts.emission + cfg.emission_prior, previous.emission)
    else:
        flat = lambda a: a.reshape(-1, *a.shape[2:])
        before = gmm.Params(*map(flat, previous.emission))
        origin = before.means if centred else jnp.zeros_like(before.means)
        emission = _by_state(gmm.maximisation(counts.emission, origin, before, _mixture(cfg)), cfg)
        weights = _rows(emission.weights, previous.emission.weights)
        emission = emission._replace(weights=weights)
    return Params(initial, transition, emission)


def _rows(counts, previous):
    """Counts normalised along the last axis; rows without any stay as they were."""
    total = counts.sum(-1, keepdims=True)
    return jnp.where(total > 0, counts / jnp.where(total > 0, total, 1.0), previous)


def _sequences(batch, cfg):
    """The batch's sequences; what fills the padding, NaN perhaps, gives way to their first frames."""
    if cfg.emission == "categorical":
        return batch["tokens"]
    x = observed(batch)
    return jnp.where(batch["mask"][..., None], x, x[:, :1]) if "mask" in batch else x


def _mixture(cfg):
    return gmm.Config(
        shape=cfg.shape[1:],
        num_components=cfg.num_states * cfg.num_mixtures,
        covariance=cfg.covariance,
        regularization=cfg.regularization,
    )


def _by_state(params, cfg):
    shape = (cfg.num_states, cfg.num_mixtures)
    weights, means, covariances = (a.reshape(*shape, *a.shape[1:]) for a in params)
    weights = weights / jnp.maximum(weights.sum(1, keepdims=True), jnp.finfo(weights.dtype).tiny)
    return Gaussians(weights, means, covariances)


def _zero_counts(params, cfg):
    zero = lambda a: jnp.zeros_like(a)
    if cfg.emission == "categorical":
        return jax.tree.map(zero, Counts(*params))
    moments = gmm.zero_moments(_mixture(cfg), params.initial.dtype)
    return Counts(zero(params.initial), zero(params.transition), moments)


def _check(x, mask, cfg):
    if x.ndim != 1 + len(cfg.shape) or x.shape[2:] != cfg.shape[1:] or mask.shape != x.shape[:2]:
        raise ValueError(f"x must be (N, T, {cfg.shape[1:]}) with a mask (N, T), not {x.shape}, {mask.shape}")
    if not bool(mask[:, :1].all()) or x.shape[1] == 0:
        raise ValueError("a sequence of length 0 has no likelihood: leave it out")
    if bool((mask[:, 1:] & ~mask[:, :-1]).any()):
        raise ValueError("the mask must be True up to each sequence's end and False after it")
    if cfg.emission == "categorical":
        seen = x[mask]
        if not jnp.issubdtype(x.dtype, jnp.integer) or seen.min() < 0 or seen.max() >= cfg.num_symbols:
            raise ValueError(f"symbols must be integers in 0..{cfg.num_symbols - 1}")
    elif not bool(jnp.isfinite(x[mask]).all()):
        raise ValueError("x has values that are not finite (NaN or infinity)")
