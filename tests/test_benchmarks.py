"""The benchmarks run; their numbers are for quiet machines and are committed beside them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.alone import environment

COMPILE_FAST = {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
BENCHMARKS = Path(__file__).parent.parent / "experiments" / "benchmarks"


@pytest.mark.slow
def test_train_step(tmp_path):
    output = tmp_path / "train_step.json"
    command = [sys.executable, BENCHMARKS / "train_step.py", "--smoke", "--no-torch", "--no-startup"]
    command += ["--systems", "mlp_vae", "dcgan", "--output", output]
    process = subprocess.run(command, env=environment(**COMPILE_FAST), capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    systems = json.loads(output.read_text())["systems"]
    for name in ("mlp_vae", "dcgan"):
        times = systems[name]["step_seconds"]
        assert 0 < times["jaxgen loop"]["min"] <= times["jaxgen loop"]["median"]
        assert systems[name]["ratios"]["jaxgen step"]["median"] > 0
    assert set(systems["mlp_vae"]["fit_steps_per_second"]) == {"1", "100"}


@pytest.mark.slow
def test_gan_step(tmp_path):
    output = tmp_path / "gan_step.json"
    command = [sys.executable, BENCHMARKS / "gan_step.py", "--smoke", "--no-torch", "--output", output]
    process = subprocess.run(command, env=environment(**COMPILE_FAST), capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    systems = json.loads(output.read_text())["systems"]
    assert set(systems) == {"dcgan", "wgan_gp"}
    for system in systems.values():
        times = system["step_seconds"]["jaxgen loop"]
        assert 0 < times["min"] <= times["median"] < times["first_step_seconds"]


@pytest.mark.slow
def test_gibbs(tmp_path):
    output = tmp_path / "gibbs.json"
    command = [sys.executable, BENCHMARKS / "gibbs.py", "--num", "2", "--rounds", "1", "--threads", "1"]
    ours = ["jaxgen", "jaxgen, float64"]
    theirs = ["scikit-learn", "scikit-learn, float64"]
    command += ["--contenders", *ours, *theirs, "--output", output]
    process = subprocess.run(command, env=environment(**COMPILE_FAST), capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    measured = json.loads(output.read_text())["threads"]["1"]
    for name, difference in measured["difference"].items():
        assert difference < (1e-12 if "float64" in name else 1e-5)
    for what in ("sweep of 100", "sweep of 10", "step"):
        assert measured["rows"][what]["scikit-learn"]["ratio"]["median"] > 0
    assert set(measured["rows"]["step"]) == {*ours, *theirs}
