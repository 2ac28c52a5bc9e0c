"""Data sets held whole: what is built in, splits, indexing, and what is refused."""

import subprocess
import sys

import numpy as np
import pytest

from jaxgen import data
from jaxgen.data import sources
from jaxgen.data.points import GRID_STD, RING_STD


def test_digits_are_scikit_learns_split_by_class():
    from sklearn.datasets import load_digits

    train, test = data.load("digits"), data.load("digits", "test")
    assert len(train) + len(test) == 1797
    assert train.shape == test.shape == (8, 8, 1)
    assert train.num_classes == 10
    assert train.label_names == tuple("0123456789")
    pixels, labels = load_digits(return_X_y=True)
    ours = np.concatenate([d.arrays["image"].reshape(-1, 64) for d in (train, test)])
    theirs = np.round(pixels * 255 / 16).astype(np.uint8)
    np.testing.assert_array_equal(np.unique(ours, axis=0), np.unique(theirs, axis=0))
    shares = np.bincount(test.arrays["label"]) / np.bincount(labels)
    np.testing.assert_allclose(shares, 0.2, atol=0.005)


def test_examples_are_converted():
    digits = data.load("digits")
    one, some, picked = digits[5], digits[2:6], digits[np.array([5, -1])]
    assert one["image"].shape == (8, 8, 1)
    assert one["image"].dtype == np.float32
    assert one["label"].dtype == np.int32
    assert one["label"].shape == ()
    np.testing.assert_array_equal(one["image"], some["image"][3])
    np.testing.assert_array_equal(one["image"], picked["image"][0])
    np.testing.assert_array_equal(digits[-1]["image"], picked["image"][1])
    assert (digits[:]["image"].min(), digits[:]["image"].max()) == (-1, 1)
    assert sum(1 for _ in digits) == len(digits)
    with pytest.raises(IndexError):
        digits[len(digits)]


@pytest.mark.parametrize(
    ("name", "centers", "std"),
    [("ring", data.ring_centers(), RING_STD), ("grid", data.grid_centers(), GRID_STD)],
)
@pytest.mark.parametrize(("split", "size"), [("train", 100_000), ("test", 10_000)])
def test_mixtures_have_the_stated_modes(name, split, size, centers, std):
    points = data.load(name, split)
    x, label = points.arrays["x"], points.arrays["label"]
    assert x.shape == (size, 2)
    assert points.num_classes == len(centers)
    counts = np.bincount(label, minlength=len(centers))
    assert np.abs(counts - size / len(centers)).max() < 5 * np.sqrt(size / len(centers))
    residual = (x - centers[label]) / std
    np.testing.assert_allclose(residual.std(0), 1, atol=0.04)
    np.testing.assert_allclose(residual.mean(0), 0, atol=0.05)


def test_centers_are_where_the_literature_has_them():
    np.testing.assert_allclose(np.linalg.norm(data.ring_centers(), axis=1), 1, rtol=1e-6)
    assert set(map(tuple, data.grid_centers())) == {(x, y) for x in range(-4, 5, 2) for y in range(-4, 5, 2)}


def test_moons_lie_on_two_half_circles():
    moons = data.load("moons")
    x, label = moons.arrays["x"], moons.arrays["label"]
    center = np.array([[0.0, 0.0], [1.0, 0.5]])[label]
    radius = np.linalg.norm(x - center, axis=1)
    assert radius.mean() == pytest.approx(1, abs=0.01)
    assert radius.std() == pytest.approx(0.05, abs=0.01)
    assert (x[label == 0, 1] > -0.3).all()
    assert (x[label == 1, 1] < 0.8).all()


@pytest.mark.parametrize("name", data.names())
def test_train_and_test_are_fixed_and_disjoint(name):
    train, test = data.load(name), data.load(name, "test")
    key = next(iter(train.arrays))
    np.testing.assert_array_equal(train.arrays[key], data.load(name).arrays[key])
    both = np.concatenate([d.arrays[key].reshape(len(d), -1) for d in (train, test)])
    if name != "weather":  # a fortnight of sunshine comes again
        assert len(np.unique(both, axis=0)) == len(both)


def test_slices_of_splits():
    whole = data.load("digits")
    n = len(whole)
    for split, expected in {
        "train[:100]": slice(0, 100),
        "train[-7:]": slice(n - 7, n),
        "train[10:20]": slice(10, 20),
        "train[90%:]": slice(round(0.9 * n), n),
        "train[:90%]": slice(0, round(0.9 * n)),
        "train[-10%:]": slice(n - round(0.1 * n), n),
        "train[:]": slice(None),
    }.items():
        part = data.load("digits", split)
        assert part.split == split
        assert part.num_classes == 10
        np.testing.assert_array_equal(part.arrays["image"], whole.arrays["image"][expected])


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("digts", "train", "unknown data set 'digts': did you mean digits"),
        ("zzz", "train", "digits, ring, grid, moons"),
        ("digits", "valid", "has no split 'valid': its splits are train, test"),
        ("digits", "train[5]", "not understood"),
        ("digits", "train[::2]", "not understood"),
        ("digits", "train[9999:]", "no examples"),
    ],
)
def test_bad_names_and_splits_are_one_line(name, split, message):
    with pytest.raises(data.DataError, match=message.replace("[", r"\[")) as error:
        data.load(name, split)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "no examples"),
        ({"x": np.zeros((0, 2))}, "no examples"),
        ({"x": np.zeros((3, 2)), "label": np.zeros(4, int)}, "different lengths"),
        ({"image": np.zeros((3, 8, 8), np.uint8)}, r"height, width, channels.*give x\[..., None\]"),
        ({"image": np.full((3, 8, 8, 1), 2.0)}, r"float in \[-1, 1\].*from 2 to 2: give x.round\(\)"),
        ({"image": np.full((3, 8, 8, 1), -2.0)}, "from -2 to -2$"),
        ({"image": np.zeros((3, 8, 8, 1), int)}, "must be uint8"),
        ({"image": np.full((3, 8, 8, 1), 255)}, r"must be uint8.*from 255 to 255: give x.astype"),
        ({"x": np.full((3, 2), np.nan)}, "not finite"),
        ({"x": np.array([["a"]])}, "numbers"),
        ({"x": np.zeros((3, 2)), "label": np.zeros(3)}, "integers"),
        ({"x": np.zeros((3, 2)), "label": np.array([0, -1, 1])}, "labels -1..1"),
    ],
)
def test_bad_arrays_are_refused(arrays, message):
    with pytest.raises(data.DataError, match=message):
        data.Dataset("mine", "train", arrays)


