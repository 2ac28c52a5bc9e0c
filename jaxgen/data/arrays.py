"""Data sets in array files: MNIST's IDX format and NumPy's npz."""

import dataclasses
import gzip
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxgen.data.dataset import (
    DataError,
    Dataset,
    StreamedDataset,
    channels_first,
    check_split,
    one_line,
    take,
)
from jaxgen.data.images import check_held_out, held_out

_STEMS = {"train": "train", "test": "t10k"}
_MAIN = ("image", "images", "x", "tokens", "audio")
_LABELS = ("label", "labels", "y", "group")
_NONE = np.empty(0)


def idx(path: Path, split: str, name: str | None = None, label_names: tuple[str, ...] = ()) -> Dataset:
    """A folder of IDX files named like MNIST's: train-images-idx3-ubyte, t10k-labels-idx1-ubyte, ..., or .gz.

    Raises:
        DataError: a file is missing, damaged, or of another length than its partner; the message names it.
    """
    name = name or f"idx:{path}"
    check_split(name, split, _STEMS)
    files = []
    for kind, suffix in (("images", "images-idx3"), ("labels", "labels-idx1")):
        file = find_idx(path, split, kind)
        if file is None:
            raise DataError(f"{name}: {path} has no {_STEMS[split]}-{suffix}-ubyte, plain or .gz")
        files.append(file)
    image, label = _read_idx(files[0], 3), _read_idx(files[1], 1)
    if len(image) != len(label):
        raise DataError(f"{files[0]} has {len(image)} pictures but {files[1]} {len(label)} labels")
    return Dataset(name, split, {"image": image[..., None], "label": label}, len(label_names), label_names)


def find_idx(path: Path, split: str, kind: str) -> Path | None:
    """The file with the "images" or "labels" of a split, if `path` has it."""
    number = {"images": 3, "labels": 1}[kind]
    names = [f"{_STEMS[split]}-{kind}{mark}idx{number}-ubyte{end}" for mark in "-." for end in ("", ".gz")]
    return next((path / name for name in names if (path / name).is_file()), None)


