"""Spectra: patterns whose power is known, Parseval's theorem, and what noise has by chance."""

import numpy as np
import pytest

from jaxgen.evaluation import spectrum

ROWS, COLUMNS = np.meshgrid(np.arange(12), np.arange(8), indexing="ij")


def test_a_pattern_of_a_period_has_all_its_power_there():
    board = ((ROWS + COLUMNS) % 2 * 2.0 - 1)[None, ..., None]
    assert spectrum.periodic_share(board, 2) == pytest.approx(1)
    assert spectrum.power(board)[6, 4] == pytest.approx(96**2)
    tile = np.random.default_rng(0).normal(size=(5, 4, 4, 3))
    tiled = np.tile(tile, (1, 3, 2, 1)) + 7.0  # brightness does not count
    assert spectrum.periodic_share(tiled, 4) == pytest.approx(1)
    halves = tile[:, ::2, ::2].repeat(2, 1).repeat(2, 2)  # all phases of period 2 are equal
    assert spectrum.periodic_share(halves - halves.mean((1, 2), keepdims=True), 2) == pytest.approx(0)


def test_shares_of_a_mixture_are_those_of_its_amplitudes():
    wave = 3 * np.cos(2 * np.pi * COLUMNS / 8)
    board = np.cos(np.pi * (ROWS + COLUMNS))
    stripes = 2 * np.cos(np.pi * COLUMNS / 2)
    x = (wave + board + stripes)[None, ..., None]
    total = 9 / 2 + 1 + 4 / 2
    assert spectrum.periodic_share(x, 2) == pytest.approx(1 / total)
    assert spectrum.periodic_share(x, 4) == pytest.approx(3 / total)
    assert spectrum.periodic_share(wave[None, ..., None], 4) == pytest.approx(0)
    assert spectrum.periodic_share(np.ones((1, 4, 4, 1)), 2) == 0


def test_power_is_the_variance_and_noise_has_its_part_everywhere():
    x = np.random.default_rng(1).normal(size=(300, 8, 8, 2))
    variance = ((x - x.mean((1, 2), keepdims=True)) ** 2).sum((1, 2)).mean()
    assert spectrum.power(x).sum() / 64 == pytest.approx(variance)
    assert spectrum.periodic_share(x, 2) == pytest.approx(3 / 63, rel=0.1)
    assert spectrum.periodic_share(x, 4) == pytest.approx(15 / 63, rel=0.1)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"must be \(N, height, width, channels\), not \(8, 8\)"):
        spectrum.power(np.zeros((8, 8)))
    with pytest.raises(ValueError, match=r"a period of 4 pixels does not divide images of \(6, 8\)"):
        spectrum.periodic_share(np.zeros((1, 6, 8, 1)), 4)
