"""Data sets made of data sets, before training."""

import dataclasses
import zlib

import numpy as np

from jaxgen.data.dataset import DataError, Dataset


def binarised(dataset: Dataset, seed: int = 0) -> Dataset:
    """Pictures of bits drawn once from the grey values, uint8 0 and 255.

    A bit is 1 with its grey value between black and white as its probability. Bits depend on the seed, the
    split and the place in it, so the first pictures of "test" have the bits of "test[:500]".

    Raises:
        DataError: a data set that is streamed, or has no pictures.
    """
    if not isinstance(dataset, Dataset) or "image" not in dataset.arrays:
        raise DataError(f"data set {dataset.name!r} has no pictures in memory: there is nothing to binarise")
    image = dataset.arrays["image"]
    grey = image / 255 if image.dtype == np.uint8 else (image + 1) / 2
    split = zlib.crc32(dataset.split.partition("[")[0].encode())
    bits = np.random.default_rng([seed, split]).random(image.shape, np.float32) < grey
    arrays = {**dataset.arrays, "image": np.where(bits, np.uint8(255), np.uint8(0))}
    return dataclasses.replace(dataset, arrays=arrays, levels=2)
