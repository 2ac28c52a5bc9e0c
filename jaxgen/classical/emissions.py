"""What the states of a hidden Markov model emit: symbols, or vectors under mixtures of Gaussians.

An emission is a value of `hmm.Config`. Its methods are the parts of the model that depend on it: how the
parameters start, the log-likelihoods log p(x_t | z_t = k), the expected counts of Baum-Welch, what maximises
their likelihood, and draws.
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen import values
from jaxgen.arguments import symbols
from jaxgen.classical import gaussians, gmm
from jaxgen.fields import NonNegativeFloat, PositiveInt
from jaxgen.moments import Moments
from jaxgen.types import Batch, observed


@dataclasses.dataclass(frozen=True)
class Symbols(values.Value):
    """Each state emits symbols 0, 1, ... of an alphabet; the parameters are rows of probabilities (K, S)."""

    num_symbols: PositiveInt | None = None
    """Size of the alphabet; by default that of the data, see `hmm.from_data`."""
    prior: NonNegativeFloat = 0.0
    """Pseudo-counts a sequence for every symbol in every state."""

    measure = "symbols"
    name = "tokens"

    @property
    def size(self) -> int:
        """The size of the alphabet. Raises ValueError if it is not known."""
        if not self.num_symbols:
            raise ValueError(
                "the size of the alphabet is not known: give Symbols(num_symbols) for tokens,"
                " or Gaussians() for vectors over time"
            )
        return self.num_symbols

    def sequences(self, batch: Batch) -> Array:
        """The sequences of a batch, (B, T)."""
        return batch["tokens"]

    def init(self, key: Array, batch: Batch | None, cfg: Any) -> Array:
        """Random rows, (K, S)."""
        return jax.random.dirichlet(key, jnp.ones(self.size), (cfg.num_states,))

    def log_likelihoods(self, emission: Array, x: Array, cfg: Any) -> Array:
        """Of symbols x (N,): (N, K), -inf for unknown symbols. Raises ValueError for what are no integers."""
        x = symbols(x)
        known = (x >= 0) & (x < self.size)
        return jnp.where(known[:, None], jnp.log(emission).T[x], -jnp.inf)

    def expectation(self, emission: Array, x: Array, posterior: Array, cfg: Any) -> Array:
        """Expected counts a sequence, (K, S), of x (B, T) with the posterior of the states (B, T, K)."""
        rows = posterior.reshape(-1, cfg.num_states)
        return jax.ops.segment_sum(rows, x.reshape(-1), self.size).T / len(x)

    def maximisation(self, counts: Array, previous: Array, cfg: Any) -> Array:
        """The likeliest rows, (K, S)."""
        return normalised(counts + self.prior, previous)

    def zero_counts(self, emission: Array, cfg: Any) -> Array:
        """No counts at all."""
        return jnp.zeros_like(emission)

    def blend(self, old: Array, new: Array, rate: Array) -> Array:
        """The running average of counts, (1 - rate) old + rate new."""
        return old + rate * (new - old)

    def sample(self, key: Array, emission: Array, path: Array, cfg: Any) -> Array:
        """Symbols of paths of states (N, T), (N, T) int32."""
        return jax.random.categorical(key, jnp.log(emission[path])).astype(jnp.int32)

    def check(self, seen: Array) -> None:
        """Raises ValueError for what is no symbol."""
        if not jnp.issubdtype(seen.dtype, jnp.integer) or seen.min() < 0 or seen.max() >= self.size:
            raise ValueError(f"symbols must be integers in 0..{self.size - 1}")


class Mixtures(NamedTuple):
    """Mixtures of Gaussians, one for each state."""

    weights: Array  # (K, M), rows sum to 1
    means: Array  # (K, M, D)
    covariances: Array  # (K, M, D, D) or diagonal (K, M, D)


@dataclasses.dataclass(frozen=True)
class Gaussians(values.Value):
    """Each state emits vectors of a mixture of Gaussians; the parameters are `Mixtures`."""

    num_components: PositiveInt = 1
    """Gaussians in the mixture of each state."""
    covariance: Literal["full", "diagonal"] = "full"
    """Form of their covariances."""
    regularization: NonNegativeFloat = 1e-3
    """Added to the variances, in squared units of the data."""

    measure = "density"
    name = "x"

    def sequences(self, batch: Batch) -> Array:
        """The sequences of a batch, (B, T, D); what fills the padding gives way to their first frames."""
        x = observed(batch)
        return jnp.where(batch["mask"][..., None], x, x[:, :1]) if "mask" in batch else x

    def init(self, key: Array, batch: Batch | None, cfg: Any) -> Mixtures:
        """Gaussians at the k-means clusters of the frames of a batch."""
        mixture = gmm.Config(
            shape=cfg.shape[1:],
            num_components=cfg.num_states * self.num_components,
            covariance=self.covariance,
            regularization=self.regularization,
        )
        frames = None if batch is None else {"x": self.sequences(batch).reshape(-1, mixture.num_dims)}
        return self._by_state(*gmm.init(key, mixture, frames).params, cfg)

    def log_likelihoods(self, emission: Mixtures, x: Array, cfg: Any) -> Array:
        """Of frames x (N, D): (N, K)."""
        return _over_components(self._log_joint(emission, x.reshape(len(x), emission.means.shape[-1])))

    def expectation(self, emission: Mixtures, x: Array, posterior: Array, cfg: Any) -> Moments:
        """Moments of x (B, T, D) with the posterior of the states (B, T, K), as shares of the frames."""
        frames = x.reshape(-1, emission.means.shape[-1])
        rows = posterior.reshape(-1, cfg.num_states)
        if self.num_components > 1:
            shares = jax.nn.softmax(self._log_joint(emission, frames), -1)
            rows = (rows[..., None] * shares).reshape(len(frames), -1)
        means = _merged(emission.means)
        sums = gaussians.moment_sums(frames, rows, means, self.covariance)
        return gaussians.centred(jax.tree.map(lambda a: a / len(frames), sums), means, self.covariance)

    def maximisation(self, counts: Moments, previous: Mixtures, cfg: Any) -> Mixtures:
        """The likeliest mixtures."""
        before = gaussians.Gaussians(_merged(previous.means), _merged(previous.covariances))
        found = gaussians.maximisation(counts, before, self.covariance, self.regularization)
        emission = self._by_state(counts.weight, *found, cfg)
        return emission._replace(weights=normalised(emission.weights, previous.weights))

    def zero_counts(self, emission: Mixtures, cfg: Any) -> Moments:
        """No moments at all."""
        means = _merged(emission.means)
        return gaussians.no_moments(len(means), means.shape[1], self.covariance, means.dtype)

    def blend(self, old: Moments, new: Moments, rate: Array) -> Moments:
        """The running average of moments, (1 - rate) old + rate new."""
        return gaussians.blend(old, new, rate, self.covariance)

    def sample(self, key: Array, emission: Mixtures, path: Array, cfg: Any) -> Array:
        """Vectors of paths of states (N, T), (N, T, D)."""
        mixture_key, noise_key = jax.random.split(key)
        component = jax.random.categorical(mixture_key, jnp.log(emission.weights[path]))
        number = (path * self.num_components + component).reshape(-1)
        means, covariances = _merged(emission.means), _merged(emission.covariances)
        drawn = gaussians.draw(noise_key, number, means, covariances, self.covariance)
        return drawn.reshape(*path.shape, -1)

    def check(self, seen: Array) -> None:
        """Raises ValueError for values that are not finite."""
        if not bool(jnp.isfinite(seen).all()):
            raise ValueError("x has values that are not finite (NaN or infinity)")

    def _log_joint(self, emission, frames):
        """log p(x, m | k) of frames x (N, D) from component m of state k, (N, K, M)."""
        weights, means, covariances = emission
        densities = gaussians.log_densities(frames, _merged(means), _merged(covariances), self.covariance)
        return densities.reshape(-1, *weights.shape) + jnp.log(weights)

    def _by_state(self, weights, means, covariances, cfg):
        split = lambda a: a.reshape(cfg.num_states, self.num_components, *a.shape[1:])
        weights, means, covariances = split(weights), split(means), split(covariances)
        weights = weights / jnp.maximum(weights.sum(1, keepdims=True), jnp.finfo(weights.dtype).tiny)
        return Mixtures(weights, means, covariances)


def normalised(counts: Array, previous: Array) -> Array:
    """Counts normalised along the last axis; rows without any stay as they were."""
    total = counts.sum(-1, keepdims=True)
    return jnp.where(total > 0, counts / jnp.where(total > 0, total, 1.0), previous)


def _merged(a):
    """An array (K, M, ...) as (K M, ...)."""
    return a.reshape(-1, *a.shape[2:])


def _over_components(log_joint):
    return log_joint[..., 0] if log_joint.shape[-1] == 1 else jax.nn.logsumexp(log_joint, -1)
