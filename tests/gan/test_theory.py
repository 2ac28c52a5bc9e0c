"""The experiment on theory: its distances, its gradients and its standard equation against closed forms."""

import numpy as np
import pytest
import scipy.stats

from experiments.studies import gan_theory as theory


def test_distances_are_their_closed_forms():
    p, q = (scipy.stats.norm.pdf(theory.GRID, mean) for mean in (0.0, 0.7))
    assert theory.kl(p, q) == pytest.approx(0.7**2 / 2, rel=1e-6)
    assert theory.wasserstein(p, q) == pytest.approx(0.7, rel=1e-3)
    assert theory.jensen_shannon(p, p) == 0
    far = scipy.stats.norm.pdf(theory.GRID, 8.0, 0.5)
    assert theory.jensen_shannon(scipy.stats.norm.pdf(theory.GRID, -8.0, 0.5), far) == pytest.approx(
        np.log(2)
    )
    assert theory.integral(theory.density(theory.GRID, 1.0)) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("distance", [0.5, 3.0])
def test_the_generators_gradients_are_their_closed_forms(distance):
    """The logit log p/q of N(0, 1) and N(distance, 1) has slope -distance everywhere."""
    x = scipy.stats.norm.ppf((np.arange(20_000) + 0.5) / 20_000) + distance
    wrong = scipy.special.expit(distance**2 / 2 - distance * x)
    for name, share in (("minimax", wrong.mean()), ("non_saturating", (1 - wrong).mean())):
        assert theory.generator_gradient(name, distance) == pytest.approx(distance * share, rel=2e-3)


@pytest.mark.parametrize("name", ["gan", "kl", "squared_hellinger"])
def test_the_standard_equation_has_the_f_gans_as_cases(name):
    rng = np.random.default_rng(0)
    data, model = rng.dirichlet(np.ones(6), size=2)
    target = theory.f_divergence(data, model, name)
    assert theory.standard_equation(data, model, name) == pytest.approx(target, abs=1e-5)
    if name == "gan":
        middle = (data + model) / 2
        jsd = (scipy.stats.entropy(data, middle) + scipy.stats.entropy(model, middle)) / 2
        assert target == pytest.approx(2 * jsd - np.log(4))


def test_the_standard_equation_has_wassersteins_as_its_limit():
    rng = np.random.default_rng(1)
    data, model = rng.dirichlet(np.ones(8), size=2)
    x = np.sort(rng.uniform(-2, 2, 8))
    reached = [theory.standard_equation_lipschitz(data, model, x, beta) for beta in (0.1, 1.0, 1e4)]
    assert reached[0] < reached[1] < reached[2]
    expected = scipy.stats.wasserstein_distance(x, x, data, model)
    assert reached[2] == pytest.approx(expected, rel=1e-3)


def test_the_mixture_is_drawn_from_its_density():
    codes = np.random.default_rng(0).normal(size=(4000, 2)).astype(np.float32)
    x = np.asarray(theory.Mixture().apply({"params": {"shift": 0.5}}, codes, True))[:, 0]
    cumulative = np.cumsum(theory.density(theory.GRID, 0.5)) * (theory.GRID[1] - theory.GRID[0])
    assert scipy.stats.kstest(x, lambda v: np.interp(v, theory.GRID, cumulative)).pvalue > 0.01
