"""State dicts saved by PyTorch, read without it.

`torch.save` writes pickles in which tensors stand for storages kept outside them. Since version 1.6 the file
is a zip archive: `data.pkl`, and each storage as `data/<key>`. Before, it was a row of pickles: a magic
number, the protocol, the writer's type sizes, the state dict, the keys of the storages; then for each key an
int64 count and the raw numbers. A pickle can call any function it names, so here it may name no others than
those a state dict needs.
"""

import collections
import dataclasses
import io
import pickle
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxgen.data.dataset import one_line

_MAGIC = 0x1950A86A20F9469CFC6C
_DTYPES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}


def read(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a state dict by name, from a .pth file of either format.

    Raises:
        ValueError: no such file, a damaged one, or one that holds anything but tensors by name.
    """
    path = Path(path).expanduser()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    try:
        found = _read_zip(content) if zipfile.is_zipfile(io.BytesIO(content)) else _read_pickles(content)
    except Exception as error:  # a damaged pickle may raise anything
        raise ValueError(f"{path} is not a whole state dict of PyTorch: {one_line(error)}") from error
    if not isinstance(found, dict) or not all(isinstance(value, np.ndarray) for value in found.values()):
        raise ValueError(f"{path} is not a state dict of PyTorch: it holds other things than tensors by name")
    return dict(found)


class _StorageType(NamedTuple):
    dtype: np.dtype


@dataclasses.dataclass
class _Storage:
    dtype: np.dtype
    count: int
    numbers: np.ndarray | None = None


class _Tensor(NamedTuple):
    """A view of a storage whose numbers may still be unread."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in numbers, not bytes

    def array(self) -> np.ndarray:
        numbers = self.storage.numbers
        last = self.offset + sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
        if 0 in self.shape:
            return np.zeros(self.shape, self.storage.dtype)
        if numbers is None or min(self.offset, *self.strides, 0) < 0 or last >= len(numbers):
            raise ValueError(f"a tensor {self.shape} reaches beyond its storage")
        steps = [step * numbers.itemsize for step in self.strides]
        view = np.lib.stride_tricks.as_strided(numbers[self.offset :], self.shape, steps, writeable=False)
        return view.copy()


class _Unpickler(pickle.Unpickler):
    """Collects the storages that the pickle names in `storages`."""

    def __init__(self, file: io.BytesIO):
        super().__init__(file)
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, strides, *_: _Tensor(storage, offset, shape, strides)
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, *_: tensor
        if module == "torch" and name in _DTYPES:
            return _StorageType(np.dtype(_DTYPES[name]))
        raise pickle.UnpicklingError(f"it refers to {module}.{name}, which no state dict needs")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage_type, key, _, count = pid[:5]
        if kind != "storage" or any(part is not None for part in pid[5:]):
            raise pickle.UnpicklingError("it has storages of an unknown kind")
        return self.storages.setdefault(key, _Storage(storage_type.dtype, count))


def _read_zip(content: bytes) -> Any:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(names) != 1:
            raise ValueError("the archive has no data.pkl")
        folder = names[0].removesuffix("data.pkl")
        if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
            raise ValueError("it was written on a big-endian machine")
        unpickler = _Unpickler(io.BytesIO(archive.read(names[0])))
        found = unpickler.load()
        for key, storage in unpickler.storages.items():
            raw = archive.read(f"{folder}data/{key}")
            storage.numbers = np.frombuffer(raw, storage.dtype, storage.count)
    return _arrays(found)


def _read_pickles(content: bytes) -> Any:
    file = io.BytesIO(content)
    if _Unpickler(file).load() != _MAGIC:
        raise ValueError("it does not begin as one")
    protocol, system = _Unpickler(file).load(), _Unpickler(file).load()
    if protocol != 1001 or not system.get("little_endian"):
        raise ValueError("it is of another protocol, or was written on a big-endian machine")
    unpickler = _Unpickler(file)
    found = unpickler.load()
    for key in _Unpickler(file).load():
        storage = unpickler.storages[key]
        if int.from_bytes(file.read(8), "little") != storage.count:
            raise ValueError("its storages are damaged")
        raw = file.read(storage.count * storage.dtype.itemsize)
        storage.numbers = np.frombuffer(raw, storage.dtype, storage.count)
    return _arrays(found)


def _arrays(found: Any) -> Any:
    if not isinstance(found, dict):
        return found
    return {name: value.array() if isinstance(value, _Tensor) else value for name, value in found.items()}
