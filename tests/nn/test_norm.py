import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.test_util import check_grads

from jaxgen.nn import conv, norm
from tests.nn.compare import assert_close, jit, normal


def pair(name, **options):
    """Our layer and Linen's, the latter with the variance that keeps its digits."""
    return getattr(norm, name)(**options), getattr(nn, name)(use_fast_variance=False, **options)


def apply(layer, variables, x):
    if isinstance(layer, norm.BatchNorm | nn.BatchNorm):
        y, state = layer.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
        return y, state["batch_stats"]
    return layer.apply(variables, x), {}


def init(layer, x):
    batch = isinstance(layer, norm.BatchNorm | nn.BatchNorm)
    return layer.init(jax.random.key(0), x, **({"use_running_average": False} if batch else {}))


SLOW = pytest.mark.slow
LAYERS = [
    ("BatchNorm", {"momentum": 0.5, "epsilon": 0.1, "use_bias": False}, (3, 2, 6)),
    ("GroupNorm", {"num_groups": None, "group_size": 2, "use_scale": False}, (3, 4, 6)),
    pytest.param("BatchNorm", {}, (7, 5, 4, 6), marks=SLOW),
    pytest.param("BatchNorm", {"use_scale": False}, (13, 6), marks=SLOW),
    pytest.param("GroupNorm", {"num_groups": 2}, (3, 5, 4, 6), marks=SLOW),
    pytest.param("GroupNorm", {"num_groups": 3, "epsilon": 0.1}, (5, 6), marks=SLOW),
    pytest.param("InstanceNorm", {}, (2, 5, 4, 6), marks=SLOW),
    pytest.param(
        "InstanceNorm", {"use_scale": False, "use_bias": False, "epsilon": 1e-3}, (3, 7, 6), marks=SLOW
    ),
]


@pytest.mark.parametrize(("name", "options", "shape"), LAYERS)
def test_values_and_derivatives_are_those_of_flax(name, options, shape):
    """First derivatives in x and the parameters, second derivatives of a function of value and first ones."""
    with jax.enable_x64(True):
        x = 2 + 3 * normal(0, *shape, dtype=jnp.float64)
        ours, theirs = pair(name, param_dtype=jnp.float64, **options)
        variables = init(theirs, x)
        assert_close(init(ours, x), variables, 0)
        variables = jax.tree.map(lambda a: a + normal(1, *a.shape, dtype=a.dtype) / 3, variables)

        def derivatives(layer):
            def first(variables, x):
                (y, state), pull = jax.vjp(lambda *args: apply(layer, *args), variables, x)
                return y, state, pull((jnp.cos(y), jax.tree.map(jnp.sin, state)))

            second = jax.grad(
                lambda *args: sum(jnp.sum(jnp.sin(a)) for a in jax.tree.leaves(first(*args))), (0, 1)
            )
            return jit(lambda *args: (first(*args), second(*args)))(variables, x)

        assert_close(derivatives(ours), derivatives(theirs), 1e-10)


@pytest.mark.slow
@pytest.mark.parametrize(("axes", "num_groups"), [((0, 1), 4), ((1,), 2), ((), 1)])
def test_finite_differences(axes, num_groups):
    with jax.enable_x64(True):
        x, scale, bias = (normal(i, *s, dtype=jnp.float64) for i, s in enumerate([(3, 4, 4), (4,), (4,)]))
        normalize = lambda *args: norm.normalize(*args, axes, num_groups, 1e-3, jnp.float64)
        check_grads(normalize, (x, scale, bias), order=2, modes=["fwd", "rev"])


@pytest.mark.parametrize(
    ("axes", "num_groups"),
    [((1, 2), 4), pytest.param((0, 1, 2), 8, marks=SLOW), pytest.param((1, 2), 8, marks=SLOW)],
)
def test_mean_a_thousand_standard_deviations_away(axes, num_groups):
    x = 1000 + normal(0, 8, 16, 16, 8)
    scale, bias, g = normal(1, 8), normal(2, 8), normal(3, *x.shape)

    @jit
    def value_and_derivatives(x, scale, bias, g):
        run = lambda *args: norm.normalize(*args, axes, num_groups, 1e-6, x.dtype)[0]
        y, pull = jax.vjp(run, x, scale, bias)
        return y, *pull(g), jax.jvp(run, (x, scale, bias), (g, bias, scale))[1]

    with jax.enable_x64(True):
        exact = value_and_derivatives(*(jnp.asarray(a, jnp.float64) for a in (x, scale, bias, g)))
    assert_close(value_and_derivatives(x, scale, bias, g), exact, 1e-3)


def test_constant_input_has_finite_gradients():
    loss = lambda x: jnp.sum(
        jnp.sin(norm.GroupNorm(2).apply({"params": {"scale": jnp.ones(4), "bias": jnp.ones(4)}}, x))
    )
    assert np.all(np.isfinite(jit(jax.grad(loss))(jnp.full((2, 3, 3, 4), 7.0))))


