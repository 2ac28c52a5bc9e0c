"""Autoregressive models: every symbol given those before it, with exact likelihoods and cached sampling."""

from jaxgen.lazy import submodules

__getattr__, __dir__ = submodules(__name__, __path__)
