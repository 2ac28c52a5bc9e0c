"""What has to be trained before a model that is built on it."""

import dataclasses
import functools
from typing import Any

import jax

import jaxgen
from jaxgen.diffusion import latent
from jaxgen.run import shard


def first_stage(
    train: Any, cfg: latent.Config, options: Any, steps: int
) -> tuple[latent.Config, latent.State]:
    """The config and a State of latent diffusion around a trained first stage: a `Before` of a `System`.

    With `--start` it is that of this run, of a latent diffusion or of one of its first stages; else it is
    trained now, for `steps` steps, in the folder `first` of the run.

    Raises ValueError if the data of the run to start from have another shape.
    """
    key = jax.random.fold_in(jax.random.key(options.seed), 3)
    if options.start is None:
        first = jaxgen.fit(
            latent.family_of(cfg.first),
            latent.first_config(cfg),
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
        cfg = dataclasses.replace(cfg, first=first_cfg)
    return cfg, jax.jit(functools.partial(latent.around, cfg=cfg))(key, first, batch=train[:2000])
