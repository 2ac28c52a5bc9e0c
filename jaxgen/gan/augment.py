"""Differentiable augmentation of what the discriminator sees, for small data sets (Zhao et al. 2020).

The same random transformations are applied to real and to generated images, while both players train, and
the generator's gradient passes through them. Every one is linear in the image, so gradients of any order do.
Noise on everything the discriminator sees is here, too.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen.fields import NonNegativeFloat, PositiveInt
from jaxgen.types import Metrics
from jaxgen.values import Value


def color(key: Array, x: Array) -> Array:
    """Brightness + U(-1/2, 1/2), saturation x U(0, 2), contrast x U(1/2, 3/2), for each image."""
    shift, saturation, contrast = jax.random.uniform(key, (3, len(x), 1, 1, 1))
    x = x + shift - 0.5
    x = _scale_about(x.mean(-1, keepdims=True), x, 2 * saturation)
    return _scale_about(x.mean((1, 2, 3), keepdims=True), x, contrast + 0.5)


def translation(key: Array, x: Array) -> Array:
    """Each image moved by up to an eighth of its size along both axes; 0 comes in from the border."""
    height, width = x.shape[1:3]
    reach = tuple(int(size / 8 + 0.5) for size in (height, width))
    padded = jnp.pad(x, ((0, 0), *((r, r) for r in reach), (0, 0)))
    limits = jnp.array([[2 * r + 1 for r in reach]])
    starts = jax.random.randint(key, (len(x), 2), 0, limits)
    crop = lambda image, start: jax.lax.dynamic_slice(image, (*start, 0), x.shape[1:])
    return jax.vmap(crop)(padded, starts)


def cutout(key: Array, x: Array) -> Array:
    """A rectangle of half the height and width of each image set to 0; its centre lies anywhere inside."""

    def covered(key, size):
        start = jax.random.randint(key, (len(x), 1), 0, size + 1) - size // 4
        place = jnp.arange(size)
        return (place >= start) & (place < start + size // 2)

    rows, columns = map(covered, jax.random.split(key), x.shape[1:3])
    return jnp.where(rows[:, :, None, None] & columns[:, None, :, None], 0.0, x)


AUGMENTATIONS: dict[str, Callable[[Array, Array], Array]] = {
    "color": color,
    "translation": translation,
    "cutout": cutout,
}
"""By name: (key, images (B, H, W, C)) -> images."""


class Augmentation(Value):
    """What all augmentations have: random maps of images, and a state in training if they need one."""

    def init(self) -> Any:
        """The state at first: none."""
        return {}

    def __call__(self, key: Array, x: Array, state: Any) -> Array:
        """Images (B, H, W, C) as the discriminator gets to see them."""
        raise NotImplementedError

    def update(self, state: Any, sign: Array, step: Array, batch_size: int) -> tuple[Any, Metrics]:
        """The state after training step `step`, in which the mean sign of the real logits was `sign`."""
        return state, {}


@dataclasses.dataclass(frozen=True)
class DiffAugment(Augmentation):
    """Transformations that always happen (Zhao et al. 2020)."""

    policy: tuple[Literal["color", "translation", "cutout"], ...] = ("color", "translation", "cutout")
    """Names of the transformations, in their order."""

    def __call__(self, key: Array, x: Array, state: Any = None) -> Array:
        for index, name in enumerate(self.policy):
            x = AUGMENTATIONS[name](jax.random.fold_in(key, index), x)
        return x


@dataclasses.dataclass(frozen=True)
class InstanceNoise(Value):
    """Normal noise on real and on generated data, which falls linearly to zero (Arjovsky & Bottou 2017)."""

    std: NonNegativeFloat = 0.1
    """Standard deviation of the noise at first."""
    steps: PositiveInt = 10_000
    """Training steps after which it is zero."""

    def __call__(self, key: Array, x: Array, step: Array) -> Array:
        """Data (B, ...) with the noise of training step number `step`."""
        std = self.std * jnp.maximum(1 - step / self.steps, 0.0)
        return x + std * jax.random.normal(key, x.shape)


def _scale_about(mean, x, factor):
    return mean + factor * (x - mean)
