"""What a trained model does with pictures that are there already, for any model(x_t, t) of `samplers`.

Filling in what is missing, going from one picture to another through their noise, and redrawing a picture
from the middle of the process.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen.diffusion import processes, samplers
from jaxgen.diffusion.processes import Gaussian
from jaxgen.latent import interpolate


def inpainting(
    model: samplers.Model, known: Array, mask: Array, process: Gaussian, target: str = "eps"
) -> samplers.Model:
    """The model whose every estimate of x_0 is `known` where `mask` is 1, for any sampler.

    Where it is 0 the model fills in what goes with the rest, which it sees at its true noise, so the known
    part of a sample comes out as given (compare Lugmayr et al. 2022, who exchange the noisy pictures). A
    replacement is not conditioning: what is filled in follows p(unknown | known) only roughly.

    Args:
        known: (B, ...) or broadcastable; anything where the mask is 0.
        mask: 1 or 0, broadcastable to the samples.
    """

    def filled(x, t):
        estimate = processes.convert(process, model(x, t), x, t, target, "x0")
        estimate = jnp.where(mask == 1, known, estimate)
        return processes.convert(process, estimate, x, t, "x0", target)

    return filled


def redraw(
    model: samplers.Model,
    x0: Array,
    process: Gaussian,
    timesteps: Any,
    strength: float,
    key: Array,
    *,
    target: str = "eps",
    clip: float | None = None,
) -> Array:
    """Pictures x0 (B, ...) noised to a `strength` in (0, 1] of the way and drawn back by DDIM, (B, ...).

    1 is a fresh sample, little strength changes little (Meng et al. 2022). Of `timesteps` the last
    ceil(strength S) are used. Raises ValueError for a strength outside (0, 1].
    """
    if not 0 < strength <= 1:
        raise ValueError(f"strength is the share of the noise to start from, in (0, 1], not {strength}")
    times = timesteps[-math.ceil(strength * len(timesteps)) :]
    start = jnp.full(x0.shape[0], int(times[0]))
    x = processes.q_sample(process, x0, start, jax.random.normal(key, x0.shape, x0.dtype))
    return samplers.ddim(model, x, process, times, target=target, clip=clip)


def between(
    model: samplers.Model,
    first: Array,
    second: Array,
    process: Gaussian,
    timesteps: Any,
    num: int,
    *,
    target: str = "eps",
    iterations: int = 1,
) -> Array:
    """`num` pictures from `first` to `second`, both (B, ...), ends included, (num, B, ...).

    Both are turned to noise by inverting DDIM, the noises joined by an arc, and its points drawn back (Song,
    Meng & Ermon 2021). `iterations` are those of `samplers.ddim_inversion`.
    """
    both = jnp.concatenate([first, second])
    noise = samplers.ddim_inversion(model, both, process, timesteps, target=target, iterations=iterations)
    start, end = noise.reshape(2, len(first), -1)
    x = interpolate.path(start, end, num, interpolate.slerp).reshape(-1, *first.shape[1:])
    return samplers.ddim(model, x, process, timesteps, target=target).reshape(num, *first.shape)
