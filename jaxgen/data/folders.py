"""Folders of image files, in which subfolders are classes or splits."""

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from jaxgen.data.dataset import DataError, StreamedDataset, check_split
from jaxgen.data.images import check_held_out, decode, header, held_out

_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("val", "valid", "validation"), "validation"
)


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
        headers = list(pool.map(header, files.tolist()))
    channels = 1 if all(gray for _, gray in headers) else 3
    sizes = sorted({size for size, _ in headers})
    if image_size is None and len(sizes) > 1:
        some = ", ".join(f"{width}x{height}" for width, height in sizes[:4]) + (", ..." if sizes[4:] else "")
        raise DataError(
            f"{name} has pictures of {len(sizes)} sizes ({some}): give image_size to make them one"
        )
    width, height = sizes[0] if image_size is None else (image_size, image_size)
    chosen = splits == split
    if split == "test" and not has_splits:
        check_held_out(name, chosen)
    labels = label[chosen].astype(np.int32) if len(label_names) > 1 else None
    source = _Files(files[chosen].tolist(), labels, channels, image_size)
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
