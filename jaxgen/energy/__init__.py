"""Boltzmann machines and other models of a density up to its normaliser, or of its gradient."""

from jaxgen.lazy import submodules

__getattr__, __dir__ = submodules(__name__, __path__)
