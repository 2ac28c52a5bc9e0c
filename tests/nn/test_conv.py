import functools
import itertools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads

from jaxgen.nn import conv, overlap_add, trilinear
from tests.nn.compare import assert_close, jit, normal

LAYOUTS = {1: ("NHC", "HIO", "NHC"), 2: ("NHWC", "HWIO", "NHWC"), 3: ("NHWDC", "HWDIO", "NHWDC")}


def case(x, kernel, strides, padding, lhs_dilation=None, rhs_dilation=None, slow=True):
    marks = pytest.mark.slow if slow else ()
    return pytest.param(x, kernel, strides, padding, lhs_dilation, rhs_dilation, marks=marks)


# Shapes of x and kernel, strides, padding, dilations. Batches are 1, 2 and primes; odd sizes and even.
CASES = [
    case((7, 8, 9, 3), (3, 3, 3, 5), (1, 1), "SAME"),
    case((2, 7, 8, 6), (3, 3, 6, 2), (1, 1), "VALID"),  # fewer channels out than in
    case((13, 9, 7, 3), (3, 3, 3, 4), (2, 2), "SAME", slow=False),
    case((1, 7, 9, 5), (4, 4, 5, 3), (2, 2), ((1, 1), (1, 1))),  # the last rows meet no window
    case((3, 6, 11, 2), (5, 3, 2, 3), (3, 2), ((0, 2), (3, 1))),
    case((2, 5, 6, 3), (1, 1, 3, 2), (2, 3), "VALID"),
    case((2, 7, 8, 2), (3, 2, 2, 3), (1, 2), ((-1, 0), (2, -1))),
    case((3, 4, 4, 2), (4, 4, 2, 6), (1, 1), "VALID"),  # one position
    case((2, 9, 9, 3), (3, 2, 3, 2), (1, 1), "SAME", None, (2, 3)),
    case((2, 9, 10, 2), (3, 3, 2, 3), (2, 2), ((2, 2), (1, 3)), None, (2, 1)),
    case((2, 4, 5, 3), (4, 4, 3, 2), (1, 1), ((2, 2), (2, 2)), (2, 2)),  # transposed, kernel divisible
    case((2, 4, 5, 2), (4, 2, 2, 3), (1, 1), ((3, 0), (-1, 2)), (2, 1), slow=False),
    case((2, 4, 3, 2), (3, 5, 2, 3), (1, 1), ((1, 2), (2, 1)), (2, 3)),
    # Everything at once.
    case((2, 5, 4, 2), (3, 3, 2, 3), (2, 1), ((2, 1), (1, 1)), (3, 2), (1, 2), slow=False),
    case((3, 11, 2), (3, 2, 4), (2,), "SAME"),
    case((3, 11, 4), (3, 4, 2), (1,), ((4, 0),), None, (2,), slow=False),
    case((2, 5, 4, 3, 2), (2, 3, 1, 2, 3), (2, 1, 1), "SAME"),
]


def derivatives(convolution, x, kernel, *geometry):
    """The value, both gradients, and the gradient of a function of all of these: every second derivative."""

    def value_and_gradients(x, kernel, g):
        y, pull = jax.vjp(lambda x, kernel: convolution(x, kernel, *geometry), x, kernel)
        return y, *pull(g * jnp.cos(y))

    g = normal(2, *jax.eval_shape(lambda x, k: convolution(x, k, *geometry), x, kernel).shape, dtype=x.dtype)
    second = jax.grad(lambda *args: sum(jnp.sum(jnp.sin(a)) for a in value_and_gradients(*args)), (0, 1, 2))
    return jit(lambda *args: (value_and_gradients(*args), second(*args)))(x, kernel, g)


def num_loops(function, *args):
    return jax.jit(function).lower(*args).as_text().count("stablehlo.while")


