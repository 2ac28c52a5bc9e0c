"""What trained networks are used for: feature maps, and the scripts of representation, truncation, boards."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgen
from experiments.studies import checkerboard, representation, truncation
from jaxgen import data, types
from jaxgen.energy import rbm
from jaxgen.gan import gan, presets
from jaxgen.gan.networks import dcgan, mlp, r3gan, resnet
from jaxgen.run import checkpoint, directory

KEY = jax.random.key(0)
SMALL = {
    "num_latents": 8,
    "generator": dcgan.Generator((8, 8)),
    "discriminator": dcgan.Discriminator((8, 16)),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The directory of a run of no steps, its config and its state."""
    cfg = types.shape_to(data.load("digits"), dataclasses.replace(presets.DCGAN, **SMALL))
    state = jax.jit(functools.partial(gan.init, cfg=cfg))(KEY)
    folder = directory.prepare(tmp_path_factory.mktemp("run"), directory.describe(gan, cfg, data="digits"))
    with checkpoint.open_writer(folder) as writer:
        checkpoint.save(writer, 0, state)
    return folder, cfg, state


@pytest.mark.slow
def test_feature_maps_are_the_layers_outputs(run):
    _, cfg, state = run
    x = jax.random.uniform(KEY, (3, 8, 8, 1), minval=-1)
    first, second = jax.jit(gan.feature_maps)(state, x, cfg)
    layer = state.params["discriminator"]["body"]["Conv_0"]
    dimensions = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(x, layer["kernel"], (2, 2), "SAME", dimension_numbers=dimensions)
    np.testing.assert_allclose(first, jax.nn.leaky_relu(y + layer["bias"], 0.2), atol=1e-5)
    assert second.shape == (3, 2, 2, 16)
    np.testing.assert_allclose(second.reshape(3, -1), gan.judge(state, x, cfg).features, atol=1e-6)


def test_every_network_that_convolves_has_feature_maps():
    def maps(generator, discriminator):
        cfg = gan.Config(generator=generator, discriminator=discriminator)
        x = jnp.zeros((2, *cfg.shape))
        return jax.eval_shape(lambda: gan.feature_maps(gan.init(KEY, cfg), x, cfg))

    for module, sizes in ((resnet, (8, 8)), (r3gan, (8, 4))):
        expected = [(2, size, size, width) for size, width in zip(sizes, (8, 16), strict=True)]
        found = maps(module.Generator((8, 8)), module.Discriminator((8, 16)))
        assert [each.shape for each in found] == expected
    with pytest.raises(ValueError, match="of mlp has no feature maps"):
        maps(mlp.Generator((8,)), mlp.Discriminator((8,)))


def test_maps_are_pooled_to_a_grid_of_largest_entries():
    x = np.random.default_rng(0).normal(size=(2, 7, 8, 3)).astype(np.float32)
    found = representation.grid_max(jnp.asarray(x), 4)
    cells = (slice(0, 2), slice(1, 4), slice(3, 6), slice(5, 7))
    for i, j in np.ndindex(4, 4):
        expected = x[:, cells[i], 2 * j : 2 * j + 2].max((1, 2))
        np.testing.assert_array_equal(found[:, i, j], expected)


def test_labels_are_balanced_and_accuracies_averaged_over_draws():
    labels = np.random.default_rng(1).permutation(np.arange(300) % 3)
    rows = representation.balanced_rows(labels, 60, seed=0)
    assert len(set(rows.tolist())) == 60
    np.testing.assert_array_equal(np.sort(labels[rows].reshape(-1, 3)), [[0, 1, 2]] * 20)
    with pytest.raises(ValueError, match="100 labels are not equally many of each of 3 classes"):
        representation.balanced_rows(labels, 100, seed=0)
    noise = np.random.default_rng(2).normal(size=(300, 4))
    told = noise + 20 * np.eye(3, 4)[labels]
    for x, low, high in ((told, 1, 1), (noise, 0.2, 0.47)):
        few, many = representation.accuracies(x[rows], labels[rows], x, labels, (12, 60), 3, (0.1,))
        assert low <= few["accuracy"] <= high
        assert (few["draws"], many["draws"], many["standard_error"]) == (3, 1, None)
        assert few["C"] == [0.1] * 3