@pytest.mark.slow
def test_moments():
    x = 5 + 3 * normal(0, 8, 6, 6, 4)
    for layer, axes in (
        (norm.BatchNorm(), (0, 1, 2)),
        (norm.InstanceNorm(), (1, 2)),
        (norm.GroupNorm(1), (1, 2, 3)),
    ):
        y, _ = apply(layer, init(layer, x), x)
        np.testing.assert_allclose(y.mean(axes), 0, atol=1e-5)
        np.testing.assert_allclose(y.std(axes), 1, atol=1e-5)


# Running averages ---------------------------------------------------------------------------------


def test_running_averages_are_those_of_flax():
    ours, theirs = pair("BatchNorm", momentum=0.7)
    variables = [init(layer, normal(0, 4, 3, 3, 5)) for layer in (ours, theirs)]
    assert_close(*variables, 0)
    advance = [jit(functools.partial(apply, layer)) for layer in (ours, theirs)]
    for step in range(3):
        x = step + normal(step, 4, 3, 3, 5)
        for i in range(2):
            _, stats = advance[i](variables[i], x)
            variables[i] = {**variables[i], "batch_stats": stats}
    assert_close(*variables, 1e-6)
    x = normal(9, 2, 3, 3, 5)
    evaluated = [
        jax.value_and_grad(
            lambda x, layer=layer, v=v: jnp.sum(jnp.sin(layer.apply(v, x, use_running_average=True)))
        )(x)
        for layer, v in zip((ours, theirs), variables, strict=True)
    ]
    assert_close(*evaluated, 1e-6)


def test_running_averages_in_the_field_or_in_the_call_but_in_one():
    x = normal(0, 4, 5)
    variables = init(norm.BatchNorm(), x)
    assert_close(norm.BatchNorm(True).apply(variables, x), x, 1e-4)
    with pytest.raises(ValueError, match="use_running_average"):
        norm.BatchNorm().apply(variables, x)


# Spectral normalization ---------------------------------------------------------------------------


def spectral(layer, x):
    """The wrapped layer, its variables, and its one kernel as a matrix."""
    module = norm.SpectralNorm(layer)
    variables = jit(module.init)(jax.random.key(0), x)
    (kernel,) = (leaf for leaf in jax.tree.leaves(variables["params"]) if leaf.ndim > 1)
    return module, variables, np.asarray(kernel).reshape(-1, kernel.shape[-1])


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (conv.Conv(6, (3, 3)), (2, 5, 5, 4)),
        pytest.param(nn.Dense(5), (3, 7), marks=SLOW),
        pytest.param(nn.Embed(9, 4), (3,), marks=SLOW),
    ],
)
def test_the_kernel_is_divided_by_its_largest_singular_value(layer, shape):
    x = jnp.arange(3) if len(shape) == 1 else normal(0, *shape)
    module, variables, kernel = spectral(layer, x)
    advance = jit(lambda variables: module.apply(variables, x, mutable=["spectral"])[1])
    for _ in range(50):
        variables = {**variables, **advance(variables)}
    left, singular, right = np.linalg.svd(kernel)
    plain = {"params": variables["params"]["layer"]}
    scaled = jax.tree.map(lambda a: a / singular[0] if a.ndim > 1 else a, plain)
    np.testing.assert_allclose(module.apply(variables, x), layer.apply(scaled, x), rtol=1e-4, atol=1e-6)
    vectors = {name[-1]: np.asarray(value) for name, value in variables["spectral"].items()}
    assert abs(vectors["u"] @ left[:, 0]) == pytest.approx(1, abs=1e-4)
    assert abs(vectors["v"] @ right[0]) == pytest.approx(1, abs=1e-4)


