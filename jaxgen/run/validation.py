"""The loss of held-out examples during training: which checkpoint is the best one, and when to stop.

It is the loss that training minimises, so that the two can be compared, but networks are applied as in
evaluation: BatchNorm by its running statistics, and without Dropout. Random numbers are the same every time.
A family without a loss but with a likelihood is validated by its negative log-likelihood.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from jaxgen import data
from jaxgen.nn import variables
from jaxgen.run import shard
from jaxgen.types import Batch, Family, HasLogProb, HasLoss, observed

NAME = "validation_loss"
"""The metric in log lines."""

MOST = 100
"""Batches of a validation, at most."""

History = Sequence[tuple[int, float]]
"""(step, loss) of every validation so far."""


def measured(
    family: Family, cfg: Any, dataset: Any, batch_size: int, key: Array, mesh: Mesh
) -> Callable[[Any], float]:
    """A function from a State to the mean loss of as many whole batches as the data set has, `MOST` at most.

    Raises ValueError for a family that has neither a loss nor a likelihood.
    """
    loss = _loss(family, cfg)
    batches = data.batches(dataset, batch_size, seed=0)
    count = min(max(len(dataset) // batch_size, 1), MOST)
    if isinstance(batches, data.StreamedBatches):
        one = jax.jit(lambda state, batch, index: loss(state, batch, jax.random.fold_in(key, index)))
        put = lambda index: shard.put_batch(batches(index), mesh)
        return lambda state: sum(float(one(state, put(index), index)) for index in range(count)) / count
    resident = shard.replicate(batches, mesh)

    @jax.jit
    def mean(state, batches):
        def one(index):
            batch = shard.constrain_batch(batches(index), mesh)
            return loss(state, batch, jax.random.fold_in(key, index))

        return jax.lax.map(one, jnp.arange(count)).mean()

    return lambda state: float(mean(state, resident))


def best(history: History) -> int | None:
    """The step with the lowest loss, the first of equal ones; None if no loss is finite."""
    finite = [(loss, step) for step, loss in history if math.isfinite(loss)]
    return min(finite)[1] if finite else None


def is_over(history: History, patience: int | None) -> bool:
    """Whether the last `patience` validations have brought nothing better than those before them."""
    return patience is not None and sum(step > (best(history) or 0) for step, _ in history) >= patience


def _loss(family: Family, cfg: Any) -> Callable[[Any, Batch, Array], Array]:
    """(state, batch, key) -> the loss."""
    if isinstance(family, HasLoss):

        def loss(state, batch, key):
            with variables.evaluation():
                return family.loss(state.params, batch, key, cfg)[0]

        return loss
    if isinstance(family, HasLogProb):
        return lambda state, batch, key: -family.log_prob(state, observed(batch), cfg).mean()
    name = getattr(family, "__name__", family)
    raise ValueError(f"{name} has neither a loss nor a log_prob to validate by: train it without validation")
