"""Pictures of three digits, one per colour channel: a thousand modes, which a classifier can count."""

import numpy as np

from jaxgen.data.dataset import Dataset

SIZES = {"train": 128_000, "test": 26_000}
_SEEDS = {"train": 0, "test": 1}


def stacked(name: str, digits: Dataset, size: int) -> Dataset:
    """`size` draws of three of `digits`, as red, green and blue channels (Metz et al. 2017; Lin et al. 2018).

    The label is 100 red + 10 green + blue.
    """
    # RandomState, because NumPy keeps its streams from version to version and its Generator's not.
    rows = np.random.RandomState(_SEEDS[digits.split]).randint(len(digits), size=(size, 3))
    image = np.stack([digits.arrays["image"][channel][..., 0] for channel in rows.T], -1)
    label = digits.arrays["label"][rows].astype(np.int32) @ np.array([100, 10, 1], np.int32)
    return Dataset(name, digits.split, {"image": image, "label": label}, num_classes=1000)
