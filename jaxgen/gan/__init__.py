"""Adversarial models: a generator learns from a discriminator that learns to tell its samples from data."""
