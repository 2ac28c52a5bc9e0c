"""Diffusion and flow matching: models that turn noise into data a little at a time."""

from jaxgen.lazy import submodules

__getattr__, __dir__ = submodules(__name__, __path__)
