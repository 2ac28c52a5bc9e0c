"""How the game stands: scalars measured inside the step, and warnings drawn from them once logged."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen.gan.losses import AdversarialLoss
from jaxgen.types import Metrics

FLAT = 0.01
"""Slope of a loss below which there is next to nothing to learn from it."""
COLLAPSED = 0.2
"""Diversity below which examples are copies of a few."""

_WARNINGS = (
    (
        "discriminator_slope",
        FLAT,
        "the discriminator is sure of every example and learns no more: slow it down, or give it a penalty",
    ),
    (
        "generator_slope",
        FLAT,
        "the generator's loss is flat where its examples are: try the non_saturating one",
    ),
    (
        "diversity",
        COLLAPSED,
        "the generator makes copies of a few examples: try packing, minibatch statistics or a penalty",
    ),
)


def warnings(metrics: Mapping[str, float]) -> list[str]:
    """A line for each thing that goes wrong by the metrics of a log line; none if all is well."""
    return [line for name, limit, line in _WARNINGS if metrics.get(name, limit) < limit]


def verdicts(loss: AdversarialLoss, real: Array, fake: Array) -> Metrics:
    """What there is to say of logits on real and on generated data, (B,).

    Mean logits; how often the discriminator is right, where logits are relative about their means; and
    "discriminator_slope", the absolute slope of its loss in a logit, summed over the batch. Of the logistic
    losses that is the mean probability of the wrong verdict: 1/2 if the discriminator is undecided, 0 if it
    is saturated. Of the Wasserstein loss it is always 1.
    """
    above = lambda other: other.mean() if loss.threshold is None else loss.threshold
    slopes = jax.grad(loss.discriminator, argnums=(0, 1))(*jax.lax.stop_gradient((real, fake)))
    return {
        "real_logit": real.mean(),
        "fake_logit": fake.mean(),
        "real_accuracy": (real > above(fake)).mean(),
        "fake_accuracy": (fake < above(real)).mean(),
        "discriminator_slope": jnp.abs(jnp.stack(slopes)).sum() / 2,
    }


def generator_slope(loss: AdversarialLoss, real: Array, fake: Array) -> Array:
    """The absolute slope of the generator's loss in a generated example's logit, summed over the batch."""
    return jnp.abs(jax.grad(loss.generator, argnums=1)(*jax.lax.stop_gradient((real, fake)))).sum()


def diversity(real: Array, fake: Array) -> Array:
    """Mean distance between two generated examples over that between two real ones, both (B, ...).

    Pairs are neighbours in the batch. About 1 of a good generator, 0 of one that makes a single example.
    """
    apart = lambda x: jnp.sqrt(((x - jnp.roll(x, 1, 0)) ** 2).reshape(len(x), -1).sum(-1)).mean()
    return apart(fake) / jnp.maximum(apart(real), 1e-12)
