import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import data
from jaxgen.evaluation import probe


@pytest.fixture(scope="module")
def digits():
    return [data.load("digits", split)[:] for split in ("train", "test")]


def probed(digits, represent):
    train, test = digits
    features = [represent(batch["image"]) for batch in (train, test)]
    return probe.linear_probe(features[0], train["label"], features[1], test["label"])


@pytest.fixture(scope="module")
def on_pixels(digits):
    return probed(digits, lambda image: image.reshape(len(image), -1))


def test_pixels_of_digits_are_nearly_linear(on_pixels):
    assert on_pixels["accuracy"] > 0.9
    assert on_pixels["C"] in probe.STRENGTHS


@pytest.mark.slow
def test_kmeans_features_are_no_worse_than_pixels(digits, on_pixels):
    codebook = probe.fit_kmeans(jax.random.key(0), digits[0]["image"], 64, num_patches=5000, iterations=10)
    found = probed(digits, lambda image: probe.kmeans_features(codebook, image))
    assert found["accuracy"] >= on_pixels["accuracy"]


def test_strength_is_chosen_on_validation_data():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 2000)
    features = rng.normal(size=(2000, 400))
    features[:, :4] += 2 * labels[:, None]
    sets = features[:500], labels[:500], features[500:], labels[500:]
    for strengths in ((1e-5, 0.1), (0.1, 1e-5)):
        assert probe.linear_probe(*sets, strengths)["C"] == 0.1
    assert probe.linear_probe(*sets, (0.1,))["accuracy"] > 0.9
    assert probe.linear_probe(*sets, (1e-5,))["accuracy"] < 0.7


def test_scale_of_features_does_not_matter(digits, on_pixels):
    scales = 10.0 ** np.random.default_rng(1).integers(-3, 4, 64)
    scaled = probed(digits, lambda image: image.reshape(len(image), -1) * scales + 5)
    assert scaled["accuracy"] == pytest.approx(on_pixels["accuracy"], abs=0.01)


def test_features_agree_with_the_definition():
    rng = np.random.default_rng(2)
    images = rng.uniform(-1, 1, (3, 9, 8, 2)).astype(np.float32)
    codebook = probe.fit_kmeans(jax.random.key(0), images, 5, num_patches=200, iterations=3)
    mean, whitening, centroids = (np.asarray(array, np.float64) for array in codebook)
    expected = np.zeros((3, 2, 2, 5))
    for n, i, j in np.ndindex(3, 7, 6):
        patch = images[n, i : i + 3, j : j + 3].reshape(-1).astype(np.float64)
        patch = (patch - patch.mean()) / np.sqrt(patch.var() + probe._CONTRAST)
        distance = np.linalg.norm((patch - mean) @ whitening - centroids, axis=1)
        expected[n, int(i >= 3), int(j >= 3)] += np.maximum(distance.mean() - distance, 0)
    np.testing.assert_allclose(probe.kmeans_features(codebook, images), expected.reshape(3, -1), rtol=1e-3)


@pytest.mark.slow
def test_centroids_find_clusters_of_patches():
    # Three patterns and a little noise: whitened, they are still three tight clusters.
    rng = np.random.default_rng(3)
    patterns = rng.uniform(-1, 1, (3, 4, 4, 1))
    images = patterns[rng.integers(0, 3, 300)] + 0.01 * rng.normal(size=(300, 4, 4, 1))
    codebook = probe.fit_kmeans(jax.random.key(1), images, 30, patch_size=4, num_patches=1000)
    patches = probe._normalised(jnp.asarray(patterns.reshape(3, -1), jnp.float32))
    whitened = (patches - codebook.mean) @ codebook.whitening
    gaps = np.linalg.norm(np.asarray(whitened)[:, None] - np.asarray(codebook.centroids), axis=-1).min(1)
    assert (gaps < 0.3).all()


def test_centroids_are_those_of_lloyds_algorithm():
    images = np.random.default_rng(4).uniform(-1, 1, (50, 8, 8, 1)).astype(np.float32)
    codebook = probe.fit_kmeans(jax.random.key(2), images, 6, num_patches=300, iterations=4)
    mean, _, patches, centroids = map(np.asarray, probe._patches(jax.random.key(2), images, 6, 3, 300))
    for _ in range(4):
        nearest = ((patches[:, None] - centroids) ** 2).sum(-1).argmin(1)
        centroids = np.stack([patches[nearest == index].mean(0) for index in range(6)])
    np.testing.assert_allclose(codebook.centroids, centroids, atol=1e-5)
    np.testing.assert_array_equal(codebook.mean, mean)


def test_bad_input_is_named():
    x, y = np.zeros((6, 2)), np.array([0, 0, 1, 1, 2, 2])
    with pytest.raises(ValueError, match="train_features has 2 features and test_features has 3"):
        probe.linear_probe(x, y, np.zeros((6, 3)), y)
    with pytest.raises(
        ValueError, match=r"train_labels must be one label for each of 6 examples, not \(5,\)"
    ):
        probe.linear_probe(x, y[:5], x, y)
    with pytest.raises(ValueError, match="train_labels has no example of class 1"):
        probe.linear_probe(x, y * 2, x, y)
    with pytest.raises(ValueError, match="test_labels has class 3, which no training example has"):
        probe.linear_probe(x, y, x, y + 1)
    with pytest.raises(ValueError, match="class 1 is too small"):
        probe.linear_probe(x, [0, 0, 0, 0, 0, 1], x, y * 0)
    with pytest.raises(ValueError, match="test_features has 12 values that are not finite"):
        probe.linear_probe(x, y, x + np.nan, y)
    images = np.zeros((4, 8, 8, 1))
    with pytest.raises(ValueError, match=r"must be \(N, height, width, channels\), not \(4, 8, 8\)"):
        probe.fit_kmeans(jax.random.key(0), images[..., 0])
    with pytest.raises(ValueError, match="patches of 9 pixels do not fit"):
        probe.fit_kmeans(jax.random.key(0), images, patch_size=9)
    with pytest.raises(ValueError, match="64 centroids need as many patches, not 10"):
        probe.fit_kmeans(jax.random.key(0), images, 64, num_patches=10)
    codebook = probe.Codebook(jnp.zeros(9), jnp.eye(9), jnp.zeros((4, 9)))
    with pytest.raises(ValueError, match=r"patches of 9 numbers do not fit images \(8, 8, 3\)"):
        probe.kmeans_features(codebook, np.zeros((4, 8, 8, 3)))
