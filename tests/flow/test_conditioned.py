"""Couplings with masks of any shape, and contexts where they belong."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.flow.conditioned import autoregressive, coupling
from jaxgen.flow.transforms import Affine
from jaxgen.nn.masked import MADE
from jaxgen.nn.mlp import MLP
from tests.flow.check import assert_bijector, initial, wide


class Pointwise(nn.Module):
    """A network of images."""

    num_outputs: int | None = None

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.num_outputs)(
            nn.tanh(nn.Dense(4)(jnp.pad(x, ((0, 0), (1, 0), (0, 0), (0, 0)))[:, :-1]))
        )


@pytest.mark.slow
def test_images_are_coupled_by_a_checkerboard():
    board = (np.indices((2, 2)).sum(0) % 2 == 0)[..., None]
    bijector = coupling(Pointwise(), Affine(), np.broadcast_to(board, (2, 2, 3)))
    params = initial(bijector, 0.1)
    x = wide(12)[:40].reshape(-1, 2, 2, 3)
    assert_bijector(bijector, params, x)
    y, _ = jax.jit(bijector.forward)(params, x)
    np.testing.assert_array_equal((y != x).any((0, 3)), ~board[..., 0])


@pytest.mark.parametrize("kind", ["coupling", "autoregressive"])
def test_a_context_is_used_and_refused_where_there_was_none(kind):
    make = {
        "coupling": lambda n: coupling(MLP((8,)), Affine(), jnp.array([True, False]), n),
        "autoregressive": lambda n: autoregressive(MADE((8,)), Affine(), 2, n),
    }[kind]
    x, context = wide(2)[:40], wide(2, seed=1)[:40]
    given, plain = make(2), make(0)
    params = initial(given, 0.1)
    assert_bijector(given, params, x, context)
    forward = jax.jit(given.forward)
    assert jnp.abs(forward(params, x, context)[0] - forward(params, x, 0 * context)[0]).max() > 0.01
    for direction in ("forward", "inverse"):
        with pytest.raises(ValueError, match="built for a context of 2 numbers: none is given"):
            getattr(given, direction)(params, x)
        with pytest.raises(ValueError, match="a context of 2: it cannot take one of 1 numbers"):
            getattr(given, direction)(params, x, context[:, :1])
        with pytest.raises(ValueError, match="built for no context: it cannot take one of 2 numbers"):
            getattr(plain, direction)(params, x, context)
