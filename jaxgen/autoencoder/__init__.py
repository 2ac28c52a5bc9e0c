"""Autoencoders: models that learn a code and its decoder."""
