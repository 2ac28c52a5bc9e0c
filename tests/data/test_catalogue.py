"""Sets prepared by tensorflow-datasets, written here by its own builders, and what happens without them."""

import http.server
import io
import os
import socket
import threading
import time

import numpy as np
import pytest
from PIL import Image

from jaxgen import data
from jaxgen.data import prepare, sources


def picture(i, shape=(6, 5, 3)):
    return np.random.default_rng(i).integers(0, 256, shape, np.uint8)


def encoded(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(file, "PNG")
    return io.BytesIO(file.getvalue())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with four sets as TFDS prepares them."""
    import tensorflow_datasets as tfds

    class Written(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(0, 12), "test": self._generate_examples(12, 16)}

    class Coloured(Written):
        VERSION = tfds.core.Version("1.10.0")

        def _info(self):
            label = tfds.features.ClassLabel(names=["even", "odd"])
            features = {
                "id": tfds.features.Text(),
                "image": tfds.features.Image(shape=(6, 5, 3)),
                "label": label,
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _generate_examples(self, start, stop):
            for i in range(start, stop):
                yield i, {"id": str(i), "image": encoded(picture(i)), "label": i % 2}

    class Uneven(Written):
        def _info(self):
            features = {"image": tfds.features.Image(shape=(None, None, 1))}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _generate_examples(self, start, stop):
            for i in range(start, stop):
                yield i, {"image": encoded(picture(i, (8 + i % 2, 8)))}

    class Worded(Written):
        def _info(self):
            features = {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(num_classes=3)}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _generate_examples(self, start, stop):
            for i in range(start, stop):
                yield i, {"text": str(i), "label": i % 3}

    class Various(Coloured):
        BUILDER_CONFIGS = tuple(tfds.core.BuilderConfig(name=name) for name in ("first", "second"))

    root = tmp_path_factory.mktemp("prepared")
    tfds.disable_progress_bar()
    for builder in (Coloured, Uneven, Worded):
        builder(data_dir=root).download_and_prepare(file_format="array_record")
    for config in ("first", "second"):
        Various(data_dir=root, config=config).download_and_prepare(file_format="array_record")
    return root


def test_prepared_sets_hold_what_was_written(folder):
    for split, numbers in (("train", range(12)), ("test", range(12, 16))):
        dataset = data.load("coloured", split, data_dir=folder)
        assert (dataset.shape, dataset.num_classes, dataset.label_names) == ((6, 5, 3), 2, ("even", "odd"))
        written = {(picture(i).tobytes(), i % 2) for i in numbers}
        images, labels = dataset.arrays["image"], dataset.arrays["label"]
        assert {(i.tobytes(), int(y)) for i, y in zip(images, labels, strict=True)} == written
        assert len(dataset) == len(written)


def test_streamed_and_whole_hold_the_same(folder, monkeypatch):
    whole = data.load("coloured", "train[2:]", data_dir=folder)
    monkeypatch.setattr(sources, "WHOLE_LIMIT", 0)
    streamed = data.load("coloured", "train[2:]", data_dir=folder)
    assert isinstance(streamed, data.StreamedDataset)
    for a, b in zip(data.in_order(whole, 4), data.in_order(streamed, 4), strict=True):
        np.testing.assert_array_equal(a["image"], b["image"])
        np.testing.assert_array_equal(a["label"], b["label"])
    batches = data.batches(streamed, 5, seed=0)
    epoch = np.concatenate([batches(0)["image"], batches(1)["image"]])
    np.testing.assert_array_equal(np.sort(epoch, 0), np.sort(whole[:]["image"], 0))


def test_the_folder_may_come_from_the_environment(folder, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(folder))
    assert len(data.load("coloured")) == 12


def test_versions_and_variants(folder):
    assert len(data.load("coloured:1.10.0", data_dir=folder)) == 12
    assert len(data.load("various/second", data_dir=folder)) == 12
    with pytest.raises(data.DataError, match="several variants: various/first, various/second"):
        data.load("various", data_dir=folder)


def test_the_newest_version_is_read(tmp_path, folder):
    old, new = tmp_path / "coloured" / "1.9.0", tmp_path / "coloured" / "1.10.0"
    old.mkdir(parents=True)
    (old / "features.json").write_text("{}")
    new.symlink_to(folder / "coloured" / "1.10.0")
    assert len(data.load("coloured", data_dir=tmp_path)) == 12


def test_uneven_pictures_need_a_size(folder, monkeypatch):
    for limit in (2**30, 0):
        monkeypatch.setattr(sources, "WHOLE_LIMIT", limit)
        with pytest.raises(data.DataError, match=r"several sizes \(8x\d and 8x\d\): give image_size"):
            list(data.in_order(data.load("uneven", data_dir=folder), 4))
        dataset = data.load("uneven", data_dir=folder, image_size=8)
        assert dataset.shape == (8, 8, 1)
        assert dataset.num_classes == 0
        assert list(dataset[:3]) == ["image"]


def test_bad_requests_of_prepared_sets(folder):
    with pytest.raises(data.DataError, match="no split 'valid': its splits are train, test"):
        data.load("coloured", "valid", data_dir=folder)
    with pytest.raises(data.DataError, match=r"no 8-bit pictures 'image': its features are .*text"):
        data.load("worded", data_dir=folder)


def test_any_damage_to_prepared_sets_is_one_line(tmp_path, folder):
    where = tmp_path / "coloured" / "1.10.0"
    where.mkdir(parents=True)
    intact = {file.name: file.read_bytes() for file in (folder / "coloured" / "1.10.0").iterdir()}
    rng = np.random.default_rng(0)
    damaged = [name for name in intact if "test.array" not in name and "labels" not in name]
    for name in damaged:
        for length in [0, 1, *rng.integers(2, len(intact[name]) - 2, 6)]:
            for file, content in intact.items():
                (where / file).write_bytes(content[: length if file == name else None])
            with pytest.raises(data.DataError, match="coloured") as error:
                data.load("coloured", data_dir=tmp_path)
            assert "\n" not in str(error.value)


@pytest.mark.slow
def test_mnist_is_mnist():
    where = os.environ.get("TFDS_DATA_DIR")
    if not where or not os.path.isdir(os.path.join(where, "mnist")):
        pytest.skip("TFDS_DATA_DIR names no folder with MNIST prepared")
    start = time.perf_counter()
    train = data.load("mnist")
    assert time.perf_counter() - start < 60
    assert (len(train), train.shape, train.num_classes) == (60_000, (28, 28, 1), 10)
    assert len(data.load("mnist", "test")) == 10_000
    # Published: the training pixels have mean 0.1307 and standard deviation 0.3081 of full scale.
    assert train.arrays["image"].mean() / 255 == pytest.approx(0.1307, abs=1e-4)
    assert train.arrays["image"].std() / 255 == pytest.approx(0.3081, abs=1e-4)
    assert np.bincount(train.arrays["label"]).tolist() == [
        5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949,
    ]  # fmt: skip


def test_without_a_network_it_fails_at_once_and_says_the_ways_out(tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(prepare.urllib.request, "urlopen", no_network)
    start = time.perf_counter()
    with pytest.raises(data.DataError) as error:
        data.load("mnist", data_dir=tmp_path)
    assert time.perf_counter() - start < 10
    message = str(error.value)
    for part in (
        "storage.googleapis.com cannot be reached",
        "jaxgen[prepare]",
        "tfds build mnist",
        "--data-dir",
    ):
        assert part in message
    assert "\n" not in message


@pytest.mark.slow
def test_a_silent_host_is_given_up_on_soon(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.perf_counter()
        assert prepare.unreachable(f"http://127.0.0.1:{silent.getsockname()[1]}/file") == "127.0.0.1"
        assert time.perf_counter() - start < 8
    assert prepare.unreachable("https://nothing.invalid/file") == "nothing.invalid"


def test_a_host_that_refuses_is_there(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")

    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_error(403)

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Refusing) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        assert prepare.unreachable(f"http://127.0.0.1:{server.server_port}/file") == ""
        thread.join()


def test_a_set_of_the_catalogue_is_prepared_when_it_can_be(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    class WrittenOnDemand(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {"image": tfds.features.Image(shape=(6, 5, 3))}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            if fails:
                raise RuntimeError("the first line\nand more")
            yield 0, {"image": encoded(picture(0))}

    fails = True
    monkeypatch.setattr(prepare, "unreachable", lambda url: "")
    monkeypatch.setattr(prepare.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(data.DataError, match="needs TensorFlow: prepare it with"):
        data.load("written_on_demand", data_dir=tmp_path)
    monkeypatch.setattr(prepare.importlib.util, "find_spec", lambda name: True)
    with pytest.raises(data.DataError, match=r"preparing it failed .*the first line") as error:
        data.load("written_on_demand", data_dir=tmp_path)
    assert "\n" not in str(error.value)
    fails = False
    dataset = data.load("written_on_demand", data_dir=tmp_path)
    np.testing.assert_array_equal(dataset.arrays["image"], picture(0)[None])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mnst", "did you mean mnist"),
        ("foldr:pictures", "did you mean folder:PATH"),
        ("cycle_gan/zebra", "no variant 'zebra': it has apple2orange, .*horse2zebra"),
        ("", "unknown data set ''"),
        ("..", "unknown data set '..'"),
        ("huggingface:mnist", "unknown data set"),
        ("npz:", "unknown data set"),
    ],
)
def test_unknown_names(tmp_path, name, message):
    with pytest.raises(data.DataError, match=message) as error:
        data.load(name, data_dir=tmp_path)
    assert "\n" not in str(error.value)
