"""Adaptive discriminator augmentation, for small data sets (Karras et al. 2020a).

Everything the discriminator sees is transformed at random, each transformation happening with probability p,
and p follows how far the discriminator overfits: with r the mean sign of its logits on real data, p rises
while r is above a target and falls while it is below. As long as p stays below about 0.8 the generator does
not learn the transformations themselves. All of them are linear in the image (bilinear where it is warped,
about mirrored borders), so gradients of any order pass.

Departs from the paper: no low-pass filter around the warps, which tell on small images less than they blur;
p is kept below 1.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen.fields import FiniteFloat, PositiveInt
from jaxgen.gan.augment import Augmentation
from jaxgen.types import Metrics

INTERVAL = 4
"""Steps whose signs are averaged before p moves."""


class Controller(NamedTuple):
    """What adaptive augmentation adds to a State."""

    probability: Array  # ()
    signs: Array  # (), sum of r over the steps since p last moved


def blit(key: Array, x: Array, p: Array) -> Array:
    """Mirror left and right; turn by a multiple of 90 degrees; move by whole pixels, at most an eighth."""
    flip, turn, move = _keys(key, 3)
    n, size = len(x), jnp.array(x.shape[1:3])
    sign = jnp.where(_happens(flip, n, p) & jax.random.bernoulli(flip[1], 0.5, (n,)), -1.0, 1.0)
    quarters = jnp.where(_happens(turn, n, p), jax.random.randint(turn[1], (n,), 0, 4), 0)
    cos, sin = (jnp.take(jnp.array(values), quarters) for values in ([1.0, 0, -1, 0], [0.0, 1, 0, -1]))
    share = jax.random.uniform(move[1], (n, 2), minval=-0.125, maxval=0.125)
    shift = jnp.where(_happens(move, n, p)[:, None], jnp.round(share * size), 0.0)
    matrix = _rows((cos, -sin), (sin, cos)) * jnp.stack([jnp.ones(n), sign], -1)[:, None]
    return warp(x, matrix, shift)


def geometry(key: Array, x: Array, p: Array) -> Array:
    """Scale, rotate, stretch, rotate again, and move, by any amount.

    Scales are 2^N(0, 0.2^2), angles even over the circle, and moves N(0, 1/8^2) of the size. Rotations happen
    with probability 1 - sqrt(1 - p) each.
    """
    scale, before, stretch, after, move = _keys(key, 5)
    n, size = len(x), jnp.array(x.shape[1:3])

    def factor(keys):
        return 2.0 ** jnp.where(_happens(keys, n, p), 0.2 * jax.random.normal(keys[1], (n,)), 0.0)

    def rotation(keys):
        happens = _happens(keys, n, 1 - jnp.sqrt(1 - p))
        angle = jnp.where(happens, jax.random.uniform(keys[1], (n,), minval=-jnp.pi, maxval=jnp.pi), 0.0)
        return _rows((jnp.cos(angle), -jnp.sin(angle)), (jnp.sin(angle), jnp.cos(angle)))

    whole, longer = factor(scale), factor(stretch)
    zoom = _rows((whole * longer, 0 * whole), (0 * whole, whole / longer))
    matrix = _product(rotation(after), _product(zoom, rotation(before)))
    share = 0.125 * jax.random.normal(move[1], (n, 2))
    return warp(x, matrix, jnp.where(_happens(move, n, p)[:, None], share * size, 0.0))


def color(key: Array, x: Array, p: Array) -> Array:
    """Brightness + N(0, 0.2^2), contrast x 2^N(0, 0.5^2), brightness reversed, hue turned, saturation x 2^N.

    Reversal leaves differences between channels, hue and saturation the mean over them; hue is for three
    channels. Grey images have neither of the last two.
    """
    brightness, contrast, reversal, hue, saturation = _keys(key, 5)
    n = len(x)

    def amount(keys, values, otherwise):
        return jnp.where(_happens(keys, n, p), values, otherwise)[:, None, None, None]

    normal = lambda keys: jax.random.normal(keys[1], (n,))
    x = x + amount(brightness, 0.2 * normal(brightness), 0.0)
    x = x * amount(contrast, 2.0 ** (0.5 * normal(contrast)), 1.0)
    x = x - 2 * amount(reversal, jax.random.bernoulli(reversal[1], 0.5, (n,)), 0.0) * x.mean(
        -1, keepdims=True
    )
    if x.shape[-1] == 3:
        angle = amount(hue, jax.random.uniform(hue[1], (n,), minval=-jnp.pi, maxval=jnp.pi), 0.0)
        across = (jnp.roll(x, 1, -1) - jnp.roll(x, -1, -1)) / np.sqrt(
            3
        )  # the axis (1, 1, 1) / sqrt 3 times x
        x = x + jnp.sin(angle) * across + (jnp.cos(angle) - 1) * (x - x.mean(-1, keepdims=True))
    if x.shape[-1] > 1:
        excess = amount(saturation, 2.0 ** normal(saturation), 1.0) - 1
        x = x + excess * (x - x.mean(-1, keepdims=True))
    return x


TRANSFORMATIONS: dict[str, Callable[[Array, Array, Array], Array]] = {
    "blit": blit,
    "geometry": geometry,
    "color": color,
}
"""By name: (key, images (B, H, W, C), probability ()) -> images; the identity at probability 0."""


def augment(key: Array, x: Array, names: Sequence[str], p: Array) -> Array:
    """Images (B, H, W, C) under the transformations named, each part of which happens with probability p."""
    for index, name in enumerate(names):
        x = TRANSFORMATIONS[name](jax.random.fold_in(key, index), x, p)
    return x


@dataclasses.dataclass(frozen=True)
class Adaptive(Augmentation):
    """Transformations that happen the more often the more the discriminator overfits."""

    transformations: tuple[Literal["blit", "geometry", "color"], ...] = ("blit", "geometry", "color")
    """Names of the transformations, in their order."""
    target: FiniteFloat = 0.6
    """Mean sign of the logits of real data that is held."""
    ramp: PositiveInt = 500_000
    """Real examples in which the probability rises from 0 to 1 at most."""

    def init(self) -> Controller:
        """Nothing happens yet."""
        return Controller(jnp.zeros(()), jnp.zeros(()))

    def __call__(self, key: Array, x: Array, state: Controller) -> Array:
        return augment(key, x, self.transformations, state.probability)

    def update(
        self, state: Controller, sign: Array, step: Array, batch_size: int
    ) -> tuple[Controller, Metrics]:
        """The controller after training step number `step`, and the probability to log.

        Every fourth step p moves, towards more if the mean `sign` of the four was above the target.
        """
        signs = state.signs + sign
        due = (step + 1) % INTERVAL == 0
        rate = INTERVAL * batch_size / self.ramp
        moved = state.probability + rate * jnp.sign(signs / INTERVAL - self.target)
        probability = jnp.where(due, jnp.clip(moved, 0.0, 1.0), state.probability)
        return Controller(probability, jnp.where(due, 0.0, signs)), {"augmentation_probability": probability}


def warp(x: Array, matrix: Array, shift: Array) -> Array:
    """Images (B, H, W, C) mapped about their centres by `matrix` (B, 2, 2), then moved by `shift` (B, 2).

    `shift` is in pixels, and rows come before columns. What comes in from outside is the image, mirrored at
    its borders.
    """
    centre = (jnp.array(x.shape[1:3]) - 1) / 2
    place = jnp.stack(jnp.meshgrid(*map(jnp.arange, x.shape[1:3]), indexing="ij"), -1)

    def one(image, matrix, shift):
        (a, b), (c, d) = matrix
        row, column = jnp.moveaxis(place - centre - shift, -1, 0)
        determinant = a * d - b * c
        source = [(d * row - b * column) / determinant, (a * column - c * row) / determinant]
        source = [axis + middle for axis, middle in zip(source, centre, strict=True)]
        sample = lambda channel: jax.scipy.ndimage.map_coordinates(channel, source, order=1, mode="mirror")
        return jax.vmap(sample, -1, -1)(image)

    return jax.vmap(one)(x, matrix, shift)


def _keys(key, count):
    """For each of `count` parts a key for whether it happens and one for how."""
    return jax.random.split(key, (count, 2))


def _happens(keys, n, p):
    return jax.random.uniform(keys[0], (n,)) < p


def _rows(first, second):
    return jnp.stack([jnp.stack(first, -1), jnp.stack(second, -1)], -2)


def _product(first, second):
    # Written out, since accelerators multiply matrices in few digits by default.
    return (first[:, :, :, None] * second[:, None]).sum(2)
