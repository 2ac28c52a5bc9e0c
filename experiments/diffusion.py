"""Diffusion models: train, evaluate and picture one of them.

python experiments/diffusion.py ddpm
python experiments/diffusion.py ddpm --target v --schedule cosine
python experiments/diffusion.py ddpm_fashion_mnist
python experiments/diffusion.py edm
python experiments/diffusion.py rectified_flow --coupling optimal
python experiments/diffusion.py consistency
python experiments/diffusion.py edm_cifar10
python experiments/diffusion.py ddpm_cifar10 --extractor inception-v3:pt_inception-2015-12-05-6726825d.pth
python experiments/diffusion.py latent
python experiments/diffusion.py latent --network dit --width 64
python experiments/diffusion.py latent_fashion_mnist --start runs/my_vq_vae
"""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np

import jaxgen
from jaxgen import plot, shard
from jaxgen.autoencoder import vq_vae
from jaxgen.diffusion import consistency, ddpm, edm, flow_matching, latent, processes, schedules
from jaxgen.evaluation import likelihood, samples
from jaxgen.evaluation.metric import metric
from jaxgen.script import Options, System, main, sampler
from jaxgen.types import observed

COLUMNS = 10
BOUND_CALLS = 100


def evaluate(key, state, train, test, cfg, folder, num_images, num_compared, settings):
    """The bound on `num_images` test pictures; the Frechet distance of `num_compared` samples a setting.

    forward.png: a picture drowning under every schedule, one a row. backward.png: samples, one a row, from
    noise to the end. samplers.png: the same noise under every setting, one a row.
    """
    metrics = bound(key, state, test, cfg, num_images)
    if len(cfg.shape) != 3:
        return metrics
    save_forward(folder / "forward.png", key, test[:1]["image"], cfg)
    steps = min(100, cfg.num_steps)
    frames = ddpm.sample(key, state, 6, cfg, steps=steps, frames=min(COLUMNS, steps))[1]
    save_backward(folder / "backward.png", frames)
    possible = {name: options for name, options in settings.items() if options["steps"] <= cfg.num_steps}
    return metrics | compare(key, ddpm, state, train, test, cfg, folder, num_compared, possible)


def evaluate_edm(key, state, train, test, cfg, folder, num_compared, settings):
    """The loss on the test set, where 1 is Gaussian data; pictures and distances as `evaluate` has them."""
    loss = jax.jit(lambda batch: edm.loss(state.ema, batch, key, cfg)[0])
    metrics = {"loss": metric(loss(test[:2000]), "of Gaussian data", min(len(test), 2000))}
    if len(cfg.shape) != 3:
        return metrics
    frames = edm.sample(key, state, 6, cfg, steps=2 * COLUMNS, frames=COLUMNS)[1]
    save_backward(folder / "backward.png", frames)
    return metrics | compare(key, edm, state, train, test, cfg, folder, num_compared, settings)


