"""Normalizing flows: train, evaluate and picture one of them.

python experiments/flow.py affine
python experiments/flow.py planar
python experiments/flow.py radial --data rings
python experiments/flow.py nice --data checkerboard
python experiments/flow.py realnvp
python experiments/flow.py maf --data ring
python experiments/flow.py iaf
python experiments/flow.py spline --data checkerboard
python experiments/flow.py spline_digits
python experiments/flow.py glow_digits
python experiments/flow.py glow
python experiments/flow.py glow --dequantisation variational --conditional
python experiments/flow.py realnvp_images
python experiments/flow.py tarflow
python experiments/flow.py tarflow_cifar10
"""

import jaxgen.interrupts  # noqa: F401 - first, see there

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import plot
from jaxgen.evaluation.comparison import compare
from jaxgen.flow import affine, glow, maf, planar, realnvp, realnvp_images, spline, tarflow
from jaxgen.flow.preprocessing import Logit
from jaxgen.flow.transforms import Additive, Affine, RationalQuadratic
from jaxgen.nn.causal import Transformer
from jaxgen.nn.couplings import ConvNet, ResNet
from jaxgen.nn.masked import MADE
from jaxgen.nn.mlp import MLP
from jaxgen.script import Options, System, likelihoods, main, pictures, sampler
from jaxgen.types import observed
from jaxgen.values import Adam, Average, Constant, Cosine

GRID_SIDE = 300
NUM_SHOWN = 5000
NUM_IMAGES, NUM_COMPARED = 64, 10_000
TEMPERATURES = {f"temperature {t:g}": {"temperature": t} for t in (0.7, 1.0)}
NOISY_TEMPERATURES = {
    **TEMPERATURES,
    **{f"{name}, noisy": {**options, "denoise": False} for name, options in TEMPERATURES.items()},
}
"""Ways of sampling, {name: options of `sample`}."""


def evaluate(key, state, train, test, cfg, folder, family, settings):
    """The likelihood of the test set; pictures of the density and of the codes where the data are a plane.

    density.png: the true density, if it is known, and the model's. codes.png: test points, and where the flow
    takes them, which is to a Gaussian.

    By each of `settings`, the Frechet distance and a picture of samples, all of the same noise; if there are
    any, of conditional flows also classes.png, a row a class.
    """
    metrics = likelihoods(key, family, state, test, cfg)
    draws = {name: sampler(family, state, cfg, **options) for name, options in settings.items()}
    for name, draw in draws.items():
        caption = f"Samples drawn with the setting {name}."
        plot.save_grid(folder / (name.replace(" ", "_") + ".png"), draw(key, NUM_IMAGES), caption=caption)
    metrics |= compare(draws, train, test, NUM_COMPARED, key=key) if draws else {}
    if draws and getattr(cfg, "conditional", False):
        first = next(iter(settings.values()))
        draw = lambda label: sampler(family, state, cfg, label=label, **first)(key, len(label))
        pictures.save_classes(folder, draw, cfg.num_classes, test.label_names)
    if cfg.shape == (2,):
        x = observed(test[:NUM_SHOWN])
        ticks = plane(observed(train[:NUM_SHOWN]))
        grid = np.stack(np.meshgrid(*ticks), -1).reshape(-1, 2)
        log_prob = jax.jit(lambda x: family.log_prob(state, x, cfg))
        maps = {"model": np.asarray(jnp.exp(log_prob(jnp.float32(grid))))}
        if test.log_density is not None:
            maps = {"data": np.exp(test.log_density(grid)), **maps}
        side = (len(ticks[1]), len(ticks[0]))
        maps = {name: values.reshape(side) for name, values in maps.items()}
        caption = "The density, bright where it is high, with one scale for all panels."
        plot.save_maps(folder / "density.png", maps, *ticks, caption=caption)
        codes = jax.jit(lambda x: family.encode(state, x, cfg))(x)
        caption = "Test points, and where the flow takes them, which is to a Gaussian if it fits."
        plot.save_points(folder / "codes.png", {"data": x, "codes": codes}, caption=caption)
    return metrics


