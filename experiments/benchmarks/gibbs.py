"""Gibbs sampling of a restricted Boltzmann machine beside scikit-learn and PyTorch.

    python experiments/benchmarks/gibbs.py    # in an environment that has scikit-learn and PyTorch too

"sweeps" are steps of both layers, 784 visible and 500 hidden units, of 100 chains and of 10: `Machine.gibbs`,
`BernoulliRBM.gibbs`, and the same lines in eager PyTorch. "products" are the two matrix products of a sweep
and nothing else, the least that it takes. "step" is a step of persistent contrastive divergence with 100
examples and as many chains, which go on by one sweep, and plain gradient descent: `rbm.train_step`, a part of
`BernoulliRBM.fit`, and PyTorch without autograd. scikit-learn's `partial_fit` computes in float64 whatever it
is given, so it is compared with jaxgen in float64; all else is float32. All have the same weights, and
"difference" is the largest one of p(h = 1 | v) to numpy's in float64.

Contenders are processes of their own, which run in turn, round after round; ratios are times of jaxgen over
times of the other within a round. "first" is the first call with compilation. Times are seconds of one sweep
or step. Results go to gibbs.json beside this file.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from train_step import environment, machine, ratios, rounded, summary

NUM_VISIBLE, NUM_HIDDEN, BATCH_SIZE, LEARNING_RATE = 784, 500, 100, 0.01
CHAINS = 100, 10
SHRINKING = 0.04
"""About one over the square of the largest singular value: repeated products stay normal numbers."""


def weights():
    rng = np.random.default_rng(0)
    draw = lambda scale, *shape: scale * rng.normal(size=shape).astype(np.float32)
    return draw(0.1, NUM_VISIBLE, NUM_HIDDEN), draw(0.5, NUM_VISIBLE), draw(0.5, NUM_HIDDEN)


def bits(n):
    return np.random.default_rng(1).integers(0, 2, (n, NUM_VISIBLE)).astype(np.float32)


def difference(hidden_mean):
    """Of these p(h = 1 | v), (10, H), from what they should be."""
    weight, _, bias = (array.astype(np.float64) for array in weights())
    return float(np.abs(np.asarray(hidden_mean) - 1 / (1 + np.exp(-(bits(10) @ weight + bias)))).max())


def in_jaxgen(num, dtype="float32"):
    """{what: a call of `num` sweeps or steps}, the difference, and versions."""
    import jax
    import jax.numpy as jnp

    from jaxgen.energy import rbm
    from jaxgen.energy.bipartite import Bits, Machine, Params
    from jaxgen.energy.chains import Persistent
    from jaxgen.values import SGD

    jax.config.update("jax_enable_x64", dtype == "float64")
    params = Params(*(jnp.asarray(array, dtype) for array in weights()))
    model, key = Machine(), jax.random.key(0)
    cfg = rbm.Config(
        shape=(NUM_VISIBLE,),
        num_hidden=NUM_HIDDEN,
        visible=Bits("threshold"),
        chains=Persistent(BATCH_SIZE),
        weight_decay=0.0,
        optimizer=SGD(LEARNING_RATE),
    )
    state = jax.jit(rbm.init, static_argnums=1)(key, cfg)._replace(params=params)
    data = jnp.asarray(2 * bits(num * BATCH_SIZE) - 1, dtype).reshape(num, BATCH_SIZE, -1)

    @jax.jit
    def sweeps(params, v):
        return model.gibbs(key, params, v, num)

    @jax.jit
    def products(params, v):
        both = lambda _, v: SHRINKING * (v @ params.weight) @ params.weight.T
        return jax.lax.fori_loop(0, num, both, v)

    @jax.jit
    def steps(state):
        return jax.lax.scan(lambda state, x: rbm.train_step(state, {"x": x}, cfg), state, data)[0]

    calls = {"step": lambda: jax.block_until_ready(steps(state))}
    for n in CHAINS if dtype == "float32" else ():
        v = jnp.asarray(bits(n))
        calls[f"sweep of {n}"] = lambda v=v: jax.block_until_ready(sweeps(params, v))
        calls[f"products of {n}"] = lambda v=v: jax.block_until_ready(products(params, v))
    found = jax.jit(model.hidden_mean)(params, jnp.asarray(bits(10), dtype))
    return calls, difference(found), {"jax": jax.__version__}


def in_jaxgen64(num):
    return in_jaxgen(num, "float64")


def in_sklearn(num):
    import sklearn
    from sklearn.neural_network import BernoulliRBM

    weight, visible_bias, hidden_bias = weights()
    model = BernoulliRBM(
        NUM_HIDDEN, learning_rate=LEARNING_RATE, batch_size=BATCH_SIZE, n_iter=1, random_state=0
    )
    data = bits(num * BATCH_SIZE)
    fitted = BernoulliRBM(**model.get_params()).fit(data[:BATCH_SIZE])
    # The arrays that `fit` makes, in its order of memory.
    fitted.components_ = np.asarray(weight.T, order="F")
    fitted.intercept_visible_, fitted.intercept_hidden_ = visible_bias, hidden_bias

    def sweeps(v):
        for _ in range(num):
            v = fitted.gibbs(v)

    def products(v):
        for _ in range(num):
            v = SHRINKING * (v @ fitted.components_.T) @ fitted.components_

    calls = {"step": lambda: model.fit(data)}
    for n in CHAINS:
        v = bits(n)
        calls[f"sweep of {n}"] = lambda v=v: sweeps(v)
        calls[f"products of {n}"] = lambda v=v: products(v)
    return calls, difference(fitted.transform(bits(10))), {"scikit-learn": sklearn.__version__}


def in_sklearn64(num):
    from sklearn.neural_network import BernoulliRBM

    weight, visible_bias, hidden_bias = (array.astype(np.float64) for array in weights())
    model = BernoulliRBM(NUM_HIDDEN, learning_rate=LEARNING_RATE, batch_size=BATCH_SIZE, random_state=0)
    data = bits(num * BATCH_SIZE).astype(np.float64).reshape(num, BATCH_SIZE, -1)
    model.partial_fit(data[0])
    model.components_ = np.asarray(weight.T, order="F")
    model.intercept_visible_, model.intercept_hidden_ = visible_bias, hidden_bias
    found = difference(model.transform(bits(10).astype(np.float64)))

    def steps():
        for x in data:
            model.partial_fit(x)

    return {"step": steps}, found, {}


def in_torch(num):
    import torch

    weight, visible_bias, hidden_bias = (torch.from_numpy(array) for array in weights())
    data = torch.from_numpy(bits(num * BATCH_SIZE)).reshape(num, BATCH_SIZE, -1)
    chains = [torch.from_numpy(bits(BATCH_SIZE))]
    hidden_mean = lambda v: torch.sigmoid(torch.addmm(hidden_bias, v, weight))
    visible_mean = lambda h: torch.sigmoid(torch.addmm(visible_bias, h, weight.T))

    @torch.inference_mode()
    def sweeps(v):
        for _ in range(num):
            v = torch.bernoulli(visible_mean(torch.bernoulli(hidden_mean(v))))
        return v

    @torch.inference_mode()
    def products(v):
        for _ in range(num):
            v = SHRINKING * (v @ weight) @ weight.T

    @torch.inference_mode()
    def steps():
        for v in data:
            h, model_v = hidden_mean(v), chains[0]
            model_v = chains[0] = torch.bernoulli(visible_mean(torch.bernoulli(hidden_mean(model_v))))
            model_h = hidden_mean(model_v)
            rate = LEARNING_RATE / BATCH_SIZE
            weight.add_(v.T @ h - model_v.T @ model_h, alpha=rate)
            visible_bias.add_((v - model_v).sum(0), alpha=rate)
            hidden_bias.add_((h - model_h).sum(0), alpha=rate)

    found = difference(hidden_mean(torch.from_numpy(bits(10))))
    calls = {"step": steps}
    for n in CHAINS:
        v = torch.from_numpy(bits(n))
        calls[f"sweep of {n}"] = lambda v=v: sweeps(v)
        calls[f"products of {n}"] = lambda v=v: products(v)
    return calls, found, {"torch": torch.__version__}


CONTENDERS = {
    "jaxgen": in_jaxgen,
    "scikit-learn": in_sklearn,
    "PyTorch": in_torch,
    "jaxgen, float64": in_jaxgen64,
    "scikit-learn, float64": in_sklearn64,
}
OURS = {"scikit-learn": "jaxgen", "PyTorch": "jaxgen", "scikit-learn, float64": "jaxgen, float64"}
"""Whom a contender is compared with."""


def serve(name, num):
    """First calls, the difference and versions as a line of JSON, then the seconds of each call asked for."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever else is printed must not look like an answer
    calls, off, versions = CONTENDERS[name](num)

    def seconds(what):
        start = time.perf_counter()
        calls[what]()
        return time.perf_counter() - start

    first = {what: seconds(what) for what in calls}
    print(json.dumps({"first": first, "difference": off, "versions": versions}), file=answers)
    for line in sys.stdin:
        print(json.dumps(seconds(line.strip()) / num), file=answers)


