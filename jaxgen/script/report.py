"""The files that an evaluation writes: report.json, and report.html, a single file that needs no network."""

import base64
import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxgen import plot
from jaxgen.evaluation.metric import Metric, floor_text, value_text
from jaxgen.run import directory


def kept(run_dir: str | Path, step: int) -> dict[str, Metric]:
    """The metrics of an existing report of the checkpoint `step`.

    A report of another step is renamed to report-<step>.json.
    """
    path = directory.resolve(run_dir) / "report.json"
    if not path.exists():
        return {}
    found = json.loads(path.read_text())
    if found.get("step") == step:
        return found["metrics"]
    path.rename(path.with_name(f"report-{found.get('step', 'earlier')}.json"))
    return {}


def write(run_dir: str | Path, metrics: Mapping[str, Metric], **facts: Any) -> Path:
    """Write report.json with `facts` and `metrics`, and report.html; returns the page's path."""
    run_dir = directory.resolve(run_dir)
    directory.write_text(run_dir / "report.json", json.dumps({**facts, "metrics": metrics}, indent=2) + "\n")
    return write_page(run_dir)


def write_page(run_dir: str | Path) -> Path:
    """Write report.html of a run from the files in its directory; returns the page's path.

    Raises RunError if the directory holds no run.
    """
    run_dir = directory.resolve(run_dir)
    description = directory.read_description(run_dir)
    rows = directory.read_metrics(run_dir)
    if rows:
        plot.save_curves(run_dir / "curves.png", rows, skip=("steps_per_second",))
    report = json.loads((run_dir / "report.json").read_text()) if (run_dir / "report.json").exists() else {}
    samples = sorted((run_dir / "samples").glob("*.png"), key=lambda path: int(path.stem))
    pictures = samples[-1:] + sorted(run_dir.glob("*.png"))
    title = f"{description['family'].removeprefix('jaxgen.')} on {description.get('data', 'data')}"
    facts = {**description, **description.get("about", {}), **report}
    facts = {k: v for k, v in facts.items() if k not in ("config", "metrics", "custom", "about")}
    sections = [
        f"<h1>{html.escape(title)}</h1>",
        _metric_table(report.get("metrics", {})),
        *(_figure(path, run_dir) for path in pictures),
        "<h2>Configuration</h2>",
        _table(description["config"]),
        "<h2>Run</h2>",
        _table(facts),
    ]
    page = run_dir / "report.html"
    directory.write_text(page, PAGE.format(title=html.escape(title), body="\n".join(sections)))
    return page


def lines(metrics: Mapping[str, Metric]) -> list[str]:
    """The metrics as aligned lines of text."""
    width = max((len(name) for name in metrics), default=0)
    return [f"{name:<{width}}  {_reading(metric)}" for name, metric in metrics.items()]


def _reading(metric: Metric) -> str:
    text = f"{value_text(metric)} {metric['unit']}".rstrip() + f" (n = {metric['n']})"
    text += f", floor {floor_text(metric)}" if metric["floor"] is not None else ""
    return text + (f", published {metric['published']:.4g}" if metric["published"] is not None else "")


def _metric_table(metrics: Mapping[str, Metric]) -> str:
    if not metrics:
        return "<p>Not evaluated yet: <code>jaxgen evaluate</code> does it.</p>"
    columns = ("value", "unit", "n", "floor", "published", "published_source")
    head = "".join(f"<th>{name.replace('_', ' ')}</th>" for name in ("metric", *columns))
    body = ""
    for name, values in metrics.items():
        shown = {**values, "value": value_text(values), "floor": floor_text(values) or None}
        cells = "".join(f"<td>{_text(shown.get(column))}</td>" for column in columns)
        body += f"<tr><th>{html.escape(name)}</th>{cells}</tr>"
    return f"<table><tr>{head}</tr>{body}</table>"


def _table(values: Mapping[str, Any]) -> str:
    rows = "".join(f"<tr><th>{html.escape(k)}</th><td>{_text(v)}</td></tr>" for k, v in values.items())
    return f"<table>{rows}</table>"


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, dict):
        return "<br>".join(f"{html.escape(k)} {_text(v)}" for k, v in value.items())
    return html.escape(f"{value:.5g}" if isinstance(value, float) else str(value))


def _figure(path: Path, run_dir: Path) -> str:
    encoded = base64.b64encode(path.read_bytes()).decode()
    name = html.escape(str(path.relative_to(run_dir).with_suffix("")))
    image = f'<img alt="{name}" src="data:image/png;base64,{encoded}">'
    caption = CAPTIONS.get(path.stem, name)
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


CAPTIONS = {
    "neighbours": "neighbours: samples, each over the training example nearest to it in features",
    "reconstructions": "reconstructions: test examples, each over its reconstruction",
}

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; }}
table {{ border-collapse: collapse; margin: 1rem 0; }}
th, td {{ border-bottom: 1px solid #ddd; padding: .25rem .75rem; text-align: left; vertical-align: top; }}
td {{ overflow-wrap: break-word; }}
figure {{ margin: 1.5rem 0; }}
img {{ max-width: 100%; }}
figcaption {{ color: #666; }}
</style></head><body>
{body}
</body></html>
"""
