"""The systems of the scripts run from data to result; what they reach is measured elsewhere."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import pytest

from jaxgen import experiment

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
SMALL = {"steps": 3, "log_every": 1, "sample_every": 3, "save_every": 0, "num_samples": 100}


def script(name):
    spec = importlib.util.spec_from_file_location(name, EXPERIMENTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SYSTEMS = {
    f"{name}-{system}": found
    for name in ("autoencoder", "classical", "gan")
    for system, found in script(name).SYSTEMS.items()
    if name != "gan" or system in ("nsgan", "projection_gan", "ring_pacgan")
}
"""All but most presets of the one adversarial step, which its own tests cover."""


@pytest.mark.slow
@pytest.mark.parametrize("name", SYSTEMS)
def test_system_runs(name, tmp_path):
    system = SYSTEMS[name]
    given = system.options
    data = given.data if given.data in ("ring", "weather") else "digits"
    options = dataclasses.replace(
        given, data=data, run_dir=tmp_path / "run", results=tmp_path / "results", **SMALL
    )
    experiment.run_system(name, system, options, system.config)
    (written,) = (tmp_path / "results").glob("*.json")
    result = json.loads(written.read_text())
    assert result["metrics"]
    assert result["num_params"] > 0
    assert written.with_suffix(".png").exists()
    assert (tmp_path / "run" / "report.html").exists()
