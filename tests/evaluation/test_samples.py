import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import data
from jaxgen.evaluation import features, samples


def drawing(population):
    """A family whose samples are draws from a fixed population."""
    population = jnp.asarray(population)

    def sample(key, state, n, cfg):
        return population[jax.random.randint(key, (n,), 0, len(population))]

    return types.SimpleNamespace(sample=sample)


@functools.cache
def split(name, part):
    return data.load(name, part)


def evaluate(name, population, **options):
    sets = split(name, "train"), split(name, "test")
    return samples.evaluate(jax.random.key(0), drawing(population), None, *sets, None, **options)


def test_true_draws_of_the_ring_reach_the_floor():
    found = evaluate("ring", split("ring", "train").arrays["x"][::2], num_samples=2000)
    assert found["modes"]["value"] == found["modes"]["floor"] == 8
    assert found["high_quality"]["value"] == pytest.approx(0.9889, abs=0.01)
    assert found["reverse_kl"]["value"] < 0.01
    assert abs(found["frechet"]["value"] - found["frechet"]["floor"]) < 0.01
    assert {metric["n"] for metric in found.values()} == {2000}


def test_half_a_ring_falls_short():
    x, label = (split("ring", "train").arrays[name] for name in ("x", "label"))
    found = evaluate("ring", x[label < 4], num_samples=2000)
    assert found["modes"]["value"] == 4
    assert found["reverse_kl"]["value"] == pytest.approx(np.log(2), abs=0.02)
    assert found["recall"]["value"] < 0.6 < 0.8 < found["recall"]["floor"]
    assert found["frechet"]["value"] > 0.3 > 0.03 > found["frechet"]["floor"]


def test_pictures_are_measured_by_their_features(tmp_path):
    train = split("digits", "train")
    blurred = (train[:]["image"] + np.roll(train[:]["image"], 1, 1)) / 2
    real = evaluate("digits", train[:]["image"], num_samples=300)
    spoilt = evaluate("digits", blurred, num_samples=300, folder=tmp_path)
    name = features.load("small-cnn", train).name
    for metric in ("frechet", "kernel"):
        better, worse = (found[f"{metric} ({name})"] for found in (real, spoilt))
        assert better["floor"] == worse["floor"]
        assert worse["value"] > 2 * max(better["value"], better["floor"])
    assert real[f"classifier_score ({name})"]["value"] > 8
    assert (tmp_path / "neighbours.png").stat().st_size > 1000


def test_copies_of_the_training_set_are_found_out():
    train = split("digits", "train")
    found = evaluate("digits", train[:]["image"], extractor="pca16")
    (nearer,) = (metric for name, metric in found.items() if name.startswith("nearer_to_training (pca"))
    assert nearer["value"] > 0.55 > nearer["floor"] == 0.5


def test_samples_do_not_depend_on_how_many_are_drawn_at_once():
    draws = [samples.draw(jax.random.key(0), drawing(np.arange(10.0)), None, n, None, 4) for n in (4, 10)]
    assert draws[1].shape == (10,)
    np.testing.assert_array_equal(draws[0], draws[1][:4])


def test_samples_that_are_not_finite():
    with pytest.raises(ValueError, match="not finite"):
        evaluate("ring", np.full((10, 2), np.nan, np.float32), num_samples=100)
