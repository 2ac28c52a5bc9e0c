"""Normalizing flows: invertible networks between data and noise, with exact likelihoods."""

from jaxgen.lazy import submodules

__getattr__, __dir__ = submodules(__name__, __path__)
