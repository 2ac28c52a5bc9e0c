"""Several ways to draw samples, measured alike and shown side by side."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jax import Array

from jaxgen import plot
from jaxgen.evaluation import samples
from jaxgen.evaluation.metric import Metric, metric

COLUMNS = 10
"""Samples of each way that the picture shows."""


def compare(
    draws: Mapping[str, samples.Draw],
    train: Any,
    test: Any,
    n: int,
    *,
    key: Array,
    picture: Path | None = None,
) -> dict[str, Metric]:
    """Frechet distances of what each of `draws`, {name: draw(key, n)}, gives for the same key.

    Args:
        n: samples of each, as many as the splits hold at most, see `samples.measure`.
        picture: where to leave a row of samples of each, from the same noise if the draws make it alike.

    Returns:
        The distances, by "frechet (<extractor>), <name>", by the protocol of `samples.measure`.
    """
    against = samples.real_data(train, test, n)
    suffix = "" if against.extractor is None else f" ({against.extractor.name})"
    metrics: dict[str, Metric] = {}
    for name, draw in draws.items():
        fake = samples.drawn(samples.draw_key(key), draw, len(against.test))
        distance, floors = samples.frechet_distances(against, against.features(fake))
        floor, spread = samples.mean_and_spread([{"frechet": value} for value in floors])
        found = metric(distance, "", len(fake), floor["frechet"], spread["frechet"])
        metrics[f"frechet{suffix}, {name}"] = found
    if picture is not None:
        rows = [np.asarray(draw(key, COLUMNS)) for draw in draws.values()]
        caption = "Samples of the same noise, a row for each way to draw them."
        plot.save_grid(picture, np.concatenate(rows), COLUMNS, row_titles=list(draws), caption=caption)
    return metrics
