"""Data sets by name, and parts of them by split string."""

import difflib
import re
from collections.abc import Callable

from jaxgen.data import images, points
from jaxgen.data.dataset import DataError, Dataset, StreamedDataset

_BUILT_IN: dict[str, Callable[[str], Dataset]] = {
    "digits": images.digits,
    "ring": points.ring,
    "grid": points.grid,
    "moons": points.moons,
}


def names() -> tuple[str, ...]:
    """The data sets that need no file and no network."""
    return tuple(_BUILT_IN)


def load(
    name: str, split: str = "train", data_dir: str | None = None, image_size: int | None = None
) -> Dataset | StreamedDataset:
    """A data set by name.

    Args:
        name: one of `names()`.
        split: "train", "test", or a slice of one: "train[:50000]", "train[90%:]".
        data_dir: where prepared data sets are.
        image_size: side in pixels to bring the pictures of a folder to.

    Raises:
        DataError: an unknown name or split, in one line that names the known ones.
    """
    whole, part = parse_split(split)
    if name not in _BUILT_IN:
        near = difflib.get_close_matches(name, names())
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise DataError(f"unknown data set {name!r}: {hint}Built in are {', '.join(names())}")
    if whole not in ("train", "test"):
        raise DataError(f"data set {name!r} has no split {whole!r}: its splits are train, test")
    return take(_BUILT_IN[name](whole), split, part)


def parse_split(split: str) -> tuple[str, Callable[[int], slice]]:
    """The split's name, and a function from its number of examples to the slice asked for."""
    match = re.fullmatch(r"(\w+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?", split)
    if not match:
        raise DataError(f"split {split!r} is not understood: write train, train[:50000] or train[90%:]")
    whole, start, stop = match.groups()

    def position(text: str | None, size: int) -> int | None:
        if text is None or not text.endswith("%"):
            return None if text is None else int(text)
        return round(int(text[:-1]) * size / 100)

    return whole, lambda size: slice(position(start, size), position(stop, size))


def take(dataset: Dataset, split: str, part: Callable[[int], slice]) -> Dataset:
    """The examples of `dataset` that the split string asks for."""
    chosen = part(len(dataset))
    arrays = {key: array[chosen] for key, array in dataset.arrays.items()}
    return Dataset(dataset.name, split, arrays, dataset.num_classes, dataset.label_names)
