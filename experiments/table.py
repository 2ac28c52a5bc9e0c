"""Write the tables of results from experiments/results/*/result.json, and from nothing else.

python experiments/table.py

experiments/results/README.md has every number; README.md has ten of them, and the picture of samples on top.
"""

import json
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "experiments" / "results"
BEGIN, END = "<!-- results: written by experiments/table.py -->\n", "<!-- end of results -->\n"

FAMILIES = {
    "classical": "Classical models",
    "autoencoder": "Autoencoders",
    "gan": "Adversarial networks",
    "diffusion": "Diffusion and flow matching",
}
"""Headings of the scripts; a script that is not named here has its own name."""

INTRODUCTION = """# Results

Written by `python experiments/table.py`. Every number is of held-out data unless its row says otherwise. The
floor is what as many real training examples get in the place of samples, drawn once. Minutes are those of
training, those of the run it started from included, on the device that `result.json` names. A command with
`--start` or with the directory of a run needs that run first. A published figure stands in a row only where
data, split and protocol are the same."""

HEADLINES = (
    ("gmm-digits", "nll"),
    ("lda-digits", "completion_perplexity"),
    ("burda_vae-mnist", "nll_iwae_5000"),
    ("iwae-mnist", "nll_iwae_5000"),
    ("conv_vae-fashion_mnist", "frechet"),
    ("dcgan-fashion_mnist", "frechet"),
    ("sngan-fashion_mnist", "frechet"),
    ("stacked_dcgan-stacked_mnist", "modes"),
    ("ddpm_fashion_mnist-fashion_mnist", "frechet"),
    ("rectified_flow-digits", "frechet"),
)
"""The result and the metric, by the beginning of its name, of the rows in README."""

WALL = (
    "ddpm_fashion_mnist-fashion_mnist",
    "conditional_vae-mnist",
    "dcgan-fashion_mnist",
    "stacked_dcgan-stacked_mnist",
    "sngan-fashion_mnist",
    "iwae-mnist",
)
"""Results whose samples are in the picture."""
WALL_HEIGHT = 240


def load(folder: Path = RESULTS) -> dict[str, dict]:
    """Every result by the name of its folder."""
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(folder.glob("*/result.json"))}


def script_of(result: dict) -> str:
    """The name of the script that a result's command runs."""
    return Path(result["command"].split()[1]).stem


def render_all(results: dict[str, dict]) -> str:
    """The text of experiments/results/README.md."""
    studies = sorted(path.parent.name for path in RESULTS.glob("*/README.md"))
    links = ", ".join(f"[{name}]({name}/README.md)" for name in studies)
    lines = [*INTRODUCTION.splitlines(), "", f"Studies of several runs: {links}."]
    scripts = dict.fromkeys([*FAMILIES, *sorted({script_of(result) for result in results.values()})])
    for script in scripts:
        own = {name: result for name, result in results.items() if script_of(result) == script}
        if not own:
            continue
        lines += ["", f"## {FAMILIES.get(script, script)}", ""]
        lines += ["| Run | Paper | Parameters | Seed | Minutes | Command |", "|" + "---|" * 6]
        for name, result in own.items():
            minutes = f"{result['minutes']:g} ({result['tier']})"
            cells = (_run(name), result["paper"], f"{result['num_params']:,}", result["seed"], minutes)
            lines.append(_row(*cells, f"`{result['command']}`"))
        lines += [
            "",
            "| Run | Measure | Value | Unit | n | Floor | Published |",
            "|---|---|---|---|---|---|---|",
        ]
        for name, result in own.items():
            for metric, found in result["metrics"].items():
                cells = (
                    name,
                    metric,
                    f"{found['value']:.4g}",
                    found["unit"],
                    found["n"],
                    _number(found["floor"]),
                )
                lines.append(_row(*cells, _published(found)))
    return "\n".join(lines) + "\n"


def render_headlines(results: dict[str, dict]) -> str:
    """README's table: one number of each of ten results."""
    lines = [
        "| System | Data | Measure | Value | Floor | Published | Minutes |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, metric in HEADLINES:
        result = results[name]
        key = next(key for key in result["metrics"] if key.split(" (")[0] == metric)
        found = result["metrics"][key]
        run = f"[{result['system']}](experiments/results/{name})"
        value = f"**{found['value']:.4g}** {found['unit']}".rstrip()
        minutes = f"{result['minutes']:g}"
        cells = (run, result["data"], f"{key}, n = {found['n']}", value, _number(found["floor"]))
        lines.append(_row(*cells, _published(found), minutes))
    return "\n".join(lines) + "\n"


def _run(name):
    picture = (RESULTS / name / "samples.png").exists()
    return f"[{name}]({name}/samples.png)" if picture else name


def _row(*cells):
    return "| " + " | ".join(map(str, cells)) + " |"


def _number(value):
    return "–" if value is None else f"{value:.4g}"


def _published(metric):
    if metric["published"] is None:
        return "–"
    return f"{metric['published']:g} ({metric['published_source']})"


def splice(readme: str, table: str) -> str:
    """README's text with its table replaced."""
    before, rest = readme.split(BEGIN)
    return before + BEGIN + table + END + rest.split(END)[1]


def save_wall(path: Path) -> None:
    """One picture of the samples of `WALL`, side by side: of each the upper left corner, at one height."""
    from PIL import Image

    tiles = []
    for name in WALL:
        image = Image.open(RESULTS / name / "samples.png").convert("RGB")
        side = min(image.size) // 2 + 1
        corner = image.crop((0, 0, side, side))
        tiles.append(corner.resize((WALL_HEIGHT, WALL_HEIGHT), Image.Resampling.LANCZOS))
    wall = Image.new("RGB", (len(tiles) * WALL_HEIGHT, WALL_HEIGHT))
    for index, tile in enumerate(tiles):
        wall.paste(tile, (index * WALL_HEIGHT, 0))
    wall.save(path, optimize=True)


if __name__ == "__main__":
    found = load()
    (RESULTS / "README.md").write_text(render_all(found))
    (ROOT / "README.md").write_text(splice((ROOT / "README.md").read_text(), render_headlines(found)))
    save_wall(RESULTS / "wall.png")
