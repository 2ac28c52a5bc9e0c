"""Folders of image files: what is found, decoded, resized, split and refused; streamed and whole alike."""

import numpy as np
import pytest
from PIL import Image

from jaxgen import data
from jaxgen.data import sources


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


@pytest.fixture
def pictures(tmp_path):
    """30 RGB pictures, 6 high and 5 wide, in two classes; red is the picture's number."""
    for i in range(30):
        pixels = np.random.default_rng(i).integers(0, 256, (6, 5, 3), np.uint8)
        pixels[..., 0] = i
        save(tmp_path / ("cat", "ant")[i % 2] / f"{i:02}.png", pixels)
    (tmp_path / "README.txt").write_text("not a picture")
    (tmp_path / ".hidden").mkdir()
    return tmp_path


def numbers(dataset):
    return dataset.arrays["image"][:, 0, 0, 0]


def test_subfolders_are_classes_and_a_fifth_is_held_out(pictures):
    train, test = data.load(f"folder:{pictures}"), data.load(f"folder:{pictures}", "test")
    assert (train.shape, train.num_classes, train.label_names) == ((6, 5, 3), 2, ("ant", "cat"))
    assert sorted([*numbers(train), *numbers(test)]) == list(range(30))
    for dataset, size in ((train, 24), (test, 6)):
        assert len(dataset) == size
        np.testing.assert_array_equal(dataset.arrays["label"], numbers(dataset) % 2 == 0)
        for image, i in zip(dataset.arrays["image"], numbers(dataset), strict=True):
            expected = np.random.default_rng(i).integers(0, 256, (6, 5, 3), np.uint8)
            np.testing.assert_array_equal(image[..., 1:], expected[..., 1:])
    np.testing.assert_array_equal(numbers(data.load(f"folder:{pictures}", "train[:5]")), numbers(train)[:5])


def test_streamed_and_whole_hold_the_same(pictures, monkeypatch):
    whole = data.load(f"folder:{pictures}")
    monkeypatch.setattr(sources, "WHOLE_LIMIT", 0)
    streamed = data.load(f"folder:{pictures}")
    assert isinstance(streamed, data.StreamedDataset)
    for name in ("name", "split", "shape", "num_classes", "label_names"):
        assert getattr(streamed, name) == getattr(whole, name)
    assert len(streamed) == len(whole)
    for a, b in zip(data.in_order(whole, 7), data.in_order(streamed, 7), strict=True):
        np.testing.assert_array_equal(a["image"], b["image"])
        np.testing.assert_array_equal(a["label"], b["label"])
    for index in (3, -1, slice(2, 9, 3), np.array([5, -2]), np.arange(24) % 5 == 0):
        np.testing.assert_array_equal(streamed[index]["image"], whole[index]["image"])
        np.testing.assert_array_equal(streamed[index]["label"], whole[index]["label"])
    with pytest.raises(IndexError):
        streamed[24]

    part = data.load(f"folder:{pictures}", "train[4:10]")
    np.testing.assert_array_equal(part[:]["image"], whole[4:10]["image"])
    with pytest.raises(data.DataError, match="no examples"):
        data.load(f"folder:{pictures}", "train[24:]")

    batches = data.batches(streamed, 6, seed=0)
    epoch = np.concatenate([batch["image"] for batch, _ in zip(batches.iterate(0), range(4), strict=False)])
    np.testing.assert_array_equal(np.sort(epoch, 0), np.sort(whole[:]["image"], 0))


def test_validation_of_a_folder_streamed_or_whole(pictures, monkeypatch):
    splits = ("train", "validation", "train-validation")
    train, validation, rest = (data.load(f"folder:{pictures}", split) for split in splits)
    assert len(validation) == 2
    assert sorted([*numbers(validation), *numbers(rest)]) == sorted(numbers(train))
    monkeypatch.setattr(sources, "WHOLE_LIMIT", 0)
    streamed = data.load(f"folder:{pictures}", "validation")
    assert isinstance(streamed, data.StreamedDataset)
    np.testing.assert_array_equal(streamed[:]["image"], validation[:]["image"])


def test_validation_of_a_folder_that_has_it_is_its_own(tmp_path):
    fill(tmp_path, "train/a", "train/b")
    fill(tmp_path, "val/a", count=3)
    sizes = [len(data.load(f"folder:{tmp_path}", s)) for s in ("train", "validation", "train-validation")]
    assert sizes == [10, 3, 10]


