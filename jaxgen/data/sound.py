"""Sound on [-1, 1]: synthetic tones, and folders of WAV files."""

import wave
from pathlib import Path

import numpy as np

from jaxgen.data.dataset import DataError, Dataset, check_split

RATE = 8000
"""Samples a second of the tones."""

TIMBRES = ("sine", "triangle", "square", "sawtooth")

_SIZES = {"train": 2000, "test": 500}
_SEEDS = {"train": 0, "test": 1}
_LENGTH = 1024

WINDOW, HOP = 2048, 512
"""Samples of an example cut from a file, and from one to the next in training."""

_EVERY = 7


def tones(split: str) -> Dataset:
    """Tones of four timbres, "audio" (N, 1024) float32 at 8 kHz, with the timbre as "label".

    Pitch is log-uniform in 110 ... 880 Hz, phase uniform, peak 0.3 ... 0.9, and the sound falls by a factor
    of up to e^4 a second; overtones are below 3.8 kHz. Noise of standard deviation 0.005 is added.
    """
    rng = np.random.RandomState(_SEEDS[split])  # whose streams NumPy keeps from version to version
    count = _SIZES[split]
    label = rng.randint(0, len(TIMBRES), count)
    pitch = 110 * 8 ** rng.uniform(size=(count, 1))
    phase, peak, fall = (
        rng.uniform(size=(count, 1)),
        rng.uniform(0.3, 0.9, (count, 1)),
        rng.uniform(0, 4, (count, 1)),
    )
    time = np.arange(_LENGTH) / RATE
    x = np.zeros((count, _LENGTH))
    for overtone in range(1, int(3800 / 110) + 1):
        odd, sign = overtone % 2, (-1) ** (overtone // 2)
        strengths = np.array([overtone == 1, odd * sign / overtone**2, odd / overtone, 1 / overtone])
        heard = np.where(overtone * pitch[:, 0] < 3800, strengths[label], 0.0)[:, None]
        x += heard * np.sin(2 * np.pi * overtone * (pitch * time + phase))
    x *= peak * np.exp(-fall * time) / np.abs(x).max(1, keepdims=True)
    x = np.clip(x + 0.005 * rng.standard_normal(x.shape), -1, 1).astype(np.float32)
    return Dataset("tones", split, {"audio": x, "label": label.astype(np.int32)}, label_names=TIMBRES)


def sounds(where: Path, split: str) -> Dataset:
    """WAV files below a folder, cut into examples of 2048 samples, "audio" (N, 2048) float32.

    Every seventh file is of the test split, and every seventh of the validation split. Training examples
    overlap; a file's last one ends in silence.
    Where names of files come again in other folders, they are the labels.

    Raises:
        DataError: no folder, fewer than seven files, or one that is no 16-bit WAV.
    """
    check_split(f"sounds:{where}", split, ("train", "validation", "test"))
    files = sorted(where.rglob("*.wav")) if where.is_dir() else []
    if len(files) < _EVERY:
        raise DataError(
            f"{where} has {len(files)} .wav files: it takes {_EVERY} or more, to have some to test"
        )
    names = sorted({file.stem for file in files})
    own = {0: "validation", _EVERY // 2: "test"}
    chosen = [file for index, file in enumerate(files) if own.get(index % _EVERY, "train") == split]
    examples, label = [], []
    for file in chosen:
        x, hop = _read(file), HOP if split == "train" else WINDOW
        for start in range(0, max(1, len(x) - WINDOW + hop), hop):
            piece = x[start : start + WINDOW]
            examples.append(np.pad(piece, (0, WINDOW - len(piece))))
            label.append(names.index(file.stem))
    arrays = {"audio": np.stack(examples)}
    if len(names) == len(files):
        return Dataset(f"sounds:{where}", split, arrays)
    arrays["label"] = np.asarray(label, np.int32)
    return Dataset(f"sounds:{where}", split, arrays, len(names), tuple(names))


def _read(file: Path) -> np.ndarray:
    """The first channel of a WAV file, (T,) float32."""
    try:
        with wave.open(str(file)) as opened:
            if opened.getsampwidth() != 2:
                raise DataError(f"{file} has {8 * opened.getsampwidth()} bits a sample: convert it to 16")
            frames = np.frombuffer(opened.readframes(opened.getnframes()), "<i2")
            return (frames[:: opened.getnchannels()] / 2**15).astype(np.float32)
    except (wave.Error, EOFError, OSError) as error:
        raise DataError(f"{file} is no WAV file that can be read: {error}") from None


BUILT_IN = {"tones": tones}
"""Data sets by name, and their parts by split string."""
