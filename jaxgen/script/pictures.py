"""Pictures that several evaluations leave in the folder of a run."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen import plot

NUM_EXAMPLES = 48
"""Test examples that are shown with their reconstructions."""
NUM_COLUMNS = 10
"""Samples of each class, and filters in a row."""
NUM_FILTERS = 100
"""Hidden units whose weights are shown."""


def save_reconstructions(folder: Path, x: Array, reconstructed: Any) -> None:
    """reconstructions.png: the first of the images x (N, H, W, C), each over its reconstruction."""
    plot.save_pairs(
        folder / "reconstructions.png",
        x[:NUM_EXAMPLES],
        reconstructed[:NUM_EXAMPLES],
        titles=("test", "model"),
        caption="Test examples, each over what the model makes of it.",
    )


def save_classes(
    folder: Path, draw: Callable[[Array], Any], num_classes: int, names: Sequence[str] = ()
) -> None:
    """classes.png: samples of every class, a row each, by draw(label (N,)), and the names of the classes."""
    plot.save_grid(
        folder / "classes.png",
        draw(jnp.repeat(jnp.arange(num_classes), NUM_COLUMNS)),
        NUM_COLUMNS,
        row_titles=[plot.label_name(label, names) for label in range(num_classes)],
        caption="Samples of every class, a row each.",
    )


def save_points(folder: Path, x: Any, drawn: Any) -> None:
    """points.png: points x (N, 2) of the data beside samples (M, 2)."""
    caption = "Test points, and samples of the model."
    plot.save_points(folder / "points.png", {"data": x, "samples": drawn}, caption=caption)


def save_units(family: Any, state: Any, test: Any, cfg: Any, folder: Path, weight: Any) -> None:
    """Of images: reconstructions.png, and filters.png, the weights (inputs, units) of units of a layer."""
    if len(cfg.shape) != 3:
        return
    x = test[:NUM_EXAMPLES]["image"]
    save_reconstructions(folder, x, family.reconstruct(state, x, cfg))
    filters = np.asarray(weight.T[:NUM_FILTERS]).reshape(-1, *cfg.shape)
    plot.save_grid(
        folder / "filters.png",
        filters / np.abs(filters).max((1, 2, 3), keepdims=True),
        NUM_COLUMNS,
        caption="The weights of hidden units to the data, each unit scaled by itself; grey is zero.",
    )