@pytest.mark.parametrize(("x", "kernel", "strides", "padding", "lhs_dilation", "rhs_dilation"), CASES)
def test_value_and_derivatives_are_those_of_xla(x, kernel, strides, padding, lhs_dilation, rhs_dilation):
    geometry = (strides, padding, lhs_dilation, rhs_dilation, LAYOUTS[len(strides)])
    with jax.enable_x64(True):
        x, kernel = normal(0, *x, dtype=jnp.float64), normal(1, *kernel, dtype=jnp.float64)
        ours = derivatives(conv.conv_general_dilated, x, kernel, *geometry)
        assert_close(ours, derivatives(lax.conv_general_dilated, x, kernel, *geometry))


@pytest.mark.parametrize("batch", [6, pytest.param(7, marks=pytest.mark.slow)])
def test_a_few_examples_at_a_time(batch, monkeypatch):
    monkeypatch.setattr(overlap_add, "BLOCK_BYTES", 8 * 3 * 20 * 32)  # the pieces of three examples
    geometry = ((1, 1), ((2, 2), (2, 2)), (2, 2), None, LAYOUTS[2])
    with jax.enable_x64(True):
        x, kernel = normal(0, batch, 4, 5, 3, dtype=jnp.float64), normal(1, 4, 4, 3, 2, dtype=jnp.float64)
        convolution = lambda x, kernel: conv.conv_general_dilated(x, kernel, *geometry)
        assert num_loops(convolution, x, kernel) == 1
        ours = derivatives(conv.conv_general_dilated, x, kernel, *geometry)
        assert_close(ours, derivatives(lax.conv_general_dilated, x, kernel, *geometry))


@pytest.mark.parametrize(("batch", "out"), [(6, 2), pytest.param(7, 5, marks=pytest.mark.slow)])
def test_gradients_of_kernels_by_a_few_examples_at_a_time(batch, out, monkeypatch):
    three_examples = 8 * 3 * 20 * (3 + out)  # and the gradients of their outputs
    monkeypatch.setattr(overlap_add, "BLOCK_BYTES", three_examples)
    geometry = ((1, 1), "SAME", None, None, LAYOUTS[2])
    with jax.enable_x64(True):
        x, kernel = normal(0, batch, 4, 5, 3, dtype=jnp.float64), normal(1, 3, 3, 3, out, dtype=jnp.float64)
        total = lambda kernel: conv.conv_general_dilated(x, kernel, *geometry).sum()
        assert num_loops(jax.grad(total), kernel) == 1
        ours = derivatives(conv.conv_general_dilated, x, kernel, *geometry)
        assert_close(ours, derivatives(lax.conv_general_dilated, x, kernel, *geometry))


@pytest.mark.parametrize(
    ("x", "kernel"),
    [
        ((2, 1, 4, 3), (5, 1, 3, 2)),
        pytest.param((2, 4, 5, 3), (3, 3, 3, 4), marks=pytest.mark.slow),
        pytest.param((2, 4, 2), (3, 2, 3), marks=pytest.mark.slow),
    ],
)
def test_upsampling_and_convolution_are_one(x, kernel):
    def apart(x, kernel):
        for axis in range(1, x.ndim - 1):
            x = x.repeat(2, axis)
        strides = (1,) * (x.ndim - 2)
        return lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=LAYOUTS[x.ndim - 2])

    with jax.enable_x64(True):
        x, kernel = normal(0, *x, dtype=jnp.float64), normal(1, *kernel, dtype=jnp.float64)
        ours = derivatives(conv.upsample_conv, x, kernel)
        assert_close(ours, derivatives(apart, x, kernel))
        layer = conv.UpsampleConv(kernel.shape[-1], kernel.shape[:-2], param_dtype=jnp.float64)
        params = {"kernel": kernel, "bias": jnp.zeros(kernel.shape[-1])}
        assert_close(layer.apply({"params": params}, x), ours[0][0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel_size": (4, 4)}, "odd sizes"),
        ({"kernel_size": (3, 3), "padding": "VALID"}, '"SAME" padding'),
        ({"kernel_size": (3, 3), "strides": 2}, '"SAME" padding'),
        ({"kernel_size": (3, 3), "kernel_dilation": 2}, '"SAME" padding'),
    ],
)
def test_an_upsampling_convolution_has_one_geometry(options, message):
    with pytest.raises(ValueError, match=message):
        conv.UpsampleConv(3, **options).init(jax.random.key(0), IMAGES)


