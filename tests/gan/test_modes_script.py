"""The experiment of modes: what its table and its picture hold."""

import json

import matplotlib.image
import numpy as np
import pytest

from experiments.studies import modes as study
from jaxgen import data
from jaxgen.gan import gan, presets
from jaxgen.gan.networks import mlp

TINY = gan.Config(
    shape=(2,), num_latents=2, generator=mlp.Generator((16,)), discriminator=mlp.Discriminator((16,))
)


@pytest.mark.slow
def test_the_table_holds_means_standard_errors_and_what_was_published(tmp_path, monkeypatch, capsys):
    preset = presets.POINTS["pacgan"]._replace(config=TINY, batch_size=20)
    monkeypatch.setitem(presets.POINTS, "pacgan", preset)
    monkeypatch.setattr(study, "LOOKS", 2)
    shown = {}
    monkeypatch.setattr(study, "save_samples", lambda path, pictures, train: shown.update(pictures))
    study.main(
        study.Options(systems=("pacgan",), seeds=3, steps=12, run_dir=tmp_path / "runs", results=tmp_path)
    )
    written = json.loads((tmp_path / "ring-pacgan.json").read_text())
    row = written["systems"]["pacgan"]["high_quality"]
    assert len(row["values"]) == 3
    assert row["mean"] == pytest.approx(np.mean(row["values"]))
    assert row["standard_error"] == pytest.approx(np.std(row["values"], ddof=1) / 3**0.5)
    assert row["published"] == [0.956, 0.02]
    assert written["floor"]["modes"] == 8
    assert [look["step"] for look in written["systems"]["pacgan"]["history"]] == [6, 12]
    assert "published modes 7.9 +- 0.1, high quality 95.6 +- 2.0 %" in capsys.readouterr().out
    samples = shown["pacgan"]
    assert samples.shape == (3, 2500, 2)
    assert np.abs(samples[0] - samples[1]).mean() > 0.01  # seeds go their own ways


def test_the_picture_has_a_row_a_system_and_a_column_a_seed(tmp_path):
    train, x = data.load("grid", "test"), np.zeros((3, 10, 2))
    study.save_samples(tmp_path / "one.png", {"gan": x}, train)
    study.save_samples(tmp_path / "two.png", {"gan": x, "pacgan": x}, train)
    one, two = (matplotlib.image.imread(tmp_path / f"{name}.png").shape for name in ("one", "two"))
    assert one[1] == two[1]
    assert two[0] == 2 * one[0]
    assert one[1] > 2 * one[0]
