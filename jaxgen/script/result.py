"""A result: the JSON and pictures a run leaves in experiments/results, from which README's table is made."""

import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxgen.run import directory

PLACES = ("--data-dir", "--run-dir", "--results")
"""Options that say where things lie on one machine: no part of the command that gives a result."""


def write(
    folder: str | Path,
    run_dir: str | Path,
    system: str,
    paper: str,
    data: str,
    seed: int,
    published: Mapping[tuple[str, str], tuple[float, str]],
) -> Path:
    """Write <system>-<data>.json from an evaluated run, and its samples, if any, as the PNG of the same stem.

    The run's other pictures go beside it as <stem>-<name>.png.

    Args:
        published: (data, metric) -> the figure in the literature, and where it stands.

    Returns:
        The path of the JSON file.
    """
    run_dir = directory.resolve(run_dir)
    report = json.loads((run_dir / "report.json").read_text())
    for name, metric in report["metrics"].items():
        if (data, name) in published:
            metric["published"], metric["published_source"] = published[data, name]
    result = {
        "system": system,
        "paper": paper,
        "data": data,
        "tier": "laptop" if jax.default_backend() == "cpu" else "accelerator",
        "command": command(sys.argv),
        "seed": seed,
        "minutes": round(training_minutes(run_dir), 1),
        "device": device(),
        "versions": directory.versions(),
        "num_params": report["num_params"],
        "metrics": report["metrics"],
    }
    path = Path(folder) / f"{system}-{file_name(data)}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    directory.write_text(path, json.dumps(result, indent=2) + "\n")
    samples = sorted((run_dir / "samples").glob("*.png"), key=lambda picture: int(picture.stem))
    if samples:
        shutil.copy(samples[-1], path.with_suffix(".png"))
    for picture in run_dir.glob("*.png"):
        if picture.stem not in ("curves", "samples"):
            shutil.copy(picture, path.with_name(f"{path.stem}-{picture.name}"))
    return path


def save(path: Path, facts: Mapping[str, Any], since: float, arguments: Sequence[str] | None = None) -> None:
    """Write what a script found as JSON, with the command, the minutes, the device and the versions it took.

    Args:
        since: `time.perf_counter()` when it began.
        arguments: the words of the command, by default the program's own.
    """
    circumstances = {
        "command": command(sys.argv if arguments is None else arguments),
        "minutes": round((time.perf_counter() - since) / 60, 1),
        "device": device(),
        "versions": directory.versions(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    directory.write_text(path, json.dumps({**circumstances, **facts}, indent=2) + "\n")


def device() -> str:
    """The devices in words, and the cores of their host."""
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}, {os.cpu_count()} host cores"


def file_name(data: str) -> str:
    """A data set's name as part of a file's."""
    return data.rsplit("/", 1)[-1].replace(":", "_")


def training_minutes(run_dir: Path) -> float:
    """Minutes of training by the log, over all the times the run was resumed, with those of run_dir/first."""
    minutes = 0.0
    for folder in (run_dir, run_dir / "first"):
        step = 0
        for row in directory.read_metrics(folder):
            minutes += (row["step"] - step) / row["steps_per_second"] / 60
            step = int(row["step"])
    return minutes


def command(arguments: Sequence[str]) -> str:
    """The command as anyone would give it, without `PLACES`."""
    words, skip = [], False
    for word in arguments[1:]:
        if skip or word in PLACES:
            skip = not skip
        elif not word.startswith(tuple(f"{place}=" for place in PLACES)):
            words.append(word)
    parts = Path(arguments[0]).parts
    inside = parts[parts.index("experiments") :] if "experiments" in parts else ("experiments", parts[-1])
    return shlex.join(["python", "/".join(inside), *words])
