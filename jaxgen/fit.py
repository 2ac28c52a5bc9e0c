"""The training loop: the only one, for every family.

A run is a pure function of (family, config, data, batch size, key), and its randomness hangs on the step
alone, so stopping it anywhere and starting it again gives the same bits as never having stopped. A small data
set lives on the device and many steps go out in one dispatch: a loop whose length is a run-time value, so
that one compiled program serves every length, and where a chunk ends changes nothing. A large one is
streamed, one step a dispatch.
"""

import contextlib
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding

from jaxgen import checkpoint, data, plot, runs, shard
from jaxgen.types import Family, Metrics

NUM_SAMPLES = 64
"""Samples in a picture."""

CHUNK_SECONDS = 0.5
"""How long one dispatch takes where `chunk` is left open: long against its overhead, short for Ctrl-C."""


class Totals(NamedTuple):
    """What is carried beside the state since the last log line."""

    metrics: Metrics  # sums
    bad_step: Array  # () int32, the first step with a metric that is not finite, or -1


def fit(
    family: Family,
    cfg: Any,
    dataset: data.Dataset | data.StreamedDataset,
    *,
    steps: int,
    batch_size: int,
    key: Array,
    run_dir: str | Path | None = None,
    mesh: Mesh | None = None,
    chunk: int | None = None,
    log_every: int = 100,
    sample_every: int = 1000,
    save_every: int = 1000,
    on_log: Callable[[int, dict[str, float]], None] | None = None,
) -> Any:
    """Train `family` for `steps` steps in all and return its State.

    With a `run_dir` the run leaves config.json, metrics.jsonl, samples/<step>.png and checkpoints/<step>/
    there, and starting it again continues from the last whole checkpoint, to the same bits as a run that
    never stopped. SIGTERM and Ctrl-C save first.

    Args:
        family: a module with Config, init, train_step and sample.
        cfg: its Config.
        dataset: what `data.load` returns.
        steps: length of the whole run, a resumed part included.
        batch_size: examples a step, over all devices and processes.
        key: typed PRNG key; the initial state, the order of the data and every step follow from it.
        run_dir: where the run is kept; None keeps nothing.
        mesh: devices to use; all of them by default.
        chunk: steps a dispatch for data held on the device; by default as many as take half a second.
        log_every: steps between log lines; a line holds the means over the steps since the last.
        sample_every: steps between pictures of samples; 0 draws none.
        save_every: steps between checkpoints; 0 saves only at the end.
        on_log: called with the step and the metrics of every log line.

    Raises:
        ValueError: the batch does not split over the devices.
        RunError: the run directory is another run's, or cannot be written.
        FloatingPointError: a metric or the state became NaN or infinite; the message names the step, and the
            checkpoints stay as they were.
    """
    mesh = shard.mesh() if mesh is None else mesh
    shard.check_batch_size(batch_size, mesh)
    shardings = shard.state_shardings(checkpoint.abstract_state(family, cfg), mesh)
    init_key, data_key, sample_key = jax.random.split(key, 3)
    batches = data.batches(dataset, batch_size, seed=int(jax.random.bits(data_key)))
    facts = {
        "data": dataset.name,
        "split": dataset.split,
        "num_examples": len(dataset),
        "batch_size": batch_size,
    }
    facts["key"] = jax.random.key_data(key).tolist()

    directory, state, writes = None, None, jax.process_index() == 0
    if run_dir is not None:
        directory = runs.resolve(run_dir)
        if writes:
            runs.prepare(directory, runs.describe(family, cfg, **facts))
        shard.barrier("prepared")
        state = checkpoint.restore(directory, checkpoint.abstract_state(family, cfg, shardings))
        if writes:
            reached = 0 if state is None else int(state.step)
            checkpoint.set_aside(directory, after=reached)
            runs.rewind_metrics(directory, reached)
        shard.barrier("resumed")
    if state is None:
        first = shard.put_batch(batches(0), mesh) if isinstance(batches, data.StreamedBatches) else batches(0)
        state = jax.jit(functools.partial(family.init, cfg=cfg), out_shardings=shardings)(
            init_key, batch=first
        )

    advance = _streamed if isinstance(batches, data.StreamedBatches) else _resident
    advance = advance(family, cfg, batches, mesh, shardings, chunk or _common_chunk(log_every))
    draw = jax.jit(
        lambda key, state: family.sample(key, state, NUM_SAMPLES, cfg), out_shardings=_replicated(mesh)
    )
    zeros = _zeros(family, cfg, state, batches, mesh)
    step, totals, counted, since = int(state.step), zeros, 0, time.perf_counter()

    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(_progress_bar(steps, step))
        stop = stack.enter_context(runs.StopRequest()) if directory else None
        writer = stack.enter_context(checkpoint.open_writer(directory)) if directory else None
        while step < steps:
            until = min(_next_multiple(step, every, steps) for every in (log_every, sample_every, save_every))
            while step < until and not _interrupted(stop):
                state, totals, done = advance(state, totals, step, until)
                step, counted = step + done, counted + done
                bar.update(done)
            _check(totals)
            if step % log_every == 0 or step == steps:
                metrics = {name: float(total) / counted for name, total in totals.metrics.items()}
                rate = counted / (time.perf_counter() - since)
                bar.set_postfix({name: f"{value:.4g}" for name, value in metrics.items()}, refresh=False)
                if directory and writes:
                    runs.log(directory, {"step": step, **metrics, "steps_per_second": round(rate, 3)})
                if on_log:
                    on_log(step, metrics)
                totals, counted, since = zeros, 0, time.perf_counter()
            if directory and sample_every and (step % sample_every == 0 or step == steps):
                samples = np.asarray(draw(sample_key, state))
                if writes:
                    plot.save_samples(directory / "samples" / f"{step}.png", samples)
            stopping = _agree(stop)
            if directory and (stopping or step == steps or (save_every and step % save_every == 0)):
                _check_state(state, step)
                checkpoint.save(writer, step, state)
            if stop is not None and stopping:
                stop.leave(f"stopped after step {step}, saved in {directory}; the same command continues")
    return state


