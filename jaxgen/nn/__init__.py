"""Layers shared by the networks of several families."""

from jaxgen.lazy import submodules

__getattr__, __dir__ = submodules(__name__, __path__)
