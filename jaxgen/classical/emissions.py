"""What a state of a hidden Markov model emits: a symbol, or a vector from a mixture of Gaussians."""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen.classical import gaussians, gmm
from jaxgen.moments import Moments
from jaxgen.types import Batch, observed
from jaxgen.values import Value


class Emission(Value):
    """p(x | z) of a frame x, one time step of a sequence, in each of K states z."""

    measure: str
    """What the likelihood is of, "symbols" or "density"."""

    def init(self, key: Array, num_states: int, frames: Array | None, shape: tuple[int, ...]) -> Any:
        """Parameters, drawn with `key` or initialised from frames (N, *shape)."""
        raise NotImplementedError

    def log_likelihoods(self, params: Any, frames: Array) -> tuple[Array, Any]:
        """log p(x | z = k) of frames (N, *shape), (N, K), and whatever `counts` needs again."""
        raise NotImplementedError

    def no_counts(self, params: Any) -> Any:
        """The counts of no data."""
        raise NotImplementedError

    def counts(self, params: Any, frames: Array, posterior: Array, found: Any, num_sequences: int) -> Any:
        """Expected statistics of frames (N, *shape) from posteriors (N, K) of their states."""
        raise NotImplementedError

    def blend(self, old: Any, new: Any, rate: Array) -> Any:
        """(1 - rate) old + rate new, of counts."""
        raise NotImplementedError

    def maximisation(self, counts: Any, previous: Any) -> Any:
        """The parameters that these counts make most probable; without data the previous ones."""
        raise NotImplementedError

    def draw(self, key: Array, params: Any, path: Array) -> Array:
        """Frames emitted by states (n, T), (n, T, *shape)."""
        raise NotImplementedError

    def sequences(self, batch: Batch) -> Array:
        """The sequences of a batch, (B, T, *shape), free of NaN."""
        raise NotImplementedError

    def check(self, x: Array) -> None:
        """Raises ValueError for frames (N, *shape) that cannot be emitted."""
        raise NotImplementedError


class Gaussians(NamedTuple):
    """Mixtures of Gaussians, one for each state."""

    weights: Array  # (K, M), rows sum to 1
    means: Array  # (K, M, D)
    covariances: Array  # (K, M, D, D) or diagonal (K, M, D)


@dataclasses.dataclass(frozen=True)
class Categorical(Emission):
    """A state emits one of a finite number of symbols. Its parameters are probabilities (K, S)."""

    num_symbols: int | None = None
    """Size of the alphabet; by default that of the training data."""
    prior: float = 0.0
    """Pseudo-counts per sequence for every symbol in every state."""

    measure = "symbols"

    @property
    def size(self) -> int:
        """The size of the alphabet. Raises ValueError if it is not known."""
        if self.num_symbols is None:
            raise ValueError("the size of the alphabet is not known: set num_symbols, or use `from_data`")
        return self.num_symbols

    def init(self, key: Array, num_states: int, frames: Array | None, shape: tuple[int, ...]) -> Array:
        """Random rows."""
        return jax.random.dirichlet(key, jnp.ones(self.size), (num_states,))

    def log_likelihoods(self, params: Array, frames: Array) -> tuple[Array, None]:
        """log p(x | z = k) of frames (N,), (N, K), -inf for unknown symbols; nothing else is needed later."""
        known = (frames >= 0) & (frames < self.size)
        return jnp.where(known[:, None], jnp.log(params).T[frames], -jnp.inf), None

    def no_counts(self, params: Array) -> Array:
        """The counts of no data."""
        return jnp.zeros_like(params)

    def counts(
        self, params: Array, frames: Array, posterior: Array, found: None, num_sequences: int
    ) -> Array:
        """Expected counts of state and symbol per sequence, (K, S)."""
        return jax.ops.segment_sum(posterior, frames, self.size).T / num_sequences

    def blend(self, old: Array, new: Array, rate: Array) -> Array:
        """(1 - rate) old + rate new."""
        return old + rate * (new - old)

    def maximisation(self, counts: Array, previous: Array) -> Array:
        """The most probable rows."""
        return normalised(counts + self.prior, previous)

    def draw(self, key: Array, params: Array, path: Array) -> Array:
        """Symbols of states (n, T), (n, T) int32."""
        return jax.random.categorical(key, jnp.log(params[path])).astype(jnp.int32)

    def sequences(self, batch: Batch) -> Array:
        """The symbols of a batch, (B, T)."""
        return batch["tokens"]

    def check(self, x: Array) -> None:
        """Raises ValueError for frames (N,) that cannot be emitted."""
        integers = jnp.issubdtype(x.dtype, jnp.integer)
        if not integers or x.min() < 0 or x.max() >= self.size:
            raise ValueError(f"symbols must be integers in 0..{self.size - 1}")


