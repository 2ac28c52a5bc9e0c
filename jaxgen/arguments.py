"""The check of what the functions of a family are given: keys, States, batches and Configs.

    @checked
    def train_step(state: State, batch: Batch, cfg: Config) -> tuple[State, Metrics]:

It looks at types and shapes alone, so that it costs nothing in a compiled program. Values that are out of
range are found where data are loaded and in `fit`.
"""

import functools
import inspect
import operator
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.types import DATA

F = TypeVar("F", bound=Callable)


def checked(function: F) -> F:
    """The function of a family, which raises ValueError for arguments that are not what it takes.

    They are known by their names: `key` is a typed key, `state` and `cfg` are of the annotated classes,
    `batch` has data of the shape `cfg.shape` and as many of everything else, `x` is such data, and `n` is how
    many are drawn.
    """
    signature = inspect.signature(function)
    where = f"{function.__module__.rpartition('.')[2]}.{function.__name__}"

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        wrong = complaint(given, _hints(function))
        if wrong:
            raise ValueError(f"{where}: {wrong}")
        try:
            return function(*args, **kwargs)
        except flax.errors.ScopeParamShapeError as error:
            reason = str(error).partition(" (https://")[0]
            raise ValueError(f"{where}: the parameters are of another Config: {reason}") from None

    return typing.cast(F, call)


def complaint(given: Mapping[str, Any], hints: Mapping[str, Any]) -> str:
    """What is wrong with the arguments of a call; "" if nothing is."""
    for name in ("state", "cfg"):
        wanted = hints.get(name)
        if name not in given or not isinstance(wanted, type) or wanted is Any:
            continue
        if not isinstance(given[name], wanted):
            return f"{name} must be {_class(wanted)}, not {_class(type(given[name]))}"
    cfg = given.get("cfg")
    wrong = ""
    if getattr(cfg, "shape", None) == ():
        return "cfg.shape must be that of an example, such as (28, 28, 1), and is ()"
    if given.get("key") is not None:
        wrong = of_key(given["key"])
    if not wrong and given.get("batch") is not None:
        wrong = of_batch(given["batch"], cfg)
    if not wrong and "x" in given:
        wrong = of_data("x", given["x"], cfg)
    if not wrong and "n" in given:
        wrong = of_count("n", given["n"])
    return wrong


def of_key(key: Any) -> str:
    """What is wrong with a PRNG key."""
    if jnp.issubdtype(getattr(key, "dtype", object), jax.dtypes.prng_key):
        return "" if key.shape == () else f"key must be one key, not an array {key.shape} of keys"
    return f"key must be a typed key such as jax.random.key(0), not {_kind(key)}"


def of_count(name: str, count: Any) -> str:
    """What is wrong with a number of examples, which has to be known when a program is compiled."""
    try:
        number = operator.index(count)
    except TypeError:  # of JAX, for a traced one
        traced = isinstance(count, jax.core.Tracer)
        what = "a traced one: give jit static_argnames" if traced else repr(count)
        return f"{name} must be an integer, not {what}"
    return "" if number >= 0 else f"{name} must be at least 0, not {number}"


def symbols(x: Any) -> Any:
    """x. Raises ValueError for what are no integers."""
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise ValueError(f"symbols are integers, not {x.dtype}")
    return x


def of_batch(batch: Any, cfg: Any) -> str:
    """What is wrong with a batch for a Config."""
    if not isinstance(batch, Mapping):
        return f'batch must be a mapping such as {{"image": x}}, not {_kind(batch)}'
    found = [name for name in DATA if name in batch]
    if not found and "a" in batch:  # a pair of domains
        return ""
    if not found:
        return f"batch must have one of {', '.join(DATA)}, and has only {', '.join(batch) or 'nothing'}"
    wrong = of_data(f"batch[{found[0]!r}]", batch[found[0]], cfg)
    if wrong:
        return wrong
    size = _shape(batch[found[0]])[:1]
    if size == (0,):
        return "batch has no examples"
    for name, entry in batch.items():
        if isinstance(entry, list):
            return f"batch[{name!r}] must be an array, not a list"
        if _shape(entry)[:1] != size:
            return f"batch has {size[0]} examples, but {name} of shape {_shape(entry)}"
    kind = getattr(batch.get("tokens"), "dtype", np.int32)
    if not jnp.issubdtype(kind, jnp.integer):
        return f"batch['tokens'] must be integers, not {kind}"
    kind = getattr(batch.get("image"), "dtype", np.float32)
    if not jnp.issubdtype(kind, jnp.floating):
        return f"batch['image'] must be floats in [-1, 1], not {kind}: give x / 127.5 - 1 for 0 .. 255"
    return ""


def of_data(name: str, x: Any, cfg: Any) -> str:
    """What is wrong with data for a Config: their shape, or pixels that are no numbers in [-1, 1] yet."""
    if hasattr(x, "_fields"):  # documents as lists of their words, which the family knows
        return ""
    if isinstance(x, list):
        return f"{name} must be an array, not a list"
    shape, of_one = np.shape(x), tuple(cfg.shape)
    fixed = 1 if getattr(cfg, "any_length", False) else 0
    wanted = ", ".join(["B", *(["T"] * fixed), *map(str, of_one[fixed:])])
    if len(shape) != 1 + len(of_one) or shape[1 + fixed :] != of_one[fixed:]:
        remedy = ": give a batch, x[None]" if shape == of_one else ""
        return f"{name} must be of shape ({wanted}), not {shape}{remedy}"
    if getattr(x, "dtype", None) == np.uint8:
        return f"{name} must be floats in [-1, 1], not uint8: give x / 127.5 - 1"
    return ""


def of_values(family: Any, cfg: Any, x: Any) -> str:
    """What is wrong with the values of data: pixels are in [-1, 1], and counts are not negative."""
    measure = family.measure(cfg) if hasattr(family, "measure") else ""
    part = next((name for name in ("likelihood", "visible") if hasattr(cfg, name)), None)
    lowest, highest = float(np.min(x)), float(np.max(x))
    if measure == "counts" and len(cfg.shape) != 3 and lowest < 0:
        name = getattr(family, "__name__", str(family)).rpartition(".")[2]
        return (
            f"{name} is of counts, and the data have values from {lowest:.4g} to {highest:.4g}: take a model"
            " of real numbers, such as gmm"
        )
    if part is None or measure not in ("bits", "levels"):
        return ""
    if lowest >= -1.001 and highest <= 1.001:
        return ""
    wanted = "Symbols" if np.issubdtype(x.dtype, np.integer) else "Gaussian"
    classes = typing.get_args(_hints(type(cfg))[part])  # type: ignore[arg-type]
    other = any(getattr(each, "__name__", "") == wanted for each in classes)
    remedy = f"take another {part}, such as {wanted}(), or scale" if other else "scale"
    return (
        f"{_class(type(getattr(cfg, part)))} is of {measure} in [-1, 1], and the data have values from"
        f" {lowest:.4g} to {highest:.4g}: {remedy} the data"
    )


def _shape(entry: Any) -> tuple[int, ...]:
    """The shape of an array, or of the first one of a tree."""
    return np.shape(jax.tree.leaves(entry)[0])


def _kind(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return f"{value!r}" if shape is None else f"{type(value).__name__} {value.dtype} {shape}"


def _class(cls: type) -> str:
    return f"{cls.__module__.removeprefix('jaxgen.')}.{cls.__qualname__}"


@functools.cache
def _hints(function: Any) -> dict[str, Any]:
    return typing.get_type_hints(function)
