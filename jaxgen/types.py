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


@runtime_checkable
class HasLoss(Protocol):
    """A model trained by the gradient of one loss: the entry for research code."""

    def loss(self, params: Any, batch: Any, key: Array, cfg: Any) -> tuple[Array, Any]:
        """The scalar that is minimised, and the metrics beside it."""


@runtime_checkable
class HasLogProb(Protocol):
    """A model with an exact likelihood."""

    def log_prob(self, state: Any, x: Array, cfg: Any) -> Array:
        """log p(x) in nats, (B,)."""


@runtime_checkable
class HasElbo(Protocol):
    """A model with a lower bound on its likelihood."""

    def elbo(self, key: Array, state: Any, x: Array, cfg: Any) -> Array:
        """A lower bound on log p(x) in nats, (B,)."""


@runtime_checkable
class HasIwae(Protocol):
    """A model with an importance-weighted bound, which rises to the likelihood with the number of draws."""

    def iwae(self, key: Array, state: Any, x: Array, cfg: Any, num_samples: int) -> Array:
        """A lower bound on log p(x) in nats, (B,)."""


@runtime_checkable
class HasMeasure(Protocol):
    """A model with a likelihood, which says what it is of."""

    def measure(self, cfg: Any) -> str:
        """One of "density", "levels", "bits", "counts" and "symbols", see `evaluation.likelihood.UNITS`."""


@runtime_checkable
class HasEncode(Protocol):
    """A model with codes of data."""

    def encode(self, state: Any, x: Array, cfg: Any) -> Array:
        """Codes of x."""


@runtime_checkable
class HasDecode(Protocol):
    """A model with data of codes."""

    def decode(self, state: Any, z: Array, cfg: Any) -> Array:
        """Data of codes z, (B, *shape)."""


@runtime_checkable
class HasReconstruct(Protocol):
    """A model that reconstructs data."""

    def reconstruct(self, state: Any, x: Array, cfg: Any) -> Array:
        """x after the model, (B, *shape)."""


@runtime_checkable
class HasClassify(Protocol):
    """A model with a density of every class."""

    def classify(self, state: Any, x: Array, cfg: Any) -> Array:
        """log p(class given x), (B, K)."""


@runtime_checkable
class HasTranslate(Protocol):
    """A model from one domain of images to another."""

    def translate(self, state: Any, batch: Any, cfg: Any) -> Array:
        """Images of the other domain."""


@runtime_checkable
class HasScore(Protocol):
    """A model without a density that tells typical data from others."""

    def score(self, state: Any, x: Array, cfg: Any) -> Array:
        """(B,), higher for more typical data."""


CAPABILITIES = {
    "loss": HasLoss,
    "log_prob": HasLogProb,
    "elbo": HasElbo,
    "iwae": HasIwae,
    "encode": HasEncode,
    "decode": HasDecode,
    "reconstruct": HasReconstruct,
    "classify": HasClassify,
    "translate": HasTranslate,
    "score": HasScore,
}
"""What a family can do besides training and sampling, by the name of the function."""


def capabilities(family: Any) -> list[str]:
    """The names of what a family can do besides training and sampling."""
    return [name for name, protocol in CAPABILITIES.items() if isinstance(family, protocol)]


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