@dataclasses.dataclass(frozen=True)
class Gaussian(Emission):
    """A state emits a vector from a mixture of Gaussians. Its parameters are `Gaussians`."""

    num_mixtures: int = 1
    """Number of Gaussians in the mixture of each state."""
    covariance: Literal["full", "diagonal"] = "full"
    """Covariance of each Gaussian: unrestricted, or axis-aligned."""
    regularization: float = 1e-3
    """Number added to the variances, in squared units of the data."""

    measure = "density"

    def init(self, key: Array, num_states: int, frames: Array | None, shape: tuple[int, ...]) -> Gaussians:
        """Gaussians of the k-means clusters of frames (N, *shape), or random ones."""
        mixture = gmm.Config(
            shape=shape,
            num_components=num_states * self.num_mixtures,
            covariance=self.covariance,
            regularization=self.regularization,
        )
        params = gmm.init(key, mixture, None if frames is None else {"x": frames}).params
        return self._by_state(num_states, *params)

    def log_likelihoods(self, params: Gaussians, frames: Array) -> tuple[Array, Array]:
        """log p(x | z = k) of frames (N, *shape), (N, K), and log p(x, m | z = k), (N, K, M)."""
        x, (weights, means, covariances) = _flat(frames), params
        log_joint = gaussians.log_densities(x, _merged(means), _merged(covariances), self.covariance)
        log_joint = log_joint.reshape(-1, *weights.shape) + jnp.log(weights)
        one = self.num_mixtures == 1
        return log_joint[..., 0] if one else jax.nn.logsumexp(log_joint, -1), log_joint

    def no_counts(self, params: Gaussians) -> Moments:
        """The moments of no data."""
        means = _merged(params.means)
        return gaussians.no_moments(len(means), means.shape[1], self.covariance, means.dtype)

    def counts(
        self, params: Gaussians, frames: Array, posterior: Array, found: Array, num_sequences: int
    ) -> Moments:
        """Moments of K M Gaussians, whose weights are shares of the frames."""
        x, means = _flat(frames), _merged(params.means)
        if self.num_mixtures > 1:
            posterior = (posterior[..., None] * jax.nn.softmax(found, -1)).reshape(len(x), -1)
        sums = gaussians.moment_sums(x, posterior, means, self.covariance)
        return gaussians.centred(jax.tree.map(lambda a: a / len(x), sums), means, self.covariance)

    def blend(self, old: Moments, new: Moments, rate: Array) -> Moments:
        """(1 - rate) old + rate new."""
        return gaussians.blend(old, new, rate, self.covariance)

    def maximisation(self, counts: Moments, previous: Gaussians) -> Gaussians:
        """The likeliest parameters; a Gaussian without data keeps its own."""
        before = gaussians.Gaussians(_merged(previous.means), _merged(previous.covariances))
        found = gaussians.maximisation(counts, before, self.covariance, self.regularization)
        by_state = self._by_state(len(previous.weights), counts.weight, *found)
        return by_state._replace(weights=normalised(by_state.weights, previous.weights))

    def draw(self, key: Array, params: Gaussians, path: Array) -> Array:
        """Vectors of states (n, T), (n, T, D)."""
        mixture_key, noise_key = jax.random.split(key)
        component = jax.random.categorical(mixture_key, jnp.log(params.weights[path]))
        number = (path * self.num_mixtures + component).reshape(-1)
        means, covariances = map(_merged, params[1:])
        drawn = gaussians.draw(noise_key, number, means, covariances, self.covariance)
        return drawn.reshape(*path.shape, -1)

    def sequences(self, batch: Batch) -> Array:
        """The vectors of a batch, (B, T, D); padding, which may be NaN, is replaced by the first frames."""
        x = observed(batch)
        return jnp.where(batch["mask"][..., None], x, x[:, :1]) if "mask" in batch else x

    def check(self, x: Array) -> None:
        """Raises ValueError for frames (N, D) that cannot be emitted."""
        if not bool(jnp.isfinite(x).all()):
            raise ValueError("x has values that are not finite (NaN or infinity)")

    def _by_state(self, num_states, weights, means, covariances):
        split = lambda a: a.reshape(num_states, self.num_mixtures, *a.shape[1:])
        weights = split(weights)
        weights = weights / jnp.maximum(weights.sum(1, keepdims=True), jnp.finfo(weights.dtype).tiny)
        return Gaussians(weights, split(means), split(covariances))


def normalised(counts: Array, previous: Array) -> Array:
    """Counts divided by their sum along the last axis; where that is 0, the previous values."""
    total = counts.sum(-1, keepdims=True)
    return jnp.where(total > 0, counts / jnp.where(total > 0, total, 1.0), previous)


def _flat(frames: Array) -> Array:
    return frames.reshape(len(frames), -1)


def _merged(a: Array) -> Array:
    """An array (K, M, ...) as (K M, ...)."""
    return a.reshape(-1, *a.shape[2:])
