"""The protocol every family satisfies: a module with a Config, `init`, `train_step` and `sample`."""

import dataclasses
import importlib
import pkgutil
from collections.abc import Mapping
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

from jax import Array

Batch = Mapping[str, Array]
"""What a step is given, by name: "image" (B, H, W, C) float32 in [-1, 1]; "label" (B,) int32; "x" (B, D)
float32; "tokens" (B, T) int32; "mask" (B, T) bool; "a" and "b" two image domains; "audio" (B, T) float32."""

Metrics = dict[str, Array]
"""Scalars by name, on the device: never Python floats inside a step."""

State = Any
"""A NamedTuple of arrays and trees of arrays, among them `step` () int32 and `key`, a typed PRNG key."""


@runtime_checkable
class Family(Protocol):
    """What `fit`, `load` and the command line need of a model; a Python module has it (PEP 544)."""

    Config: type
    """Frozen, flat, static dataclass: every hyperparameter, and the `shape` of one example."""

    def init(self, key: Array, cfg: Any, batch: Any = None) -> Any:
        """A fresh State; `batch` serves data-dependent initialisation only and changes no shape."""

    def train_step(self, state: Any, batch: Any, cfg: Any) -> tuple[Any, Metrics]:
        """The next State and the scalars of this step; randomness is `fold_in(state.key, state.step)`."""

    def sample(self, key: Array, state: Any, n: int, cfg: Any) -> Array:
        """`n` draws from the model, in the space of the data."""


FROM_THE_DATA = ("shape", "num_classes", "levels")
"""Fields of a Config that are facts of the data: `levels` are the values of a pixel, 0 for real numbers."""


def shape_to(dataset: Any, cfg: Any) -> Any:
    """`cfg` with the data set's shape, number of classes and levels, where it has such fields."""
    names = {field.name for field in dataclasses.fields(cfg)}
    facts = {name: getattr(dataset, name) for name in FROM_THE_DATA if name in names}
    return dataclasses.replace(cfg, **facts)


def from_data(family: Any, dataset: Any, cfg: Any) -> Any:
    """`cfg` with every fact of the data: those of `shape_to`, and what the family's own `from_data` knows."""
    cfg = shape_to(dataset, cfg)
    return family.from_data(dataset, cfg) if hasattr(family, "from_data") else cfg


def observed(batch: Batch) -> Array:
    """The data of a batch for models of one variable: its "image", else its "x", else its "tokens"."""
    return next(batch[name] for name in ("image", "x", "tokens") if name in batch)


def families() -> dict[str, ModuleType]:
    """Every family of the package by its dotted name, found by walking it."""
    import jaxgen

    found = {}
    for info in pkgutil.walk_packages(jaxgen.__path__, "jaxgen."):
        if info.ispkg or info.name.split(".")[1] in ("data", "nn", "evaluation") or info.name.count(".") < 2:
            continue
        module = importlib.import_module(info.name)
        if isinstance(module, Family):
            found[info.name] = module
    return found
