"""Feature extractors: what they promise of shapes, values and errors, and that the weights are good."""

import os
from importlib import resources

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import data
from jaxgen.evaluation import features
from jaxgen.evaluation.features import small_cnn


@pytest.fixture(scope="module")
def digits():
    return data.load("digits"), data.load("digits", "test")


@pytest.fixture(scope="module", params=["small-cnn-digits", "pca20", "random-conv"])
def extractor(request, digits):
    return features.load(request.param, digits[0])


def catalogue(name):
    if not os.environ.get("TFDS_DATA_DIR"):
        pytest.skip(f"TFDS_DATA_DIR does not say where {name} is prepared")
    return data.load(name), data.load(name, "test")


def accuracy(extractor, dataset):
    found = features.probabilities(extractor, dataset).argmax(-1)
    return (found == dataset.arrays["label"]).mean()


def test_features_do_not_depend_on_the_batch_size_or_on_what_holds_the_pictures(extractor, digits):
    whole = features.of(extractor, digits[1])
    assert whole.shape == (len(digits[1]), extractor.num_features)
    assert whole.dtype == np.float32
    pictures = digits[1].arrays["image"]
    streamed = data.StreamedDataset("streamed", "test", [{"image": x} for x in pictures], (8, 8, 1))
    others = [
        features.of(extractor, streamed, 100),
        features.of(extractor, digits[1], 37),
        features.of(extractor, pictures, 1000),
        features.of(extractor, digits[1][:]["image"], 1),
        extractor.extract(jnp.asarray(digits[1][:]["image"])),
        jax.jit(extractor.extract)(digits[1][:]["image"]),
    ]
    for other in others:
        np.testing.assert_allclose(other, whole, atol=1e-4)


def test_one_shape_is_compiled_and_filling_up_leaves_no_trace(digits):
    shapes = []

    def extract(images):
        shapes.append(images.shape)
        return images.sum((1, 2))

    pictures = digits[1][:25]["image"]
    found = features.of(features.Extractor("sum", 1, extract), pictures, 10)
    np.testing.assert_allclose(found, pictures.sum((1, 2)), rtol=1e-5)
    assert shapes == [(10, 8, 8, 1)]


def test_farther_pictures_have_farther_features(extractor, digits):
    pictures = digits[1][:]["image"]
    noise = np.random.default_rng(0).normal(size=pictures.shape).astype(np.float32)
    noisy = [np.clip(pictures + std * noise, -1, 1) for std in (0.0, 0.2, 0.5, 1.0)]
    means = [features.of(extractor, images).mean(0) for images in noisy]
    distances = [float(((mean - means[0]) ** 2).sum()) for mean in means]
    assert distances == sorted(distances)
    assert distances[1] > 0


def test_small_cnn_features_are_standardised_over_the_training_set(digits):
    found = features.of(features.load("small-cnn-digits"), digits[0])
    np.testing.assert_allclose(found.mean(0), 0.0, atol=1e-3)
    np.testing.assert_allclose(found.std(0), 1.0, atol=1e-3)


def test_principal_components_have_unit_covariance_and_span_the_largest_directions(digits):
    fitted = features.load("pca10", digits[0])
    found = features.of(fitted, digits[0])
    np.testing.assert_allclose(np.cov(found.T), np.eye(10), atol=1e-4)
    pixels = digits[0][:]["image"].reshape(len(digits[0]), -1)
    centred = np.float64(pixels - pixels.mean(0))
    vectors = np.linalg.eigh(centred.T @ centred)[1]
    best = centred @ vectors[:, ::-1][:, :10]
    cosines = np.linalg.svd(np.linalg.qr(best)[0].T @ np.linalg.qr(found)[0], compute_uv=False)
    np.testing.assert_allclose(cosines, 1.0, atol=1e-5)
    assert fitted.name == features.load("pca10", digits[0]).name
    assert fitted.name != features.load("pca10", digits[1]).name
    assert fitted.name.startswith("pca10-digits-")


@pytest.mark.parametrize("channels", [1, 3])
def test_random_conv_is_the_same_everywhere_and_takes_any_picture(channels):
    pictures = np.linspace(-1, 1, 2 * 9 * 13 * channels, dtype=np.float32).reshape(2, 9, 13, channels)
    found = features.of(features.load("random-conv"), pictures)
    assert (found.std(0) > 0).all()
    np.testing.assert_allclose(found[0, :3], RANDOM_FEATURES[channels], atol=1e-6)


