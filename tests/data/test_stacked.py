"""Three digits a picture, and their label."""

import numpy as np

from jaxgen import data
from jaxgen.data import stacked


def test_channels_are_digits_and_the_label_reads_them():
    digits = data.load("digits", "test")
    triples = stacked.stacked("stacked", digits, 3000)
    assert triples.shape == (8, 8, 3)
    assert triples.num_classes == 1000
    label = triples.arrays["label"]
    assert len(np.unique(label)) > 900
    written = np.stack([label // 100, label // 10 % 10, label % 10], 1)
    known = {image.tobytes(): digit for image, digit in zip(*digits.arrays.values(), strict=True)}
    for image, digit in zip(triples.arrays["image"][:100], written, strict=False):
        assert [known[image[..., channel].tobytes()] for channel in range(3)] == list(digit)


def test_splits_are_fixed_and_their_own():
    first, again = (stacked.stacked("stacked", data.load("digits"), 20) for _ in range(2))
    np.testing.assert_array_equal(first.arrays["image"], again.arrays["image"])
    other = stacked.stacked("stacked", data.load("digits", "test"), 20)
    assert (first.arrays["label"] != other.arrays["label"]).any()
