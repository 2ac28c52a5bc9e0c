"""IDX and npz files: values, splits and labels as written, and one line for any damage."""

import gzip
import struct

import numpy as np
import pytest

from jaxgen import data

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (50, 6, 5), np.uint8)
LABELS = RNG.integers(0, 4, 50, np.uint8)


def write_idx(path, array, compress=False):
    content = struct.pack(f">4B{array.ndim}i", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(content) if compress else content)


def outcome(name):
    """The error that loading gives, which must be ours, or ""."""
    try:
        data.load(name)
    except data.DataError as error:
        return str(error)
    return ""


@pytest.fixture(params=["", ".gz"])
def idx(tmp_path, request):
    for stem, part in (("train", slice(0, 40)), ("t10k", slice(40, 50))):
        write_idx(tmp_path / f"{stem}-images-idx3-ubyte{request.param}", IMAGES[part], bool(request.param))
        write_idx(tmp_path / f"{stem}-labels-idx1-ubyte{request.param}", LABELS[part], bool(request.param))
    return tmp_path


def test_idx_files(idx):
    for split, part in (("train", slice(0, 40)), ("test", slice(40, 50))):
        dataset = data.load(f"idx:{idx}", split)
        np.testing.assert_array_equal(dataset.arrays["image"][..., 0], IMAGES[part])
        np.testing.assert_array_equal(dataset.arrays["label"], LABELS[part])
        assert dataset.shape == (6, 5, 1)
    with pytest.raises(data.DataError, match="its splits are train, test"):
        data.load(f"idx:{idx}", "valid")


def test_the_catalogue_falls_back_on_idx_files(idx):
    dataset = data.load("fashion_mnist", "test", data_dir=idx)
    np.testing.assert_array_equal(dataset.arrays["image"][..., 0], IMAGES[40:])
    assert dataset.num_classes == 10
    assert dataset.label_names[9] == "Ankle boot"


def test_mismatched_or_missing_idx_files_are_named(idx):
    images, labels = sorted(idx.glob("train-*"))
    write_idx(labels, LABELS[:39])
    with pytest.raises(
        data.DataError, match=r"train-images-idx3.* has 40 pictures but .*labels-idx1.* 39 labels"
    ):
        data.load(f"idx:{idx}")
    write_idx(labels, IMAGES)
    with pytest.raises(
        data.DataError, match=r"train-labels.* is not an IDX file of unsigned bytes with 1 dim"
    ):
        data.load(f"idx:{idx}")
    images.unlink()
    with pytest.raises(data.DataError, match="has no train-images-idx3-ubyte"):
        data.load(f"idx:{idx}")


def test_any_damage_to_idx_files_is_named(idx):
    file = next(idx.glob("train-images*"))
    content = file.read_bytes()
    for length in [0, 1, 3, 15, 16, 17, len(content) - 1, *RNG.integers(0, len(content), 40)]:
        file.write_bytes(content[:length])
        with pytest.raises(data.DataError, match=file.name) as error:
            data.load(f"idx:{idx}")
        assert "\n" not in str(error.value)
    for position in RNG.integers(0, len(content), 60):
        file.write_bytes(content[:position] + RNG.bytes(1) + content[position + 1 :])
        assert "\n" not in outcome(f"idx:{idx}")


@pytest.mark.parametrize("image_key", ["image", "images", "x"])
@pytest.mark.parametrize("label_key", ["label", "labels", "y", "group"])
def test_npz_keys(tmp_path, image_key, label_key):
    np.savez(tmp_path / "a.npz", **{image_key: IMAGES, label_key: LABELS})
    train, test = (data.load(f"npz:{tmp_path}/a.npz", split) for split in ("train", "test"))
    assert train.shape == (6, 5, 1)
    assert train.num_classes == test.num_classes == 4
    assert len(test) == pytest.approx(10, abs=2)
    image = np.concatenate([train.arrays["image"], test.arrays["image"]])[..., 0]
    label = np.concatenate([train.arrays["label"], test.arrays["label"]])
    ours = {(i.tobytes(), int(y)) for i, y in zip(image, label, strict=True)}
    assert ours == {(i.tobytes(), int(y)) for i, y in zip(IMAGES, LABELS, strict=True)}


