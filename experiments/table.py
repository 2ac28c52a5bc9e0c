"""Write README's table of results from experiments/results/*.json, and from nothing else.

python experiments/table.py
"""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- results: written by experiments/table.py -->\n", "<!-- end of results -->\n"


LEFT_OUT = ("kernel", "density", "coverage", "nearer_to_training", "classifier_score")
"""Measures of samples that only the linked JSON has."""


def render(folder: Path = ROOT / "experiments" / "results") -> str:
    """The table in Markdown: a row for each result, a line in it for each metric."""
    lines = ["| System | Data | Metric | Reached | Published | Minutes | Command |", "|" + "---|" * 7]
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text())
        metrics = {_short(name): metric for name, metric in result["metrics"].items() if _shown(name, metric)}
        cells = (
            f"{result['system']} ([picture](experiments/results/{path.stem}.png), "
            f"[all numbers](experiments/results/{path.name})): {result['paper']}",
            result["data"],
            "<br>".join(f"{name}, n = {metric['n']}" for name, metric in metrics.items()),
            "<br>".join(map(_reached, metrics.values())),
            "<br>".join(map(_published, metrics.values())),
            f"{result['minutes']:g} ({result['tier']})",
            f"`{result['command']}`",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _shown(name, metric):
    return metric["published"] is not None or not name.startswith(LEFT_OUT)


def _short(name):
    """A metric's name without the version of its feature extractor."""
    return re.sub(r"\((small-cnn)[^,)]*\)", r"(\1)", name)


def _reached(metric):
    floor = "" if metric["floor"] is None else f" (floor {metric['floor']:.4g})"
    return f"**{metric['value']:.4g}** {metric['unit']}".rstrip() + floor


def _published(metric):
    if metric["published"] is None:
        return "–"
    return f"{metric['published']:g} ({metric['published_source']})"


def splice(readme: str, table: str) -> str:
    """README's text with its table replaced."""
    before, rest = readme.split(BEGIN)
    return before + BEGIN + table + END + rest.split(END)[1]


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(splice(path.read_text(), render()))
