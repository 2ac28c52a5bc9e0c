"""The evaluation of a run on held-out data: likelihoods, distances of its samples, its report."""

import contextlib
import inspect
import os
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from jax import Array

from jaxgen import data, keys
from jaxgen.data.dataset import one_line
from jaxgen.evaluation import likelihood, samples
from jaxgen.evaluation.metric import Metric
from jaxgen.run import checkpoint, directory
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

    Of a run with validation the first line says whether this is its best State. Each part is announced, and
    the time it took is printed. A quick evaluation looks at the first
    `QUICK_TEST` test examples and at `QUICK_SAMPLES` samples at most. A part that fails is left out, and what
    went wrong is raised after the rest has been written.

    Metrics that an earlier evaluation of the same step measured, and this one does not, stay in the report.

    Raises:
        ValueError: an extractor that does not exist, or does not take the pictures.
        RunError: a part failed; the report has the others.
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
    samples.check(train, test, num_samples, extractor)
    metrics: dict[str, Metric] = {}
    failures: list[str] = []
    best = checkpoint.steps(run_dir, "best")
    if best and jax.process_index() == 0:
        lowest = "which has the lowest validation loss"
        this = lowest if best[0] == int(state.step) else f"not step {best[0]}, {lowest} (--step best)"
        print(f"evaluation of step {int(state.step)}, {this}")
    with (
        _kept_going("evaluation of test examples", failures),
        _timed(f"evaluation of {len(few)} test examples"),
    ):
        if evaluate is None:
            metrics = likelihoods(key, family, state, few, cfg)
        else:
            metrics = evaluate(key, state, train, few, cfg, run_dir)
    if num_samples:
        draw = sampler(family, state, cfg)
        with (
            _kept_going("distances of samples", failures),
            _timed(f"distances of up to {num_samples} samples"),
        ):
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
        print("\n".join(report.lines(metrics)))
        with _kept_going("report.html", failures):
            page = report.write(run_dir, metrics, num_params=num_params(state), **facts)
            print(f"pictures in {run_dir}, all on one page in {page.name}")
    if failures:
        raise directory.RunError(f"left out: {'; '.join(failures)} (the rest is in {run_dir})")
    return metrics


def check(train: Any, test: Any, num_samples: int, extractor: str | None, results: Path | None) -> None:
    """What is known of an evaluation before a model is trained; it warns of metrics that are left out.

    Raises ValueError for an extractor that does not exist, or does not take these pictures, and RunError for
    a folder of results that cannot be written.
    """
    lacking = samples.check(train, test, num_samples, extractor)
    if lacking:
        warnings.warn(lacking, stacklevel=2)
    if results is not None:
        there = next(path for path in (results.absolute(), *results.absolute().parents) if path.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            raise directory.RunError(f"results cannot be written to {results}: choose another folder")


@contextlib.contextmanager
def _kept_going(what: str, failures: list[str]) -> Iterator[None]:
    """An error in here joins the failures; JAXGEN_TRACEBACK=1 raises it."""
    try:
        yield
    except Exception as error:
        if os.environ.get("JAXGEN_TRACEBACK"):
            raise
        failures.append(f"{what}: {one_line(error)}")


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
