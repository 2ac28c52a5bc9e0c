"""Seconds and memory of the metrics that cost most: python experiments/benchmarks/evaluation.py

Each case runs in a process of its own. "seconds" is the fastest of three calls and "first_seconds" the first,
with compilation; "cpu_seconds" are those of all cores in the fastest call; "peak_mib" is what the process
needed at most beyond what it held before. Results go to evaluation.json beside this file. The cases of the
package `prdc` are left out where it is not installed.
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import io
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np


def moments():
    from jaxgen.evaluation.frechet import Moments

    features = normal(50_000, 2048)

    def call():
        found = Moments()
        for start in range(0, len(features), 1000):
            found.update(features[start : start + 1000])
        return found.count

    return call


def distance():
    from jaxgen.evaluation.frechet import Moments, frechet_distance

    first, second = (Moments().update(normal(6000, 2048, seed)) for seed in (0, 1))
    arguments = first.mean, first.covariance, second.mean, second.covariance
    return lambda: frechet_distance(*arguments)


def kernel():
    from jaxgen.evaluation.kid import kernel_distance

    features = normal(10_000, 2048), normal(10_000, 2048, 1)
    return lambda: kernel_distance(*features)


def ours(dimensions):
    from jaxgen.evaluation.prdc import prdc

    features = normal(10_000, dimensions), normal(10_000, dimensions, 1)
    return lambda: prdc(*features)


def package(dimensions):
    from prdc import compute_prdc

    features = normal(10_000, dimensions), normal(10_000, dimensions, 1)

    def call():
        with contextlib.redirect_stdout(io.StringIO()):
            found = compute_prdc(*features, nearest_k=5)
        return {name: float(value) for name, value in found.items()}

    return call


CASES = {
    "moments 50,000 x 2048, batches of 1000": moments,
    "frechet_distance of 2048 dimensions": distance,
    "kernel_distance 10,000 x 2048, 100 subsets of 1000": kernel,
    "prdc 10,000 x 10,000 of 64 dimensions": lambda: ours(64),
    "prdc 10,000 x 10,000 of 2048 dimensions": lambda: ours(2048),
    "package prdc 10,000 x 10,000 of 64 dimensions": lambda: package(64),
    "package prdc 10,000 x 10,000 of 2048 dimensions": lambda: package(2048),
}


def normal(n, dimensions, seed=0):
    return np.random.default_rng(seed).standard_normal((n, dimensions), np.float32)


def measure(name):
    call = CASES[name]()
    with open("/proc/self/clear_refs", "w") as reset:  # the peak from here on (Linux)
        reset.write("5")
    before = memory("VmRSS")
    calls = []
    for _ in range(3):
        since, cpu_since = time.perf_counter(), time.process_time()
        value = call()
        calls.append((round(time.perf_counter() - since, 2), round(time.process_time() - cpu_since, 2)))
    seconds, cpu_seconds = min(calls)
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "first_seconds": calls[0][0],
        "peak_mib": round((memory("VmHWM") - before) / 1024),
        "value": value,
    }


def memory(field):
    """Of this process, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=CASES, help="run this one here and print it")
    name = parser.parse_args().case
    if name:
        print(json.dumps(measure(name)))
        return
    packages = ["jax", "numpy", "scipy", "scikit-learn"]
    installed = importlib.util.find_spec("prdc") is not None
    if installed:
        packages.append("prdc")
    else:
        print("package prdc is not installed: left out")
    cases = {}
    for case in CASES:
        if installed or not case.startswith("package"):
            command = [sys.executable, __file__, "--case", case]
            cases[case] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
            print(case, cases[case], flush=True)
    versions = {package: importlib.metadata.version(package) for package in packages}
    device = f"{platform.machine()}, {os.cpu_count()} cores"
    result = {"device": device, "versions": versions, "cases": cases}
    Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
