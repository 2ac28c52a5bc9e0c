"""The classic adversarial papers as values of one Config: `gan.train_step(state, batch, presets.WGAN_GP)`.

Networks are sized for small grey images and a laptop: 28x28 and 8x8 as they stand, any size divisible by 4.
`dataclasses.replace(preset, shape=..., generator_widths=...)` makes them what the papers had; `points` puts
the fully connected networks of the plane under any of them.
"""

import dataclasses
from typing import NamedTuple

from jaxgen.gan.gan import Config


class Preset(NamedTuple):
    """A paper: its config, its authors and year, and what to expect of it."""

    config: Config
    paper: str
    expect: str


_SMALL_IMAGES = Config(
    shape=(28, 28, 1),
    network="dcgan",
    num_latents=100,
    generator_widths=(128, 64),
    discriminator_widths=(64, 128),
    generator_normalization="batch",
    init_std=0.02,
)

GAN = Config(
    shape=(28, 28, 1),
    num_latents=100,
    generator_widths=(256, 512),
    discriminator_widths=(512, 256),
    loss="minimax",
)
NSGAN = dataclasses.replace(GAN, loss="non_saturating")
FGAN = dataclasses.replace(GAN, loss="f:jensen_shannon:practical")
CGAN = dataclasses.replace(NSGAN, conditioning="concat", num_classes=10)

DCGAN = dataclasses.replace(_SMALL_IMAGES, discriminator_normalization="batch")
LSGAN = dataclasses.replace(DCGAN, loss="least_squares")
PACGAN = dataclasses.replace(DCGAN, packing=2)
ACGAN = dataclasses.replace(DCGAN, conditioning="auxiliary", num_classes=10)
INFOGAN = dataclasses.replace(
    DCGAN,
    conditioning="info",
    num_latents=62,
    num_codes=10,
    num_continuous_codes=2,
    auxiliary_generator_weight=1.0,
)
WGAN = dataclasses.replace(
    DCGAN, loss="wasserstein", weight_clip=0.01, rule="rmsprop", learning_rate=5e-5, discriminator_steps=5
)
WGAN_GP = dataclasses.replace(
    _SMALL_IMAGES,
    loss="wasserstein",
    penalty="gradient",
    penalty_weight=10.0,
    discriminator_steps=5,
    learning_rate=1e-4,
    beta2=0.9,
)
SNGAN = dataclasses.replace(_SMALL_IMAGES, loss="hinge", discriminator_normalization="spectral", beta1=0.0)
PROJECTION_GAN = dataclasses.replace(
    SNGAN, conditioning="projection", num_classes=10, generator_normalization="conditional"
)
ADA = dataclasses.replace(
    _SMALL_IMAGES,
    penalty="r1",
    penalty_weight=0.1,
    adaptive_augmentations=("blit", "geometry", "color"),
    augmentation_ramp=100_000,
)
R3GAN = Config(
    shape=(28, 28, 1),
    network="r3gan",
    generator_widths=(64, 64, 64),
    discriminator_widths=(64, 64, 64),
    blocks=1,
    loss="relativistic",
    penalty="r1_r2",
    penalty_weight=1.0,
    beta1=0.0,
    beta2=0.99,
)

RELATIVISTIC = dataclasses.replace(
    _SMALL_IMAGES,
    generator_normalization="none",
    init_std=0.0,
    loss="relativistic",
    penalty="r1_r2",
    penalty_weight=1.0,
    beta1=0.0,
    beta2=0.99,
)

DCGAN_64 = dataclasses.replace(
    DCGAN,
    shape=(64, 64, 3),
    generator_widths=(1024, 512, 256, 128),
    discriminator_widths=(128, 256, 512, 1024),
)
"""The paper's size, for an accelerator."""
SNGAN_CIFAR10 = dataclasses.replace(
    SNGAN,
    shape=(32, 32, 3),
    network="resnet",
    num_latents=128,
    generator_widths=(256, 256, 256),
    discriminator_widths=(128, 128, 128, 128),
    discriminator_steps=5,
    beta2=0.9,
    decay_steps=50_000,
)
"""The paper's size, for an accelerator."""


def points(config: Config, **changes: object) -> Config:
    """`config` for points in the plane, with the networks of Lin et al. 2018.

    Four hidden layers of 400 ReLU units with batch normalization generate, three of 200 maxout units
    discriminate, z has 2 dimensions, weights start from N(0, 0.02^2).
    """
    return dataclasses.replace(
        config,
        shape=(2,),
        network="mlp",
        num_latents=2,
        generator_widths=(400, 400, 400, 400),
        discriminator_widths=(200, 200, 200),
        generator_normalization="batch",
        discriminator_normalization="none",
        activation="maxout",
        init_std=0.02,
        **changes,  # type: ignore[arg-type]
    )


