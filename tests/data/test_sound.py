"""Sound: the pitch and overtones of tones, and WAV files cut into examples."""

import wave

import numpy as np
import pytest

from jaxgen import data
from jaxgen.data import sound


def test_tones_have_the_overtones_of_their_timbre():
    tones = data.load("tones", "test")
    assert tones.label_names == sound.TIMBRES
    x, label = np.asarray(tones[:]["audio"]), np.asarray(tones[:]["label"])
    assert x.shape == (500, 1024)
    assert 0.25 < np.abs(x).max(1).min() <= np.abs(x).max() <= 1
    spectrum = np.abs(np.fft.rfft(x * np.hanning(1024))) ** 2
    loudest = spectrum.argmax(1)
    assert ((loudest >= 110 / 8000 * 1024 - 2) & (loudest <= 880 / 8000 * 1024 + 2)).all()
    at = lambda overtone: np.stack(
        [row[overtone * k - 2 : overtone * k + 3].sum() for row, k in zip(spectrum, loudest, strict=True)]
    )
    low = loudest < 40  # whose third overtone is below 3.8 kHz, and whose lines are apart
    apart = low & (loudest > 20)
    second, third = (np.sqrt(at(overtone) / at(1)) for overtone in (2, 3))
    for name, wanted in {
        "sine": (0, 0),
        "triangle": (0, 1 / 9),
        "square": (0, 1 / 3),
        "sawtooth": (1 / 2, 1 / 3),
    }.items():
        rows = apart & (label == sound.TIMBRES.index(name))
        assert rows.sum() > 5
        np.testing.assert_allclose(np.median(second[rows]), wanted[0], atol=0.05)
        np.testing.assert_allclose(np.median(third[rows]), wanted[1], atol=0.05)


def write(file, samples, width=2):
    file.parent.mkdir(exist_ok=True)
    with wave.open(str(file), "wb") as opened:
        opened.setnchannels(1)
        opened.setsampwidth(width)
        opened.setframerate(8000)
        opened.writeframes(np.asarray(samples, {1: "u1", 2: "<i2"}[width]).tobytes())


@pytest.fixture
def folder(tmp_path):
    for voice in range(2):
        for digit in range(7):
            write(tmp_path / f"voice{voice}" / f"{digit}.wav", np.full(3000, 1000 * voice + digit))
    return tmp_path


def test_files_are_cut_and_no_split_shares_one(folder):
    splits = {name: data.load(f"sounds:{folder}", name) for name in ("train", "validation", "test")}
    kinds = {
        name: {round(float(v) * 2**15) for v in np.unique(d[:]["audio"])} - {0} for name, d in splits.items()
    }
    assert kinds["test"] == {3, 1003}
    assert kinds["validation"] == {1000}  # and the silent first file
    assert kinds["train"] == {voice + digit for voice in (0, 1000) for digit in (1, 2, 4, 5, 6)}
    x, label = splits["test"][:]["audio"], splits["test"][:]["label"]
    assert x.shape == (4, 2048)
    assert list(label) == [3] * 4
    assert (x[1, 3000 - 2048 :] == 0).all()
    assert (x[0] != 0).all()
    assert len(splits["train"]) == 10 * 3  # from 0, 512 and 1024 on
    assert splits["train"].num_classes == 7


def test_names_that_come_once_are_no_labels(tmp_path):
    for index in range(7):
        write(tmp_path / f"{index}.wav", np.arange(100))
    assert data.load(f"sounds:{tmp_path}").num_classes == 0


def test_bad_folders_are_refused(folder, tmp_path):
    with pytest.raises(data.DataError, match=r"0 \.wav files"):
        data.load("sounds:nowhere")
    with pytest.raises(data.DataError, match="its splits are train"):
        data.load(f"sounds:{folder}", "dev")
    (folder / "voice0" / "1.wav").write_bytes(b"RIFF")
    with pytest.raises(data.DataError, match="no WAV file"):
        data.load(f"sounds:{folder}")
    write(folder / "voice0" / "1.wav", np.zeros(100), width=1)
    with pytest.raises(data.DataError, match="8 bits a sample"):
        data.load(f"sounds:{folder}")
