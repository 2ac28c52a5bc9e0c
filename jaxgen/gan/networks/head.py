"""The discriminator around a body of layers: what goes in with the examples, and the last, linear layers."""

import dataclasses
import functools
import math

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxgen.fields import PositiveInt
from jaxgen.gan.conditioning import Conditioning, Verdict
from jaxgen.gan.networks import layers
from jaxgen.nn.variables import told
from jaxgen.values import Value

KERNEL_DIMENSIONS = 5
"""Of each kernel of minibatch discrimination."""


@dataclasses.dataclass(frozen=True)
class GroupStddev(Value):
    """One feature more: the standard deviation of features in groups of judgements (Karras et al. 2018)."""

    size: PositiveInt = 4
    """Judgements of a group."""

    def __call__(self, features: Array) -> Array:
        """(B, F) -> (B, 1), see `group_stddev`."""
        return group_stddev(features, self.size)


@dataclasses.dataclass(frozen=True)
class MinibatchDiscrimination(Value):
    """More features: how near each judgement lies to the others under kernels (Salimans et al. 2016)."""

    kernels: PositiveInt = 50
    """Number of kernels, each of which adds a feature."""

    def __call__(self, features: Array) -> Array:
        """(B, F) -> (B, kernels); called within a module, which has the parameters."""
        layer = nn.Dense(KERNEL_DIMENSIONS * self.kernels, use_bias=False, dtype=features.dtype)
        return nearness(layer(features).reshape(len(features), self.kernels, KERNEL_DIMENSIONS))


class Discriminator(nn.Module):
    """Examples (B, ...) and their labels (B,) to a Verdict, by a `body` from data to features.

    `packing` examples are judged together, joined along their channels (PacGAN, Lin et al. 2018). What
    `minibatch` makes of the features of a batch is joined to them for the last layers.
    """

    body: nn.Module
    packing: int = 1
    conditioning: Conditioning = Conditioning()
    minibatch: GroupStddev | MinibatchDiscrimination | Value | None = None
    dtype: str | None = None

    @nn.compact
    def __call__(self, x: Array, label: Array | None, train: bool) -> Verdict:
        spectral = getattr(self.body, "normalization", None) == "spectral"
        std = getattr(self.body, "std", 0.0)
        normalization = "spectral" if spectral else "none"
        dense = functools.partial(layers.dense, normalization=normalization, std=std, dtype=self.dtype)
        features = last = self.body(
            pack(self.conditioning.shown(x, label), self.packing), **told(self.body, train)
        )
        if self.minibatch is not None:
            more = self.minibatch(features)  # type: ignore[operator]
            last = jnp.concatenate([features, more.astype(features.dtype)], -1)
        logits = dense(1)(last)[:, 0] + self.conditioning.logits(features, label, spectral)
        classes, codes = self.conditioning.read(last, dense)
        return Verdict(logits.astype(jnp.float32), features.astype(jnp.float32), classes, codes)


def nearness(codes: Array) -> Array:
    """Of codes (B, K, D) the sums over all others of exp(-|difference|_1), (B, K)."""
    distances = jnp.abs(codes[:, None] - codes[None]).sum(-1)
    return jnp.exp(-distances).sum(1) - 1  # one is of each with itself


def pack(x: Array, count: int) -> Array:
    """(B, ..., C) -> (B / count, ..., count C): neighbours joined along their channels."""
    sets = x.reshape(-1, count, *x.shape[1:])
    return jnp.moveaxis(sets, 1, -2).reshape(len(sets), *x.shape[1:-1], -1)


def group_stddev(features: Array, size: int) -> Array:
    """The mean over features of their standard deviation within groups of neighbours, (B, 1).

    Groups are of `size`, or of its greatest common divisor with B.
    """
    size = math.gcd(size, len(features))
    groups = features.reshape(-1, size, features.shape[-1])
    return jnp.repeat(jnp.sqrt(groups.var(1) + 1e-8).mean(-1), size)[:, None]
