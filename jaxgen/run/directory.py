"""A run directory: the description of a training run, and the files that it wrote.

config.json     family, config, data, key and versions; `load` needs no more, and `fit` compares them before
                it resumes a run
metrics.jsonl   one object per log line, with "step" first
samples/        <step>.png
checkpoints/    <step>/, see `checkpoint`
best/           <step>/, the checkpoint with the lowest validation loss, if there is validation
"""

import contextlib
import importlib.metadata
import json
import os
import platform
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxgen import values


class RunError(ValueError):
    """A run directory that cannot be used: it is missing, damaged, unwritable, or holds another run."""


WILDCARDS = ("*", "?", "[", "\\")
"""What a path of a run cannot contain: Orbax looks for the files that it has written by patterns."""


def resolve(run_dir: str | Path) -> Path:
    """The absolute path of a run directory, `~` expanded."""
    return Path(run_dir).expanduser().resolve()


def check_path(run_dir: Path, wildcards: tuple[str, ...] = WILDCARDS) -> None:
    """Raises RunError if an absolute path of a run contains characters that checkpoints cannot be under."""
    found = [mark for mark in wildcards if mark in str(run_dir)]
    if found:
        raise RunError(f"checkpoints cannot be kept in {run_dir}: choose a path without {' '.join(found)}")


def describe(family: Any, cfg: Any, **facts: Any) -> dict[str, Any]:
    """The content of config.json: the family, its config, `facts`, and the versions it ran with.

    Fields that are no JSON, such as an Optax optimizer, are named under "custom" and only described.
    """
    config, custom = {}, []
    for field in values.options(cfg):
        value = getattr(cfg, field.name)
        try:
            config[field.name] = values.to_json(value)
        except TypeError:
            config[field.name] = repr(value).split(" at 0x")[0]
            custom.append(field.name)
    return {"family": family.__name__, "config": config, "custom": custom, **facts, "versions": versions()}


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that the numbers depend on."""
    names = ("jaxgen", "jax", "flax", "optax", "orbax-checkpoint", "numpy")
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in names},
    }


def prepare(run_dir: str | Path, description: dict[str, Any]) -> Path:
    """Make the directory, with `description` as its config.json, or check that it holds the same run.

    Raises RunError if it cannot be written, has a path under which checkpoints cannot be read again, or holds
    a run that `description` does not continue.
    """
    run_dir = resolve(run_dir)
    check_path(run_dir)
    try:
        for name in ("checkpoints", "samples"):
            (run_dir / name).mkdir(parents=True, exist_ok=True)
        check_writable(run_dir)
        if not (run_dir / "config.json").exists():
            write_text(run_dir / "config.json", json.dumps(description, indent=2) + "\n")
    except OSError as error:
        raise RunError(f"cannot write to the run directory {run_dir}: {error.strerror}") from None
    saved, wanted = read_description(run_dir), json.loads(json.dumps(description))
    if saved.get("versions", {}).get("jax") != wanted["versions"]["jax"]:  # which writes programs differently
        wanted["program"] = saved.get("program")
    differences = _differences(saved, wanted)
    if differences:
        raise RunError(
            f"{run_dir} holds another run ({'; '.join(differences)}): continue it as it was, or choose"
            " another directory"
        )
    return run_dir


def check_writable(run_dir: Path) -> None:
    """Raises RunError if nothing can be written to a run directory, before work for it begins."""
    if not os.access(run_dir, os.W_OK):
        raise RunError(f"cannot write to the run directory {run_dir}: Permission denied")


def read_description(run_dir: Path) -> dict[str, Any]:
    """The parsed config.json. Raises RunError if there is none, or it is damaged."""
    try:
        description = json.loads((run_dir / "config.json").read_text())
    except FileNotFoundError:
        raise RunError(f"{run_dir} is no run directory: it has no config.json") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{run_dir / 'config.json'} cannot be read: {error}") from None
    kinds = {"family": str, "config": dict, "custom": list}
    for name, kind in kinds.items():
        if not isinstance(description, dict) or not isinstance(description.get(name), kind):
            raise RunError(f"{run_dir / 'config.json'} is not the description of a run: it has no {name!r}")
    return description


@contextlib.contextmanager
def lock(run_dir: Path) -> Iterator[None]:
    """Hold a run directory for this process. The death of the process, however it comes, releases it.

    Raises RunError, naming the process, if another one holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows has no such locks
        yield
        return
    with (run_dir / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise RunError(
                f"{run_dir} is in use by {file.read().strip() or 'another process'}: stop it, or choose"
                " another directory"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        yield


def read_config(family: Any, run_dir: Path) -> Any:
    """The Config of a run.

    Raises RunError if it held what is no JSON, if a part cannot be found or is no part, or if it is of
    another version of the family.
    """
    description = read_description(run_dir)
    if description["custom"]:
        names = ", ".join(description["custom"])
        raise RunError(
            f"the config of {run_dir} had its own {names}: give it again, as in load(run_dir, cfg=cfg)"
        )
    try:
        return values.built(family.Config, description["config"])
    except ValueError as error:
        raise RunError(f"the config of {run_dir} cannot be used: {error}") from None
    except TypeError as error:
        raise RunError(
            f"{run_dir / 'config.json'} does not fit this version of {family.__name__}: {error}"
        ) from None


def read_metrics(run_dir: Path) -> list[dict[str, float]]:
    """The log lines, oldest first; a last line cut short by a crash is left out."""
    rows = []
    path = run_dir / "metrics.jsonl"
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def rewind_metrics(run_dir: Path, step: int) -> None:
    """Remove the log lines after `step`; the resumed run writes them again."""
    rows = [row for row in read_metrics(run_dir) if row["step"] <= step]
    write_text(run_dir / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def log(run_dir: Path, row: dict[str, float]) -> None:
    """Append a log line."""
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace a file atomically, so that no reader sees half of it."""
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(text)
    temporary.replace(path)


class StopRequest:
    """A context manager that records SIGTERM and Ctrl-C, so that a loop can save its state before it stops.

    Signals have their usual effect while there is nothing to save, until `saves` is set, and so has a second
    one. Outside the main thread, where Python allows no signal handlers, nothing is recorded.
    """

    current: "StopRequest | None" = None
    """The one that holds now."""

    def __init__(self):
        self.signal: int | None = None
        self.saves = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        StopRequest.current = self
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: Any) -> None:
        StopRequest.current = None
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: Any) -> None:
        signal.signal(number, self._previous[number])
        if not self.saves:
            signal.raise_signal(number)
            return
        self.signal = number
        os.write(2, b"\nstopping after this step and saving; once more stops at once\n")

    def leave(self, message: str) -> None:
        """End the program as the signal would have: KeyboardInterrupt, or exit status 128 + its number."""
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt(message)
        raise SystemExit(128 + (self.signal or signal.SIGTERM))


def saves_on_interrupt() -> bool:
    """Whether a run is on its way that a signal would make save its state."""
    return StopRequest.current is not None and StopRequest.current.saves


def _differences(saved: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    def flat(description):
        facts = {k: v for k, v in description.items() if k not in ("config", "custom", "about", "versions")}
        return {**facts, **description.get("config", {})}

    saved, wanted = flat(saved), flat(wanted)
    return [
        f"{name} is {saved.get(name)} there and {wanted.get(name)} here"
        for name in sorted(saved.keys() | wanted.keys())
        if saved.get(name) != wanted.get(name)
    ]
