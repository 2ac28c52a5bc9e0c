import numpy as np
import pytest
from PIL import Image

from jaxgen import plot


def read(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_grid_places_every_image_row_by_row():
    values = np.linspace(-1, 1, 6)
    pixels = plot.grid(np.broadcast_to(values[:, None, None, None], (6, 28, 28, 1)), columns=3, gap=2)
    assert pixels.shape == (2 * 30 + 2, 3 * 30 + 2, 1)
    centres = pixels[2 + 14 :: 30, 2 + 14 :: 30, 0]
    np.testing.assert_array_equal(centres.ravel(), np.round((values + 1) * 127.5))
    assert (pixels[:2] == 127).all()


def test_small_images_are_enlarged_and_values_clipped():
    pixels = plot.grid(np.full((1, 8, 8, 3), 5.0), gap=0)
    assert pixels.shape == (32, 32, 3)
    assert (pixels == 255).all()


def test_what_is_no_image_is_refused():
    with pytest.raises(ValueError, match="a grid needs images"):
        plot.grid(np.zeros((2, 8, 8)))
    with pytest.raises(ValueError, match="a grid needs images"):
        plot.grid(np.zeros((2, 8, 8, 0)))


def test_channels_that_are_no_colours_are_shown_in_grey():
    images = np.random.default_rng(0).uniform(-1, 1, (3, 28, 28, 7))
    np.testing.assert_array_equal(plot.grid(images), plot.grid(images.mean(-1, keepdims=True)))
    np.testing.assert_array_equal(
        plot.grid(images[..., :2]), plot.grid(images[..., :2].mean(-1, keepdims=True))
    )


def test_a_fourth_channel_is_opacity():
    images = np.random.default_rng(0).uniform(-1, 1, (3, 28, 28, 4))
    images[0, ..., 3], images[1, ..., 3], images[2] = 1, -1, (1, 1, 1, 0)
    opaque, clear, half = (plot.grid(images[i : i + 1], gap=0) for i in range(3))
    np.testing.assert_array_equal(opaque, plot.grid(images[:1, ..., :3], gap=0))
    assert (clear == 127).all()
    assert (half == 191).all()


def test_pairs_put_the_reconstruction_under_its_image(tmp_path):
    first, second = np.full((4, 28, 28, 1), -1.0), np.full((4, 28, 28, 1), 1.0)
    plot.save_pairs(tmp_path / "pairs.png", first, second, columns=2)
    pixels = read(tmp_path / "pairs.png")
    np.testing.assert_array_equal(pixels[16::30, 16], [0, 255, 0, 255])


def test_maps_have_one_scale_and_y_upwards(tmp_path):
    values = np.zeros((40, 30))
    values[30:, 20:] = 2.0  # large x, large y
    plot.save_maps(
        tmp_path / "maps.png", {"peak": values, "low": 0 * values + 1}, np.arange(30), np.arange(40)
    )
    pixels = read(tmp_path / "maps.png")[..., :3].astype(int).sum(-1)
    half = pixels.shape[1] // 2
    bright = np.argwhere(pixels[:, :half][40:-40, 40:-40] > 600)
    panel = np.argwhere(pixels[:, half:] < 200)
    assert len(bright)
    assert len(panel) < pixels.size / 4


@pytest.mark.parametrize("shape", [(9, 8, 8, 1), (9, 8, 8, 2), (9, 8, 8, 3), (9, 8, 8, 4), (9, 2), (9, 5)])
def test_any_batch_becomes_a_picture(tmp_path, shape):
    plot.save_samples(tmp_path / "samples.png", np.random.default_rng(0).uniform(-1, 1, shape))
    assert read(tmp_path / "samples.png").std() > 5


def test_curves_and_points_draw(tmp_path):
    rows = [{"step": step, "loss": 1 / step, "kl": step} for step in range(1, 20)]
    plot.save_curves(tmp_path / "curves.png", rows)
    points = np.random.default_rng(0).normal(size=(50, 2))
    plot.save_points(tmp_path / "points.png", {"data": points, "model": points}, limit=3)
    plot.save_labelled_points(tmp_path / "codes.png", points, np.arange(50) % 3, ("a", "b", "c"))
    for name in ("curves", "points", "codes"):
        assert read(tmp_path / f"{name}.png").shape[1] >= 400


def test_panels_hold_curves_levels_and_points(tmp_path):
    x = np.arange(1.0, 5.0)
    panels = [
        plot.Panel(
            [plot.Curve(x, x**2, "square", error=x / 9), plot.Curve(x, x, "line", "k--")], "growth", log="xy"
        ),
        plot.Panel(
            [plot.Curve(x, -x, style=".", names=("a", ""))],
            ticks=("zero", "one"),
            levels={"floor": -2.0},
            limits=((0, 5), None),
        ),
        plot.Panel([plot.Curve(x, x, style="C3-")], frame=False),
    ]
    plot.save_panels(tmp_path / "panels.png", panels, columns=2, size=(2.0, 1.5))
    with Image.open(tmp_path / "panels.png") as image:
        assert image.size == (400, 300)
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    assert (pixels == (214, 39, 40)).all(1).any()  # the line of the last panel, in the fourth colour
