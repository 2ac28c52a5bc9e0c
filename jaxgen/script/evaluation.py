"""The evaluation of a run on held-out data: likelihoods, distances of its samples, its report."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax import Array

from jaxgen import keys
from jaxgen.evaluation import likelihood, samples
from jaxgen.evaluation.metric import Metric
from jaxgen.run import directory
from jaxgen.script import report
from jaxgen.types import HasElbo, HasIwae, HasLogProb

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
) -> dict[str, Metric]:
    """Evaluate a run on held-out data, write report.json and report.html, and print the numbers.

    Metrics that an earlier evaluation of the same step measured, and this one does not, stay in the report.
    """
    run_dir = directory.resolve(run_dir)
    key, samples_key = keys.named(jax.random.key(seed), "evaluation", "evaluated samples")
    since = time.perf_counter()
    if evaluate is None:
        metrics = likelihoods(key, family, state, test, cfg)
    else:
        metrics = evaluate(key, state, train, test, cfg, run_dir)
    if num_samples:
        draw = sampler(family, state, cfg)
        metrics |= samples.measure(draw, train, test, num_samples, extractor, key=samples_key, folder=run_dir)
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
    if isinstance(family, HasLogProb):
        functions["nll"] = lambda key, x: family.log_prob(state, x, cfg)
    if isinstance(family, HasElbo):
        functions["negative_elbo"] = lambda key, x: family.elbo(key, state, x, cfg)
    if isinstance(family, HasIwae):
        functions[f"nll_iwae_{num_samples}"] = lambda key, x: family.iwae(key, state, x, cfg, num_samples)
    found: dict[str, Metric] = {}
    for name, function in functions.items():
        found |= likelihood.reported(key, function, dataset, family.measure(cfg), name)
    return found
