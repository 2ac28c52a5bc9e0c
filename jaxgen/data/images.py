"""Pictures: scikit-learn's digits, and decoding and resizing."""

import dataclasses
import io
from pathlib import Path

import numpy as np

from jaxgen.data.dataset import DataError, Dataset, one_line

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_GRAY = {"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N", "F"}
_SIDEWAYS = (5, 6, 7, 8)
_ORIENTATION = 0x0112
_ORIENTED_PNG = (b"eXIf", b"Raw profile type exif", b"tiff:Orientation")


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


def check_held_out(name: str, chosen: np.ndarray) -> None:
    """Raises DataError, which says why, if the test split, chosen (N,) bool by `held_out`, is empty."""
    if not chosen.any():
        number = f"{len(chosen)} example{'s' if len(chosen) > 1 else ''}"
        raise DataError(
            f"{name} has {number}, of which none is left for the test split, a fifth of each class: three of"
            " a class are enough, or give it splits of its own"
        )


def decode(file, channels: int, image_size: int | tuple[int, int] | None, name: str) -> np.ndarray:
    """The picture in `file`, a path or a binary stream, as (H, W, channels) uint8.

    With an image_size, one side of a square or (height, width), it is resized to that and the centre cropped.

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
        raise DataError(f"{name} cannot be read as a picture: {_reason(error)}") from error


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


def _fit(image, image_size: int | tuple[int, int] | None) -> np.ndarray:
    """A PIL image as (H, W, C) uint8, resized to cover (height, width), of which the centre is cropped."""
    from PIL import Image, ImageOps

    if image_size is not None:
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        if image.size != (width, height):
            image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def header(file: str) -> tuple[tuple[int, int], bool]:
    """(width, height) of the picture in a file in its intended orientation, and whether it is gray.

    Raises:
        DataError: the file is damaged or not a picture; the message contains its path.
    """
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
        raise DataError(f"{file} cannot be read as a picture: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Why PIL cannot read a picture, without the name of the file or of an object in memory."""
    from PIL import UnidentifiedImageError

    return "it has no known format" if isinstance(error, UnidentifiedImageError) else one_line(error)


def _is_gray(palette) -> bool:
    """Whether all colours of a PIL palette are grey."""
    layout, levels = palette.getdata()
    red, green, blue = (levels[channel :: len(layout)] for channel in range(3))
    return red == green == blue


BUILT_IN = {"digits": digits}
