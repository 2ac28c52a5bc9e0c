"""Ways in which two players use labels: the data's, or such as InfoGAN makes up.

The label of an example is joined to its z, one-hot, whatever the way; what the discriminator does with it is
the difference. A new way derives from `Conditioning`, which is the one without labels.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxgen import distributions, labels
from jaxgen.fields import NonNegativeFloat, NonNegativeInt
from jaxgen.nn import norm
from jaxgen.types import Batch, Metrics, observed
from jaxgen.values import Value


class Verdict(NamedTuple):
    """What a discriminator says of B examples in sets of m, in float32."""

    logits: Array  # (B / m,)
    features: Array  # (B / m, F)
    classes: Array | None = None  # (B / m, K) logits, where there is a classifier
    codes: tuple[Array, Array] | None = None  # means and log variances of continuous codes, (B / m, k) each


@dataclasses.dataclass(frozen=True)
class Conditioning(Value):
    """No labels. `shown`, `logits` and `read` are called by the discriminator, which has their parameters."""

    takes_sets = True
    """Whether the discriminator may judge several examples together."""
    num_continuous_codes = 0
    """Made-up numbers at the end of z."""

    @property
    def num_labels(self) -> int:
        """Classes of the labels that are joined to z."""
        return 0

    def labels(self, batch: Batch, key: Array) -> Array | None:
        """The labels of a step, (B,)."""
        return None

    def shown(self, x: Array, label: Array | None) -> Array:
        """What the body of the discriminator is given of data x (B, ...)."""
        return x

    def logits(self, features: Array, label: Array | None, spectral: bool) -> Array | float:
        """What is added to the logits, (B,); `spectral` asks for spectrally normalized weights."""
        return 0.0

    def read(
        self, features: Array, dense: Callable[[int], nn.Module]
    ) -> tuple[Array | None, tuple[Array, Array] | None]:
        """`classes` and `codes` of a Verdict; `dense` makes a linear layer of a width."""
        return None, None

    def discriminator_loss(
        self, real: Verdict, fake: Verdict, label: Array | None, codes: Array
    ) -> tuple[Array | float, Metrics]:
        """What is added to the discriminator's loss, and what there is to log."""
        return 0.0, {}

    def generator_loss(self, fake: Verdict, label: Array | None, codes: Array) -> Array | float:
        """What is added to the generator's loss; the continuous `codes` are those of the `fake` data."""
        return 0.0


@dataclasses.dataclass(frozen=True)
class ByClass(Conditioning):
    """What ways have in common that use the labels of the data."""

    num_classes: NonNegativeInt | None = dataclasses.field(default=None, kw_only=True)
    """Classes of the labels; filled in from the Config."""

    @property
    def num_labels(self) -> int:
        return self.num_classes or 0

    def labels(self, batch: Batch, key: Array) -> Array | None:
        return labels.of_batch(batch, self.num_labels)


@dataclasses.dataclass(frozen=True)
class Concat(ByClass):
    """The discriminator sees the label as further channels, one-hot (Mirza & Osindero 2014)."""

    def shown(self, x: Array, label: Array | None) -> Array:
        return with_label(x, label, self.num_labels)


@dataclasses.dataclass(frozen=True)
class Projection(ByClass):
    """<embedding of the label, features> is added to the logit (Miyato & Koyama 2018)."""

    takes_sets = False

    def logits(self, features: Array, label: Array | None, spectral: bool) -> Array | float:
        embed: nn.Module = nn.Embed(self.num_labels, features.shape[-1], dtype=features.dtype)
        embed = norm.SpectralNorm(embed) if spectral else embed
        total: Array = (embed(label) * features).sum(-1)
        return total


