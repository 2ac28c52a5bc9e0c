"""Pictures with known factors: a shape of every scale, orientation and place (dSprites: Matthey et al. 2017).

Codes are disentangled if each of them represents one of these factors; `evaluation.disentangle` measures it.
"""

import itertools

import numpy as np

from jaxgen.data.dataset import Dataset
from jaxgen.data.images import held_out

SIDE = 32
"""Pixels."""

SHAPES = ("square", "ellipse", "heart")
SCALES = (4.0, 5.0, 6.0, 7.0)
"""Pixels from the centre to the farthest point."""
ORIENTATIONS = tuple(float(turn) for turn in np.arange(8) * np.pi / 16)
"""Radians, anticlockwise; below a quarter turn, under which a square does not change."""
OFFSETS = (-7, -5, -3, -1, 1, 3, 5, 7)
"""Pixels from the centre of the picture to the centre of the shape, to the right and upwards."""

FACTORS: dict[str, tuple] = {
    "shape": SHAPES,
    "scale": SCALES,
    "orientation": ORIENTATIONS,
    "x": OFFSETS,
    "y": OFFSETS,
}
"""The factors by name, in the order of the columns of "factors", with the values of their integers."""

_FINE = 8  # subpixels along a pixel


def factors(split: str) -> Dataset:
    """6,144 pictures (32, 32, 1), one for each combination of `FACTORS`; a fixed fifth of each shape is test.

    "factors" (N, 5) has the index of each factor's value, 0, 1, ...; the label is the shape.
    """
    sizes = [len(values) for values in FACTORS.values()]
    which = np.stack(np.meshgrid(*map(np.arange, sizes), indexing="ij"), -1).reshape(-1, len(sizes))
    chosen = which[held_out(which[:, 0]) == (split == "test")]
    margin = max(OFFSETS)
    centred = np.zeros((*sizes[:3], SIDE + 2 * margin, SIDE + 2 * margin), np.uint8)
    for shape, scale, orientation in itertools.product(*map(range, sizes[:3])):
        values = SHAPES[shape], SCALES[scale], ORIENTATIONS[orientation]
        centred[shape, scale, orientation] = _render(*values, SIDE + 2 * margin)
    image = np.empty((len(chosen), SIDE, SIDE, 1), np.uint8)
    for row, (shape, scale, orientation, x, y) in enumerate(chosen):
        left, top = margin - OFFSETS[x], margin + OFFSETS[y]
        image[row, ..., 0] = centred[shape, scale, orientation, top : top + SIDE, left : left + SIDE]
    arrays = {"image": image, "label": chosen[:, 0], "factors": chosen}
    return Dataset("factors", split, arrays, num_classes=len(SHAPES), label_names=SHAPES)


def _render(shape: str, scale: float, orientation: float, side: int) -> np.ndarray:
    """The shape, white on black and antialiased, in the middle of (side, side) uint8."""
    ticks = (np.arange(side * _FINE) + 0.5) / _FINE - side / 2
    x, y = ticks / scale, -ticks[:, None] / scale
    cos, sin = np.cos(orientation), np.sin(orientation)
    inside = _SHAPES[shape](cos * x + sin * y, cos * y - sin * x)
    coverage = inside.reshape(side, _FINE, side, _FINE).mean((1, 3))
    return np.round(255 * coverage).astype(np.uint8)


def _heart(x, y):
    x, y = 1.25 * x, 1.25 * y + 0.25
    return (x**2 + y**2 - 1) ** 3 <= x**2 * y**3


# Whether points are inside a shape whose farthest point is at distance 1 from the origin.
_SHAPES = {
    "square": lambda x, y: np.maximum(abs(x), abs(y)) <= np.sqrt(0.5),
    "ellipse": lambda x, y: x**2 + (2 * y) ** 2 <= 1,
    "heart": _heart,
}


BUILT_IN = {"factors": factors}
