"""The causal transformer: what a token sees, and that a sequence read token by token gives the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.nn.attention import attend
from jaxgen.nn.causal import Transformer, rotated
from tests.flow.check import in_float64, shaken

NETWORK = Transformer(8, 2, 2, num_outputs=3)


def started(network=NETWORK, scale=0.5):
    params = jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, 5, 2)), jnp.zeros((1, 4)))
    return shaken(params, scale)


def inputs():
    rng = np.random.default_rng(0)
    return jnp.float32(rng.normal(size=(3, 5, 2))), jnp.float32(rng.normal(size=(3, 4)))


@pytest.mark.slow
def test_a_mask_hides_keys():
    """What attention gives is that of the keys alone that a query sees."""
    q, k, v = (jax.random.normal(jax.random.key(i), (2, 3, 2, 4)) for i in range(3))
    found = attend(q, k, v, jnp.tril(jnp.ones((3, 3), bool)))
    for place in range(3):
        alone = attend(q[:, place : place + 1], k[:, : place + 1], v[:, : place + 1])
        np.testing.assert_allclose(found[:, place : place + 1], alone, rtol=1e-5, atol=1e-6)


def test_places_turn_numbers_as_points_of_the_plane():
    x, places = jax.random.normal(jax.random.key(0), (2, 4, 1, 6)), jnp.array([0, 1, 5, 300])
    turn = np.exp(1j * np.asarray(places)[:, None, None] * 10_000.0 ** (-np.arange(3) / 3))
    expected = (np.asarray(x[..., :3]) + 1j * np.asarray(x[..., 3:])) * turn
    np.testing.assert_allclose(
        rotated(x, places), np.concatenate([expected.real, expected.imag], -1), atol=1e-4
    )


@pytest.mark.slow
def test_a_token_sees_itself_and_all_before():
    params, (x, context) = started(), inputs()
    forward = lambda x: NETWORK.apply(params, x[None], context[:1])[0][0]
    jacobian = jnp.abs(jax.jit(jax.jacfwd(forward))(x[0])).sum((1, 3))
    np.testing.assert_array_equal(jacobian > 1e-6, np.tril(np.ones((5, 5), bool)))


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 2])
def test_read_in_steps_it_gives_the_same(step):
    with jax.enable_x64(True):
        params, (x, context) = in_float64((started(), inputs()))
        whole, none = NETWORK.apply(params, x, context)
        assert none is None
        cache, found = NETWORK.empty_cache(3, 6, x.dtype), []
        params["params"]["places"] = jnp.pad(params["params"]["places"], ((0, 1), (0, 0)))
        read = jax.jit(lambda x, cache, start: NETWORK.apply(params, x, context, cache=cache, start=start))
        for start in range(0, 5, step):
            output, cache = read(x[:, start : start + step], cache, start)
            found.append(output)
        np.testing.assert_allclose(jnp.concatenate(found, 1), whole, atol=1e-12)


@pytest.mark.slow
def test_it_is_zero_at_first_and_reads_its_context():
    params, (x, context) = started(scale=0.0), inputs()
    assert not NETWORK.apply(params, x, context)[0].any()
    params = started()
    outputs = [NETWORK.apply(params, x, c)[0] for c in (context, -context)]
    assert (jnp.abs(outputs[0] - outputs[1]).max(2) > 1e-3).all()


@pytest.mark.slow
def test_half_precision_computes_in_it_and_gives_float32():
    half = NETWORK.clone(dtype="bfloat16")
    params, (x, context) = started(), inputs()
    output, cache = half.apply(params, x, context, cache=half.empty_cache(3, 5, x.dtype))
    assert output.dtype == jnp.float32
    assert {part.dtype for part in cache} == {jnp.dtype("bfloat16")}
    np.testing.assert_allclose(output, NETWORK.apply(params, x, context)[0], atol=0.2)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="3 heads do not divide 8 channels"):
        Transformer(8, 2, 3).init(jax.random.key(0), jnp.zeros((1, 5, 2)))
