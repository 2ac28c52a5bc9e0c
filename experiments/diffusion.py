"""Diffusion models: train, evaluate and picture one of them.

python experiments/diffusion.py ddpm
python experiments/diffusion.py ddpm --target v --schedule cosine --sampler dpm_solver_pp --sampler.steps 10
python experiments/diffusion.py ddpm_fashion_mnist
python experiments/diffusion.py edm
python experiments/diffusion.py rectified_flow --coupling optimal
python experiments/diffusion.py consistency
python experiments/diffusion.py edm_cifar10
python experiments/diffusion.py ddpm_cifar10 --extractor inception-v3:pt_inception-2015-12-05-6726825d.pth
python experiments/diffusion.py latent
python experiments/diffusion.py latent --prior.network transformer --prior.network.width 64
python experiments/diffusion.py latent_fashion_mnist --start runs/my_vq_vae
"""

import jaxgen.interrupts  # noqa: F401 - first, see there

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import plot
from jaxgen.autoencoder import vq_vae
from jaxgen.autoencoder.vector_networks import ResidualDecoder, ResidualEncoder
from jaxgen.diffusion import (
    consistency,
    curricula,
    ddpm,
    edm,
    flow_matching,
    latent,
    level_samplers,
    networks,
    ode,
    processes,
    samplers,
    schedules,
)
from jaxgen.evaluation import likelihood
from jaxgen.evaluation.comparison import COLUMNS, compare
from jaxgen.evaluation.metric import metric
from jaxgen.script import Options, System, main, pictures
from jaxgen.script.evaluation import sampler
from jaxgen.script.stages import first_stage
from jaxgen.values import Adam, Average, Constant, Cosine

BOUND_CALLS = 100


def evaluate(key, state, train, test, cfg, folder, num_images, num_compared, settings):
    """The bound on `num_images` test pictures; the Frechet distance of `num_compared` samples a setting.

    The bound is of BOUND_CALLS terms an example. forward.png: a picture drowning under every schedule, one a
    row. backward.png: samples, one a row, from noise to the end. samplers.png: the same noise under every
    setting, one a row.
    """
    calls = min(BOUND_CALLS, cfg.num_steps)
    bound = lambda key, x: ddpm.elbo(key, state, x, cfg, num_terms=calls)
    which = {"measure": ddpm.measure(cfg), "name": "negative_elbo"}
    metrics = likelihood.reported(key, bound, test, **which, batch_size=100, num_examples=num_images)
    if len(cfg.shape) != 3:
        return metrics
    save_forward(folder / "forward.png", key, test[:1]["image"], cfg)
    steps = min(100, cfg.num_steps)
    frames = ddpm.trajectory(key, state, 6, cfg, steps=steps, frames=min(COLUMNS, steps))
    save_backward(folder / "backward.png", frames)
    possible = {
        name: setting for name, setting in settings.items() if setting["sampler"].steps <= cfg.num_steps
    }
    return metrics | distances(key, ddpm, state, train, test, cfg, folder, num_compared, possible)


def evaluate_edm(key, state, train, test, cfg, folder, num_compared, settings):
    """The loss on the test set, where 1 is Gaussian data; pictures and distances as `evaluate` has them."""
    loss = jax.jit(lambda batch: edm.loss(state.ema, batch, key, cfg)[0])
    metrics = {"loss": metric(loss(test[:2000]), "of Gaussian data", min(len(test), 2000))}
    if len(cfg.shape) != 3:
        return metrics
    frames = edm.trajectory(key, state, 6, cfg, steps=2 * COLUMNS, frames=COLUMNS)
    save_backward(folder / "backward.png", frames)
    return metrics | distances(key, edm, state, train, test, cfg, folder, num_compared, settings)


def evaluate_flow(key, state, train, test, cfg, folder, num_images, num_compared, settings):
    """The likelihood of dequantised test pictures by the flow; pictures and distances as `evaluate` has them.

    Its divergence is estimated by one probe an example, in 20 steps of fourth order.
    """
    density = lambda key, x: flow_matching.log_prob(state, x, cfg, steps=20, num_probes=1, key=key)
    which = {"measure": flow_matching.measure(cfg), "name": "nll_ode"}
    metrics = likelihood.reported(key, density, test, **which, batch_size=100, num_examples=num_images)
    if len(cfg.shape) != 3:
        return metrics
    return metrics | distances(key, flow_matching, state, train, test, cfg, folder, num_compared, settings)


def evaluate_consistency(key, state, train, test, cfg, folder, num_compared, settings):
    """Pictures of few calls and their distances, as `evaluate` has them."""
    if len(cfg.shape) != 3:
        return {}
    return distances(key, consistency, state, train, test, cfg, folder, num_compared, settings)