def test_train_and_test_folders_are_the_splits(tmp_path):
    for split, count in (("train", 5), ("test", 2)):
        for label in ("a", "b") if split == "train" else ("b",):
            for i in range(count):
                save(tmp_path / split / label / f"{i}.png", np.full((4, 4), i, np.uint8))
    train, test = data.load(f"folder:{tmp_path}"), data.load(f"folder:{tmp_path}", "test")
    assert (len(train), len(test)) == (10, 2)
    assert train.shape == (4, 4, 1)
    assert train.label_names == test.label_names == ("a", "b")
    assert set(test.arrays["label"]) == {1}
    with pytest.raises(data.DataError, match="no split 'valid': its splits are test, train"):
        data.load(f"folder:{tmp_path}", "valid")


def test_loose_pictures_have_no_label(tmp_path):
    for i in range(10):
        save(tmp_path / f"{i}.bmp", np.full((4, 4), i, np.uint8))
    loose = data.load(f"folder:{tmp_path}")
    assert list(loose.arrays) == ["image"]
    assert loose.num_classes == 0
    save(tmp_path / "class" / "a.png", np.zeros((4, 4), np.uint8))
    with pytest.raises(data.DataError, match="both beside and inside subfolders"):
        data.load(f"folder:{tmp_path}")


def test_the_home_folder_is_expanded(pictures, monkeypatch):
    monkeypatch.setenv("HOME", str(pictures.parent))
    assert len(data.load(f"folder:~/{pictures.name}")) == 24


def test_one_colour_picture_makes_the_set_rgb(tmp_path):
    for i in range(9):
        save(tmp_path / f"{i}.png", np.full((4, 4), 10 * i, np.uint8))
    assert data.load(f"folder:{tmp_path}").shape == (4, 4, 1)
    save(tmp_path / "colour.png", np.full((4, 4, 3), (1, 2, 3), np.uint8))
    mixed = data.load(f"folder:{tmp_path}")
    assert mixed.shape == (4, 4, 3)
    gray = mixed.arrays["image"][numbers(mixed) % 10 == 0]
    assert (gray == gray[..., :1]).all()


def test_depths_transparency_and_orientation(tmp_path):
    save(tmp_path / "train" / "deep.png", np.full((4, 4), 200 * 256 + 7, np.uint16))
    save(tmp_path / "train" / "bits.png", np.eye(4, dtype=bool))
    deep = data.load(f"folder:{tmp_path}").arrays["image"]
    assert (deep[1] == 200).all()
    np.testing.assert_array_equal(deep[0, :, :, 0], 255 * np.eye(4))

    veiled = np.zeros((4, 4, 4), np.uint8)
    veiled[:2, :, 3] = 255
    save(tmp_path / "train" / "veiled.png", veiled)
    assert (data.load(f"folder:{tmp_path}").arrays["image"][2, :, 0, 0] == [0, 0, 255, 255]).all()

    turned = np.zeros((16, 8), np.uint8)
    turned[:8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # seen upright when turned a quarter clockwise
    save(tmp_path / "other" / "train" / "turned.jpg", turned, exif=exif, quality=100)
    image = data.load(f"folder:{tmp_path}/other").arrays["image"][0, ..., 0]
    assert image.shape == (8, 16)
    assert (image[:, :7] < 10).all()
    assert (image[:, 9:] > 245).all()


def pixels_of(folder):
    """The first picture of a folder."""
    return data.load(f"folder:{folder}").arrays["image"][0]


def test_32_bit_and_floating_point_pictures_are_scaled_or_refused(tmp_path):
    ramp = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)
    save(tmp_path / "a" / "train" / "0.tiff", ramp)
    np.testing.assert_array_equal(pixels_of(tmp_path / "a")[..., 0], np.round(255 * ramp))
    save(tmp_path / "b" / "train" / "0.tiff", 255 * ramp)
    with pytest.raises(
        data.DataError, match=r"0\.tiff .*values are 0 \.\. 255; floating-point ones must be in 0"
    ):
        pixels_of(tmp_path / "b")
    save(tmp_path / "c" / "train" / "0.tiff", np.full((4, 4), np.nan, np.float32))
    with pytest.raises(data.DataError, match="values are nan"):
        pixels_of(tmp_path / "c")
    save(tmp_path / "d" / "train" / "0.tiff", np.full((4, 4), 200, np.int32))
    with pytest.raises(data.DataError, match=r"0\.tiff .*save it with 8 or 16 bits"):
        pixels_of(tmp_path / "d")
    save(tmp_path / "e" / "train" / "0.tiff", np.full((4, 4), 200 * 256, np.uint16))
    assert (pixels_of(tmp_path / "e") == 200).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_every_mode_is_decoded(tmp_path, mode):
    gray = mode in ("1", "L", "LA", "I;16")
    wanted = np.zeros((4, 4, 3), np.uint8) if gray else np.full((4, 4, 3), (255, 0, 0), np.uint8)
    wanted[:2] = 255
    image = Image.fromarray(wanted)
    image = Image.fromarray(wanted[..., 0] * np.uint16(257)) if mode == "I;16" else image.convert(mode)
    assert image.mode == mode
    (tmp_path / "train").mkdir()
    image.save(tmp_path / "train" / ("0.tiff" if mode in ("CMYK", "YCbCr", "PA") else "0.png"))
    found = pixels_of(tmp_path)
    assert found.shape == (4, 4, 1 if gray else 3)
    np.testing.assert_allclose(found.astype(int), wanted[..., : found.shape[-1]], atol=2)


