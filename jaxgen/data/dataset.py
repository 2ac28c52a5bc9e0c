"""Data sets: compact arrays held in memory, or a source of examples that is too large for that.

Both store pictures as uint8 and return them as float32 in [-1, 1]. One function does the conversion, so a
batch made on the device, a streamed batch and an evaluation batch have the same values.
"""

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from jaxgen.types import Batch

_MAIN = ("image", "x", "a", "tokens", "audio")


class DataError(ValueError):
    """A bad data set, name, split or file; its message is one line that says what is wrong and what to do."""


class NoSplit(DataError):
    """A split that a data set does not have."""


def to_batch(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Compact arrays (B, ...) in the form that models take; NumPy or JAX arrays, including traced ones.

    uint8 pictures (B, H, W, C) become float32 in [-1, 1]; other integers become int32, floats float32.
    """
    return {name: _convert(array) for name, array in arrays.items()}


def _convert(array):
    if array.dtype == np.uint8 and array.ndim == 4:
        # k / 127.5 - 1, in operations that XLA neither reorders nor fuses: the same bits compiled or not.
        return (array.astype(np.float32) - np.float32(127.5)) * np.float32(1 / 127.5)
    if array.dtype == bool:
        return array
    return array.astype(np.float32 if array.dtype.kind == "f" else np.int32)


class Modes(NamedTuple):
    """The known modes of a mixture of isotropic Gaussians."""

    centers: np.ndarray  # (K, D)
    std: float


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A data set held whole in memory.

    `arrays` are compact and of one length N: "image" (N, H, W, C) uint8, or float in [-1, 1]; "label" (N,)
    integers or words; "x" (N, D) float; and further names of `jaxgen.types.Batch`. `d[i]` is one example for
    an int and a batch for a slice or an index array, converted by `to_batch`. If `num_classes` is 0, it is
    counted from the names or the labels. Words are numbered by their places in `label_names`, or else in
    alphabetical order: give a test split the names of the training split.

    Pictures from 0 to 1 are taken for what they are, grey to white, with a warning.

    Raises:
        DataError: the arrays have different lengths, no examples, or values that do not fit their name.

    Example:
        Dataset("mine", "train", {"image": pictures, "label": digits})
    """

    name: str
    split: str
    arrays: Mapping[str, np.ndarray]
    num_classes: int = 0
    label_names: tuple[str, ...] = ()
    levels: int | None = None
    """Number of values that a pixel can have, evenly spaced over [-1, 1]. By default it is 256 for uint8
    pictures, and 0, which stands for real numbers, for others."""
    modes: Modes | None = None
    """The modes of the distribution, if they are known."""
    log_density: Callable[[np.ndarray], np.ndarray] | None = None
    """The log-density (N, D) -> (N,) of the distribution in nats, if it is known: what no model can beat."""

    def __post_init__(self):
        given = {key: np.asarray(array) for key, array in self.arrays.items()}
        label_names = tuple(self.label_names)
        if "label" in given and given["label"].dtype.kind in "UO":
            label_names = label_names or tuple(np.unique(given["label"].astype(str)).tolist())
            given["label"] = _numbered(self.name, given["label"].astype(str), label_names)
        arrays = {key: _checked(self.name, key, array) for key, array in given.items()}
        lengths = {key: len(array) for key, array in arrays.items()}
        if not lengths or 0 in lengths.values():
            raise DataError(f"data set {self.name!r}, split {self.split!r} has no examples")
        if len(set(lengths.values())) > 1:
            raise DataError(f"data set {self.name!r}: arrays of different lengths {lengths}")
        num_classes = self.num_classes
        if "label" in arrays:
            num_classes = num_classes or len(label_names) or int(arrays["label"].max()) + 1
            lowest, highest = arrays["label"].min(), arrays["label"].max()
            if lowest < 0 or highest >= num_classes:
                raise DataError(
                    f"data set {self.name!r}: labels {lowest}..{highest} do not fit {num_classes} classes:"
                    " number them from 0"
                )
        if self.levels is None:
            image = arrays.get("image")
            levels = 256 if image is not None and image.dtype == np.uint8 else 0
            object.__setattr__(self, "levels", levels)
        object.__setattr__(self, "arrays", arrays)
        object.__setattr__(self, "num_classes", num_classes)
        object.__setattr__(self, "label_names", label_names)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example of "image" if there is one, else of "x", "a", "tokens" or "audio"."""
        return self.arrays[main_array(self.arrays)].shape[1:]

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def __getitem__(self, index: int | slice | np.ndarray) -> Batch:
        if isinstance(index, (int, np.integer)):
            # Converted as a batch of one: the rank tells a picture from other bytes.
            index = range(len(self))[index]
            return {key: array[0] for key, array in self[index : index + 1].items()}
        return to_batch({key: array[index] for key, array in self.arrays.items()})


class Source(Protocol):
    """Examples by index, each a dict of compact arrays without a batch axis."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


@dataclasses.dataclass(frozen=True, eq=False)
class StreamedDataset:
    """A data set read example by example.

    `source` is random-access: `len(source)`, and `source[i]`, for 0 <= i < len, is one example as a dict of
    compact arrays without a batch axis ("image" (H, W, C) uint8, "label" ()). It is indexed like a `Dataset`.
    """

    name: str
    split: str
    source: Source
    shape: tuple[int, ...]
    num_classes: int = 0
    label_names: tuple[str, ...] = ()
    levels: int = 256

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int | slice | np.ndarray) -> Batch:
        positions = range(len(self))
        if isinstance(index, (int, np.integer)):
            index = positions[index]
            return {key: array[0] for key, array in self[index : index + 1].items()}
        if not isinstance(index, slice):
            index = np.asarray(index)
            rows = [positions[row] for row in (np.flatnonzero(index) if index.dtype == bool else index)]
        else:
            rows = list(positions[index])
        examples = read(self.source, rows)
        return to_batch({key: np.stack([example[key] for example in examples]) for key in examples[0]})


