"""How many of the known modes of the data a set of samples reaches, and how evenly.

Two classics: mixtures of Gaussians in the plane with known centres (the ring of 8 and the grid of 25, 2500
samples), and stacked MNIST, three digits as the channels of one image, 1000 modes that a digit classifier
reads. Metz et al. 2017; Srivastava et al. 2017; Lin et al. 2018.

The reverse Kullback-Leibler divergence is KL(samples' histogram over modes || uniform) = sum_k p_k log(K p_k)
in nats: 0 for all modes alike, log K for one mode alone.
"""

from typing import Any

import numpy as np

from jaxgen.evaluation import checks

PUBLISHED: dict[tuple[str, str], dict[str, tuple[float, float]]] = {
    ("ring", "gan"): {"modes": (6.3, 0.5), "high_quality": (0.982, 0.002), "reverse_kl": (0.45, 0.09)},
    ("ring", "pacgan"): {"modes": (7.9, 0.1), "high_quality": (0.956, 0.020), "reverse_kl": (0.07, 0.03)},
    ("grid", "gan"): {"modes": (17.3, 0.8), "high_quality": (0.948, 0.007), "reverse_kl": (0.70, 0.07)},
    ("grid", "pacgan"): {"modes": (23.8, 0.7), "high_quality": (0.913, 0.008), "reverse_kl": (0.13, 0.04)},
}
"""(data, system) -> means of ten networks and their standard errors: Lin et al. 2018 (GAN and PacGAN2)."""


def mode_statistics(samples: Any, centers: Any, std: float, min_hits: int = 1) -> dict[str, float]:
    """{"modes", "high_quality", "reverse_kl"} of samples (N, D) under K isotropic Gaussians, centers (K, D).

    "high_quality" is the fraction of samples within 3 `std` of the nearest centre; "modes" is the number of
    centres with at least `min_hits` such samples; "reverse_kl" is of these samples alone, as in Lin et al.
    2018, in nats, and log K if there are none. In the plane the true distribution has 1 - exp(-4.5) = 0.9889
    high quality: all of them within 3 std is a warning.

    Raises:
        ValueError: samples and centres of different D, none of them, values that are not finite, std <= 0.
    """
    samples, centers = checks.features(samples=samples, centers=centers)
    if not std > 0:
        raise ValueError(f"std must be positive, not {std}")
    samples, centers = (np.asarray(x, np.float64) for x in (samples, centers))
    squared = np.stack([((samples - center) ** 2).sum(1) for center in centers], 1)
    nearest = squared.argmin(1)
    close = squared.min(1) <= (3 * std) ** 2
    hits = np.bincount(nearest[close], minlength=len(centers))
    return {
        "modes": int((hits >= min_hits).sum()),
        "high_quality": float(close.mean()),
        "reverse_kl": _reverse_kl(hits) if close.any() else float(np.log(len(centers))),
    }


def stacked_mode_statistics(digits: Any, num_classes: int = 10) -> dict[str, float]:
    """{"modes", "reverse_kl"} of samples whose channels were classified as digits (N, C), integers.

    There are num_classes^C modes, 1000 for three digits; "modes" is how many of them occur. The papers draw
    25,600 samples: with N not far above the number of modes, even true samples have a positive divergence,
    about (modes - 1) / (2 N).

    Raises:
        ValueError: digits that are not (N, C) integers in 0..num_classes - 1, or none of them.
    """
    digits = np.asarray(digits)
    if digits.ndim != 2 or not digits.size or digits.dtype.kind not in "iu":
        raise ValueError(f"digits must be (N, channels) integers, not {digits.dtype} {digits.shape}")
    if digits.min() < 0 or digits.max() >= num_classes:
        raise ValueError(f"digits must lie in 0..{num_classes - 1}, not in {digits.min()}..{digits.max()}")
    places = num_classes ** np.arange(digits.shape[1])
    counts = np.bincount(digits.astype(np.int64) @ places, minlength=num_classes ** digits.shape[1])
    return {"modes": int((counts > 0).sum()), "reverse_kl": _reverse_kl(counts)}


def _reverse_kl(counts: np.ndarray) -> float:
    p = counts[counts > 0] / counts.sum()
    return float((p * np.log(p * len(counts))).sum())
