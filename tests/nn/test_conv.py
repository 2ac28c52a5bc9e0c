import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.test_util import check_grads

from jaxgen.nn import conv, trilinear

LAYOUTS = {1: ("NHC", "HIO", "NHC"), 2: ("NHWC", "HWIO", "NHWC"), 3: ("NHWDC", "HWDIO", "NHWDC")}


def normal(seed, *shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def case(x, kernel, strides, padding, lhs_dilation=None, rhs_dilation=None):
    return pytest.param(x, kernel, strides, padding, lhs_dilation, rhs_dilation)


# Shapes of x and kernel, strides, padding, dilations. Batches are 1, 2 and primes; odd sizes and even.
CASES = [
    case((7, 8, 9, 3), (3, 3, 3, 5), (1, 1), "SAME"),
    case((2, 7, 8, 6), (3, 3, 6, 2), (1, 1), "VALID"),  # fewer channels out than in
    case((13, 9, 7, 3), (3, 3, 3, 4), (2, 2), "SAME"),
    case((1, 7, 9, 5), (4, 4, 5, 3), (2, 2), ((1, 1), (1, 1))),  # the last rows meet no window
    case((3, 6, 11, 2), (5, 3, 2, 3), (3, 2), ((0, 2), (3, 1))),
    case((2, 5, 6, 3), (1, 1, 3, 2), (2, 3), "VALID"),
    case((2, 7, 8, 2), (3, 2, 2, 3), (1, 2), ((-1, 0), (2, -1))),
    case((3, 4, 4, 2), (4, 4, 2, 6), (1, 1), "VALID"),  # one position
    case((2, 9, 9, 3), (3, 2, 3, 2), (1, 1), "SAME", None, (2, 3)),
    case((2, 9, 10, 2), (3, 3, 2, 3), (2, 2), ((2, 2), (1, 3)), None, (2, 1)),
    case((2, 4, 5, 3), (4, 4, 3, 2), (1, 1), ((2, 2), (2, 2)), (2, 2)),  # transposed, kernel divisible
    case((2, 4, 5, 2), (4, 2, 2, 3), (1, 1), ((3, 0), (-1, 2)), (2, 1)),
    case((2, 4, 3, 2), (3, 5, 2, 3), (1, 1), ((1, 2), (2, 1)), (2, 3)),
    case((2, 5, 4, 2), (3, 3, 2, 3), (2, 1), ((2, 1), (1, 1)), (3, 2), (1, 2)),  # everything at once
    case((3, 11, 2), (3, 2, 4), (2,), "SAME"),
    case((3, 11, 4), (3, 4, 2), (1,), ((4, 0),), None, (2,)),
    case((2, 5, 4, 3, 2), (2, 3, 1, 2, 3), (2, 1, 1), "SAME"),
]


def derivatives(convolution, x, kernel, *geometry):
    """The value, both gradients, and the gradient of a function of all of these: every second derivative."""

    def value_and_gradients(x, kernel, g):
        y, pull = jax.vjp(lambda x, kernel: convolution(x, kernel, *geometry), x, kernel)
        return y, *pull(g * jnp.cos(y))

    g = normal(2, *jax.eval_shape(lambda x, k: convolution(x, k, *geometry), x, kernel).shape, dtype=x.dtype)
    second = jax.grad(lambda *args: sum(jnp.sum(jnp.sin(a)) for a in value_and_gradients(*args)), (0, 1, 2))
    return jax.jit(lambda *args: (value_and_gradients(*args), second(*args)))(x, kernel, g)


def assert_close(actual, desired, rtol=1e-11):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=rtol * (1 + np.abs(b).max())),
        actual,
        desired,
    )


@pytest.mark.parametrize(("x", "kernel", "strides", "padding", "lhs_dilation", "rhs_dilation"), CASES)
def test_value_and_derivatives_are_those_of_xla(x, kernel, strides, padding, lhs_dilation, rhs_dilation):
    geometry = (strides, padding, lhs_dilation, rhs_dilation, LAYOUTS[len(strides)])
    with jax.enable_x64(True):
        x, kernel = normal(0, *x, dtype=jnp.float64), normal(1, *kernel, dtype=jnp.float64)
        ours = derivatives(conv.conv_general_dilated, x, kernel, *geometry)
        assert_close(ours, derivatives(lax.conv_general_dilated, x, kernel, *geometry))


