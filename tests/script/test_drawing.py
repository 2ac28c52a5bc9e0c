"""`jaxgen sample`, `reconstruct`, `interpolate`: options of every family, what is written, refusals."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jaxgen
from jaxgen import cli, data, keys, types
from jaxgen.autoencoder import vae
from jaxgen.autoencoder.networks import DenseDecoder, DenseEncoder
from jaxgen.autoregressive import codes
from jaxgen.diffusion import ddpm, latent
from jaxgen.diffusion.ddpm import DPMSolverPP
from jaxgen.diffusion.networks import MLP
from jaxgen.gan import gan, presets
from jaxgen.run import checkpoint, directory
from jaxgen.script import drawing

KEY = jax.random.key(0)
FAMILIES = jaxgen.families()
WIDTHS = {"encoder": DenseEncoder((16,)), "decoder": DenseDecoder((16,))}

RUNS = {
    "vae": (vae, vae.Config(num_latents=3, conditional=True, **WIDTHS)),
    "gan": (gan, presets.CGAN),
    "ddpm": (ddpm, ddpm.Config(network=MLP((16,)), num_steps=10, conditional=True)),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Run directories of no steps, by name, with their Configs and States."""
    made = {}
    for name, (family, cfg) in RUNS.items():
        cfg = types.shape_to(data.load("digits"), cfg)
        state = jax.jit(functools.partial(family.init, cfg=cfg))(KEY)
        description = directory.describe(family, cfg, data="digits")
        folder = directory.prepare(tmp_path_factory.mktemp("runs") / name, description)
        with checkpoint.open_writer(folder) as writer:
            checkpoint.save(writer, 0, state)
        made[name] = folder, family, cfg, state
    return made


def run(capsys, *arguments):
    """The exit status of a command, and what it prints."""
    status = 0
    try:
        cli.main([str(argument) for argument in arguments])
    except SystemExit as stopped:
        status = stopped.code
    return status, capsys.readouterr()


def drawn(capsys, path, *arguments):
    assert run(capsys, "sample", *arguments, "--out", path)[0] == 0
    return np.load(path)["image"]


def test_labels_are_taken_in_turn(capsys, runs, tmp_path):
    folder, family, cfg, state = runs["vae"]
    x = drawn(capsys, tmp_path / "x.npz", folder, "-n", 5, "--label", 3, 7)
    label = jnp.asarray([3, 7, 3, 7, 3])
    wanted = jax.jit(lambda: family.sample(KEY, state, 5, cfg, label=label))()
    np.testing.assert_allclose(x, wanted, atol=1e-6)
    assert not np.allclose(x, drawn(capsys, tmp_path / "y.npz", folder, "-n", 5, "--label", 1))


def test_samplers_steps_and_guidance_are_those_of_the_family(capsys, runs, tmp_path):
    folder, family, cfg, state = runs["ddpm"]
    options = ("--sampler", "dpm_solver_pp", "--steps", 3, "--guidance", 2, "--label", 4)
    x = drawn(capsys, tmp_path / "x.npz", folder, "-n", 2, *options)
    given = {"sampler": DPMSolverPP(3), "guidance": 2.0, "label": jnp.asarray([4, 4])}
    wanted = jax.jit(lambda: family.sample(KEY, state, 2, cfg, **given))()
    np.testing.assert_allclose(x, wanted, atol=1e-5)


def test_truncation_reaches_the_sampler(capsys, runs, tmp_path):
    folder, family, cfg, state = runs["gan"]
    x = drawn(capsys, tmp_path / "x.npz", folder, "-n", 2, "--truncation", 0.5, "--label", 1)
    wanted = jax.jit(lambda: family.sample(KEY, state, 2, cfg, jnp.asarray([1, 1]), truncation=0.5))()
    np.testing.assert_allclose(x, wanted, atol=1e-6)


def test_a_folder_has_a_picture_each(capsys, runs, tmp_path):
    x = drawn(capsys, tmp_path / "x.npz", runs["vae"][0], "-n", 11)
    assert run(capsys, "sample", runs["vae"][0], "-n", 11, "--out", tmp_path / "all")[0] == 0
    files = sorted((tmp_path / "all").iterdir())
    assert [file.name for file in files[:2] + files[-1:]] == ["00.png", "01.png", "10.png"]
    read = np.stack([np.asarray(Image.open(file)) for file in files])
    np.testing.assert_allclose(read / 127.5 - 1, x[..., 0], atol=1 / 255 + 1e-6)


def test_pictures_are_reconstructed(capsys, runs, tmp_path):
    folder, family, cfg, state = runs["vae"]
    test = data.load("digits", "test")[:2]
    pixels = np.uint8(np.round((np.asarray(test["image"]) + 1) * 127.5))[..., 0]
    files = [tmp_path / f"{index}.png" for index in range(2)]
    for file, each in zip(files, pixels, strict=True):
        Image.fromarray(each).save(file)
    x = drawing.read_pictures(files, cfg.shape)
    np.testing.assert_allclose(x, test["image"], atol=1 / 127.5)
    found = drawing.reconstructions(family, state, x, cfg, label=(3, 5))
    wanted = jax.jit(lambda: family.reconstruct(state, jnp.asarray(x), cfg, jnp.asarray([3, 5])))()
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    out = tmp_path / "new" / "pairs.png"
    status, _ = run(capsys, "reconstruct", folder, *files, "--label", 3, 5, "--out", out)
    assert status == 0
    assert out.exists()


