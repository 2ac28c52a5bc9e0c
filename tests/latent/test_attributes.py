"""Attribute vectors of codes made with known ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.latent import attributes


def test_it_is_the_difference_of_the_means():
    rng = np.random.default_rng(0)
    codes, present = rng.normal(size=(50, 3)).astype(np.float32), rng.random(50) < 0.3
    expected = codes[present].mean(0) - codes[~present].mean(0)
    np.testing.assert_allclose(attributes.attribute_vector(codes, present), expected, atol=1e-6)


@pytest.mark.slow
def test_it_finds_the_shift_that_made_the_codes_and_undoes_it():
    key, label_key = jax.random.split(jax.random.key(0))
    shift = jnp.array([1.0, -2.0, 0.5, 0.0])
    present = jax.random.bernoulli(label_key, 0.5, (20_000,))
    codes = jax.random.normal(key, (20_000, 4)) + present[:, None] * shift
    vector = attributes.attribute_vector(codes, present)
    np.testing.assert_allclose(vector, shift, atol=0.06)
    moved = attributes.apply(codes[present], vector, -1.0)
    np.testing.assert_allclose(moved.mean(0), codes[~present].mean(0), atol=1e-3)


def test_class_vectors_are_each_class_against_the_rest():
    rng = np.random.default_rng(1)
    codes, labels = rng.normal(size=(60, 3)).astype(np.float32), np.arange(60) % 3
    vectors = attributes.class_vectors(codes, labels, 4)
    for label in range(3):
        one = attributes.attribute_vector(codes, labels == label)
        np.testing.assert_allclose(vectors[label], one, atol=1e-6)
    assert np.isnan(vectors[3]).all()


def test_strengths_make_a_series():
    z, vector = jnp.ones((2, 3)), jnp.array([1.0, 0.0, -1.0])
    series = attributes.apply(z, vector, jnp.array([-1.0, 0.0, 2.0]))
    assert series.shape == (3, 2, 3)
    np.testing.assert_array_equal(series[1], z)
    np.testing.assert_array_equal(series[2, 0], [3, 1, -1])
    np.testing.assert_array_equal(jax.vmap(lambda v: attributes.apply(z, v))(vector[None])[0], z + vector)


def test_an_analogy_closes_the_parallelogram():
    a, b, c = jnp.eye(3)
    np.testing.assert_array_equal(attributes.analogy(a, b, c), [-1, 1, 1])
    np.testing.assert_array_equal(attributes.analogy(a, b, a), b)
