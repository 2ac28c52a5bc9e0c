"""MADE: what its outputs see, and that they see it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.nn.masked import MADE, sees
from jaxgen.nn.mlp import MLP


def dependence(network, num_dims, num_context):
    """Whether output (i, p) depends on input j, and on a context, at random weights."""
    x, context = jnp.linspace(-1, 1, num_dims)[None], jnp.ones((1, num_context))
    given = (context,) if num_context else ()
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(network.init, jax.random.key(0), x, *given)
    params = jax.tree.map(lambda a: jnp.float32(rng.normal(size=a.shape)), shapes)
    run = lambda x, c: network.apply(params, x, *((c,) if num_context else ()))[0]
    of_x, of_context = jax.jit(jax.jacfwd(run, (0, 1)))(x, context)
    return np.abs(of_x[:, 0]) > 1e-9, np.abs(of_context[:, 0]) > 1e-9


@pytest.mark.parametrize("num_context", [0, 2])
def test_outputs_see_all_inputs_before_their_own_and_the_context(num_context):
    num_dims = 4
    of_x, of_context = dependence(MADE((16, 16), num_outputs=2 * num_dims), num_dims, num_context)
    expected = np.tril(np.ones((num_dims, num_dims), bool), -1).repeat(2, 0)
    np.testing.assert_array_equal(of_x, expected)
    assert of_context.all()


def test_one_input_sees_the_context_alone():
    of_x, of_context = dependence(MADE((8,), num_outputs=3), 1, 2)
    assert not of_x.any()
    assert of_context.all()


def test_outputs_are_zero_at_first():
    for network in (MADE((8,), num_outputs=6), MLP((8,), num_outputs=6)):
        x = jnp.ones((2, 3))
        np.testing.assert_array_equal(network.apply(network.init(jax.random.key(0), x), x), np.zeros((2, 6)))
    network = MLP((8,), zero_output=False, num_outputs=6)
    assert jnp.abs(network.apply(network.init(jax.random.key(0), x), x)).min() > 0


def test_options_do_what_they_say():
    x = jnp.ones((1, 3))
    for kind in (MADE, MLP):
        shapes = jax.eval_shape(kind((5, 7), num_outputs=3).init, jax.random.key(0), x)["params"]
        assert sorted(leaf.shape[0] for leaf in jax.tree.leaves(shapes) if leaf.ndim == 1) == [3, 5, 7]
        trained = jax.tree.map(lambda a: jnp.ones(a.shape), shapes)
        outputs = [
            kind((5, 7), activation, num_outputs=3).apply({"params": trained}, -x)
            for activation in ("relu", "silu", "tanh")
        ]
        assert len({float(y.sum()) for y in outputs}) == 3


def test_uneven_outputs_are_refused():
    with pytest.raises(ValueError, match="as many numbers for each of 3 inputs, not 4"):
        jax.eval_shape(MADE((8,), num_outputs=4).init, jax.random.key(0), jnp.ones((1, 3)))


def test_degrees():
    np.testing.assert_array_equal(sees((0, 1, 2), (0, 1)), [[True, True], [False, True], [False, False]])
