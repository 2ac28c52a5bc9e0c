"""Parzen window estimate of log-likelihood: only for comparison with tables of 2014 and 2015.

    log p(x) = logsumexp_i(-|x - s_i|^2 / (2 sigma^2)) - log n - (d/2) log(2 pi sigma^2)

over n samples s_i of a model, sigma chosen on validation data. Goodfellow et al. 2014 and many after them
report it, and it is misleading: in hundreds of dimensions no number of samples suffices, centroids of k-means
score above samples of the true law, and its order of models disagrees with that of their likelihood (Theis,
van den Oord & Bethge 2016). Never put it beside likelihoods or bounds.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen.evaluation import checks, distances

SIGMAS = tuple(float(sigma) for sigma in np.logspace(-1, 0, 10))
"""Bandwidths tried, for pixels in [0, 1]: the range of Goodfellow et al. 2014."""


def log_likelihood(x: Any, samples: Any, sigma: float) -> np.ndarray:
    """log p(x) of x (N, d) under windows of standard deviation sigma about samples (n, d), (N,) nats.

    Raises:
        ValueError: sets of different d, none of them, or values that are not finite; sigma <= 0.
    """
    return _for_all(x, samples, [sigma])[:, 0]


def evaluate(x: Any, validation: Any, samples: Any, sigmas: Sequence[float] = SIGMAS) -> dict[str, float]:
    """{"log_likelihood", "standard_error", "sigma"} of test data x (N, d), in nats an example.

    sigma is the one of `sigmas` that is best on `validation` (V, d); the standard error is over test
    examples, as in the tables. Pixels are in [0, 1] there: those in [-1, 1] must be halved and shifted.

    Raises:
        ValueError: sets of different d, none of them, or values that are not finite; a sigma <= 0.
    """
    sigma = float(sigmas[_for_all(validation, samples, sigmas).mean(0).argmax()])
    values = log_likelihood(x, samples, sigma)
    error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return {"log_likelihood": float(values.mean()), "standard_error": float(error), "sigma": sigma}


def _for_all(x: Any, samples: Any, sigmas: Sequence[float]) -> np.ndarray:
    """log p(x) for each sigma, (N, S) float64: each tile of distances serves all of them."""
    if not len(sigmas) or min(sigmas) <= 0:
        raise ValueError(f"sigma must be positive, not {list(sigmas)}")
    samples, x = checks.features(samples=samples, x=x)
    samples, x = distances.centred(samples, x)
    windows = _log_sums(x, distances.on_every_device(samples), jnp.asarray(sigmas, jnp.float32))
    constants = math.log(len(samples)) + x.shape[1] / 2 * np.log(2 * np.pi * np.square(sigmas))
    return np.asarray(windows, np.float64) - constants


@jax.jit
def _log_sums(x: Array, samples: Array, sigmas: Array) -> Array:
    def tile(part):
        squared = distances.squared(part[0], samples)
        one = functools.partial(_log_sum, squared)
        return jax.lax.map(one, sigmas).T

    return distances.untile(jax.lax.map(tile, distances.tiles(x, len(samples))), len(x))


def _log_sum(squared: Array, sigma: Array) -> Array:
    return jax.nn.logsumexp(-squared / (2.0 * sigma**2), axis=1)
