import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import data, evaluation
from jaxgen.evaluation import features, samples


def drawing(population):
    """Draws from a fixed population."""
    population = jnp.asarray(population)
    return lambda key, n: population[jax.random.randint(key, (n,), 0, len(population))]


@functools.cache
def split(name, part):
    return data.load(name, part)


def evaluate(name, population, n=10_000, **options):
    return evaluation.measure(drawing(population), split(name, "train"), split(name, "test"), n, **options)


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    """Of the floors, which take most of the time."""
    monkeypatch.setattr(samples, "FLOOR_DRAWS", 3)


@pytest.mark.slow
def test_true_draws_of_the_ring_reach_the_floor():
    found = evaluate("ring", split("ring", "train").arrays["x"][::2], n=2000)
    assert found["modes"]["value"] == found["modes"]["floor"] == 8
    assert found["high_quality"]["value"] == pytest.approx(0.9889, abs=0.01)
    assert found["reverse_kl"]["value"] < 0.01
    assert abs(found["frechet"]["value"] - found["frechet"]["floor"]) < 5 * found["frechet"]["floor_spread"]
    assert {metric["n"] for metric in found.values()} == {2000}


@pytest.mark.slow
def test_half_a_ring_falls_short():
    x, label = (split("ring", "train").arrays[name] for name in ("x", "label"))
    draw = drawing(x[label < 4])
    found = evaluation.measure(draw, split("ring", "train[:5000]"), split("ring", "test"), 1000)
    assert found["modes"]["value"] == 4
    assert found["reverse_kl"]["value"] == pytest.approx(np.log(2), abs=0.02)
    assert found["recall"]["value"] < 0.6 < 0.8 < found["recall"]["floor"]
    assert found["frechet"]["value"] > 0.3 > 0.03 > found["frechet"]["floor"]


@pytest.mark.slow
def test_pictures_are_measured_by_their_features(tmp_path):
    train = split("digits", "train")
    blurred = (train[:]["image"] + np.roll(train[:]["image"], 1, 1)) / 2
    real = evaluate("digits", train[:]["image"], n=300)
    spoilt = evaluate("digits", blurred, n=300, folder=tmp_path)
    name = features.load("small-cnn", train).name
    for metric in ("frechet", "kernel"):
        better, worse = (found[f"{metric} ({name})"] for found in (real, spoilt))
        assert better["floor"] == worse["floor"]
        assert worse["value"] > 2 * max(better["value"], better["floor"])
    assert real[f"classifier_score ({name})"]["value"] > 8
    assert (tmp_path / "neighbours.png").stat().st_size > 1000


@pytest.mark.slow
def test_copies_of_the_training_set_are_found_out():
    """All of them, and not only those of the examples that the floor was drawn of."""
    train, test = split("digits", "train"), split("digits", "test")
    found = evaluate("digits", train[:]["image"], extractor="pca16")
    (nearer,) = (metric for name, metric in found.items() if name.startswith("nearer_to_training (pca"))
    assert nearer["value"] == 1.0
    share = len(train) / (len(train) + len(test))
    assert abs(nearer["floor"] - share) < 4 * nearer["floor_spread"] < 0.15


@pytest.mark.slow
def test_a_floor_is_a_mean_and_a_spread_of_several_draws(monkeypatch):
    """Of the Frechet distance of digits; single draws lie around them."""
    monkeypatch.setattr(samples, "FLOOR_DRAWS", 10)
    found = evaluate("digits", split("digits", "train")[:]["image"], n=300, extractor="pca16")
    (distance,) = (metric for name, metric in found.items() if name.startswith("frechet"))
    extractor = features.load("pca16", split("digits", "train"))
    of_train, of_test = (features.of(extractor, split("digits", part)) for part in ("train", "test"))
    rng = np.random.default_rng(0)
    draws = [
        samples._frechet(of_test[rng.permutation(359)[:300]], of_train[rng.permutation(1438)[:300]])
        for _ in range(30)
    ]
    assert abs(distance["floor"] - np.mean(draws)) < 2 * np.std(draws)
    assert 0.2 < distance["floor_spread"] / np.std(draws) < 2
    assert distance["value"] == pytest.approx(distance["floor"], abs=5 * distance["floor_spread"])


def test_samples_do_not_depend_on_how_many_are_drawn_at_once():
    draws = [samples.drawn(jax.random.key(0), drawing(np.arange(10.0)), n, 4) for n in (4, 10)]
    assert draws[1].shape == (10,)
    np.testing.assert_array_equal(draws[0], draws[1][:4])


def test_samples_that_are_not_finite():
    with pytest.raises(ValueError, match="not finite"):
        evaluate("ring", np.full((10, 2), np.nan, np.float32), n=100)


@pytest.mark.slow
def test_label_accuracy_counts_the_class_asked_for():
    """Pictures of the class asked for are named as test pictures are; those of the next class never right."""
    test = data.load("digits", "test")
    first = jnp.stack([test[:]["image"][np.argmax(test[:]["label"] == label)] for label in range(10)])
    found = []
    for shift in (0, 1):
        draw = lambda key, label, shift=shift: first[(label + shift) % 10]
        found += samples.label_accuracy(jax.random.key(0), draw, test, 120).values()
    assert found[0]["value"] > 0.85
    assert found[1]["value"] < 0.15
    assert found[0]["floor"] == found[1]["floor"] > 0.9
    assert samples.label_accuracy(jax.random.key(0), None, data.load("factors", "test"), 10) == {}


def test_samples_of_labels_come_a_batch_at_a_time():
    label = np.arange(7)
    draw = lambda key, label, scale: scale * label + 0.5 * jax.random.uniform(key)
    drawn = samples.of_labels(jax.random.key(0), draw, label, 2.0, batch_size=3)
    noise = drawn - 2 * label
    assert len(np.unique(noise.round(5))) == 3  # a key a batch
    assert np.all((noise >= 0) & (noise < 0.5))
