"""What is checked of every bijector: it inverts itself, and its log_det is that of its Jacobian."""

import functools

import jax
import jax.numpy as jnp
import numpy as np


def initial(bijector, scale=0.05, seed=7):
    """Its first parameters with noise added, since many a bijector begins as the identity."""
    return shaken(jax.jit(bijector.init)(jax.random.key(0)), scale, seed)


def shaken(params, scale=0.1, seed=7):
    """Parameters with noise added."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: a + jnp.float32(scale * rng.normal(size=a.shape)), params)


def wide(num_dims, seed=0):
    """Points near 0, far away, and very far away, (60, num_dims) float32."""
    x = np.random.default_rng(seed).normal(size=(60, num_dims))
    return jnp.float32(x * np.repeat([1.0, 10.0, 100.0], 20)[:, None])


def in_float64(tree):
    return jax.tree.map(lambda a: jnp.asarray(np.asarray(a), jnp.float64), tree)


def assert_bijector(bijector, params, x, context=None):
    """In float64 it inverts itself to 1e-10 of the largest number of x and y, and its log_dets are right.

    They are those of the Jacobians, forward's in forward mode and inverse's in reverse mode, at every tenth
    point.
    """

    def determinants(params, x, y, context):
        for direction, jacobian, point in (("forward", jax.jacfwd, x), ("inverse", jax.jacrev, y)):
            run = lambda a, c, d=direction: getattr(bijector, d)(
                params, a[None], None if c is None else c[None]
            )
            rows = jax.vmap(jacobian(lambda a, c, run=run: run(a, c)[0][0].ravel()))(point, context)
            yield jnp.linalg.slogdet(rows.reshape(len(point), rows.shape[1], -1))[1]

    @jax.jit
    def run(params, x, context):
        y, back, *log_dets = there_and_back(bijector, params, x, context)
        some = (None if a is None else a[::10] for a in (x, y, context))
        return y, back, log_dets, list(determinants(params, *some))

    with jax.enable_x64(True):
        params, x, context = in_float64((params, x, context))
        y, back, log_dets, expected = run(params, x, context)
        assert_close(x, y, back, *log_dets, tolerance=1e-10)
        for found, of_jacobian in zip(log_dets, expected, strict=True):
            np.testing.assert_allclose(found[::10], of_jacobian, rtol=1e-8, atol=1e-8)


def assert_inverts(bijector, params, x, context=None):
    """In float32 it inverts itself to 1e-5 of the largest number of x and y."""
    found = jax.jit(functools.partial(there_and_back, bijector))(params, x, context)
    assert_close(x, *found, tolerance=1e-5)


def there_and_back(bijector, params, x, context):
    """y, the inverse of y, and the log_dets of both."""
    y, log_det = bijector.forward(params, x, context)
    back, back_log_det = bijector.inverse(params, y, context)
    return y, back, log_det, back_log_det


def assert_close(x, y, back, log_det, back_log_det, tolerance):
    assert log_det.shape == (len(x),)
    assert log_det.dtype == back.dtype == x.dtype
    largest = lambda a: jnp.abs(a.reshape(len(x), -1)).max(1)
    size = 1 + jnp.maximum(largest(x), largest(y))
    np.testing.assert_array_less(largest(back - x), tolerance * size)
    np.testing.assert_array_less(jnp.abs(log_det + back_log_det), tolerance * size)


def mass(log_prob, limit=8.0, count=400):
    """The integral of a density of the plane over [-limit, limit]^2, by the midpoint rule."""
    edge = 2 * limit / count
    ticks = -limit + edge * (jnp.arange(count) + 0.5)
    points = jnp.stack(jnp.meshgrid(ticks, ticks), -1).reshape(-1, 2)
    return float(jnp.exp(jax.jit(log_prob)(points)).sum() * edge**2)
