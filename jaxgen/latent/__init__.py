"""Ways through a latent space, of any model that has one: pure functions of codes."""

from jaxgen.lazy import submodules

__getattr__, __dir__ = submodules(__name__, __path__)
