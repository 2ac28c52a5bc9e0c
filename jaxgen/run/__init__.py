"""Runs: the training loop, checkpoints, run directories and devices. Nothing here depends on a family."""

from jaxgen.lazy import submodules

__getattr__, __dir__ = submodules(__name__, __path__)
