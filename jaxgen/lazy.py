"""Submodules as attributes: `import jaxgen; jaxgen.autoencoder.vae` imports what is named, and only that."""

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any


def submodules(package: str, path: Any) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` of a package, whose `__path__` is given."""
    names = sorted(info.name for info in pkgutil.iter_modules(path))

    def get(name: str) -> Any:
        if name in names:
            return importlib.import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get, lambda: [*vars(importlib.import_module(package)), *names]
