"""The evaluation of a run on held-out data: likelihoods, distances of its samples, its report."""

import contextlib
import inspect
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from jax import Array

from jaxgen import data, keys
from jaxgen.evaluation import likelihood, samples
from jaxgen.evaluation.metric import Metric
from jaxgen.run import directory
from jaxgen.script import report
from jaxgen.types import HasElbo, HasIwae, HasLogProb

QUICK_TEST = 64
"""Test examples of a quick evaluation."""
QUICK_SAMPLES = 500
"""Samples of a quick evaluation."""

Evaluate = Callable[..., dict[str, Metric]]
"""(key, state, train, test, cfg, folder) -> metrics on held-out data; it may write pictures to the folder."""


def evaluate_run(
    family: Any,
    cfg: Any,
    state: Any,
    train: Any,
    test: Any,
    run_dir: Path,
    *,
    seed: int = 0,
    num_samples: int = 10_000,
    extractor: str | None = None,
    evaluate: Evaluate | None = None,
    quick: bool = False,
) -> dict[str, Metric]:
    """Evaluate a run on held-out data, write report.json and report.html, and print the numbers.

    Each part is announced, and the time it took is printed. A quick evaluation looks at the first
    `QUICK_TEST` test examples and at `QUICK_SAMPLES` samples at most.

    Metrics that an earlier evaluation of the same step measured, and this one does not, stay in the report.
    """
    run_dir = directory.resolve(run_dir)
    directory.check_writable(run_dir)
    key, samples_key = keys.named(jax.random.key(seed), "evaluation", "evaluated samples")
    since = time.perf_counter()
    if quick:
        few = data.take(test, test.split, slice(QUICK_TEST)) if len(test) > QUICK_TEST else test
        num_samples = min(num_samples, QUICK_SAMPLES)
    else:
        few = test
    with _timed(f"evaluation of {len(few)} test examples"):
        if evaluate is None:
            metrics = likelihoods(key, family, state, few, cfg)
        else:
            metrics = evaluate(key, state, train, few, cfg, run_dir)
    if num_samples:
        draw = sampler(family, state, cfg)
        with _timed(f"distances of up to {num_samples} samples"):
            metrics |= samples.measure(
                draw, train, test, num_samples, extractor, key=samples_key, folder=run_dir
            )
    if jax.process_index() == 0:
        step = int(state.step)
        facts = {
            "step": step,
            "test_split": test.split,
            "evaluation_minutes": round((time.perf_counter() - since) / 60, 2),
        }
        metrics = report.kept(run_dir, step) | metrics
        page = report.write(run_dir, metrics, num_params=num_params(state), **facts)
        print("\n".join(report.lines(metrics)))
        print(f"pictures in {run_dir}, all on one page in {page.name}")
    return metrics


@contextlib.contextmanager
def _timed(what: str) -> Iterator[None]:
    """Say what begins, and how long it took."""
    if jax.process_index() == 0:
        print(f"{what} ...", flush=True)
    since = time.perf_counter()
    yield
    if jax.process_index() == 0:
        print(f"{what}: {time.perf_counter() - since:.0f} s", flush=True)


def num_params(state: Any) -> int:
    """The number of parameters of a State: the sizes of the leaves of its `params`."""
    return sum(leaf.size for leaf in jax.tree.leaves(getattr(state, "params", ())))


def sampler(family: Any, state: Any, cfg: Any, **options: Any) -> Callable[[Array, int], Array]:
    """A compiled function draw(key, n) of a trained model; `options` are passed to the family's `sample`."""
    compiled = jax.jit(lambda key, state, n: family.sample(key, state, n, cfg, **options), static_argnums=2)
    return lambda key, n: compiled(key, state, n)


def likelihoods(
    key: Array, family: Any, state: Any, dataset: Any, cfg: Any, num_samples: int = 1000
) -> dict[str, Metric]:
    """Every negative log-likelihood that a family can compute on `dataset`, by name; lower is better.

    "nll" is exact and needs `log_prob`. "negative_elbo" is an upper bound on it and needs `elbo`;
    "nll_iwae_<num_samples>" is a tighter upper bound and needs `iwae`. `likelihood.reported` has the units.
    """
    functions: dict[str, Callable[[Array, Array], Array]] = {}
    measure = family.measure(cfg) if hasattr(family, "measure") else ""
    if isinstance(family, HasLogProb):
        # Bits are drawn from grey values.
        drawn = measure == "bits" and "key" in inspect.signature(family.log_prob).parameters
        functions["nll"] = lambda key, x: family.log_prob(state, x, cfg, **({"key": key} if drawn else {}))
    if isinstance(family, HasElbo):
        functions["negative_elbo"] = lambda key, x: family.elbo(key, state, x, cfg)
    if isinstance(family, HasIwae):
        functions[f"nll_iwae_{num_samples}"] = lambda key, x: family.iwae(key, state, x, cfg, num_samples)
    found: dict[str, Metric] = {}
    for name, function in functions.items():
        found |= likelihood.reported(key, function, dataset, measure, name)
    return found
