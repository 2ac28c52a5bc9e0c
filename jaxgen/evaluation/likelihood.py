"""Held-out likelihoods and bounds of any model that has one, in nats per example.

For a latent-variable model with prior p(z) and decoder p(x | z) there are two estimates of log p(x). Both are
low on average, and rise to it with the work: `distributions.importance_weighted_bound` weighs draws of a
proposal (Burda et al. 2016) and is only as good as that; `annealed_importance_sampling` needs none, moving
draws of the prior to the posterior by Hamiltonian Monte Carlo (Neal 2001; Wu et al. 2017).
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen import data
from jaxgen.evaluation.metric import Metric, metric
from jaxgen.types import observed


def per_example(
    key: Array,
    function: Callable[[Array, Array], Array],
    dataset: data.Dataset | data.StreamedDataset,
    batch_size: int = 500,
    name: str | None = None,
) -> np.ndarray:
    """`function(key, x)` -> (B,), over the whole data set in order, each example once, (N,) float64.

    A terminal shows a progress bar, called `name`.
    """
    from tqdm import tqdm

    compiled = jax.jit(function)
    total = -(-len(dataset) // batch_size)
    batches = tqdm(data.in_order(dataset, batch_size), name, total, unit="batch", leave=False, disable=None)
    values = [
        np.asarray(compiled(jax.random.fold_in(key, index), observed(batch)), np.float64)
        for index, batch in enumerate(batches)
    ]
    return np.concatenate(values)


UNITS = {
    "density": "nats, density",
    "levels": "nats",
    "bits": "nats, binarised pixels",
    "counts": "nats, word counts",
    "symbols": "nats, symbols",
}
"""What a likelihood is of, the `measure` of a family, and how its numbers are called."""


def reported(
    key: Array,
    log_likelihood: Callable[[Array, Array], Array],
    dataset: data.Dataset | data.StreamedDataset,
    measure: str,
    name: str = "nll",
    batch_size: int = 500,
    num_examples: int | None = None,
) -> dict[str, Metric]:
    """The mean of a negative log-likelihood over a data set, in the units of its measure, by name.

    A "density" of pictures is one of dequantised data: to every pixel is added uniform noise as wide as the
    distance of two of the data set's levels. Densities of pictures and probabilities of "levels" also come in
    bits per dimension, as `<name>_bits_per_dim`; the former is an upper bound on the latter, and says so in
    its unit. Other measures have no such number. Where the distribution of the data is known, the floor is
    what its own density has on the same examples.

    Args:
        log_likelihood: (key, x) -> log p(x) or a lower bound on it, (B,) nats.
        measure: one of `UNITS`.
        num_examples: only the first so many examples; by default all.

    Raises:
        ValueError: an unknown measure.
    """
    if measure not in UNITS:
        raise ValueError(f"unknown measure {measure!r}: there are {', '.join(UNITS)}")
    width = level_width(dataset) if measure == "density" else None

    def value(key, x):
        if width is None:
            return log_likelihood(key, x)
        noise_key, key = jax.random.split(key)
        return log_likelihood(key, dequantised(noise_key, x, width))

    if num_examples is not None and num_examples < len(dataset):
        dataset = data.take(dataset, dataset.split, slice(num_examples))
    nll = -per_example(key, value, dataset, batch_size, name).mean()
    unit = UNITS[measure] if width is None else "nats, density of dequantised pixels"
    found = {name: metric(nll, unit, len(dataset), _entropy(dataset) if measure == "density" else None)}
    if width is not None or (measure == "levels" and dataset.levels):
        bits = bits_per_dim(nll, math.prod(dataset.shape), width)
        unit = "bits/dim" if width is None else "bits/dim, dequantised"
        found[f"{name}_bits_per_dim"] = metric(bits, unit, len(dataset))
    return found


def _entropy(dataset: Any) -> float | None:
    """The negative log-density of a data set under its own distribution; None where that is unknown."""
    if getattr(dataset, "log_density", None) is None:
        return None
    return -float(dataset.log_density(observed(dataset[:])).mean())


def level_width(dataset: Any) -> float | None:
    """The distance between neighbouring levels of a data set's pixels on [-1, 1]; None for real numbers."""
    return 2 / (dataset.levels - 1) if dataset.levels > 1 else None


def dequantised(key: Array, x: Array, width: float) -> Array:
    """x plus uniform noise in (-width / 2, width / 2)."""
    return x + width * (jax.random.uniform(key, x.shape, jnp.asarray(x).dtype) - 0.5)


