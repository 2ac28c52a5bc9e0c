"""Checkpoints of a run: written asynchronously, committed by a rename, restored onto any mesh.

This is the only file that imports Orbax.
"""

import contextlib
import functools
import gc
import logging
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxgen import values
from jaxgen.data.dataset import one_line
from jaxgen.run import directory
from jaxgen.run.directory import RunError
from jaxgen.run.seeds import Seeds
from jaxgen.types import Family

KEEP = {"checkpoints": 3, "best": 1}
"""How many of the latest checkpoints a run directory keeps in its folders, the last ones and the best."""

UNREADABLE = ("\\", "**")
"""What no path of a run that was moved can contain; see `directory.WILDCARDS` for one that is written."""

NOT_WRITTEN = (
    "No space left on device",
    "Disk quota exceeded",
    "File too large",
    "Read-only file system",
    "Input/output error",
)
"""Words of errors on writing."""

NO_DAMAGE = ("PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "Permission denied", "Too many open files")
"""Words of errors on reading that are no fault of the checkpoint."""


@contextlib.contextmanager
def open_writer(run_dir: Path, folder: str = "checkpoints") -> Iterator[Any]:
    """An Orbax checkpointer on a folder of `KEEP` in run_dir, closed at the end.

    Raises RunError if a checkpoint cannot be written, such as to a full disk. Orbax writes in threads, whose
    errors come at the next checkpoint or at the end; what the threads log of them is left out, also later.
    """
    import orbax.checkpoint.experimental.v1 as ocp

    logging.getLogger("absl").addFilter(_is_not_raised_too)
    _mute_what_is_left_behind()
    try:
        with ocp.training.Checkpointer(
            run_dir / folder,
            preservation_policy=ocp.training.preservation_policies.LatestN(KEEP[folder]),
            cleanup_tmp_directories=True,
        ) as writer:
            yield writer
    except Exception as error:
        reason = next((word for word in NOT_WRITTEN if word in str(error)), None)
        if reason is None or isinstance(error, RunError):
            raise
        raise RunError(
            f"a checkpoint of {run_dir} could not be written: {reason}; it has {steps(run_dir) or 'none'}"
        ) from None


def _is_not_raised_too(record: logging.LogRecord) -> bool:
    """Whether a line of a log says what no exception says: those of Orbax about exceptions do not."""
    return not (record.levelno >= logging.ERROR and "orbax" in record.pathname)


def save(writer: Any, step: int, state: Any) -> None:
    """Start writing `state` as checkpoint `step`; returns once it is copied, so it may then be donated."""
    if all(checkpoint.step != step for checkpoint in writer.checkpoints):
        writer.save_async(step, state, force=True)


def steps(run_dir: Path, folder: str = "checkpoints") -> list[int]:
    """The steps of the committed checkpoints, ascending."""
    return sorted(int(path.name) for path in (run_dir / folder).glob("*") if path.name.isdigit())


def restore(run_dir: Path, like: Any, step: int | None = None, folder: str = "checkpoints") -> Any:
    """The State of checkpoint `step`, by default of the latest intact one, or None if there is no checkpoint.

    Without `step`, damaged checkpoints are skipped with a warning.

    Args:
        run_dir: absolute path of the run.
        like: a tree of jax.ShapeDtypeStruct with the wanted shardings, as returned by `abstract_state`.
        step: the checkpoint to read.
        folder: where, one of `KEEP`.

    Raises:
        RunError: `step` is missing or damaged, no checkpoint is intact, or an intact one cannot be read,
            being of another config, version or floating-point type, or for lack of access or memory.
    """
    available = steps(run_dir, folder)
    if available:
        directory.check_path(run_dir, UNREADABLE)
    if step is not None and step not in available:
        raise RunError(f"{run_dir} has no checkpoint {step}; it has {available or 'none'}")
    for candidate in reversed(available) if step is None else [step]:
        path = run_dir / folder / str(candidate)
        different = _differences(path, like)
        if different:
            raise RunError(
                f"checkpoint {candidate} of {run_dir} is of another config or version of its family:"
                f" {different}"
            )
        state = _read(path, like)
        if state is not None:
            return state
        if step is not None:
            raise RunError(f"checkpoint {step} of {run_dir} is damaged; it has {available}")
        message = f"checkpoint {candidate} of {run_dir} is damaged: falling back to the one before"
        warnings.warn(message, stacklevel=2)
    if available:
        raise RunError(f"no checkpoint of {run_dir} is whole: start again in another directory")
    return None


def _read(path: Path, like: Any) -> Any:
    """The state in a checkpoint, or None if it is damaged."""
    import orbax.checkpoint.experimental.v1 as ocp

    return _or_none(path, lambda: ocp.load(path, like))


def _differences(path: Path, like: Any) -> str:
    """How the arrays that a checkpoint says it has differ from those of `like`; "" if it is damaged.

    Two differences are named, and the number of others.
    """
    import orbax.checkpoint.experimental.v1 as ocp

    described = _or_none(path, lambda: _arrays(ocp.metadata(path).metadata))
    if not described:
        return ""
    wanted = _arrays(jax.tree.map(_raw, like))
    names = [
        name for name in sorted(described.keys() | wanted.keys()) if described.get(name) != wanted.get(name)
    ]
    lines = [
        f"{name} is {described.get(name, 'absent')} there and {wanted.get(name, 'absent')} here"
        for name in names
    ]
    return "; ".join(lines[:2] + [f"and {len(lines) - 2} more"] * (len(lines) > 2))


def _arrays(tree: Any) -> dict[str, str]:
    """{place in the tree: type and shape} of all arrays."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): f"{leaf.dtype} {tuple(leaf.shape)}"
        for path, leaf in leaves
    }


def _raw(leaf: Any) -> Any:
    """A leaf as it is written: a key is an array of integers."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.eval_shape(jax.random.key_data, leaf)
    return leaf


def _or_none(path: Path, read: Callable[[], Any]) -> Any:
    """What `read()` returns, or None if a checkpoint is damaged; Orbax raises many types of exceptions then.

    Raises RunError if there is no access to the checkpoint, or not enough memory for it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.ERROR)
        try:
            return read()
        except Exception as error:
            intact = any(word in str(error) for word in NO_DAMAGE)
            if intact or isinstance(error, PermissionError | MemoryError):
                raise RunError(f"checkpoint {path} cannot be read: {one_line(error)}") from None
        finally:
            logging.disable(logging.NOTSET)
        _mute_what_is_left_behind()
        gc.collect()  # a failed read leaves coroutines that would warn of themselves later
    return None


@functools.cache
def _mute_what_is_left_behind() -> None:
    """Drop what Python prints of reads and writes that outlive a failed one and find its loop closed."""
    hook = sys.unraisablehook

    def without_them(raised: Any) -> None:
        if str(raised.exc_value) != "Event loop is closed":
            hook(raised)

    sys.unraisablehook = without_them


def set_aside(run_dir: Path, after: int) -> None:
    """Move the checkpoints later than step `after`, which were found damaged, to run_dir/damaged."""
    for step in steps(run_dir):
        if step > after:
            target = run_dir / "damaged" / str(step)
            target.parent.mkdir(exist_ok=True)
            while target.exists():
                target = target.with_name(target.name + "_")
            shutil.move(run_dir / "checkpoints" / str(step), target)


def load(
    run_dir: str | Path, step: int | Literal["best"] | None = None, cfg: Any = None
) -> tuple[Any, Any, Any]:
    """The family, config and state of a run: `family.sample(key, state, 64, cfg)` draws from it.

    Args:
        run_dir: what `fit` was given.
        step: which checkpoint, "best" for that with the lowest validation loss; by default the latest intact
            one.
        cfg: the config, needed only if it held networks or optimizers of your own.

    Raises:
        RunError: there is no such run, checkpoint or family, or `cfg` is not that of the run.
    """
    run_dir = directory.resolve(run_dir)
    name, _, count = directory.read_description(run_dir)["family"].partition(" x ")
    try:
        family = values.imported(name)
    except ValueError as error:
        raise RunError(f"{run_dir} is of the family {name}: {error}") from None
    if not (isinstance(family, ModuleType) and isinstance(family, Family)):
        raise RunError(f"{run_dir} names {name}, which is no family")
    family = Seeds(family, int(count)) if count else family
    cfg = directory.read_config(family, run_dir) if cfg is None else cfg
    if not isinstance(cfg, family.Config):
        raise RunError(f"{run_dir} is of the family {name}: cfg must be its Config, not {type(cfg).__name__}")
    like = abstract_state(family, cfg)
    if step == "best":
        state = restore(run_dir, like, folder="best")
        if state is None:
            raise RunError(f"{run_dir} has no best checkpoint: it was trained without validation")
        return family, cfg, state
    state = restore(run_dir, like, step)
    if state is None:
        raise RunError(f"{run_dir} has no checkpoint yet")
    return family, cfg, state


def abstract_state(family: Any, cfg: Any, shardings: Any = None) -> Any:
    """Shapes and types of the family's State, on the first local device unless `shardings` are given."""
    shapes = jax.eval_shape(lambda: family.init(jax.random.key(0), cfg))
    if shardings is None:
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shardings = jax.tree.map(lambda _: device, shapes)
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes, shardings
    )
