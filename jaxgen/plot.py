"""Pictures of samples and of training, as PNG files.

Image grids are written by Pillow, pixel for pixel; what needs axes is drawn by matplotlib, off screen.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

SMALLEST_TILE = 28
"""Images are enlarged by a whole factor until they are at least this many pixels high."""

_GROUND = 127  # the grey between images


def save_samples(path: str | Path, x: ArrayLike) -> None:
    """A picture of any batch of data: images (N, H, W, C) as a grid, points (N, 2) scattered, else a map."""
    x = np.asarray(x)
    if x.ndim == 4:
        save_grid(path, x)
    elif x.ndim == 2 and x.shape[1] == 2:
        save_points(path, {"samples": x})
    else:
        figure, (axes,) = _figure()
        axes.imshow(x.reshape(len(x), -1), aspect="auto", interpolation="nearest")
        axes.set(xlabel="dimension", ylabel="sample")
        _save(figure, path)


def save_grid(path: str | Path, images: ArrayLike, columns: int | None = None, gap: int = 2) -> None:
    """Images (N, H, W, C) in [-1, 1] as one PNG, row by row, on a mid-grey ground.

    1 channel is grey and 3 are red, green and blue. Of 4 the last is the opacity, with the ground shining
    through. Of any other number the mean over channels is shown, in grey.
    """
    from PIL import Image

    pixels = grid(images, columns, gap)
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(path)


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
    """Numbers in [-1, 1] as uint8."""
    return np.clip((images + 1) * 127.5, 0, 255).round().astype(np.uint8)


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


def save_pairs(path: str | Path, first: ArrayLike, second: ArrayLike, columns: int = 12) -> None:
    """Rows of `first` with those of `second` under them, both (N, H, W, C): data and reconstructions."""
    first, second = np.asarray(first), np.asarray(second)
    whole = len(first) // columns * columns or len(first)
    columns = min(columns, whole)
    rows = np.stack([a[:whole].reshape(-1, columns, *a.shape[1:]) for a in (first, second)], 1)
    save_grid(path, rows.reshape(-1, *first.shape[1:]), columns)


def save_points(path: str | Path, sets: Mapping[str, ArrayLike], limit: float | None = None) -> None:
    """Named point sets (N, 2), one panel each on common axes."""
    figure, axes = _figure(len(sets))
    for panel, (name, points) in zip(axes, sets.items(), strict=True):
        panel.scatter(*np.asarray(points).T, s=3, alpha=0.4, linewidths=0)
        panel.set(title=f"{name} ({len(np.asarray(points))})", aspect="equal")
        if limit:
            panel.set(xlim=(-limit, limit), ylim=(-limit, limit))
    _save(figure, path)


def save_labelled_points(
    path: str | Path, points: ArrayLike, labels: ArrayLike, names: Sequence[str] = ()
) -> None:
    """Points (N, 2) coloured by label (N,): a two-dimensional latent space by class."""
    points, labels = np.asarray(points), np.asarray(labels)
    figure, (axes,) = _figure()
    for label in np.unique(labels):
        name = names[label] if len(names) else str(label)
        axes.scatter(
            *points[labels == label].T, s=4, alpha=0.6, linewidths=0, label=name, color=f"C{label % 10}"
        )
    axes.set(xlabel="z1", ylabel="z2", aspect="equal")
    axes.legend(markerscale=3, fontsize=7)
    _save(figure, path)


def save_maps(path: str | Path, maps: Mapping[str, ArrayLike], x: ArrayLike, y: ArrayLike) -> None:
    """Named functions of the plane, as their values (len(y), len(x)) at the places x and y, one panel each.

    Dark is the lowest of all values and bright the highest, so that panels can be compared.
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
        )
        panel.set(title=name)
    _save(figure, path)


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
    path: str | Path, panels: Sequence[Panel], columns: int = 3, size: tuple[float, float] = (4.2, 3.4)
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
    _save(figure, path)


def save_curves(path: str | Path, rows: Sequence[Mapping[str, Any]], skip: Sequence[str] = ()) -> None:
    """The numbers of metrics.jsonl against their "step", one panel a metric, three panels a row."""
    names = [name for name in dict.fromkeys(itertools.chain(*rows)) if name not in ("step", *skip)]
    figure, axes = _figure(len(names))
    for panel, name in zip(axes, names, strict=True):
        points = [(row["step"], row[name]) for row in rows if name in row]
        panel.plot(*zip(*points, strict=True), linewidth=1)
        panel.set(title=name, xlabel="step")
        panel.grid(alpha=0.3)
    _save(figure, path)


def _figure(
    panels: int = 1, columns: int = 3, size: tuple[float, float] | None = None
) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    rows, columns = math.ceil(panels / columns), min(panels, columns)
    width, height = size or ((6.0, 6.0) if panels == 1 else (3.5, 3.5))
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, [figure.add_subplot(rows, columns, index + 1) for index in range(panels)]


def _save(figure: Any, path: str | Path) -> None:
    figure.savefig(path, dpi=100)
