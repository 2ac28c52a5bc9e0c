"""Attribute vectors: what codes that have an attribute have over those that do not (Larsen et al. 2016).

    a = mean of codes with the attribute - mean of codes without,     z + a has it, z - a has not.

What else differs between the two groups on average is in the vector too: balance them where that matters.
"""

import jax
import jax.numpy as jnp
from jax import Array


def attribute_vector(codes: Array, present: Array) -> Array:
    """Mean of the codes (N, D) where `present` (N,) is true minus that where it is false, (D,).

    NaN if either group is empty.
    """
    codes, present = jnp.asarray(codes), jnp.asarray(present, bool)[:, None]
    return codes.mean(0, where=present) - codes.mean(0, where=~present)


def class_vectors(codes: Array, labels: Array, num_classes: int) -> Array:
    """The attribute vector of each class against the rest, (num_classes, D), of codes (N, D), labels (N,)."""
    present = jnp.asarray(labels) == jnp.arange(num_classes)[:, None]
    return jax.vmap(attribute_vector, (None, 0))(codes, present)


def apply(z: Array, vector: Array, strengths: Array | float = 1.0) -> Array:
    """z + strength * vector for codes z (..., D); strengths (S,) put an axis in front, (S, ..., D)."""
    strengths = jnp.asarray(strengths)
    return z + strengths.reshape(strengths.shape + (1,) * z.ndim) * vector


def analogy(a: Array, b: Array, c: Array) -> Array:
    """The code that is to c as b is to a: c + b - a, of codes (..., D)."""
    return c + b - a
