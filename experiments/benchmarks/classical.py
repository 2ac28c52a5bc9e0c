"""Expectation maximisation beside hmmlearn and scikit-learn: python experiments/benchmarks/classical.py

Baum-Welch on 200 sequences of 500 steps, with Gaussian emissions (8 states, 4 dimensions, diagonal) and with
categorical ones (16 states, 16 symbols), and a Gaussian mixture (32 components, full covariances) of 100,000
examples of 16 dimensions. Contenders take the same data, start and number of steps, each in a process of its
own, in turns. "seconds" is the fastest call and "first_seconds" the first, with compilation. "difference" is
the largest relative one between a group of parameters (norm of the difference over norm) and those of the
first contender of the case, "log_likelihood" the end's, in nats an example or sequence. Results go to
classical.json beside this file. All cores that the process may use are used: `taskset -c 0` for one.
"""

import argparse
import functools
import importlib.metadata
import json
import logging
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
from train_step import machine

NUM_STEPS = 10


def gaussian_sequences():
    """200 sequences (500, 4) that dwell at 8 places, and a start for Baum-Welch."""
    rng = np.random.default_rng(0)
    stay = 0.9 * np.eye(8) + 0.1 / 8
    x = rng.normal(0, 3, (8, 4))[paths(rng, stay)] + rng.normal(size=(200, 500, 4))
    means = x[::25, 0]
    return x, (np.full(8, 1 / 8), rng.dirichlet(np.ones(8), 8), means, np.full((8, 4), x.var()))


def categorical_sequences():
    """200 sequences (500,) of 16 symbols from 16 states, and a start for Baum-Welch."""
    rng = np.random.default_rng(0)
    states = paths(rng, rng.dirichlet(np.full(16, 0.3), 16))
    emission = rng.dirichlet(np.full(16, 0.3), 16).cumsum(1)
    x = np.minimum((rng.random((200, 500, 1)) > emission[states]).sum(-1), 15)
    return x, (np.full(16, 1 / 16), rng.dirichlet(np.ones(16), 16), rng.dirichlet(np.ones(16), 16))


def points():
    """100,000 examples of 32 overlapping Gaussians in 16 dimensions, and a start for EM."""
    rng = np.random.default_rng(0)
    factor = rng.normal(size=(32, 16, 16)) / 4
    component = rng.integers(32, size=100_000)
    noise = np.einsum("nde,ne->nd", factor[component], rng.normal(size=(100_000, 16)))
    x = rng.normal(size=(32, 16))[component] + noise
    return x, (np.full(32, 1 / 32), x[::3125], np.tile(x.var() * np.eye(16), (32, 1, 1)))


def paths(rng, transition):
    """200 paths of 500 steps from a state drawn evenly."""
    states = [rng.integers(len(transition), size=200)]
    for _ in range(499):
        uniform = rng.random((200, 1))
        states.append(np.minimum((uniform > transition[states[-1]].cumsum(1)).sum(1), len(transition) - 1))
    return np.stack(states, 1)


def our_hmm(dtype, data):
    import jax
    import jax.numpy as jnp

    from jaxgen.classical import emissions, hmm

    jax.config.update("jax_enable_x64", dtype == "float64")
    x, (initial, transition, *emission) = data()
    options = {"max_steps": NUM_STEPS, "tolerance": 0.0}
    if len(emission) == 2:
        weights = np.ones((len(initial), 1))
        means, variances = emission
        emission = emissions.Mixtures(weights, means[:, None], variances[:, None])
        emitted = emissions.Gaussians(covariance="diagonal", regularization=0.0)
        cfg = hmm.Config(shape=x.shape[1:], num_states=8, emission=emitted, **options)
        x = jnp.asarray(x, dtype)
    else:
        (emission,) = emission
        cfg = hmm.Config(shape=x.shape[1:], num_states=16, emission=emissions.Symbols(16), **options)
        x = jnp.asarray(x, jnp.int32)
    start = jax.tree.map(lambda a: jnp.asarray(a, dtype), hmm.Params(initial, transition, emission))

    def call():
        return jax.block_until_ready(hmm.fit(x, cfg, params=start))

    def result(state):
        initial, transition, emission = state.params
        if isinstance(cfg.emission, emissions.Gaussians):
            emission = emission.means[:, 0], emission.covariances[:, 0]
        log_likelihood = jax.jit(functools.partial(hmm.log_prob, cfg=cfg))(state, x).mean()
        return [
            initial,
            transition,
            *(emission if isinstance(emission, tuple) else [emission]),
        ], log_likelihood

    return call, result


def hmmlearn_hmm(implementation, data):
    from hmmlearn import hmm

    x, (initial, transition, *emission) = data()
    lengths = np.full(len(x), x.shape[1])
    frames = x.reshape(-1, 4 if len(emission) == 2 else 1)
    options = {"n_iter": NUM_STEPS, "tol": -np.inf, "init_params": "", "implementation": implementation}

    def call():
        if len(emission) == 2:
            model = hmm.GaussianHMM(8, "diag", covars_prior=0.0, covars_weight=0.0, **options)
            model.means_, model.covars_ = emission
        else:
            model = hmm.CategoricalHMM(16, n_features=16, **options)
            (model.emissionprob_,) = emission
        model.startprob_, model.transmat_ = initial, transition
        return model.fit(frames, lengths)

    def result(model):
        if len(emission) == 2:
            variances = np.diagonal(model.covars_, axis1=1, axis2=2)
            found = [model.startprob_, model.transmat_, model.means_, variances]
        else:
            found = [model.startprob_, model.transmat_, model.emissionprob_]
        return found, model.score(frames, lengths) / len(x)

    return call, result


