"""Pictures: scikit-learn's digits, folders of image files, and decoding and resizing."""

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from jaxgen.data.dataset import DataError, Dataset, StreamedDataset, check_split, one_line

_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_GRAY = {"1", "L", "LA", "I", "I;16", "I;16B"}
_SIDEWAYS = (5, 6, 7, 8)
_ORIENTATION = 0x0112


def digits(split: str) -> Dataset:
    """1,797 handwritten digits, (8, 8, 1), of which a fifth is the test split (Alpaydin & Kaynak 1998, UCI).

    They are part of scikit-learn, so nothing is downloaded. The 17 grey levels are scaled to 0 .. 255.
    """
    from sklearn.datasets import load_digits

    pixels, label = load_digits(return_X_y=True)
    image = np.round(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    chosen = held_out(label) == (split == "test")
    arrays = {"image": image[chosen], "label": label[chosen]}
    return Dataset("digits", split, arrays, 10, tuple("0123456789"), levels=17)


def held_out(label: np.ndarray) -> np.ndarray:
    """A fixed choice of a fifth of the examples of each class as a test split: (N,) bool."""
    chosen = np.zeros(len(label), bool)
    # RandomState, because NumPy keeps its streams from version to version and its Generator's not.
    rng = np.random.RandomState(0)
    for value in np.unique(label):
        members = rng.permutation(np.flatnonzero(label == value))
        chosen[members[: round(len(members) / 5)]] = True
    return chosen


def folder(path: Path, split: str, image_size: int | None = None) -> StreamedDataset:
    """The image files of a folder, in which each subfolder is a class; classes and files are sorted by name.

    Subfolders `train` and `test` are the splits if they exist; otherwise a fixed fifth of each class is the
    test split. Pictures are gray if all of them are, and RGB otherwise. Transparent pixels become white.

    Args:
        path: the folder.
        split: "train" or "test", or the name of one of the folder's splits.
        image_size: pixels; the shorter side is resized to it with antialiasing, and the centre is cropped.
            Without it, pictures of more than one size are an error.

    Raises:
        DataError: there are no pictures, pictures of different sizes, or a file that is not a picture.
    """
    name = f"folder:{path}"
    if not path.is_dir():
        raise DataError(f"{name}: there is no such folder")
    has_splits = (path / "train").is_dir()
    roots = {p.name: p for p in _subfolders(path)} if has_splits else {"train": path}
    found = [(root, *example) for root, where in roots.items() for example in _labelled(name, where)]
    if not found:
        raise DataError(f"{name} has no pictures ({' '.join(sorted(_SUFFIXES))})")
    splits, files, classes = (np.array(column) for column in zip(*found, strict=True))
    label_names, label = np.unique(classes, return_inverse=True)
    if "" in label_names and len(label_names) > 1:
        raise DataError(f"{name} has class subfolders in some splits only")
    if not has_splits:
        splits = np.where(held_out(label), "test", "train")
    check_split(name, split, sorted(set(splits)) if has_splits else ("train", "test"))

    with ThreadPoolExecutor() as pool:
        headers = list(pool.map(_header, files))
    channels = 1 if all(gray for _, gray in headers) else 3
    sizes = sorted({size for size, _ in headers})
    if image_size is None and len(sizes) > 1:
        some = ", ".join(f"{width}x{height}" for width, height in sizes[:4]) + (", ..." if sizes[4:] else "")
        raise DataError(
            f"{name} has pictures of {len(sizes)} sizes ({some}): give image_size to make them one"
        )
    width, height = sizes[0] if image_size is None else (image_size, image_size)
    chosen = splits == split
    labels = label[chosen].astype(np.int32) if len(label_names) > 1 else None
    source = _Files(files[chosen], labels, channels, image_size)
    shape = (height, width, channels)
    if labels is None:
        return StreamedDataset(name, split, source, shape)
    return StreamedDataset(name, split, source, shape, len(label_names), tuple(map(str, label_names)))


@dataclasses.dataclass(frozen=True, eq=False)
class _Files:
    files: Sequence[str]
    label: np.ndarray | None
    channels: int
    image_size: int | None

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        image = {"image": decode(self.files[index], self.channels, self.image_size, self.files[index])}
        return image if self.label is None else image | {"label": self.label[index]}


def decode(file, channels: int, image_size: int | None, name: str) -> np.ndarray:
    """The picture in `file`, a path or a binary stream, as (H, W, channels) uint8.

    Raises:
        DataError: the file is damaged or not a picture; the message contains `name`.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as opened:
            image: Image.Image = opened
            if opened.format in ("JPEG", "MPO", "TIFF", "WEBP"):
                image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):
                # 16 bits a pixel, which PIL would clip to 8 instead of scaling.
                image = Image.fromarray((np.asarray(image) // 256).clip(0, 255).astype(np.uint8))
            if channels < 4 and image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            mode = _MODES[channels]
            return _fit(image if image.mode == mode else image.convert(mode), image_size)
    except Exception as error:  # PIL raises a dozen types on damaged files
        raise DataError(f"{name} cannot be read as a picture: {one_line(error)}") from error


def resized(dataset: Dataset, image_size: int) -> Dataset:
    """`dataset` with its pictures resized to (image_size, image_size), as in `folder`."""
    from PIL import Image

    pictures = dataset.arrays.get("image")
    if pictures is None or pictures.dtype != np.uint8 or pictures.shape[-1] not in _MODES:
        raise DataError(f"data set {dataset.name!r} has no 8-bit pictures that image_size could apply to")
    if pictures.shape[1:3] == (image_size, image_size):
        return dataset
    gray = pictures.shape[-1] == 1
    images = [_fit(Image.fromarray(p[..., 0] if gray else p), image_size) for p in pictures]
    return dataclasses.replace(dataset, arrays={**dataset.arrays, "image": np.stack(images)}, levels=256)


def _fit(image, image_size: int | None) -> np.ndarray:
    """A PIL image as (H, W, C) uint8, after the shorter side is resized and the centre is cropped."""
    from PIL import Image, ImageOps

    if image_size is not None and image.size != (image_size, image_size):
        image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.LANCZOS)
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _header(file: str) -> tuple[tuple[int, int], bool]:
    """(width, height) of a picture in its intended orientation, and whether it is gray."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            width, height = image.size
            if (
                image.format in ("JPEG", "MPO", "TIFF", "WEBP")
                and image.getexif().get(_ORIENTATION) in _SIDEWAYS
            ):
                width, height = height, width
            return (width, height), image.mode in _GRAY
    except Exception as error:  # PIL raises a dozen types on damaged files
        raise DataError(f"{file} cannot be read as a picture: {one_line(error)}") from error


def _labelled(name: str, root: Path) -> list[tuple[str, str]]:
    """(file, class) of every picture in `root`; the class is the subfolder, or "" without subfolders."""
    loose = _pictures(root.iterdir())
    inside = [(str(f), sub.name) for sub in _subfolders(root) for f in _pictures(sub.rglob("*"))]
    if loose and inside:
        raise DataError(f"{name}: {root} has pictures both beside and inside subfolders: move one kind away")
    return inside or [(str(file), "") for file in loose]


def _pictures(paths) -> list[Path]:
    return sorted(p for p in paths if p.suffix.lower() in _SUFFIXES and p.is_file() and p.name[0] != ".")


def _subfolders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir() and p.name[0] != ".")


BUILT_IN = {"digits": digits}