def evaluate_latent(key, state, train, test, cfg, folder, num_compared, settings):
    """The error of the first stage on the test set; pictures and distances as `evaluate` has them.

    Distances also of what the first stage draws by itself, without the diffusion, and of training pictures
    it reconstructs, which is as near as samples can come.
    """
    x, again = test[:2000]["image"], jax.jit(lambda x: latent.reconstruct(state, x, cfg))
    reconstructed = again(x)
    pictures.save_reconstructions(folder, x, reconstructed)
    metrics = {"reconstruction_mse": metric(((reconstructed - x) ** 2).mean(), "squared", len(x))}
    metrics["loss"] = metric(latent_loss(key, state, x, cfg), "squared, a dimension", len(x))
    steps = min(100, cfg.prior.num_steps)
    frames = latent.trajectory(key, state, 6, cfg, steps=steps, frames=min(COLUMNS, steps))
    save_backward(folder / "backward.png", frames)
    metrics |= distances(key, latent, state, train, test, cfg, folder, num_compared, settings)

    def reconstructed(key, n):
        return again(train[np.sort(jax.random.choice(key, len(train), (n,), replace=False))]["image"])

    alone = sampler(latent.family_of(cfg.first), state.first, latent.first_config(cfg))
    draws = {"first stage alone": alone, "reconstructions": reconstructed}
    return metrics | compare(draws, train, test, num_compared, key=key)


def latent_loss(key, state, x, cfg):
    """The squared error of what the diffusion predicts from the codes of pictures."""
    batch = {"x": latent.encode(state, x, cfg)}
    return jax.jit(lambda batch: ddpm.loss(state.ema, batch, key, latent.prior(cfg))[1]["mse"])(batch)


def distances(key, family, state, train, test, cfg, folder, num_compared, settings):
    """Frechet distances of samples drawn by each of `settings`, {name: options of the family's sample}."""
    draws = {name: sampler(family, state, cfg, **options) for name, options in settings.items()}
    return compare(draws, train, test, num_compared, key=key, picture=folder / "samplers.png")


def save_forward(path, key, image, cfg):
    """x_t of one picture at evenly spaced times, a row for each schedule."""
    times = np.linspace(0, cfg.num_steps - 1, COLUMNS).astype(int)
    noise = jnp.broadcast_to(jax.random.normal(key, image.shape), (COLUMNS, *cfg.shape))
    x = jnp.repeat(jnp.asarray(image), COLUMNS, 0)
    rows = [
        processes.q_sample(processes.gaussian(schedules.betas(name, cfg.num_steps)), x, times, noise)
        for name in schedules.SCHEDULES
    ]
    plot.save_grid(
        path,
        jnp.concatenate(rows),
        COLUMNS,
        row_titles=list(schedules.SCHEDULES),
        column_titles=[f"t = {time}" for time in times],
        caption="A test example under growing noise, a row for each schedule.",
    )


def save_backward(path, frames):
    """States (frames, N, H, W, C) on the way from noise to samples, a row for each sample."""
    images = frames.swapaxes(0, 1).reshape(-1, *frames.shape[2:])
    plot.save_grid(path, images, len(frames), caption="Samples on their way from noise, a row each.")


SETTINGS = {
    **{f"ddim {steps}": {"sampler": samplers.DDIM(steps)} for steps in (10, 20, 50, 100)},
    **{f"dpm_solver_pp {steps}": {"sampler": samplers.DPMSolverPP(steps)} for steps in (10, 20, 50)},
    **{f"heun {steps}": {"sampler": samplers.Heun(steps)} for steps in (19, 49)},
}
"""By network calls, of which Heun's method makes an odd number."""
LONG_SETTINGS = SETTINGS | {
    "ddim 1000": {"sampler": samplers.DDIM(1000)},
    "ddpm 1000": {"sampler": samplers.DDPM(1000)},
}
EDM_SETTINGS = {
    "heun 5": {"sampler": level_samplers.Heun(5)},
    "heun 10": {"sampler": level_samplers.Heun(10)},
    "heun 18": {"sampler": level_samplers.Heun(18)},
    "heun 18, churn 10": {"sampler": level_samplers.Heun(18, churn=10.0)},
    "ancestral 35": {"sampler": level_samplers.Ancestral(35)},
}
FLOW_SETTINGS = {f"euler {steps}": {"sampler": ode.Euler(steps)} for steps in (1, 2, 5, 10, 50)} | {
    "heun 25": {"sampler": ode.Heun(25)}
}
CONSISTENCY_SETTINGS = {f"{steps} calls": {"steps": steps} for steps in (1, 2, 4, 8)}
LATENT_SETTINGS = {name: SETTINGS[name] for name in ("ddim 10", "ddim 50", "dpm_solver_pp 20")}
ROMBACH = "Rombach, Blattmann, Lorenz, Esser & Ommer 2022"
HO = "Ho, Jain & Abbeel 2020, table 1 (L_simple)"

