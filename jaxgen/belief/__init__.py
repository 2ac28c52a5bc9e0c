"""Belief networks: layers of binary units that generate each other, and codes whose units are independent."""

from jaxgen.lazy import submodules

__getattr__, __dir__ = submodules(__name__, __path__)