@pytest.mark.parametrize("batch", [6, 7])
def test_a_few_examples_at_a_time(batch, monkeypatch):
    monkeypatch.setattr(trilinear, "BLOCK_BYTES", 8 * 3 * 20 * 32)  # the pieces of three examples
    geometry = ((1, 1), ((2, 2), (2, 2)), (2, 2), None, LAYOUTS[2])
    with jax.enable_x64(True):
        x, kernel = normal(0, batch, 4, 5, 3, dtype=jnp.float64), normal(1, 4, 4, 3, 2, dtype=jnp.float64)
        loops = str(jax.make_jaxpr(lambda x, k: conv.conv_general_dilated(x, k, *geometry))(x, kernel))
        assert loops.count("while[") + loops.count("scan[") == 1
        ours = derivatives(conv.conv_general_dilated, x, kernel, *geometry)
        assert_close(ours, derivatives(lax.conv_general_dilated, x, kernel, *geometry))


@pytest.mark.parametrize("batch", [6, 7])
@pytest.mark.parametrize("out", [2, 5])
def test_gradients_of_kernels_by_a_few_examples_at_a_time(batch, out, monkeypatch):
    three_examples = 8 * 3 * 20 * (3 + out)  # and the gradients of their outputs
    monkeypatch.setattr(trilinear, "BLOCK_BYTES", three_examples)
    geometry = ((1, 1), "SAME", None, None, LAYOUTS[2])
    with jax.enable_x64(True):
        x, kernel = normal(0, batch, 4, 5, 3, dtype=jnp.float64), normal(1, 3, 3, 3, out, dtype=jnp.float64)
        total = lambda kernel: conv.conv_general_dilated(x, kernel, *geometry).sum()
        gradient = str(jax.make_jaxpr(jax.grad(total))(kernel))
        assert gradient.count("while[") + gradient.count("scan[") == 1
        ours = derivatives(conv.conv_general_dilated, x, kernel, *geometry)
        assert_close(ours, derivatives(lax.conv_general_dilated, x, kernel, *geometry))


@pytest.mark.parametrize(
    ("x", "kernel"),
    [((2, 4, 5, 3), (3, 3, 3, 4)), ((2, 1, 4, 3), (5, 1, 3, 2)), ((2, 4, 2), (3, 2, 3))],
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


def test_finite_differences():
    with jax.enable_x64(True):
        x, kernel = normal(0, 2, 5, 4, 2, dtype=jnp.float64), normal(1, 3, 2, 2, 3, dtype=jnp.float64)
        plain = lambda x, k: jnp.sin(
            conv.conv_general_dilated(x, k, (2, 1), "SAME", dimension_numbers=LAYOUTS[2])
        )
        check_grads(plain, (x, kernel), order=2, modes=["rev"])
        transposed = lambda x, k: jnp.sin(conv.conv_transpose(x, k, (2, 1), ((1, 0), (-1, 2))))
        check_grads(transposed, (x, normal(1, 4, 2, 2, 3, dtype=jnp.float64)), order=2, modes=["rev"])


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


@pytest.fixture(scope="module")
def expected():
    return jax.jit(lambda: penalty_gradient(PARAMS, IMAGES, ours=False))()


def test_inside_scan(expected):
    scanned = jax.jit(
        lambda: lax.scan(lambda c, x: (c, penalty_gradient(PARAMS, x + c)), 0.0, jnp.stack([IMAGES] * 2))[1]
    )()
    for i in range(2):
        assert_close(jax.tree.map(lambda a, i=i: a[i], scanned), expected, 1e-5)


def test_inside_cond(expected):
    taken = jax.jit(lambda p: lax.cond(p, lambda: penalty_gradient(PARAMS, IMAGES), lambda: PARAMS))
    assert_close(taken(True), expected, 1e-5)
    assert_close(taken(False), PARAMS, 0)


def test_without_jit(expected):
    assert_close(penalty_gradient(PARAMS, IMAGES), expected, 1e-5)


@pytest.mark.parametrize("in_axes", [(None, 0), (0, None), (0, 0)])
def test_under_vmap(in_axes):
    many = (
        jax.tree.map(lambda a: jnp.stack([a, 2 * a, -a]), PARAMS),
        jnp.stack([IMAGES, -IMAGES, 3 + IMAGES]),
    )
    args = [many[i] if axis == 0 else (PARAMS, IMAGES)[i] for i, axis in enumerate(in_axes)]
    mapped = jax.jit(jax.vmap(penalty_gradient, in_axes))(*args)
    for i in range(3):
        entry = lambda tree, i=i: jax.tree.map(lambda a: a[i], tree)
        each = [args[j] if axis is None else entry(args[j]) for j, axis in enumerate(in_axes)]
        assert_close(entry(mapped), penalty_gradient(*each), 1e-5)


def test_batch_over_eight_devices(expected):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    images = jax.device_put(IMAGES, NamedSharding(mesh, PartitionSpec("data")))
    params = jax.device_put(PARAMS, NamedSharding(mesh, PartitionSpec()))
    compiled = jax.jit(penalty_gradient).lower(params, images).compile()
    assert_close(compiled(params, images), expected, 1e-5)
    # The batch is summed over where it lies, never gathered.
    assert "all-gather(" not in compiled.as_text()


def test_pmap(expected):
    step = lambda x: lax.psum(penalty_gradient(PARAMS, x), "data")
    sums = jax.pmap(step, "data")(IMAGES[:, None])
    assert_close(jax.tree.map(lambda a: a[0], sums), expected, 1e-5)


def loop_layouts(ours):
    """How the convolutions in a compiled loop and conditional are laid out."""

    def step(params, _):
        update = lambda: penalty_gradient(params, IMAGES, ours)
        return lax.cond(params[0].sum() < 1e9, update, lambda: params), None

    text = jax.jit(lambda p: lax.scan(step, p, length=3)[0]).lower(PARAMS).compile().as_text()
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


def test_forward_mode_is_refused():
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda x: conv.conv_transpose(x, PARAMS[0], 2), (IMAGES,), (IMAGES,))


