"""The pictures of known factors: each factor shows where it should, and nowhere else."""

import numpy as np
import pytest

from jaxgen import data
from jaxgen.data.factors import FACTORS, SIDE
from jaxgen.evaluation import disentangle


@pytest.fixture(scope="module")
def pictures():
    """All of them, as brightness (N, 32, 32) in [0, 1], and their factors as values: dict of (N,)."""
    splits = [data.load("factors", split).arrays for split in ("train", "test")]
    image, which = (np.concatenate([arrays[key] for arrays in splits]) for key in ("image", "factors"))
    values = {name: np.array(known)[which[:, i]] for i, (name, known) in enumerate(FACTORS.items())}
    return image[..., 0] / 255, which, values


def moments(image):
    """Total, mean position (x, y) from the centre in pixels, y upwards, and covariance of the brightness."""
    ticks = np.arange(SIDE) + 0.5 - SIDE / 2
    points = np.stack(np.meshgrid(ticks, -ticks), -1).reshape(-1, 2)
    weights = image.reshape(len(image), -1)
    total = weights.sum(1)
    mean = weights @ points / total[:, None]
    second = np.einsum("np,pi,pj->nij", weights, points, points) / total[:, None, None]
    return total, mean, second - np.einsum("ni,nj->nij", mean, mean)


def test_every_combination_is_there_once(pictures):
    _, which, _ = pictures
    assert len(which) == np.prod([len(values) for values in FACTORS.values()])
    assert len(np.unique(which, axis=0)) == len(which)


def test_a_batch_has_factors_beside_pictures():
    test = data.load("factors", "test")
    batch = test[:7]
    assert batch["image"].shape == (7, SIDE, SIDE, 1)
    assert batch["factors"].shape == (7, 5)
    assert batch["factors"].dtype == np.int32
    np.testing.assert_array_equal(batch["label"], batch["factors"][:, 0])
    assert test.label_names == FACTORS["shape"]


def test_size_and_place_are_those_of_the_factors(pictures):
    image, _, values = pictures
    total, mean, _ = moments(image)
    for shape, area in (("square", 2.0), ("ellipse", np.pi / 2)):
        chosen = values["shape"] == shape
        np.testing.assert_allclose(total[chosen], area * values["scale"][chosen] ** 2, rtol=0.04)
        place = np.stack([values["x"], values["y"]], 1)[chosen]
        np.testing.assert_allclose(mean[chosen], place, atol=0.02)


def test_the_ellipse_points_where_its_orientation_says(pictures):
    image, _, values = pictures
    chosen = values["shape"] == "ellipse"
    covariance = moments(image[chosen])[2]
    angle = np.arctan2(2 * covariance[:, 0, 1], covariance[:, 0, 0] - covariance[:, 1, 1]) / 2
    np.testing.assert_allclose(angle, values["orientation"][chosen], atol=0.02)


def test_nothing_is_cut_off(pictures):
    image, _, values = pictures
    assert image[:, [0, -1]].max() == image[:, :, [0, -1]].max() == 0
    total = moments(image)[0]
    for shape in FACTORS["shape"]:
        largest = total[(values["shape"] == shape) & (values["scale"] == 7) & (values["orientation"] == 0)]
        np.testing.assert_allclose(largest, largest[0])


def test_the_factors_themselves_are_perfect_codes(pictures):
    _, which, _ = pictures
    assert disentangle.mutual_information_gap(which.astype(float), which) == pytest.approx(1)
