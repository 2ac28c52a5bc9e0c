"""Peak signal-to-noise ratio, for denoising and reconstruction."""

from typing import Any

import numpy as np

from jaxgen.evaluation import checks


def psnr(clean: Any, estimate: Any, range: float = 2.0) -> np.ndarray:
    """10 log10(range^2 / mean squared error) of each example, (B, ...) and (B, ...) -> (B,) decibels.

    `range` is the difference between the largest and the smallest value there can be, 2 for pixels in
    [-1, 1]. Infinite where the estimate is exact. Report it beside that of the noisy input itself: noise of
    standard deviation s gives 20 log10(range / s), and for Gaussian data the Wiener filter is the optimum.

    Raises:
        ValueError: different shapes, values that are not finite, range <= 0.
    """
    clean, estimate = np.asarray(clean, np.float64), np.asarray(estimate, np.float64)
    if clean.shape != estimate.shape or clean.ndim < 2:
        raise ValueError(
            f"clean and estimate must be (B, ...) of one shape, not {clean.shape}, {estimate.shape}"
        )
    if not range > 0:
        raise ValueError(f"range must be positive, not {range}")
    checks.finite(clean=clean, estimate=estimate)
    error = ((clean - estimate) ** 2).reshape(len(clean), -1).mean(1)
    with np.errstate(divide="ignore"):
        return 10.0 * np.log10(range**2 / error)
