"""State dicts in both formats of `torch.save`, written here without PyTorch, and by it where there is one."""

import collections
import io
import pickle
import subprocess
import sys
import types
import zipfile

import numpy as np
import pytest

from jaxgen.evaluation.features import torch_file
from tests.evaluation import second_opinion

DTYPES = {"FloatStorage": "<f4", "LongStorage": "<i8", "HalfStorage": "<f2", "BoolStorage": "?"}


class Storage:
    def __init__(self, key, kind, numbers):
        self.key, self.kind, self.numbers = key, kind, np.asarray(numbers, DTYPES[kind])


class Tensor:
    def __init__(self, storage, offset, shape, strides):
        self.view = storage, offset, shape, strides, False, collections.OrderedDict()

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_tensor_v2, self.view


class Pickler(pickle.Pickler):
    legacy = False

    def persistent_id(self, value):
        if isinstance(value, Storage):
            kind = getattr(sys.modules["torch"], value.kind)
            return "storage", kind, value.key, "cpu", len(value.numbers), *([None] * self.legacy)
        return None


def pickled(value, legacy=False):
    file = io.BytesIO()
    pickler = Pickler(file, protocol=2)
    pickler.legacy = legacy
    pickler.dump(value)
    return file.getvalue()


def write_zip(path, value, storages):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights/data.pkl", pickled(value))
        archive.writestr("weights/byteorder", "little")
        for storage in storages:
            archive.writestr(f"weights/data/{storage.key}", storage.numbers.tobytes())


def write_pickles(path, value, storages):
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    content = [pickled(0x1950A86A20F9469CFC6C), pickled(1001), pickled(system), pickled(value, legacy=True)]
    content.append(pickled([storage.key for storage in storages]))
    for storage in storages:
        content.append(len(storage.numbers).to_bytes(8, "little") + storage.numbers.tobytes())
    path.write_bytes(b"".join(content))


@pytest.fixture(autouse=True)
def torch(monkeypatch):
    """Modules of PyTorch's names, for pickles to refer to."""
    package, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in DTYPES:
        setattr(package, name, type(name, (), {"__module__": "torch"}))

    def _rebuild_tensor_v2():
        raise AssertionError("the reader has its own")

    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    monkeypatch.setitem(sys.modules, "torch", package)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)


@pytest.fixture(params=[write_zip, write_pickles])
def write(request):
    return request.param


@pytest.fixture
def storages():
    return [Storage("0", "FloatStorage", np.arange(24) / 7), Storage("171", "LongStorage", [5])]


def test_views_of_storages_are_read(write, storages, tmp_path):
    half, flags = Storage("7", "HalfStorage", [0.5, -2]), Storage("8", "BoolStorage", [True, False])
    state = collections.OrderedDict(
        kernel=Tensor(storages[0], 0, (2, 3, 4), (12, 4, 1)),
        transposed=Tensor(storages[0], 0, (4, 3, 2), (1, 4, 12)),
        tail=Tensor(storages[0], 20, (2, 2), (2, 1)),
        count=Tensor(storages[1], 0, (), ()),
        none=Tensor(storages[1], 1, (0, 3), (3, 1)),
        half=Tensor(half, 0, (2,), (1,)),
        flags=Tensor(flags, 0, (2,), (1,)),
    )
    write(tmp_path / "weights.pth", state, [*storages, half, flags])
    found = torch_file.read(tmp_path / "weights.pth")
    kernel = (np.arange(24, dtype=np.float32) / 7).reshape(2, 3, 4)
    wanted = {
        "kernel": kernel,
        "transposed": kernel.T,
        "tail": kernel.ravel()[20:].reshape(2, 2),
        "count": np.int64(5),
        "none": np.zeros((0, 3), np.int64),
        "half": np.float16([0.5, -2]),
        "flags": np.array([True, False]),
    }
    assert list(found) == list(wanted)
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], values)
        assert found[name].dtype == values.dtype
        assert found[name].flags.writeable


@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [((5, 5), (5, 1), 0), ((24,), (1,), 1), ((3,), (-1,), 3), ((2,), (1,), -1)],
)
def test_no_view_reaches_beyond_its_storage(write, storages, tmp_path, shape, strides, offset):
    write(tmp_path / "weights.pth", {"kernel": Tensor(storages[0], offset, shape, strides)}, storages[:1])
    with pytest.raises(
        ValueError, match=r"weights.pth is not a whole state dict .* reaches beyond its storage"
    ):
        torch_file.read(tmp_path / "weights.pth")


def test_no_function_of_the_file_is_called(write, storages, tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("called",)

    write(tmp_path / "weights.pth", {"kernel": Evil()}, [])
    with pytest.raises(ValueError, match=r"it refers to .*print, which no state dict needs"):
        torch_file.read(tmp_path / "weights.pth")


def test_damage_and_other_files_get_one_line(write, storages, tmp_path):
    path = tmp_path / "weights.pth"
    write(path, {"kernel": Tensor(storages[0], 0, (24,), (1,))}, storages[:1])
    whole = path.read_bytes()
    for content in (b"", b"no weights", whole[:-1], whole[: len(whole) // 2], whole[:50], pickled([1, 2])):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"weights.pth is not a whole state dict of PyTorch: ") as error:
            torch_file.read(path)
        assert "\n" not in str(error.value)
    for other in ([1.0], {"state_dict": {"kernel": 1.0}}):
        write(path, other, [])
        with pytest.raises(ValueError, match=r"it holds other things than tensors by name"):
            torch_file.read(path)
    with pytest.raises(ValueError, match=r"none.pth cannot be read: No such file"):
        torch_file.read(tmp_path / "none.pth")


SCRIPT = """
import numpy, torch
state = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3)).state_dict()
state["transposed"] = torch.arange(6.0).reshape(2, 3).T
state["parameter"] = torch.nn.Parameter(torch.ones(2))
torch.save(state, "new.pth")
torch.save(state, "old.pth", _use_new_zipfile_serialization=False)
numpy.savez("state.npz", **{name: value.detach().numpy() for name, value in state.items()})
"""


def test_what_pytorch_writes_is_read(tmp_path, monkeypatch):
    monkeypatch.undo()
    subprocess.run([second_opinion.torch_python(), "-c", SCRIPT], check=True, cwd=tmp_path)
    with np.load(tmp_path / "state.npz") as archive:
        wanted = dict(archive)
    for name in ("new.pth", "old.pth"):
        found = torch_file.read(tmp_path / name)
        assert found.keys() == wanted.keys()
        for key, values in wanted.items():
            np.testing.assert_array_equal(found[key], values)
