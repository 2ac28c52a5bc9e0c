"""The files that an evaluation writes: report.json, and report.html, a single file that needs no network."""

import base64
import html
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxgen import plot
from jaxgen.evaluation.metric import Metric, floor_text, value_text
from jaxgen.run import directory
from jaxgen.script import result


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

    Raises RunError if the directory holds no run, or cannot be written to.
    """
    run_dir = directory.resolve(run_dir)
    description = directory.read_description(run_dir)
    directory.check_writable(run_dir)
    rows = directory.read_metrics(run_dir)
    if rows:
        caption = "Means of the training steps since the last point."
        plot.save_curves(run_dir / "curves.png", rows, ("steps_per_second",), caption)
    report = json.loads((run_dir / "report.json").read_text()) if (run_dir / "report.json").exists() else {}
    samples = sorted((run_dir / "samples").glob("*.png"), key=lambda path: int(path.stem))[-1:]
    others = [path for path in sorted(run_dir.glob("*.png")) if path.stem != "curves"]
    title = f"{_name(description)} on {description.get('data', 'data')}"
    facts = {**description, **description.get("about", {}), **report}
    facts = {k: v for k, v in facts.items() if k not in ("config", "metrics", "custom", "about")}
    sections = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p>{html.escape(_summary(run_dir, description, report))}</p>",
        *_numbers(report.get("metrics", {})),
        *_gallery("Pictures", [*samples, *others]),
        *_gallery("Training", [run_dir / "curves.png"] if rows else []),
        _folded("Configuration", description["config"]),
        _folded("Run", facts),
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


def _name(description: Mapping[str, Any]) -> str:
    """The system of a run, or its family where it has none."""
    system = description.get("about", {}).get("system", "").rpartition(":")[2]
    return system or description["family"].rpartition(".")[2]


def _summary(run_dir: Path, description: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    """What was run, in one sentence."""
    rows = directory.read_metrics(run_dir)
    said = [description["family"].removeprefix("jaxgen.")]
    if rows:
        said[0] += f" after {rows[-1]['step']:,.0f} steps, {result.training_minutes(run_dir):.2g} minutes"
    if "num_examples" in description:
        batch, whole, split = (description[name] for name in ("batch_size", "num_examples", "split"))
        said.append(f"{batch:,} examples a step of the {whole:,} of the {split} split")
    if report.get("num_params"):
        said.append(f"{report['num_params']:,} parameters")
    if "test_split" in report:
        said.append(f"measured on the {report['test_split']} split after step {report['step']:,}")
    return "; ".join(said) + "."


class _Row(NamedTuple):
    """A metric as a row of a table: what it is of, and how it is called there."""

    name: str
    extractor: str
    way: str  # of drawing the samples, if there are several
    metric: Metric


def _rows(metrics: Mapping[str, Metric]) -> list[_Row]:
    """Metrics by their names, such as "frechet (small-cnn-digits-e260e3da), ddim 20"."""
    found = []
    for full, metric in metrics.items():
        name, extractor, way = re.fullmatch(r"([^(,]*?)(?: \((.*?)\))?(?:, (.*))?", full).groups("")  # type: ignore[union-attr]
        found.append(_Row(name.replace("_", " "), extractor, way, metric))
    return found


def _numbers(metrics: Mapping[str, Metric]) -> list[str]:
    """The headline numbers, and tables of all."""
    if not metrics:
        return ["<p>Not evaluated yet: <code>jaxgen evaluate</code> does it.</p>"]
    rows = _rows(metrics)
    single = [row for row in rows if not row.way]
    first = [row for row in single if not row.extractor][:2]
    headlines = first + [row for row in single if row.name in HEADLINES and row not in first]
    tables: dict[tuple[str, str], list[_Row]] = {}
    for row in rows:
        tables.setdefault((row.extractor, row.name if row.way else ""), []).append(row)
    sections = [f"<div class=headlines>{''.join(map(_headline, headlines))}</div>"]
    for (extractor, several), table in tables.items():
        if extractor or several:
            what = f"The {several} of several ways to draw samples" if several else "Samples"
            sections.append(f"<h3>{html.escape(what + (f', by {extractor}' if extractor else ''))}</h3>")
        sections.append(_metric_table(table))
    if any(row.metric["floor"] is not None for row in rows):
        sections.append(f"<p class=note>{FLOOR}</p>")
    return ["<h2>Numbers</h2>", *sections]


def _headline(row: _Row) -> str:
    floor = floor_text(row.metric)
    details = [row.metric["unit"], f"floor {floor}" if floor else "", f"n = {row.metric['n']:,}"]
    lines = "<br>".join(html.escape(line) for line in details if line)
    return f"<div>{html.escape(row.name)}<b>{value_text(row.metric)}</b><small>{lines}</small></div>"


def _metric_table(rows: Sequence[_Row]) -> str:
    columns: dict[str, Callable[[_Row], str]] = {
        "value": lambda row: value_text(row.metric),
        "floor": lambda row: floor_text(row.metric).replace(" ", "\N{NO-BREAK SPACE}"),
        "unit": lambda row: row.metric["unit"],
        "published": lambda row: _published(row.metric),
        "n": lambda row: f"{row.metric['n']:,}",
    }
    shown = {name: text for name, text in columns.items() if any(map(text, rows))}
    head = "".join(f"<th>{name}</th>" for name in ("", *shown))
    body = ""
    for row in rows:
        cells = "".join(f"<td>{html.escape(text(row))}</td>" for text in shown.values())
        body += f"<tr><th>{html.escape(row.way or row.name)}</th>{cells}</tr>"
    return f"<div class=scroll><table class=metrics><tr>{head}</tr>{body}</table></div>"


def _published(metric: Metric) -> str:
    if metric["published"] is None:
        return ""
    return f"{metric['published']:.4g} ({metric['published_source']})"


def _folded(heading: str, values: Mapping[str, Any]) -> str:
    rows = "".join(f"<tr><th>{html.escape(k)}</th><td>{_text(v)}</td></tr>" for k, v in values.items())
    return f"<details><summary>{heading}</summary><div class=scroll><table>{rows}</table></div></details>"


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, dict):
        part = value.get("is", "").rpartition(":")[2]
        lines = [f"{html.escape(k)} {_text(v)}" for k, v in value.items() if k != "is"]
        return "<br>".join([f"<b>{html.escape(part)}</b>"] * bool(part) + lines)
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return html.escape(f"{value:.5g}" if isinstance(value, float) else str(value))


def _gallery(heading: str, paths: Sequence[Path]) -> list[str]:
    """Pictures side by side, as many as fit."""
    if not paths:
        return []
    return [f"<h2>{heading}</h2>", f"<div class=gallery>{''.join(map(_figure, paths))}</div>"]


def _figure(path: Path) -> str:
    from PIL import Image

    with Image.open(path) as picture:
        wide = picture.width > max(WIDE, picture.height) or path.stem == "curves"
    fallback = f"Samples after step {path.stem}." if path.stem.isdigit() else f"{path.stem.capitalize()}."
    caption = html.escape(plot.caption_of(path) or fallback.replace("_", " "))
    encoded = base64.b64encode(path.read_bytes()).decode()
    image = f'<img alt="{caption}" src="data:image/png;base64,{encoded}">'
    kind = " class=wide" if wide else ""
    return f"<figure{kind}><div class=scroll>{image}</div><figcaption>{caption}</figcaption></figure>"


HEADLINES = ("frechet", "recall", "coverage", "modes", "high quality", "label accuracy")
"""What stands on top of a report in addition to the first two metrics: what says most together."""

FLOOR = (
    "The floor is what real data get in the place of samples, with its spread over several draws of them."
    " Differences of the size of that spread rank nothing."
)

WIDE = 700
"""Pictures of more pixels than this, and wider than high, have a row for themselves."""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>
<style>
:root {{ color-scheme: light dark;
--paper: #fff; --ink: #1a1a1a; --soft: #666; --line: #ddd; --tile: #f3f4f6; }}
@media screen and (prefers-color-scheme: dark) {{
:root {{ --paper: #15171a; --ink: #e6e6e6; --soft: #a0a4aa; --line: #3a3d42; --tile: #22252a; }}
img {{ filter: brightness(.85); }}
}}
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem;
background: var(--paper); color: var(--ink); }}
h1, h2, h3 {{ line-height: 1.2; margin: 2rem 0 .75rem; }}
h1 {{ margin-top: 0; }}
h3 {{ font-size: 1rem; }}
.headlines {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: .75rem; }}
.headlines div {{ background: var(--tile); border-radius: .5rem; padding: .75rem 1rem; }}
.headlines b {{ display: block; font-size: 1.75rem; line-height: 1.3; }}
small, figcaption, .note {{ color: var(--soft); font-size: .875rem; line-height: 1.4; }}
.headlines small {{ display: block; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; margin: .75rem 0; }}
th, td {{ border-bottom: 1px solid var(--line); padding: .25rem 1rem .25rem 0; text-align: left;
vertical-align: top; }}
th {{ font-weight: 600; }}
.metrics td {{ font-variant-numeric: tabular-nums; }}
.gallery {{ display: grid; grid-auto-flow: dense; gap: 1.5rem;
grid-template-columns: repeat(auto-fit, minmax(min(100%, 28rem), 1fr)); }}
figure {{ margin: 0; break-inside: avoid; }}
.wide {{ grid-column: 1 / -1; }}
img {{ display: block; max-width: 100%; }}
details {{ border-top: 1px solid var(--line); margin-top: 2rem; padding-top: .75rem; }}
summary {{ cursor: pointer; font-weight: 600; }}
@media (max-width: 40rem) {{ .wide img {{ max-width: none; }} }}
@media print {{
body {{ font-size: 10pt; margin: 0; max-width: none; }}
h2, h3 {{ break-after: avoid; }}
.gallery {{ grid-template-columns: 1fr 1fr; }}
.scroll {{ overflow: visible; }}
}}
</style></head><body>
{body}
</body></html>
"""