def test_the_power_method_advances_where_it_may_and_only_there():
    x = normal(0, 3, 7)
    module, variables, kernel = spectral(nn.Dense(5), x)
    vectors = {name: normal(1, *value.shape) for name, value in variables["spectral"].items()}
    variables = {**variables, "spectral": {k: a / jnp.linalg.norm(a) for k, a in vectors.items()}}
    y, stats = module.apply(variables, x, mutable=["spectral"])
    v0 = variables["spectral"]["kernel/v"]
    u1 = kernel @ v0 / np.linalg.norm(kernel @ v0)
    v1 = kernel.T @ u1 / np.linalg.norm(kernel.T @ u1)
    np.testing.assert_allclose(stats["spectral"]["kernel/u"], u1, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(stats["spectral"]["kernel/v"], v1, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(y, x @ kernel / (u1 @ kernel @ v1), rtol=1e-5, atol=1e-6)
    again = module.apply({**variables, **stats}, x)
    np.testing.assert_array_equal(again, module.apply({**variables, **stats}, x))
    np.testing.assert_allclose(again, y, rtol=1e-6, atol=1e-7)


def test_the_scale_of_the_kernel_is_lost_and_its_gradient_is_not():
    x = normal(0, 3, 7)
    module, variables, kernel = spectral(nn.Dense(5, use_bias=False), x)
    tripled = {**variables, "params": jax.tree.map(lambda a: 3 * a, variables["params"])}
    np.testing.assert_allclose(module.apply(tripled, x), module.apply(variables, x), rtol=1e-5, atol=1e-6)
    loss = lambda params: jnp.sum(jnp.sin(module.apply({**variables, "params": params}, x)))
    gradient = jax.tree.leaves(jax.grad(loss)(variables["params"]))[0]
    assert abs((gradient * kernel).sum()) < 1e-4 * jnp.abs(gradient).sum()  # nothing along W itself
    u, v = (np.asarray(variables["spectral"][f"kernel/{name}"]) for name in "uv")
    g = jax.grad(lambda w: jnp.sum(jnp.sin(x @ w)))(jnp.asarray(kernel / (u @ kernel @ v)))
    sigma = u @ kernel @ v
    expected = (g - (g * kernel / sigma).sum() * np.outer(u, v)) / sigma  # Miyato et al. 2018, equation 10
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)


# Where and how it is run --------------------------------------------------------------------------

X = 3 + 2 * normal(0, 8, 4, 4, 6)
MODEL = nn.Sequential([norm.BatchNorm(False), nn.swish, norm.GroupNorm(3), nn.swish, norm.InstanceNorm()])
VARIABLES = MODEL.init(jax.random.key(0), X)


def penalty_gradient(variables, x):
    run = lambda x: jnp.sum(jnp.sin(MODEL.apply(variables, x, mutable=["batch_stats"])[0]) ** 2)
    return jax.grad(lambda x: jnp.sum(jax.grad(run)(x) ** 2))(x)


@pytest.fixture(scope="module")
def expected():
    return jit(penalty_gradient)(VARIABLES, X)


@pytest.mark.slow
def test_inside_scan_and_cond(expected):
    def step(carry, x):
        return carry, lax.cond(carry > 0, lambda: penalty_gradient(VARIABLES, x), lambda: x)

    assert_close(jax.jit(lambda: lax.scan(step, 1.0, X[None]))()[1][0], expected, 1e-4)
    assert_close(jax.jit(lambda: lax.scan(step, -1.0, X[None]))()[1][0], X, 0)


@pytest.mark.slow
def test_under_vmap(expected):
    many = jnp.stack([X, X[::-1], 2 * X])
    mapped = jax.jit(jax.vmap(penalty_gradient, (None, 0)))(VARIABLES, many)
    assert_close(mapped[0], expected, 1e-4)
    assert_close(mapped[1], expected[::-1], 1e-4)
    assert_close(mapped[2], jit(penalty_gradient)(VARIABLES, many[2]), 1e-4)


@pytest.mark.slow
def test_batch_over_eight_devices(expected):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    x = jax.device_put(X, NamedSharding(mesh, PartitionSpec("data")))
    variables = jax.device_put(VARIABLES, NamedSharding(mesh, PartitionSpec()))
    assert_close(jit(penalty_gradient)(variables, x), expected, 1e-4)
    stats = jit(lambda v, x: MODEL.apply(v, x, mutable=["batch_stats"])[1])(variables, x)["batch_stats"]
    assert_close(stats["layers_0"]["mean"], 0.01 * X.mean((0, 1, 2)), 1e-6)


def test_bfloat16_with_float32_statistics():
    x = (100 + normal(0, 4, 8, 8, 6)).astype(jnp.bfloat16)
    for layer in (norm.BatchNorm(dtype=jnp.bfloat16), norm.GroupNorm(3, dtype=jnp.bfloat16)):
        variables = init(layer, x)
        assert all(a.dtype == jnp.float32 for a in jax.tree.leaves(variables))
        dtypes = lambda tree: [leaf.dtype for leaf in jax.tree.leaves(tree)]
        (y, stats), pull = jax.vjp(lambda v, x, layer=layer: apply(layer, v, x), variables, x)
        assert y.dtype == jnp.bfloat16
        assert dtypes(jax.eval_shape(pull, (y, stats))) == dtypes((variables, x))
        wide, _ = apply(layer.clone(dtype=None), variables, x.astype(jnp.float32))
        assert wide.dtype == jnp.float32
        assert_close(y.astype(jnp.float32), wide, 0.01)
        assert jax.tree.all(jax.tree.map(lambda a: a.dtype == jnp.float32, stats))


def test_group_counts_that_do_not_fit():
    x = jnp.ones((2, 3, 3, 12))
    for options, message in (
        ({}, "num_groups=32 does not divide 12 channels; 1, 2, 3, 4, 6, 12 do"),
        ({"num_groups": 0}, "num_groups=0 does not divide 12 channels; 1, 2, 3, 4, 6, 12 do"),
        (
            {"num_groups": None, "group_size": 5},
            "group_size=5 does not divide 12 channels; 1, 2, 3, 4, 6, 12 do",
        ),
        ({"num_groups": None}, "takes one of num_groups and group_size"),
        ({"num_groups": 2, "group_size": 6}, "takes one of num_groups and group_size"),
    ):
        with pytest.raises(ValueError, match=message):
            norm.GroupNorm(**options).init(jax.random.key(0), x)
