"""Labels of conditional diffusion models, and classifier-free guidance (Ho & Salimans 2022).

A conditional model is trained without its label now and then, and then knows both p(x | label) and p(x):

    prediction = (1 - w) unconditional + w conditional,

so w = 0 ignores the label, w = 1 is the plain conditional model, and more exaggerates what the label adds.
(The paper counts from w - 1.) The label `num_classes` stands for none.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen.types import Batch

Label = Array | int | None
"""Of samples: one for all, one for each, (n,), or none."""


def labels(label: Label, n: int, cfg: Any) -> Any:
    """Labels (n,) int32, that for none where `label` is None; None for an unconditional model.

    Raises ValueError as `check` does.
    """
    check(label, cfg)
    if not cfg.conditional:
        return None
    label = jnp.asarray(cfg.num_classes if label is None else label, jnp.int32)
    if label.shape not in ((), (1,), (n,)):
        raise ValueError(f"labels of shape {label.shape} for {n} examples: give one for all, or one for each")
    return jnp.broadcast_to(label, (n,))


def check(label: Label, cfg: Any, guidance: Array | float | None = None) -> None:
    """Raises ValueError for a label or guidance of an unconditional model, and for a label of no class.

    Labels that are being traced cannot be looked at.
    """
    if not cfg.conditional and (guidance is not None or label is not None):
        raise ValueError("an unconditional model takes no label and cannot be guided: train with conditional")
    if label is None or isinstance(label, jax.core.Tracer):
        return
    known = np.asarray(label)
    if not np.issubdtype(known.dtype, np.integer):
        raise ValueError(f"labels are integers, not {known.dtype}")
    wrong = known[(known < 0) | (known >= cfg.num_classes)]
    if wrong.size:
        raise ValueError(f"label {wrong.flat[0]} is of no class: there are 0 to {cfg.num_classes - 1}")


def drawn(key: Array, label: Label, n: int, cfg: Any) -> Label:
    """The labels of n samples: those given, else drawn uniformly; None for an unconditional model.

    Raises ValueError as `check` does.
    """
    check(label, cfg)
    if cfg.conditional and label is None:
        return jax.random.randint(key, (n,), 0, cfg.num_classes)
    return label


def of_batch(batch: Batch, cfg: Any) -> Any:
    """Labels to train on (B,) int32; None for an unconditional model.

    Raises ValueError for a batch without the labels that a conditional model needs.
    """
    if not cfg.conditional:
        return None
    if "label" not in batch:
        raise ValueError('a conditional model is trained on labels: the batch has no "label"')
    return jnp.asarray(batch["label"], jnp.int32)


def dropped(key: Array, batch: Batch, cfg: Any) -> Any:
    """As `of_batch`, with that for none in place of a share `cfg.label_dropout` of them."""
    label = of_batch(batch, cfg)
    if label is None:
        return None
    return jnp.where(jax.random.bernoulli(key, cfg.label_dropout, label.shape), cfg.num_classes, label)


def guided(
    predict: Callable[[Array, Array, Any], Any], label: Label, guidance: Array | float | None, cfg: Any
) -> Callable[[Array, Array], Any]:
    """model(x, t) of `predict(x, t, labels)`, labelled and guided.

    Unguided without `guidance`; else conditional and unconditional predictions come from one doubled batch.
    Of a tuple of predictions only the first is guided, and the others are the conditional ones.

    Raises ValueError as `check` does.
    """
    check(label, cfg, guidance)

    def model(x, t):
        rows = labels(label, x.shape[0], cfg)
        if guidance is None:
            return predict(x, t, rows)
        twice = lambda a: jnp.concatenate([a, a])
        both = jnp.concatenate([rows, jnp.full_like(rows, cfg.num_classes)])
        output = predict(twice(x), twice(t), both)
        first, *others = output if isinstance(output, tuple) else (output,)
        given, ignoring = jnp.split(first, 2)
        first = (1 - guidance) * ignoring + guidance * given
        return (first, *(other[: x.shape[0]] for other in others)) if isinstance(output, tuple) else first

    return model