@pytest.mark.slow
def test_finite_differences():
    with jax.enable_x64(True):
        x, kernel = normal(0, 2, 5, 4, 2, dtype=jnp.float64), normal(1, 3, 2, 2, 3, dtype=jnp.float64)
        plain = lambda x, k: jnp.sin(
            conv.conv_general_dilated(x, k, (2, 1), "SAME", dimension_numbers=LAYOUTS[2])
        )
        check_grads(plain, (x, kernel), order=2, modes=["fwd", "rev"])
        transposed = lambda x, k: jnp.sin(conv.conv_transpose(x, k, (2, 1), ((1, 0), (-1, 2))))
        check_grads(transposed, (x, normal(1, 4, 2, 2, 3, dtype=jnp.float64)), order=2, modes=["fwd", "rev"])


@pytest.mark.parametrize(
    "options",
    [
        {"dimension_numbers": ("NCHW", "OIHW", "NCHW")},
        {"dimension_numbers": None},
        {"dimension_numbers": LAYOUTS[2], "feature_group_count": 2},
        {"dimension_numbers": LAYOUTS[2], "batch_group_count": 2},
        {"dimension_numbers": LAYOUTS[2], "preferred_element_type": jnp.float64},
    ],
)
def test_everything_else_goes_to_xla(options):
    with jax.enable_x64(True):
        x = normal(0, 4, 4, 4, 4)
        kernel = normal(1, 3, 3, 4 // options.get("feature_group_count", 1), 4)
        if options["dimension_numbers"] != LAYOUTS[2]:
            kernel = kernel.transpose(3, 2, 0, 1)
        ours, theirs = (
            f(x, kernel, (1, 1), "SAME", **options)
            for f in (conv.conv_general_dilated, lax.conv_general_dilated)
        )
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


def test_empty_batch():
    kernel = normal(1, 4, 4, 3, 2)
    for layer in (conv.Conv(2, (4, 4), 2), conv.ConvTranspose(2, (4, 4), 2)):
        loss = lambda kernel, layer=layer: layer.apply(
            {"params": {"kernel": kernel, "bias": jnp.ones(2)}}, jnp.zeros((0, 8, 8, 3))
        ).sum()
        np.testing.assert_array_equal(jax.grad(loss)(kernel), jnp.zeros_like(kernel))


# Where and how it is run --------------------------------------------------------------------------


def critic(convolution, transpose, params, x):
    """Down, up and down again, (B,): every kind of gradient meets every other."""
    h = jax.nn.swish(convolution(x, params[0], (2, 2), ((1, 1), (1, 1)), dimension_numbers=LAYOUTS[2]))
    h = jax.nn.swish(transpose(h, params[1], (2, 2), "SAME"))
    return convolution(h, params[2], (1, 1), "SAME", dimension_numbers=LAYOUTS[2]).sum((1, 2, 3))


def critic_gradient(params, x, ours=True):
    functions = (conv.conv_general_dilated, conv.conv_transpose) if ours else XLA
    return jax.grad(lambda *args: critic(*functions, *args).sum(), (0, 1))(params, x)


def penalty_gradient(params, x, ours=True):
    """Of a gradient penalty: second derivatives."""
    return jax.grad(lambda params: jnp.sum(critic_gradient(params, x, ours)[1] ** 2))(params)


XLA = (lax.conv_general_dilated, lax.conv_transpose)
PARAMS = (0.2 * normal(1, 4, 4, 3, 6), 0.2 * normal(2, 4, 4, 6, 4), 0.2 * normal(3, 3, 3, 4, 2))
IMAGES = normal(0, 8, 8, 8, 3)


def test_without_jit():
    x, kernel = normal(0, 2, 3, 2), normal(1, 3, 2, 2)
    gradients = lambda layer: jax.vjp(
        lambda *args: layer.apply({"params": {"kernel": args[0]}}, args[1]), kernel, x
    )
    (ours, pull), (theirs, exact) = (gradients(cls(2, 3, use_bias=False)) for cls in (conv.Conv, nn.Conv))
    assert_close((ours, pull(ours)), (theirs, exact(theirs)), 1e-6)
    with jax.disable_jit():
        assert_close(conv.Conv(2, 3, use_bias=False).apply({"params": {"kernel": kernel}}, x), theirs, 1e-6)


def unrolled(function, levels):
    """What nested `vmap` of a function of two arrays computes, along two entries at each of its levels."""
    if not levels:
        return function
    *inner, axes = levels
    one = unrolled(function, inner)
    entry = lambda a, axis, i: a if axis is None else jnp.take(a, i, axis)
    return lambda *args: jnp.stack([one(*map(entry, args, axes, (i, i))) for i in range(2)])


def test_each_map_under_each_vmap():
    axes = (trilinear.Axis((5, 1), (3, 2), (3, 1), 1), trilinear.Axis((3, 2), (2, 1), (3, 2), 1))
    x, kernel, g = (2, 5, 3, 2), (3, 2, 2, 3), (2, 3, 3, 3)
    maps = {trilinear.CONVOLVE: (x, kernel), trilinear.INPUT_GRADIENT: (kernel, g)}
    maps[trilinear.KERNEL_GRADIENT] = x, g
    nested = [[(1, None)], [(None, -1)], [(0, 0), (1, None)], [(0, 0), (None, -1)], [(-1, 1), (2, 0)]]

    def pairs():
        for which, shapes in maps.items():
            one = functools.partial(which.bind, axes=axes, precision=None, mapped=0)
            for levels in nested:
                operands = [normal(i, *shape) for i, shape in enumerate(shapes)]
                mapped = one
                for level in levels:
                    mapped = jax.vmap(mapped, level)
                    operands = [
                        a if axis is None else jnp.stack([a, 1 + 2 * jnp.flip(a)], axis)
                        for a, axis in zip(operands, level, strict=True)
                    ]
                yield tuple(function(*operands) for function in (mapped, unrolled(one, levels)))

    for found, expected in jit(lambda: list(pairs()))():
        assert_close(found, expected, 1e-5)


def test_gradients_of_a_mapped_convolution_are_mapped():
    layers = jax.vmap(lambda kernel, x: conv.conv_transpose(x, kernel, 2))
    loss = lambda *args: jnp.sum(layers(*args) ** 2)
    args = normal(0, 3, 4, 4, 2, 2), normal(1, 3, 2, 2, 2, 2)
    text = str(jax.make_jaxpr(jax.grad(loss, (0, 1)))(*args))
    assert all(
        f"{which}[" in text for which in ("convolve", "convolve_input_gradient", "convolve_kernel_gradient")
    )


@pytest.mark.slow
def test_pmap():
    step = lambda x: lax.psum(penalty_gradient(PARAMS, x), "data")
    sums = jax.pmap(step, "data")(IMAGES[:, None])
    expected = jax.jit(lambda: penalty_gradient(PARAMS, IMAGES, ours=False))()
    assert_close(jax.tree.map(lambda a: a[0], sums), expected, 1e-5)


def loop_layouts(ours):
    """How the convolutions in a compiled loop and conditional are laid out."""

    def step(params, _):
        update = lambda: critic_gradient(params, IMAGES, ours)[0]
        return lax.cond(params[0].sum() < 1e9, update, lambda: params), None

    text = jit(lambda p: lax.scan(step, p, length=3)[0]).lower(PARAMS).compile().as_text()
    return set(re.findall(r"dim_labels=(\S+?)[,\s]", text))


def test_loops_on_cpu_hold_channels_last_convolutions_only():
    assert loop_layouts(ours=True) == {"b01f_01io->b01f"}
    # The reason for all of this; once XLA canonicalizes loop bodies too, this fails and trilinear.py can go.
    assert loop_layouts(ours=False) > {"b01f_01io->b01f"}


def convolutions(function, ours, platform):
    traced = jax.jit(lambda params, x: function(params, x, ours)).trace(PARAMS, IMAGES)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    # Padding that no window reaches may differ.
    text = re.sub(r"pad = \[\[.*?\]\]", "", text)
    # Neither a loop nor the product that CPU has in place of some convolutions.
    assert not re.search(r"stablehlo\.(while|dot_general)", text)
    return sorted(re.findall(r"stablehlo\.convolution\([^)]*\) (.*)", text))


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_other_platforms_get_the_convolutions_of_plain_xla(platform):
    first, plain = (convolutions(critic_gradient, ours, platform) for ours in (True, False))
    assert len(first) == 8
    assert first == plain
    second, plain = (convolutions(penalty_gradient, ours, platform) for ours in (True, False))
    assert len(second) == len(plain) > 8


# Layers -------------------------------------------------------------------------------------------


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "options",
    [
        {"strides": (2, 1), "padding": "VALID", "use_bias": False},
        {"padding": "CIRCULAR", "dtype": jnp.bfloat16},
        pytest.param({"strides": 2}, marks=SLOW),
        pytest.param({"padding": 1, "kernel_dilation": 2}, marks=SLOW),
        pytest.param({"padding": 2, "input_dilation": (2, 1)}, marks=SLOW),
        pytest.param({"feature_group_count": 3}, marks=SLOW),
    ],
)
def test_conv_is_flax_conv(options):
    x = normal(0, 5, 2, 7, 8, 3)
    ours, theirs = (cls(6, (3, 3), **options) for cls in (conv.Conv, nn.Conv))
    variables = theirs.init(jax.random.key(0), x)
    assert_close(ours.init(jax.random.key(0), x), variables, 0)
    y, expected = ours.apply(variables, x), theirs.apply(variables, x)
    assert y.dtype == expected.dtype
    assert_close(y.astype(jnp.float32), expected.astype(jnp.float32), 1e-6)