def read(source: Source, rows: Sequence[int]) -> list[Mapping[str, np.ndarray]]:
    """Examples of a source, read by its `__getitems__` if it has one, which can be much faster."""
    rows = [int(row) for row in rows]
    return (
        list(source.__getitems__(rows)) if hasattr(source, "__getitems__") else [source[row] for row in rows]
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Part:
    source: Source
    rows: Sequence[int]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Mapping[str, np.ndarray]:
        return self.source[self.rows[index]]

    def __getitems__(self, indices: Sequence[int]) -> list[Mapping[str, np.ndarray]]:
        return read(self.source, [self.rows[index] for index in indices])


def take(
    dataset: Dataset | StreamedDataset, split: str, chosen: slice | np.ndarray
) -> Dataset | StreamedDataset:
    """The chosen examples of `dataset` as its split `split`; the classes stay the same."""
    if isinstance(dataset, Dataset):
        arrays = {key: array[chosen] for key, array in dataset.arrays.items()}
        return dataclasses.replace(dataset, split=split, arrays=arrays)
    rows = np.arange(len(dataset))[chosen].tolist()
    if not rows:
        raise DataError(f"data set {dataset.name!r}, split {split!r} has no examples")
    return dataclasses.replace(dataset, split=split, source=_Part(dataset.source, rows))


def in_order(dataset: Dataset | StreamedDataset, batch_size: int) -> Iterator[Batch]:
    """NumPy batches of every example once, in order, for evaluation; the last batch may be shorter."""
    if batch_size < 1:
        raise DataError(f"batch size must be at least 1, not {batch_size}")
    for start in range(0, len(dataset), batch_size):
        yield dataset[start : start + batch_size]


def check_split(name: str, split: str, splits: Iterable[str]) -> None:
    """Raises a NoSplit that names the available splits if `split` is not one of them."""
    if split not in splits:
        derived = "train" in splits and "validation" not in splits
        more = ", and validation is a tenth of train" if derived else ""
        raise NoSplit(f"data set {name!r} has no split {split!r}: its splits are {', '.join(splits)}{more}")


def one_line(error: Exception) -> str:
    """The message of another library's exception on one line, to be appended to ours."""
    text = " ".join(str(error).split())
    return f"{text[:200]}..." if len(text) > 200 else text or type(error).__name__


def main_array(names) -> str:
    """The array that gives the data set its shape: "image" if present, else "x", "a", "tokens", "audio"."""
    return next((name for name in _MAIN if name in names), next(iter(names)))


def channels_first(image: np.ndarray) -> bool:
    """Whether pictures (N, ., ., .) look as if their channels were their first axis, not their last."""
    return image.shape[1] <= 4 < min(image.shape[2:])


def _numbered(dataset: str, words: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Labels that are words as their places in `names`."""
    places = {name: place for place, name in enumerate(names)}
    unknown = sorted(set(words.ravel().tolist()) - places.keys())
    if unknown:
        raise DataError(
            f"data set {dataset!r}: there is no label {unknown[0]!r} among the names {', '.join(names)}"
        )
    return np.array([places[word] for word in words.ravel().tolist()], np.int32).reshape(words.shape)


def _checked(dataset: str, key: str, array: np.ndarray) -> np.ndarray:
    """`array` in the type that belongs to its name."""
    where = f"data set {dataset!r}: {key!r}"
    if array.ndim == 0 or array.dtype.kind not in "buif":
        raise DataError(
            f"{where} must be an array of numbers, one row an example, not {array.dtype} {array.shape}"
        )
    if array.dtype.kind == "f":
        array = array.astype(np.float32, copy=False)
        if not np.isfinite(array).all():
            raise DataError(f"{where} has values that are not finite")
    if key == "image":
        if array.ndim != 4:
            remedy = ": give x[..., None]" if array.ndim == 3 else ""
            raise DataError(f"{where} must be (N, height, width, channels), not {array.shape}{remedy}")
        if channels_first(array):
            raise DataError(
                f"{where} is {array.shape}, and channels come last: transpose it to"
                f" {tuple(array.shape[axis] for axis in (0, 2, 3, 1))}"
            )
        lowest, highest = (array.min(), array.max()) if array.size else (0, 0)
        if array.dtype != np.uint8 and (array.dtype.kind != "f" or lowest < -1 or highest > 1):
            bytes_of = "x.astype(np.uint8)" if array.dtype.kind != "f" else "x.round().astype(np.uint8)"
            remedy = f": give {bytes_of}" if lowest >= 0 and 1 < highest <= 255 else ""
            raise DataError(
                f"{where} must be uint8 or float in [-1, 1], not {array.dtype} from {lowest:.4g} to"
                f" {highest:.4g}{remedy}"
            )
        if array.dtype != np.uint8 and lowest == 0 < highest:
            warnings.warn(
                f"{where} has values from 0 to {highest:.4g}, and black is -1: give 2 * x - 1 if 0 is black",
                stacklevel=4,
            )
    elif key == "label":
        if array.ndim != 1 or array.dtype.kind not in "ui":
            raise DataError(f"{where} must be (N,) integers, not {array.dtype} {array.shape}")
        array = array.astype(np.int32, copy=False)
    elif key == "tokens":
        if array.ndim < 2 or array.dtype.kind not in "ui" or (array.size and array.min() < 0):
            lowest = f" from {array.min()}" if array.size else ""
            raise DataError(
                f"{where} must be (N, T) integers from 0, not {array.dtype} {array.shape}{lowest}"
            )
    elif key == "x":
        array = array.astype(np.float32, copy=False)
    return array
