"""Write the tables of results from experiments/results/*/result.json, and that of families from the package.

python experiments/table.py

experiments/results/README.md has every number. README.md has ten of them, every family, and the picture of
samples on top.
"""

import json
import re
from pathlib import Path

from jaxgen import types
from jaxgen.evaluation.metric import floor_text, value_text

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "experiments" / "results"
BEGIN, END = "<!-- {}: written by experiments/table.py -->\n", "<!-- end of {} -->\n"
"""Lines of README around the table of that name."""

FAMILIES = {
    "classical": "Classical models",
    "autoencoder": "Autoencoders",
    "gan": "Adversarial networks",
    "diffusion": "Diffusion and flow matching",
    "flow": "Normalizing flows",
    "autoregressive": "Autoregressive models",
    "boltzmann": "Boltzmann machines",
    "energy": "Energies and scores",
    "belief": "Belief networks",
}
"""Headings of the scripts; a script that is not named here has its own name."""

INTRODUCTION = """# Results

This file is written by `python experiments/table.py`. Every number is measured on held-out data unless its
row says otherwise. The floor is the same measure of as many real training examples in place of samples: the
mean and the standard deviation over ten draws of them, which the model has no part in. Differences of the
size of this spread rank nothing, and digits below it are not shown. Distances of one number of samples cannot
be compared with distances of another. Precision and density say nothing alone: weak noise and copies raise
them, so they are read beside the Frechet distance, recall and coverage.

The rows `nearer_to_training` with a floor of 0.5 compare with as many training examples as there are samples,
so that copies of other training examples go unnoticed: copies of the training digits would score 0.62. New
results compare with all training examples, and their floor is what the test examples themselves score.

Minutes are minutes of training on the device that `result.json` names, including those of the run it was
started from. A command with `--start`, or with the directory of a run, needs that run first.
[published](published/README.md) says which of the published figures were obtained under another protocol, and
which settings were chosen after a look at the test split.

## Studies of several runs
"""

HEADLINES = (
    ("gmm-digits", "nll"),
    ("burda_vae-mnist", "nll_iwae_5000"),
    ("iwae-mnist", "nll_iwae_5000"),
    ("gated_pixelcnn-mnist", "nll"),
    ("rbm-mnist", "nll_ais"),
    ("dbn-mnist", "negative_elbo_ais"),
    ("realnvp_images-fashion_mnist", "nll_bits_per_dim"),
    ("dcgan-fashion_mnist", "frechet"),
    ("ddpm_fashion_mnist-fashion_mnist", "frechet"),
    ("stacked_dcgan-stacked_mnist", "modes"),
)
"""The result and the metric, by the beginning of its name, of the rows in README."""

NOTES = {
    "burda_vae-mnist": "length of training chosen on the test split",
    "iwae-mnist": "started from burda_vae, whose length was chosen on the test split",
    "ddpm_fashion_mnist-fashion_mnist": "config changed after a test result",
    "rbm-mnist": "length of training changed after a test result",
    "dbn-mnist": "lengths and start of the top machine changed after test results",
    "dbm-mnist": "length and learning rate of the joint training changed after a test result",
    "nvil-mnist": "length of training changed after a test result",
    "ebm-moons": "changed after a test result, then chosen on training examples kept apart",
    **dict.fromkeys(
        ("nice-moons", "nice-ring", "nice-rings", "nice-checkerboard"),
        "initial weights changed after a test result on the ring",
    ),
}
"""What the rows of a result say of its protocol."""

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
    lines = [*INTRODUCTION.splitlines(), *(_study(path) for path in sorted(RESULTS.glob("*/README.md")))]
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
                floor = floor_text(found) or "–"
                cells = (name + _note(name), metric, value_text(found), found["unit"], found["n"], floor)
                lines.append(_row(*cells, _published(found)))
    return "\n".join(lines) + "\n"


def render_headlines(results: dict[str, dict]) -> str:
    """README's table of results: one number of each of ten."""
    lines = [
        "| System | Data | Measure | Value | Floor | Published | Minutes |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, metric in HEADLINES:
        result = results[name]
        key = next(key for key in result["metrics"] if key == metric or _is_default(key, metric))
        found = result["metrics"][key]
        run = f"[{result['system']}](experiments/results/{name}){_note(name)}"
        value = f"**{value_text(found)}** {found['unit']}".rstrip()
        minutes = f"{result['minutes']:g}"
        cells = (run, result["data"], f"{key}, n = {found['n']}", value, floor_text(found) or "–")
        lines.append(_row(*cells, _published(found), minutes))
    return "\n".join(lines) + "\n"


def _note(name):
    return f" ({NOTES[name]})" if name in NOTES else ""


def _study(path):
    """A link to the page of a study, with its heading, which is the question."""
    name, question = path.parent.name, path.read_text().splitlines()[0].removeprefix("# ")
    return f"- [{name}]({name}/README.md): {question}"


def _is_default(key, metric):
    """Whether the key is of the metric under the system's own sampler, as in "frechet (extractor)"."""
    return key.startswith(f"{metric} (") and key.endswith(")")


def render_families() -> str:
    """README's table of families, a row a kind: each file, and what its docstring names first."""
    rows = {kind: [] for kind in FAMILIES}
    for name, family in types.families().items():
        _, kind, module = name.split(".")
        idea = (family.__doc__ or "").splitlines()[0].removesuffix(".")
        named = re.sub(r" \([^)]*\)", "", idea)  # without citations
        rows.setdefault(kind, []).append(f"[`{module}`](jaxgen/{kind}/{module}.py) {named}")
    kinds = (_row(f"`jaxgen.{kind}`", "; ".join(models)) for kind, models in rows.items() if models)
    return "\n".join(["| Kind | Models |", "|---|---|", *kinds]) + "\n"


def _run(name):
    picture = (RESULTS / name / "samples.png").exists()
    return f"[{name}]({name}/samples.png)" if picture else name


def _row(*cells):
    return "| " + " | ".join(map(str, cells)) + " |"


def _published(metric):
    if metric["published"] is None:
        return "–"
    return f"{metric['published']:g} ({metric['published_source']})"


def render_readme(readme: str, results: dict[str, dict]) -> str:
    """README's text with its tables replaced."""
    return splice(splice(readme, "families", render_families()), "results", render_headlines(results))


def splice(readme: str, name: str, table: str) -> str:
    """README's text with the table of this name replaced."""
    begin, end = BEGIN.format(name), END.format(name)
    before, rest = readme.split(begin)
    return before + begin + table + end + rest.split(end)[1]


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
    (ROOT / "README.md").write_text(render_readme((ROOT / "README.md").read_text(), found))
    save_wall(RESULTS / "wall.png")