def test_one_dimensional_layers():
    x = normal(0, 5, 11, 3)
    for ours, theirs in (
        (
            conv.Conv(6, 4, padding="CAUSAL", kernel_dilation=2),
            nn.Conv(6, 4, padding="CAUSAL", kernel_dilation=2),
        ),
        (conv.ConvTranspose(6, 4, 2), nn.ConvTranspose(6, 4, (2,))),
    ):
        variables = theirs.init(jax.random.key(0), x)
        assert_close(ours.apply(variables, x), theirs.apply(variables, x), 1e-6)


KERNELS = [((4, 4), (2, 2)), ((3, 3), (2, 2)), ((2, 3), None), ((1, 4), (2, 1)), ((5, 2), (3, 4))]
PADDINGS = ["SAME", "VALID", ((1, 0), (0, 2))]


@pytest.mark.parametrize(
    ("kernel", "strides", "padding"),
    [
        pytest.param(*kernel, padding, marks=() if i % 3 == j and i < 4 else SLOW)
        for i, kernel in enumerate(KERNELS)
        for j, padding in enumerate(PADDINGS)
    ],
)
def test_conv_transpose_is_flax_conv_transpose(kernel, strides, padding):
    x = normal(0, 3, 5, 4, 2)
    linen = padding
    if not isinstance(padding, str):
        linen = [(k - 1 - low, k - 1 - high) for k, (low, high) in zip(kernel, padding, strict=True)]
    theirs = nn.ConvTranspose(3, kernel, strides, linen)
    ours = conv.ConvTranspose(3, kernel, strides, padding)
    variables = {"params": {"kernel": normal(1, *kernel, 2, 3), "bias": normal(2, 3)}}
    y = ours.apply(variables, x)
    assert_close(y, theirs.apply(variables, x), 1e-6)


