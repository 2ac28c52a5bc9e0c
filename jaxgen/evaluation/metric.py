"""One number on held-out data, with what it takes to read it."""

import math
from collections.abc import Mapping
from typing import Any, TypedDict


class Metric(TypedDict):
    """One number on held-out data, with what it takes to read it."""

    value: float
    unit: str
    n: int  # examples it was measured on
    floor: float | None  # what real data get in the samples' place, on average over draws
    floor_spread: float | None  # the standard deviation of that over draws
    published: float | None
    published_source: str | None


def metric(
    value: float,
    unit: str,
    n: int,
    floor: float | None = None,
    floor_spread: float | None = None,
    published: float | None = None,
    published_source: str | None = None,
) -> Metric:
    """A Metric from plain or array numbers."""
    return Metric(
        value=float(value),
        unit=unit,
        n=n,
        floor=floor,
        floor_spread=floor_spread,
        published=published,
        published_source=published_source,
    )


def value_text(found: Mapping[str, Any]) -> str:
    """The value of a Metric with the digits that mean something: two of the floor's spread, four at most."""
    return _rounded(found["value"], found.get("floor_spread"))


def floor_text(found: Mapping[str, Any]) -> str:
    """The floor of a Metric, with its spread if it has one; "" without a floor."""
    floor, spread = found["floor"], found.get("floor_spread")
    if floor is None:
        return ""
    text = _rounded(floor, spread)
    return f"{text} ± {_rounded(spread, spread)}" if spread else text


def _rounded(value: float, spread: float | None) -> str:
    if not spread or not math.isfinite(value):
        return f"{value:.4g}"
    places = 1 - math.floor(math.log10(spread))
    if value:
        places = min(places, 3 - math.floor(math.log10(abs(value))))
    return f"{value:.{max(places, 0)}f}"
