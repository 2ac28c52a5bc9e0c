"""Config of the two players of `gan`, and what it stands for: their networks, optimizers and labels."""

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax
import optax

from jaxgen.gan.losses import LOSSES
from jaxgen.gan.networks import dcgan, head, mlp, r3gan, resnet

SMOOTHED = ("minimax", "non_saturating")
"""Losses with targets to smooth."""


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Hyperparameters of both players. All remedies are off but the average of the generator."""

    shape: tuple[int, ...] = (8, 8, 1)
    """Shape of one example."""
    num_classes: int = 0
    """Classes of the labels, if they are used."""
    num_latents: int = 64
    """Dimensions of z."""
    network: Literal["mlp", "dcgan", "resnet", "r3gan"] = "mlp"
    """Fully connected; strided convolutions; residual; residual without normalization."""
    generator_widths: tuple[int, ...] = (128, 128)
    """Widths of the generator's layers (mlp), or channels from its smallest images to its largest."""
    discriminator_widths: tuple[int, ...] = (128, 128)
    """Widths of the discriminator's layers, or channels from its largest images to its smallest."""
    generator_normalization: Literal["none", "batch", "conditional"] = "none"
    """Normalization of the generator's hidden layers, conditional by the label; r3gan has none."""
    discriminator_normalization: Literal["none", "batch", "layer", "spectral"] = "none"
    """Normalization of the discriminator's layers or weights; r3gan has none."""
    upsampling: Literal["transposed", "nearest"] = "transposed"
    """dcgan only: how the generator doubles the size."""
    activation: Literal["leaky_relu", "relu", "maxout"] = "leaky_relu"
    """mlp only: nonlinearity of the discriminator."""
    blocks: int = 2
    """r3gan only: residual blocks at each size."""
    init_std: float = 0.0
    """mlp and dcgan only: standard deviation of the initial weights; 0 for He's."""
    loss: str = "non_saturating"
    """Name of a pair of losses in `losses.LOSSES`."""
    penalty: Literal["none", "gradient", "gradient_one_sided", "dragan", "r1", "r2", "r1_r2"] = "none"
    """Penalty on the discriminator's gradient."""
    penalty_weight: float = 10.0
    """Weight of the penalty: lambda, or gamma of r1 and r2."""
    penalty_every: int = 1
    """Apply the penalty at every k-th step of the discriminator, with k times the weight."""
    weight_clip: float = 0.0
    """Cut the discriminator's parameters to [-c, c] after each of its steps; 0 does not."""
    orthogonal_weight: float = 0.0
    """Weight of the generator's orthogonal regularisation."""
    dropout: float = 0.0
    """mlp and dcgan only: share of the discriminator's hidden units that are dropped in training."""
    label_smoothing: float = 0.0
    """Aim real data at 1 minus this; for minimax and non_saturating."""
    label_flipping: float = 0.0
    """Probability with which a real and a generated example change roles in the discriminator's step."""
    instance_noise: float = 0.0
    """Initial standard deviation of the noise added to everything the discriminator sees."""
    instance_noise_steps: int = 10_000
    """Steps in which that noise falls linearly to zero."""
    augmentations: tuple[Literal["color", "translation", "cutout"], ...] = ()
    """Random transformations of all images the discriminator sees."""
    adaptive_augmentations: tuple[Literal["blit", "geometry", "color"], ...] = ()
    """Others, which happen the more often the more the discriminator overfits (see `adaptive`)."""
    augmentation_target: float = 0.6
    """Mean sign of the logits of real data that adaptive augmentation holds."""
    augmentation_ramp: int = 500_000
    """Real examples in which its probability rises from 0 to 1 at most."""
    packing: int = 1
    """Examples the discriminator judges together, joined along their channels."""
    minibatch_stddev: int = 0
    """Show the last layer how much features vary within groups of so many judgements; 0 does not."""
    minibatch_kernels: int = 0
    """Show the last layer how near each judgement lies to the others under so many kernels; 0 does not."""
    feature_matching: bool = False
    """Train the generator to match the mean features of real data, in place of its loss."""
    conditioning: Literal["none", "concat", "projection", "auxiliary", "info"] = "none"
    """How the discriminator uses labels; the generator's are joined to z. Those of info are made up."""
    num_codes: int = 10
    """info only: made-up classes, which the discriminator learns to read off what was generated from them."""
    num_continuous_codes: int = 0
    """info only: made-up numbers, even in [-1, 1] and the last of z, to be read off likewise."""
    learned_variance: bool = False
    """info only: let the reader of continuous codes say how sure it is; else its variance is 1."""
    auxiliary_weight: float = 1.0
    """Weight of the discriminator's loss in reading classes and codes off examples (auxiliary, info)."""
    auxiliary_generator_weight: float = 0.1
    """The same of the generator's."""
    unrolling: int = 0
    """Steps the generator thinks the discriminator ahead, and differentiates through."""
    discriminator_steps: int = 1
    """Steps of the discriminator to one of the generator; the batch is split among them."""
    rule: Literal["adam", "rmsprop"] = "adam"
    """Optimizer of both players."""
    learning_rate: float = 2e-4
    """Step size of the generator."""
    discriminator_learning_rate: float | None = None
    """Step size of the discriminator; by default the generator's."""
    beta1: float = 0.5
    """Adam's decay of the mean gradient."""
    beta2: float = 0.999
    """Adam's decay of the squared gradient."""
    decay_steps: int = 0
    """Steps in which both step sizes fall linearly to zero; 0 keeps them constant."""
    ema_decay: float = 0.999
    """Decay of the averaged generator that samples are drawn from; grows to this in the first steps."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype of the networks; parameters, losses and penalties stay float32."""
    generator: nn.Module | None = None
    """Your own network: codes (B, num_latents + num_labels), train -> (B, *shape)."""
    discriminator: nn.Module | None = None
    """Your own network: (B, ...), train -> features (B, F); a last linear layer is added."""
    generator_optimizer: optax.GradientTransformation | None = None
    """Your own optimizer of the generator."""
    discriminator_optimizer: optax.GradientTransformation | None = None
    """Your own optimizer of the discriminator."""


