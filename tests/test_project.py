"""The project's own papers: README, results, notebooks and CI say the same thing."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jupytext
import pytest

import jaxgen
from experiments import table
from jaxgen import types
from jaxgen.evaluation.metric import Metric
from jaxgen.script.result import file_name
from tests.alone import environment

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
RESULTS = sorted((ROOT / "experiments" / "results").glob("*/result.json"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))


def test_the_tables_are_those_of_the_results():
    found = table.load()
    assert set(table.NOTES) <= set(found)
    for name, note in table.NOTES.items():
        assert f"{name} ({note})" in table.render_all(found)
    assert table.render_readme(README, found) == README, "run python experiments/table.py"
    assert (table.RESULTS / "README.md").read_text() == table.render_all(found), (
        "run python experiments/table.py"
    )


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.parent.name)
def test_results_are_complete(path):
    result = json.loads(path.read_text())
    assert path.parent.name == f"{result['system']}-{file_name(result['data'])}"
    assert result["tier"] in ("laptop", "accelerator")
    assert path.with_name("samples.png").exists()
    assert "--run-dir runs/" in result["command"]
    for metric in result["metrics"].values():
        assert set(metric) == set(Metric.__annotations__)
        assert metric["floor_spread"] is None or metric["floor"] is not None
        assert (metric["published"] is None) == (metric["published_source"] is None)


def test_readme_lists_every_family_beside_its_kind():
    rows = table.render_families()
    assert table.splice(README, "families", rows) == README
    listed = []
    for row in rows.splitlines()[2:]:
        kind, models = (cell.strip() for cell in row.strip("|").split("|"))
        for module, path, idea in re.findall(r"\[`(\w+)`\]\(([\w/.]+)\) ([^;]+)", models):
            assert path == f"{kind.strip('`').replace('.', '/')}/{module}.py"
            assert (ROOT / path).exists()
            assert idea
            listed.append(f"{kind.strip('`')}.{module}")
    assert sorted(listed) == sorted(types.families())


def test_ci_runs_the_commands_of_readme():
    commands = re.findall(r"^(?:python3 -m venv .*|\.venv/bin/pip install .*)$", README, re.MULTILINE)
    assert len(commands) == 2
    script = (ROOT / ".ci" / "run").read_text()
    assert all(command in script.splitlines() for command in commands)
    assert "bash .ci/run" in (ROOT / ".github" / "workflows" / "ci.yml").read_text()


def test_the_library_example_of_readme_runs(tmp_path):
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
    assert len(code.strip().splitlines()) <= 15
    code = code.replace("steps=5000", "steps=10")
    subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )


def test_versions_agree():
    assert f'version = "{jaxgen.__version__}"' in (ROOT / "pyproject.toml").read_text()
    assert f"version: {jaxgen.__version__}" in (ROOT / "CITATION.cff").read_text()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_paired(path):
    script, notebook = (jupytext.read(path.with_suffix(suffix)) for suffix in (".py", ".ipynb"))
    assert [(cell.cell_type, cell.source) for cell in script.cells] == [
        (cell.cell_type, cell.source) for cell in notebook.cells
    ]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path):
    compile_fast = "--xla_backend_optimization_level=1"
    variables = environment(JAXGEN_SMOKE="1", PYTHONPATH=str(ROOT), MPLBACKEND="agg", XLA_FLAGS=compile_fast)
    result = subprocess.run(
        [sys.executable, "-W", "error", str(path)],
        cwd=tmp_path,
        env=variables,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
