"""Mistakes at the command line: each ends with one line that names the value and the remedy.

The commands run in this process. Nothing is trained: what is wrong is found before the first step, and leaves
no directory behind.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxgen
from jaxgen import cli, shard
from tests import line

ROOT = Path(__file__).parent.parent
FAMILIES = sorted(path.rpartition(".")[2] for path in jaxgen.families())

QUICK = ("vae", "gan", "gmm", "hmm")
"""Families whose mistakes are made in the default suite."""

OPTION = {
    "ae": ("--num-latents", "0"),
    "vae": ("--optimizer.learning-rate", "-1"),
    "gan": ("--packing", "0"),
    "ddpm": ("--label-dropout", "2"),
    "gda": ("--shrinkage", "1.5"),
    "gmm": ("--num-components", "-3"),
    "hmm": ("--num-states", "0"),
    "rbm": ("--chains.num-steps", "0"),
    "maf": ("--network.widths", "0"),
    "made": ("--average.decay", "1"),
}
"""A number out of its range, by family."""


def run(capsys, *arguments):
    """The exit status of a command, and the lines of its standard error."""
    status = 0
    try:
        cli.main([str(argument) for argument in arguments])
    except SystemExit as stopped:
        status = stopped.code
    return status, capsys.readouterr().err.splitlines()


def assert_one_line(found, *words):
    status, lines = found
    assert status == 2
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of a tiny family."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    dataset = jaxgen.data.load("ring")
    jaxgen.fit(
        line, line.Config(), dataset, steps=2, batch_size=8, key=jax.random.key(0), mesh=shard.mesh(1),
        run_dir=folder, sample_every=0,
    )  # fmt: skip
    return folder


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--data", "digit"), ("digit", "digits")),
        (("--data", "folder:/nowhere"), ("/nowhere",)),
        (("--steps", "0"), ("steps",)),
        (("--start", "/nowhere"), ("/nowhere", "config.json")),
    ],
    ids=["data", "folder", "steps", "start"],
)
def test_mistakes_of_every_family(capsys, tmp_path, name, options, words):
    found = run(capsys, "train", name, "--run-dir", tmp_path / "run", *options)
    assert_one_line(found, *words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", OPTION)
def test_numbers_out_of_range(capsys, tmp_path, name):
    option, number = OPTION[name]
    found = run(capsys, "train", name, option, number, "--run-dir", tmp_path / "run")
    assert_one_line(found, option.rpartition(".")[2].strip("-").replace("-", "_"), number)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("option", "number", "least"),
    [
        ("batch_size", "0", "1"),
        ("fsdp", "0", "1"),
        ("log_every", "0", "1"),
        ("sample_every", "-5", "0"),
        ("save_every", "-1", "0"),
        ("patience", "0", "1"),
        ("num_samples", "-2", "0"),
    ],
)
def test_run_options_out_of_range(capsys, tmp_path, option, number, least):
    arguments = "--" + option.replace("_", "-"), number, "--run-dir", tmp_path / "run"
    found = run(capsys, "train", "ppca", *arguments)
    assert_one_line(found, f"error: {option} must be at least {least}, not {number}")
    assert not list(tmp_path.iterdir())


def test_memory_that_is_not_there(capsys, finished, tmp_path, monkeypatch):
    def sample(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 40 bytes.\nmore")

    monkeypatch.setattr(line, "sample", sample)
    found = run(capsys, "sample", finished, "--out", tmp_path / "x.png")
    assert_one_line(found, "out of memory: take smaller batches, fewer samples", "allocating 40 bytes")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("trian", "vae"), ("no command 'trian'", "did you mean train?")),
        (("show",), ("no command 'show'", "there are list, train, sample")),
        (("train", "vea"), ("no system 'vea'", "did you mean vae?")),
    ],
    ids=["near", "far", "system"],
)
def test_misspelt_commands(capsys, arguments, words):
    assert_one_line(run(capsys, *arguments), *words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train", "vae", "--stepz", "5"), ("--stepz", "did you mean --steps?")),
        (("train", "vae", "--steps", "abc"), ("--steps", "abc", "INT")),
        (("train", "vae", "--optimizer", "foo"), ("foo", "adam")),
        (("train", "vae", "--steps"), ("Missing value", "--steps")),
        (("sample",), ("Missing", "PATH")),
        (("sample", "there", "--n", "x"), ("--n", "x")),
    ],
)
def test_words_that_are_no_arguments(capsys, arguments, words):
    assert_one_line(run(capsys, *arguments), *words)


@pytest.mark.parametrize("command", ["sample", "evaluate", "report"])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "no config.json"),
        ("{}", "not the description of a run"),
        ("[]", "not the description of a run"),
        ("{", "cannot be read"),
        (json.dumps({"family": "os", "config": {}, "custom": [], "data": "ring"}), ""),
    ],
    ids=["none", "object", "list", "half", "stranger"],
)
def test_directories_that_hold_no_run(capsys, tmp_path, command, text, words):
    if command == "report" and text is not None and "family" in text:
        pytest.skip("a report is written of any description")
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    assert_one_line(run(capsys, command, tmp_path), str(tmp_path), words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("-n", "0"), ("-n", "0")),
        (("-n", "-3"), ("-n", "-3")),
        (("--step", "7"), ("no checkpoint 7", "[2]")),
    ],
    ids=["none", "negative", "step"],
)
def test_mistakes_of_sample(capsys, finished, arguments, words):
    before = sorted(finished.rglob("*"))
    assert_one_line(run(capsys, "sample", finished, *arguments), *words)
    assert sorted(finished.rglob("*")) == before


def test_a_negative_number_of_samples_to_evaluate(capsys, finished):
    assert_one_line(run(capsys, "evaluate", finished, "--num-samples", "-5"), "--num-samples", "-5")


def test_what_cannot_be_written_is_found_before_it_is_measured(capsys, finished, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    for command, more in (("evaluate", ("--quick", "--num-samples", "0")), ("report", ())):
        assert_one_line(
            run(capsys, command, finished, *more), "cannot write to the run directory", str(finished)
        )


@pytest.mark.parametrize("arguments", [("list",), ("sample", "--help")], ids=["list", "help"])
def test_a_reader_that_has_read_enough_is_forgiven(arguments):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "jaxgen", *arguments]
    buffered = {**os.environ, "PYTHONUNBUFFERED": ""}
    found = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=buffered)
    os.close(writing)
    assert (found.returncode, found.stderr) == (0, "")


def test_samples_go_into_a_folder_that_is_made(capsys, finished, tmp_path):
    assert run(capsys, "sample", finished, "-n", "4", "--out", tmp_path / "new" / "four.png")[0] == 0
    assert (tmp_path / "new" / "four.png").exists()


def test_data_of_another_kind(capsys, tmp_path):
    np.savez(tmp_path / "table.npz", x=np.linspace(-9, 9, 80, dtype=np.float32).reshape(40, 2))
    for arguments, words in (
        (("hmm", "--data", "digits"), ("size of the alphabet", "Gaussians()")),
        (("lda", "--data", "ring"), ("lda is of counts", "from -1", "gmm")),
        (
            ("vae", "--data", f"npz:{tmp_path / 'table.npz'}", "--likelihood", "bernoulli"),
            ("Bernoulli", "-9", "Gaussian"),
        ),
    ):
        found = run(capsys, "train", *arguments, "--run-dir", tmp_path / "run")
        assert_one_line(found, *words)
        assert not (tmp_path / "run").exists()
