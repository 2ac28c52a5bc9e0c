"""A training step and samples of the U-Net of diffusion models, beside `diffusers`.

    python experiments/benchmarks/unet.py --torch-python ~/diffusers/bin/python

Both sides have `jaxgen.diffusion.ddpm`'s default network: `UNet2DModel` is given its widths, blocks and
groups, attention in the middle only, and padding below and to the right where it halves. It takes over every
weight of jaxgen and must reproduce predictions, loss, gradients and DDIM samples. A step is noising,
forward, backward, clipping, Adam and the average of the weights. PyTorch is eager and runs twice, "plain" and
"tuned" (images with channels last, fused updates).

All are timed in turn, round after round, and ratios, above 1 where jaxgen is faster, are taken within a
round: of wall-clock time, and of the processes' CPU time, which other work on the machine disturbs less.
Compilation is apart. FLOPs are of one example's forward pass: XLA leaves out taps that fall on padding and
has every addition, PyTorch counts convolutions and products only.
"""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from train_step import TOLERANCE, Sizes, Worker, machine, ratios, rounded, summary

SIZES = Sizes("unet", (32, 32, 1), (32, 64), 0, 64)
"""Fashion-MNIST padded, the channels at full size and at half, and the batch of a step."""
SAMPLES = 8
CHECKED = 4
"""Examples on which both sides must agree."""
SAMPLERS = {"ddim": 50, "ddpm": 50, "dpm_solver_pp": 20, "edm_heun": 18}
"""Steps of each; Heun's method calls the network twice a step, but once in the last."""
PARTS = ("check", "step", "ddim", "samplers")
CLOCKS = ("wall", "cpu")
OUTPUT = Path(__file__).with_suffix(".json")


@dataclasses.dataclass
class Options:
    """Time the U-Net of jaxgen beside that of diffusers."""

    torch_python: Path = Path(os.environ.get("JAXGEN_TORCH_PYTHON", sys.executable))
    """The Python that has PyTorch and diffusers, if it is another one."""
    parts: tuple[str, ...] = PARTS
    """Which of check, step, ddim and samplers; the file keeps what it has of the others."""
    threads: int = 1
    """Of either side; on Linux also the number of cores that they may use."""
    minutes: float = 3.0
    """How long each part goes on, its compilation and at least one round included."""
    output: Path = OUTPUT
    """Where the numbers go."""


def main(options: Options) -> None:
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        raise SystemExit(f"unknown part {', '.join(sorted(unknown))}: choose from {', '.join(PARTS)}")
    find = "import importlib.util, sys; sys.exit(importlib.util.find_spec('diffusers') is None)"
    if subprocess.run([options.torch_python, "-c", find]).returncode:
        raise SystemExit(f"{options.torch_python} has no diffusers: give --torch-python one that has")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    report = json.loads(options.output.read_text()) if options.output.exists() else {}
    report |= {"sizes": SIZES._asdict(), "threads": options.threads, "machine": machine()}
    with contextlib.ExitStack() as stack:
        workers = {}
        for label in ("jaxgen",) + ("diffusers plain", "diffusers tuned") * (options.parts != ("samplers",)):
            side, _, variant = label.partition(" ")
            python, script = Path(sys.executable), "jaxgen_unet.py"
            if side == "diffusers":
                python, script = options.torch_python, "torch_unet.py"
            workers[label] = Worker(python, script, SIZES, variant, options.threads)
            stack.callback(workers[label].close)
        for part in options.parts:
            if part == "check":
                report |= check(workers)
            else:
                report[part] = timed(part, workers, time.perf_counter() + 60 * options.minutes)
            options.output.write_text(json.dumps(rounded(report), indent=1) + "\n")
    print(table(report))