def networks(cfg: Config) -> tuple[nn.Module, nn.Module]:
    """The generator and the discriminator: the config's own, or those it names."""
    module = {"mlp": mlp, "dcgan": dcgan, "resnet": resnet, "r3gan": r3gan}[cfg.network]
    first: dict[str, Any] = {"dtype": cfg.dtype}
    second: dict[str, Any] = {"dtype": cfg.dtype}
    if cfg.network == "r3gan":
        first["blocks"] = second["blocks"] = cfg.blocks
    else:
        first["normalization"], first["num_labels"] = cfg.generator_normalization, num_labels(cfg)
        second["normalization"] = cfg.discriminator_normalization
    if cfg.network in ("mlp", "dcgan"):
        first["std"] = second["std"] = cfg.init_std
        second["dropout"] = cfg.dropout
    if cfg.network == "mlp":
        second["activation"] = cfg.activation
    if cfg.network == "dcgan":
        first["upsampling"] = cfg.upsampling
    generator = cfg.generator or module.Generator(cfg.shape, cfg.generator_widths, **first)
    body = cfg.discriminator or module.Discriminator(cfg.discriminator_widths, **second)
    discriminator = head.Discriminator(
        body,
        cfg.packing,
        cfg.conditioning,
        num_labels(cfg),
        cfg.minibatch_stddev,
        cfg.minibatch_kernels,
        cfg.discriminator_normalization,
        cfg.init_std,
        cfg.dtype,
        cfg.num_continuous_codes,
        cfg.learned_variance,
    )
    return generator, discriminator


def optimizer(cfg: Config, player: str) -> optax.GradientTransformation:
    """The config's own optimizer of the "generator" or the "discriminator", or the rule it names.

    Under a penalty applied at every k-th step Adam's constants become those of k steps in k + 1: step size
    times c, decays to the power c, c = k / (k + 1) (Karras et al. 2020).
    """
    own = getattr(cfg, f"{player}_optimizer")
    if own is not None:
        return own
    rate, steps, share = cfg.learning_rate, cfg.decay_steps, 1.0
    if player == "discriminator":
        rate = rate if cfg.discriminator_learning_rate is None else cfg.discriminator_learning_rate
        steps *= cfg.discriminator_steps
        if cfg.penalty != "none" and cfg.penalty_every > 1 and cfg.rule == "adam":
            share = cfg.penalty_every / (cfg.penalty_every + 1)
    schedule = optax.linear_schedule(share * rate, 0.0, steps) if steps else share * rate
    if cfg.rule == "rmsprop":
        return optax.rmsprop(schedule)
    return optax.adam(schedule, cfg.beta1**share, cfg.beta2**share)


def num_labels(cfg: Config) -> int:
    """Classes of the labels that go with z; 0 of an unconditional model."""
    if cfg.conditioning == "none":
        return 0
    return cfg.num_codes if cfg.conditioning == "info" else cfg.num_classes


def check(cfg: Config) -> None:
    """Raises ValueError for settings that do not go together."""
    if cfg.loss not in LOSSES:
        raise ValueError(f"unknown loss {cfg.loss!r}: there are {', '.join(sorted(LOSSES))}")
    if cfg.penalty != "none" and cfg.discriminator_normalization == "batch":
        raise ValueError(
            "a penalty on the gradient of each example needs a discriminator that keeps them apart:"
            ' discriminator_normalization "none", "layer" or "spectral", not "batch"'
        )
    if cfg.label_smoothing and cfg.loss not in SMOOTHED:
        raise ValueError(f"label_smoothing is for the losses {' and '.join(SMOOTHED)}, not {cfg.loss}")
    if (cfg.augmentations or cfg.adaptive_augmentations) and len(cfg.shape) != 3:
        raise ValueError(f"augmentations are of images, (height, width, channels), not {tuple(cfg.shape)}")
    if cfg.num_continuous_codes and cfg.conditioning != "info":
        raise ValueError(f'continuous codes go with conditioning "info", not {cfg.conditioning!r}')
    if cfg.conditioning != "none" and not num_labels(cfg) + cfg.num_continuous_codes:
        needed = "num_codes or num_continuous_codes" if cfg.conditioning == "info" else "data with labels"
        raise ValueError(f"conditioning {cfg.conditioning!r} needs {needed}")
    if cfg.generator_normalization == "conditional" and cfg.conditioning == "none":
        raise ValueError('generator_normalization "conditional" needs a conditioning other than "none"')
    if cfg.packing > 1 and cfg.conditioning in ("projection", "auxiliary", "info"):
        raise ValueError(f'packing goes with conditioning "none" or "concat", not {cfg.conditioning!r}')
