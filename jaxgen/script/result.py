"""Results: the files in experiments/results, from which the tables there and in README are generated."""

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

PLACES = ("--data-dir", "--results")
"""Options with paths of one machine, which are left out of the command of a result."""


def write(
    folder: str | Path,
    run_dir: str | Path,
    system: str,
    paper: str,
    data: str,
    seed: int,
    published: Mapping[tuple[str, str], tuple[float, str]],
) -> Path:
    """Write <system>-<data>/result.json of an evaluated run, and its pictures; samples.png has its samples.

    Args:
        published: (data, metric) -> the figure in the literature, and its source.

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
        "command": command(sys.argv, f"runs/{system}-{file_name(data)}"),
        "seed": seed,
        "minutes": round(training_minutes(run_dir), 1),
        "device": device(),
        "versions": directory.versions(),
        "num_params": report["num_params"],
        "metrics": report["metrics"],
    }
    path = Path(folder) / f"{system}-{file_name(data)}" / "result.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    directory.write_text(path, json.dumps(result, indent=2) + "\n")
    samples = sorted((run_dir / "samples").glob("*.png"), key=lambda picture: int(picture.stem))
    if samples:
        shutil.copy(samples[-1], path.with_name("samples.png"))
    for picture in run_dir.glob("*.png"):
        if picture.stem not in ("curves", "samples"):
            shutil.copy(picture, path.with_name(picture.name))
    return path


def save(path: Path, facts: Mapping[str, Any], since: float, arguments: Sequence[str] | None = None) -> None:
    """Write the findings of a script as JSON, with the command, minutes, device and versions.

    Args:
        since: `time.perf_counter()` when the script began.
        arguments: the words of the command, by default those of this program.
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
    """The kind and number of devices, and the number of cores of the host."""
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}, {os.cpu_count()} host cores"


def file_name(data: str) -> str:
    """The name of a data set as part of a file name."""
    return data.rsplit("/", 1)[-1].replace(":", "_")


def training_minutes(run_dir: Path) -> float:
    """Minutes of training by the log, including those before the run was resumed.

    Those of the run given as `start`, and of earlier stages in folders of the run, are included.
    """
    minutes = 0.0
    for log in sorted(run_dir.rglob("metrics.jsonl")):
        step = 0
        for row in directory.read_metrics(log.parent):
            minutes += (row["step"] - step) / row["steps_per_second"] / 60
            step = int(row["step"])
    if not (run_dir / "config.json").exists():
        return minutes
    return minutes + directory.read_description(run_dir).get("about", {}).get("start_minutes", 0.0)


def command(arguments: Sequence[str], run_dir: str | None = None) -> str:
    """The command as it works on any machine: without `PLACES`, and with run directories under runs/.

    `run_dir` is added to a command that has no run directory, so that other commands can refer to it.
    """
    words: list[str] = []
    rest = [part for word in arguments[1:] for part in (word.split("=", 1) if word[:2] == "--" else [word])]
    while rest:
        word = rest.pop(0)
        if word in PLACES:
            rest.pop(0)
        elif word in ("--run-dir", "--start"):
            words += [word, f"runs/{Path(rest.pop(0)).name}"]
        else:
            words.append(word)
    if run_dir is not None and "--run-dir" not in words:
        words += ["--run-dir", run_dir]
    parts = Path(arguments[0]).parts
    inside = parts[parts.index("experiments") :] if "experiments" in parts else ("experiments", parts[-1])
    return shlex.join(["python", "/".join(inside), *words])
