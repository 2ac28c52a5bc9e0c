"""Generative models as pure JAX functions: one file a paper, one command to train it, one line to sample."""

__version__ = "0.1.0"

from jaxgen import interrupts as interrupts  # first, see there
from jaxgen.lazy import submodules
from jaxgen.run import shard, weights
from jaxgen.run.checkpoint import load
from jaxgen.run.directory import RunError
from jaxgen.run.fit import fit
from jaxgen.types import families

shard.provide_threads()

__getattr__, __dir__ = submodules(__name__, __path__)

__all__ = ["RunError", "families", "fit", "load", "shard", "weights"]
