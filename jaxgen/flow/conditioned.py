"""Couplings and autoregressive bijectors: a network reads a part of x and gives the `Transform` of the rest.

Both take a Linen module as the network, which is called with x, and a context (B, C) if there is one, and
returns `num_outputs` numbers for an example, or for each position of an image, which are filled in. They are
`transform.num_parameters` for each number of x.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jaxgen import values
from jaxgen.flow.bijectors import Bijector, sum_dims
from jaxgen.flow.transforms import Transform
from jaxgen.nn import variables


def coupling(network: nn.Module, transform: Transform, mask: Any, num_context: int = 0) -> Bijector:
    """What `mask` selects stays and is read by the network; the rest is transformed (Dinh et al. 2015, 2017).

    Args:
        mask: bool, of the shape of one example: (D,), or (H, W, C) such as a checkerboard's.
        num_context: length C of a context, 0 for none.

    Raises ValueError for data of one dimension, which leave nothing to read, and where `forward` or `inverse`
    is given a context without being built for it, or the other way round.
    """
    shape = jnp.shape(mask)
    if math.prod(shape) < 2:
        raise ValueError(
            f"a coupling needs at least two dimensions, got {shape}: use an autoregressive flow, such as maf"
        )
    network = values.filled(network, num_outputs=shape[-1] * transform.num_parameters)

    def init(key, x=None, context=None):
        seen = None if x is None else jnp.where(mask, x, 0)
        return initial(network, key, shape, num_context, seen, context)

    def raw(params, x, context):
        seen = jnp.where(mask, x, 0)
        return parameters(network, params, seen, context, num_context, transform)

    def run(function, params, x, context):
        moved, log_slope = function(raw(params, x, context), x)
        return jnp.where(mask, x, moved), sum_dims(jnp.where(mask, 0, log_slope))

    def forward(params, x, context=None):
        return run(transform.forward, params, x, context)

    def inverse(params, y, context=None):
        return run(transform.inverse, params, y, context)

    return Bijector(init, forward, inverse)


def autoregressive(network: nn.Module, transform: Transform, num_dims: int, num_context: int = 0) -> Bijector:
    """Each number is transformed by what the network says of those before it (Kingma et al. 2016).

    `forward` takes one call of the network, `inverse` one for each dimension.

    Args:
        network: such as `nn.masked.MADE`: what it gives for x_i depends on x_1 ... x_{i-1} alone.
        num_context: length C of a context, 0 for none.

    Raises ValueError where `forward` or `inverse` is given a context without being built for it, or the other
    way round.
    """
    network = values.filled(network, num_outputs=num_dims * transform.num_parameters)

    def init(key, x=None, context=None):
        del x, context
        return initial(network, key, (num_dims,), num_context)

    def forward(params, x, context=None):
        y, log_slope = transform.forward(parameters(network, params, x, context, num_context, transform), x)
        return y, sum_dims(log_slope)

    def inverse(params, y, context=None):
        def solve(index, carry):
            # One number at a time: what is not yet known stays 0, since garbage could overflow.
            x, log_slope = carry
            raw = parameters(network, params, x, context, num_context, transform)
            candidate, change = transform.inverse(raw, y)
            now = jnp.arange(num_dims) == index
            return jnp.where(now, candidate, x), jnp.where(now, change, log_slope)

        zeros = jnp.zeros(y.shape, jnp.promote_types(y.dtype, jnp.float32))
        x, log_slope = jax.lax.fori_loop(0, num_dims, solve, (zeros, zeros))
        return x, sum_dims(log_slope)

    return Bijector(init, forward, inverse)


def initial(
    network: nn.Module,
    key: Array,
    shape: tuple[int, ...],
    num_context: int,
    x: Array | None = None,
    context: Array | None = None,
) -> Any:
    """Parameters of a network of data of this shape; data x (B, *shape) set those that depend on data.

    Raises ValueError for a network with more than parameters, such as one with BatchNorm or Dropout: a
    bijector is a function of parameters alone.
    """
    if x is None:
        x, context = jnp.zeros((1, *shape)), jnp.zeros((1, num_context))
    return variables.parameters(network, key, x, *((context,) if num_context else ()))


def parameters(
    network: nn.Module, params: Any, x: Array, context: Array | None, num_context: int, transform: Transform
) -> Array:
    """What the network gives for x (B, ...), (B, ..., num_parameters), float32 at least."""
    check_context(context, num_context)
    given = () if context is None else (context,)
    output: Any = variables.apply(network, params, x, *given)
    raw = output.reshape(*x.shape, transform.num_parameters)
    return raw.astype(jnp.promote_types(raw.dtype, jnp.float32))


def check_context(context: Array | None, num_context: int) -> None:
    """Raises ValueError for a context where none is known, none where one is, and one of another length."""
    length = 0 if context is None else context.shape[-1]
    if context is None and num_context:
        raise ValueError(f"this flow was built for a context of {num_context} numbers: none is given")
    if length != num_context:
        built = f"a context of {num_context}" if num_context else "no context"
        raise ValueError(f"this flow was built for {built}: it cannot take one of {length} numbers")
