"""Extractors that need no trained weights: principal components of given data, and a random network."""

import functools
import hashlib
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial

from jaxgen import data
from jaxgen.evaluation import frechet
from jaxgen.evaluation.features.extractor import Extractor, Images, check_images, stream
from jaxgen.nn import conv

RANDOM_CHANNELS = (16, 32, 64)
_CHANNELS_LAST = ("NHWC", "HWIO", "NHWC")


LARGEST = 4096
"""Numbers of a picture up to which its principal components are found: a dense eigenproblem of that size."""


def pca(images: Images, num_features: int = 64) -> Extractor:
    """The leading principal components of pictures, each divided by its standard deviation there.

    x -> diag(std)^-1 V' (x - mean), so the features of the pictures it was fitted on have mean 0 and
    covariance I (ddof 1). Called "pca64-<data set>-<hash>", the hash being of the pictures.

    Raises:
        ValueError: the pictures vary in fewer than `num_features` directions, are larger than `LARGEST`, or
            are none that `of` takes.
    """
    mean, covariance, shape, digest = _moments(images)
    variances, directions = np.linalg.eigh(covariance)
    found = int((variances > 1e-10 * variances[-1]).sum())
    if not 1 <= num_features <= found:
        raise ValueError(f"these pictures {shape} have {found} principal components, not {num_features}")
    variances, directions = variances[::-1][:num_features], directions[:, ::-1][:, :num_features]
    # The sign of an eigenvector is the library's whim: fixed, features agree between machines.
    signs = np.sign(directions[np.abs(directions).argmax(0), np.arange(num_features)])
    projection = jnp.asarray(directions * signs / np.sqrt(variances), jnp.float32)
    where = f"-{images.name}" if isinstance(images, data.Dataset | data.StreamedDataset) else ""
    name = f"pca{num_features}{where}-{digest[:8]}"
    extract = functools.partial(_project, name, shape)
    return Extractor(name, num_features, Partial(extract, jnp.asarray(mean, jnp.float32), projection))


def random_conv() -> Extractor:
    """Three strided 3x3 convolutions with fixed Gaussian weights, averaged over the picture: 64 features.

    Takes any number of channels and any size. NumPy's RandomState draws the weights, whose stream is kept
    from version to version.
    """
    return Extractor("random-conv", RANDOM_CHANNELS[-1], _random_features)


def _project(name: str, shape: tuple[int, ...], mean: Array, projection: Array, images: Array) -> Array:
    check_images(images, name, channels=shape[2:], size=(shape[0], shape[1]))
    with jax.default_matmul_precision("float32"):
        return (images.reshape(len(images), -1) - mean) @ projection


def _random_features(images: Array) -> Array:
    check_images(images, "random-conv", channels=())
    draw, x = np.random.RandomState(0), images
    for channels in RANDOM_CHANNELS:
        # He scaling keeps the variance of what enters each nonlinearity near one.
        fan_in = 9 * x.shape[-1]
        kernel = draw.standard_normal((3, 3, x.shape[-1], channels)) * math.sqrt(2 / fan_in)
        bias = 0.1 * draw.standard_normal(channels)
        with jax.default_matmul_precision("float32"):
            x = conv.conv_general_dilated(
                x, jnp.asarray(kernel, jnp.float32), (2, 2), "SAME", dimension_numbers=_CHANNELS_LAST
            )
        x = jax.nn.leaky_relu(x + jnp.asarray(bias, jnp.float32), 0.1)
    return x.mean((1, 2))


def _moments(images: Images) -> tuple[np.ndarray, np.ndarray, tuple[int, ...], str]:
    """Mean and covariance (ddof 1) of flattened pictures in float64, their shape, SHA-256 of their values."""
    moments = frechet.Moments()
    shape: tuple[int, ...] = ()
    digest = hashlib.sha256()
    for batch in stream(images, 500):
        shape = batch.shape[1:]
        if math.prod(shape) > LARGEST:
            raise ValueError(f"principal components of pictures {shape} are too many: give smaller ones")
        digest.update(np.ascontiguousarray(batch, "<f4").tobytes())
        moments.update(batch.reshape(len(batch), -1))
    covariance = moments.scatter / max(moments.count - 1, 1)
    return moments.mean, covariance, shape, digest.hexdigest()
