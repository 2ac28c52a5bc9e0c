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
from jax import Array

import jaxgen.labels
from jaxgen.labels import Label
from jaxgen.types import Batch


def labels(label: Label, n: int, cfg: Any) -> Any:
    """Labels (n,) int32, that for none where `label` is None; None for an unconditional model.

    Raises ValueError as `labels.given` does.
    """
    if label is None and cfg.conditional:
        return jnp.full(n, cfg.num_classes, jnp.int32)
    return jaxgen.labels.given(label, n, jaxgen.labels.count(cfg))


def drawn(key: Array, label: Label, n: int, cfg: Any) -> Array | None:
    """The labels of n samples: those given, else drawn uniformly; None for an unconditional model.

    Raises ValueError as `labels.given` does.
    """
    return jaxgen.labels.drawn(key, label, n, jaxgen.labels.count(cfg))


def of_batch(batch: Batch, cfg: Any) -> Array | None:
    """Labels to train on (B,) int32; None for an unconditional model.

    Raises ValueError for a batch without the labels that a conditional model needs.
    """
    return jaxgen.labels.of_batch(batch, jaxgen.labels.count(cfg))


def dropped(key: Array, batch: Batch, cfg: Any) -> Array | None:
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

    Raises ValueError for a label of no class, and for a label or guidance of an unconditional model.
    """
    jaxgen.labels.check(label, jaxgen.labels.count(cfg))
    if guidance is not None and not cfg.conditional:
        raise ValueError("an unconditional model cannot be guided: train it with conditional")

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
