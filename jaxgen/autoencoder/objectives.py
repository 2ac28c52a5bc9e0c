"""What a VAE maximises: the evidence lower bound with a divergence, or an importance-weighted bound.

An objective of one's own is a frozen dataclass that derives from `Objective`, a divergence from `Divergence`.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen import distributions
from jaxgen.autoencoder import posteriors
from jaxgen.autoencoder.posteriors import Posterior
from jaxgen.fields import Fraction, NonNegativeFloat, NonNegativeInt, PositiveInt
from jaxgen.types import Metrics
from jaxgen.values import Value


class Rows(NamedTuple):
    """Draws of z and what they belong to, `num_samples` rows for each example one after the other."""

    z: Array  # (N, num_latents, ...)
    log_q: Array  # log q(z | x) of each draw, (N,)
    q: Any  # the posterior of each
    x: Array  # (N, *shape), targets
    label: Any  # one-hot (N, num_classes), or nothing


LogLikelihood: TypeAlias = Callable[[Any, Array, Array, Any], Array]
"""(params, z, x, label) -> log p(x | z), a number for each row."""


# Divergences, in place of the KL of the evidence lower bound


class Divergence(Value):
    """What keeps q near the prior."""

    def check(self, posterior: Posterior) -> None:
        """Raises ValueError for a posterior of which there is no such divergence."""

    def __call__(self, posterior: Posterior, q: Any, rows: Rows) -> Array:
        """The divergence of q, a number for each example; or for each row, if it is that of the draws."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class KL(Divergence):
    """KL(q || p) in closed form, or as `SampledKL` where it has none."""

    def __call__(self, posterior: Posterior, q: Any, rows: Rows) -> Array:
        """(B,), or (N,) without a closed form."""
        return _kl(posterior, q, rows)


@dataclasses.dataclass(frozen=True)
class SampledKL(Divergence):
    """log q(z) - log p(z) at the draws, which is KL(q || p) on average."""

    def check(self, posterior: Posterior) -> None:
        """Raises ValueError for relaxed draws."""
        _needs_density(posterior, "divergence KL")

    def __call__(self, posterior: Posterior, q: Any, rows: Rows) -> Array:
        """(N,)."""
        return _log_ratio(posterior, rows)


@dataclasses.dataclass(frozen=True)
class GeometricJS(Divergence):
    """Skew-geometric Jensen-Shannon divergence of Gaussians or log-normals (Deasy et al. 2020)."""

    skew: Fraction = 0.5
    """0 is KL(q || p) and 1 is KL(p || q)."""

    def check(self, posterior: Posterior) -> None:
        """Raises ValueError for latents that are neither normal nor the exponential of normal ones."""
        if not isinstance(posterior, posteriors.Gaussian | posteriors.LogNormal):
            raise ValueError(f"{type(self).__name__} is for Gaussian or LogNormal latents: use divergence KL")

    def __call__(self, posterior: Posterior, q: Any, rows: Rows) -> Array:
        """(B,); also of log-normals, since it does not change under the exponential that both sides share."""
        mean, log_variance = q
        return distributions.geometric_js_normal(mean, log_variance, alpha=self.skew)


@dataclasses.dataclass(frozen=True)
class DualGeometricJS(GeometricJS):
    """The dual of `GeometricJS`, with each KL the other way round."""

    skew: Fraction = 0.5
    """0 is KL(p || q) and 1 is KL(q || p)."""

    def __call__(self, posterior: Posterior, q: Any, rows: Rows) -> Array:
        """(B,)."""
        mean, log_variance = q
        return distributions.geometric_js_normal(mean, log_variance, alpha=self.skew, dual=True)


# Objectives


