"""What an extractor is, and how a whole set of pictures goes through one."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial

from jaxgen import data
from jaxgen.data.dataset import to_batch

# Room for the rounding of float32, and for nothing that a model would have to be told.
_TOLERANCE = 1e-5


@dataclasses.dataclass(frozen=True, eq=False)
class Extractor:
    """Pictures to features, and for a trained classifier also to class probabilities.

    `extract` and `classify` are pure, and are not jitted; where they hold weights they are
    `jax.tree_util.Partial`s of them, so that a compiled caller can take them as an argument.
    """

    name: str
    """All that must stand beside a number made of these features: the network, its input size, the first
    eight hexadecimal digits of the SHA-256 of its weights."""
    num_features: int
    extract: Callable[[Array], Array]
    """(B, H, W, C) float32 in [-1, 1] -> (B, num_features) float32. ValueError for a size or a number of
    channels it cannot take."""
    classify: Callable[[Array], Array] | None = None
    """(B, H, W, C) float32 in [-1, 1] -> (B, K) probabilities; None where there is no classifier."""


Images = data.Dataset | data.StreamedDataset | np.ndarray | Array
"""A data set with "image", or pictures (N, H, W, C): uint8, or float in [-1, 1]."""


def of(extractor: Extractor, images: Images, batch_size: int = 500) -> np.ndarray:
    """Features of every picture, in order, (N, num_features) float32.

    Raises:
        ValueError: no pictures, values outside [-1, 1] (with the range seen), or a size or a number of
            channels that the extractor cannot take.

    Example:
        real = features.of(features.load("small-cnn-mnist"), data.load("mnist", "test"))
    """
    return _run(extractor.extract, images, batch_size)


def probabilities(extractor: Extractor, images: Images, batch_size: int = 500) -> np.ndarray:
    """p(class given picture) by the extractor's classifier, in order, (N, K) float32.

    Raises:
        ValueError: the extractor has no classifier, or as `of`.
    """
    if extractor.classify is None:
        raise ValueError(f"{extractor.name} has no classifier: small-cnn-mnist and inception-v3 have one")
    return _run(extractor.classify, images, batch_size)


def check_images(
    images: Any, name: str, channels: tuple[int, ...], size: tuple[int, int] | None = None, smallest: int = 1
) -> None:
    """ValueError, in one line, unless `images` are (B, H, W, C) as the extractor called `name` takes them.

    Args:
        channels: numbers of channels it takes; none of them means any.
        size: the only (height, width) it takes, if there is one.
        smallest: pixels that height and width must have.
    """
    if images.ndim != 4:
        raise ValueError(f"{name} takes images (B, height, width, channels), not {images.shape}")
    height, width, found = images.shape[1:]
    if channels and found not in channels:
        wanted = " or ".join(map(str, channels))
        raise ValueError(f"{name} takes images of {wanted} channels, not {found}")
    if size is not None and (height, width) != size:
        raise ValueError(f"{name} takes images of {size[0]}x{size[1]} pixels, not {height}x{width}")
    if min(height, width) < smallest:
        raise ValueError(f"{name} takes images of at least {smallest} pixels a side, not {height}x{width}")


def stream(images: Images, batch_size: int) -> Iterator[np.ndarray]:
    """Pictures as float32 batches (B, H, W, C) in order, the last may be short; ValueErrors as of `of`."""
    if isinstance(images, data.Dataset | data.StreamedDataset):
        batches = _images(images, batch_size)
    else:
        batches = _slices(np.asarray(images), batch_size)
    for batch in batches:
        low, high = batch.min(), batch.max()
        if not (low >= -1 - _TOLERANCE and high <= 1 + _TOLERANCE):
            seen = f"[{low:.4g}, {high:.4g}]"
            raise ValueError(f"images must lie in [-1, 1], these are in {seen}: clip or scale them")
        yield batch


def _images(dataset: data.Dataset | data.StreamedDataset, batch_size: int) -> Iterator[np.ndarray]:
    for batch in data.in_order(dataset, batch_size):
        if "image" not in batch:
            raise ValueError(f"data set {dataset.name!r} has no images: it has {', '.join(batch)}")
        yield np.asarray(batch["image"])


def _slices(images: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    if images.ndim != 4 or images.size == 0:
        raise ValueError(f"images must be (N, height, width, channels), none of them 0, not {images.shape}")
    if images.dtype != np.uint8 and not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images must be uint8, or float in [-1, 1], not {images.dtype}")
    if batch_size < 1:
        raise ValueError(f"batch size must be at least 1, not {batch_size}")
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        yield to_batch({"image": batch})["image"] if batch.dtype == np.uint8 else batch.astype(np.float32)


@jax.jit
def _apply(function, images):
    return function(images)


def _run(function: Callable[[Array], Array], images: Images, batch_size: int) -> np.ndarray:
    function = function if isinstance(function, Partial) else Partial(function)
    found: list[np.ndarray] = []
    rows = 0
    for batch in stream(images, batch_size):
        rows = rows or len(batch)
        # One shape, hence one compilation: the last batch is filled up.
        full = np.concatenate([batch, np.zeros((rows - len(batch), *batch.shape[1:]), np.float32)])
        found.append(np.asarray(_apply(function, full), np.float32)[: len(batch)])
    return np.concatenate(found)
