"""Measures of arrays and of draw(key, n): what samples, likelihoods, codes and features are worth."""

from jaxgen.evaluation.samples import measure

__all__ = ["measure"]
