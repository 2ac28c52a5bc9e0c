"""The classic adversarial papers as values of one Config: `gan.train_step(state, batch, presets.WGAN_GP)`.

Networks are sized for small grey images and a laptop: 28x28 and 8x8 as they stand, any size divisible by 4.
`dataclasses.replace(preset, shape=..., generator=dcgan.Generator(...))` makes them what the papers had, and
`points` puts the fully connected networks of the plane under any of them.

All of them sample from an average of the generator, as few of the papers do. What else departs from a paper,
beside the sizes, is said below its Config.
"""

import dataclasses
from typing import Any, NamedTuple

from jaxgen import values
from jaxgen.gan.adaptive import Adaptive
from jaxgen.gan.conditioning import Auxiliary, Concat, Info, Projection
from jaxgen.gan.config import Config
from jaxgen.gan.networks import dcgan, mlp, r3gan, resnet
from jaxgen.gan.penalties import R1, R1R2, GradientPenalty
from jaxgen.values import Adam, Linear, RMSProp


class Preset(NamedTuple):
    """A paper: its config, its authors and year, and what to expect of it."""

    config: Config
    paper: str
    expect: str


def _by(optimizer: values.Optimizer) -> dict[str, Any]:
    """The same optimizer for both players."""
    return {"generator_optimizer": optimizer, "discriminator_optimizer": optimizer}


_SMALL_IMAGES = Config(
    shape=(28, 28, 1),
    num_latents=100,
    generator=dcgan.Generator((128, 64)),
    discriminator=dcgan.Discriminator((64, 128), normalization="none"),
)

GAN = Config(
    shape=(28, 28, 1),
    num_latents=100,
    generator=mlp.Generator((256, 512)),
    discriminator=mlp.Discriminator((512, 256)),
    loss="minimax",
)
"""Departs: leaky ReLUs in place of maxout and no dropout, normal codes, and Adam in place of momentum."""
NSGAN = dataclasses.replace(GAN, loss="non_saturating")
"""Departs as GAN does."""
FGAN = dataclasses.replace(GAN, loss="f:jensen_shannon:practical")
CGAN = dataclasses.replace(NSGAN, conditioning=Concat(), num_classes=10)
"""Departs as GAN does, of which it is the conditional one: the paper has maxout, dropout and momentum."""

DCGAN = dataclasses.replace(_SMALL_IMAGES, discriminator=dcgan.Discriminator((64, 128)))
LSGAN = dataclasses.replace(DCGAN, loss="least_squares")
PACGAN = dataclasses.replace(DCGAN, packing=2)
ACGAN = dataclasses.replace(DCGAN, conditioning=Auxiliary(), num_classes=10)
"""Departs: the generator's classifier loss weighs 0.1, as in Gulrajani et al. 2017, and 1 in the paper, whose
discriminator has dropout."""
INFOGAN = dataclasses.replace(
    DCGAN, conditioning=Info(num_codes=10, num_continuous_codes=2, generator_weight=1.0), num_latents=62
)
"""Departs: the paper's generator has a step size of 1e-3 on digits, and its continuous codes weigh less."""
WGAN = dataclasses.replace(
    DCGAN, loss="wasserstein", weight_clip=0.01, discriminator_steps=5, **_by(RMSProp(5e-5))
)
"""Departs: RMSProp forgets by 0.9, and by 0.99 in the authors' code, where that is the default. They also
take 100 steps of the critic, not 5, in the first 25 of the generator and in every 500th."""
WGAN_GP = dataclasses.replace(
    _SMALL_IMAGES,
    loss="wasserstein",
    penalty=GradientPenalty(10.0),
    discriminator_steps=5,
    **_by(Adam(1e-4, beta1=0.5, beta2=0.9)),
)
"""Adam as in the authors' script for digits; in the paper's algorithm and its ResNets beta1 is 0. Departs:
that script's generator has no normalization."""
SNGAN = dataclasses.replace(
    _SMALL_IMAGES,
    discriminator=dcgan.Discriminator((64, 128), normalization="spectral"),
    loss="hinge",
    **_by(Adam(2e-4, beta1=0.0)),
)
"""Departs: the paper's small networks have beta1 0.5, beta2 0.999 and one step of the discriminator, or beta2
0.9 and five steps, and its ResNets beta1 0, beta2 0.9 and five, as SNGAN_CIFAR10 here."""
PROJECTION_GAN = dataclasses.replace(
    SNGAN,
    conditioning=Projection(),
    num_classes=10,
    generator=dcgan.Generator((128, 64), normalization="conditional"),
)
"""Departs: beta2 is 0.9 in the paper, and the discriminator takes five steps."""
ADA = dataclasses.replace(_SMALL_IMAGES, penalty=R1(0.1), augmentation=Adaptive(ramp=100_000))
"""Departs: the paper augments StyleGAN2, by beta1 0 and beta2 0.99, and ramps over 500,000 examples, or over
100,000 where it goes on from other data."""
R3GAN = Config(
    shape=(28, 28, 1),
    generator=r3gan.Generator((64, 64, 64), blocks=1),
    discriminator=r3gan.Discriminator((64, 64, 64), blocks=1),
    loss="relativistic",
    penalty=R1R2(1.0),
    **_by(Adam(2e-4, beta1=0.0, beta2=0.99)),
)
"""Departs: all constants stay as they are, while in the paper the step size and the penalty fall along a
cosine, and beta2 and the average's decay rise; no augmentation."""
RELATIVISTIC = dataclasses.replace(
    R3GAN,
    num_latents=100,
    generator=dcgan.Generator((128, 64), normalization="none", std=0.0),
    discriminator=dcgan.Discriminator((64, 128), normalization="none", std=0.0),
)