def test_npz_test_mask_and_label_names(tmp_path):
    mask = np.arange(50) % 3 == 0
    group_names = np.array(["a", "b", "c", "d", "e"])
    np.savez(tmp_path / "a.npz", images=IMAGES[..., None], group=LABELS, test=mask, group_names=group_names)
    for split, chosen in (("train", ~mask), ("test", mask)):
        dataset = data.load(f"npz:{tmp_path}/a.npz", split)
        np.testing.assert_array_equal(dataset.arrays["image"][..., 0], IMAGES[chosen])
        assert dataset.label_names == tuple("abcde")
        assert dataset.num_classes == 5


def test_npz_as_keras_has_them(tmp_path):
    np.savez(
        tmp_path / "a.npz",
        x_train=IMAGES[:40],
        y_train=LABELS[:40, None],
        x_test=IMAGES[40:],
        y_test=np.minimum(LABELS[40:], 1),
    )
    train, test = (data.load(f"npz:{tmp_path}/a.npz", split) for split in ("train", "test"))
    np.testing.assert_array_equal(train.arrays["image"][..., 0], IMAGES[:40])
    np.testing.assert_array_equal(train.arrays["label"], LABELS[:40])
    np.testing.assert_array_equal(test.arrays["image"][..., 0], IMAGES[40:])
    assert train.num_classes == test.num_classes == 4


def test_npz_labels_that_are_words(tmp_path):
    words = np.array(["ant", "bee", "cat", "dog"])[LABELS]
    np.savez(tmp_path / "a.npz", x=IMAGES, y=words)
    np.savez(tmp_path / "keras.npz", x_train=IMAGES, y_train=words, x_test=IMAGES[:2], y_test=["dog", "eel"])
    for split in ("train", "test"):
        dataset = data.load(f"npz:{tmp_path}/a.npz", split)
        assert dataset.label_names == ("ant", "bee", "cat", "dog")
    train, test = (data.load(f"npz:{tmp_path}/keras.npz", split) for split in ("train", "test"))
    assert train.label_names == test.label_names == ("ant", "bee", "cat", "dog", "eel")
    np.testing.assert_array_equal(train.arrays["label"], LABELS)
    np.testing.assert_array_equal(test.arrays["label"], [3, 4])


def test_two_examples_leave_none_to_test(tmp_path):
    np.savez(tmp_path / "a.npz", x=IMAGES[:2])
    assert len(data.load(f"npz:{tmp_path}/a.npz")) == 2
    with pytest.raises(data.DataError, match="2 examples, of which none is left for the test split, a fifth"):
        data.load(f"npz:{tmp_path}/a.npz", "test")


def test_npz_points(tmp_path):
    points = RNG.normal(size=(50, 3))
    np.savez(tmp_path / "a.npz", x=points, test=np.arange(50) >= 30)
    dataset = data.load(f"npz:{tmp_path}/a.npz")
    assert dataset.shape == (3,)
    np.testing.assert_array_equal(dataset.arrays["x"], points[:30].astype(np.float32))


@pytest.mark.parametrize(("key", "kind"), [("tokens", np.int32), ("audio", np.float32)])
def test_npz_sequences(tmp_path, key, kind):
    np.savez(tmp_path / "a.npz", **{key: RNG.integers(0, 9, (50, 7)).astype(kind)})
    dataset = data.load(f"npz:{tmp_path}/a.npz")
    assert (dataset.shape, dataset[:2][key].dtype) == ((7,), kind)


def test_words_that_numpy_has_pickled_get_a_remedy(tmp_path):
    np.savez(tmp_path / "a.npz", x=IMAGES, y=np.array(["a", None] * 25, object))
    with pytest.raises(data.DataError, match=r"a.npz cannot be read .*: save words as np.asarray\("):
        data.load(f"npz:{tmp_path}/a.npz")