class PointsPreset(NamedTuple):
    """A paper's model of the mixtures in the plane, with the numbers of its training."""

    config: Config
    paper: str
    batch_size: int
    """Points a step of both players."""
    steps: int
    """Steps that take about five minutes on one core for five networks at once."""
    decays: bool = False
    """Whether the step sizes fall to zero over the training."""


_SMALL_R3GAN = dataclasses.replace(
    R3GAN,
    shape=(2,),
    network="mlp",
    num_latents=2,
    generator_widths=(128, 128, 128, 128),
    discriminator_widths=(128, 128, 128, 128),
    penalty_weight=0.05,
    learning_rate=2e-3,
    beta2=0.999,
)

POINTS: dict[str, PointsPreset] = {
    "gan": PointsPreset(
        points(NSGAN, learning_rate=1e-4, beta1=0.8), "Goodfellow et al. 2014, section 3", 100, 3000
    ),
    "pacgan": PointsPreset(
        points(NSGAN, learning_rate=1e-4, beta1=0.8, packing=2), "Lin et al. 2018", 200, 2500
    ),
    "wgan_gp": PointsPreset(points(WGAN_GP, penalty_weight=0.1), "Gulrajani et al. 2017", 500, 700),
    "r3gan": PointsPreset(_SMALL_R3GAN, "Huang et al. 2024 (the loss)", 256, 10_000, decays=True),
}
"""By name. The first three follow Lin et al. 2018, with 100 judgements of real data a step of the
discriminator; "r3gan" has smaller networks without normalization, and a step size that falls to zero."""

PRESETS: dict[str, Preset] = {
    "gan": Preset(
        GAN,
        "Goodfellow et al. 2014",
        "The generator stalls while the discriminator is sure; the picture is of why nobody uses this loss.",
    ),
    "nsgan": Preset(
        NSGAN,
        "Goodfellow et al. 2014, section 3",
        "Noisy digits within minutes, in fewer shapes than the data have.",
    ),
    "dcgan": Preset(
        DCGAN, "Radford, Metz & Chintala 2016", "Clean strokes; the accuracies hover well above one half."
    ),
    "lsgan": Preset(LSGAN, "Mao et al. 2017", "Much like DCGAN, with gradients from far samples too."),
    "wgan": Preset(
        WGAN, "Arjovsky, Chintala & Bottou 2017", "Slow and steady; a loss that falls as samples improve."
    ),
    "wgan_gp": Preset(
        WGAN_GP,
        "Gulrajani et al. 2017",
        "As WGAN with a freer critic: the norm of its gradient stays near 1.",
    ),
    "sngan": Preset(SNGAN, "Miyato et al. 2018", "Stable at once, and no penalty to pay for."),
    "cgan": Preset(CGAN, "Mirza & Osindero 2014", "The class asked for, in the quality of NSGAN."),
    "acgan": Preset(
        ACGAN, "Odena, Olah & Shlens 2017", "Clear classes, each of little variety: precision above recall."
    ),
    "infogan": Preset(
        INFOGAN,
        "Chen et al. 2016",
        "Ten made-up classes, many of them real ones; slant and width as numbers.",
    ),
    "projection_gan": Preset(
        PROJECTION_GAN, "Miyato & Koyama 2018", "Classes as clear as ACGAN's, with more variety within."
    ),
    "fgan": Preset(FGAN, "Nowozin, Cseke & Tomioka 2016", "Near NSGAN; any `--loss f:...` may be tried."),
    "pacgan": Preset(PACGAN, "Lin et al. 2018", "DCGAN that is told of repetition: more modes."),
    "ada": Preset(
        ADA,
        "Karras et al. 2020a (the augmentation)",
        "As DCGAN, and on a few hundred examples where that one learns them by heart.",
    ),
    "relativistic": Preset(
        RELATIVISTIC,
        "Jolicoeur-Martineau 2019, with both penalties of Huang et al. 2024",
        "R3GAN's loss on DCGAN's networks without normalization, for a tenth of the time a step.",
    ),
    "r3gan": Preset(
        R3GAN,
        "Huang et al. 2024",
        "Slow per step on a CPU, and the one that neither diverges nor drops modes.",
    ),
}
"""By name."""
