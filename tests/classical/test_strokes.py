"""experiments/studies/strokes.py on traces made here."""

import json

import numpy as np
import pytest

from experiments.studies import strokes


def arc(turn, num_points=8):
    """A quarter of a circle of radius 1 from angle `turn` on, counterclockwise."""
    angle = turn + np.linspace(0, np.pi / 2, num_points)
    return np.stack([np.cos(angle), np.sin(angle)], 1)


def test_positions_are_even_along_the_curve():
    found = strokes.resample(arc(0.0), 24)
    assert found.shape == (25, 2)
    np.testing.assert_allclose(np.hypot(*found.T), 1, atol=1e-3)
    np.testing.assert_allclose(np.hypot(*np.diff(found, axis=0).T), np.pi / 2 / 24, rtol=2e-3)


def test_angles_are_those_of_the_moves():
    turns = 2 * np.pi / 16 * np.array([0, 4, 8, 12, 15, 1.4, 1.6])
    positions = np.concatenate([[[0, 0]], np.stack([np.cos(turns), np.sin(turns)], 1).cumsum(0)])
    np.testing.assert_array_equal(strokes.angles(positions), [0, 4, 8, 12, 15, 1, 2])
    symbols = np.random.default_rng(0).integers(0, 16, (3, 9))
    np.testing.assert_array_equal(strokes.angles(strokes.trace(symbols)), symbols)


def test_writing_ends_where_the_pen_is_lifted():
    np.testing.assert_array_equal(strokes.written_moves(np.array([3, 4, 16, 5, 16])), [3, 4])
    np.testing.assert_array_equal(strokes.written_moves(np.array([3, 4])), [3, 4])


@pytest.mark.slow
def test_models_tell_curves_apart(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 150)
    points = [50 + 40 * arc(2 * np.pi / 3 * label) + rng.normal(size=(8, 2)) for label in labels]
    np.savez(tmp_path / "arcs.npz", points=np.stack(points), labels=labels)
    options = {"num_states": 4, "num_moves": 12, "num_steps": 5, "num_test": 50}
    strokes.main(strokes.Options(strokes=tmp_path / "arcs.npz", results=tmp_path, **options))
    found = json.loads((tmp_path / "strokes.json").read_text())
    assert found["accuracy"] == 1.0
    assert found["nats_per_angle"] < np.log(16) - 1
    assert {"twos.png", "digits.png"} <= {path.name for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="num-test"):
        strokes.main(strokes.Options(strokes=tmp_path / "arcs.npz", num_test=150))