def test_pictures_are_cropped_to_the_shape_of_the_data(tmp_path):
    """A model of wide pictures sees all of a wide one, and of a square one its whole width."""
    columns = np.tile(np.arange(0, 216, 4, dtype=np.uint8), (54, 1))
    for name, pixels in (("wide", columns[:36]), ("square", columns)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    x = drawing.read_pictures([tmp_path / "wide.png", tmp_path / "square.png"], (6, 9, 1))
    assert x.shape == (2, 6, 9, 1)
    wanted = np.tile(columns[0].reshape(9, -1).mean(1), (6, 1))[..., None] / 127.5 - 1
    np.testing.assert_allclose(x, [wanted, wanted], atol=3 / 127.5)


@pytest.mark.parametrize("name", ["vae", "gan"])
def test_paths_begin_and_end_at_samples(capsys, runs, name, tmp_path):
    folder, family, cfg, state = runs[name]
    command = ("interpolate", folder, "-n", 2, "--points", 4, "--label", 2)
    assert run(capsys, *command, "--out", tmp_path / "x.npz")[0] == 0
    x = np.load(tmp_path / "x.npz")["image"].reshape(2, 4, *cfg.shape)
    steps = np.abs(np.diff(x, axis=1)).max((0, 2, 3, 4))
    assert (steps > 0).all()
    whole = np.abs(x[:, -1] - x[:, 0]).max()
    assert steps.max() < whole  # no jump
    assert run(capsys, *command, "--arc")[0] == 0
    assert (folder / "interpolation.png").exists()
    if name == "vae":
        y = family.sample(keys.named(KEY, "samples"), state, 4, cfg, jnp.full(4, 2))
        np.testing.assert_allclose(x[:, 0], family.reconstruct(state, y[:2], cfg, jnp.full(2, 2)), atol=1e-5)


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_every_family_says_which_options_it_takes(name):
    """An option that `sample` has is passed on, every other is refused in a line with those that it has."""
    family, cfg = FAMILIES[name], FAMILIES[name].Config()
    given = {"label": (1,), "guidance": 2.0, "steps": 5, "truncation": 0.5, "temperature": 0.7, "top_k": 2}
    none, parameters = dict.fromkeys(given), inspect.signature(family.sample).parameters
    for option, value in given.items():
        asked = {**none, option: value}
        spelled = {option, "num_" + option} & set(parameters)
        if spelled:
            assert drawing.options(family, cfg, asked) == {spelled.pop(): value}
            continue
        words = f"{name.removeprefix('jaxgen.')} cannot sample with --{option.replace('_', '-')}: .* it takes"
        with pytest.raises(ValueError, match=words) as raised:
            drawing.options(family, cfg, asked)
        assert "\n" not in str(raised.value)


def test_models_of_codes_take_the_options_of_their_priors():
    assert drawing.options(latent, latent.Config(), {"sampler": "dpm_solver_pp"}) == {
        "sampler": DPMSolverPP()
    }
    assert drawing.options(codes, codes.Config(), {"top_p": 0.9}) == {"top_p": 0.9}


MISTAKES = [
    ("vae", ("sample", "--temperature", 1), ("autoencoder.vae cannot sample with --temperature", "--label")),
    ("gan", ("sample", "--guidance", 2), ("gan.gan cannot sample with --guidance", "--truncation")),
    ("ddpm", ("sample", "--sampler", "dpmsolver_pp"), ("no sampler 'dpmsolver_pp'", "dpm_solver_pp?")),
    ("ddpm", ("sample", "--label", 12), ("12",)),
    ("ddpm", ("sample", "--steps", 0), ("steps", "0")),
    ("vae", ("sample", "--out", "x.jpg"), ("--out is a .png, an .npz or a folder, not 'x.jpg'",)),
    ("gan", ("reconstruct", "x.png"), ("gan.gan does not reconstruct",)),
    ("vae", ("reconstruct",), ("name the pictures",)),
    ("vae", ("reconstruct", "/nowhere.png"), ("/nowhere.png cannot be read as a picture",)),
    ("ddpm", ("interpolate",), ("diffusion.ddpm has no codes",)),
    ("vae", ("interpolate", "--points", 1), ("--points must be at least 2, not 1",)),
    ("vae", ("sample", "--step", "best"), ("no best checkpoint",)),
]


@pytest.mark.parametrize(("name", "command", "words"), MISTAKES)
def test_mistakes_get_a_line(capsys, runs, name, command, words):
    folder = runs[name][0]
    before = sorted(folder.rglob("*"))
    status, said = run(capsys, command[0], folder, *command[1:])
    assert status == 2
    lines = said.err.splitlines()
    assert len(lines) == 1, lines
    for word in words:
        assert word in lines[0]
    assert sorted(folder.rglob("*")) == before
