"""Config of the two players of `gan`, and their networks, optimizers, labels and codes."""

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxgen import keys, values
from jaxgen.fields import Decay, Fraction, NonNegativeFloat, NonNegativeInt, PositiveInt
from jaxgen.gan.adaptive import Adaptive
from jaxgen.gan.augment import DiffAugment, InstanceNoise
from jaxgen.gan.conditioning import Auxiliary, Concat, Conditioning, Info, Projection
from jaxgen.gan.losses import LossName
from jaxgen.gan.networks import dcgan, head, mlp, r3gan, resnet
from jaxgen.gan.penalties import R1, R1R2, R2, Dragan, GradientPenalty
from jaxgen.values import Value

SMOOTHED = ("minimax", "non_saturating")
"""Losses with targets to smooth."""


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(values.Value):
    """Hyperparameters of both players. All remedies are off but the average of the generator."""

    shape: tuple[PositiveInt, ...] = (8, 8, 1)
    """Shape of one example."""
    num_classes: NonNegativeInt = 0
    """Classes of the labels, if they are used."""
    num_latents: PositiveInt = 64
    """Dimensions of z."""
    generator: mlp.Generator | dcgan.Generator | resnet.Generator | r3gan.Generator | nn.Module = (
        mlp.Generator()
    )
    """Network from codes (B, num_latents and labels) to data (B, *shape)."""
    discriminator: (
        mlp.Discriminator | dcgan.Discriminator | resnet.Discriminator | r3gan.Discriminator | nn.Module
    ) = mlp.Discriminator()
    """Network from data (B, ...) to features (B, F), to which the last, linear layer is added."""
    loss: LossName = "non_saturating"
    """The pair of losses, see `losses.LOSSES`."""
    penalty: GradientPenalty | Dragan | R1 | R2 | R1R2 | Value | None = None
    """Penalty on the discriminator's gradient."""
    conditioning: Concat | Projection | Auxiliary | Info | Value | None = None
    """How the discriminator uses labels; the generator's are joined to z."""
    augmentation: DiffAugment | Adaptive | Value | None = None
    """Random transformations of all images that the discriminator sees."""
    instance_noise: InstanceNoise | Value | None = None
    """Noise on all that the discriminator sees."""
    minibatch: head.GroupStddev | head.MinibatchDiscrimination | Value | None = None
    """What the last layer is shown of how the features of a batch vary."""
    packing: PositiveInt = 1
    """Examples the discriminator judges together, joined along their channels."""
    label_smoothing: Decay = 0.0
    """Aim real data at 1 minus this; for minimax and non_saturating."""
    label_flipping: Fraction = 0.0
    """Probability with which a real and a generated example change roles in the discriminator's step."""
    weight_clip: NonNegativeFloat = 0.0
    """Cut the discriminator's parameters to [-c, c] after each of its steps; 0 does not."""
    orthogonal_weight: NonNegativeFloat = 0.0
    """Weight of the generator's orthogonal regularisation."""
    feature_matching: bool = False
    """Train the generator to match the mean features of real data, in place of its loss."""
    unrolling: NonNegativeInt = 0
    """Steps the generator thinks the discriminator ahead, and differentiates through."""
    discriminator_steps: PositiveInt = 1
    """Steps of the discriminator to one of the generator; the batch is split among them."""
    generator_optimizer: values.Optimizer = values.Adam(2e-4, beta1=0.5)
    """Optimizer of the generator."""
    discriminator_optimizer: values.Optimizer = values.Adam(2e-4, beta1=0.5)
    """Optimizer of the discriminator."""
    average: values.Average = values.Average(0.999)
    """Average of the generator's variables, from which samples are drawn."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype of the networks; parameters, losses and penalties stay float32."""


def networks(cfg: Config) -> tuple[nn.Module, nn.Module]:
    """The generator, and the discriminator with its last layer."""
    facts = {"shape": cfg.shape, "num_labels": num_labels(cfg), "dtype": cfg.dtype}
    body = values.filled(cfg.discriminator, **facts)
    discriminator = head.Discriminator(body, cfg.packing, conditioning_of(cfg), cfg.minibatch, cfg.dtype)
    return values.filled(cfg.generator, **facts), discriminator


def conditioning_of(cfg: Config) -> Conditioning:
    """The config's conditioning with the number of classes, or the one without labels."""
    found: Any = cfg.conditioning or Conditioning()
    filled: Conditioning = values.filled(found, num_classes=cfg.num_classes)
    return filled


def num_labels(cfg: Config) -> int:
    """Classes of the labels that go with z; 0 of an unconditional model."""
    return conditioning_of(cfg).num_labels


def draw_codes(key: Array, n: int, cfg: Config, truncation: float | None = None) -> Array:
    """n draws of z, (n, num_latents and continuous codes): normal, and then even in [-1, 1]."""
    shape, count = (n, cfg.num_latents), conditioning_of(cfg).num_continuous_codes
    normal_key, even_key = keys.named(key, "normal", "even")
    if truncation is None:
        z = jax.random.normal(normal_key, shape)
    else:
        z = jax.random.truncated_normal(normal_key, -truncation, truncation, shape)
    if not count:
        return z
    codes = jax.random.uniform(even_key, (n, count), minval=-1.0)
    return jnp.concatenate([z, codes], -1)


def with_label(z: Array, label: Array | None, cfg: Config) -> Array:
    """What the generator is given: z, and the label one-hot where there is one, (B, ... + num_labels)."""
    count = num_labels(cfg)
    return jnp.concatenate([z, jax.nn.one_hot(label, count)], -1) if count else z


def optimizer(cfg: Config, player: str) -> optax.GradientTransformation:
    """The Optax optimizer of the "generator" or the "discriminator".

    Under a penalty applied at every k-th step Adam's constants become those of k steps in k + 1: step size
    times c, decays to the power c, c = k / (k + 1) (Karras et al. 2020).
    """
    if player == "generator":
        return values.gradient_transformation(cfg.generator_optimizer)
    rule: Any = cfg.discriminator_optimizer
    penalty: Any = cfg.penalty
    every = 1 if penalty is None else penalty.every
    if every > 1 and isinstance(rule, values.Adam):
        share = every / (every + 1)
        rate, beta1, beta2 = share * rule.learning_rate, rule.beta1**share, rule.beta2**share
        rule = dataclasses.replace(rule, learning_rate=rate, beta1=beta1, beta2=beta2)
    return values.gradient_transformation(rule, cfg.discriminator_steps)


def check(cfg: Config) -> None:
    """Raises ValueError for settings that do not go together."""
    how = conditioning_of(cfg)
    if cfg.label_smoothing and cfg.loss not in SMOOTHED:
        raise ValueError(f"label_smoothing is for the losses {' and '.join(SMOOTHED)}, not {cfg.loss}")
    if cfg.penalty is not None and getattr(cfg.discriminator, "normalization", None) == "batch":
        raise ValueError(
            "a penalty on the gradient of each example needs a discriminator that keeps them apart:"
            ' its normalization "none", "layer" or "spectral", not "batch"'
        )
    if cfg.augmentation is not None and len(cfg.shape) != 3:
        raise ValueError(f"augmentations are of images, (height, width, channels), not {tuple(cfg.shape)}")
    if cfg.conditioning is not None and not how.num_labels + how.num_continuous_codes:
        raise ValueError(f"conditioning {type(how).__name__} needs data with labels")
    if cfg.packing > 1 and not how.takes_sets:
        raise ValueError(f"packing goes with no conditioning or with Concat, not with {type(how).__name__}")
