"""Each metric moves the way it should when real test images are spoilt, on digits."""

import pytest

from experiments.studies import calibration


@pytest.fixture(scope="module")
def rows():
    return calibration.calibrate(calibration.Options(data="digits"))


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["frechet", "kernel"])
def test_distances_grow_with_what_is_done_to_the_images(rows, metric):
    blurred = [rows[name][metric] for name in ("real", "blurred 0.5", "blurred 1.0", "blurred 2.0")]
    noised = [rows[name][metric] for name in ("real", "noised 0.1", "noised 0.2", "noised 0.4")]
    assert blurred == sorted(blurred)
    assert noised == sorted(noised)
    assert rows["one class dropped"][metric] > rows["real"][metric]
    assert rows["each 10 times"][metric] > rows["each 2 times"][metric] > rows["real"][metric]


@pytest.mark.slow
def test_fidelity_falls_with_the_quality_of_each_image_only(rows):
    real = rows["real"]
    for metric in ("precision", "density"):
        assert rows["blurred 1.0"][metric] < 0.6 * real[metric]
        assert rows["noised 0.4"][metric] < real[metric] - 0.05
        assert rows["one class dropped"][metric] > real[metric] - 0.05
        assert rows["each 10 times"][metric] > real[metric] - 0.1


@pytest.mark.slow
def test_diversity_falls_with_what_is_missing(rows):
    real = rows["real"]
    for metric in ("recall", "coverage"):
        assert rows["one class dropped"][metric] < real[metric] - 0.05
        assert rows["each 10 times"][metric] < rows["each 2 times"][metric] < real[metric] - 0.05


def test_the_classifier_score_sees_a_missing_class_and_blur(rows):
    assert rows["one class dropped"]["classifier_score"] < rows["real"]["classifier_score"] - 0.5
    assert rows["blurred 2.0"]["classifier_score"] < 0.5 * rows["real"]["classifier_score"]
