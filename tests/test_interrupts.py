"""Ctrl-C at any moment of a command, and a full disk: one line, and nothing that was saved is lost."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxgen import interrupts
from jaxgen.run import checkpoint, directory

ROOT = Path(__file__).parent.parent

WAITING = """
import hashlib
from jaxgen.script import one_line_errors
with one_line_errors():
    print("begun", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # as deaf as a compiler
"""

FULL = """
import resource, sys, time
from pathlib import Path
import jax, jaxgen
from jaxgen import data, script, shard
from jaxgen.run import checkpoint
from tests import line
def fill(step, metrics, state):
    if step == 20:
        while not checkpoint.steps(Path(sys.argv[1])):
            time.sleep(0.01)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
with script.one_line_errors():
    jaxgen.fit(line, line.Config(), data.load("ring"), steps=30, batch_size=8, key=jax.random.key(0),
               mesh=shard.mesh(1), run_dir=sys.argv[1], sample_every=0, save_every=10, log_every=20,
               on_log=fill)
"""


HEARING = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)  # which is ignored by what was started in the background
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def interrupted(command, path=()):
    """The exit status and standard error of a command that is sent SIGINT once it prints, and the seconds."""
    places = os.pathsep.join([*map(str, path), str(ROOT)])
    process = subprocess.Popen(
        [sys.executable, "-c", HEARING, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": places},
    )
    process.stdout.readline()
    since = time.monotonic()
    process.send_signal(signal.SIGINT)
    stderr = process.communicate(timeout=60)[1]
    return process.returncode, stderr, time.monotonic() - since


@pytest.mark.parametrize("command", ["-m jaxgen list", "experiments/flow.py maf"])
def test_a_command_that_still_imports_ends_with_one_line(tmp_path, command):
    (tmp_path / "jax.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    assert interrupted(command.split(), [tmp_path])[:2] == (130, "\ninterrupted\n")


def test_every_script_is_a_command_before_it_imports_jax():
    paths = [*(ROOT / "experiments").glob("*.py"), *(ROOT / "experiments/studies").glob("*.py")]
    scripts = [path for path in paths if path.stem not in ("__init__", "table")]  # which trains nothing
    assert len(scripts) > 20
    for path in scripts:
        lines = path.read_text().splitlines()
        first = next(line for line in lines if line.startswith(("import ", "from ")))
        assert first.startswith("import jaxgen.interrupts"), path.name


def test_a_command_that_waits_for_a_compiler_ends_at_once():
    status, stderr, seconds = interrupted(["-c", WAITING])
    assert (status, stderr) == (130, "\ninterrupted\n")
    assert seconds < 30


def test_only_commands_are_ended_while_they_import():
    assert interrupts.is_command(["python", "-m", "jaxgen", "list"])
    assert interrupts.is_command(["python", "/usr/bin/jaxgen", "list"])
    assert interrupts.is_command(["python", str(ROOT / "experiments/studies/modes.py")])
    assert not interrupts.is_command(["python", "/home/me/experiments/modes.py"])
    assert not interrupts.is_command(["python", "-m", "pytest", "jaxgen"])
    assert not interrupts.is_command(["python", "mine.py", "jaxgen"])
    assert not interrupts.is_command(["python"])


@pytest.fixture
def hearing():
    """Ctrl-C raises KeyboardInterrupt, which it does not in what was started in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("hearing")
def test_ctrl_c_is_noted_once_there_is_something_to_save(capfd):
    with directory.StopRequest() as stop:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert stop.signal is None
    with directory.StopRequest() as stop:
        assert not directory.saves_on_interrupt()
        stop.saves = True
        assert directory.saves_on_interrupt()
        signal.raise_signal(signal.SIGINT)
        assert stop.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert not directory.saves_on_interrupt()
    assert capfd.readouterr().err.count("stopping after this step") == 1


def test_a_full_disk_is_one_line_and_keeps_what_was_saved(tmp_path):
    pytest.importorskip("resource")
    command = [sys.executable, "-c", FULL, str(tmp_path / "run")]
    # The cache of compiled programs would warn of files that are too large, too.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_ENABLE_COMPILATION_CACHE": "false"}
    found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert found.stderr.splitlines() == [
        f"error: a checkpoint of {tmp_path / 'run'} could not be written: File too large; it has [10]"
    ]
    assert found.returncode == 2
    assert checkpoint.steps(tmp_path / "run") == [10]