# Layers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"strides": 2},
        {"strides": (2, 1), "padding": "VALID", "use_bias": False},
        {"padding": 1, "kernel_dilation": 2},
        {"padding": "CIRCULAR"},
        {"padding": 2, "input_dilation": (2, 1)},
        {"feature_group_count": 3},
        {"dtype": jnp.bfloat16},
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


@pytest.mark.parametrize("padding", ["SAME", "VALID", ((1, 0), (0, 2))])
@pytest.mark.parametrize(
    ("kernel", "strides"),
    [((4, 4), (2, 2)), ((3, 3), (2, 2)), ((2, 3), None), ((1, 4), (2, 1)), ((5, 2), (3, 4))],
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
    for axis, n in enumerate((5, 4)):
        stride = strides[axis] if strides else 1
        each = padding if isinstance(padding, str) else padding[axis]
        assert y.shape[1 + axis] == conv.transposed_output_size(n, kernel[axis], stride, each)


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


@pytest.mark.parametrize("layer", [conv.Conv, conv.ConvTranspose])
def test_bfloat16_compute_with_float32_parameters(layer):
    x = normal(0, 4, 8, 8, 3)
    half, full = layer(5, (4, 4), (2, 2), dtype=jnp.bfloat16), layer(5, (4, 4), (2, 2))
    variables = half.init(jax.random.key(0), x)
    assert all(a.dtype == jnp.float32 for a in jax.tree.leaves(variables))
    assert half.apply(variables, x).dtype == jnp.bfloat16
    loss = lambda variables, model: jnp.sum(model.apply(variables, x).astype(jnp.float32) ** 2)
    gradients = [jax.jit(jax.grad(functools.partial(loss, model=m)))(variables) for m in (half, full)]
    assert all(a.dtype == jnp.float32 for a in jax.tree.leaves(gradients[0]))
    assert_close(*gradients, 0.02)


# Geometry -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "kernel", "stride", "padding"),
    [
        (8, 4, 2, (1, 1)),
        (9, 3, 2, (1, 1)),
        (7, 3, 1, (0, 2)),
        (6, 2, 3, (0, 0)),
        (8, 4, 2, "SAME"),
        (9, 3, 3, "VALID"),
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
    for n in (1, 7, 8):
        for k in (1, 2, 4, 5):
            for stride in (1, 2, 3):
                for padding in ("SAME", "VALID", 0, 1, (0, 2), (2, 1)):
                    pairs = padding if isinstance(padding, str | int) else [padding]
                    x = jax.ShapeDtypeStruct((1, n, 1), jnp.float32)
                    shape = jax.eval_shape(
                        conv.Conv(1, k, stride, pairs).init_with_output, jax.random.key(0), x
                    )
                    assert shape[0].shape[1] == conv.output_size(n, k, stride, padding)
                    size = conv.transposed_output_size(n, k, stride, padding)
                    if size > 0:
                        layer = conv.ConvTranspose(1, k, stride, pairs)
                        shape = jax.eval_shape(layer.init_with_output, jax.random.key(0), x)
                        assert shape[0].shape[1] == size


def test_sizes_of_the_usual_decoder():
    sizes = [28]
    for _ in range(3):
        sizes.append(conv.output_size(sizes[-1], 4, 2, 1))
    assert sizes == [28, 14, 7, 3]
    assert [conv.transposed_output_size(n, 4, 2, 1) for n in (3, 7, 14)] == [6, 14, 28]


def test_unknown_padding():
    with pytest.raises(ValueError, match="'CIRCULAR' is neither"):
        conv.ConvTranspose(3, (4, 4), 2, "CIRCULAR").init(jax.random.key(0), IMAGES)
    with pytest.raises(ValueError, match="'FULL' is neither"):
        conv.output_size(8, 4, 2, "FULL")
