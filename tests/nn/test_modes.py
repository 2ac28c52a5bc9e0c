"""Every layer in both modes of differentiation, to the third order, wherever JAX may run it.

The oracle is the same network with plain convolutions and normalizations, which JAX differentiates itself.
"""

import contextlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxgen.nn import attention, conv, norm, normalize, overlap_add, trilinear
from jaxgen.nn.dit import DiT
from jaxgen.nn.unet import UNet
from tests.nn.compare import assert_close, jit, normal


def plain_normalize(x, scale, bias, axes, num_groups, epsilon, dtype):
    wide = normalize.widen(x)
    groups = wide.reshape(*x.shape[:-1], num_groups, -1)
    axes = (*axes, groups.ndim - 1)
    mean, variance = groups.mean(axes, keepdims=True), groups.var(axes, keepdims=True)
    y = ((groups - mean) / jnp.sqrt(variance + epsilon)).reshape(x.shape) * scale + bias
    spread = lambda a: jnp.repeat(a[..., 0], x.shape[-1] // num_groups, -1)
    return y.astype(dtype), spread(mean), spread(variance)


@contextlib.contextmanager
def plain():
    """Plain convolutions and normalizations in all of `jaxgen.nn`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trilinear, "convolve", trilinear._xla)
        patch.setattr(norm, "normalize", plain_normalize)
        yield


class Few(nn.Module):
    """Every primitive."""

    @nn.compact
    def __call__(self, x):
        x = norm.GroupNorm(2)(conv.Conv(4, (3, 3), 2)(x))
        return conv.ConvTranspose(2, (4, 4), (2, 2))(jnp.sin(x))


def setting(net, x, *rest):
    """A loss of (params, x) that is a sum over examples, a point and a direction."""
    rng = np.random.default_rng(0)
    drawn = lambda tree: jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape) / 2, jnp.float32), tree)
    shapes = jax.eval_shape(net.init, jax.random.key(0), x, *rest)
    variables = {name: drawn(tree) for name, tree in shapes.items()}
    params = variables.pop("params")

    def loss(params, x):
        mutable = ["batch_stats"] if "batch_stats" in variables else []
        y, state = net.apply({**variables, "params": params}, x, *rest, mutable=mutable)
        weights = jnp.arange(1.0, 1 + y.shape[-1])
        return jnp.sum(jnp.sin(y) * weights) + sum(jnp.sum(jnp.sin(a)) for a in jax.tree.leaves(state))

    return loss, (params, x), drawn((params, x))


def along(function, direction):
    return lambda *point: jax.jvp(function, point, direction)[1]


def gradient_and_curvature(loss, point, direction):
    """The gradient and its derivative in the direction."""
    return jax.jvp(jax.grad(loss, (0, 1)), point, direction)


def derivatives(loss, point, direction):
    gradient, curvature = gradient_and_curvature(loss, point, direction)
    third = along(along(jax.grad(loss, (0, 1)), direction), direction)(*point)
    squared = lambda *point: sum(jnp.sum(a**2) for a in jax.tree.leaves(jax.grad(loss, (0, 1))(*point)))
    penalty = jax.grad(squared, (0, 1))(*point)
    return {"gradient": gradient, "curvature": curvature, "third": third, "penalty": penalty}


def other_ways(loss, point, direction):
    """To some of the same; the value and the slope in the direction besides."""
    value, slope = jax.jvp(loss, point, direction)
    _, linear = jax.linearize(jax.grad(loss, (0, 1)), *point)
    return {
        "value": value,
        "slope": slope,
        "curvature, linearized": linear(*direction),
        "curvature, backward through forward": jax.grad(along(loss, direction), (0, 1))(*point),
    }


def check_orders(found, ways, expected, value, direction):
    assert_close(found, expected, 1e-4)
    products = jax.tree.map(lambda a, b: jnp.vdot(a, b), expected["gradient"], direction)
    curvature = expected["curvature"]
    expected = {"value": value, "slope": sum(jax.tree.leaves(products))}
    assert_close(ways, {**expected, **{name: curvature for name in ways if name.startswith("curv")}}, 1e-4)


IMAGES = normal(1, 8, 4, 4, 2)
LOSS, POINT, DIRECTION = setting(Few(), IMAGES)


@pytest.fixture(scope="module")
def expected():
    with plain():
        loss, point, direction = setting(Few(), IMAGES)
        found = jit(lambda *args: (derivatives(loss, *args), loss(*args[0])))(point, direction)
    # Small numbers would let everything pass.
    assert all(np.abs(a).max() > 0.1 for a in jax.tree.leaves(found))
    return found


@pytest.mark.slow
def test_every_order_in_both_modes(expected):
    both = jit(lambda *args: (derivatives(LOSS, *args), other_ways(LOSS, *args)))(POINT, DIRECTION)
    check_orders(*both, *expected, DIRECTION)


@pytest.mark.slow
def test_example_by_example_inside_loop_conditional_and_checkpoint(expected):
    """Inside `scan`, `cond`, `vmap` over examples and `checkpoint`; outside of `vmap` as well."""

    def step(total, point):
        params, x = point
        each = lambda loss: lambda params, x: jax.vmap(loss, (None, 0))(params, x[:, None]).sum()
        single = jax.checkpoint(each(LOSS))
        within = jax.vmap(lambda x, v: gradient_and_curvature(LOSS, (params, x), (DIRECTION[0], v)))
        sums = lambda pair: (jax.tree.map(lambda a: a.sum(0), pair[0]), pair[1][:, 0])
        run = lambda: (
            gradient_and_curvature(single, point, DIRECTION),
            tuple(map(sums, within(x[:, None], DIRECTION[1][:, None]))),
        )
        return lax.cond(total > 0, run, lambda: jax.tree.map(jnp.zeros_like, jax.eval_shape(run))), None

    def looped(point):
        body = lambda total, point: (total, step(total, point)[0])
        return lax.scan(body, 1.0, jax.tree.map(lambda a: a[None], point))[1]

    outside, inside = jax.tree.map(lambda a: a[0], jit(looped)(POINT))
    exact = tuple(expected[0][name] for name in ("gradient", "curvature"))
    assert_close(outside, exact, 1e-4)
    assert_close(inside, exact, 1e-4)


def test_examples_over_devices(expected):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    point, direction = jax.device_put((POINT, DIRECTION), ((whole, split), (whole, split)))
    run = jit(lambda *args: gradient_and_curvature(LOSS, *args))
    compiled = run.lower(point, direction).compile()
    assert_close(compiled(point, direction), tuple(expected[0][n] for n in ("gradient", "curvature")), 1e-4)
    # The batch is summed over where it lies, never gathered.
    assert "all-gather(" not in compiled.as_text()


def test_examples_over_devices_by_shard_map(expected, monkeypatch):
    monkeypatch.setattr(overlap_add, "BLOCK_BYTES", 400)  # so that the maps loop over their examples
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    specs = PartitionSpec(), PartitionSpec("data")
    local = lambda *args: gradient_and_curvature(LOSS, *args)
    run = jit(jax.shard_map(local, mesh=mesh, in_specs=(specs, specs), out_specs=(specs, specs)))
    assert run.lower(POINT, DIRECTION).as_text().count("stablehlo.while") > 2
    # Parameters vary over no axis, so their gradients are summed over all.
    found = run(POINT, DIRECTION)
    assert_close(found, tuple(expected[0][n] for n in ("gradient", "curvature")), 1e-4)


LAYERS = {
    "conv": (conv.Conv(3, (3, 2), (2, 1), kernel_dilation=(1, 2)), IMAGES[:2]),
    "transposed conv": (conv.ConvTranspose(3, (3, 4), (2, 2), 1), IMAGES[:2]),
    "upsampling conv": (conv.UpsampleConv(3, (3, 3)), IMAGES[:2]),
    "conv of lines": (conv.Conv(3, 4, padding="CAUSAL"), IMAGES[:2, 0]),
    "batch norm": (norm.BatchNorm(False), IMAGES),
    "batch norm by running averages": (norm.BatchNorm(True, use_bias=False), IMAGES),
    "group norm": (norm.GroupNorm(2), normal(2, 2, 3, 3, 4)),
    "instance norm": (norm.InstanceNorm(use_scale=False), IMAGES),
    "spectral norm": (norm.SpectralNorm(conv.Conv(3, (3, 3))), IMAGES[:2]),
    "attention": (attention.SelfAttention(2, 2), normal(2, 2, 2, 2, 4)),
}


def everywhere(loss, point, direction):
    """First and second derivatives as loops, conditionals, `vmap` and `hessian` take them."""
    params, x = point
    function = jax.grad(loss, (0, 1))
    stacked = jax.tree.map(lambda *a: jnp.stack(a, -1), point, direction)
    vmapped = lambda a, b: jax.vmap(function, (a, b))(stacked[0] if a else params, stacked[1] if b else x)
    gradient = jax.checkpoint(lambda x: function(params, x)[1])
    step = lambda x: lax.cond(x.sum() < 1e9, gradient, jnp.zeros_like, x)
    leaves, tree = jax.tree.flatten(params)
    first = lambda leaf: loss(jax.tree.unflatten(tree, [leaf, *leaves[1:]]), x)
    return {
        "vmap over x": vmapped(None, -1),
        "vmap over parameters": vmapped(-1, None),
        "vmap over both": vmapped(-1, -1),
        "outside of vmap": jax.grad(lambda *args: jax.vmap(loss, -1)(*args).sum(), (0, 1))(*stacked),
        "scan": lax.scan(lambda x, _: (x + 0.01 * step(x), along(step, direction[1:])(x)), x, length=2),
        "hessian": jax.hessian(first)(leaves[0]),
    }


def check(functions, net, *inputs):
    def run():
        loss, point, direction = setting(net, *inputs)
        results = jit(lambda *args: [function(loss, *args) for function in functions])(point, direction)
        # The gradient of a bias may be nothing but the rounding of the others.
        return [{name: ravel_pytree(tree)[0] for name, tree in result.items()} for result in results]

    found = run()
    with plain():
        assert_close(found, run(), 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_everywhere(name):
    check((derivatives, other_ways, everywhere), *LAYERS[name])


@pytest.mark.slow
@pytest.mark.parametrize(
    "net", [UNet(1, width=4, num_groups=2), DiT(2, 2, width=8, depth=2, num_heads=2)], ids=["U-Net", "DiT"]
)
def test_networks_in_both_modes(net):
    check((other_ways,), net, IMAGES[:2], jnp.array([3, 700]))
