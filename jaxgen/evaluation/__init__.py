"""Measures of arrays and of draw(key, n): what samples, likelihoods, codes and features are worth."""

from jaxgen.evaluation.samples import measure
from jaxgen.lazy import submodules

__all__ = ["measure"]

__getattr__, __dir__ = submodules(__name__, __path__)
