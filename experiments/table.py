"""Write README's table of results from experiments/results/*.json, and from nothing else.

python experiments/table.py
"""

import json
from pathlib import Path

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- results: written by experiments/table.py -->\n", "<!-- end of results -->\n"


def render(folder: Path = ROOT / "experiments" / "results") -> str:
    """The table in Markdown: a row for each metric of each result."""
    lines = ["| System | Data | Metric | Reached | Published | Minutes | Command |", "|" + "---|" * 7]
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text())
        system = f"[{result['system']}](experiments/results/{path.stem}.png) ({result['paper']})"
        minutes = f"{result['minutes']:g} ({result['tier']})"
        for name, metric in result["metrics"].items():
            reached = f"**{metric['value']:.4g}** {metric['unit']}"
            if metric["floor"] is not None:
                reached += f" (floor {metric['floor']:.4g})"
            published = "–"
            if metric["published"] is not None:
                published = f"{metric['published']:g} ({metric['published_source']})"
            cells = (system, result["data"], f"{name}, n = {metric['n']}", reached, published, minutes)
            lines.append("| " + " | ".join((*cells, f"`{result['command']}`")) + " |")
            system = minutes = ""
    return "\n".join(lines) + "\n"


def splice(readme: str, table: str) -> str:
    """README's text with its table replaced."""
    before, rest = readme.split(BEGIN)
    return before + BEGIN + table + END + rest.split(END)[1]


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(splice(path.read_text(), render()))
