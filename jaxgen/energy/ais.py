"""Annealed importance sampling of a partition function (Neal 2001; Salakhutdinov & Murray 2008).

Chains go from independent units, whose log Z is known, to a machine through

    log f_beta(v) = ((1 - beta) b_0 + beta b)'v + sum_j log(1 + exp((1 - beta) c_0j + beta (c_j + (W'v)_j)))

with beta from 0 to 1. At each temperature the weight of a chain takes f_{k+1}(v) / f_k(v), and a Gibbs step
follows that leaves f_{k+1} invariant. The mean of the weights times Z_0 is an unbiased estimate of Z, so
its logarithm is low on average, and a log-likelihood by it is high. Chains that go back from exact draws of
the machine have weights whose mean estimates 1 / Z, and a log Z that is high on average: both together are
a bracket (Grosse, Ancha & Roy 2016). Draws of long chains stand for exact ones.

Departs from the second paper, where c_0 = 0: then half of the hidden units are on at first, and in a large
machine of sparse ones chains do not follow when most of them go off at once. `Machine.base` starts both
layers at the means that they have on data. The two ends of a bracket of a machine with 500 and 2000 units
were 400 nats apart after 1000 temperatures from c_0 = 0, and 1 nat apart from there.
"""

import functools
import math
import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen import distributions, keys
from jaxgen.energy.bipartite import Base, Machine, Params
from jaxgen.energy.chains import from_biases

BITS = Machine()
"""Both layers are bits."""


def temperatures(count: int) -> np.ndarray:
    """`count` + 1 inverse temperatures from 0 to 1, denser towards 1 as Salakhutdinov & Murray have them.

    Of all steps one in 29 is below 0.5, 8 from there to 0.9, and 20 from there to 1. Raises ValueError for
    none.
    """
    if count < 1:
        raise ValueError(f"annealing takes 1 temperature step or more, not {count}")
    share = np.arange(count + 1) / count
    return np.interp(share, [0, 1 / 29, 9 / 29, 1], [0, 0.5, 0.9, 1])


class Bracket(NamedTuple):
    """log Z from both sides, in nats, each with the standard error of its logarithm."""

    forward: Array
    forward_error: Array
    reverse: Array
    reverse_error: Array


def log_partition(
    key: Array,
    params: Params,
    machine: Machine = BITS,
    *,
    base: Base | None = None,
    num_chains: int = 100,
    num_temperatures: int = 1000,
) -> tuple[Array, Array]:
    """log Z in nats and its standard error, low on average.

    Args:
        base: biases of the independent units at the start, by default the machine's own; those of
            `machine.base(params, v)` by states v of data are better.

    The error is that of the mean weight over the mean weight: it knows nothing of modes that all chains
    missed.
    """
    base = Base(params.visible_bias, params.hidden_bias) if base is None else base
    start_key, step_key = keys.named(key, "first states", "annealing")
    v = from_biases(start_key, machine, params, num_chains, base)
    weights, _ = log_weights(step_key, params, v, temperatures(num_temperatures), machine, base)
    log_mean, error = _log_mean(weights)
    return _log_partition_of_base(params, machine, base) + log_mean, error


def reverse_log_partition(
    key: Array,
    params: Params,
    v: Array,
    machine: Machine = BITS,
    *,
    base: Base | None = None,
    num_temperatures: int = 1000,
) -> tuple[Array, Array]:
    """log Z in nats and its standard error, high on average, by chains from draws v (n, V) of the machine."""
    base = Base(params.visible_bias, params.hidden_bias) if base is None else base
    weights, _ = log_weights(key, params, v, temperatures(num_temperatures)[::-1], machine, base)
    log_mean, error = _log_mean(weights)
    return _log_partition_of_base(params, machine, base) - log_mean, error