def our_gmm(dtype):
    import jax
    import jax.numpy as jnp

    from jaxgen.classical import gmm

    jax.config.update("jax_enable_x64", dtype == "float64")
    x, start = points()
    x, *start = (jnp.asarray(a, dtype) for a in (x, *start))
    cfg = gmm.Config(shape=(16,), num_components=32, regularization=1e-6, max_steps=NUM_STEPS, tolerance=0.0)

    def call():
        return jax.block_until_ready(gmm.fit(x, cfg, gmm.Params(*start)))

    def result(state):
        return list(state.params), jax.jit(functools.partial(gmm.log_prob, cfg=cfg))(state, x).mean()

    return call, result


def sklearn_gmm(dtype):
    from sklearn.mixture import GaussianMixture

    x, (weights, means, covariances) = points()
    x, weights, means, precisions = (a.astype(dtype) for a in (x, weights, means, np.linalg.inv(covariances)))

    def call():
        model = GaussianMixture(
            32,
            weights_init=weights,
            means_init=means,
            precisions_init=precisions,
            reg_covar=1e-6,
            tol=0.0,
            max_iter=NUM_STEPS,
        )
        return model.fit(x)

    def result(model):
        return [model.weights_, model.means_, model.covariances_], model.score(x)

    return call, result


CASES = {
    "Baum-Welch, Gaussian": {
        "hmmlearn": lambda: hmmlearn_hmm("log", gaussian_sequences),
        "hmmlearn, scaling": lambda: hmmlearn_hmm("scaling", gaussian_sequences),
        "jaxgen": lambda: our_hmm("float32", gaussian_sequences),
        "jaxgen, float64": lambda: our_hmm("float64", gaussian_sequences),
    },
    "Baum-Welch, categorical": {
        "hmmlearn": lambda: hmmlearn_hmm("log", categorical_sequences),
        "hmmlearn, scaling": lambda: hmmlearn_hmm("scaling", categorical_sequences),
        "jaxgen": lambda: our_hmm("float32", categorical_sequences),
        "jaxgen, float64": lambda: our_hmm("float64", categorical_sequences),
    },
    "Gaussian mixture": {
        "scikit-learn": lambda: sklearn_gmm("float64"),
        "scikit-learn, float32": lambda: sklearn_gmm("float32"),
        "jaxgen": lambda: our_gmm("float32"),
        "jaxgen, float64": lambda: our_gmm("float64"),
    },
}
"""The first of a case is the one the others are compared with."""


def serve(case, contender):
    """Answers each line on stdin with the seconds of one more call, then prints what was found."""
    warnings.simplefilter("ignore")
    logging.disable()
    call, result = CASES[case][contender]()
    for _ in sys.stdin:
        since = time.perf_counter()
        found = call()
        print(time.perf_counter() - since, flush=True)
    parameters, log_likelihood = result(found)
    print(json.dumps([[np.asarray(a, float).tolist() for a in parameters], float(log_likelihood)]))


def measure(case, contenders, repeats):
    """Rows of a table by contender, all of them called in turns."""
    processes = {
        name: subprocess.Popen(
            [sys.executable, __file__, "--serve", case, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in contenders
    }
    seconds = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, process in processes.items():
            process.stdin.write("\n")
            process.stdin.flush()
            seconds[name].append(float(process.stdout.readline()))
    found = {name: json.loads(process.communicate()[0]) for name, process in processes.items()}
    reference, _ = found[contenders[0]]
    rows = {}
    for name, (parameters, log_likelihood) in found.items():
        differences = [
            np.linalg.norm(np.subtract(a, b)) / np.linalg.norm(b)
            for a, b in zip(parameters, reference, strict=True)
        ]
        rows[name] = {
            "seconds": round(min(seconds[name]), 4),
            "first_seconds": round(seconds[name][0], 4),
            "times_faster": round(min(seconds[contenders[0]]) / min(seconds[name]), 2),
            "difference": float(f"{max(differences):.2g}"),
            "log_likelihood": round(log_likelihood, 5),
        }
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--serve", nargs=2, metavar=("CASE", "CONTENDER"), help=argparse.SUPPRESS)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--repeats", type=int, default=4, help="calls of each contender, the first apart")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    if arguments.serve:
        serve(*arguments.serve)
        return
    cases = {}
    for case in arguments.cases:
        cases[case] = measure(case, list(CASES[case]), arguments.repeats)
        for name, row in cases[case].items():
            print(case, name, row, flush=True)
    packages = ["jax", "numpy", "scipy", "scikit-learn", "hmmlearn"]
    versions = {package: importlib.metadata.version(package) for package in packages}
    used = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    device = f"{machine()}, {used} of them used"
    result = {"device": device, "steps": NUM_STEPS, "versions": versions, "cases": cases}
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
