"""The discriminator around a body of layers: what goes in with the examples, and the last, linear layers."""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jaxgen.gan.networks import layers
from jaxgen.nn import norm

KERNEL_DIMENSIONS = 5
"""Of each kernel of minibatch discrimination."""


class Verdict(NamedTuple):
    """What a discriminator says of B examples in sets of m, in float32."""

    logits: Array  # (B / m,)
    features: Array  # (B / m, F)
    classes: Array | None  # (B / m, K) logits, where there is a classifier
    codes: tuple[Array, Array] | None = None  # means and log variances of continuous codes, (B / m, k) each


class Discriminator(nn.Module):
    """Examples (B, ...) and their labels (B,) to a Verdict, by a `body` from data to features.

    `packing` examples are judged together, joined along their channels (PacGAN, Lin et al. 2018).
    `conditioning` is "none"; "concat": the label as further channels (Mirza & Osindero 2014); "projection":
    <embedding of the label, features> is added to the logit (Miyato & Koyama 2018); "auxiliary": a
    classifier shares the features (Odena et al. 2017); "info": it reads off what was generated the made-up
    class it was generated from, and `num_codes` continuous codes as Gaussians, of variance 1 unless
    `learned_variance` (InfoGAN, Chen et al. 2016). `minibatch_stddev` is the size of the groups in
    which the standard deviation of features becomes one feature more (Karras et al. 2018), here the last
    layer's; `minibatch_kernels` the number of kernels of minibatch discrimination (Salimans et al. 2016).
    """

    body: nn.Module
    packing: int = 1
    conditioning: str = "none"
    num_classes: int = 0
    minibatch_stddev: int = 0
    minibatch_kernels: int = 0
    normalization: str = "none"
    std: float = 0.0
    dtype: Any = jnp.float32
    num_codes: int = 0
    learned_variance: bool = False

    @nn.compact
    def __call__(self, x: Array, label: Array | None, train: bool) -> Verdict:
        if self.conditioning == "concat":
            x = with_label(x, label, self.num_classes)
        features = last = self.body(pack(x, self.packing), train)
        if self.minibatch_stddev:
            last = jnp.concatenate([features, group_stddev(features, self.minibatch_stddev)], -1)
        if self.minibatch_kernels:
            kernels = nn.Dense(KERNEL_DIMENSIONS * self.minibatch_kernels, use_bias=False, dtype=self.dtype)
            codes = kernels(features).reshape(len(features), self.minibatch_kernels, KERNEL_DIMENSIONS)
            last = jnp.concatenate([last, nearness(codes).astype(last.dtype)], -1)
        normalization = "spectral" if self.normalization == "spectral" else "none"
        logits = layers.dense(1, normalization, self.std, self.dtype)(last)[:, 0]
        classes = None
        if self.conditioning == "projection":
            embed: nn.Module = nn.Embed(self.num_classes, features.shape[-1], dtype=self.dtype)
            embed = norm.SpectralNorm(embed) if normalization == "spectral" else embed
            logits = logits + (embed(label) * features).sum(-1)
        if self.conditioning in ("auxiliary", "info") and self.num_classes:
            classes = layers.dense(self.num_classes, normalization, self.std, self.dtype)(last)
            classes = classes.astype(jnp.float32)
        codes = None
        if self.num_codes:
            count = self.num_codes * (2 if self.learned_variance else 1)
            read = layers.dense(count, normalization, self.std, self.dtype)(last).astype(jnp.float32)
            mean, rest = read[:, : self.num_codes], read[:, self.num_codes :]
            # Bounded, so that codes read off without error do not drive the likelihood to infinity.
            codes = mean, 10 * jnp.tanh(rest / 10) if self.learned_variance else jnp.zeros_like(mean)
        return Verdict(logits.astype(jnp.float32), features.astype(jnp.float32), classes, codes)


def nearness(codes: Array) -> Array:
    """Of codes (B, K, D) the sums over all others of exp(-|difference|_1), (B, K)."""
    distances = jnp.abs(codes[:, None] - codes[None]).sum(-1)
    return jnp.exp(-distances).sum(1) - 1  # one is of each with itself


def with_label(x: Array, label: Array | None, num_classes: int) -> Array:
    """x (B, ..., C) and one more channel for each class, 1 in the label's: (B, ..., C + num_classes)."""
    hot = jax.nn.one_hot(label, num_classes, dtype=x.dtype).reshape(len(x), *(1,) * (x.ndim - 2), -1)
    return jnp.concatenate([x, jnp.broadcast_to(hot, (*x.shape[:-1], num_classes))], -1)


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
