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
    assert pixels.shape == (2 * 58 + 2, 3 * 58 + 2, 1)
    centres = pixels[2 + 28 :: 58, 2 + 28 :: 58, 0]
    np.testing.assert_array_equal(centres.ravel(), np.round((values + 1) * 127.5))
    assert (pixels[:2] == 127).all()


def test_small_images_are_enlarged_and_values_clipped():
    pixels = plot.grid(np.full((1, 8, 8, 3), 5.0), gap=0)
    assert pixels.shape == (56, 56, 3)
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
    np.testing.assert_array_equal(pixels[30::58, 30], [0, 255, 0, 255])


def test_titles_stand_beside_their_rows_and_columns(tmp_path):
    images = np.zeros((6, 56, 56, 1))
    plot.save_grid(tmp_path / "plain.png", images, columns=3)
    plot.save_grid(tmp_path / "titled.png", images, 3, row_titles=("", "two"), column_titles=("", "", "c"))
    plain, titled = read(tmp_path / "plain.png"), read(tmp_path / "titled.png")[..., 0]
    height, width = plain.shape
    top, left = titled.shape[0] - height, titled.shape[1] - width
    np.testing.assert_array_equal(titled[top:, left:], plain)
    written = np.argwhere(titled < 100)
    beside, above = written[written[:, 1] < left], written[written[:, 0] < top]
    assert len(beside)
    assert len(above)
    assert abs(beside[:, 0].mean() - (top + height * 3 / 4)) < 6
    assert abs(above[:, 1].mean() - (left + width * 5 / 6)) < 6


def test_pairs_are_titled_in_turn(tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr(plot, "save_grid", lambda *_, **options: given.update(options))
    plot.save_pairs("", np.zeros((4, 8, 8, 1)), np.zeros((4, 8, 8, 1)), columns=2, titles=("a", "b"))
    assert given["row_titles"] == ("a", "b", "a", "b")


def test_a_caption_is_kept_in_the_file(tmp_path):
    images, points = np.zeros((2, 8, 8, 1)), np.zeros((5, 2))
    for name, x in (("grid", images), ("points", points), ("rows", np.zeros((3, 7)))):
        plot.save_samples(tmp_path / "with.png", x, f"A caption, “{name}”.")
        plot.save_samples(tmp_path / "without.png", x)
        assert plot.caption_of(tmp_path / "with.png") == f"A caption, “{name}”."
        assert plot.caption_of(tmp_path / "without.png") == ""


def test_sequences_have_axes_and_a_bar_with_one_colour_a_symbol(tmp_path):
    plot.save_rows(tmp_path / "rows.png", np.arange(12).reshape(4, 3) % 3)
    colours, counts = np.unique(read(tmp_path / "rows.png").reshape(-1, 4), axis=0, return_counts=True)
    large = {tuple(colour[:3].tolist()): n for colour, n in zip(colours, counts, strict=True) if n > 5000}
    assert len(large) == 4  # three symbols and the paper
    assert (255, 255, 255) in large


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


def test_pictures_with_nan_are_counted_and_black(tmp_path):
    images = np.ones((5, 4, 4, 1), np.float32)
    images[3, 1] = np.nan
    with pytest.warns(UserWarning, match="1 of 5 pictures hold NaN"):
        plot.save_each(tmp_path, images)
    drawn = read(tmp_path / "3.png")
    assert (drawn[1] == 0).all()
    assert (drawn[2] == 255).all()


def test_maps_of_two_units_fill_their_panels(tmp_path):
    """The sound is a quarter of a second, and 4 kHz high."""
    wide = {}
    for aspect in ("equal", "auto"):
        path = tmp_path / f"{aspect}.png"
        plot.save_maps(path, {"sound": np.zeros((4, 9))}, [0, 0.25], [0, 4], aspect=aspect)
        wide[aspect] = np.ptp(np.argwhere(read(path)[..., :3].sum(-1) < 10)[:, 1])
    assert wide["auto"] > 5 * wide["equal"]


@pytest.mark.parametrize("shape", [(9, 8, 8, 1), (9, 8, 8, 2), (9, 8, 8, 3), (9, 8, 8, 4), (9, 2), (9, 5)])
def test_any_batch_becomes_a_picture(tmp_path, shape):
    plot.save_samples(tmp_path / "samples.png", np.random.default_rng(0).uniform(-1, 1, shape))
    assert read(tmp_path / "samples.png").std() > 5


def test_metrics_of_one_word_share_a_panel(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plot, "save_panels", lambda path, panels, caption: drawn.extend(panels))
    rows = [
        {"step": 10, "real_logit": 1.0, "fake_logit": 2.0, "kl": 3.0},
        {"step": 20, "real_logit": 4.0, "fake_logit": 5.0, "kl": 6.0, "speed": 1.0, "late_nll": 7.0},
    ]
    plot.save_curves(tmp_path / "curves.png", rows, skip=("speed",))
    logits, kl, late = drawn
    assert [(c.label, c.x, c.y) for c in logits.curves] == [
        ("real_logit", (10, 20), (1.0, 4.0)),
        ("fake_logit", (10, 20), (2.0, 5.0)),
    ]
    assert (logits.title, kl.title, late.title) == ("logit", "kl", "late_nll")
    assert [(c.label, c.style) for c in kl.curves] == [("", "-")]
    assert [(c.x, c.style) for c in late.curves] == [((20,), "o")]


def test_one_point_of_a_curve_can_be_seen(tmp_path):
    plot.save_curves(tmp_path / "curves.png", [{"step": 5, "loss": 1.0}])
    pixels = read(tmp_path / "curves.png")[..., :3].reshape(-1, 3)
    assert (np.abs(pixels.astype(int) - (31, 119, 180)).max(1) < 3).sum() > 5  # the first colour


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
