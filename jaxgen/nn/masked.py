"""Networks whose outputs see only a part of their inputs: MADE (Germain et al. 2015).

Every unit has a degree, the number of inputs that it may depend on: input i has degree i = 1 ... D, a context
has degree 0, and a hidden unit sees units of at most its own degree. What is said of input i sees degrees
below i.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen.fields import PositiveInt
from jaxgen.nn.mlp import Activation


class MaskedDense(nn.Module):
    """A dense layer some of whose weights are zero: an output sees inputs of at most its own degree.

    Called with x (..., num_inputs) and the degrees of its inputs and outputs, which may be traced.
    """

    num_inputs: int
    """Numbers that it is given."""
    num_outputs: int
    """Numbers that it gives."""
    zero: bool = False
    """Whether the weights are zero at first."""

    def setup(self) -> None:
        start = nn.initializers.zeros if self.zero else nn.initializers.lecun_normal()
        self.kernel = self.param("kernel", start, (self.num_inputs, self.num_outputs))
        self.bias = self.param("bias", nn.initializers.zeros, (self.num_outputs,))

    def __call__(self, x: Array, in_degrees: Any, out_degrees: Any) -> Array:
        return x @ jnp.where(sees(in_degrees, out_degrees), self.kernel, 0) + self.bias


class MADE(nn.Module):
    """Masked autoencoder: `num_outputs` / D numbers for each of D inputs, which see the inputs before it.

    The output is 0 at first. The degrees of hidden units are spread evenly from 1 to D - 1, or from 0 if
    there is a context, as units of degree 0 are all that the numbers for the first input may see.
    """

    widths: tuple[PositiveInt, ...] = (128, 128)
    """Widths of the hidden layers; at least D, or some inputs are not seen by all that may see them."""
    activation: Activation = "silu"
    """Nonlinearity of the hidden layers."""
    num_outputs: PositiveInt | None = None
    """Numbers that it gives for an example; filled in by the model."""

    @nn.compact
    def __call__(self, x: Array, *context: Array) -> Array:
        num_dims = x.shape[-1]
        num_outputs = num_dims if self.num_outputs is None else self.num_outputs
        if num_outputs % num_dims:
            raise ValueError(f"MADE gives as many numbers for each of {num_dims} inputs, not {num_outputs}")
        num_context = sum(c.shape[-1] for c in context)
        x = jnp.concatenate([*context, x], -1)
        degrees = np.array((*(0,) * num_context, *range(1, num_dims + 1)))
        for width in self.widths:
            own = hidden_degrees(width, num_dims, num_context > 0)
            x = getattr(nn, self.activation)(MaskedDense(x.shape[-1], width)(x, degrees, own))
            degrees = own
        before = np.arange(num_dims).repeat(num_outputs // num_dims)  # output i + 1 sees degrees up to i
        return MaskedDense(x.shape[-1], num_outputs, zero=True)(x, degrees, before)


def hidden_degrees(width: int, num_dims: int, from_zero: bool) -> np.ndarray:
    """Degrees of `width` hidden units, spread evenly over 1 ... D - 1, or 0 ... D - 1; (width,)."""
    smallest = 0 if from_zero or num_dims == 1 else 1
    return smallest + np.arange(width) * max(num_dims - smallest, 1) // width


def sees(
    in_degrees: Sequence[int] | np.ndarray | Array, out_degrees: Sequence[int] | np.ndarray | Array
) -> Any:
    """Whether an output sees an input, bool (inputs, outputs)."""
    inner, outer = (d if isinstance(d, jax.Array) else np.asarray(d) for d in (in_degrees, out_degrees))
    return inner[:, None] <= outer
