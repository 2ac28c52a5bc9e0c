"""Transforms of data sets."""

import numpy as np
import pytest

from jaxgen import data
from jaxgen.data import transforms


def grey(count, split="train"):
    image = np.broadcast_to(np.array([0, 64, 128, 230, 255], np.uint8)[None, :, None, None], (count, 5, 1, 1))
    return data.Dataset("grey", split, {"image": image, "label": np.arange(count) % 3})


def test_bits_are_drawn_once_with_the_grey_values_as_probabilities():
    dataset = transforms.binarised(grey(20_000))
    image = dataset.arrays["image"][..., 0, 0]
    assert (image.dtype, dataset.levels, dataset.num_classes) == (np.uint8, 2, 3)
    assert set(np.unique(dataset[:]["image"])) == {-1.0, 1.0}
    np.testing.assert_allclose(image.mean(0) / 255, np.array([0, 64, 128, 230, 255]) / 255, atol=0.02)
    assert (image[:, 0] == 0).all()
    assert (image[:, 4] == 255).all()
    assert abs(np.corrcoef(image[:, 1:4].T)[np.triu_indices(3, 1)]).max() < 0.03
    np.testing.assert_array_equal(image, transforms.binarised(grey(20_000)).arrays["image"][..., 0, 0])


def test_bits_depend_on_seed_and_split_and_not_on_what_follows():
    bits = lambda *dataset, **options: transforms.binarised(grey(*dataset), **options).arrays["image"]
    whole = bits(500)
    np.testing.assert_array_equal(bits(100, "train[:100]"), whole[:100])
    assert (bits(500, seed=1) != whole).any()
    assert (bits(500, "test") != whole).any()


def test_real_pictures_are_binarised_and_other_data_refused():
    real = data.Dataset("real", "train", {"image": np.full((2000, 2, 2, 1), 0.5, np.float32)})
    assert transforms.binarised(real).arrays["image"].mean() == pytest.approx(0.75 * 255, rel=0.03)
    with pytest.raises(data.DataError, match="nothing to binarise"):
        transforms.binarised(data.load("ring"))