@pytest.mark.parametrize("kind", ["npz:", "csv:", ""])
def test_a_table_is_no_data_set_yet(tmp_path, kind):
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    with pytest.raises(
        data.DataError, match=r"np.savez\('a.npz', x=np.genfromtxt\('a.csv', delimiter="
    ) as error:
        data.load(f"{kind}{tmp_path}/a.csv")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"points": IMAGES, "labels": LABELS}, "its arrays are points, labels"),
        ({}, "its arrays are none"),
        ({"x": IMAGES / 255}, r"must be integers 0 .. 255, not float64.*: save np.round\(255 \* x\)\.astype"),
        ({"x": 1.0 * IMAGES}, r"not float64.*: save np.round\(x\)\.astype"),
        ({"x": IMAGES - 9.0}, r"must be integers 0 .. 255, not float64 \(50, 6, 5\)$"),
        ({"x": IMAGES.astype(int) * 2}, "must be integers 0 .. 255"),
        ({"x": IMAGES.reshape(50, 1, 6, 5)}, r"is \(50, 1, 6, 5\), and .* transpose it to \(50, 6, 5, 1\)"),
        ({"x": IMAGES.reshape(50, 2, 3, 5)}, r"C <= 4"),
        ({"x": IMAGES, "test": LABELS}, r"'test' must be \(50,\) bool, not uint8"),
        ({"x": IMAGES, "y": LABELS[:49]}, "different lengths"),
        ({"x": IMAGES, "y": LABELS / 2}, r"'label' must be \(N,\) integers"),
        ({"x": np.float32(3)}, "must be integers"),
        ({"x": IMAGES, "y": LABELS, "y_names": np.array("a")}, "labels 0..3 do not fit 1 classes"),
        ({"x_test": IMAGES}, "no split 'train': its splits are test"),
        ({"x": np.array([["a", "b"]])}, "array of numbers"),
        ({"tokens": IMAGES[:, 0] - 300.0}, r"'tokens' must be \(N, T\) integers from 0, not float32"),
        (
            {"tokens": IMAGES[:, 0].astype(int) - 300},
            r"integers from 0, not int64 .* from -",
        ),
    ],
)
def test_bad_npz_archives_say_what_they_hold(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(data.DataError, match=message):
        data.load(f"npz:{tmp_path}/a.npz")


def test_any_damage_to_npz_archives_is_named(tmp_path):
    file = tmp_path / "a.npz"
    with pytest.raises(data.DataError, match="no such file"):
        data.load(f"npz:{file}")
    for save in (np.savez, np.savez_compressed):
        save(file, x=IMAGES, y=LABELS, test=LABELS > 2, y_names=np.array(list("abcd")))
        content = file.read_bytes()
        for length in [0, 1, 2, 4, len(content) - 1, *RNG.integers(0, len(content), 60)]:
            file.write_bytes(content[:length])
            with pytest.raises(data.DataError, match=r"a\.npz") as error:
                data.load(f"npz:{file}")
            assert "\n" not in str(error.value)
        for position in RNG.integers(0, len(content), 200):
            file.write_bytes(content[:position] + RNG.bytes(1) + content[position + 1 :])
            assert "\n" not in outcome(f"npz:{file}")
    np.save(tmp_path / "a.npy", IMAGES)
    with pytest.raises(data.DataError, match=r"a\.npy cannot be read as an npz"):
        data.load(f"npz:{tmp_path}/a.npy")


def test_validation_of_files(idx, tmp_path):
    np.savez(tmp_path / "a.npz", x=IMAGES, y=LABELS)
    np.savez(tmp_path / "k.npz", x_train=IMAGES[:40], x_test=IMAGES[40:])
    for name in (f"npz:{tmp_path}/a.npz", f"npz:{tmp_path}/k.npz", f"idx:{idx}"):
        train, validation, rest = (data.load(name, s) for s in ("train", "validation", "train-validation"))
        assert len(validation) == 4
        found = np.concatenate([validation.arrays["image"], rest.arrays["image"]])
        assert sorted(map(bytes, found)) == sorted(map(bytes, train.arrays["image"]))