def plane(x):
    """The places along both axes at which a density is drawn, from the extremes of points (N, 2)."""
    low, high = x.min(0), x.max(0)
    margin = 0.15 * (high - low).max()
    side = ((high - low) + 2 * margin).max()
    return [np.linspace(c - side / 2, c + side / 2, GRID_SIDE) for c in (low + high) / 2]


def optimizer(learning_rate, steps, weight_decay=0.0):
    schedule = Cosine(steps)
    return Adam(learning_rate, schedule=schedule, gradient_clip=10.0, weight_decay=weight_decay)


def system(paper, family, options, published=None, settings=None, **hyperparameters):
    evaluation = functools.partial(evaluate, family=family, settings=settings or {})
    return System(
        family=family,
        config=family.Config(**hyperparameters),
        paper=paper,
        options=options,
        evaluate=evaluation,
        published=published or {},
    )


def points(paper, family, learning_rate, **hyperparameters):
    """A flow of points in the plane."""
    steps = 6000
    options = Options(
        data="moons",
        steps=steps,
        batch_size=512,
        sample_every=steps,
        save_every=steps,
        num_samples=5000,
    )
    return system(paper, family, options, optimizer=optimizer(learning_rate, steps), **hyperparameters)


def digits(paper, family, steps, weight_decay, learning_rate=1e-3, **hyperparameters):
    """A flow of digits, which are few: weights decay, and the logit spreads the levels next to the ends."""
    options = Options(steps=steps, sample_every=steps, save_every=steps)
    hyperparameters["optimizer"] = optimizer(learning_rate, steps, weight_decay)
    return system(paper, family, options, preprocessing=Logit(), **hyperparameters)


def fashion(paper, family, steps, batch_size=64, learning_rate=1e-3, warmup_steps=0, **hyperparameters):
    """A flow of images of 28x28 pixels."""
    options = Options(
        data="fashion_mnist",
        steps=steps,
        batch_size=batch_size,
        sample_every=steps,
        save_every=steps,
        num_samples=10_000,
    )
    rule = Adam(learning_rate, schedule=Cosine(steps, warmup_steps=warmup_steps), gradient_clip=10.0)
    return system(paper, family, options, settings=TEMPERATURES, optimizer=rule, **hyperparameters)


CHOLESKY = "Cholesky 1924"
REZENDE = "Rezende & Mohamed 2015"
NICE = "Dinh, Krueger & Bengio 2015"
REALNVP = "Dinh, Sohl-Dickstein & Bengio 2017"
MAF = "Papamakarios, Pavlakou & Murray 2017"
IAF = "Kingma, Salimans, Jozefowicz, Chen, Sutskever & Welling 2016"
SPLINE = "Durkan, Bekasov, Murray & Papamakarios 2019"
GLOW = "Kingma & Dhariwal 2018"
TARFLOW = "Zhai, Zhang, Nakkiran, Berthelot, Gu, Zheng, Chen, Bautista, Jaitly & Susskind 2025"
SMALL_MLP, SMALL_MADE = MLP((64, 64)), MADE((64, 64))

