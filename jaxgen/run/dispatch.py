"""How training steps are dispatched to the device.

If the data are held on the device, one dispatch makes many steps; if they are streamed, it makes one. The
many steps are a loop whose length is a run-time value. One compiled program therefore serves every length,
the result does not depend on where a dispatch ends, and the length can be adapted to the measured time.
"""

import dataclasses
import functools
import hashlib
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jaxgen import data, values
from jaxgen.run import shard
from jaxgen.types import Family, Metrics

Batches = data.DeviceBatches | data.StreamedBatches

CHUNK_SECONDS = 0.5
"""How long one dispatch takes by default: long compared with its overhead, short enough for Ctrl-C."""

STEADYING = ("regularization", "shrinkage", "smoothing", "variance_smoothing", "prior", "transition_prior")
"""Options of families without an optimizer that keep their estimates finite the larger they are."""


class Totals(NamedTuple):
    """Sums of the metrics since the last log line, which the compiled loop carries along with the state."""

    metrics: Metrics  # sums
    bad_step: Array  # () int32, the first step with a metric that is not finite, or -1


def advance(
    family: Family, cfg: Any, batches: Batches, mesh: Mesh, shardings: Any, chunk: int | None
) -> Callable[[Any, Totals, int, int], tuple[Any, Totals, int]]:
    """A function (state, totals, step, until) -> (state, totals, number of steps made) for one dispatch.

    It donates the state, makes no step beyond `until`, and stops at a step whose metrics are not finite.

    Args:
        shardings: of the state.
        chunk: steps per dispatch; by default as many as take `CHUNK_SECONDS`. Streamed data ignore it.
    """
    if isinstance(batches, data.StreamedBatches):
        return _streamed(family, cfg, batches, mesh, shardings)
    return _resident(family, cfg, batches, mesh, shardings, chunk)


def _resident(family, cfg, batches, mesh, shardings, chunk):
    """Dispatches of many steps; each step gathers its batch from the data held on every device."""
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
        check(totals, cfg)
        if compiled and not chunk:
            count = max(1, int(CHUNK_SECONDS * done / (time.perf_counter() - since)))
        compiled = True
        return state, totals, done

    return advance


def _streamed(family, cfg, batches, mesh, shardings):
    """Dispatches of one step each, on batches that the host reads ahead."""
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
    """Totals before the first step: zero for each of the family's metrics."""
    shapes = jax.eval_shape(
        lambda s: family.train_step(s, jax.tree.map(jnp.asarray, dict(batches(0))), cfg)[1], state
    )
    metrics = jax.tree.map(lambda m: jnp.zeros(m.shape, jnp.promote_types(m.dtype, jnp.float32)), shapes)
    return shard.replicate(Totals(metrics, jnp.int32(-1)), mesh)


def fingerprint(family: Family, cfg: Any, state: Any, batches: Batches) -> str:
    """A checksum of the program of a step. It tells apart Configs with functions that look alike in print."""
    batch = jax.tree.map(jnp.asarray, dict(batches(0)))
    step = jax.make_jaxpr(lambda state, batch: family.train_step(state, batch, cfg))(state, batch)
    text = re.sub(r"0x[0-9a-f]+", "", step.pretty_print(use_color=False))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check(totals: Totals, cfg: Any) -> None:
    """Raises FloatingPointError, naming metric and step, if one was not finite; waits for the device."""
    bad_step = int(totals.bad_step)
    if bad_step >= 0:
        names = [name for name, total in totals.metrics.items() if not np.isfinite(total)]
        raise FloatingPointError(
            f"{', '.join(names)} became NaN or infinite at step {bad_step}: {advice(cfg)}"
        )


def advice(cfg: Any) -> str:
    """What may help a model of this Config whose numbers became NaN: of an optimizer, a smaller step size."""
    names = _option_names(cfg)
    if any(word in name for name in names for word in ("optimizer", "learning_rate", "step_size")):
        return "try a smaller step size"
    found = " or ".join(f"a larger {name}" for name in STEADYING if name in names)
    return f"look for extreme or constant values in the data{f', or try {found}' if found else ''}"


def _option_names(part: Any) -> set[str]:
    """The names of the options of a Config and of its parts."""
    if isinstance(part, tuple | list):
        return set().union(*map(_option_names, part))
    if not dataclasses.is_dataclass(part):
        return set()
    names = {field.name for field in values.options(part)}
    return names.union(*(_option_names(getattr(part, name)) for name in names))
