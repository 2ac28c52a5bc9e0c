"""The command lines: what they write, and the one line that bad input gets."""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import time
import types
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxgen
from experiments import autoencoder
from jaxgen import cli, data, keys
from jaxgen.autoencoder import vae
from jaxgen.classical import ppca
from jaxgen.evaluation import likelihood
from jaxgen.evaluation.metric import metric
from jaxgen.run import checkpoint, directory
from jaxgen.script import likelihoods, report, result, systems
from jaxgen.types import shape_to
from tests import line

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "experiments" / "autoencoder.py"
WIDTHS = ("--encoder.widths", "16", "--decoder.widths", "16")
QUICK = (
    *("--steps", "20", "--batch-size", "64", *WIDTHS),
    *("--sample-every", "10", "--log-every", "10", "--num-samples", "60"),
)


def script(*arguments, cwd):
    """The script's command line in this process: its exit status and what it prints."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    with contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            systems.main(autoencoder.SYSTEMS, list(map(str, arguments)))
        except SystemExit as stopped:
            status = stopped.code
    return types.SimpleNamespace(returncode=status or 0, stdout=out.getvalue(), stderr=err.getvalue())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of the script, on eight virtual devices, with a latent plane to draw."""
    folder = tmp_path_factory.mktemp("script")
    arguments = (
        "vae",
        *QUICK,
        "--num-latents",
        "2",
        "--run-dir",
        folder / "run",
        "--results",
        folder / "results",
    )
    result = subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return folder, result


