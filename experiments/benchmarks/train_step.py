"""A training step beside the same step in PyTorch, and how long a start takes.

    python experiments/benchmarks/train_step.py
    python experiments/benchmarks/train_step.py --torch-python ~/torch/bin/python --systems mlp_vae conv_vae

Each system runs in four processes, two of jaxgen ("loop": many steps a dispatch, as `jaxgen.fit` makes them;
"step": one) and two of PyTorch ("plain": as it comes; "tuned": images with channels last, fused Adam). First
PyTorch is given the weights, and must reproduce losses and gradients. Then the four are timed in turn, round
after round, so that what else the machine does meanwhile falls on all of them, and ratios are taken within a
round. The floor is the time that a step's matrix products would take at the speed of one large product.
"""

import contextlib
import dataclasses
import itertools
import json
import math
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
NUM_BATCHES = 16
"""Batches that the steps go through in turn."""
FIT_CHUNKS = (1, 100)
OUTPUT = Path(__file__).with_suffix(".json")
TOLERANCE = 1e-4
"""Of relative errors, in the norm of each parameter's gradient."""
STARTS = 5
"""How often a start is timed."""


class Sizes(NamedTuple):
    """A system: its kind of network and how large it is."""

    network: str
    shape: tuple[int, ...]
    hidden: tuple[int, ...]
    num_latents: int
    batch_size: int


SYSTEMS = {
    "mlp_vae": Sizes("mlp", (28, 28, 1), (512, 512), 32, 128),
    "conv_vae": Sizes("conv", (28, 28, 1), (32, 64), 32, 128),
    "dcgan": Sizes("gan", (32, 32, 3), (64, 128), 100, 64),
}


@dataclasses.dataclass
class Options:
    """Time training steps of jaxgen beside PyTorch's."""

    systems: tuple[str, ...] = tuple(SYSTEMS)
    """Which of mlp_vae, conv_vae and dcgan."""
    torch: bool = True
    """Compare with PyTorch."""
    torch_python: Path = Path(sys.executable)
    """The Python that has PyTorch, if it is another one."""
    check: bool = True
    """Make sure that both sides compute the same losses and gradients."""
    startup: bool = True
    """Time imports, and from a command to its first training step."""
    threads: int = 2
    """Of either side; on Linux also the number of cores that they may use."""
    rounds: int = 9
    """How often each is timed."""
    seconds: float = 1.5
    """Roughly how long a timing takes."""
    smoke: bool = False
    """Networks and timings so small that only errors can be learned from them."""
    output: Path = OUTPUT
    """Where the numbers go."""


