"""How steps reach the device: many in one dispatch where the data live there, one by one where they stream.

Many steps are a loop whose length is a run-time value. So one compiled program serves every length, where a
dispatch ends changes no bit, and the length can follow the clock.
"""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jaxgen import data
from jaxgen.run import shard
from jaxgen.types import Family, Metrics

Batches = data.DeviceBatches | data.StreamedBatches

CHUNK_SECONDS = 0.5
"""How long one dispatch takes where `chunk` is left open: long against its overhead, short for Ctrl-C."""


class Totals(NamedTuple):
    """What is carried beside the state since the last log line."""

    metrics: Metrics  # sums
    bad_step: Array  # () int32, the first step with a metric that is not finite, or -1


def advance(
    family: Family, cfg: Any, batches: Batches, mesh: Mesh, shardings: Any, chunk: int | None
) -> Callable[[Any, Totals, int, int], tuple[Any, Totals, int]]:
    """A function (state, totals, step, until) -> (state, totals, steps done) that makes one dispatch.

    It donates the state, never goes beyond step `until`, and stops at a step whose metrics are not finite.

    Args:
        shardings: of the state.
        chunk: steps a dispatch; None lets the clock choose. Without effect on streamed data.
    """
    if isinstance(batches, data.StreamedBatches):
        return _streamed(family, cfg, batches, mesh, shardings)
    return _resident(family, cfg, batches, mesh, shardings, chunk)


def _resident(family, cfg, batches, mesh, shardings, chunk):
    """Dispatches of many steps, each step gathering its batch from the data held on every device."""
    batches = shard.replicate(batches, mesh)

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=(shardings, shard.replicated(mesh)))
    def many(state, totals, batches, count):
        def body(carry):
            index, (state, totals) = carry
            batch = shard.constrain_batch(batches(state.step), mesh)
            return index + 1, _one(family, cfg, state, totals, batch)

        def unfinished(carry):
            return (carry[0] < count) & (carry[1][1].bad_step < 0)

        return jax.lax.while_loop(unfinished, body, (jnp.int32(0), (state, totals)))[1]

    count, compiled = chunk or 1, False

    def advance(state, totals, step, until):
        nonlocal count, compiled
        done, since = min(count, until - step), time.perf_counter()
        state, totals = many(state, totals, batches, jnp.int32(done))
        check(totals)
        if compiled and not chunk:
            count = max(1, int(CHUNK_SECONDS * done / (time.perf_counter() - since)))
        compiled = True
        return state, totals, done

    return advance


def _streamed(family, cfg, batches, mesh, shardings):
    """Dispatches of one step each, on batches read ahead by the host."""
    single = jax.jit(
        functools.partial(_one, family, cfg),
        donate_argnums=0,
        out_shardings=(shardings, shard.replicated(mesh)),
    )
    stream = None

    def advance(state, totals, step, until):
        nonlocal stream
        stream = batches.iterate(step) if stream is None else stream
        return *single(state, totals, shard.put_batch(next(stream), mesh)), 1

    return advance


def _one(family, cfg, state, totals, batch):
    step = state.step
    state, metrics = family.train_step(state, batch, cfg)
    finite = jnp.all(jnp.stack([jnp.isfinite(metric) for metric in metrics.values()]))
    bad_step = jnp.where((totals.bad_step < 0) & ~finite, step, totals.bad_step)
    return state, Totals(jax.tree.map(jnp.add, totals.metrics, metrics), bad_step)


def zeros(family: Family, cfg: Any, state: Any, batches: Batches, mesh: Mesh) -> Totals:
    """Totals of no step at all, with the family's metrics."""
    shapes = jax.eval_shape(
        lambda s: family.train_step(s, jax.tree.map(jnp.asarray, dict(batches(0))), cfg)[1], state
    )
    metrics = jax.tree.map(lambda m: jnp.zeros(m.shape, jnp.float32), shapes)
    return shard.replicate(Totals(metrics, jnp.int32(-1)), mesh)


def check(totals: Totals) -> None:
    """Raises FloatingPointError, naming metric and step, if one was not finite; waits for the device."""
    bad_step = int(totals.bad_step)
    if bad_step >= 0:
        names = [name for name, total in totals.metrics.items() if not np.isfinite(total)]
        raise FloatingPointError(
            f"{', '.join(names)} became NaN or infinite at step {bad_step}: try a smaller step size"
        )
