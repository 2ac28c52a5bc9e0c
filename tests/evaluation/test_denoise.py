import numpy as np
import pytest

from jaxgen.evaluation.denoise import psnr


def test_noise_of_known_deviation():
    rng = np.random.default_rng(0)
    clean = rng.uniform(-1, 1, (3, 64, 64, 1))
    sigmas = np.array([0.1, 0.2, 0.4])
    noisy = clean + sigmas[:, None, None, None] * rng.normal(size=clean.shape)
    np.testing.assert_allclose(psnr(clean, noisy), 20 * np.log10(2 / sigmas), atol=0.3)
    np.testing.assert_allclose(psnr(clean, noisy, range=1.0), psnr(clean, noisy) - 20 * np.log10(2))


def test_one_wrong_pixel_and_none():
    clean = np.zeros((2, 10, 10))
    estimate = clean.copy()
    estimate[0, 3, 3] = 2.0
    assert psnr(clean, estimate).tolist() == [pytest.approx(20.0), np.inf]


def test_wiener_filter_beats_its_neighbours_on_gaussian_data():
    rng = np.random.default_rng(1)
    clean = rng.normal(size=(1, 200_000))
    noisy = clean + 0.5 * rng.normal(size=clean.shape)
    gain = 1 / (1 + 0.25)
    best = psnr(clean, gain * noisy)
    assert best > psnr(clean, 0.9 * gain * noisy)
    assert best > psnr(clean, 1.1 * gain * noisy)
    assert best == pytest.approx(10 * np.log10(4 / (1 - gain)), abs=0.05)


def test_bad_input_is_named():
    x = np.zeros((2, 4))
    with pytest.raises(ValueError, match=r"one shape, not \(2, 4\), \(2, 3\)"):
        psnr(x, x[:, :3])
    with pytest.raises(ValueError, match="estimate has 8 values that are not finite"):
        psnr(x, x + np.nan)
    with pytest.raises(ValueError, match="range must be positive"):
        psnr(x, x, range=0)