def test_conv_transpose_starts_as_flax_conv_transpose():
    x = normal(0, 3, 5, 4, 2)
    ours, theirs = (
        cls(3, (4, 4), (2, 2)).init(jax.random.key(0), x) for cls in (conv.ConvTranspose, nn.ConvTranspose)
    )
    assert_close(ours, theirs, 0)


def test_conv_transpose_takes_any_leading_axes():
    layer = conv.ConvTranspose(3, (4, 4), 2, 1, use_bias=False)
    x = normal(0, 2, 3, 5, 4, 2)
    variables = layer.init(jax.random.key(0), x)
    assert set(variables["params"]) == {"kernel"}
    y = layer.apply(variables, x)
    assert y.shape == (2, 3, 10, 8, 3)
    assert_close(layer.apply(variables, x[1, 2]), y[1, 2], 1e-6)


@pytest.mark.parametrize("layer", [pytest.param(conv.Conv, marks=SLOW), conv.ConvTranspose])
def test_bfloat16_compute_with_float32_parameters(layer):
    x = normal(0, 4, 8, 8, 3)
    half, full = layer(5, (4, 4), (2, 2), dtype=jnp.bfloat16), layer(5, (4, 4), (2, 2))
    variables = half.init(jax.random.key(0), x)
    assert all(a.dtype == jnp.float32 for a in jax.tree.leaves(variables))
    assert half.apply(variables, x).dtype == jnp.bfloat16
    loss = lambda variables, model: jnp.sum(model.apply(variables, x).astype(jnp.float32) ** 2)
    gradients = [jit(jax.grad(functools.partial(loss, model=m)))(variables) for m in (half, full)]
    assert all(a.dtype == jnp.float32 for a in jax.tree.leaves(gradients[0]))
    assert_close(*gradients, 0.02)