class Worker:
    """One side of one system in a process of its own: calling a method of it calls its `Side`'s."""

    def __init__(self, python: Path, script: str, *arguments: Any):
        command = [python, HERE / script, json.dumps(arguments)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=environment()
        )

    def call(self, method: str, *arguments: Any) -> Any:
        try:
            print(json.dumps([method, *arguments]), file=self.process.stdin, flush=True)
            return json.loads(self.process.stdout.readline())
        except (BrokenPipeError, ValueError):
            raise SystemExit(f"{self.process.args[1].name} failed at {method}: see above") from None

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def serve(side: type) -> None:
    """Be a `Worker`'s process: answer calls, one JSON line each, until there are no more."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever else is printed must not look like an answer
    sizes, *arguments = json.loads(sys.argv[1])
    sizes = Sizes(*(tuple(value) if isinstance(value, list) else value for value in sizes))
    served = side(sizes, *arguments)
    for line in sys.stdin:
        method, *arguments = json.loads(line)
        print(json.dumps(getattr(served, method)(*arguments)), file=answers)


def peak_memory() -> float:
    """Largest resident size of this process so far, in MiB."""
    import resource

    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def compare(sizes: Sizes, options: Any, models: str = "models") -> dict[str, Any]:
    """Check one system, then time it: seconds, MiB, and ratios, above 1 where jaxgen's loop is faster.

    Its sides are the scripts jaxgen_<models>.py and torch_<models>.py.
    """
    seconds = options.seconds
    if options.smoke:
        small, batch_size = (8, 8, sizes.shape[2]), sizes.batch_size // 16
        sizes = sizes._replace(shape=small, hidden=(8, 16), num_latents=4, batch_size=batch_size)
        seconds = 0.01
    with contextlib.ExitStack() as stack:
        workers = {}
        for label in ("jaxgen loop", "jaxgen step") + ("torch plain", "torch tuned") * options.torch:
            side, variant = label.split()
            python = Path(sys.executable) if side == "jaxgen" else options.torch_python
            workers[label] = Worker(python, f"{side}_{models}.py", sizes, variant, options.threads)
            stack.callback(workers[label].close)
        ours, theirs = workers["jaxgen loop"], {k: w for k, w in workers.items() if k.startswith("torch")}
        result: dict[str, Any] = {"sizes": sizes._asdict(), "load_average": os.getloadavg()[0]}
        if options.check:
            result["relative_errors"] = {label: relative_error(ours, w) for label, w in theirs.items()}
        facts = {label: {"first_step_seconds": w.call("seconds", 1)} for label, w in workers.items()}
        counts = {label: steps_for(seconds, worker) for label, worker in workers.items()}
        for label, worker in workers.items():
            facts[label]["peak_mib"] = worker.call("peak_memory")

        flops, rates = product_flops(sizes), []
        times: dict[str, list[float]] = {label: [] for label in workers}
        for number in range(1 if options.smoke else options.rounds):
            for label in list(workers)[:: -1 if number % 2 else 1]:
                times[label].append(workers[label].call("seconds", counts[label]) / counts[label])
                if flops and workers[label] is ours:
                    rates.append(ours.call("product_rate"))
        result["step_seconds"] = {label: facts[label] | summary(values) for label, values in times.items()}
        loop = times.pop("jaxgen loop")
        result["ratios"] = {label: ratios(values, loop) for label, values in times.items()}
        if flops:
            result["product_flops"] = flops
            result["machine_flops_per_second"] = statistics.median(rates)
            result["fraction_of_floor"] = ratios([flops / rate for rate in rates], loop)
            result["fit_steps_per_second"] = ours.call("fit_rates", FIT_CHUNKS, seconds)
        result["versions"] = {k: v for worker in workers.values() for k, v in worker.call("versions").items()}
    return result


def relative_error(ours: Worker, theirs: Worker) -> float:
    """Largest |theirs - ours| / |ours| of losses and gradients. Ends the program where that is too large.

    Gradients that are nothing but rounding, a thousandth of the largest or less, are taken relative to that.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, answered = str(Path(folder, "given.npz")), str(Path(folder, "answered.npz"))
        ours.call("export", given)
        theirs.call("check", given, answered)
        expected, found = np.load(given), np.load(answered)
    errors = {}
    for kind in ("loss:", "gradient:"):
        norms = {name: np.linalg.norm(expected[name]) for name in expected if name.startswith(kind)}
        least = 1e-3 * max(norms.values())
        for name, norm in norms.items():
            errors[name] = float(np.linalg.norm(found[name] - expected[name]) / max(norm, least))
    worst = max(errors, key=errors.__getitem__)
    if not errors[worst] < TOLERANCE:
        raise SystemExit(f"PyTorch and jaxgen differ: relative error {errors[worst]:.1e} in {worst}")
    return errors[worst]


def product_flops(sizes: Sizes) -> int | None:
    """Of the matrix products of a dense VAE's step; nothing asks for the gradient of the pixels."""
    if sizes.network != "mlp":
        return None
    layers = [a * b for a, b in itertools.pairwise((math.prod(sizes.shape), *sizes.hidden))]
    products = 2 * sum(layers) + sizes.hidden[-1] * 3 * sizes.num_latents
    return 2 * sizes.batch_size * (3 * products - layers[0])


def steps_for(seconds: float, worker: Worker) -> int:
    """How many steps take about that long."""
    count, taken = 1, worker.call("seconds", 1)
    while taken < 0.2 * seconds:
        count *= 2
        taken = worker.call("seconds", count)
    return max(1, round(seconds * count / taken))