def test_a_script_leaves_a_whole_run_directory(finished):
    folder, result = finished
    names = {path.name for path in (folder / "run").iterdir()}
    pictures = {"reconstructions.png", "manifold.png", "codes.png", "curves.png", "neighbours.png"}
    assert (
        names - {".lock"}
        == {"config.json", "metrics.jsonl", "samples", "checkpoints", "report.json", "report.html"} | pictures
    )
    assert "nll_iwae_1000" in result.stdout
    assert str(folder / "run") in result.stdout
    report = json.loads((folder / "run" / "report.json").read_text())
    assert report["metrics"]["nll_iwae_1000"]["n"] == len(data.load("digits", "test"))
    assert report["metrics"]["nll_iwae_1000"]["value"] < report["metrics"]["negative_elbo"]["value"]
    page = (folder / "run" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 6
    assert "http" not in page


def test_a_script_writes_its_result(finished):
    folder, _ = finished
    written = json.loads((folder / "results" / "vae-digits" / "result.json").read_text())
    assert set(written) == {
        *(
            "system",
            "paper",
            "data",
            "tier",
            "command",
            "seed",
            "minutes",
            "device",
            "versions",
            "num_params",
            "metrics",
        )
    }
    assert str(folder) not in json.dumps(written)
    assert written["command"].startswith("python experiments/autoencoder.py vae --steps 20")
    assert written["num_params"] > 1000
    pictures = {path.name for path in (folder / "results" / "vae-digits").glob("*.png")}
    assert {"samples.png", "reconstructions.png"} <= pictures


def test_the_command_of_a_result_names_no_place():
    arguments = [
        "/home/x/experiments/autoencoder.py",
        "vae",
        "--data-dir",
        "/data",
        "--steps",
        "5",
        "--run-dir=/r",
    ]
    assert result.command(arguments[:-1], "runs/vae-digits").endswith("--steps 5 --run-dir runs/vae-digits")
    assert result.command(arguments) == "python experiments/autoencoder.py vae --steps 5 --run-dir runs/r"


def test_what_a_script_saves_says_how_it_came_about(tmp_path):
    path = tmp_path / "new" / "rows.json"
    arguments = ["there/experiments/studies/text.py", "--results", "here", "--orders", "1"]
    result.save(path, {"rows": [1]}, time.perf_counter() - 90, arguments)
    saved = json.loads(path.read_text())
    assert saved["command"] == "python experiments/studies/text.py --orders 1"
    assert saved["minutes"] == 1.5
    assert saved["device"].startswith(f"{jax.device_count()} x cpu, ")
    assert saved["versions"]["jax"] == jax.__version__
    assert saved["rows"] == [1]


def test_a_run_loads_and_the_numbers_come_again(finished):
    folder, _ = finished
    family, cfg, state = jaxgen.load(folder / "run")
    assert family is vae
    key = keys.named(jax.random.key(0), "evaluation")
    metrics = likelihoods(key, family, state, data.load("digits", "test"), cfg, 1000)
    written = json.loads((folder / "run" / "report.json").read_text())["metrics"]
    for name, found in metrics.items():
        assert found["value"] == pytest.approx(written[name]["value"], rel=1e-5)


def test_the_jaxgen_command_lists_samples_evaluates_and_reports(finished, capsys):
    folder, _ = finished
    cli.main(["list"])
    assert "autoencoder.vae" in capsys.readouterr().out
    cli.main(["sample", str(folder / "run"), "-n", "9", "--out", str(folder / "nine.png")])
    assert (folder / "nine.png").exists()
    cli.main(["evaluate", str(folder / "run"), "--num-samples", "0"])
    assert "nll_iwae_1000" in capsys.readouterr().out
    cli.main(["report", str(folder / "run")])
    assert "report.html" in capsys.readouterr().out


def test_mean_over_the_set_weighs_a_short_last_batch_rightly():
    dataset = data.Dataset("seven", "test", {"x": np.arange(14.0).reshape(7, 2)})
    values = likelihood.per_example(jax.random.key(0), lambda key, x: x.sum(-1), dataset, batch_size=3)
    np.testing.assert_array_equal(values, np.arange(7) * 4 + 1)


def test_help_explains_every_option():
    for arguments in (["vae", "--help"], ["--help"]):
        result = script(*arguments, cwd=ROOT)
        assert result.returncode == 0
    text = script("vae", "--help", cwd=ROOT).stdout
    for option in (
        "--data",
        "--steps",
        "--batch-size",
        "--run-dir",
        "--seed",
        "--num-latents",
        "--objective.beta",
    ):
        assert option in text
    assert "--encoder.widths" in text
    assert "--shape" not in text
    assert "--decoder.shape" not in text


def corrupt_idx(folder):
    for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"):
        (folder / name).write_bytes(b"\x00\x00\x08\x03 not an image file")
    return ("--data", f"idx:{folder}"), "train-images-idx3-ubyte"


def corrupt_image(folder):
    for label in ("a", "b"):
        (folder / label).mkdir()
        (folder / label / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    return ("--data", f"folder:{folder}"), "picture.png"


def file_as_run_dir(folder):
    (folder / "file").write_text("")
    return ("--run-dir", folder / "file" / "run"), "cannot write to the run directory"


BAD = {
    "unknown data set": lambda folder: (("--data", "digit"), "digits"),
    "no network": lambda folder: (("--data", "cifar10", "--data-dir", folder), "--data-dir"),
    "corrupt IDX file": corrupt_idx,
    "corrupt image": corrupt_image,
    "batch size": lambda folder: (("--batch-size", "12"), "use 8 or 16"),
    "unwritable run directory": file_as_run_dir,
    "unknown option": lambda folder: (("--optimizer.learning-rat", "1"), "--optimizer.learning-rate"),
    "a value of the wrong type": lambda folder: (("--steps", "many"), "--steps"),
    "shape": lambda folder: (
        ("--encoder", "conv_encoder", "--encoder.channels", "4", "4", "4", "4"),
        "at least 16 pixels",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_one_clear_line(tmp_path, name):
    arguments, named = BAD[name](tmp_path)
    result = script("vae", *arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert named in result.stderr
    assert "Traceback" not in result.stderr
    if "option" not in name and "type" not in name:
        assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists() or not any((tmp_path / "runs").glob("*/checkpoints/*"))


def test_the_run_of_another_config_is_refused(finished):
    folder, _ = finished
    before = checkpoint.steps(folder / "run")
    result = script("vae", *QUICK, "--num-latents", "3", "--run-dir", folder / "run", cwd=folder)
    assert result.returncode == 2
    assert "num_latents is 2 there and 3 here" in result.stderr
    assert checkpoint.steps(folder / "run") == before


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(["sample", "nowhere"], "no run directory"), (["evaluate", "nowhere"], "no run directory")],
)
def test_the_jaxgen_command_refuses_in_one_line(tmp_path, monkeypatch, capsys, arguments, named):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    assert named in capsys.readouterr().err


@pytest.mark.slow
def test_log_lines_reach_tensorboard(tmp_path):
    result = script("vae", *QUICK, "--run-dir", "run", "--logger", "tensorboard", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (events,) = (tmp_path / "run").glob("events.out.tfevents.*")
    assert b"elbo" in events.read_bytes()


def test_shape_to_changes_only_what_the_config_has():
    digits = data.load("digits")
    assert shape_to(digits, vae.Config(shape=(1,), num_latents=3)) == vae.Config(
        shape=(8, 8, 1), num_classes=10, levels=17, num_latents=3
    )


def test_a_config_of_another_version_is_one_line(tmp_path):
    description = directory.describe(vae, vae.Config())
    description["config"]["gone"] = 1
    directory.write_text(tmp_path / "config.json", json.dumps(description))
    with pytest.raises(jaxgen.RunError, match="does not fit this version"):
        jaxgen.load(tmp_path)


def test_a_run_knows_its_system_and_is_evaluated_as_its_script_does(finished, capsys):
    folder, _ = finished
    assert directory.read_description(folder / "run")["about"]["system"] == "experiments.autoencoder:vae"
    assert systems.of_run(folder / "run").paper == "Kingma & Welling 2014"
    pictures = folder / "run" / "reconstructions.png"
    pictures.unlink()
    cli.main(["evaluate", str(folder / "run"), "--num-samples", "0"])
    assert pictures.exists()  # the default evaluation draws none
    assert "nll_iwae_1000" in capsys.readouterr().out


def test_a_system_transforms_every_split_of_its_data_when_it_trains_and_is_evaluated(tmp_path, monkeypatch):
    seen = []

    def evaluate(key, state, train, test, cfg, folder):
        seen.append((len(train), len(test)))
        return {}

    half = lambda dataset: data.take(dataset, dataset.split, slice(0, len(dataset) // 2))
    system = systems.System(family=line, config=line.Config(), paper="", transform=half, evaluate=evaluate)
    options = systems.Options(
        data="ring", steps=2, batch_size=8, num_samples=0, sample_every=0, run_dir=tmp_path / "run"
    )
    systems.run_system("line", system, options, system.config)
    whole = [len(data.load("ring", split)) for split in ("train", "test")]
    assert directory.read_description(tmp_path / "run")["num_examples"] == whole[0] // 2
    monkeypatch.setattr(systems, "of_run", lambda folder: system)
    cli.main(["evaluate", str(tmp_path / "run"), "--num-samples", "0"])
    assert seen == [(whole[0] // 2, whole[1] // 2)] * 2


@pytest.mark.slow
def test_no_number_of_steps_is_one_pass_over_the_data(tmp_path):
    """Whatever the data: a count that is right for one data set is a part of a pass over another."""
    for name in ("moons", "ring"):
        options = systems.Options(
            data=name, steps=None, batch_size=96, num_samples=0, sample_every=0, run_dir=tmp_path / name
        )
        system = systems.System(family=line, config=line.Config(), paper="", options=options)
        state = systems.run_system("line", system, options, system.config)
        assert int(state.step) == len(data.load(name)) // 96


def test_a_report_is_never_replaced_by_a_poorer_one(tmp_path):
    directory.write_text(tmp_path / "config.json", json.dumps(directory.describe(vae, vae.Config())))
    two = {"first": metric(1.0, "nats", 10), "second": metric(2.0, "nats", 10)}
    report.write(tmp_path, two, step=5)
    assert report.kept(tmp_path, 5) == two
    assert report.kept(tmp_path, 6) == {}
    assert json.loads((tmp_path / "report-5.json").read_text())["metrics"] == two


@pytest.mark.parametrize("name", ["no.such.module:vae", "subprocess:Popen", "jaxgen.values:Adam", ""])
def test_a_run_of_an_unknown_system_has_none(tmp_path, name):
    description = directory.describe(vae, vae.Config(), about={"system": name})
    directory.write_text(tmp_path / "config.json", json.dumps(description))
    assert systems.of_run(tmp_path) is None


@pytest.mark.parametrize("name", ["subprocess", "jaxgen.values", "no_such_package.model"])
def test_a_run_of_no_family_is_refused(tmp_path, name):
    description = directory.describe(vae, vae.Config()) | {"family": name}
    directory.write_text(tmp_path / "config.json", json.dumps(description))
    with pytest.raises(jaxgen.RunError, match=name):
        jaxgen.load(tmp_path)


def test_a_part_of_a_stranger_is_refused_by_load(tmp_path):
    description = directory.describe(vae, vae.Config())
    description["config"]["optimizer"] = {"is": "subprocess:Popen", "args": ["true"]}
    directory.write_text(tmp_path / "config.json", json.dumps(description))
    with pytest.raises(jaxgen.RunError, match="subprocess"):
        jaxgen.load(tmp_path)


@pytest.fixture
def one_device(monkeypatch):
    """Runs of scripts on one device, which is quicker than on eight virtual ones."""
    mesh = systems.shard.mesh(1)
    monkeypatch.setattr(systems.shard, "mesh", lambda fsdp=1: mesh)


@pytest.mark.usefixtures("one_device")
def test_the_installed_command_trains_a_family(tmp_path, capsys):
    command = ["train", "ppca", "--steps", "2", "--sample-every", "0", "--run-dir", str(tmp_path / "run")]
    cli.main([*command, "--num-samples", "0"])
    printed = capsys.readouterr().out
    assert "evaluation of 64 test examples ..." in printed
    assert re.search(r"evaluation of 64 test examples: \d+ s", printed)
    assert re.search(r"^nll +.* \(n = 64\)$", printed, re.MULTILINE)
    assert systems.of_run(tmp_path / "run").family is ppca
    with pytest.raises(SystemExit):
        cli.main(["train", "pcpa"])
    assert capsys.readouterr().err == "error: there is no system 'pcpa': did you mean ppca?\n"


@pytest.mark.usefixtures("one_device")
def test_no_evaluation_writes_no_report(tmp_path, capsys):
    command = ["train", "ppca", "--steps", "2", "--sample-every", "0", "--run-dir", str(tmp_path / "run")]
    cli.main([*command, "--evaluate", "none"])
    assert "evaluation" not in capsys.readouterr().out
    assert not (tmp_path / "run" / "report.json").exists()


def test_every_preset_can_be_trained_from_the_shell():
    from jaxgen.script import presets

    assert {path.rpartition(".")[2] for path in jaxgen.families()} <= set(presets.SYSTEMS)
    assert {"dcgan", "wgan_gp"} <= set(presets.SYSTEMS)


def test_the_version_is_printed(capsys):
    cli.main(["--version"])
    assert capsys.readouterr().out == f"jaxgen {jaxgen.__version__}\n"


@pytest.mark.slow
def test_a_script_validates_on_what_it_does_not_train_on(tmp_path):
    run = tmp_path / "run"
    options = ("--validate-every", "10", "--patience", "5", "--evaluate", "none", "--run-dir", run)
    assert script("vae", *QUICK, *options, cwd=tmp_path).returncode == 0
    description = directory.read_description(run)
    assert description["split"] == "train-validation"
    assert description["num_examples"] == len(data.load("digits", "train-validation"))
    assert [row["step"] for row in directory.read_metrics(run) if "validation_loss" in row] == [10, 20]
    assert len(checkpoint.steps(run, "best")) == 1
    with contextlib.redirect_stdout(io.StringIO()):
        cli.main(["sample", str(run), "--step", "best", "-n", "4"])
    assert (run / "samples.png").exists()