# Geometry -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "kernel", "stride", "padding"),
    [
        (9, 3, 2, (1, 1)),
        (7, 3, 1, (0, 2)),
        pytest.param(8, 4, 2, (1, 1), marks=SLOW),
        pytest.param(6, 2, 3, (0, 0), marks=SLOW),
        pytest.param(8, 4, 2, "SAME", marks=SLOW),
        pytest.param(9, 3, 3, "VALID", marks=SLOW),
    ],
)
def test_conv_transpose_is_the_adjoint_of_conv(n, kernel, stride, padding):
    pairs = padding if isinstance(padding, str) else (padding, padding)
    down = lambda y, k: conv.conv_general_dilated(y, k, (stride,) * 2, pairs, dimension_numbers=LAYOUTS[2])
    k, y = normal(0, kernel, kernel, 3, 5), normal(1, 2, n, n, 3)
    x = normal(2, *down(y, k).shape)
    up = conv.conv_transpose(x, jnp.flip(k, (0, 1)).swapaxes(2, 3), stride, pairs)
    # Where windows do not reach the end of y, the adjoint is shorter than y by what they leave.
    up = jnp.pad(up, ((0, 0), (0, n - up.shape[1]), (0, n - up.shape[2]), (0, 0)))
    np.testing.assert_allclose(jnp.vdot(down(y, k), x), jnp.vdot(y, up), rtol=1e-4)


def test_sizes():
    for n, k, stride in itertools.product((1, 7, 8), (1, 4, 5), (1, 2, 3)):
        for padding in ("SAME", "VALID", 1, (2, 1)):
            pairs = padding if isinstance(padding, str) else [(padding, padding) if padding == 1 else padding]
            geometry = (stride,), pairs
            convolution = lambda x, k, geometry=geometry: lax.conv_general_dilated(
                x, k, *geometry, dimension_numbers=LAYOUTS[1]
            )
            shapes = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, n, 1), (k, 1, 1)))
            assert jax.eval_shape(convolution, *shapes).shape[1] == conv.output_size(n, k, stride, padding)


def test_sizes_of_the_usual_decoder():
    x = jax.ShapeDtypeStruct((1, 3, 7, 1), jnp.float32)
    layer = conv.ConvTranspose(1, (4, 4), 2, 1)
    assert jax.eval_shape(layer.init_with_output, jax.random.key(0), x)[0].shape[1:3] == (6, 14)
    assert [conv.output_size(n, 4, 2, 1) for n in (28, 14, 7)] == [14, 7, 3]


def test_unknown_padding():
    with pytest.raises(ValueError, match="'CIRCULAR' is neither"):
        conv.ConvTranspose(3, (4, 4), 2, "CIRCULAR").init(jax.random.key(0), IMAGES)
    with pytest.raises(ValueError, match="'FULL' is neither"):
        conv.output_size(8, 4, 2, "FULL")