def bits_per_dim(nll: Any, num_dims: int, level_width: float | None = None) -> Any:
    """Negative log-likelihoods in nats per example as bits per dimension.

    Args:
        nll: of one convention. Probabilities of discrete data need no more. A density of dequantised data,
            one uniform draw over each level, bounds the probability of the level: its nll is an upper bound.
        num_dims: dimensions of one example, padding counted: say which.
        level_width: for a density, width of a level in the units of x: 1/256 for (k + u)/256 in [0, 1), 2/255
            for pixels on [-1, 1] with noise one level wide.

    A uniform density gives exactly the bits of a level.
    """
    bits = nll / (num_dims * math.log(2))
    return bits if level_width is None else bits - math.log2(level_width)


class Annealed(NamedTuple):
    """What `annealed_importance_sampling` finds."""

    log_likelihood: Array  # (B,) nats
    effective_sample_size: Array  # (B,) of the chains: near 1, one of them decides
    acceptance: Array  # (B,) mean rate of the moves


def annealed_importance_sampling(
    key: Array,
    log_likelihood: Callable[[Array], Array],
    num_examples: int,
    num_latents: int,
    num_chains: int = 16,
    num_temperatures: int = 500,
    num_leapfrog: int = 10,
) -> Annealed:
    """log p(x) = log E_z[p(x | z)] with z ~ N(0, I), of each of B examples.

    Chains go from the prior to the posterior through p(z) p(x | z)^beta, beta from 0 to 1 along a logistic
    curve, one Hamiltonian move at each; exp of the estimate is unbiased, so the estimate itself is a
    stochastic lower bound. Step sizes are tuned in a run of their own, towards an acceptance of 0.65, and
    then held, as unbiasedness asks.

    Args:
        log_likelihood: z (B, num_latents) -> log p(x | z), (B,), differentiable.

    Raises ValueError for no chain or no temperature.
    """
    if num_chains < 1 or num_temperatures < 1:
        raise ValueError(
            f"annealing takes 1 chain and 1 temperature or more, not {num_chains} and {num_temperatures}"
        )
    curve = 1 / (1 + np.exp(-np.linspace(-4, 4, num_temperatures + 1)))
    beta = jnp.asarray((curve - curve[0]) / (curve[-1] - curve[0]), jnp.float32)
    many = jax.vmap(log_likelihood)

    def energy(z, temperature):
        return 0.5 * (z**2).sum(-1) - temperature * many(z)

    def move(key, z, temperature, step_size):
        """One move that leaves exp(-energy) invariant: z (chains, B, L) and whether it was accepted."""
        momentum_key, accept_key = jax.random.split(key)
        force = jax.grad(lambda z: energy(z, temperature).sum())
        momentum = jax.random.normal(momentum_key, z.shape)
        before = energy(z, temperature) + 0.5 * (momentum**2).sum(-1)
        step = step_size[:, None]

        def leapfrog(_, carry):
            z, momentum = carry
            momentum = momentum - 0.5 * step * force(z)
            z = z + step * momentum
            return z, momentum - 0.5 * step * force(z)

        proposal, momentum = jax.lax.fori_loop(0, num_leapfrog, leapfrog, (z, momentum))
        after = energy(proposal, temperature) + 0.5 * (momentum**2).sum(-1)
        accepted = jnp.log(jax.random.uniform(accept_key, before.shape)) < before - after
        return jnp.where(accepted[..., None], proposal, z), accepted

    def anneal(key, step_sizes):
        start_key, move_key = jax.random.split(key)
        tune = step_sizes is None

        def temper(carry, inputs):
            z, log_weight, step_size = carry
            index, low, high, held = inputs
            log_weight = log_weight + (high - low) * many(z)
            step_size = step_size if tune else held
            z, accepted = move(jax.random.fold_in(move_key, index), z, high, step_size)
            rate = accepted.mean(0)
            used = step_size
            step_size = step_size * jnp.where(rate > 0.65, 1.02, 1 / 1.02)
            return (z, log_weight, step_size), (used, rate)

        z = jax.random.normal(start_key, (num_chains, num_examples, num_latents))
        first = jnp.full(num_examples, 0.5 / num_latents**0.25)
        held = jnp.zeros((num_temperatures, num_examples)) if tune else step_sizes
        inputs = jnp.arange(num_temperatures), beta[:-1], beta[1:], held
        carry = z, jnp.zeros((num_chains, num_examples)), first
        (_, log_weight, _), (used, rate) = jax.lax.scan(temper, carry, inputs)
        return log_weight, used, rate.mean(0)

    tune_key, key = jax.random.split(key)
    log_weight, _, acceptance = anneal(key, anneal(tune_key, None)[1])
    log_sum = functools.partial(jax.nn.logsumexp, axis=0)
    total = log_sum(log_weight)
    effective = jnp.exp(2 * total - log_sum(2 * log_weight))
    return Annealed(total - math.log(num_chains), effective, acceptance)
