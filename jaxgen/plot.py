"""Pictures of samples and of training, as PNG files.

Image grids are written by Pillow, pixel for pixel; what needs axes is drawn by matplotlib, off screen. A
caption, a whole sentence, is kept inside the file, and `caption_of` reads it.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

SMALLEST_TILE = 56
"""Images are enlarged by a whole factor until they are at least this many pixels high."""

TITLE_SIZE = 13
"""Height in pixels of the letters of titles beside a grid."""

_CAPTION = "Description"  # a keyword of the PNG standard
_GROUND = 127  # the grey between images
_MARGIN = 6  # pixels around a title
_MOST_SYMBOLS = 20  # with a colour of their own in the bar


def save_samples(path: str | Path, x: ArrayLike, caption: str = "") -> None:
    """A picture of any batch of data: images (N, H, W, C) as a grid, points (N, 2) scattered, else rows."""
    x = np.asarray(x)
    if x.ndim == 4:
        save_grid(path, x, caption=caption)
    elif x.ndim == 2 and x.shape[1] == 2:
        save_points(path, {"samples": x}, caption=caption)
    else:
        save_rows(path, x.reshape(len(x), -1), caption)


def save_rows(path: str | Path, x: ArrayLike, caption: str = "") -> None:
    """Sequences of symbols (N, T), or vectors (N, D), as rows of colours, with a bar that says which."""
    x = np.asarray(x)
    symbols = x.dtype.kind in "biu"
    figure, (axes,) = _figure()
    scale: dict[str, Any] = {"cmap": "viridis"}
    ticks = None
    if symbols and x.size and x.max() < _MOST_SYMBOLS:
        from matplotlib import colormaps

        number = int(x.max()) + 1
        scale = {"cmap": colormaps["viridis"].resampled(number), "vmin": -0.5, "vmax": number - 0.5}
        ticks = range(number)
    shown = axes.imshow(x, aspect="auto", interpolation="nearest", **scale)
    figure.colorbar(shown, label="symbol" if symbols else "value", ticks=ticks)
    axes.set(xlabel="position" if symbols else "dimension", ylabel="sample")
    axes.locator_params(integer=True)
    _save(figure, path, caption)


def save_grid(
    path: str | Path,
    images: ArrayLike,
    columns: int | None = None,
    gap: int = 2,
    row_titles: Sequence[str] = (),
    column_titles: Sequence[str] = (),
    caption: str = "",
) -> None:
    """Images (N, H, W, C) in [-1, 1] as one PNG, row by row, on a mid-grey ground.

    1 channel is grey and 3 are red, green and blue. Of 4 the last is the opacity, with the ground shining
    through. Of any other number the mean over channels is shown, in grey. Titles, if there are any, stand
    left of the rows and above the columns; there are as many as rows and columns.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    pixels = grid(images, columns, gap)
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    if row_titles or column_titles:
        picture = _titled(picture, row_titles, column_titles)
    info = PngInfo()
    if caption:
        info.add_text(_CAPTION, caption)
    picture.save(path, pnginfo=info)


