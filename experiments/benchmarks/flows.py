"""Flows of couplings beside flowjax, zuko and normflows: python experiments/benchmarks/flows.py

RealNVP of vectors of 16 numbers with 4, 16 and 64 affine couplings, whose networks have two hidden layers of
64 ReLUs. Each contender is a process of its own, and they run in turn, round after round. "step" is a step
of training (maximum likelihood, Adam) of 512, "log_prob" takes 100,000 examples and "sample" draws as many,
all in float32: the median over rounds in seconds. "first_step" has tracing and compilation too. Results go to
flows.json beside this file. All cores that the process may use are used: `taskset -c 0` for one.

The others need `pip install flowjax zuko normflows torch`. The networks differ as the libraries do: jaxgen's
and zuko's read all 16 numbers with those that move masked, the others' read 8 and give the parameters of 8.
"""

import argparse
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from train_step import machine

NUM_DIMS, WIDTH, BATCH_SIZE, NUM_POINTS = 16, 64, 512, 100_000
DEPTHS = 4, 16, 64
STEPS_A_ROUND = 20


def points(n):
    return np.random.default_rng(0).normal(size=(n, NUM_DIMS)).astype(np.float32)


def in_jaxgen(depth):
    import jax

    from jaxgen import values
    from jaxgen.flow import realnvp
    from jaxgen.nn.mlp import MLP

    cfg = realnvp.Config(
        shape=(NUM_DIMS,),
        levels=0,
        num_layers=depth,
        network=MLP((WIDTH, WIDTH), activation="relu"),
        optimizer=values.Adam(1e-3),
    )
    batch, x = {"x": jax.numpy.asarray(points(BATCH_SIZE))}, jax.numpy.asarray(points(NUM_POINTS))
    state = jax.jit(realnvp.init, static_argnums=1)(jax.random.key(0), cfg, batch)
    train_step = jax.jit(realnvp.train_step, static_argnums=2)
    log_prob = jax.jit(realnvp.log_prob, static_argnums=2)
    sample = jax.jit(realnvp.sample, static_argnums=(2, 3))
    current = [state]

    def step():
        current[0], _ = train_step(current[0], batch, cfg)
        jax.block_until_ready(current[0])

    return {
        "step": step,
        "log_prob": lambda: jax.block_until_ready(log_prob(current[0], x, cfg)),
        "sample": lambda: jax.block_until_ready(sample(jax.random.key(1), current[0], NUM_POINTS, cfg)),
    }


def in_flowjax(depth):
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import optax
    from flowjax.distributions import Normal
    from flowjax.flows import coupling_flow

    flow = coupling_flow(
        jax.random.key(0),
        base_dist=Normal(jnp.zeros(NUM_DIMS)),
        flow_layers=depth,
        nn_width=WIDTH,
        nn_depth=2,
    )
    batch, x = jnp.asarray(points(BATCH_SIZE)), jnp.asarray(points(NUM_POINTS))
    optimizer = optax.adam(1e-3)

    @eqx.filter_jit
    def train_step(flow, opt_state):
        grads = eqx.filter_grad(lambda flow: -flow.log_prob(batch).mean())(flow)
        updates, opt_state = optimizer.update(grads, opt_state)
        return eqx.apply_updates(flow, updates), opt_state

    log_prob = eqx.filter_jit(lambda flow: flow.log_prob(x))
    sample = eqx.filter_jit(lambda flow: flow.sample(jax.random.key(1), (NUM_POINTS,)))
    current = [flow, optimizer.init(eqx.filter(flow, eqx.is_inexact_array))]

    def step():
        current[:] = train_step(*current)
        jax.block_until_ready(eqx.filter(current[0], eqx.is_array))

    return {
        "step": step,
        "log_prob": lambda: jax.block_until_ready(log_prob(current[0])),
        "sample": lambda: jax.block_until_ready(sample(current[0])),
    }


def in_torch(flow, log_prob, sample):
    import torch

    optimizer = torch.optim.Adam(flow.parameters(), 1e-3)
    batch, x = torch.from_numpy(points(BATCH_SIZE)), torch.from_numpy(points(NUM_POINTS))

    def step():
        optimizer.zero_grad()
        (-log_prob(batch).mean()).backward()
        optimizer.step()

    return {"step": step, "log_prob": torch.no_grad()(lambda: log_prob(x)), "sample": torch.no_grad()(sample)}


def in_zuko(depth):
    import zuko

    flow = zuko.flows.RealNVP(NUM_DIMS, transforms=depth, hidden_features=(WIDTH, WIDTH))
    return in_torch(flow, lambda x: flow().log_prob(x), lambda: flow().sample((NUM_POINTS,)))


def in_normflows(depth):
    import normflows

    layers = []
    for _ in range(depth):
        network = normflows.nets.MLP([NUM_DIMS // 2, WIDTH, WIDTH, NUM_DIMS], init_zeros=True)
        layers += [
            normflows.flows.AffineCouplingBlock(network),
            normflows.flows.Permute(NUM_DIMS, mode="swap"),
        ]
    flow = normflows.NormalizingFlow(normflows.distributions.DiagGaussian(NUM_DIMS), layers)
    return in_torch(flow, flow.log_prob, lambda: flow.sample(NUM_POINTS))


CONTENDERS = {"jaxgen": in_jaxgen, "flowjax": in_flowjax, "zuko": in_zuko, "normflows": in_normflows}


def seconds(call, times=1):
    start = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - start) / times


def serve(name, depth):
    """The seconds of first calls as a line of JSON, and those of a round for every line that comes in."""
    calls = CONTENDERS[name](depth)
    print(json.dumps({f"first_{call}": seconds(run) for call, run in calls.items()}), flush=True)
    for _ in sys.stdin:
        times = {"step": STEPS_A_ROUND}
        found = {call: seconds(run, times.get(call, 1)) for call, run in calls.items()}
        print(json.dumps(found), flush=True)


def measured(depth, names, num_rounds):
    """{contender: {what: seconds}} of contenders that run in turn."""
    found, processes = {}, {}
    for name in names:
        command = [sys.executable, __file__, "--serve", name, str(depth)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        processes[name] = subprocess.Popen(command, **pipes)
        found[name] = json.loads(processes[name].stdout.readline())
    rounds = {name: [] for name in names}
    for _ in range(num_rounds):
        for name, process in processes.items():
            process.stdin.write("round\n")
            process.stdin.flush()
            rounds[name].append(json.loads(process.stdout.readline()))
    for name, process in processes.items():
        process.communicate()
        medians = {
            what: statistics.median(a_round[what] for a_round in rounds[name]) for what in rounds[name][0]
        }
        found[name] |= medians
        found[name] = {what: round(value, 5) for what, value in found[name].items()}
        print(depth, name, found[name], flush=True)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--serve", nargs=2, metavar=("CONTENDER", "DEPTH"), help=argparse.SUPPRESS)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--depths", nargs="+", type=int, default=DEPTHS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    if options.serve:
        serve(options.serve[0], int(options.serve[1]))
        return
    since, load = time.perf_counter(), os.getloadavg()[0]
    layers = {str(depth): measured(depth, options.contenders, options.rounds) for depth in options.depths}
    packages = ("jaxgen", "jax", "numpy", "torch", *options.contenders[1:])
    results = {
        "command": "python experiments/benchmarks/flows.py",
        "minutes": round((time.perf_counter() - since) / 60, 1),
        "device": f"{machine()}, {len(os.sched_getaffinity(0))} of them used, load {load:.1f} before",
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "layers": layers,
    }
    options.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
