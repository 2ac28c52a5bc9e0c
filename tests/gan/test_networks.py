"""Networks: sizes, what each promises at the start, and that evaluation treats every example by itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.gan.networks import dcgan, layers, mlp, r3gan, resnet

KEY = jax.random.key(0)
PAIRS = {
    "mlp": (mlp.Generator((16,), "batch"), mlp.Discriminator((16,), "layer")),
    "dcgan": (dcgan.Generator((16, 8)), dcgan.Discriminator((8, 16))),
    "nearest": (dcgan.Generator((16, 8), upsampling="nearest"), dcgan.Discriminator((8, 16), "spectral")),
    "resnet": (resnet.Generator((16, 8)), resnet.Discriminator((8, 16, 16))),
    "r3gan": (r3gan.Generator((16, 16, 8), 1), r3gan.Discriminator((8, 16, 16), 1)),
}


def pair(name, shape):
    generator, discriminator = PAIRS[name]
    return generator.clone(shape=shape), discriminator


def variables_and_apply(module, x):
    variables = jax.jit(lambda x: module.init(KEY, x, False))(x)

    @functools.partial(jax.jit, static_argnames="train")
    def apply(x, train=False):
        return module.apply(variables, x, train, mutable=train and ["batch_stats"])

    return variables, apply


@pytest.mark.parametrize("name", sorted(PAIRS))
def test_sizes(name):
    for shape in ((8, 8, 1), (28, 28, 1), (32, 64, 3)):
        generator, discriminator = pair(name, shape)
        codes, x = jnp.zeros((3, 5)), jnp.zeros((3, *shape))
        made = jax.eval_shape(lambda g=generator, c=codes: g.init_with_output(KEY, c, True)[0])
        features = jax.eval_shape(lambda d=discriminator, x=x: d.init_with_output(KEY, x, False)[0])
        assert made.shape == x.shape
        assert features.shape[0] == 3
        assert len(features.shape) == 2


@pytest.mark.parametrize("name", ["dcgan", "resnet"])
def test_sizes_that_do_not_fit_are_named(name):
    generator, _ = pair(name, (30, 28, 1))
    with pytest.raises(ValueError, match=r"divisible by 4, not \(30, 28, 1\): \[32, 28\] would fit"):
        generator.init(KEY, jnp.zeros((1, 5)), False)
    with pytest.raises(ValueError, match="divisible by 4"):
        pair("r3gan", (30, 28, 1))[1].init(KEY, jnp.zeros((1, 30, 28, 1)), False)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "dcgan", "resnet"])
def test_images_lie_in_range_and_evaluation_treats_each_alone(name):
    generator, _ = pair(name, (8, 8, 1))
    codes = 5 * jax.random.normal(jax.random.key(1), (6, 5))
    variables, apply = variables_and_apply(generator, codes)
    x = apply(codes)
    assert jnp.abs(x).max() <= 1
    np.testing.assert_allclose(apply(codes[:2]), x[:2], atol=1e-5)
    trained, stats = apply(codes, train=True)
    assert jnp.abs(trained - x).max() > 1e-3
    alone, _ = apply(codes[:2], train=True)
    assert jnp.abs(alone - trained[:2]).max() > 1e-3
    assert jax.tree.structure(stats["batch_stats"]) == jax.tree.structure(variables["batch_stats"])


def test_points_are_not_squashed():
    generator = mlp.Generator((64,), shape=(2,))
    codes = 50 * jax.random.normal(jax.random.key(1), (64, 2))
    assert jnp.abs(variables_and_apply(generator, codes)[1](codes)).max() > 5


def test_dcgan_starts_as_published():
    generator = dcgan.Generator((256, 128), shape=(16, 16, 1))
    params = jax.jit(lambda: generator.init(KEY, jnp.zeros((2, 100)), False))()["params"]
    kernels = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim > 1 and leaf.size > 5000]
    assert len(kernels) == 2
    for kernel in kernels:
        assert kernel.std() == pytest.approx(0.02, rel=0.05)
    scale = params["BatchNorm_0"]["scale"]
    assert scale.mean() == pytest.approx(1, abs=0.01)
    assert scale.std() == pytest.approx(0.02, rel=0.2)


def test_maxout_is_the_largest_of_five():
    discriminator = mlp.Discriminator((3,), activation="maxout")
    x = jax.random.normal(KEY, (4, 2))
    variables, apply = variables_and_apply(discriminator, x)
    (layer,) = variables["params"].values()
    pieces = (x @ layer["kernel"] + layer["bias"]).reshape(4, 3, 5)
    np.testing.assert_allclose(apply(x), pieces.max(-1), rtol=1e-6)


@pytest.mark.slow
def test_spectral_networks_are_lipschitz():
    """Fully connected, LeakyReLU: difference quotients below 1 once the power method has settled."""
    discriminator = mlp.Discriminator((32, 32, 8), "spectral")
    x, y = 3 * jax.random.normal(KEY, (2, 200, 4))
    variables = discriminator.init(KEY, x, False)
    for _ in range(30):
        _, stats = discriminator.apply(variables, x, True, mutable=["spectral"])
        variables = {**variables, **stats}
    rise = jnp.linalg.norm(
        discriminator.apply(variables, x, False) - discriminator.apply(variables, y, False), axis=1
    )
    quotients = rise / jnp.linalg.norm(x - y, axis=1)
    assert quotients.max() < 1.0 + 1e-3
    assert quotients.max() > 0.02


@pytest.mark.slow
def test_r3gan_starts_linear():
    generator, discriminator = pair("r3gan", (8, 8, 1))
    z, x = jax.random.normal(jax.random.key(1), (6, 5)), jax.random.normal(jax.random.key(2), (6, 8, 8, 1))
    for module, argument in ((generator, z), (discriminator, x)):
        _, apply = variables_and_apply(module, argument)
        y = apply(argument)
        assert y.std() > 1e-3
        np.testing.assert_allclose(apply(3 * argument[::-1] + argument), 3 * y[::-1] + y, atol=1e-4)


@pytest.mark.slow
def test_r3gan_branches_start_at_the_published_scale():
    branch = r3gan.Branch(256, total=16)
    x = jnp.zeros((1, 4, 4, 256))
    params = branch.init(KEY, x)["params"]
    gain = (2 / 1.04) ** 0.5 * 16**-0.25
    assert params["Conv_0"]["kernel"].std() == pytest.approx(gain / 256**0.5, rel=0.02)
    assert params["Conv_1"]["kernel"].shape == (3, 3, 16, 512)
    assert params["Conv_1"]["kernel"].std() == pytest.approx(gain / (9 * 16) ** 0.5, rel=0.02)
    assert not params["Conv_2"]["kernel"].any()


@pytest.mark.slow
def test_doubling_is_four_times_the_adjoint_of_halving():
    x, y = (
        jax.random.normal(KEY, (2, 8, 6, 3)),
        jax.random.normal(jax.random.key(1), (2, 4, 3, 3)),
    )
    np.testing.assert_allclose((r3gan.double(y) * x).sum(), 4 * (y * r3gan.halve(x)).sum(), rtol=1e-4)
    kernel = np.array([1, 2, 1]) / 4
    padded = np.pad(x[0, :, :, 0], 1)
    smooth = sum(kernel[i] * kernel[j] * padded[i : i + 8, j : j + 6] for i in range(3) for j in range(3))
    np.testing.assert_allclose(r3gan.halve(x)[0, :, :, 0], smooth[::2, ::2], atol=1e-6)


def test_nearest_repeats_pixels():
    x = jnp.arange(4.0).reshape(1, 2, 2, 1)
    expected = [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
    np.testing.assert_array_equal(layers.nearest(x)[0, :, :, 0], expected)


def test_grouped_convolutions_are_xlas_with_their_second_derivatives():
    x, kernel = jax.random.normal(KEY, (2, 5, 6, 8)), jax.random.normal(jax.random.key(1), (3, 3, 2, 12))
    options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": 4}

    def derivatives(convolve):
        run = lambda x, kernel: jnp.sin(convolve(x, kernel, (1, 1), "SAME", **options)).sum()
        penalty = lambda x, kernel: (jax.grad(run)(x, kernel) ** 2).sum()
        return jax.jit(
            lambda *args: (convolve(*args, (1, 1), "SAME", **options), jax.grad(penalty, (0, 1))(*args))
        )(x, kernel)

    ours, theirs = derivatives(r3gan.grouped_conv), derivatives(jax.lax.conv_general_dilated)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), ours, theirs)


@pytest.mark.slow
def test_conditional_batch_normalization_is_the_classes_own_scale_and_bias():
    generator = mlp.Generator((8,), "conditional", shape=(3,), num_labels=2)
    codes = jnp.concatenate([jax.random.normal(KEY, (6, 4)), jax.nn.one_hot(jnp.arange(6) % 2, 2)], -1)
    variables = generator.init(KEY, codes, True)
    params, hidden = dict(variables["params"]), codes @ variables["params"]["Dense_0"]["kernel"]
    plain = (hidden - hidden.mean(0)) / jnp.sqrt(hidden.var(0) + 1e-5)
    out = lambda h: jax.nn.relu(h) @ params["Dense_3"]["kernel"] + params["Dense_3"]["bias"]
    apply = lambda params: generator.apply(
        {**variables, "params": params}, codes, True, mutable=["batch_stats"]
    )[0]
    np.testing.assert_allclose(apply(params), out(plain), atol=1e-5)  # equal classes: batch normalization
    scale, bias = jax.random.normal(jax.random.key(1), (2, 2, 8))
    params |= {"Dense_1": {"kernel": scale}, "Dense_2": {"kernel": bias}}
    label = jnp.arange(6) % 2
    np.testing.assert_allclose(apply(params), out(plain * scale[label] + bias[label]), atol=1e-4)