def _titled(picture: Any, rows: Sequence[str], columns: Sequence[str]) -> Any:
    """A picture with the titles of its rows and columns, which are of equal sizes, in a white margin."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(TITLE_SIZE)
    left = max((math.ceil(font.getlength(title)) + 2 * _MARGIN for title in rows), default=0)
    top = TITLE_SIZE + 2 * _MARGIN if columns else 0
    canvas = Image.new("RGB", (left + picture.width, top + picture.height), "white")
    canvas.paste(picture, (left, top))
    draw = ImageDraw.Draw(canvas)
    for index, title in enumerate(rows):
        middle = top + (index + 0.5) * picture.height / len(rows)
        draw.text((left - _MARGIN, middle), title, "black", font, "rm")
    for index, title in enumerate(columns):
        middle = left + (index + 0.5) * picture.width / len(columns)
        draw.text((middle, top / 2), title, "black", font, "mm")
    return canvas


def save_each(folder: str | Path, images: ArrayLike) -> None:
    """Images (N, H, W, C) in [-1, 1] as a PNG each, 0.png and so on, with as many digits as the last needs.

    Channels are shown as in `save_grid`.
    """
    from PIL import Image

    pixels = _pixels(_colours(np.asarray(images, np.float32)))
    for index, image in enumerate(pixels):
        name = f"{index:0{len(str(len(pixels) - 1))}}.png"
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(Path(folder) / name)


def grid(images: ArrayLike, columns: int | None = None, gap: int = 2) -> np.ndarray:
    """The pixels of `save_grid`, uint8 (height, width, 1 or 3)."""
    images = _colours(np.asarray(images, np.float32))
    factor = math.ceil(SMALLEST_TILE / images.shape[1])
    images = images.repeat(factor, 1).repeat(factor, 2)
    count, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    canvas = np.full(
        (rows * (height + gap) + gap, columns * (width + gap) + gap, channels), _GROUND, np.uint8
    )
    for index, image in enumerate(_pixels(images)):
        top, left = (
            place * (size + gap) + gap
            for place, size in zip(divmod(index, columns), (height, width), strict=True)
        )
        canvas[top : top + height, left : left + width] = image
    return canvas


def _pixels(images: np.ndarray) -> np.ndarray:
    """Numbers in [-1, 1] as uint8, NaN as black with a warning."""
    lacking = np.isnan(images)
    if lacking.any():
        count = lacking.any((1, 2, 3)).sum()
        warnings.warn(f"{count} of {len(images)} pictures hold NaN, which is drawn black", stacklevel=3)
    return np.clip((np.where(lacking, -1, images) + 1) * 127.5, 0, 255).round().astype(np.uint8)


def _colours(images: np.ndarray) -> np.ndarray:
    """Images of any number of channels as `save_grid` shows them, of 1 or 3."""
    if images.ndim != 4 or not images.size:
        raise ValueError(f"a grid needs images (N, height, width, channels), got {images.shape}")
    if images.shape[-1] in (1, 3):
        return images
    images = np.clip(images, -1, 1)
    if images.shape[-1] != 4:
        return images.mean(-1, keepdims=True)
    opacity = (images[..., 3:] + 1) / 2
    return images[..., :3] * opacity + (_GROUND / 127.5 - 1) * (1 - opacity)


def save_pairs(
    path: str | Path,
    first: ArrayLike,
    second: ArrayLike,
    columns: int = 12,
    titles: tuple[str, str] = ("", ""),
    caption: str = "",
) -> None:
    """Rows of `first` with those of `second` under them, both (N, H, W, C), and their two titles."""
    first, second = np.asarray(first), np.asarray(second)
    whole = len(first) // columns * columns or len(first)
    columns = min(columns, whole)
    rows = np.stack([a[:whole].reshape(-1, columns, *a.shape[1:]) for a in (first, second)], 1)
    row_titles = titles * len(rows) if any(titles) else ()
    save_grid(path, rows.reshape(-1, *first.shape[1:]), columns, row_titles=row_titles, caption=caption)


def save_points(
    path: str | Path, sets: Mapping[str, ArrayLike], limit: float | None = None, caption: str = ""
) -> None:
    """Named point sets (N, 2), one panel each on common axes."""
    figure, axes = _figure(len(sets))
    for panel, (name, points) in zip(axes, sets.items(), strict=True):
        points = np.asarray(points)
        panel.scatter(*points.T, s=_dot(len(points)), alpha=0.4, linewidths=0)
        panel.set(title=f"{name} ({len(points)})", aspect="equal")
        if limit:
            panel.set(xlim=(-limit, limit), ylim=(-limit, limit))
    _save(figure, path, caption)


def save_labelled_points(
    path: str | Path, points: ArrayLike, labels: ArrayLike, names: Sequence[str] = (), caption: str = ""
) -> None:
    """Points (N, 2) coloured by label (N,): a two-dimensional latent space by class."""
    points, labels = np.asarray(points), np.asarray(labels)
    size = _dot(len(points))
    figure, (axes,) = _figure()
    for label in np.unique(labels):
        axes.scatter(
            *points[labels == label].T,
            s=size,
            alpha=0.6,
            linewidths=0,
            label=label_name(label, names),
            color=f"C{label % 10}",
        )
    axes.set(xlabel="z1", ylabel="z2", aspect="equal")
    axes.legend(markerscale=6 / math.sqrt(size), fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    _save(figure, path, caption)


def label_name(label: int, names: Sequence[str]) -> str:
    """The name of a label, or its number where labels have none."""
    return names[label] if len(names) else str(label)


def _dot(number: int) -> float:
    """The area of each of so many dots in points squared: few have to be large to be seen."""
    return float(np.clip(4000 / max(number, 1), 3, 30))


def save_maps(
    path: str | Path,
    maps: Mapping[str, ArrayLike],
    x: ArrayLike,
    y: ArrayLike,
    caption: str = "",
    aspect: Literal["equal", "auto"] = "equal",
) -> None:
    """Named functions of the plane, as their values (len(y), len(x)) at the places x and y, one panel each.

    Dark is the lowest of all values and bright the highest, so that panels can be compared. With the aspect
    "auto" x and y are of different units, and a panel is filled by them.
    """
    shown = {name: np.asarray(values) for name, values in maps.items()}
    x, y = np.asarray(x), np.asarray(y)
    figure, axes = _figure(len(shown))
    lowest = min(values.min() for values in shown.values())
    highest = max(values.max() for values in shown.values())
    for panel, (name, values) in zip(axes, shown.items(), strict=True):
        panel.imshow(
            values,
            origin="lower",
            extent=(x[0], x[-1], y[0], y[-1]),
            vmin=lowest,
            vmax=highest,
            cmap="magma",
            interpolation="nearest",
            aspect=aspect,
        )
        panel.set(title=name)
    _save(figure, path, caption)


class Curve(NamedTuple):
    """Points (x, y) joined by a line, or not, as `style` has it in Matplotlib's words."""

    x: ArrayLike
    y: ArrayLike
    label: str = ""
    style: str = "o-"
    error: ArrayLike | None = None  # half the height of the error bars
    names: Sequence[str] = ()  # written beside the points; "" writes nothing


