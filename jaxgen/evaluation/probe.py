"""What a representation is worth: a linear probe on it, beside one on k-means features of the same images.

The probe standardises features and fits L2-regularised logistic regression, the strength chosen on a part of
the training labels. The baseline is the single layer of Coates, Lee & Ng 2011: centroids of whitened patches,

    f_k(patch) = max(0, mean_j |patch - c_j| - |patch - c_k|),

summed over the quadrants of the image. It needs no training but k-means, and is hard to beat.
"""

import functools
import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen.evaluation import checks, distances

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Inverse regularisation strengths C that are tried."""

_CONTRAST = 6e-4  # added to a patch's variance: 10 on the scale of 0..255 in the paper
_WHITENING = 0.1  # added to the eigenvalues of contrast-normalised patches, as in the paper


def linear_probe(
    train_features: Any,
    train_labels: Any,
    test_features: Any,
    test_labels: Any,
    strengths: Sequence[float] = STRENGTHS,
    seed: int = 0,
) -> dict[str, float]:
    """{"accuracy", "C"}: test accuracy of logistic regression on features (N, d) and labels (N,), and its C.

    C is the one of `strengths` with the highest accuracy on a fifth of the training set; the reported model
    is then fitted to all of it. Compare representations on the same labels, and state how many.

    Raises:
        ValueError: features of different d or with values that are not finite; labels that are not one
            integer from 0 for each example; a class with fewer than two training examples, or none.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    sets = checks.features(train_features=train_features, test_features=test_features)
    train_features, test_features = (np.asarray(features, np.float64) for features in sets)
    (train_labels,) = checks.labels(len(train_features), train_labels=train_labels)
    num_classes = train_labels.max() + 1
    checks.labels(len(train_features), num_classes, train_labels=train_labels)
    (test_labels,) = checks.labels(len(test_features), test_labels=test_labels)
    if test_labels.max() >= num_classes:
        raise ValueError(f"test_labels has class {test_labels.max()}, which no training example has")
    rarest = np.bincount(train_labels).argmin()
    if (train_labels == rarest).sum() < 2 or num_classes < 2:
        raise ValueError(f"a probe needs 2 classes of 2 training examples, class {rarest} is too small")

    def fitted(strength, features, labels):
        model = LogisticRegression(C=strength, max_iter=2000)
        return make_pipeline(StandardScaler(), model).fit(features, labels)

    size = max(len(train_labels) // 5, num_classes)
    fit_x, validation_x, fit_y, validation_y = train_test_split(
        train_features, train_labels, test_size=size, stratify=train_labels, random_state=seed
    )
    # The solver's products are too small for threads, which wait for each other a hundred times longer than
    # they work where cores are shared.
    with threadpool_limits(1, "blas"):
        scores = [fitted(strength, fit_x, fit_y).score(validation_x, validation_y) for strength in strengths]
        best = strengths[int(np.argmax(scores))]
        accuracy = fitted(best, train_features, train_labels).score(test_features, test_labels)
    return {"accuracy": float(accuracy), "C": float(best)}


class Codebook(NamedTuple):
    """Centroids of whitened patches; P is the number of pixels of a patch times channels."""

    mean: Array  # (P,), of contrast-normalised patches
    whitening: Array  # (P, P)
    centroids: Array  # (K, P)


def fit_kmeans(
    key: Array,
    images: Any,
    num_centroids: int = 400,
    patch_size: int | None = None,
    num_patches: int = 50_000,
    iterations: int = 20,
) -> Codebook:
    """K-means of random patches of images (N, H, W, C) in [-1, 1]; labels are not used.

    Patches are 6 x 6 as in the paper, 3 x 3 for images of fewer than 16 pixels.

    Raises:
        ValueError: images that are not (N, H, W, C) or not finite, patches larger than they are, or fewer
            patches than centroids.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    images = _checked(images)
    patch_size = patch_size or (6 if min(images.shape[1:3]) >= 16 else 3)
    if patch_size > min(images.shape[1:3]):
        raise ValueError(f"patches of {patch_size} pixels do not fit into images of {images.shape[1:3]}")
    if num_patches < num_centroids:
        raise ValueError(f"{num_centroids} centroids need as many patches, not {num_patches}")
    mean, whitening, patches, first = _patches(key, images, num_centroids, patch_size, num_patches)
    kmeans = KMeans(num_centroids, init=np.asarray(first), n_init=1, max_iter=iterations, tol=0.0)
    with threadpool_limits(1, "blas"), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        centroids = kmeans.fit(np.asarray(patches)).cluster_centers_
    return Codebook(mean, whitening, jnp.asarray(centroids))


def kmeans_features(codebook: Codebook, images: Any) -> np.ndarray:
    """Triangle activations of all patches of images (N, H, W, C), summed over quadrants: (N, 4 K).

    Raises:
        ValueError: images that are not (N, H, W, C), not finite, or do not fit the codebook.
    """
    images = _checked(images)
    patch_size = math.isqrt(len(codebook.mean) // images.shape[3])
    if patch_size**2 * images.shape[3] != len(codebook.mean) or patch_size > min(images.shape[1:3]):
        raise ValueError(f"patches of {len(codebook.mean)} numbers do not fit images {images.shape[1:]}")
    return np.asarray(_encode(codebook, images, patch_size))


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _patches(key, images, num_centroids, patch_size, num_patches):
    """Mean (P,) and whitening (P, P) of random patches, these whitened, and some of them to start from."""
    n, height, width, _ = images.shape
    keys = jax.random.split(key, 4)
    which = jax.random.randint(keys[0], (num_patches,), 0, n)
    top = jax.random.randint(keys[1], (num_patches,), 0, height - patch_size + 1)
    left = jax.random.randint(keys[2], (num_patches,), 0, width - patch_size + 1)
    rows, columns = (start[:, None] + jnp.arange(patch_size) for start in (top, left))
    patches = images[which[:, None, None], rows[:, :, None], columns[:, None, :]]
    patches = _normalised(patches.reshape(num_patches, -1))
    mean = patches.mean(0)
    covariance = jnp.matmul((patches - mean).T, patches - mean, precision="highest") / num_patches
    eigenvalues, vectors = jnp.linalg.eigh(covariance)
    whitening = (vectors / jnp.sqrt(jnp.maximum(eigenvalues, 0.0) + _WHITENING)) @ vectors.T
    patches = (patches - mean) @ whitening

    chosen = jax.random.choice(keys[3], num_patches, (num_centroids,), replace=False)
    return mean, whitening, patches, patches[chosen]


@functools.partial(jax.jit, static_argnums=2)
def _encode(codebook, images, patch_size):
    height, width = (size - patch_size + 1 for size in images.shape[1:3])

    def encode(image):
        shifts = [image[i : i + height, j : j + width] for i in range(patch_size) for j in range(patch_size)]
        patches = _normalised(jnp.stack(shifts, 2).reshape(height * width, -1))
        distance = jnp.sqrt(
            distances.squared((patches - codebook.mean) @ codebook.whitening, codebook.centroids)
        )
        active = jnp.maximum(distance.mean(1, keepdims=True) - distance, 0.0).reshape(height, width, -1)
        halves = (active[: height // 2], active[height // 2 :])
        quadrants = [part for half in halves for part in (half[:, : width // 2], half[:, width // 2 :])]
        return jnp.concatenate([quadrant.sum((0, 1)) for quadrant in quadrants])

    at_once = max(1, distances.TILE_BYTES // (4 * height * width * len(codebook.centroids)))
    return jax.lax.map(encode, images, batch_size=at_once)


def _normalised(patches: Array) -> Array:
    patches = patches - patches.mean(1, keepdims=True)
    return patches / jnp.sqrt((patches**2).mean(1, keepdims=True) + _CONTRAST)


def _checked(images: Any) -> Array:
    images = jnp.asarray(images, jnp.float32)
    if images.ndim != 4 or not images.size:
        raise ValueError(f"images must be (N, height, width, channels), not {images.shape}")
    checks.finite(images=images)
    return images