def check(workers: dict[str, Worker]) -> dict[str, Any]:
    """Sizes of the networks, and the largest |theirs - ours| / |ours| of each kind of result.

    Ends the program where one is too large.
    """
    ours, *theirs = workers.values()
    kinds = ("prediction", "loss", "gradient", "samples")
    errors = dict.fromkeys(kinds, 0.0)
    with tempfile.TemporaryDirectory() as folder:
        given, answered = str(Path(folder, "given.npz")), str(Path(folder, "answered.npz"))
        ours.call("export", given)
        expected = np.load(given)
        for worker in theirs:
            worker.call("check", given, answered)
            found = np.load(answered)
            for kind in kinds:
                names = [name for name in expected if name.partition(":")[0] == kind]
                flat = lambda arrays, names=names: np.concatenate([arrays[name].ravel() for name in names])
                error = np.linalg.norm(flat(found) - flat(expected)) / np.linalg.norm(flat(expected))
                errors[kind] = max(errors[kind], float(error))
    if not max(errors.values()) < TOLERANCE:
        raise SystemExit(f"diffusers and jaxgen differ: relative errors {errors}")
    return {
        "versions": {name: v for worker in workers.values() for name, v in worker.call("versions").items()},
        "num_params": {label: worker.call("num_params") for label, worker in workers.items()},
        "forward_flops_an_example": {label: worker.call("flops") for label, worker in workers.items()},
        "relative_errors": errors,
    }


def timed(part: str, workers: dict[str, Worker], end: float) -> dict[str, Any]:
    """Seconds of one step or of `SAMPLES` draws: rounds that end by `end`, but one at least."""
    ours = workers["jaxgen"]
    if part == "samplers":
        workers = {"jaxgen": ours}
    names = list(SAMPLERS) if part == "samplers" else [part]
    compiling = {name: dict(zip(CLOCKS, ours.call("compile", name), strict=True)) for name in names}
    if part == "step":
        for worker in workers.values():
            worker.call("seconds", part)  # a first step allocates
    contenders = [(label, name) for label in workers for name in names]
    times: dict[str, list[list[float]]] = {}
    count, longest = 0, 0.0
    while not count or time.perf_counter() + longest < end:
        since = time.perf_counter()
        for label, name in contenders[:: -1 if count % 2 else 1]:
            key = name if part == "samplers" else label
            times.setdefault(key, []).append(workers[label].call("seconds", name))
        count, longest = count + 1, max(longest, time.perf_counter() - since)
    result: dict[str, Any] = {"rounds": count, "load_average": os.getloadavg()[0]}
    result["compile_seconds"] = compiling
    for index, clock in enumerate(CLOCKS):
        taken = {key: [both[index] for both in values] for key, values in times.items()}
        if part == "samplers":
            rates = {key: summary([SAMPLES / seconds for seconds in values]) for key, values in taken.items()}
            result[f"images_a_{clock}_second"] = rates
        else:
            result[f"{clock}_seconds"] = {key: summary(values) for key, values in taken.items()}
            own = taken.pop("jaxgen")
            result[f"{clock}_ratios"] = {key: ratios(values, own) for key, values in taken.items()}
            bests = {key: min(values) / min(own) for key, values in taken.items()}
            result[f"{clock}_ratios_of_bests"] = bests
    if part != "step":
        result["images"] = SAMPLES
        result["steps"] = {name: SAMPLERS[name] for name in names}
    return result


def table(report: dict[str, Any]) -> str:
    lines = [f"{'':24}" + "".join(f"{clock + ' s':>8}{'best':>8}{'ratio':>7}" for clock in CLOCKS)]
    for part in ("step", "ddim"):
        for label in report.get(part, {}).get("wall_seconds", ()):
            line = f"{part + ', ' + label:24}"
            for clock in CLOCKS:
                row = report[part][f"{clock}_seconds"][label]
                ratio = report[part][f"{clock}_ratios"].get(label, {"median": 1.0})
                line += f"{row['median']:8.3f}{row['min']:8.3f}{ratio['median']:7.2f}"
            lines.append(line)
    for name, row in report.get("samplers", {}).get("images_a_cpu_second", {}).items():
        lines.append(f"{name:24}{row['median']:8.2f} images a second of CPU")
    return "\n".join(lines)


def stopwatch(function, *arguments) -> tuple[float, float]:
    """Wall-clock and CPU seconds of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    function(*arguments)
    return time.perf_counter() - wall, time.process_time() - cpu


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Options))