def test_a_palette_of_greys_is_gray(tmp_path):
    image = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4), "P")
    image.putpalette([level for index in range(16) for level in (255 - index,) * 3])
    (tmp_path / "train").mkdir()
    image.save(tmp_path / "train" / "0.png")
    np.testing.assert_array_equal(pixels_of(tmp_path).ravel(), 255 - np.arange(16))


@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff", "webp"])
@pytest.mark.parametrize("late", [False, True])
def test_pictures_of_every_format_are_turned_upright(tmp_path, suffix, late):
    turned = np.zeros((16, 8), np.uint8)
    turned[:8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    file = tmp_path / "train" / f"0.{suffix}"
    save(file, turned, exif=exif)
    if late and suffix == "png":
        content = file.read_bytes()
        start = content.index(b"eXIf") - 4
        end = start + 12 + int.from_bytes(content[start : start + 4])
        file.write_bytes(content[:start] + content[end:-12] + content[start:end] + content[-12:])
    image = pixels_of(tmp_path)[..., 0]
    assert image.shape == (8, 16)
    assert image[:, :7].max() < 30 < 225 < image[:, 9:].min()


def fill(folder, *names, count=5):
    for name in names:
        for i in range(count):
            save(folder / name / f"{i}.png", np.full((4, 4), 50 * i, np.uint8))


def test_classes_called_like_splits_are_refused(tmp_path):
    fill(tmp_path, "bus", "car", "train")
    with pytest.raises(data.DataError, match="has train beside bus, car: if these are classes, rename"):
        data.load(f"folder:{tmp_path}")


@pytest.mark.parametrize(("first", "second"), [("Train", "Test"), ("training", "TESTING"), ("train", "val")])
def test_splits_are_known_by_their_usual_names(tmp_path, first, second):
    fill(tmp_path, f"{first}/a", f"{first}/b", f"{second}/a")
    train = data.load(f"folder:{tmp_path}")
    other = data.load(f"folder:{tmp_path}", "validation" if second == "val" else "test")
    assert (len(train), train.label_names) == (10, ("a", "b"))
    assert (len(other), other.label_names) == (5, ("a", "b"))
    assert len(data.load(f"folder:{tmp_path}", second)) == 5


def test_other_splits_may_stand_beside_train(tmp_path):
    fill(tmp_path, "train/a", "train/b", "test/a", "extra/b")
    assert len(data.load(f"folder:{tmp_path}", "extra")) == 5
    with pytest.raises(data.DataError, match="no split 'more': its splits are extra, test, train"):
        data.load(f"folder:{tmp_path}", "more")
    fill(tmp_path, "Training/c")
    with pytest.raises(data.DataError, match=r"two folders of one split: .*Training.*train"):
        data.load(f"folder:{tmp_path}")


def test_hidden_folders_hold_no_pictures(tmp_path):
    fill(tmp_path, "cat", "cat/.ipynb_checkpoints", "cat/inner", "dog", ".trash", count=3)
    sizes = [len(data.load(f"folder:{tmp_path}", split)) for split in ("train", "test")]
    assert sum(sizes) == 9


def test_sizes_must_agree_or_be_asked_for(tmp_path):
    ramp = np.tile(np.arange(0, 240, 2, dtype=np.uint8), (40, 1))
    for i, image in enumerate(
        [ramp, ramp.T, ramp[:, 40:80], np.tile(np.uint8([[0, 255], [255, 0]]), (32, 32))]
    ):
        save(tmp_path / "train" / f"{i}.png", image)
    with pytest.raises(data.DataError, match=r"4 sizes \(40x40, 40x120, 64x64, 120x40\): give image_size"):
        data.load(f"folder:{tmp_path}")
    image = data.load(f"folder:{tmp_path}", image_size=10).arrays["image"][..., 0].astype(int)
    assert image.shape == (4, 10, 10)
    # The centre 40 columns of the ramp rise from 80 to 158, and shrink to 10 means of 4.
    np.testing.assert_allclose(image[0], np.tile(np.arange(83, 160, 8), (10, 1)), atol=2)
    np.testing.assert_array_equal(image[1], image[0].T)
    np.testing.assert_array_equal(image[2], image[0])
    # Without antialiasing a checkerboard of single pixels would alias instead of turning gray.
    assert np.abs(image[3] - 127.5).max() < 10


def test_image_size_serves_arrays_too():
    digits, large = data.load("digits"), data.load("digits", image_size=16)
    assert large.shape == (16, 16, 1)
    np.testing.assert_array_equal(large.arrays["label"], digits.arrays["label"])
    means = large.arrays["image"].reshape(-1, 8, 2, 8, 2).mean((2, 4))
    assert np.abs(means - digits.arrays["image"][..., 0]).mean() < 10
    assert data.load("digits", image_size=8).arrays["image"].tobytes() == digits.arrays["image"].tobytes()
    for name, size, message in (("ring", 8, "no 8-bit pictures"), ("digits", 0, "at least 1 pixel")):
        with pytest.raises(data.DataError, match=message):
            data.load(name, image_size=size)


@pytest.mark.parametrize("channels", [2, 4])
def test_channels_are_resized_one_by_one(tmp_path, channels):
    """And not weighted by the last as if it were transparency."""
    image = np.full((10, 4, 4, channels), 200, np.uint8)
    image[:, :, :2, -1] = 0
    np.savez(tmp_path / "a.npz", image=image)
    large = data.load(f"npz:{tmp_path}/a.npz", image_size=8)
    assert large.shape == (8, 8, channels)
    assert (large.arrays["image"][..., :-1] == 200).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_channels_come_last(dtype):
    with pytest.raises(
        data.DataError, match=r"is \(5, 3, 32, 32\), and channels come last: .* \(5, 32, 32, 3\)"
    ):
        data.Dataset("mine", "train", {"image": np.zeros((5, 3, 32, 32), dtype)})
    assert data.Dataset("mine", "train", {"image": np.zeros((5, 4, 4, 16), dtype)}).shape == (4, 4, 16)


def test_one_picture_leaves_none_to_test(tmp_path):
    save(tmp_path / "0.png", np.zeros((4, 4), np.uint8))
    assert len(data.load(f"folder:{tmp_path}")) == 1
    with pytest.raises(
        data.DataError, match="has 1 example, of which none is left for the test split"
    ) as error:
        data.load(f"folder:{tmp_path}", "test")
    assert "three of a class are enough" in str(error.value)
    for name in "12":
        save(tmp_path / f"{name}.png", np.zeros((4, 4), np.uint8))
    assert len(data.load(f"folder:{tmp_path}", "test")) == 1


def test_bad_folders_are_one_line(tmp_path):
    with pytest.raises(data.DataError, match="no such folder"):
        data.load(f"folder:{tmp_path}/nothing")
    with pytest.raises(data.DataError, match="has no pictures"):
        data.load(f"folder:{tmp_path}")
    save(tmp_path / "train" / "a" / "0.png", np.zeros((4, 4), np.uint8))
    save(tmp_path / "test" / "0.png", np.zeros((4, 4), np.uint8))
    with pytest.raises(data.DataError, match="class subfolders in some splits only"):
        data.load(f"folder:{tmp_path}")


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "gif"])
def test_damaged_pictures_are_named(tmp_path, suffix):
    rng = np.random.default_rng(0)
    file = tmp_path / f"picture.{suffix}"
    save(file, rng.integers(0, 256, (20, 20), np.uint8))
    content = file.read_bytes()
    intact = data.load(f"folder:{tmp_path}").arrays["image"]

    def outcome():
        try:
            return data.load(f"folder:{tmp_path}").arrays["image"]
        except data.DataError as error:
            return str(error)

    for length in [0, 1, *rng.integers(2, len(content), 40)]:
        file.write_bytes(content[:length])
        found = outcome()
        if isinstance(found, str):
            assert str(file) in found
            assert "\n" not in found
        else:
            # A file may lose what follows its pixels.
            np.testing.assert_array_equal(found, intact)
            assert length > 0.9 * len(content)
    for position in rng.integers(0, len(content), 60):
        file.write_bytes(content[:position] + rng.bytes(1) + content[position + 1 :])
        found = outcome()
        assert not isinstance(found, str) or "\n" not in found


def test_a_file_that_is_no_picture_is_named_once(tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(data.DataError) as error:
        data.load(f"folder:{tmp_path}")
    assert str(error.value) == f"{tmp_path}/a.png cannot be read as a picture: it has no known format"


def test_damage_shows_when_a_streamed_picture_is_read(pictures, monkeypatch):
    monkeypatch.setattr(sources, "WHOLE_LIMIT", 0)
    file = pictures / "cat" / "00.png"
    file.write_bytes(file.read_bytes()[:60])
    streamed = data.load(f"folder:{pictures}")
    with pytest.raises(data.DataError, match=r"00\.png cannot be read as a picture"):
        list(data.in_order(streamed, 4))
    with pytest.raises(data.DataError, match=r"00\.png cannot be read as a picture"):
        for _ in zip(data.batches(streamed, 4, seed=0).iterate(0), range(6), strict=False):
            pass
