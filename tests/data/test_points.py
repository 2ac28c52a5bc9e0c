"""Densities of points in the plane: they are the data's, and they integrate to one."""

import numpy as np
import pytest
import scipy.stats

from jaxgen import data
from jaxgen.data import points
from jaxgen.evaluation import likelihood

KNOWN = ("ring", "grid", "moons", "rings", "checkerboard")


@pytest.mark.parametrize("name", ["moons", "rings", "checkerboard"])
def test_densities_are_those_of_the_data(name):
    """The mass of squares by the density equals the share of the points in them."""
    dataset = data.load(name)
    x = dataset.arrays["x"]
    limit, count, inner = (2.5 if name == "moons" else 4.0), 8, 12
    edges = np.linspace(-limit, limit, count + 1)
    share = np.histogram2d(*x.T, bins=(edges, edges))[0] / len(x)
    fine = 2 * limit / (count * inner)
    ticks = -limit + fine * (np.arange(count * inner) + 0.5)
    grid = np.stack(np.meshgrid(ticks, ticks, indexing="ij"), -1).reshape(-1, 2)
    mass = np.exp(dataset.log_density(grid)).reshape(count, inner, count, inner).sum((1, 3)) * fine**2
    assert share.sum() > 0.999
    error = 4 * np.sqrt(share * (1 - share) / len(x)) + 3e-3
    assert (np.abs(share - mass) < error).all()


def test_the_density_of_a_mixture_is_scipys():
    x = data.load("ring", "test").arrays["x"][:50]
    each = [scipy.stats.multivariate_normal(c, points.RING_STD**2).pdf(x) for c in data.ring_centers()]
    np.testing.assert_allclose(data.load("ring").log_density(x), np.log(np.mean(each, 0)), rtol=1e-6)


def test_the_density_of_rings_is_the_closed_form():
    """A circle and Gaussian noise: a modified Bessel function of the radius (Rice)."""
    radius = np.array([0.1, 0.7, 1.0, 2.2, 3.3])
    x = radius[:, None] * np.array([0.6, 0.8])
    rice = [
        scipy.stats.rice(r / points.RINGS_STD, scale=points.RINGS_STD).pdf(radius) for r in points.RINGS_RADII
    ]
    np.testing.assert_allclose(
        data.load("rings").log_density(x), np.log(np.mean(rice, 0) / (2 * np.pi * radius)), rtol=1e-9
    )


def test_the_checkerboard_is_uniform_on_half_of_the_squares():
    board = data.load("checkerboard")
    x, label = board.arrays["x"], board.arrays["label"]
    assert (np.abs(x) <= 4).all()
    assert (board.log_density(x) == -np.log(32)).all()
    counts = np.bincount(label)
    assert len(counts) == 8
    assert np.abs(counts - len(x) / 8).max() < 5 * np.sqrt(len(x) / 8)
    assert board.log_density(np.array([[-3.0, -1.0], [5.0, 5.0], [-3.0, -3.0]])).tolist() == [
        -np.inf,
        -np.inf,
        -points.CHECKERBOARD_ENTROPY,
    ]


def test_rings_have_their_radii():
    rings = data.load("rings")
    x, label = rings.arrays["x"], rings.arrays["label"]
    radius = np.linalg.norm(x, axis=1)
    for ring, wanted in enumerate(points.RINGS_RADII):
        assert radius[label == ring].mean() == pytest.approx(wanted, abs=0.01)


def test_the_floor_of_a_likelihood_is_that_of_the_true_density():
    import jax

    test = data.load("checkerboard", "test[:100]")
    found = likelihood.reported(jax.random.key(0), lambda key, x: 0 * x[:, 0] - 4.0, test, "density")
    assert found["nll"]["value"] == pytest.approx(4.0)
    assert found["nll"]["floor"] == pytest.approx(np.log(32))
    found = likelihood.reported(jax.random.key(0), lambda key, x: 0 * x[:, 0], test, "symbols")
    assert found["nll"]["floor"] is None