@pytest.mark.slow
def test_representation_is_measured_beside_its_baselines(run, tmp_path, monkeypatch):
    quick = functools.partial(representation.probe.fit_kmeans, num_patches=500, iterations=2)
    monkeypatch.setattr(representation.probe, "fit_kmeans", quick)
    settings = {"labels": (40, 200), "draws": 2, "strengths": (0.01,), "num_centroids": 16}
    options = representation.Options(run=run[0], results=tmp_path, **settings)
    representation.main(options)
    written = json.loads((tmp_path / "digits.json").read_text())
    rows = {(row["features"], row["labels"]): row for row in written["rows"]}
    assert len(rows) == 6
    # Maps of 8 and of 16 channels on the grid.
    assert rows["discriminator", 200]["num_features"] == 16 * (8 + 16)
    assert rows["k-means", 200]["num_features"] == 4 * 16
    assert rows["pixels", 200]["accuracy"] > 0.85
    assert rows["pixels", 40]["accuracy"] < rows["pixels", 200]["accuracy"]
    assert (tmp_path / "digits.png").exists()
    settings = {name: written[name] for name in ("data", "labels", "draws", "strengths")}
    path = tmp_path / "digits.json"
    assert representation.resumed(path, settings) == (written["rows"], written["minutes"])
    assert representation.resumed(path, settings | {"draws": 1}) == ([], 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(representation, "accuracies", None)
        representation.main(options)  # all is there
    other, train = tmp_path / "rbm", data.load("digits")
    cfg = types.from_data(rbm, train, rbm.Config(num_hidden=12))
    jaxgen.fit(rbm, cfg, train, steps=2, batch_size=8, key=KEY, run_dir=other, sample_every=0)
    representation.main(dataclasses.replace(options, run=other))
    joined = json.loads(path.read_text())["rows"]
    assert joined[:6] == written["rows"]
    assert [(row["features"], row["steps"], row["num_features"]) for row in joined[6:]] == [
        ("rbm", 2, 12)
    ] * 2


@pytest.mark.slow
def test_truncation_is_measured_from_no_variety_to_all(run, tmp_path):
    folder, cfg, state = run
    z = gan.draw_codes(KEY, 4000, cfg, jnp.float32(np.inf))  # no limit is the same program
    assert np.isfinite(z).all()
    assert z.std() == pytest.approx(1, abs=0.02)
    assert abs((np.abs(z) < 1).mean() - 0.6827) < 0.01
    still = truncation.draw(KEY, state, 20, cfg, 1e-6)
    assert still.shape == (20, 8, 8, 1)
    assert np.abs(still - still[0]).max() < 1e-4
    truncation.main(truncation.Options(run=folder, limits=(1.0, 0.1), num_samples=100, results=tmp_path))
    written = json.loads((tmp_path / "digits.json").read_text())
    assert [row["limit"] for row in written["rows"]] == [0.1, 1.0, None]
    variances = [row["variance"] for row in written["rows"]]
    assert variances == sorted(variances)
    assert written["floor"]["precision"] > 0.8 > written["rows"][-1]["precision"]
    assert (tmp_path / "digits.png").exists()


@pytest.mark.slow
def test_boards_are_of_transposed_convolutions(tmp_path, monkeypatch):
    monkeypatch.setattr(presets, "DCGAN", dataclasses.replace(presets.DCGAN, **SMALL))
    monkeypatch.setattr(checkerboard, "NUM_SAMPLES", 60)
    monkeypatch.setattr(checkerboard, "trained", lambda cfg, train, options: train[:60]["image"])
    checkerboard.main(checkerboard.Options(steps=7, inits=3, results=tmp_path))
    rows = {row["images"]: row for row in json.loads((tmp_path / "digits.json").read_text())["rows"]}
    transposed, nearest = (rows[f"{name}, untrained"]["period 2"] for name in ("transposed", "nearest"))
    assert transposed["lowest"] > nearest["highest"]
    assert transposed["lowest"] < transposed["mean"] < transposed["highest"]
    assert rows["data"]["period 2"]["mean"] < rows["data"]["period 4"]["mean"] < 1
    assert rows["nearest, 7 steps"]["n"] == 60
    assert (tmp_path / "digits.png").exists()
