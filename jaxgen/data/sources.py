"""Data sets by name, and their parts by split string."""

import difflib
import functools
import importlib
import math
import pkgutil
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from jaxgen.data import arrays, catalogue, folders, images, sound, stacked
from jaxgen.data.dataset import DataError, Dataset, NoSplit, StreamedDataset, check_split, read, take

WHOLE_LIMIT = 2**30
"""Data sets with at most so many bytes of uint8 pictures are read into memory; larger ones are streamed."""

VALIDATION, REST = "validation", "train-validation"
"""What a model is tuned on, and what it is trained on then."""

_CHUNK = 512


@functools.cache
def built_in() -> dict[str, Callable[[str], Dataset]]:
    """The data sets that need no file and no network: {name: function of the split}.

    They are collected from the `BUILT_IN` of the modules of this package.
    """
    package = Path(__file__).parent
    names = sorted(info.name for info in pkgutil.iter_modules([str(package)]) if info.name != "sources")
    modules = (importlib.import_module(f"jaxgen.data.{name}") for name in names)
    return {name: make for module in modules for name, make in getattr(module, "BUILT_IN", {}).items()}


def names() -> tuple[str, ...]:
    """Names of the data sets that need no file and no network."""
    return tuple(built_in())


def load(
    name: str, split: str = "train", data_dir: str | Path | None = None, image_size: int | None = None
) -> Dataset | StreamedDataset:
    """A data set by name.

    Args:
        name: one of `names()`; "folder:PATH", "npz:PATH", "idx:PATH" or "sounds:PATH"; a name of the
            tensorflow-datasets catalogue, such as "mnist" or "cycle_gan/horse2zebra"; or "stacked_mnist",
            which is made of MNIST.
        split: "train", "test" or another split; "validation", a fixed tenth of the training split, and
            "train-validation", the rest of it (where there is a validation split, that one, and all of the
            training split); or a slice of a split, such as "train[:50000]" or "test[90%:]".
        data_dir: folder of prepared data sets; by default TFDS_DATA_DIR or ~/tensorflow_datasets.
        image_size: pixels; the shorter side of pictures is resized to it, and the centre is cropped.

    Returns:
        The data set in memory if it has at most `WHOLE_LIMIT` bytes, else one that is read while it is used.

    Raises:
        DataError: the name or split is unknown, or a file is missing or damaged; one line says what to do.
    """
    if image_size is not None and image_size < 1:
        raise DataError(f"image_size must be at least 1 pixel, not {image_size}")
    whole, part = parse_split(split)
    dataset = _split(name, whole, data_dir, image_size)
    dataset = take(dataset, split, part(len(dataset)))
    if isinstance(dataset, StreamedDataset):
        return dataset if len(dataset) * math.prod(dataset.shape) > WHOLE_LIMIT else _read_whole(dataset)
    return dataset if image_size is None else images.resized(dataset, image_size)


def _split(name: str, split: str, data_dir: str | Path | None, image_size: int | None) -> Any:
    """A split of a data set, or a part of its training split if it has no validation split."""
    if split not in (VALIDATION, REST):
        return _own_split(name, split, data_dir, image_size)
    try:
        validation = _own_split(name, VALIDATION, data_dir, image_size)
    except NoSplit:
        train = _own_split(name, "train", data_dir, image_size)
        return take(train, split, np.flatnonzero(validation_rows(len(train)) == (split == VALIDATION)))
    return validation if split == VALIDATION else _own_split(name, "train", data_dir, image_size)


def validation_rows(size: int) -> np.ndarray:
    """A fixed choice of a tenth of a training split of `size` examples, at least one: (size,) bool."""
    # RandomState, because NumPy keeps its streams from version to version and its Generator's not.
    chosen = np.zeros(size, bool)
    chosen[np.random.RandomState(2).permutation(size)[: max(1, round(size / 10))]] = True
    return chosen


def _own_split(
    name: str, split: str, data_dir: str | Path | None, image_size: int | None
) -> Dataset | StreamedDataset:
    """A split that the data set has of its own; its pictures may still have another size."""
    kind, _, path = name.partition(":")
    where = Path(path).expanduser()
    if name in built_in():
        check_split(name, split, ("train", "test"))
        return built_in()[name](split)
    if name == "stacked_mnist":
        check_split(name, split, tuple(stacked.SIZES))
        digits = load("mnist", split, data_dir)
        digits = _read_whole(digits) if isinstance(digits, StreamedDataset) else digits
        return stacked.stacked(name, digits, stacked.SIZES[split])
    if kind == "folder" and path:
        return folders.folder(where, split, image_size)
    if kind == "npz" and path:
        return arrays.npz(where, split)
    if kind == "idx" and path:
        return arrays.idx(where, split)
    if kind == "sounds" and path:
        return sound.sounds(where, split)
    found = catalogue.load(name, split, data_dir, image_size)
    if found is None:
        raise _unknown(name)
    return found


def parse_split(split: str) -> tuple[str, Callable[[int], slice]]:
    """The name of the split, and a function from its number of examples to the requested slice."""
    match = re.fullmatch(r"([\w-]+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?", split)
    if not match:
        raise DataError(f"split {split!r} is not understood: write train, train[:50000] or train[90%:]")
    whole, start, stop = match.groups()

    def position(text: str | None, size: int) -> int | None:
        if text is None or not text.endswith("%"):
            return None if text is None else int(text)
        return round(int(text[:-1]) * size / 100)

    return whole, lambda size: slice(position(start, size), position(stop, size))


def _read_whole(streamed: StreamedDataset) -> Dataset:
    first = streamed.source[0]
    whole = {key: np.empty((len(streamed), *np.shape(value)), value.dtype) for key, value in first.items()}

    def fill(start: int) -> None:
        rows = range(len(streamed))[start : start + _CHUNK]
        for row, example in zip(rows, read(streamed.source, rows), strict=True):
            for key, value in example.items():
                whole[key][row] = value

    # For small pictures most of the time is spent in the Python interpreter, where threads do not help.
    workers = 1 if math.prod(streamed.shape) < 2**12 else None
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(fill, range(0, len(streamed), _CHUNK)))
    names = streamed.label_names
    return Dataset(streamed.name, streamed.split, whole, streamed.num_classes, names, streamed.levels)


def _kinds(path: Path) -> list[str]:
    """The kinds of data that the file or folder at a path can hold, if there is one."""
    if path.is_file():
        return ["npz"] if path.suffix == ".npz" else []
    if not path.is_dir():
        return []
    if any(file.suffix.lower() == ".wav" for file in path.iterdir()):
        return ["sounds"]
    return ["idx"] if any("ubyte" in file.name for file in path.iterdir()) else ["folder"]


def _unknown(name: str) -> DataError:
    shown = {known: known for known in [*names(), "stacked_mnist", *catalogue.names()]}
    shown |= {kind: f"{kind}:PATH" for kind in ("folder", "npz", "idx", "sounds")}
    near = [shown[match] for match in difflib.get_close_matches(name.partition(":")[0], shown)]
    near = [f"{kind}:{name}" for kind in _kinds(Path(name).expanduser())] or near
    path = Path(name.partition(":")[2] or name).expanduser()
    remedy = arrays.as_archive(path)
    if remedy and path.is_file():
        return DataError(
            f"a data set is no {path.suffix} file, as {name!r} is: {remedy}, and give it as npz:PATH"
        )
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return DataError(
        f"unknown data set {name!r}: {hint}Built in are {', '.join(names())}; others are folder:PATH, "
        "npz:PATH, idx:PATH, sounds:PATH and the names of the tensorflow-datasets catalogue"
    )