DCGAN_64 = dataclasses.replace(
    DCGAN,
    shape=(64, 64, 3),
    generator=dcgan.Generator((1024, 512, 256, 128)),
    discriminator=dcgan.Discriminator((128, 256, 512, 1024)),
)
"""The paper's size, for an accelerator."""
SNGAN_CIFAR10 = dataclasses.replace(
    SNGAN,
    shape=(32, 32, 3),
    num_latents=128,
    generator=resnet.Generator((256, 256, 256)),
    discriminator=resnet.Discriminator((128, 128, 128, 128)),
    discriminator_steps=5,
    **_by(Adam(2e-4, beta1=0.0, beta2=0.9, schedule=Linear(50_000))),
)
"""The paper's size, for an accelerator."""


def points(config: Config, **changes: Any) -> Config:
    """`config` for points in the plane, with the networks of Lin et al. 2018.

    Four hidden layers of 400 ReLU units with batch normalization generate, three of 200 maxout units
    discriminate, z has 2 dimensions, weights start from N(0, 0.02^2).
    """
    networks: dict[str, Any] = {
        "generator": mlp.Generator((400, 400, 400, 400), normalization="batch", std=0.02),
        "discriminator": mlp.Discriminator((200, 200, 200), activation="maxout", std=0.02),
    }
    return dataclasses.replace(config, shape=(2,), num_latents=2, **networks, **changes)


def decaying(config: Config, steps: int) -> Config:
    """`config` with step sizes of both players that fall linearly to zero in so many training steps."""
    players = ("generator_optimizer", "discriminator_optimizer")
    rules: dict[str, Any] = {player: getattr(config, player) for player in players}
    rules = {player: dataclasses.replace(rule, schedule=Linear(steps)) for player, rule in rules.items()}
    return dataclasses.replace(config, **rules)


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


_SLOW = Adam(1e-4, beta1=0.8)

POINTS: dict[str, PointsPreset] = {
    "gan": PointsPreset(points(NSGAN, **_by(_SLOW)), "Goodfellow et al. 2014, section 3", 100, 3000),
    "pacgan": PointsPreset(points(NSGAN, packing=2, **_by(_SLOW)), "Lin et al. 2018", 200, 2500),
    "wgan_gp": PointsPreset(points(WGAN_GP, penalty=GradientPenalty(0.1)), "Gulrajani et al. 2017", 500, 700),
    "r3gan": PointsPreset(
        dataclasses.replace(
            R3GAN,
            shape=(2,),
            num_latents=2,
            generator=mlp.Generator((128, 128, 128, 128)),
            discriminator=mlp.Discriminator((128, 128, 128, 128)),
            penalty=R1R2(0.05),
            **_by(Adam(2e-3, beta1=0.0)),
        ),
        "Huang et al. 2024 (the loss)",
        256,
        10_000,
        decays=True,
    ),
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
