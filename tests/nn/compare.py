"""What the tests of layers share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

# The code runs once on a few numbers: LLVM's optimizations would take most of the time.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def normal(seed, *shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def assert_close(actual, desired, rtol=1e-11):
    """Leaf by leaf, relative to one more than the largest entry."""

    def compare(path, a, b):
        limit = rtol * (1 + np.abs(b).max())
        np.testing.assert_allclose(a, b, rtol=0, atol=limit, err_msg=jax.tree_util.keystr(path))

    jax.tree_util.tree_map_with_path(compare, actual, desired)