RANDOM_FEATURES = {1: [-0.0159802, 0.0751526, -0.0144478], 3: [0.0126536, 0.0203869, 0.0905121]}


def test_small_cnn_classifies_digits_as_well_as_its_file_says(digits):
    assert accuracy(features.load("small-cnn-digits"), digits[1]) == pytest.approx(
        float(small_cnn.read("digits")["test_accuracy"]), abs=0.003
    )
    assert features.probabilities(features.load("small-cnn-digits"), digits[1]).sum(-1) == pytest.approx(1.0)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "gate"), [("mnist", 0.99), ("fashion_mnist", 0.91)])
def test_small_cnn_passes_its_gate(name, gate):
    written = float(small_cnn.read(name)["test_accuracy"])
    assert written >= gate
    train, test = catalogue(name)
    extractor = features.load("small-cnn", train)
    assert extractor.name.startswith(f"small-cnn-{name}-")
    assert accuracy(extractor, test) == pytest.approx(written, abs=5e-4)
    found = features.of(extractor, data.load(name, "train[:5000]"))
    np.testing.assert_allclose(found.mean(0), 0.0, atol=0.1)
    np.testing.assert_allclose(found.std(0), 1.0, atol=0.1)


@pytest.mark.parametrize("name", small_cnn.SIZES)
def test_weights_are_small_and_damage_is_seen(name, tmp_path, monkeypatch):
    file = resources.files(features).joinpath("weights", f"small-cnn-{name}.npz")
    content = file.read_bytes()
    assert len(content) <= 500_000
    assert str(small_cnn.read(name)["command"]).startswith(f"python experiments/train_features.py {name}")
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / file.name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    monkeypatch.setattr(small_cnn.resources, "files", lambda package: tmp_path)
    with pytest.raises(ValueError, match=rf"small-cnn-{name}.npz is damaged: its SHA-256 is .*install"):
        features.load(f"small-cnn-{name}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("small-cnn-mnst", "did you mean small-cnn-mnist"),
        ("small_cnn_digits", "did you mean small-cnn-digits"),
        ("inceptin", "There are small-cnn-digits"),
        ("small-cnn", "no small-cnn was trained on None, only on digits, mnist, fashion_mnist"),
        ("pca64", r"fitted on data: give load\('pca64', dataset\)"),
    ],
)
def test_unknown_names_say_which_there_are(name, message):
    with pytest.raises(ValueError, match=message) as error:
        features.load(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.full((2, 8, 8, 1), 1.5, np.float32), r"must lie in \[-1, 1\], these are in \[1.5, 1.5\]"),
        (np.full((2, 8, 8, 1), np.nan, np.float32), r"must lie in \[-1, 1\], these are in \[nan, nan\]"),
        (np.zeros((2, 8, 8, 3), np.float32), "small-cnn-digits takes images of 1 channels, not 3"),
        (np.zeros((2, 7, 8, 1), np.float32), "takes images of 8x8 pixels, not 7x8"),
        (np.zeros((8, 8, 1), np.float32), r"must be \(N, height, width, channels\)"),
        (np.zeros((0, 8, 8, 1), np.float32), r"must be \(N, height, width, channels\)"),
        (np.zeros((2, 8, 8, 1), np.int32), r"must be uint8, or float in \[-1, 1\], not int32"),
        (data.load("ring"), "data set 'ring' has no images"),
    ],
)
def test_pictures_an_extractor_cannot_take(images, message):
    with pytest.raises(ValueError, match=message) as error:
        features.of(features.load("small-cnn-digits"), images)
    assert "\n" not in str(error.value)


def test_what_cannot_be_done_says_so(digits):
    with pytest.raises(ValueError, match="principal components, not 65"):
        features.load("pca65", digits[0])
    with pytest.raises(ValueError, match="too many: give smaller ones"):
        features.load("pca8", np.zeros((10, 64, 65, 1), np.uint8))
    with pytest.raises(ValueError, match="random-conv has no classifier"):
        features.probabilities(features.load("random-conv"), digits[0])