def against(ours, theirs):
    """Ratios within rounds, and that of the fastest calls, which other work on the machine disturbs least."""
    return {"ratio": ratios(ours, theirs), "ratio_of_bests": min(ours) / min(theirs)}


def measured(threads, options):
    """Seconds and ratios of contenders that run in turn on so many cores."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, options.cores[:threads])
    limits = {f"{name}_NUM_THREADS": str(threads) for name in ("OMP", "OPENBLAS", "MKL")}
    processes, facts = {}, {}
    for name in options.contenders:
        command = [sys.executable, __file__, "--serve", name, "--num", str(options.num)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
        processes[name] = subprocess.Popen(command, env=environment() | limits, **pipes)
        facts[name] = json.loads(processes[name].stdout.readline())
    times = {}
    loads = [os.getloadavg()[0]]
    for index in range(options.rounds):
        for what in facts["jaxgen"]["first"]:
            for name in list(processes)[:: -1 if index % 2 else 1]:
                if what in facts[name]["first"]:
                    print(what, file=processes[name].stdin)
                    answer = json.loads(processes[name].stdout.readline())
                    times.setdefault(what, {}).setdefault(name, []).append(answer)
    loads.append(os.getloadavg()[0])
    for process in processes.values():
        process.communicate()
    rows = {
        what: {
            name: {
                "seconds": summary(values),
                "first": facts[name]["first"][what],
                **(against(own[OURS[name]], values) if OURS.get(name) in own else {}),
            }
            for name, values in own.items()
        }
        for what, own in times.items()
    }
    differences = {name: fact["difference"] for name, fact in facts.items()}
    versions = {name: version for fact in facts.values() for name, version in fact["versions"].items()}
    return {"load_averages": loads, "difference": differences, "versions": versions, "rows": rows}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--serve", metavar="CONTENDER", help=argparse.SUPPRESS)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="cores that each may use")
    parser.add_argument("--num", type=int, default=50, help="sweeps or steps of a call")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.num)
        return
    if "jaxgen" not in options.contenders:
        parser.error("the others are compared with jaxgen: leave it among --contenders")
    has = hasattr(os, "sched_getaffinity")
    options.cores = sorted(os.sched_getaffinity(0)) if has else range(os.cpu_count())
    since, threads = time.perf_counter(), {}
    for count in options.threads:
        threads[str(count)] = measured(count, options)
        for what, rows in threads[str(count)]["rows"].items():
            for name, row in rows.items():
                times = " ".join(f"{1000 * row['seconds'][key]:8.3f}" for key in ("median", "min", "max"))
                ratio = " ".join(
                    f"{row['ratio'][key]:6.2f}" for key in ("median", "min", "max") if "ratio" in row
                )
                print(f"{count} {what:16}{name:24}{times} ms {ratio}", flush=True)
    report = {"machine": machine(), "rounds": options.rounds, "minutes": (time.perf_counter() - since) / 60}
    options.output.write_text(json.dumps(rounded(report | {"threads": threads}), indent=1) + "\n")


if __name__ == "__main__":
    main()
