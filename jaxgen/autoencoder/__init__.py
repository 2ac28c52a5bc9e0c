"""Autoencoders: models that learn a code and its decoder."""

from jaxgen.lazy import submodules

__getattr__, __dir__ = submodules(__name__, __path__)
