"""Power spectra of images, and how much of them is a checkerboard.

A pattern that repeats every p pixels along both axes has power at multiples of 1/p cycles a pixel and nowhere
else. A transposed convolution of stride 2 has other weights for even pixels than for odd ones, and leaves
such a pattern with p = 2, the one before it with p = 4 (Odena, Dumoulin & Olah 2016). White noise has
(p^2 - 1) / (H W - 1) of its power there, smooth images have next to none.
"""

from typing import Any

import numpy as np


def power(images: Any) -> np.ndarray:
    """|DFT|^2 of images (N, H, W, C), the mean over images and channels, (H, W).

    Entry [i, j] is of i/H and j/W cycles a pixel. The mean brightness of every image, at [0, 0], counts as 0.

    Raises:
        ValueError: images that are not (N, H, W, C).
    """
    images = np.asarray(images, np.float64)
    if images.ndim != 4 or not images.size:
        raise ValueError(f"images must be (N, height, width, channels), not {images.shape}")
    found: np.ndarray = (np.abs(np.fft.fft2(images, axes=(1, 2))) ** 2).mean((0, 3))
    found[0, 0] = 0.0
    return found


def periodic_share(images: Any, period: int) -> float:
    """The share of the power of images (N, H, W, C) that repeats every `period` pixels along both axes.

    That of a shorter period which divides this one is part of it. 0 of images without any contrast.

    Raises:
        ValueError: images that are not (N, H, W, C), or whose sides are no multiples of the period.
    """
    found = power(images)
    steps = [divmod(side, period) for side in found.shape]
    if period < 2 or any(rest for _, rest in steps):
        raise ValueError(f"a period of {period} pixels does not divide images of {found.shape}")
    return float(found[:: steps[0][0], :: steps[1][0]].sum() / max(found.sum(), np.finfo(float).tiny))
