"""Networks whose outputs see only a part of their inputs: MADE (Germain et al. 2015).

Every unit has a degree, the number of inputs that it may depend on: input i has degree i = 1 ... D, a context
has degree 0, and a hidden unit sees units of at most its own degree. What is said of input i sees degrees
below i.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen.nn.mlp import Activation


class MaskedDense(nn.Module):
    """A dense layer some of whose weights are zero: those where the mask is False.

    With `num_groups` every output stands for so many, side by side.
    """

    in_degrees: tuple[int, ...]
    """Degrees of the inputs."""
    out_degrees: tuple[int, ...]
    """Degrees of the outputs: each sees inputs of at most its own degree."""
    num_groups: int = 1
    """Numbers for each entry of `out_degrees`."""
    zero: bool = False
    """Whether the weights are zero at first."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        mask = sees(self.in_degrees, self.out_degrees).repeat(self.num_groups, 1)
        start = nn.initializers.zeros if self.zero else nn.initializers.lecun_normal()
        kernel = self.param("kernel", start, mask.shape)
        bias = self.param("bias", nn.initializers.zeros, mask.shape[1:])
        return x @ jnp.where(mask, kernel, 0) + bias


class MADE(nn.Module):
    """Masked autoencoder: `num_outputs` / D numbers for each of D inputs, which see the inputs before it.

    The output is 0 at first. The degrees of hidden units are spread evenly from 1 to D - 1, or from 0 if
    there is a context, as units of degree 0 are all that the numbers for the first input may see.
    """

    widths: tuple[int, ...] = (128, 128)
    """Widths of the hidden layers; at least D, or some inputs are not seen by all that may see them."""
    activation: Activation = "silu"
    """Nonlinearity of the hidden layers."""
    num_outputs: int | None = None
    """Numbers that it gives for an example; filled in by the model."""

    @nn.compact
    def __call__(self, x: Array, *context: Array) -> Array:
        num_dims = x.shape[-1]
        num_outputs = num_dims if self.num_outputs is None else self.num_outputs
        if num_outputs % num_dims:
            raise ValueError(f"MADE gives as many numbers for each of {num_dims} inputs, not {num_outputs}")
        num_context = sum(c.shape[-1] for c in context)
        x = jnp.concatenate([*context, x], -1)
        degrees = (*(0,) * num_context, *range(1, num_dims + 1))
        smallest = 0 if num_context or num_dims == 1 else 1
        hidden = range(smallest, max(num_dims, smallest + 1))
        for width in self.widths:
            own = tuple(hidden[i * len(hidden) // width] for i in range(width))
            x = getattr(nn, self.activation)(MaskedDense(degrees, own)(x))
            degrees = own
        before = tuple(range(num_dims))  # output i + 1 sees degrees up to i
        return MaskedDense(degrees, before, num_outputs // num_dims, zero=True)(x)


def sees(in_degrees: Sequence[int], out_degrees: Sequence[int]) -> np.ndarray:
    """Whether an output sees an input, bool (inputs, outputs)."""
    return np.asarray(in_degrees)[:, None] <= np.asarray(out_degrees)
