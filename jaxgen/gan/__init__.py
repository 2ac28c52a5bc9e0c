"""Adversarial models: a generator learns from a discriminator that learns to tell its samples from data."""

from jaxgen.lazy import submodules

__getattr__, __dir__ = submodules(__name__, __path__)
