"""The training loop, which every family uses.

A run is a pure function of (family, config, data, batch size, key), and the randomness of a step depends
only on the key and the step. A run that is stopped and started again therefore gives the same bits as one
that never stopped. `dispatch` says how steps are dispatched to the device.
"""

import contextlib
import functools
import time
import typing
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jaxgen import arguments, data, fields, keys, plot
from jaxgen.data.dataset import one_line
from jaxgen.fields import NonNegativeInt, PositiveInt
from jaxgen.run import checkpoint, directory, dispatch, shard
from jaxgen.run.validation import NAME, is_over, measured
from jaxgen.run.validation import best as best_of
from jaxgen.types import DATA, Family, observed

NUM_SAMPLES = 64
"""Samples in a picture."""
NUM_POINTS = 2000
"""Samples in a picture of points in the plane."""

OnLog = Callable[[int, dict[str, float], Any], None]
"""(step, metrics, State)."""


def fit(
    family: Family,
    cfg: Any,
    dataset: data.Dataset | data.StreamedDataset,
    *,
    steps: PositiveInt,
    batch_size: PositiveInt,
    key: Array,
    run_dir: str | Path | None = None,
    start: Any = None,
    mesh: Mesh | None = None,
    chunk: PositiveInt | None = None,
    log_every: PositiveInt = 100,
    sample_every: NonNegativeInt = 1000,
    save_every: NonNegativeInt = 1000,
    validation: data.Dataset | data.StreamedDataset | None = None,
    validate_every: PositiveInt = 1000,
    patience: PositiveInt | None = None,
    on_log: OnLog | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Any:
    """Train `family` for `steps` steps in all and return its State: with `patience`, the best one.

    With a `run_dir` the run writes config.json, metrics.jsonl, samples/<step>.png and checkpoints/<step>/
    there. Starting it again continues from the last intact checkpoint and gives the same bits as a run that
    never stopped. SIGTERM and Ctrl-C save a checkpoint first.

    Args:
        family: a module with Config, init, train_step and sample.
        cfg: its Config.
        dataset: what `data.load` returns.
        steps: length of the whole run, including the part before a resumption.
        batch_size: examples per step, over all devices and processes.
        key: typed PRNG key; the initial state, the order of the data and every step follow from it.
        run_dir: where the run is kept; None keeps nothing.
        start: a State from which a new run is initialised. It is of the same family, possibly under another
            config. Only the step, the key and the optimizer's state are those of a fresh State.
        mesh: devices to use; all of them by default.
        chunk: steps per dispatch for data held on the device; by default as many as take half a second.
        log_every: steps between log lines; a line holds the means over the steps since the last.
        sample_every: steps between pictures of samples; 0 draws none.
        save_every: steps between checkpoints; 0 saves only at the end.
        validation: held-out examples, such as `data.load(name, "validation")` where the model is trained on
            "train-validation". Their mean loss is logged as "validation_loss", and the State with the lowest
            one is kept in best/ of the run: `jaxgen.load(run_dir, step="best")`.
        validate_every: steps between validations; there is one at the end, too.
        patience: stop after so many validations in turn that bring no lower loss, and return the State with
            the lowest one, whether or not training stopped early; `jaxgen.load(run_dir)` gives the last. None
            trains for all steps and returns the last State.
        on_log: called with the step, the metrics of every log line, and the State, which is to be copied if
            it is to be kept: the next step takes its memory.
        facts: JSON to be recorded in config.json; a resumed run need not have the same.

    Raises:
        ValueError: an argument is of another type, such as a Config of another family, or the data are of
            another shape than `cfg.shape` or have values that the likelihood cannot mean; the batch does not
            split over the devices, a number is out of its range, `start` has other shapes, or there is
            validation of a family that has nothing to be validated by.
        RunError: the run directory holds another run or one with more steps, is in use by another process, or
            cannot be written.
        FloatingPointError: a metric or the state became NaN or infinite; the message names the step, and the
            checkpoints stay as they were.
    """
    _check_numbers(
        steps=steps,
        batch_size=batch_size,
        chunk=chunk,
        log_every=log_every,
        sample_every=sample_every,
        save_every=save_every,
        validate_every=validate_every,
        patience=patience,
    )
    _check_arguments(family, cfg, dataset, key)
    if patience is not None and validation is None:
        raise ValueError("patience is that of validation: give held-out examples as `validation`")
    mesh = shard.mesh() if mesh is None else mesh
    shard.check_threads(mesh)
    shard.check_batch_size(batch_size, mesh)
    like = checkpoint.abstract_state(family, cfg)
    shardings = shard.state_shardings(like, mesh)
    if start is not None:
        _check_start(like, start)
    init_key, data_key, sample_key = keys.named(key, "init", "data", "pictures")
    validate, history, kept = None, [], None
    if validation is not None:
        validation_key = keys.named(key, "validation")
        validate = measured(family, cfg, validation, batch_size, validation_key, mesh)
    batches = data.batches(dataset, batch_size, seed=int(jax.random.bits(data_key, dtype=jnp.uint32)))
    identity = {
        "data": dataset.name,
        "split": dataset.split,
        "num_examples": len(dataset),
        "batch_size": batch_size,
        "key": jax.random.key_data(key).tolist(),
    }
    zeros = dispatch.zeros(family, cfg, like, batches, mesh)  # traces a step, which may refuse the batch
    if chunk is None and jax.process_count() > 1:
        chunk = log_every  # processes must make the same dispatches: no clock may choose
    advance = dispatch.advance(family, cfg, batches, mesh, shardings, chunk)
    shown = NUM_POINTS if cfg.shape == (2,) else NUM_SAMPLES
    draw = jax.jit(
        lambda key, state: family.sample(key, state, shown, cfg), out_shardings=shard.replicated(mesh)
    )
    if run_dir is not None and sample_every:
        draw.eval_shape(sample_key, like)  # what cannot be drawn is refused before the first step

    with contextlib.ExitStack() as stack:
        folder, state, stop, writes = None, None, None, jax.process_index() == 0
        if run_dir is not None:
            folder, stop = directory.resolve(run_dir), stack.enter_context(directory.StopRequest())
            if writes:
                description = directory.describe(family, cfg, about=dict(facts or {}), **identity)
                if description["custom"]:
                    description["program"] = dispatch.fingerprint(family, cfg, like, batches)
                directory.prepare(folder, description)
                stack.enter_context(directory.lock(folder))
            shard.barrier("prepared")
            state = checkpoint.restore(folder, checkpoint.abstract_state(family, cfg, shardings))
            reached = 0 if state is None else int(state.step)
            if reached > steps:
                raise directory.RunError(
                    f"{folder} has reached step {reached}: choose as many steps or more, not {steps}"
                )
            if writes:
                checkpoint.set_aside(folder, after=reached)
                directory.rewind_metrics(folder, reached)
            shard.barrier("resumed")
            rows = directory.read_metrics(folder)
            history = [(int(row["step"]), row[NAME]) for row in rows if NAME in row]
        if state is None:
            streamed = isinstance(batches, data.StreamedBatches)
            first = shard.put_batch(batches(0), mesh) if streamed else batches(0)
            state = jax.jit(functools.partial(family.init, cfg=cfg), out_shardings=shardings)(
                init_key, batch=first
            )
            if start is not None:
                state = _started(state, start, shardings)
        step, totals, counted, since = int(state.step), zeros, 0, time.perf_counter()
        bar = stack.enter_context(_progress_bar(steps, step))
        writer = stack.enter_context(checkpoint.open_writer(folder)) if folder else None
        best = stack.enter_context(checkpoint.open_writer(folder, "best")) if folder and validate else None
        stops = (log_every, sample_every, save_every, validate_every if validate else 0)
        over = step >= steps or is_over(history, patience)
        while not over:
            until = min(_next_multiple(step, every, steps) for every in stops)
            while step < until and not _interrupted(stop):
                state, totals, done = advance(state, totals, step, until)
                step, counted = step + done, counted + done
                bar.update(done)
                if stop is not None:
                    stop.saves = True
            dispatch.check(totals, cfg)
            rate, validated = counted / (time.perf_counter() - since), {}
            if validate and counted and _is_due(step, validate_every, steps):
                validated = {NAME: validate(state)}
                history.append((step, validated[NAME]))
                if folder and best_of(history) == step:
                    _check_state(state, step, cfg)
                    checkpoint.save(best, step, state)
                elif patience and best_of(history) == step:
                    kept = jax.tree.map(jnp.copy, state)  # the next step takes the memory of the State
            over = step == steps or is_over(history, patience)
            metrics = {}
            if counted and (validated or over or _is_due(step, log_every, steps)):
                metrics = {name: float(total) / counted for name, total in totals.metrics.items()} | validated
                bar.set_postfix({name: f"{value:.4g}" for name, value in metrics.items()}, refresh=False)
                if folder and writes:
                    with _warned(f"the log line of step {step} cannot be written"):
                        directory.log(folder, {"step": step, **metrics, "steps_per_second": round(rate, 3)})
            stopping = _agree(stop)
            if folder and (stopping or over or _is_due(step, save_every, steps)):
                _check_state(state, step, cfg)
                checkpoint.save(writer, step, state)
            # What follows may fail, and costs no checkpoint.
            if folder and sample_every and (over or _is_due(step, sample_every, steps)):
                with _warned(f"samples of step {step} cannot be drawn"):
                    samples = np.asarray(draw(sample_key, state))
                    if writes:
                        plot.save_samples(folder / "samples" / f"{step}.png", samples)
            if metrics:
                try:
                    if on_log:
                        on_log(step, metrics, state)
                except Exception:
                    if folder:
                        checkpoint.save(writer, step, state)
                    raise
                totals, counted, since = zeros, 0, time.perf_counter()
            if stop is not None and stopping:
                stop.leave(f"stopped after step {step}, saved in {folder}; the same command continues")
    if folder and patience and checkpoint.steps(folder, "best"):
        kept = checkpoint.restore(folder, checkpoint.abstract_state(family, cfg, shardings), folder="best")
    return state if kept is None else kept


def _check_numbers(**given):
    """Raises ValueError for a number that is not of the type that `fit` says it takes."""
    hints = typing.get_type_hints(fit, include_extras=True)
    for name, number in given.items():
        wrong = fields.misfit(number, hints[name])
        if wrong:
            raise ValueError(f"{name} {wrong}")


def _check_arguments(family, cfg, dataset, key):
    """Raises ValueError for what is no family, not its Config, no data set, or no key."""
    if not isinstance(family, Family):
        raise ValueError(f"a family is a module with Config, init, train_step and sample, not {family!r}")
    if not isinstance(cfg, family.Config):
        given = f"{type(cfg).__module__}.{type(cfg).__qualname__}"
        name = getattr(family, "__name__", family)
        raise ValueError(f"cfg must be a Config of {name}, not {given}")
    fields.check(cfg)
    if not isinstance(dataset, data.Dataset | data.StreamedDataset):
        kind = type(dataset).__name__
        raise ValueError(
            f'the data set is of type {kind}: arrays are one as data.Dataset("mine", "train", {{"image": x}})'
        )
    few = dataset[: 2000 if isinstance(dataset, data.Dataset) else 64]
    wrong = arguments.of_key(key) or arguments.of_batch(few, cfg)
    if not wrong and set(few) & set(DATA):
        wrong = arguments.of_values(family, cfg, observed(few))
    if wrong:
        raise ValueError(wrong)


def _learned(state):
    """What a run takes over from the State it starts from: all but the step, the key and the optimizer's."""
    return {name: getattr(state, name) for name in state._fields if name not in ("step", "key", "opt_state")}


def _check_start(like, start):
    if not hasattr(start, "_fields") or (
        jax.tree.map(jnp.shape, _learned(like)) != jax.tree.map(jnp.shape, _learned(start))
    ):
        raise ValueError(
            "`start` is a state of other shapes: give both runs the same networks and data shape"
        )


def _started(state, start, shardings):
    """`start` with the step, the key and the optimizer's state of `state`."""
    given = _learned(start)
    # Copies: what training starts from is donated to it.
    placed = {name: jax.device_put(value, getattr(shardings, name)) for name, value in given.items()}
    return state._replace(**jax.tree.map(jnp.copy, placed))


def _check_state(state, step, cfg):
    floats = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    if any(_has_nan(x) for x in floats):
        raise FloatingPointError(
            f"the state holds NaN after step {step} and was not saved: {dispatch.advice(cfg)}"
        )


@jax.jit
def _has_nan(x):
    return jnp.isnan(x).any()


def _interrupted(stop):
    return stop is not None and stop.signal is not None and jax.process_count() == 1


def _agree(stop):
    """Whether to stop. Several processes must stop at the same step, so they exchange their signals."""
    if stop is None or jax.process_count() == 1:
        return _interrupted(stop)
    from jax.experimental import multihost_utils

    signals = multihost_utils.process_allgather(np.int32(stop.signal or 0))
    stop.signal = int(signals.max()) or None
    return stop.signal is not None


def _is_due(step, every, steps):
    return step == steps or (every > 0 and step % every == 0)


@contextlib.contextmanager
def _warned(what):
    """An error in here is a warning, after which the run goes on."""
    try:
        yield
    except Exception as error:
        warnings.warn(f"{what}: {one_line(error)}", stacklevel=2)


def _next_multiple(step, every, steps):
    return min((step // every + 1) * every, steps) if every else steps


def _progress_bar(steps, step):
    from tqdm import tqdm

    quiet = None if jax.process_index() == 0 else True  # None: only on a terminal
    return tqdm(total=steps, initial=step, unit="step", disable=quiet, mininterval=0.5)
