"""Pictures that need no catalogue: scikit-learn's digits."""

import numpy as np

from jaxgen.data.dataset import Dataset


def digits(split: str) -> Dataset:
    """1,797 handwritten digits, (8, 8, 1), of which a fifth are the test split (Alpaydin & Kaynak 1998, UCI).

    Comes inside scikit-learn, so nothing is downloaded. The 17 grey levels are spread over 0 .. 255.
    """
    from sklearn.datasets import load_digits

    pixels, label = load_digits(return_X_y=True)
    image = np.round(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    chosen = held_out(label) == (split == "test")
    arrays = {"image": image[chosen], "label": label[chosen]}
    return Dataset("digits", split, arrays, num_classes=10, label_names=tuple("0123456789"))


def held_out(label: np.ndarray) -> np.ndarray:
    """A fixed choice of a fifth of the examples of each class as a test split: (N,) bool."""
    chosen = np.zeros(len(label), bool)
    # RandomState, because NumPy keeps its streams from version to version and its Generator's not.
    rng = np.random.RandomState(0)
    for value in np.unique(label):
        members = rng.permutation(np.flatnonzero(label == value))
        chosen[members[: round(len(members) / 5)]] = True
    return chosen
