"""The evaluation of a run on held-out data: likelihoods, distances of its samples, its report."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from jaxgen.evaluation import likelihood, samples
from jaxgen.evaluation.metric import Metric
from jaxgen.run import directory
from jaxgen.script import report

Evaluate = Callable[..., dict[str, Metric]]
"""(key, state, train, test, cfg, folder) -> metrics on held-out data; may leave pictures in the folder."""


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
) -> dict[str, Metric]:
    """Evaluate on held-out data; writes report.json and report.html, prints the numbers."""
    run_dir = directory.resolve(run_dir)
    key = jax.random.fold_in(jax.random.key(seed), 1)
    samples_key = jax.random.fold_in(jax.random.key(seed), 2)
    since = time.perf_counter()
    if evaluate is None:
        metrics = likelihood.evaluate(key, family, state, test, cfg)
    else:
        metrics = evaluate(key, state, train, test, cfg, run_dir)
    if num_samples:
        metrics |= samples.evaluate(
            samples_key, family, state, train, test, cfg, num_samples, extractor, run_dir
        )
    if jax.process_index() == 0:
        facts = {"test_split": test.split, "evaluation_minutes": round((time.perf_counter() - since) / 60, 2)}
        page = report.write(run_dir, metrics, num_params=num_params(state), **facts)
        print("\n".join(report.lines(metrics)))
        print(f"pictures in {run_dir}, all on one page in {page.name}")
    return metrics


def num_params(state: Any) -> int:
    """Trained numbers in a State: the leaves of its `params`."""
    return sum(leaf.size for leaf in jax.tree.leaves(getattr(state, "params", ())))