def evaluate_flow(key, state, train, test, cfg, folder, num_images, num_compared, settings):
    """The likelihood of dequantised test pictures by the flow; pictures and distances as `evaluate` has them.

    Its divergence is estimated by one probe an example, in 20 steps of fourth order.
    """
    x = observed(test[:num_images])
    noise_key, probe_key = jax.random.split(key)
    images = len(cfg.shape) == 3
    if images and cfg.dequantize:
        x = x + flow_matching.PIXEL_STEP * (jax.random.uniform(noise_key, x.shape) - 0.5)
    density = jax.jit(lambda key, x: flow_matching.log_prob(state, x, cfg, steps=20, num_probes=1, key=key))
    parts = np.array_split(x, -(-len(x) // 100))
    nats = -np.concatenate([density(jax.random.fold_in(probe_key, i), part) for i, part in enumerate(parts)])
    metrics = {"nll_ode": metric(nats.mean(), "nats", len(x))}
    if not images:
        return metrics
    bits = likelihood.bits_per_dim(nats.mean(), x[0].size, flow_matching.PIXEL_STEP)
    metrics["nll_ode_bits_per_dim"] = metric(bits, "bits/dim, dequantised", len(x))
    return metrics | compare(key, flow_matching, state, train, test, cfg, folder, num_compared, settings)


def evaluate_consistency(key, state, train, test, cfg, folder, num_compared, settings):
    """Pictures of few calls and their distances, as `evaluate` has them."""
    if len(cfg.shape) != 3:
        return {}
    return compare(key, consistency, state, train, test, cfg, folder, num_compared, settings)


def first_stage(train, cfg, options, steps):
    """The config and a State around a trained first stage.

    With `--start` it is that of this run, of a latent diffusion or of one of its first stages; else it is
    trained now, for `steps` steps, in the folder `first` of the run.
    """
    key = jax.random.fold_in(jax.random.key(options.seed), 3)
    if options.start is None:
        first_cfg = latent.first_config(cfg)
        first = jaxgen.fit(
            latent.FIRST[cfg.first].family,
            first_cfg,
            train,
            steps=steps,
            batch_size=options.batch_size,
            key=key,
            run_dir=options.run_dir / "first",
            mesh=shard.mesh(fsdp=options.fsdp),
            chunk=options.chunk,
        )
    else:
        family, first_cfg, first = jaxgen.load(options.start)
        if first_cfg.shape != cfg.shape:
            raise ValueError(f"{options.start} is of data {first_cfg.shape}, and these are {cfg.shape}")
        if family is latent:
            return cfg, first
        found = latent.config(first_cfg)
        cfg = dataclasses.replace(cfg, first=found.first, first_options=found.first_options)
    return cfg, jax.jit(functools.partial(latent.around, cfg=cfg))(key, first, batch=train[:2000])


def evaluate_latent(key, state, train, test, cfg, folder, num_compared, settings):
    """The error of the first stage on the test set; pictures and distances as `evaluate` has them.

    Distances also of what the first stage draws by itself, without the diffusion, and of training pictures
    it reconstructs, which is as near as samples can come.
    """
    x, again = test[:2000]["image"], jax.jit(lambda x: latent.reconstruct(state, x, cfg))
    plot.save_pairs(folder / "reconstructions.png", x[:48], again(x[:48]))
    metrics = {"reconstruction_mse": metric(((again(x) - x) ** 2).mean(), "squared", len(x))}
    metrics["loss"] = metric(latent_loss(key, state, x, cfg), "squared, a dimension", len(x))
    frames = latent.sample(key, state, 6, cfg, steps=min(100, cfg.num_steps), frames=COLUMNS)[1]
    save_backward(folder / "backward.png", frames)
    family, first_cfg = latent.FIRST[cfg.first].family, latent.first_config(cfg)

    def alone(key, state, n, cfg):
        return family.sample(key, state.first, n, first_cfg)

    def reconstructed(key, state, n, cfg):
        rows = jax.random.choice(key, len(train), (n,), replace=False)
        return latent.reconstruct(state, jnp.asarray(train[:]["image"])[rows], cfg)

    metrics |= compare(key, latent, state, train, test, cfg, folder, num_compared, settings)
    for name, sample in {"first stage alone": alone, "reconstructions": reconstructed}.items():
        draw = sampler(types.SimpleNamespace(sample=sample), state, cfg)
        found = samples.measure(draw, train, test, num_compared, key=key)
        metrics |= {f"{metric}, {name}": found[metric] for metric in found if metric.startswith("frechet")}
    return metrics


def latent_loss(key, state, x, cfg):
    """The squared error of what the diffusion predicts from the codes of pictures."""
    batch = {"x": latent.encode(state, x, cfg)}
    return jax.jit(lambda batch: ddpm.loss(state.ema, batch, key, latent.prior(cfg))[1]["mse"])(batch)


def compare(key, family, state, train, test, cfg, folder, num_compared, settings):
    """Frechet distances of samples drawn by each of `settings`, {name: options of the family's sample}."""
    metrics, rows = {}, []
    for name, options in settings.items():
        sample = functools.partial(family.sample, **options)
        rows.append(jax.jit(lambda key, state, sample=sample: sample(key, state, COLUMNS, cfg))(key, state))
        draw = sampler(types.SimpleNamespace(sample=sample), state, cfg)
        found = samples.measure(draw, train, test, num_compared, key=key)
        metrics |= {f"{metric}, {name}": found[metric] for metric in found if metric.startswith("frechet")}
    plot.save_grid(folder / "samplers.png", np.concatenate(rows), COLUMNS)
    return metrics


def bound(key, state, test, cfg, num_images):
    """The negative bound on test data in nats and bits a dimension, from BOUND_CALLS terms an example."""
    x = observed(test[:num_images])
    calls = min(BOUND_CALLS, cfg.num_steps)
    compiled = jax.jit(lambda key, x: ddpm.elbo(key, state, x, cfg, num_terms=calls))
    parts = np.array_split(x, -(-len(x) // 100))
    nats = -np.concatenate([compiled(jax.random.fold_in(key, i), part) for i, part in enumerate(parts)])
    metrics = {"negative_elbo": metric(nats.mean(), "nats", len(x))}
    if cfg.levels:
        bits = likelihood.bits_per_dim(nats.mean(), x[0].size)
        metrics["elbo_bits_per_dim"] = metric(bits, "bits/dim", len(x))
    return metrics


def save_forward(path, key, image, cfg):
    """x_t of one picture at evenly spaced times, a row for each schedule."""
    times = np.linspace(0, cfg.num_steps - 1, COLUMNS).astype(int)
    noise = jnp.broadcast_to(jax.random.normal(key, image.shape), (COLUMNS, *cfg.shape))
    x = jnp.repeat(jnp.asarray(image), COLUMNS, 0)
    rows = [
        processes.q_sample(processes.gaussian(schedules.betas(name, cfg.num_steps)), x, times, noise)
        for name in schedules.SCHEDULES
    ]
    plot.save_grid(path, jnp.concatenate(rows), COLUMNS)


def save_backward(path, frames):
    """States (frames, N, H, W, C) on the way from noise to samples, a row for each sample."""
    plot.save_grid(path, frames.swapaxes(0, 1).reshape(-1, *frames.shape[2:]), len(frames))


SETTINGS = {
    f"{sampler} {steps}": {"sampler": sampler, "steps": steps}
    for sampler, steps in (
        *(("ddim", steps) for steps in (10, 20, 50, 100)),
        *(("dpm_solver_pp", steps) for steps in (10, 20, 50)),
        *(("heun", steps) for steps in (19, 49)),
    )
}
"""By network calls, of which Heun's method makes an odd number."""
LONG_SETTINGS = SETTINGS | {f"{name} 1000": {"sampler": name, "steps": 1000} for name in ("ddim", "ddpm")}
EDM_SETTINGS = {
    "heun 5": {"steps": 5},
    "heun 10": {"steps": 10},
    "heun 18": {"steps": 18},
    "heun 18, churn 10": {"steps": 18, "churn": 10.0},
    "ancestral 35": {"steps": 35, "sampler": "ancestral"},
}
FLOW_SETTINGS = {f"euler {steps}": {"method": "euler", "steps": steps} for steps in (1, 2, 5, 10, 50)} | {
    "heun 25": {"method": "heun", "steps": 25}
}
CONSISTENCY_SETTINGS = {f"{steps} calls": {"steps": steps} for steps in (1, 2, 4, 8)}
LATENT_SETTINGS = {name: SETTINGS[name] for name in ("ddim 10", "ddim 50", "dpm_solver_pp 20")}
ROMBACH = "Rombach, Blattmann, Lorenz, Esser & Ommer 2022"
HO = "Ho, Jain & Abbeel 2020, table 1 (L_simple)"
KARRAS = "Karras, Aittala, Aila & Laine 2022, abstract (unconditional, augmented, 35 calls)"
INCEPTION = "frechet (inception-v3-6726825d)"

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
        config=ddpm.Config(patch=2, decay_steps=8000, sampler="dpm_solver_pp", sampling_steps=10),
        paper="Ho, Jain & Abbeel 2020",
        options=Options(data="fashion_mnist", steps=8000, batch_size=64, sample_every=2000),
        evaluate=functools.partial(evaluate, num_images=300, num_compared=1000, settings=SETTINGS),
    ),
    "edm": System(
        family=edm,
        config=edm.Config(data_std=0.75),
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
            data_std=0.75,
            network="mlp",
            hidden=(256, 256, 256),
            last_intervals=160,
            curriculum_steps=10_000,
        ),
        paper="Song & Dhariwal 2024",
        options=Options(steps=10_000),
        evaluate=functools.partial(evaluate_consistency, num_compared=359, settings=CONSISTENCY_SETTINGS),
    ),
    "latent": System(
        family=latent,
        config=latent.config(
            vq_vae.Config(network="conv", hidden=(64,), num_codes=256, code_size=3), network="unet"
        ),
        paper=ROMBACH,
        options=Options(steps=3000),
        before=functools.partial(first_stage, steps=1000),
        evaluate=functools.partial(evaluate_latent, num_compared=359, settings=LATENT_SETTINGS),
    ),
    "latent_fashion_mnist": System(
        family=latent,
        config=latent.config(
            vq_vae.Config(network="conv", hidden=(32, 64), num_codes=512, code_size=4), network="unet"
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
            width=128,
            multipliers=(1, 2, 2, 2),
            num_blocks=2,
            attention_sizes=(16,),
            num_groups=32,
            dropout=0.1,
            flip=True,
            learning_rate=2e-4,
            warmup_steps=5000,
            ema_decay=0.9999,
            sampler="ddpm",
            sampling_steps=1000,
        ),
        paper="Ho, Jain & Abbeel 2020",
        options=Options(
            data="cifar10", steps=800_000, log_every=1000, sample_every=20_000, save_every=20_000
        ),
        evaluate=functools.partial(evaluate, num_images=10_000, num_compared=10_000, settings=SETTINGS),
        published={
            ("cifar10", "elbo_bits_per_dim"): (3.75, HO),
            ("cifar10", INCEPTION): (3.17, HO),
        },
    ),
    # The authors report about two days on eight V100 GPUs, and 1.97 with augmented pictures, as ours are not.
    "edm_cifar10": System(
        family=edm,
        config=edm.Config(
            width=128,
            multipliers=(2, 2, 2),
            num_blocks=4,
            attention_sizes=(16,),
            num_groups=32,
            dropout=0.13,
            learning_rate=1e-3,
            warmup_steps=10_000_000 // 512,
            gradient_clip=float("inf"),
            ema_decay=0.5 ** (512 / 500_000),
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
        published={("cifar10", INCEPTION): (1.97, KARRAS)},
    ),
}

if __name__ == "__main__":
    main(SYSTEMS)