def summary(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratios(numerators: list[float], denominators: list[float]) -> dict[str, float]:
    return summary([a / b for a, b in zip(numerators, denominators, strict=True)])


def startup(options: Options) -> dict[str, dict[str, float]]:
    """Seconds that fresh processes take for an import, and until an experiment reports its first step."""
    imports = {"import jaxgen.autoencoder.vae": Path(sys.executable)}
    if options.torch:
        imports["import torch"] = options.torch_python
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(1 if options.smoke else STARTS):
            for line, python in imports.items():
                code = f"import time; t = time.perf_counter(); {line}; print(time.perf_counter() - t)"
                answer = subprocess.check_output([python, "-c", code], env=environment())
                times.setdefault(line, []).append(float(answer))
            for cache in ("no", "cold", "warm"):
                where = {"JAX_COMPILATION_CACHE_DIR": f"{folder}/{number}"}
                off = {"JAX_ENABLE_COMPILATION_CACHE": "false"} if cache == "no" else {}
                taken = first_step(Path(folder, f"{number}-{cache}"), **where, **off)
                times.setdefault(f"first step, {cache} compilation cache", []).append(taken)
    return {name: summary(values) for name, values in times.items()}


def first_step(run_dir: Path, **variables: str) -> float:
    script = ROOT / "experiments" / "autoencoder.py"
    command = [sys.executable, script, "vae", "--steps", "1", "--run-dir", run_dir]
    since = time.perf_counter()
    with subprocess.Popen(
        command, env=environment() | variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        line = process.stdout.readline()
        taken = time.perf_counter() - since
        process.communicate()
    if not line.startswith("step 1:"):
        raise SystemExit(f"{script.name} did not reach its first step")
    return taken


def environment() -> dict[str, str]:
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    }


def table(report: dict[str, Any]) -> str:
    lines = [f"{'':28}{'ms a step':>10}{'min':>8}{'max':>8}{'/ loop':>8}{'first s':>9}{'peak MiB':>10}"]
    for name, system in report["systems"].items():
        for label, row in system["step_seconds"].items():
            median, least, most = (1000 * row[key] for key in ("median", "min", "max"))
            ratio = system["ratios"].get(label, {"median": 1.0})["median"]
            lines.append(
                f"{name + ', ' + label:28}{median:10.2f}{least:8.2f}{most:8.2f}{ratio:8.2f}"
                f"{row['first_step_seconds']:9.1f}{row['peak_mib']:10.0f}"
            )
        if "fraction_of_floor" in system:
            percent = 100 * system["fraction_of_floor"]["median"]
            flops, rate = (system[key] / 1e9 for key in ("product_flops", "machine_flops_per_second"))
            rates = system["fit_steps_per_second"].items()
            fits = ", ".join(f"{rate:.0f} at {chunk}" for chunk, rate in rates)
            lines.append(f"    {percent:.0f} % of the floor: {flops:.2f} GFLOP at {rate:.0f} a second")
            lines.append(f"    steps a second through fit: {fits} steps a dispatch")
    lines += [f"{name:48}{row['median']:6.2f} s" for name, row in report.get("startup", {}).items()]
    return "\n".join(lines)


def prepare(options: Any, systems: Mapping[str, Sizes]) -> None:
    """Keep to as many cores as there are threads; ends the program for what cannot be timed."""
    unknown = set(options.systems) - set(systems)
    if unknown:
        raise SystemExit(f"unknown system {', '.join(sorted(unknown))}: choose from {', '.join(systems)}")
    if (
        options.torch
        and subprocess.run([options.torch_python, "-c", "import torch"], capture_output=True).returncode
    ):
        raise SystemExit(
            f"{options.torch_python} has no PyTorch: give --torch-python one that has, or --no-torch"
        )
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])


def main(options: Options) -> None:
    prepare(options, SYSTEMS)
    report: dict[str, Any] = {"threads": options.threads, "machine": machine()}
    report["systems"] = {name: compare(SYSTEMS[name], options) for name in options.systems}
    if options.startup:
        report["startup"] = startup(options)
    options.output.write_text(json.dumps(rounded(report), indent=1) + "\n")
    print(table(report))


def machine() -> str:
    """Names of the GPUs and of the processor, how many cores it has, and what malloc is told."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.*)$", info.read_text(), re.MULTILINE) if info.exists() else []
    told = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith("MALLOC_")]
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    found = shutil.which(query[0]) and subprocess.run(query, capture_output=True, text=True)
    gpus = found.stdout.splitlines() if found else []
    return ", ".join([*gpus, (names or [platform.processor()])[0], f"{os.cpu_count()} cores", *told])


def rounded(value: Any) -> Any:
    """Numbers to four digits, for a file that people read."""
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Options))
