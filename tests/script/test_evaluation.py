"""The evaluation of a run: what is known beforehand is checked, and what fails costs nothing else."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import jaxgen
from jaxgen import cli, data, plot, shard
from jaxgen.evaluation import samples
from jaxgen.script import evaluate_run
from jaxgen.script.evaluation import check
from tests import line

RING = {split: data.load("ring", split) for split in ("train", "test")}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run directory and its State."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    state = jaxgen.fit(
        line, line.Config(), RING["train"], steps=2, batch_size=8, key=jax.random.key(0),
        mesh=shard.mesh(1), run_dir=folder, sample_every=0,
    )  # fmt: skip
    return folder, state


def evaluated(run, said, **options):
    """The metrics in the report of an evaluation that raises what it says."""
    folder, state = run
    (folder / "report.json").unlink(missing_ok=True)
    with pytest.raises(jaxgen.RunError, match=said):
        evaluate_run(
            line, line.Config(), state, RING["train"], RING["test"], folder, **{"num_samples": 50, **options}
        )
    return json.loads((folder / "report.json").read_text())["metrics"]


def fail(*_, **__):
    raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating")


def test_a_part_that_fails_is_left_out_and_the_rest_is_kept(run, monkeypatch):
    said = r"^left out: evaluation of test examples: RESOURCE_EXHAUSTED: Out of memory allocating"
    assert "frechet" in evaluated(run, said, evaluate=fail)
    own = {"own": {"value": 1.0, "unit": "", "n": 1, "floor": None, "published": None}}
    monkeypatch.setattr(
        line, "sample", lambda key, state, n, cfg: np.full((n, 2), np.nan, np.float32) + state.params
    )
    assert evaluated(run, "^left out: distances of samples: .*not finite", evaluate=lambda *_: own) == own
    monkeypatch.setenv("JAXGEN_TRACEBACK", "1")
    with pytest.raises(RuntimeError, match="Out of memory"):
        evaluated(run, "nothing", evaluate=fail)


def test_a_page_that_cannot_be_drawn_leaves_the_numbers(run, monkeypatch):
    monkeypatch.setattr(plot, "save_panels", fail)
    assert "frechet" in evaluated(run, "^left out: report.html: RESOURCE_EXHAUSTED")


@pytest.mark.parametrize(
    ("n", "left", "kept"),
    [
        (3, "kernel, precision", {"frechet"}),
        (5, "precision", {"frechet", "kernel"}),
        (6, "", {"recall", "kernel"}),
    ],
)
def test_metrics_that_need_more_examples_are_left_out(n, left, kept):
    train, test = (data.take(each, each.split, slice(n)) for each in RING.values())
    x = np.asarray(RING["train"][20 : 20 + n]["x"])
    assert samples.check(train, test, 100).startswith(f"{n} examples are too few for {left}" if left else "")
    measure = lambda: samples.measure(lambda key, count: x[:count], train, test, 100)
    if left:
        with pytest.warns(UserWarning, match=f"^{n} examples are too few for {left}.*: left out$"):
            found = measure()
    else:
        found = measure()
    assert kept <= set(found)
    assert "nearer_to_training" in found
    assert ("recall" in found) == (n >= 6)


def test_extractors_are_checked_beforehand():
    digits = data.load("digits"), data.load("digits", "test")
    check(*digits, 100, None, None)
    check(*digits, 100, "pca8", None)
    check(*digits, 0, "nonsense", None)
    for name, words in (("small-cn", "did you mean"), ("small-cnn-mnist", "28x28 pixels, not 8x8")):
        with pytest.raises(ValueError, match=words):
            check(*digits, 100, name, None)
    few = dataclasses.replace(digits[1], arrays={name: x[:4] for name, x in digits[1].arrays.items()})
    with pytest.warns(UserWarning, match="4 examples are too few for precision"):
        check(digits[0], few, 100, None, None)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--extractor", "small-cn"), "small-cn"),
        (("--extractor", "small-cnn-mnist"), "28x28"),
        (("--results", "file/results"), "results cannot be written to"),
    ],
)
def test_what_evaluation_cannot_have_is_refused_before_training(
    tmp_path, monkeypatch, capsys, options, words
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train", "vae", "--run-dir", "run", *options])
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert words in lines[0]
    assert not (tmp_path / "run").exists()
