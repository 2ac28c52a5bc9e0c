"""Bijectors of images (B, H, W, C), and what makes flows of them that work at several scales.

`squeeze` trades size for channels, and `factored` lets half of the channels be noise as they are, so that the
layers after it have half as much to do (Dinh et al. 2017, sections 3.4 and 3.6). Half of what remains after
each squeeze leaves; at the end all of it has become one vector of noise (B, D), the largest scale first:

    shaped((28, 28, 1)) -> squeeze -> layers of (14, 14, 4) -> factored: half is noise, (14, 14, 2) goes on
                        -> squeeze -> layers of (7, 7, 8)   -> flattened: all is noise
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen import values
from jaxgen.flow import conditioned
from jaxgen.flow.bijectors import MIN_SCALE, Bijector, inverse_softplus, inverted, lu, no_change, sum_dims
from jaxgen.flow.transforms import Transform
from jaxgen.nn import patches

Shape = tuple[int, ...]
"""Of one image, (H, W, C)."""


# Shapes


def check(shape: Shape, num_squeezes: int) -> None:
    """Raises ValueError for what is no image, and for sides that cannot be halved so many times."""
    if len(shape) != 3:
        raise ValueError(f"a flow of images takes (height, width, channels), got {shape}")
    if num_squeezes < 1:
        raise ValueError(f"a flow of images needs at least one level, got {num_squeezes}")
    divisor = 2**num_squeezes
    for side in shape[:2]:
        if side % divisor:
            possible = (side & -side).bit_length() - 1
            fitting = -(-side // divisor) * divisor
            raise ValueError(
                f"a side of {side} can be squeezed {possible} times, not {num_squeezes}: pad to {fitting}, or"
                f" have at most {possible} levels"
            )


def squeezed(shape: Shape) -> Shape:
    """The shape of an image after `squeeze`."""
    height, width, channels = shape
    return height // 2, width // 2, 4 * channels


def halved(shape: Shape) -> Shape:
    """The shape of what goes on after `factored`."""
    return *shape[:2], shape[2] // 2


def shaped(shape: Shape) -> Bijector:
    """Vectors (B, D) as images."""

    def forward(params, x, context=None):
        del params, context
        return x.reshape(x.shape[0], *shape), no_change(x)

    def inverse(params, y, context=None):
        del params, context
        return y.reshape(y.shape[0], math.prod(shape)), no_change(y)

    return Bijector(_nothing, forward, inverse)


def flattened(shape: Shape) -> Bijector:
    """Images as vectors (B, D)."""
    return inverted(shaped(shape))


def squeeze() -> Bijector:
    """Squares of 2x2 pixels become positions, (B, H, W, C) -> (B, H/2, W/2, 4C). ValueError for odd sides."""

    def forward(params, x, context=None):
        del params, context
        check(x.shape[1:], 1)
        return patches.to_patches(x, 2), no_change(x)

    def inverse(params, y, context=None):
        del params, context
        return patches.from_patches(y, 2), no_change(y)

    return Bijector(_nothing, forward, inverse)


def factored(shape: Shape, rest: Bijector) -> Bijector:
    """Of images, the second half of the channels leaves, and `rest` makes vectors of the first half.

    The result (B, D) is what leaves, and then what `rest` gives. The parameters are those of `rest`. Raises
    ValueError for an odd number of channels.
    """
    if shape[2] % 2:
        raise ValueError(f"{shape[2]} channels have no halves: squeeze before")
    kept, leaving = shape[2] // 2, halved(shape)
    size = math.prod(leaving)

    def init(key, x=None, context=None):
        return rest.init(key, None if x is None else x[..., :kept], context)

    def forward(params, x, context=None):
        y, log_det = rest.forward(params, x[..., :kept], context)
        return jnp.concatenate([x[..., kept:].reshape(x.shape[0], size), y], -1), log_det

    def inverse(params, y, context=None):
        x, log_det = rest.inverse(params, y[:, size:], context)
        return jnp.concatenate([x, y[:, :size].reshape(y.shape[0], *leaving)], -1), log_det

    return Bijector(init, forward, inverse)


# Layers


def everywhere(bijector: Bijector) -> Bijector:
    """A bijector of vectors (B, C) at every position of images. It does not see the context.

    `everywhere(diagonal(C))` is the actnorm of Kingma & Dhariwal 2018, and `everywhere(rotation(C))` their
    invertible 1x1 convolution.
    """

    def init(key, x=None, context=None):
        del context
        return bijector.init(key) if x is None else bijector.init(key, _rows(x))

    def run(function, params, x):
        y, log_det = function(params, _rows(x))
        return y.reshape(x.shape), sum_dims(log_det.reshape(x.shape[:-1]))

    def forward(params, x, context=None):
        del context
        return run(bijector.forward, params, x)

    def inverse(params, y, context=None):
        del context
        return run(bijector.inverse, params, y)

    return Bijector(init, forward, inverse)


def rotation(num_dims: int) -> Bijector:
    """`lu` that begins as a random rotation.

    Any rotation is P L S U with a permutation P, signs S, and a positive diagonal of U. Without P and S, and
    with the signs moved through L, it is one of the same numbers in another order and with other signs: a
    rotation still, and `lu` has it without anything that training must leave as it is.
    """
    bijector = lu(num_dims)

    def init(key, x=None, context=None):
        del x, context
        matrix = jnp.linalg.qr(jax.random.normal(key, (num_dims, num_dims)))[0]
        _, lower, upper = jax.scipy.linalg.lu(matrix)
        sign = jnp.sign(jnp.diagonal(upper))
        lower, upper = sign[:, None] * lower * sign, sign[:, None] * upper
        raw = inverse_softplus(jnp.maximum(jnp.diagonal(upper) - MIN_SCALE, MIN_SCALE))
        return {"lower": jnp.tril(lower, -1), "upper": jnp.triu(upper, 1) + jnp.diag(raw)}

    return bijector._replace(init=init)


def checkerboard(shape: Shape, parity: Array | int) -> Array:
    """A mask of images that is True where row + column is even, or odd for an odd `parity`."""
    rows_and_columns = np.indices(shape[:2]).sum(0)[..., None]
    return jnp.broadcast_to((rows_and_columns + parity) % 2 == 0, shape)


def half_of_channels(shape: Shape, parity: Array | int) -> Array:
    """A mask of images that is True at the first half of the channels, or the second for an odd `parity`."""
    first = np.arange(shape[2]) < shape[2] // 2
    return jnp.broadcast_to(first == (parity % 2 == 0), shape)


def channel_coupling(network: nn.Module, transform: Transform, shape: Shape) -> Bijector:
    """The first half of the channels stays and is read by the network; the second half is transformed.

    Unlike `conditioned.coupling`, the network has to do with one half each. It does not see the context.
    Raises ValueError for an odd number of channels.
    """
    if shape[2] % 2:
        raise ValueError(f"{shape[2]} channels have no halves: squeeze before")
    kept = shape[2] // 2
    network = values.filled(network, num_outputs=kept * transform.num_parameters)

    def init(key, x=None, context=None):
        del context
        return conditioned.initial(network, key, halved(shape), 0, None if x is None else x[..., :kept])

    def run(function, params, x):
        seen = x[..., :kept]
        raw = conditioned.parameters(network, params, seen, None, 0, transform)
        moved, log_slope = function(raw, x[..., kept:])
        return jnp.concatenate([seen, moved], -1), sum_dims(log_slope)

    def forward(params, x, context=None):
        del context
        return run(transform.forward, params, x)

    def inverse(params, y, context=None):
        del context
        return run(transform.inverse, params, y)

    return Bijector(init, forward, inverse)


def _nothing(key: Array, x: Any = None, context: Any = None) -> tuple:
    del key, x, context
    return ()


def _rows(x):
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
