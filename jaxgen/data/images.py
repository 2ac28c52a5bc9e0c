"""Pictures: scikit-learn's digits, folders of image files, and decoding and resizing."""

import dataclasses
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from jaxgen.data.dataset import DataError, Dataset, StreamedDataset, check_split, one_line

_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_GRAY = {"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N", "F"}
_SIDEWAYS = (5, 6, 7, 8)
_ORIENTATION = 0x0112
_ORIENTED_PNG = (b"eXIf", b"Raw profile type exif", b"tiff:Orientation")
_SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("val", "valid", "validation"), "validation"
)


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

    If the subfolders are called `train`, `test` and `validation` (or `val`; capitals do not matter), they are
    the splits, and their subfolders the classes; otherwise a fixed fifth of each class is the test split. A
    name of a split among other names is refused, unless `train` itself has classes: then all are splits.
    Files and folders whose names begin with a dot are left out.

    Pictures are gray if all of them are, and RGB otherwise. Transparent pixels become white, 16 bits a pixel
    are scaled to 8, and floating-point pictures must lie in 0 .. 1. Pictures are turned upright as their
    metadata say.

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
    roots = _split_folders(name, path)
    has_splits = bool(roots)
    if _SPLITS.get(split.lower()) in roots:
        split = _SPLITS[split.lower()]
    roots = roots or {"train": path}
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
        # A stream, because PIL misreads TIFFs on their side that it maps into memory.
        stream = io.BytesIO(Path(file).read_bytes()) if isinstance(file, str | Path) else file
        with Image.open(stream) as opened:
            image: Image.Image = opened
            if _orientation(opened) != 1:
                image = ImageOps.exif_transpose(image)
            if image.mode == "F" or image.mode.startswith("I"):
                # PIL would clip these to 8 bits instead of scaling.
                image = Image.fromarray(_to_8_bits(np.asarray(image), opened.format))
            if channels < 4 and image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            mode = _MODES[channels]
            return _fit(image if image.mode == mode else image.convert(mode), image_size)
    except Exception as error:  # PIL raises a dozen types on damaged files
        raise DataError(f"{name} cannot be read as a picture: {one_line(error)}") from error


def _to_8_bits(pixels: np.ndarray, format: str | None) -> np.ndarray:
    """Pixels of 16 bits, or floating-point ones in 0 .. 1, as uint8."""
    if pixels.dtype.kind == "f":
        if not (pixels.min() >= 0 and pixels.max() <= 1):
            raise ValueError(
                f"its values are {pixels.min():g} .. {pixels.max():g}; floating-point ones must be in 0 .. 1"
            )
        return np.round(255 * pixels).astype(np.uint8)
    if format == "TIFF" and pixels.dtype.itemsize > 2:
        raise ValueError("its pixels are signed or 32-bit integers; save it with 8 or 16 bits a pixel")
    return (pixels // 256).clip(0, 255).astype(np.uint8)


def _orientation(image) -> int:
    """1 .. 8 as in EXIF, where 1 is upright."""
    if image.format == "PNG":
        # PIL decodes the whole picture in search of metadata, which few have.
        place = image.fp.tell()
        image.fp.seek(0)
        content = image.fp.read()
        image.fp.seek(place)
        if not any(mark in content for mark in _ORIENTED_PNG):
            return 1
    return image.getexif().get(_ORIENTATION, 1)


def resized(dataset: Dataset, image_size: int) -> Dataset:
    """`dataset` with its pictures resized to (image_size, image_size), as in `folder`."""
    from PIL import Image

    pictures = dataset.arrays.get("image")
    if pictures is None or pictures.dtype != np.uint8:
        raise DataError(f"data set {dataset.name!r} has no 8-bit pictures that image_size could apply to")
    if pictures.shape[1:3] == (image_size, image_size):
        return dataset
    if pictures.shape[-1] == 3:
        images = [_fit(Image.fromarray(p), image_size) for p in pictures]
    else:
        # Channel by channel, because PIL takes the last of 2 or 4 for opacity and weighs the others by it.
        channels = [[Image.fromarray(c) for c in np.moveaxis(p, -1, 0)] for p in pictures]
        images = [np.concatenate([_fit(c, image_size) for c in p], -1) for p in channels]
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
            # PIL turns the size of a TIFF, and not those of others, in some of its versions.
            tiff = image.format == "TIFF"
            width, height = (image.tag_v2[256], image.tag_v2[257]) if tiff else image.size  # type: ignore[attr-defined]
            if _orientation(image) in _SIDEWAYS:
                width, height = height, width
            gray = image.mode in _GRAY or (image.mode == "P" and _is_gray(image.palette))
            return (width, height), gray
    except Exception as error:  # PIL raises a dozen types on damaged files
        raise DataError(f"{file} cannot be read as a picture: {one_line(error)}") from error


def _is_gray(palette) -> bool:
    """Whether all colours of a PIL palette are grey."""
    layout, levels = palette.getdata()
    red, green, blue = (levels[channel :: len(layout)] for channel in range(3))
    return red == green == blue


def _split_folders(name: str, path: Path) -> dict[str, Path]:
    """{split: folder} if the subfolders of `path` are splits; empty if they are classes or there are none."""
    folders = _subfolders(path)
    known = [p for p in folders if p.name.lower() in _SPLITS]
    others = [p.name for p in folders if p not in known]
    roots = {_SPLITS.get(p.name.lower(), p.name): p for p in folders}
    if not known:
        return {}
    if len(roots) < len(folders):
        raise DataError(f"{name} has two folders of one split: {', '.join(p.name for p in known)}")
    if others and not ("train" in roots and any(_walk(sub) for sub in _subfolders(roots["train"]))):
        splits = ", ".join(p.name for p in known)
        raise DataError(
            f"{name} has {splits} beside {', '.join(others[:3])}: if these are classes, rename those called"
            " like a split; if they are splits, put their pictures into class subfolders"
        )
    return roots


def _labelled(name: str, root: Path) -> list[tuple[str, str]]:
    """(file, class) of every picture in `root`; the class is the subfolder, or "" without subfolders."""
    loose = _pictures(root.iterdir())
    inside = [(str(f), sub.name) for sub in _subfolders(root) for f in _walk(sub)]
    if loose and inside:
        raise DataError(f"{name}: {root} has pictures both beside and inside subfolders: move one kind away")
    return inside or [(str(file), "") for file in loose]


def _pictures(paths) -> list[Path]:
    return sorted(p for p in paths if p.suffix.lower() in _SUFFIXES and p.is_file() and p.name[0] != ".")


def _walk(folder: Path) -> list[Path]:
    """The pictures in a folder and in its subfolders, but not in hidden ones."""
    found = _pictures(folder.iterdir())
    return sorted(found + [f for sub in _subfolders(folder) if not sub.is_symlink() for f in _walk(sub)])


def _subfolders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir() and p.name[0] != ".")


BUILT_IN = {"digits": digits}
