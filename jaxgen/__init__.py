"""Generative models as pure JAX functions."""