def _read_idx(file: Path, rank: int) -> np.ndarray:
    """The uint8 array in an IDX file: 0, 0, 8 (unsigned byte), rank, sizes as big-endian int32, values."""
    try:
        content = file.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except Exception as error:  # gzip raises several types on damaged files
        raise DataError(f"{file} cannot be read: {one_line(error)}") from error
    header = 4 + 4 * rank
    if len(content) < header or content[:4] != bytes([0, 0, 8, rank]):
        raise DataError(f"{file} is not an IDX file of unsigned bytes with {rank} dimensions")
    shape = tuple(int(size) for size in np.frombuffer(content[4:header], ">u4"))
    expected = header + int(np.prod(shape, dtype=object))
    if len(content) != expected:
        raise DataError(f"{file} is damaged: {len(content)} bytes where {shape} makes {expected}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def npz(path: Path, split: str) -> Dataset | StreamedDataset:
    """The data set in an npz archive, whose arrays are recognised by their keys.

    Pictures are called "image", "images" or "x" and are integers 0 .. 255 of shape (N, H, W) or (N, H, W, C).
    An array (N, D) becomes "x", unless it is called "tokens" or "audio". Labels are called "label", "labels",
    "y" or "group", and their names "label_names" and so on; labels may be words themselves. A boolean array
    "test" (N,) marks the held-out examples; without it a fixed fifth (of each class) is the test split.
    Archives of Keras with "x_train", "y_train", "x_test" and "y_test" keep their splits.

    Raises:
        DataError: the file is damaged, or has other keys or shapes; the message names those found.
    """
    name = f"npz:{path}"
    found = _read_npz(path)
    parts = {part: f"x_{part}" for part in ("train", "test") if f"x_{part}" in found}
    if parts:
        check_split(name, split, parts)
        words = [found[key] for key in ("y_train", "y_test") if found.get(key, _NONE).dtype.kind == "U"]
        if words:
            names = np.unique(np.concatenate(list(map(np.ravel, words))))
            found |= {f"y_{part}_names": names for part in parts}
        sets = {part: _described(name, part, found, key, f"y_{part}") for part, key in parts.items()}
        return dataclasses.replace(sets[split], num_classes=max(s.num_classes for s in sets.values()))
    main = next((key for key in _MAIN if key in found), None)
    if main is None:
        raise DataError(
            f"{name} has no {', '.join(_MAIN)} or x_train; its arrays are {', '.join(found) or 'none'}"
        )
    check_split(name, split, ("train", "test"))
    whole = _described(name, split, found, main, next((key for key in _LABELS if key in found), ""))
    chosen = found.get("test")
    if chosen is None:
        chosen = held_out(whole.arrays.get("label", np.zeros(len(whole))))
        if split == "test":
            check_held_out(name, chosen)
    elif chosen.dtype != bool or chosen.shape != (len(whole),):
        raise DataError(f"{name}: 'test' must be ({len(whole)},) bool, not {chosen.dtype} {chosen.shape}")
    return take(whole, split, np.flatnonzero(chosen == (split == "test")))


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        # Opened here, because NumPy leaves a file open that is no archive.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except FileNotFoundError:
        raise DataError(f"npz:{path}: there is no such file") from None
    except Exception as error:  # zipfile, zlib and NumPy raise a dozen types on damaged files
        remedy = as_archive(path)
        if "Object arrays" in str(error):
            remedy = "save words as np.asarray(words, str) and numbers as arrays of one type"
        raise DataError(f"{path} cannot be read as an npz archive: {remedy or one_line(error)}") from error


def as_archive(path: Path) -> str:
    """What makes an npz archive of a file, if it is one of the common kinds of tables; "" for others."""
    read = {
        ".npy": f"np.load({path.name!r})",
        ".csv": f'np.genfromtxt({path.name!r}, delimiter=",", skip_header=1)',
        ".tsv": f'np.genfromtxt({path.name!r}, delimiter="\\t", skip_header=1)',
    }.get(path.suffix.lower())
    return f"write one by np.savez({path.stem + '.npz'!r}, x={read})" if read else ""


def _described(name: str, split: str, found: Mapping[str, np.ndarray], main: str, label: str) -> Dataset:
    """A data set of `found[main]`, pictures or points depending on its rank, with labels and names."""
    values = found[main]
    if values.ndim == 2:
        arrays = {main if main in ("tokens", "audio") else "x": values}
    elif values.dtype.kind not in "ui" or (values.size and (values.min() < 0 or values.max() > 255)):
        raise DataError(
            f"{name}: pictures {main!r} must be integers 0 .. 255, not {values.dtype}"
            f" {values.shape}{_to_bytes(values)}"
        )
    elif values.ndim == 3:
        arrays = {"image": values[..., None].astype(np.uint8)}
    elif values.ndim == 4 and (values.shape[-1] <= 4 or channels_first(values)):
        arrays = {"image": values.astype(np.uint8)}
    else:
        raise DataError(
            f"{name}: {main!r} must be (N, H, W), (N, H, W, C <= 4) or (N, D), not {values.shape}"
        )
    if label not in found:
        return Dataset(name, split, arrays)
    # Keras keeps CIFAR's labels as a column.
    arrays["label"] = (
        found[label].reshape(len(found[label])) if found[label].shape[1:] == (1,) else found[label]
    )
    label_names = tuple(map(str, np.ravel(found.get(label.removesuffix("s") + "_names", ()))))
    return Dataset(name, split, arrays, label_names=label_names)


def _to_bytes(values: np.ndarray) -> str:
    """The words to add for pictures that a formula turns into integers 0 .. 255."""
    if not values.size or values.dtype.kind not in "bf":
        return ""
    lowest, highest = values.min(), values.max()
    for low, high, formula in ((0, 1, "255 * x"), (-1, 1, "127.5 * (x + 1)"), (0, 255, "x")):
        if lowest >= low and highest <= high:
            return f": save np.round({formula}).astype(np.uint8)"
    return ""
