"""Mixtures, Markov models and topic models: fitted by counting or by expectation maximisation."""

from jaxgen.lazy import submodules

__getattr__, __dir__ = submodules(__name__, __path__)
