"""The catalogue of tensorflow-datasets: prepared data sets, read without TensorFlow, and raw IDX files."""

import dataclasses
import io
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxgen.data.arrays import find_idx, idx
from jaxgen.data.dataset import DataError, Dataset, StreamedDataset, check_split, one_line, read
from jaxgen.data.images import decode
from jaxgen.data.prepare import prepare

_GARMENTS = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"
_LABEL_NAMES = {"mnist": tuple("0123456789"), "fashion_mnist": tuple(_GARMENTS.split(","))}
_DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")


def names() -> list[str]:
    """Every name in the installed catalogue."""
    import tensorflow_datasets as tfds

    return tfds.list_builders(with_community_datasets=False)


def load(
    name: str, split: str, data_dir: str | Path | None, image_size: int | None
) -> Dataset | StreamedDataset | None:
    """A data set of pictures from the catalogue, or None if neither it nor the folder has the name.

    It looks for a prepared data set in `data_dir`, by default TFDS_DATA_DIR or ~/tensorflow_datasets, and
    then for IDX files there (for Fashion-MNIST also where Debian's package installs them). If there are none,
    it downloads and prepares the data set.

    Raises:
        DataError: none of this succeeds, or the files are damaged or are not pictures.
    """
    if not re.fullmatch(r"\w+([/:][\w.+-]*\w)*", name):
        return None
    folder = Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    prepared = _prepared(folder, name)
    if prepared is None:
        places = [folder / name, folder] + [_DEBIAN_FASHION] * (name == "fashion_mnist")
        for place in places if name in _LABEL_NAMES else ():
            if find_idx(place, "train", "images"):
                return idx(place, split, name, _LABEL_NAMES[name])
        if re.split("[/:]", name)[0] not in names():
            return None
        prepared = prepare(folder, name)
    return _pictures(name, prepared, split, image_size)


def _prepared(folder: Path, name: str) -> Path | None:
    """The folder in which `name` is prepared: the newest version, or the one at the end of the name."""
    root = folder / name.replace(":", "/")
    if (root / "features.json").is_file():
        return root
    versions = {root: _versions(root)} if _versions(root) else {p: _versions(p) for p in _subfolders(root)}
    found = {config: paths for config, paths in versions.items() if paths}
    if len(found) > 1:
        raise DataError(
            f"{name} is prepared in several variants: " + ", ".join(f"{name}/{p.name}" for p in found)
        )
    return next(iter(found.values()))[-1] if found else None


def _versions(root: Path) -> list[Path]:
    found = [path.parent for path in root.glob("*/features.json")]
    return sorted(found, key=lambda path: [int(part) for part in re.findall(r"\d+", path.name)])


def _subfolders(root: Path) -> list[Path]:
    return sorted(path for path in root.glob("*") if path.is_dir())


def _pictures(name: str, prepared: Path, split: str, image_size: int | None) -> StreamedDataset:
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(prepared)
        features, splits = dict(builder.info.features.items()), list(builder.info.splits)
    except Exception as error:  # damaged files meet any of several parsers
        raise DataError(f"{prepared} is not a prepared data set: {one_line(error)}") from error
    image, label = features.get("image"), features.get("label")
    if not isinstance(image, tfds.features.Image) or image.np_dtype != np.uint8:
        raise DataError(f"{name} has no 8-bit pictures 'image': its features are {', '.join(features)}")
    check_split(name, split, splits)
    try:
        # Decoding here, not there, lets one error and one resizing serve pictures of every source.
        records = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    except Exception as error:
        way = "prepare it anew with --file_format=array_record"
        raise DataError(f"{name} in {prepared} cannot be read ({one_line(error)}): {way}") from error
    classes = label if isinstance(label, tfds.features.ClassLabel) else None
    source = _Records(name, records, classes is not None, image.shape[-1], image_size, None)
    shape = source[0]["image"].shape
    source = dataclasses.replace(source, shape=shape)
    if classes is None:
        return StreamedDataset(name, split, source, shape)
    return StreamedDataset(name, split, source, shape, classes.num_classes, tuple(classes.names))


@dataclasses.dataclass(frozen=True, eq=False)
class _Records:
    name: str
    records: Any
    labelled: bool
    channels: int
    image_size: int | None
    shape: tuple[int, ...] | None

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        try:
            records = read(self.records, indices)
        except Exception as error:  # the reader raises bare RuntimeErrors on damaged files
            raise DataError(f"{self.name} cannot be read: {one_line(error)}") from error
        return [self._example(index, record) for index, record in zip(indices, records, strict=True)]

    def _example(self, index: int, record: Mapping[str, Any]) -> dict[str, Any]:
        image = decode(
            io.BytesIO(record["image"]), self.channels, self.image_size, f"{self.name}, example {index}"
        )
        if self.shape is not None and image.shape != self.shape:
            seen = " and ".join(f"{shape[1]}x{shape[0]}" for shape in (self.shape, image.shape))
            raise DataError(
                f"{self.name} has pictures of several sizes ({seen}): give image_size to make them one"
            )
        return {"image": image, "label": np.int32(record["label"])} if self.labelled else {"image": image}