def _resident(family, cfg, batches, mesh, shardings, chunk):
    """Dispatches of many steps, each step gathering its batch from the data held on every device."""
    batches = shard.replicate(batches, mesh)

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=(shardings, _replicated(mesh)))
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
        _check(totals)
        if compiled and not chunk:
            count = max(1, int(CHUNK_SECONDS * done / (time.perf_counter() - since)))
        compiled = True
        return state, totals, done

    return advance


def _streamed(family, cfg, batches, mesh, shardings, chunk):
    """Dispatches of one step each, on batches read ahead by the host."""
    del chunk
    single = jax.jit(
        functools.partial(_one, family, cfg), donate_argnums=0, out_shardings=(shardings, _replicated(mesh))
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


def _zeros(family, cfg, state, batches, mesh):
    shapes = jax.eval_shape(
        lambda s: family.train_step(s, jax.tree.map(jnp.asarray, dict(batches(0))), cfg)[1], state
    )
    metrics = jax.tree.map(lambda m: jnp.zeros(m.shape, jnp.float32), shapes)
    return shard.replicate(Totals(metrics, jnp.int32(-1)), mesh)


def _check(totals):
    bad_step = int(totals.bad_step)
    if bad_step >= 0:
        names = [name for name, total in totals.metrics.items() if not np.isfinite(total)]
        raise FloatingPointError(
            f"{', '.join(names)} became NaN or infinite at step {bad_step}: try a smaller step size"
        )


def _check_state(state, step):
    floats = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    if any(_has_nan(x) for x in floats):
        raise FloatingPointError(f"the state holds NaN after step {step}: not saved; try a smaller step size")


@jax.jit
def _has_nan(x):
    return jnp.isnan(x).any()


def _interrupted(stop):
    return stop is not None and stop.signal is not None and jax.process_count() == 1


def _agree(stop):
    """Whether to stop. Several processes must stop at the same step, so they ask each other."""
    if stop is None or jax.process_count() == 1:
        return _interrupted(stop)
    from jax.experimental import multihost_utils

    signals = multihost_utils.process_allgather(np.int32(stop.signal or 0))
    stop.signal = int(signals.max()) or None
    return stop.signal is not None


def _common_chunk(log_every):
    """Processes must make the same dispatches, so a clock may not choose their length."""
    return log_every if jax.process_count() > 1 else None


def _next_multiple(step, every, steps):
    return min((step // every + 1) * every, steps) if every else steps


def _replicated(mesh):
    return NamedSharding(mesh, shard.REPLICATED)


def _progress_bar(steps, step):
    from tqdm import tqdm

    quiet = None if jax.process_index() == 0 else True  # None: only on a terminal
    return tqdm(total=steps, initial=step, unit="step", disable=quiet, mininterval=0.5)
