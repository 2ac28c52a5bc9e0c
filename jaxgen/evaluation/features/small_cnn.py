"""A small convolutional classifier for each of digits, MNIST and Fashion-MNIST: the default extractor there.

Features are the activations before the last layer, after the nonlinearity, standardised by their mean and
standard deviation over the training set, so that a distance of one means the same everywhere. The weights
come with the package; `experiments/train_features.py` makes them.
"""

import functools
import hashlib
import io
from importlib import resources
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax import Array
from jax.tree_util import Partial

from jaxgen.evaluation.features.extractor import Extractor, check_images
from jaxgen.nn import conv

SIZES = {"digits": 8, "mnist": 28, "fashion_mnist": 28}
"""Pixels a side of each set's pictures."""

SHA256 = {
    "digits": "e260e3daad21505de0cc04b0db4c9a9e318b8e717ffc0af3d165f21e4fb38dea",
    "mnist": "b259ef28b227bea8b6cee52cc6e795e7a74d9fff8ece4e03dc4137db2480e735",
    "fashion_mnist": "3fe1c059876b23e695d0eb1c896be1c78452b02d515832e3b3db23d08ed60ccc",
}
"""Of each file in `weights`, as hexadecimal digits."""

NUM_FEATURES = 64


class Network(nn.Module):
    """Three strided convolutions and two dense layers: (B, H, W, 1) -> features (B, 64), logits (B, 10)."""

    strides: tuple[int, ...]

    @nn.compact
    def __call__(self, images: Array) -> tuple[Array, Array]:
        x = images
        for channels, size, stride in zip((32, 64, 64), (5, 3, 3), self.strides, strict=True):
            x = _nonlinearity(conv.Conv(channels, (size, size), (stride, stride))(x))
        x = _nonlinearity(nn.Dense(NUM_FEATURES)(x.reshape(len(x), -1)))
        return x, nn.Dense(10)(x)


def network(dataset: str) -> Network:
    """The network for the pictures of a set in `SIZES`."""
    return Network((2, 2, 2) if SIZES[dataset] == 28 else (1, 2, 2))


def load(dataset: str | None) -> Extractor:
    """The extractor trained on `dataset`, with its classifier of ten classes.

    Raises:
        ValueError: no extractor was trained on that set, or its file is damaged.
    """
    if dataset not in SIZES:
        raise ValueError(f"no small-cnn was trained on {dataset!r}, only on {', '.join(SIZES)}")
    arrays = read(dataset)
    params = traverse_util.unflatten_dict(arrays, sep="/")["params"]
    params = jax.tree.map(lambda array: jnp.asarray(array, jnp.float32), params)
    mean, std = jnp.asarray(arrays["mean"]), jnp.asarray(arrays["std"])
    return Extractor(
        f"small-cnn-{dataset}-{SHA256[dataset][:8]}",
        NUM_FEATURES,
        Partial(functools.partial(_extract, dataset), params, mean, std),
        Partial(functools.partial(_classify, dataset), params),
    )


def read(dataset: str) -> dict[str, np.ndarray]:
    """What is in the file: params/... float16; mean, std (64,) float32 of the features over the training set;
    test_accuracy, seed, epochs, command, jax: how they came about.

    Raises:
        ValueError: the file is damaged.
    """
    content = resources.files(__package__).joinpath("weights", f"small-cnn-{dataset}.npz").read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256[dataset]:
        raise ValueError(
            f"small-cnn-{dataset}.npz is damaged: its SHA-256 is {found[:8]}..., "
            f"not {SHA256[dataset][:8]}...: install jaxgen again"
        )
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}


def apply(dataset: str, params: Any, images: Array) -> tuple[Array, Array]:
    """Features before they are standardised (B, 64), and logits (B, 10)."""
    side = SIZES[dataset]
    check_images(images, f"small-cnn-{dataset}", channels=(1,), size=(side, side))
    with jax.default_matmul_precision("float32"):
        outputs: Any = network(dataset).apply({"params": params}, images)
    return outputs


def _extract(dataset: str, params: Any, mean: Array, std: Array, images: Array) -> Array:
    return (apply(dataset, params, images)[0] - mean) / std


def _classify(dataset: str, params: Any, images: Array) -> Array:
    return jax.nn.softmax(apply(dataset, params, images)[1])


def _nonlinearity(x: Array) -> Array:
    # A unit of a plain ReLU may die, and a feature that never varies cannot be standardised.
    return nn.leaky_relu(x, 0.1)
