"""What has to be trained before a model that is built on it."""

import dataclasses
import functools
import sys
from typing import Any

import jax

import jaxgen
from jaxgen.run import shard


def first_stage(train: Any, cfg: Any, options: Any, steps: int) -> tuple[Any, Any]:
    """The config and a State of a model of codes around a trained first stage: a `Before` of a `System`.

    The model is of a family with `first_config` and `around`: latent diffusion, or a prior of a VQ-VAE's
    codes. With `--start` it is that of this run, of such a model or of one of its first stages; else the
    first stage is trained now, for `steps` steps, in the folder `first` of the run.

    Raises ValueError if the data of the run to start from have another shape, or if the model cannot be built
    around its first stage, which is found out before that is trained.
    """
    key = jax.random.fold_in(jax.random.key(options.seed), 3)
    model = sys.modules[type(cfg).__module__]
    if options.start is None:
        jax.eval_shape(lambda: model.init(key, cfg))
        first = jaxgen.fit(
            sys.modules[type(cfg.first).__module__],
            model.first_config(cfg),
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
        if family is model:
            return cfg, first
        cfg = dataclasses.replace(cfg, first=first_cfg)
    return cfg, jax.jit(functools.partial(model.around, cfg=cfg))(key, first, batch=train[:2000])
