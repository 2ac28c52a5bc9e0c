"""Generative models as pure JAX functions: one file a paper, one command to train it, one line to sample."""

__version__ = "0.1.0"

from jaxgen.checkpoint import load
from jaxgen.fit import fit
from jaxgen.runs import RunError
from jaxgen.types import families

__all__ = ["RunError", "families", "fit", "load"]
