"""Labels of conditional models: what every family refuses, and what it draws where none are given."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen.types import Batch

Label = Array | int | None
"""Of samples: one for all, one for each, (n,), or none."""


def count(cfg: Any) -> int:
    """Labels of a Config with `conditional` and `num_classes`: none if it is not conditional."""
    return cfg.num_classes if cfg.conditional else 0


def check(label: Label, num_labels: int) -> None:
    """Raises ValueError for a label of no class, or of a model without labels, which has 0 of them.

    Labels that are being traced cannot be looked at.
    """
    if label is None:
        return
    if not num_labels:
        raise ValueError("this model is unconditional: it takes no label and cannot be guided by one")
    if isinstance(label, jax.core.Tracer):
        return
    known = np.asarray(label)
    if not np.issubdtype(known.dtype, np.integer):
        raise ValueError(f"labels are integers, not {known.dtype}")
    wrong = known[(known < 0) | (known >= num_labels)]
    if wrong.size:
        raise ValueError(f"label {wrong.flat[0]} is of no class: there are 0 to {num_labels - 1}")


def spread(label: Array | int, n: int) -> Array:
    """Labels (n,) int32, of one for all or one for each. Raises ValueError for another number of them."""
    label = jnp.asarray(label, jnp.int32)
    if label.shape not in ((), (1,), (n,)):
        raise ValueError(f"labels of shape {label.shape} for {n} examples: give one for all, or one for each")
    return jnp.broadcast_to(label, (n,))


def given(label: Label, n: int, num_labels: int) -> Array | None:
    """The labels (n,) int32 of n examples; None for a model without labels.

    Raises ValueError as `check` and `spread` do, and for a conditional model that is given none.
    """
    check(label, num_labels)
    if not num_labels:
        return None
    if label is None:
        raise ValueError("this model is conditional: give the label of every example")
    return spread(label, n)


def drawn(key: Array, label: Label, n: int, num_labels: int) -> Array | None:
    """The labels (n,) int32 of n samples, drawn evenly where none are given; None for a model without labels.

    Raises ValueError as `check` and `spread` do.
    """
    if label is None and num_labels:
        return jax.random.randint(key, (n,), 0, num_labels)
    return given(label, n, num_labels)


def of_batch(batch: Batch, num_labels: int) -> Array | None:
    """The labels (B,) int32 to train on; None for a model without labels, whatever the batch has.

    Raises ValueError for a batch without the labels that a conditional model needs, and as `check` does.
    """
    if not num_labels:
        return None
    if "label" not in batch:
        raise ValueError('a conditional model is trained on labels: the batch has no "label"')
    check(batch["label"], num_labels)
    return jnp.asarray(batch["label"], jnp.int32)


def check_conditional(cfg: Any) -> None:
    """Raises ValueError for a Config that is `conditional` on data without labels."""
    if cfg.conditional and not cfg.num_classes:
        raise ValueError(
            "a conditional model needs labels: this data set has none, or num_classes is not set"
        )
