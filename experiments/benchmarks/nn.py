"""Time jaxgen's convolutions and normalizations against XLA's on this machine's CPU.

    python experiments/benchmarks/nn.py

Forward and backward of <swish(layer(x)), g> in x and the parameters, batch 64: as a jitted function alone, a
step of `lax.scan`, and a branch of `lax.cond`. The two run in turn and medians are reported.
"""

import dataclasses
import json
import os
import pathlib
import statistics
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import tyro
from jax import lax

from jaxgen.nn import conv, norm

OUTPUT = pathlib.Path(__file__).with_suffix(".json")
SAME = {"padding": ((1, 1), (1, 1))}
# What, the shape of x, Linen's layer, ours.
SYSTEMS = [
    ("conv 3x3, 32x32, 64 -> 64", (32, 32, 64), nn.Conv(64, (3, 3), **SAME), conv.Conv(64, (3, 3), **SAME)),
    (
        "conv 4x4 stride 2, 16x16, 64 -> 128",
        (16, 16, 64),
        nn.Conv(128, (4, 4), 2, **SAME),
        conv.Conv(128, (4, 4), 2, **SAME),
    ),
    (
        "transposed conv 4x4 stride 2, 8x8, 128 -> 64",
        (8, 8, 128),
        nn.ConvTranspose(64, (4, 4), (2, 2)),
        conv.ConvTranspose(64, (4, 4), (2, 2)),
    ),
    ("batch norm, 32x32, 64", (32, 32, 64), nn.BatchNorm(False), norm.BatchNorm(False)),
    ("group norm in 8, 32x32, 64", (32, 32, 64), nn.GroupNorm(8), norm.GroupNorm(8)),
]


@dataclasses.dataclass
class Options:
    """Time jaxgen's convolutions and normalizations against XLA's on CPU."""

    batch_size: int = 64
    """Examples."""
    repeats: int = 15
    """Runs of each; fewer where they take long."""
    seconds: float = 10.0
    """Roughly how long to time one pair for."""
    output: pathlib.Path = OUTPUT
    """Where the numbers go."""


def gradient(layer, variables, g):
    """Of <swish(layer(x)), g> in x and the parameters: functions of (params, x)."""

    def loss(params, x):
        y, _ = layer.apply({**variables, "params": params}, x, mutable=["batch_stats"])
        return jnp.vdot(nn.swish(y), g)

    return jax.grad(loss, (0, 1))


def step(function):
    """One step of gradient descent, so that a loop has something to carry."""
    return lambda args: jax.tree.map(lambda a, b: a - 1e-6 * b, args, function(*args))


def placements(function):
    """Where the gradient is taken, and how many times a call takes it."""
    yield "alone", step(function), 1
    yield "scan", lambda args: lax.scan(lambda a, _: (step(function)(a), None), args, length=2)[0], 2
    yield "cond", lambda args: lax.cond(args[1].sum() < jnp.inf, step(function), lambda a: a, args), 1


def seconds_of(function, args):
    start = time.perf_counter()
    jax.block_until_ready(function(args))
    return time.perf_counter() - start


def compare(xla, ours, args, options):
    """Median seconds of either, run in turn."""
    functions = [jax.jit(xla).lower(args).compile(), jax.jit(ours).lower(args).compile()]
    warm = sum(seconds_of(function, args) for function in functions)
    repeats = max(1, min(options.repeats, int(options.seconds / warm)))
    runs = [[seconds_of(function, args) for function in functions] for _ in range(repeats)]
    return [statistics.median(column) for column in zip(*runs, strict=True)]


def relative_error(actual, desired):
    errors = jax.tree.map(lambda a, b: jnp.abs(a - b).max() / jnp.abs(b).max(), actual, desired)
    return float(max(jax.tree.leaves(errors)))


def main(options: Options) -> None:
    key = jax.random.key(0)
    rows = []
    print(f"{'':48}{'where':8}{'XLA ms':>10}{'ours ms':>10}{'ratio':>8}{'error':>10}")
    for name, shape, *layers in SYSTEMS:
        x = jax.random.normal(key, (options.batch_size, *shape))
        y, variables = layers[0].init_with_output(key, x)
        g = jax.random.normal(jax.random.key(1), y.shape)
        args = variables["params"], x
        functions = [gradient(layer, variables, g) for layer in layers]
        exact, ours = (jax.jit(function)(*args) for function in functions)
        error = relative_error(ours, exact)
        for (where, xla, times), (_, fast, _) in zip(*map(placements, functions), strict=True):
            milliseconds = [1000 * t / times for t in compare(xla, fast, args, options)]
            ratio = milliseconds[0] / milliseconds[1]
            rows.append(
                {
                    "name": name,
                    "where": where,
                    "xla_ms": round(milliseconds[0], 2),
                    "ours_ms": round(milliseconds[1], 2),
                    "ratio": round(ratio, 2),
                    "max_relative_error": float(f"{error:.1e}"),
                }
            )
            print(
                f"{name:48}{where:8}{milliseconds[0]:10.1f}{milliseconds[1]:10.1f}{ratio:8.1f}{error:10.0e}",
                flush=True,
            )
    report = {
        "jax": jax.__version__,
        "cpus": os.cpu_count(),
        "batch_size": options.batch_size,
        "results": rows,
    }
    options.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