SYSTEMS = {
    "ddpm": System(
        family=ddpm,
        config=ddpm.Config(),
        paper="Ho, Jain & Abbeel 2020",
        options=Options(steps=3000),
        evaluate=functools.partial(evaluate, num_images=359, num_compared=359, settings=LONG_SETTINGS),
    ),
    "ddpm_fashion_mnist": System(
        family=ddpm,
        config=ddpm.Config(
            network=networks.UNet(patch=2),
            optimizer=Adam(1e-3, schedule=Cosine(decay_steps=8000), gradient_clip=1.0),
            sampler=samplers.DPMSolverPP(10),
        ),
        paper="Ho, Jain & Abbeel 2020",
        options=Options(data="fashion_mnist", steps=8000, batch_size=64, sample_every=2000),
        evaluate=functools.partial(evaluate, num_images=300, num_compared=1000, settings=SETTINGS),
    ),
    "edm": System(
        family=edm,
        config=edm.Config(),
        paper="Karras, Aittala, Aila & Laine 2022",
        options=Options(steps=3000),
        evaluate=functools.partial(evaluate_edm, num_compared=359, settings=EDM_SETTINGS),
    ),
    "rectified_flow": System(
        family=flow_matching,
        config=flow_matching.Config(),
        paper="Liu, Gong & Liu 2023; Lipman et al. 2023",
        options=Options(steps=3000),
        evaluate=functools.partial(evaluate_flow, num_images=359, num_compared=359, settings=FLOW_SETTINGS),
    ),
    "consistency": System(
        family=consistency,
        config=consistency.Config(
            network=networks.MLP((256, 256, 256)), curriculum=curricula.Doubling(10, 160, steps=10_000)
        ),
        paper="Song & Dhariwal 2024",
        options=Options(steps=10_000),
        evaluate=functools.partial(evaluate_consistency, num_compared=359, settings=CONSISTENCY_SETTINGS),
    ),
    "latent": System(
        family=latent,
        config=latent.Config(
            first=vq_vae.Config(
                encoder=ResidualEncoder((64,)), decoder=ResidualDecoder((64,)), num_codes=256, code_size=3
            ),
            prior=ddpm.Config(network=networks.UNet()),
        ),
        paper=ROMBACH,
        options=Options(steps=3000),
        before=functools.partial(first_stage, steps=1000),
        evaluate=functools.partial(evaluate_latent, num_compared=359, settings=LATENT_SETTINGS),
    ),
    "latent_fashion_mnist": System(
        family=latent,
        config=latent.Config(
            first=vq_vae.Config(
                encoder=ResidualEncoder((32, 64)),
                decoder=ResidualDecoder((64, 32)),
                num_codes=512,
                code_size=4,
            ),
            prior=ddpm.Config(network=networks.UNet()),
        ),
        paper=ROMBACH,
        options=Options(
            data="fashion_mnist",
            steps=4000,
            batch_size=64,
            num_samples=2000,
        ),
        before=functools.partial(first_stage, steps=3000),
        evaluate=functools.partial(evaluate_latent, num_compared=1000, settings=LATENT_SETTINGS),
    ),
    "ddpm_cifar10": System(
        family=ddpm,
        config=ddpm.Config(
            network=networks.UNet(
                width=128,
                multipliers=(1, 2, 2, 2),
                num_blocks=2,
                attention_sizes=(16,),
                num_groups=32,
                dropout=0.1,
            ),
            flip=True,
            optimizer=Adam(2e-4, schedule=Constant(warmup_steps=5000), gradient_clip=1.0),
            average=Average(0.9999),
            sampler=samplers.DDPM(1000),
        ),
        paper="Ho, Jain & Abbeel 2020",
        options=Options(
            data="cifar10", steps=800_000, log_every=1000, sample_every=20_000, save_every=20_000
        ),
        evaluate=functools.partial(evaluate, num_images=10_000, num_compared=10_000, settings=SETTINGS),
        published={
            ("cifar10", "negative_elbo_bits_per_dim"): (3.75, HO),
        },
    ),
    # The authors report about two days on eight V100 GPUs, and 1.97 with augmented pictures, as ours are not.
    "edm_cifar10": System(
        family=edm,
        config=edm.Config(
            network=networks.UNet(
                width=128,
                multipliers=(2, 2, 2),
                num_blocks=4,
                attention_sizes=(16,),
                num_groups=32,
                dropout=0.13,
            ),
            optimizer=Adam(1e-3, schedule=Constant(warmup_steps=10_000_000 // 512)),
            average=Average(0.5 ** (512 / 500_000)),
        ),
        paper="Karras, Aittala, Aila & Laine 2022",
        options=Options(
            data="cifar10",
            steps=200_000_000 // 512,
            batch_size=512,
            log_every=1000,
            sample_every=10_000,
            save_every=10_000,
        ),
        evaluate=functools.partial(evaluate_edm, num_compared=10_000, settings=EDM_SETTINGS),
    ),
}

if __name__ == "__main__":
    main(SYSTEMS)