def bracket(
    key: Array,
    params: Params,
    v: Array,
    machine: Machine = BITS,
    *,
    base: Base | None = None,
    num_temperatures: int = 1000,
    widest: float = 1.0,
) -> Bracket:
    """log Z from below by chains from `base`, and from above by as many from draws v (n, V) of the machine.

    Warns where the two are more than `widest` nats apart: chains have not followed the temperatures then,
    or v are no draws of the machine. For use outside of jit.
    """
    forward_key, reverse_key = keys.named(key, "forward annealing", "reverse annealing")
    given = {"machine": machine, "num_temperatures": num_temperatures}
    forward = jax.jit(functools.partial(log_partition, num_chains=len(v), **given))  # type: ignore[arg-type]
    reverse = jax.jit(functools.partial(reverse_log_partition, **given))  # type: ignore[arg-type]
    found = Bracket(*forward(forward_key, params, base=base), *reverse(reverse_key, params, v, base=base))
    gap = float(found.reverse - found.forward)
    if not abs(gap) <= widest:
        warnings.warn(
            f"log Z is {float(found.forward):.2f} nats from below, {float(found.reverse):.2f} from above: "
            f"take more than {num_temperatures} temperatures, or draws by longer chains",
            stacklevel=2,
        )
    return found


def log_weights(
    key: Array, params: Params, v: Array, beta: np.ndarray, machine: Machine, base: Base
) -> tuple[Array, Array]:
    """Log-weights (n,) and last states of chains that start at v (n, V) and go along `beta` (K + 1,).

    From 0 to 1 they are log-weights of Z / Z_0, from 1 to 0 of Z_0 / Z, if v are draws at the first `beta`.
    The sum over temperatures is compensated, for a plain one in float32 is wrong by up to nats. Raises
    ValueError for a machine with copies of a layer.
    """
    machine.check_whole()
    path = jnp.asarray(beta, v.dtype)

    def temper(carry, inputs):
        v, total, lost = carry
        index, before, after = inputs
        hidden_key, visible_key = keys.named(jax.random.fold_in(key, index), "hidden", "visible units")
        field, own_field = machine.hidden_field(params, v), base.hidden_bias
        at = machine.between(params, base, after)
        own = lambda machine_at: machine.own(v, machine_at.visible_bias)
        at_field = lambda share: (1 - share) * own_field + share * field
        hidden = jax.nn.softplus(at_field(after)) - jax.nn.softplus(at_field(before))
        gain = (own(at) - own(machine.between(params, base, before))).sum(-1) + hidden.sum(-1) - lost
        lost = (total + gain - total) - gain
        h = distributions.bernoulli(hidden_key, jax.nn.sigmoid(at_field(after))).astype(v.dtype)
        return (machine.sample_visible(visible_key, at, h), total + gain, lost), None

    zeros = jnp.zeros(len(v), v.dtype)
    inputs = jnp.arange(len(beta) - 1), path[:-1], path[1:]
    (v, total, _), _ = jax.lax.scan(temper, (v, zeros, zeros), inputs)
    return total, v


def _log_partition_of_base(params: Params, machine: Machine, base: Base) -> Array:
    """log Z of independent units with biases `base`."""
    no_hidden = jnp.zeros_like(params.hidden_bias)
    alone = machine.log_unnormalized_hidden(machine.between(params, base, 0.0), no_hidden)
    return alone + jax.nn.softplus(base.hidden_bias).sum()


def _log_mean(log_weight: Array) -> tuple[Array, Array]:
    """The logarithm of the mean weight, and the standard error of the mean over the mean.

    Raises ValueError for fewer than two weights, which have no error.
    """
    if len(log_weight) < 2:
        raise ValueError(f"annealing takes 2 chains or more, for its standard error, not {len(log_weight)}")
    largest = log_weight.max()
    weight = jnp.exp(log_weight - largest)
    error = weight.std(ddof=1) / (weight.mean() * math.sqrt(len(weight)))
    return largest + jnp.log(weight.mean()), error