# Sizes, step sizes and weight decay are those of the lowest loss, of a few tried, on a tenth of the training
# points held out, or a fifth of the training digits.
SYSTEMS = {
    "affine": points(CHOLESKY, affine, 1e-2),
    "planar": points(REZENDE, planar, 5e-3),
    "radial": points(REZENDE, planar, 5e-3, layer=planar.Radial()),
    # From the identity NICE does not learn symmetric data: neither coordinate tells the mean of the other.
    "nice": points(NICE, realnvp, 3e-3, transform=Additive(), network=MLP((64, 64), zero_output=False)),
    "realnvp": points(REALNVP, realnvp, 2e-3, num_layers=16, network=SMALL_MLP),
    "maf": points(MAF, maf, 3e-3, num_layers=8, network=SMALL_MADE),
    "iaf": points(IAF, maf, 3e-3, direct="sampling", network=SMALL_MADE),
    "spline": points(SPLINE, spline, 3e-3, layer=spline.Coupling(SMALL_MLP), transform=RationalQuadratic(32)),
    "planar_digits": digits(REZENDE, planar, 1500, 0.1, 3e-3),
    "radial_digits": digits(REZENDE, planar, 1500, 0.1, 3e-3, layer=planar.Radial()),
    "nice_digits": digits(NICE, realnvp, 1000, 1.0, num_layers=4, transform=Additive(), network=MLP((128,))),
    "realnvp_digits": digits(
        REALNVP, realnvp, 1500, 2.0, num_layers=12, transform=Affine(1.0), network=MLP((64,))
    ),
    "maf_digits": digits(MAF, maf, 1500, 2.0, network=MADE((128,))),
    "iaf_digits": digits(
        IAF, maf, 500, 1.0, direct="sampling", num_layers=3, transform=Affine(1.0), network=MADE((128,))
    ),
    "spline_digits": digits(
        SPLINE, spline, 1500, 1.0, num_layers=2, layer=spline.Autoregressive(MADE((128,)))
    ),
    # Of the validation digits: the logit took off 0.25 bits/dim, and weights that decay 0.02.
    "glow_digits": digits(GLOW, glow, 1000, 1.0, network=ConvNet(32), settings=TEMPERATURES),
    # 26 to 45 minutes each on a core that other work used too; RealNVP takes a third of its 38 alone.
    # Nothing was tuned but the logit, on digits and in the first steps of TarFlow.
    "glow": fashion(
        GLOW, glow, 15_000, num_levels=2, num_steps=4, network=ConvNet(48), preprocessing=Logit()
    ),
    "realnvp_images": fashion(REALNVP, realnvp_images, 2000, num_levels=2, network=ResNet(16, 1)),
    "tarflow": fashion(
        TARFLOW,
        tarflow,
        9000,
        32,
        warmup_steps=150,
        patch=4,
        network=Transformer(64, 2, 2, "relu"),
        preprocessing=Logit(),
    ),
    # The size of the paper. XLA counts 0.51 GFLOP an example for a training step whose loops turn once,
    # thus 16 for 32 turns, and 1.0 EFLOP in all: 10 hours at 30 TFLOP/s. By hand the products of the
    # convolutions are 24 GFLOP, places in their padding included. It has not been run.
    "glow_cifar10": system(
        GLOW,
        glow,
        Options(data="cifar10", steps=500_000, log_every=1000, sample_every=20_000, save_every=20_000),
        {("cifar10", "nll_bits_per_dim"): (3.35, "Kingma & Dhariwal 2018, table 2")},
        settings=TEMPERATURES,
        num_levels=3,
        num_steps=32,
        network=ConvNet(512),
        optimizer=Adam(1e-3, schedule=Constant(warmup_steps=5000), gradient_clip=10.0),
        average=Average(0.9999),
    ),
    # The size of the paper. XLA counts 3.9 GFLOP an example for a training step whose loops turn once, thus
    # 12 for three turns, and 0.8 EFLOP in all: 7 hours at 30 TFLOP/s. The paper does not say how long it
    # trains. It has not been run.
    "realnvp_cifar10": system(
        REALNVP,
        realnvp_images,
        Options(data="cifar10", steps=500_000, log_every=1000, sample_every=20_000, save_every=20_000),
        {("cifar10", "nll_bits_per_dim"): (3.49, "Dinh, Sohl-Dickstein & Bengio 2017, table 1")},
        settings=TEMPERATURES,
        num_levels=2,
        network=ResNet(64, 8),
        optimizer=Adam(1e-3, gradient_clip=10.0),
        average=Average(0.9999),
    ),
    # As large as the paper's flow of 64x64 images, with its noise and learning rate. XLA counts 12 GFLOP an
    # example for a training step whose loops turn once, thus 740 for 8 layers of 8 blocks, and 19 EFLOP in
    # all: 18 hours at 300 TFLOP/s in bfloat16. It has not been run.
    "tarflow_cifar10": system(
        TARFLOW,
        tarflow,
        Options(
            data="cifar10",
            steps=100_000,
            batch_size=256,
            log_every=1000,
            sample_every=20_000,
            save_every=20_000,
            num_samples=10_000,
        ),
        settings=NOISY_TEMPERATURES,
        num_layers=8,
        network=Transformer(768, 8, 12, dtype="bfloat16"),
        noise=tarflow.GaussianNoise(0.05),
        optimizer=Adam(1e-4, schedule=Cosine(100_000, warmup_steps=5000), gradient_clip=10.0),
    ),
}

if __name__ == "__main__":
    main(SYSTEMS)
