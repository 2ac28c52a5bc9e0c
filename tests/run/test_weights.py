"""Weights to and from files: every bit comes back, other programs read the names, mistakes are named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import weights
from jaxgen.autoencoder import vae
from jaxgen.nn.variables import Variables

TREE = {
    "encoder": Variables(
        {"Dense_0": {"kernel": jnp.arange(6.0).reshape(2, 3)}}, {"batch_stats": jnp.ones(3)}
    ),
    "half": jnp.asarray([1.5, -2.0], jnp.bfloat16),
    "parts": (jnp.zeros((), jnp.int32), jnp.asarray(1.0 / 3)),
}
NAMES = {"encoder/params/Dense_0/kernel", "encoder/stats/batch_stats", "half", "parts/0", "parts/1"}


@pytest.fixture(params=[".npz", ".safetensors"])
def path(request, tmp_path):
    if request.param == ".safetensors":
        pytest.importorskip("safetensors")
    return tmp_path / f"weights{request.param}"


def test_every_bit_comes_back_into_the_same_tree(path):
    weights.save(path, TREE)
    again = weights.load(path, like=jax.eval_shape(lambda: TREE))
    assert jax.tree.structure(again) == jax.tree.structure(TREE)
    for old, new in zip(jax.tree.leaves(TREE), jax.tree.leaves(again), strict=True):
        assert old.dtype == new.dtype
        np.testing.assert_array_equal(old, new)


def test_other_programs_find_the_arrays_by_their_paths(path):
    weights.save(path, TREE)
    if path.suffix == ".npz":
        found = dict(np.load(path))
    else:
        from safetensors.flax import load_file

        found = load_file(str(path))
    assert set(found) == NAMES
    np.testing.assert_array_equal(found["encoder/params/Dense_0/kernel"], [[0, 1, 2], [3, 4, 5]])


def test_a_model_of_loaded_weights_is_the_same(path):
    cfg = vae.Config(num_latents=2)
    one, other = (vae.init(jax.random.key(seed), cfg) for seed in (0, 1))
    weights.save(path, one.params)
    other = other._replace(params=weights.load(path, like=other.params))
    x = jnp.zeros((2, 8, 8, 1))
    np.testing.assert_array_equal(vae.encode(one, x, cfg), vae.encode(other, x, cfg))


def test_other_weights_are_named(path):
    weights.save(path, {"a": jnp.zeros((2, 3)), "b": jnp.zeros(2)})
    for like, words in (
        (
            {"a": jnp.zeros((3, 2)), "b": jnp.zeros(2)},
            r"a is of shape \(2, 3\) .* and of shape \(3, 2\) in the",
        ),
        ({"a": jnp.zeros((2, 3)), "c": jnp.zeros(2)}, r"c is absent in .* and of shape \(2,\) in the model"),
        ({"a": jnp.zeros((2, 3))}, r"b is of shape \(2,\) in .* and absent in the model"),
    ):
        with pytest.raises(ValueError, match=words):
            weights.load(path, like=like)
    with pytest.raises(ValueError, match="random keys are no weights"):
        weights.save(path, {"key": jax.random.key(0)})


def test_other_endings_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"ends in .npz or .safetensors, not 'vae.pt'"):
        weights.save(tmp_path / "vae.pt", TREE)
