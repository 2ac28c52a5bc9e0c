"""One number on held-out data, with what it takes to read it."""

from typing import TypedDict


class Metric(TypedDict):
    """One number on held-out data, with what it takes to read it."""

    value: float
    unit: str
    n: int  # examples it was measured on
    floor: float | None  # what real data against real data gets, for distances
    published: float | None
    published_source: str | None


def metric(
    value: float,
    unit: str,
    n: int,
    floor: float | None = None,
    published: float | None = None,
    published_source: str | None = None,
) -> Metric:
    """A Metric from plain or array numbers."""
    return Metric(
        value=float(value),
        unit=unit,
        n=n,
        floor=floor,
        published=published,
        published_source=published_source,
    )
