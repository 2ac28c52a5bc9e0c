"""The protocol every family satisfies: a module with a Config, `init`, `train_step` and `sample`."""

import dataclasses
import importlib
import pkgutil
from collections.abc import Mapping
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

from jax import Array

Batch = Mapping[str, Array]
"""Arrays that a step takes, by name: "image" (B, H, W, C) float32 in [-1, 1]; "label" (B,) int32; "x" (B, D)
float32; "tokens" (B, T) int32; "mask" (B, T) bool; "a" and "b" two image domains; "audio" (B, T) float32."""

Metrics = dict[str, Array]
"""Scalars by name, on the device: never Python floats inside a step."""

State = Any
"""A NamedTuple of arrays and trees of arrays, among them `step` () int32 and `key`, a typed PRNG key."""


@runtime_checkable
class Family(Protocol):
    """What `fit`, `load` and the command line use of a model. A Python module can satisfy it (PEP 544)."""

    Config: type
    """Frozen, flat, static dataclass: every hyperparameter, and the `shape` of one example."""

    def init(self, key: Array, cfg: Any, batch: Any = None) -> Any:
        """A fresh State. `batch` is used for data-dependent initialisation only and changes no shape."""

    def train_step(self, state: Any, batch: Any, cfg: Any) -> tuple[Any, Metrics]:
        """The next State and the metrics of this step; its random key is `fold_in(state.key, state.step)`."""

    def sample(self, key: Array, state: Any, n: int, cfg: Any) -> Array:
        """`n` draws from the model, in the space of the data."""


@runtime_checkable
class HasLoss(Protocol):
    """A model trained by the gradient of one loss, which research code can call."""

    def loss(self, params: Any, batch: Any, key: Array, cfg: Any) -> tuple[Array, Any]:
        """The scalar that is minimised, and auxiliary values such as metrics."""


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
    """A model with a likelihood, which names the quantity that the likelihood is of."""

    def measure(self, cfg: Any) -> str:
        """One of "density", "levels", "bits", "counts" and "symbols", see `evaluation.likelihood.UNITS`."""


@runtime_checkable
class HasEncode(Protocol):
    """A model that encodes data."""

    def encode(self, state: Any, x: Array, cfg: Any) -> Array:
        """Codes of x."""


@runtime_checkable
class HasDecode(Protocol):
    """A model that decodes codes to data."""

    def decode(self, state: Any, z: Array, cfg: Any) -> Array:
        """The data that codes z are decoded to, (B, *shape)."""


@runtime_checkable
class HasReconstruct(Protocol):
    """A model that reconstructs data."""

    def reconstruct(self, state: Any, x: Array, cfg: Any) -> Array:
        """The reconstruction of x, (B, *shape)."""


@runtime_checkable
class HasClassify(Protocol):
    """A model with a density for each class."""

    def classify(self, state: Any, x: Array, cfg: Any) -> Array:
        """log p(class given x), (B, K)."""


@runtime_checkable
class HasTranslate(Protocol):
    """A model that maps images of one domain to another."""

    def translate(self, state: Any, batch: Any, cfg: Any) -> Array:
        """Images of the other domain."""


@runtime_checkable
class HasScore(Protocol):
    """A model without a density that can still score how typical data are."""

    def score(self, state: Any, x: Array, cfg: Any) -> Array:
        """(B,), higher for more typical data."""


@runtime_checkable
class HasAdvance(Protocol):
    """An autoregressive model that samples from a cache, which `begin(state, n, cfg)` gives."""

    def begin(self, state: Any, n: int, cfg: Any) -> Any:
        """The cache for n sequences of which nothing is known yet."""

    def advance(self, state: Any, cache: Any, symbol: Array, cfg: Any) -> tuple[Any, Array]:
        """The cache with one symbol (n, ...) more, and what is said of the next one, (n, ...)."""


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
    "advance": HasAdvance,
}
"""The optional capabilities of a family, by the name of the function."""


def capabilities(family: Any) -> list[str]:
    """The names of the optional capabilities that a family has."""
    return [name for name, protocol in CAPABILITIES.items() if isinstance(family, protocol)]


FROM_THE_DATA = ("shape", "num_classes", "levels")
"""Fields of a Config that the data determine; `levels` counts the values of a pixel, 0 for real numbers."""


def shape_to(dataset: Any, cfg: Any) -> Any:
    """`cfg` with the data set's shape, number of classes and levels, where it has such fields."""
    names = {field.name for field in dataclasses.fields(cfg)}
    facts = {name: getattr(dataset, name) for name in FROM_THE_DATA if name in names}
    return dataclasses.replace(cfg, **facts)


def from_data(family: Any, dataset: Any, cfg: Any) -> Any:
    """`cfg` with the facts of the data: those of `shape_to`, and those of the family's own `from_data`."""
    cfg = shape_to(dataset, cfg)
    return family.from_data(dataset, cfg) if hasattr(family, "from_data") else cfg


DATA = ("image", "x", "tokens", "audio")
"""Names of the data of a batch for models of one variable."""


def observed(batch: Batch) -> Array:
    """The data of a batch for models of one variable: the first of `DATA` that it has.

    Raises ValueError if it has none of them.
    """
    for name in DATA:
        if name in batch:
            return batch[name]
    raise ValueError(
        f"the batch must have one of {', '.join(DATA)}, and has only {', '.join(batch) or 'nothing'}"
    )


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
