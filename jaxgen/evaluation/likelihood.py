"""Held-out likelihoods and bounds of any model that has one, in nats per example."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import Array

from jaxgen import data
from jaxgen.evaluation import report
from jaxgen.types import observed


def per_example(
    key: Array,
    function: Callable[[Array, Array], Array],
    dataset: data.Dataset | data.StreamedDataset,
    batch_size: int = 500,
) -> np.ndarray:
    """`function(key, x)` -> (B,), over the whole data set in order, each example once, (N,) float64."""
    compiled = jax.jit(function)
    values = [
        np.asarray(compiled(jax.random.fold_in(key, index), observed(batch)), np.float64)
        for index, batch in enumerate(data.in_order(dataset, batch_size))
    ]
    return np.concatenate(values)


def evaluate(
    key: Array, family: Any, state: Any, dataset: Any, cfg: Any, num_samples: int = 1000
) -> dict[str, report.Metric]:
    """Every likelihood the family can give on `dataset`, by name, all of them negative: lower is better.

    "nll" where there is an exact `log_prob`; "negative_elbo" where there is an `elbo`, an upper bound on it;
    "nll_iwae_<num_samples>" where there is an `iwae`, a tighter one.
    """
    functions: dict[str, Callable[[Array, Array], Array]] = {}
    if hasattr(family, "log_prob"):
        functions["nll"] = lambda key, x: family.log_prob(state, x, cfg)
    if hasattr(family, "elbo"):
        functions["negative_elbo"] = lambda key, x: family.elbo(key, state, x, cfg)
    if hasattr(family, "iwae"):
        functions[f"nll_iwae_{num_samples}"] = lambda key, x: family.iwae(key, state, x, cfg, num_samples)
    return {
        name: report.metric(-per_example(key, function, dataset).mean(), "nats", len(dataset))
        for name, function in functions.items()
    }