@dataclasses.dataclass(frozen=True)
class Auxiliary(ByClass):
    """A classifier shares the discriminator's features, and both players help it (Odena et al. 2017)."""

    takes_sets = False
    weight: NonNegativeFloat = 1.0
    """Weight of the classifier's loss on real and on generated data in the discriminator's."""
    generator_weight: NonNegativeFloat = 0.1
    """Weight of the classifier's loss on generated data in the generator's."""

    def read(
        self, features: Array, dense: Callable[[int], nn.Module]
    ) -> tuple[Array | None, tuple[Array, Array] | None]:
        return dense(self.num_labels)(features).astype(jnp.float32), None

    def discriminator_loss(
        self, real: Verdict, fake: Verdict, label: Array | None, codes: Array
    ) -> tuple[Array | float, Metrics]:
        metrics = {"class_accuracy": _accuracy(real, label)}
        return self.weight * (misread(fake, label, codes) + misread(real, label, codes)), metrics

    def generator_loss(self, fake: Verdict, label: Array | None, codes: Array) -> Array | float:
        return self.generator_weight * misread(fake, label, codes)


@dataclasses.dataclass(frozen=True)
class Info(Conditioning):
    """Classes and numbers are made up, and read off what was generated from them (Chen et al. 2016)."""

    takes_sets = False
    num_codes: NonNegativeInt = 10
    """Made-up classes."""
    num_continuous_codes: NonNegativeInt = 0
    """Made-up numbers, even in [-1, 1] and the last of z."""
    learned_variance: bool = False
    """Let the reader of continuous codes say how sure it is; else its variance is 1."""
    weight: NonNegativeFloat = 1.0
    """Weight of the reader's loss in the discriminator's."""
    generator_weight: NonNegativeFloat = 0.1
    """Weight of the reader's loss in the generator's."""

    def __post_init__(self) -> None:
        if self.num_codes + self.num_continuous_codes < 1:
            raise ValueError("Info needs num_codes or num_continuous_codes: there is nothing to read off")

    @property
    def num_labels(self) -> int:
        return self.num_codes

    def labels(self, batch: Batch, key: Array) -> Array | None:
        return jax.random.randint(key, (len(observed(batch)),), 0, self.num_codes)

    def read(
        self, features: Array, dense: Callable[[int], nn.Module]
    ) -> tuple[Array | None, tuple[Array, Array] | None]:
        classes = dense(self.num_codes)(features).astype(jnp.float32) if self.num_codes else None
        if not self.num_continuous_codes:
            return classes, None
        count = self.num_continuous_codes
        read = dense(count * (2 if self.learned_variance else 1))(features).astype(jnp.float32)
        mean, rest = read[:, :count], read[:, count:]
        # Bounded, so that codes read off without error do not drive the likelihood to infinity.
        return classes, (mean, 10 * jnp.tanh(rest / 10) if self.learned_variance else jnp.zeros_like(mean))

    def discriminator_loss(
        self, real: Verdict, fake: Verdict, label: Array | None, codes: Array
    ) -> tuple[Array | float, Metrics]:
        metrics = {} if fake.classes is None else {"class_accuracy": _accuracy(fake, label)}
        if fake.codes is not None:
            metrics["code_error"] = ((fake.codes[0] - codes) ** 2).mean()
        return self.weight * misread(fake, label, codes), metrics

    def generator_loss(self, fake: Verdict, label: Array | None, codes: Array) -> Array | float:
        return self.generator_weight * misread(fake, label, codes)


def with_label(x: Array, label: Array | None, num_classes: int) -> Array:
    """x (B, ..., C) and one more channel for each class, 1 in the label's: (B, ..., C + num_classes)."""
    hot = jax.nn.one_hot(label, num_classes, dtype=x.dtype).reshape(len(x), *(1,) * (x.ndim - 2), -1)
    return jnp.concatenate([x, jnp.broadcast_to(hot, (*x.shape[:-1], num_classes))], -1)


def misread(verdict: Verdict, label: Array | None, codes: Array) -> Array:
    """-log q(class, codes | example) in nats: what the discriminator read off, against what is true."""
    value = jnp.zeros(())
    if verdict.classes is not None:
        value += optax.softmax_cross_entropy_with_integer_labels(verdict.classes, label).mean()
    if verdict.codes is not None:
        value -= distributions.normal_log_prob(codes, *verdict.codes).mean()
    return value


def _accuracy(verdict, label):
    return (verdict.classes.argmax(-1) == label).mean()
