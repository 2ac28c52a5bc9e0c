"""Types of the fields of Configs and of their parts, and the check that holds every field to its type.

The annotation of a field says what it takes: a number and its range, one of several words, a class of parts.

    num_latents: PositiveInt = 16
    schedule: Literal["linear", "cosine"] = "linear"
    rate: Annotated[float, Range(above=0, most=0.5)] = 0.1

`check` is called whenever a `values.Value` is made, and Configs are Values. Linen modules are checked with
the Config or the Value that holds them.
"""

import dataclasses
import difflib
import functools
import math
import numbers
import types
import typing
from typing import Annotated, Any, Literal, TypeAlias

import flax.linen as nn
import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Range:
    """The finite numbers between two ends, each of which is included or excluded, or absent."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None

    def __contains__(self, number: Any) -> bool:
        return (
            math.isfinite(number)
            and (self.least is None or number >= self.least)
            and (self.above is None or number > self.above)
            and (self.most is None or number <= self.most)
            and (self.below is None or number < self.below)
        )

    def __str__(self) -> str:
        words = {"at least": self.least, "above": self.above, "at most": self.most, "below": self.below}
        return " and ".join(f"{word} {end:g}" for word, end in words.items() if end is not None) or "finite"


PositiveInt: TypeAlias = Annotated[int, Range(least=1)]
NonNegativeInt: TypeAlias = Annotated[int, Range(least=0)]
PositiveFloat: TypeAlias = Annotated[float, Range(above=0)]
NonNegativeFloat: TypeAlias = Annotated[float, Range(least=0)]
FiniteFloat: TypeAlias = Annotated[float, Range()]
Fraction: TypeAlias = Annotated[float, Range(least=0, most=1)]
Decay: TypeAlias = Annotated[float, Range(least=0, below=1)]


def options(part: Any) -> list[dataclasses.Field]:
    """The fields of a part or a Config that are options: all but the two that Linen adds."""
    cls = part if isinstance(part, type) else type(part)
    of_linen = ("parent", "name") if issubclass(cls, nn.Module) else ()
    return [field for field in dataclasses.fields(cls) if field.init and field.name not in of_linen]


def check(part: Any, named: bool = True) -> None:
    """Raises ValueError if a field of a part, or of a Linen module inside of it, is not what its type says.

    The message names the class, unless not `named`, the field, what came and what it takes. A default is
    never refused.
    """
    hints = _hints(type(part))  # type: ignore[arg-type]
    for field in options(part):
        value = getattr(part, field.name)
        wrong = "" if value is field.default else misfit(value, hints.get(field.name, Any))
        if wrong:
            module = type(part).__module__.rpartition(".")[2]
            where = f"{module}.{type(part).__qualname__}: " if named else ""
            raise ValueError(f"{where}{field.name} {wrong}")
        for inner in value if isinstance(value, tuple) else (value,):
            if isinstance(inner, nn.Module):
                check(inner)


def misfit(value: Any, hint: Any) -> str:
    """What is wrong with a value for a type, as in "must be at least 1, not 0"; "" if nothing is."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        ranges = [mark for mark in arguments[1:] if isinstance(mark, Range)]
        wrong = misfit(value, arguments[0])
        if wrong or isinstance(value, jax.core.Tracer):
            return wrong
        return next((f"must be {range}, not {value}" for range in ranges if value not in range), "")
    if origin in (typing.Union, types.UnionType):
        if not all(misfit(value, each) for each in arguments):
            return ""
        others = [each for each in arguments if each is not type(None)]
        if len(others) == 1:
            return misfit(value, others[0])
    elif origin is tuple and isinstance(value, tuple):
        return _misfit_of_entries(value, arguments)
    elif _is_of(value, hint, origin, arguments):
        return ""
    if type(value) is list:
        return f"must be a tuple, not the list {value}"
    words = [word for each in _flat(hint) for word in _words(each)]
    listed = " or ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words)
    return f"must be {listed}, not {value!r}{near(value, words)}"


def _misfit_of_entries(value: tuple, hints: tuple) -> str:
    if hints[-1:] == (...,):
        hints = hints[:1] * len(value)
    if len(hints) != len(value):
        return f"must have {len(hints)} entries, not {value}"
    wrong = next(filter(None, map(misfit, value, hints)), "")
    return f"{wrong}, in {value}" if wrong else ""


def _is_of(value: Any, hint: Any, origin: Any, arguments: tuple) -> bool:
    """Whether a value is of a type that is no union, range or tuple of types; of types unknown here it is."""
    if origin is Literal:
        return any(isinstance(value, type(choice)) and value == choice for choice in arguments)
    if hint in (int, float):
        kind = numbers.Integral if hint is int else numbers.Real
        scalar = isinstance(value, jax.Array) and value.ndim == 0
        return (isinstance(value, kind) and not isinstance(value, bool)) or scalar
    if hint is bool:
        return isinstance(value, bool | np.bool_)
    try:
        return isinstance(value, origin or hint)
    except TypeError:  # Any, and what else cannot be asked
        return True


def _flat(hint: Any) -> tuple:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(inner for each in typing.get_args(hint) for inner in _flat(each))
    return _flat(typing.get_args(hint)[0]) if typing.get_origin(hint) is Annotated else (hint,)


def _words(hint: Any) -> list[str]:
    """A type in words: the choices of a Literal, the name of a class of parts."""
    if typing.get_origin(hint) is Literal:
        return [repr(choice) for choice in typing.get_args(hint)]
    kinds = {int: "an integer", float: "a number", bool: "True or False", str: "a word", type(None): "None"}
    if hint in kinds:
        return [kinds[hint]]
    name = getattr(typing.get_origin(hint) or hint, "__name__", str(hint))
    return ["a tuple" if name == "tuple" else f"{name}()" if dataclasses.is_dataclass(hint) else name]


def near(value: Any, words: list[str]) -> str:
    """The words to add for what is nearly one of these, or is a class in place of a part; "" for others."""
    given = value.__name__ if isinstance(value, type) else value
    if not isinstance(given, str):
        return ""
    plain = {word.strip("'()").replace("_", "").lower(): word for word in words}
    found = difflib.get_close_matches(given.replace("_", "").lower(), plain, 1)
    return f": did you mean {plain[found[0]]}?" if found else ""


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls, include_extras=True)
    except NameError:  # of a class whose annotations name what is imported for type checkers only
        return {}