def test_labels_beyond_the_classes_are_refused():
    with pytest.raises(data.DataError, match=r"labels 0..3 do not fit 3 classes"):
        data.Dataset("mine", "train", {"x": np.zeros((4, 1)), "label": np.arange(4)}, num_classes=3)


def test_labels_may_be_words():
    x = np.zeros((4, 2))
    train = data.Dataset("mine", "train", {"x": x, "label": np.array(["cat", "ant", "cat", "bee"])})
    assert train.label_names == ("ant", "bee", "cat")
    assert train.num_classes == 3
    np.testing.assert_array_equal(train.arrays["label"], [2, 0, 2, 1])
    assert train[:]["label"].dtype == np.int32
    few = {"x": x[:1], "label": ["cat"]}
    test = data.Dataset("mine", "test", few, label_names=train.label_names)
    np.testing.assert_array_equal(test.arrays["label"], [2])
    assert data.take(train, "train[:1]", slice(1)).label_names == train.label_names
    with pytest.raises(data.DataError, match="no label 'dog' among the names ant, bee, cat"):
        data.Dataset("mine", "test", {"x": x[:1], "label": ["dog"]}, label_names=train.label_names)


def test_pictures_from_0_to_1_are_doubted():
    image = np.linspace(0, 1, 128).reshape(2, 8, 8, 1)
    with pytest.warns(
        UserWarning, match=r"'image' has values from 0 to 1, and black is -1: give 2 \* x - 1 if"
    ):
        data.Dataset("mine", "train", {"image": image})
    data.Dataset("mine", "train", {"image": 2 * image - 1})


def test_a_path_alone_is_asked_for_its_kind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, file in (("pictures", "a.png"), ("voices", "a.wav"), ("bytes", "train-images-idx3-ubyte")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).touch()
    (tmp_path / "table.npz").touch()
    for name, kind in (("pictures", "folder"), ("voices", "sounds"), ("bytes", "idx"), ("table.npz", "npz")):
        with pytest.raises(data.DataError, match=rf"unknown data set '{name}': did you mean {kind}:{name}\?"):
            data.load(name)
    with pytest.raises(data.DataError, match=f"did you mean folder:{tmp_path}/pictures"):
        data.load(str(tmp_path / "pictures"))


def test_own_arrays():
    mine = data.Dataset("mine", "train", {"image": np.zeros((4, 2, 2, 3), np.uint8), "label": np.arange(4)})
    assert mine.shape == (2, 2, 3)
    assert mine.num_classes == 4
    other = data.Dataset(
        "mine", "train", {"tokens": np.zeros((4, 9), np.uint8), "mask": np.ones((4, 9), bool)}
    )
    assert other.shape == (9,)
    assert other[:2]["tokens"].dtype == np.int32
    assert other[:2]["mask"].dtype == bool


@pytest.mark.parametrize("size", [1, 7, 100, 2000])
def test_in_order_visits_each_example_once(size):
    digits = data.load("digits", "test")
    seen = list(data.in_order(digits, size))
    np.testing.assert_array_equal(np.concatenate([b["image"] for b in seen]), digits[:]["image"])
    assert all(len(b["label"]) == size for b in seen[:-1])


def test_importing_the_package_is_light():
    heavy = "{'tensorflow_datasets', 'grain', 'sklearn', 'PIL', 'scipy', 'matplotlib'}"
    code = f"import sys, jaxgen.data; print(*({heavy} & set(sys.modules)))"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == ""
    )


@pytest.mark.parametrize("name", ["digits", "ring", "weather"])
def test_validation_is_a_fixed_tenth_of_the_training_split(name):
    train, validation, rest = (
        data.load(name, split) for split in ("train", "validation", "train-validation")
    )
    assert len(validation) == round(len(train) / 10)
    assert (validation.split, rest.split) == ("validation", "train-validation")
    assert validation.num_classes == rest.num_classes == train.num_classes
    key = "x" if name == "ring" else next(iter(train.arrays))
    for dataset in (validation, rest):
        # In the order of the training split, of which both are parts.
        places = np.flatnonzero(sources.validation_rows(len(train)) == (dataset is validation))
        np.testing.assert_array_equal(dataset.arrays[key], train.arrays[key][places])
    assert len(validation) + len(rest) == len(train)
    np.testing.assert_array_equal(data.load(name, "validation[:5]").arrays[key], validation.arrays[key][:5])
    assert len(data.load(name, "train-validation[90%:]")) == pytest.approx(len(rest) / 10, abs=1)


def test_validation_is_spread_over_the_training_split():
    chosen = np.flatnonzero(sources.validation_rows(1000))
    assert len(chosen) == 100
    assert np.abs(np.quantile(chosen, [0.25, 0.5, 0.75]) - [250, 500, 750]).max() < 100
    assert sources.validation_rows(3).sum() == 1
    np.testing.assert_array_equal(sources.validation_rows(1000), sources.validation_rows(1000))