class Panel(NamedTuple):
    """Curves on common axes."""

    curves: Sequence[Curve]
    title: str = ""
    x_label: str = ""
    y_label: str = ""
    levels: Mapping[str, float] = {}
    """Dashed horizontal lines, by their labels: what the curves are to be compared with."""
    log: str = ""
    """Axes with a logarithmic scale: "", "x", "y" or "xy"."""
    limits: tuple[tuple[float, float] | None, tuple[float, float] | None] = (None, None)
    """Of x and of y; None leaves them to the data."""
    frame: bool = True
    """Whether there are ticks and a grid. Without them both axes have one scale."""
    ticks: Sequence[str] = ()
    """Names of the places 0, 1, ... along x."""


def save_panels(
    path: str | Path,
    panels: Sequence[Panel],
    columns: int = 3,
    size: tuple[float, float] = (4.2, 3.4),
    caption: str = "",
) -> None:
    """Panels of curves, row by row, each `size` inches."""
    figure, axes = _figure(len(panels), columns, size)
    for axis, panel in zip(axes, panels, strict=True):
        for index, curve in enumerate(panel.curves):
            color = {} if curve.style[:1] in "Ckrgb" and curve.style else {"color": f"C{index % 10}"}
            axis.errorbar(
                np.ravel(curve.x),
                np.ravel(curve.y),
                curve.error,
                fmt=curve.style,
                label=curve.label or None,
                markersize=2 if curve.style[-1:] == "." else 4,
                capsize=3,
                **color,
            )
            for name, x, y in zip(curve.names, np.ravel(curve.x), np.ravel(curve.y), strict=False):
                axis.annotate(name, (x, y), (-6, 6), textcoords="offset points", fontsize=8)
        for index, (name, level) in enumerate(panel.levels.items()):
            axis.axhline(level, color=f"C{index}", linestyle="--", linewidth=1, label=name or None)
        axis.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
        axis.set(**{f"{name}scale": "log" for name in panel.log})
        axis.set(**{name: limit for name, limit in zip(("xlim", "ylim"), panel.limits, strict=True) if limit})
        if panel.frame:
            axis.grid(alpha=0.3)
        else:
            axis.set(xticks=[], yticks=[], aspect="equal")
        if panel.ticks:
            axis.set_xticks(range(len(panel.ticks)), panel.ticks, fontsize=8)
        if any(axis.get_legend_handles_labels()[1]):
            axis.legend(fontsize=8)
    _save(figure, path, caption)


def save_curves(
    path: str | Path, rows: Sequence[Mapping[str, Any]], skip: Sequence[str] = (), caption: str = ""
) -> None:
    """The numbers of metrics.jsonl against their "step", three panels a row.

    Metrics whose names end in the same word, as "real_logit" and "fake_logit" do, share a panel and have a
    legend. A metric of one row is a dot.
    """
    curves: dict[str, list[Curve]] = {}
    for name in dict.fromkeys(name for row in rows for name in row if name not in ("step", *skip)):
        x, y = zip(*((row["step"], row[name]) for row in rows if name in row), strict=True)
        curves.setdefault(name.rpartition("_")[2], []).append(Curve(x, y, name, "-" if x[1:] else "o"))
    panels = [
        Panel(curves=alike, title=word, x_label="step")
        if alike[1:]
        else Panel([alike[0]._replace(label="")], title=alike[0].label, x_label="step")
        for word, alike in curves.items()
    ]
    save_panels(path, panels, caption=caption)


def caption_of(path: str | Path) -> str:
    """The caption of a picture of this module; "" if it has none."""
    from PIL import Image

    with Image.open(path) as picture:
        return picture.info.get(_CAPTION, "")


def _figure(
    panels: int = 1, columns: int = 3, size: tuple[float, float] | None = None
) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    rows, columns = math.ceil(panels / columns), min(panels, columns)
    width, height = size or ((6.0, 6.0) if panels == 1 else (3.5, 3.5))
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, [figure.add_subplot(rows, columns, index + 1) for index in range(panels)]


def _save(figure: Any, path: str | Path, caption: str = "") -> None:
    figure.savefig(path, dpi=100, metadata={_CAPTION: caption} if caption else None)