class Objective(Value):
    """A bound to maximise by `num_samples` draws of z for each example."""

    num_samples: int

    def check(self, posterior: Posterior) -> None:
        """Raises ValueError for a posterior that the objective cannot take."""

    def __call__(
        self, key: Array, params: Any, log_likelihood: LogLikelihood, posterior: Posterior, q: Any, rows: Rows
    ) -> tuple[Array, Metrics]:
        """The loss in nats per example and its terms; q is the posterior of each of the B examples."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class ELBO(Objective):
    """The evidence lower bound E_q[log p(x | z)] - beta KL(q || p) (Kingma & Welling 2014)."""

    beta: NonNegativeFloat = 1.0
    """Weight of the divergence; another than 1 is the beta-VAE (Higgins et al. 2017)."""
    num_samples: PositiveInt = 1
    """Draws of z for each example, which are averaged."""
    divergence: KL | SampledKL | GeometricJS | DualGeometricJS | Divergence = KL()
    """What keeps q near the prior."""

    def check(self, posterior: Posterior) -> None:
        """Raises ValueError for a posterior that the divergence cannot take."""
        self.divergence.check(posterior)

    def __call__(
        self, key: Array, params: Any, log_likelihood: LogLikelihood, posterior: Posterior, q: Any, rows: Rows
    ) -> tuple[Array, Metrics]:
        """The loss; among its terms is the bound itself with beta 1 and the KL.

        Of relaxed draws that is called "relaxed_elbo": it bounds nothing.
        """
        mean = log_likelihood(params, rows.z, rows.x, rows.label).mean()
        kl = _kl(posterior, q, rows).mean()
        value = self.beta * self.divergence(posterior, q, rows).mean() - mean
        name = "elbo" if posterior.exact else "relaxed_elbo"
        return value, {"loss": value, name: mean - kl, "reconstruction": -mean, "kl": kl}


@dataclasses.dataclass(frozen=True)
class IWAE(Objective):
    """The importance-weighted bound E[log 1/K sum_k p(x, z_k) / q(z_k | x)] (Burda et al. 2016)."""

    num_samples: PositiveInt = 50
    """Draws of z for each example, K."""
    backward: NonNegativeInt = 0
    """Differentiate through so many of the draws, drawn again by their weights; 0 for all."""

    def check(self, posterior: Posterior) -> None:
        """Raises ValueError for relaxed draws."""
        _needs_density(posterior, "objective ELBO")

    def __call__(
        self, key: Array, params: Any, log_likelihood: LogLikelihood, posterior: Posterior, q: Any, rows: Rows
    ) -> tuple[Array, Metrics]:
        """The loss; among its terms are those of the evidence lower bound."""
        if not self.backward:
            terms = _weights(params, log_likelihood, posterior, rows)
            bound, _ = _bound(terms, self.num_samples)
            return _loss(bound, terms)
        still = jax.lax.stop_gradient((params, rows))
        terms = _weights(still[0], log_likelihood, posterior, still[1])
        bound, share = _bound(terms, self.num_samples)
        # The gradient is the mean of those of log w_k under the shares, so draws by share estimate it.
        index = distributions.systematic_resample(key, share, self.backward)
        index = (index + self.num_samples * jnp.arange(len(index))[:, None]).ravel()
        drawn = jax.tree.map(lambda a: a[index], rows)
        again = _weights(params, log_likelihood, posterior, drawn)[0].reshape(-1, self.backward)
        return _loss(_with_gradient_of(again.mean(1), bound), terms)


@dataclasses.dataclass(frozen=True)
class DReG(Objective):
    """The importance-weighted bound with the doubly reparameterised gradient (Tucker et al. 2019)."""

    num_samples: PositiveInt = 50
    """Draws of z for each example, K."""

    def check(self, posterior: Posterior) -> None:
        """Raises ValueError for relaxed draws, and for a posterior with parameters that it cannot hold."""
        _needs_density(posterior, "objective ELBO")
        if not posterior.told_by_q:
            raise ValueError(f"{type(posterior).__name__} has parameters that DReG cannot hold: use IWAE")

    def __call__(
        self, key: Array, params: Any, log_likelihood: LogLikelihood, posterior: Posterior, q: Any, rows: Rows
    ) -> tuple[Array, Metrics]:
        """The loss; among its terms are those of the evidence lower bound."""
        terms = _weights(params, log_likelihood, posterior, rows)
        bound, share = _bound(terms, self.num_samples)
        # The decoder's gradient has each weight's share once, the encoder's, which comes through z, twice.
        still = jax.lax.stop_gradient(rows)
        weight = share.reshape(-1, *[1] * (rows.z.ndim - 1))
        z = still.z + weight * (rows.z - still.z)
        again = still._replace(z=z, log_q=posterior.log_prob(still.q, z))
        log_weight = _weights(params, log_likelihood, posterior, again)[0].reshape(share.shape)
        return _loss(_with_gradient_of((share * log_weight).sum(1), bound), terms)


def _log_ratio(posterior: Posterior, rows: Rows) -> Array:
    """log q(z) - log p(z), (N,)."""
    return rows.log_q - posterior.prior_log_prob(rows.z)


def _kl(posterior: Posterior, q: Any, rows: Rows) -> Array:
    """KL(q || p) of each example (B,), or without a closed form that of each row (N,)."""
    return posterior.kl(q) if posterior.closed_form else _log_ratio(posterior, rows)


def _weights(
    params: Any, log_likelihood: LogLikelihood, posterior: Posterior, rows: Rows
) -> tuple[Array, Array, Array]:
    """log w, log p(x | z) and log q(z) - log p(z) of every row, (N,)."""
    value, kl = log_likelihood(params, rows.z, rows.x, rows.label), _log_ratio(posterior, rows)
    return value - kl, value, kl


def _bound(terms: tuple[Array, Array, Array], num_samples: int) -> tuple[Array, Array]:
    """The importance-weighted bound (B,), and the share that each weight has in it, (B, K), held still."""
    log_weight = terms[0].reshape(-1, num_samples)
    bound = jax.nn.logsumexp(log_weight, 1) - math.log(num_samples)
    return bound, jax.lax.stop_gradient(jax.nn.softmax(log_weight, 1))


def _loss(bound: Array, terms: tuple[Array, Array, Array]) -> tuple[Array, Metrics]:
    log_weight, log_likelihood, kl = (term.mean() for term in terms)
    value = -bound.mean()
    return value, {"loss": value, "elbo": log_weight, "reconstruction": -log_likelihood, "kl": kl}


def _with_gradient_of(surrogate: Array, value: Array) -> Array:
    return jax.lax.stop_gradient(value - surrogate) + surrogate


def _needs_density(posterior: Posterior, instead: str) -> None:
    if not posterior.reparameterised:
        raise ValueError(f"relaxed {type(posterior).__name__} latents have no density here: keep {instead}")
