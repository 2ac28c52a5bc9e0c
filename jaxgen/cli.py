"""The `jaxgen` command: what there is, and what can be done with a run."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import jax
import tyro

import jaxgen
from jaxgen import data, plot, script, types
from jaxgen.run import checkpoint, directory
from jaxgen.script import report, systems

Run = Annotated[Path, tyro.conf.Positional]


def list_families() -> None:
    """List the families of the package and what each can do."""
    for name, family in types.families().items():
        can = types.capabilities(family)
        summary = (family.__doc__ or "").splitlines()[0]
        print(f"{name.removeprefix('jaxgen.'):24} {summary}\n{'':24} sample {' '.join(can)}")


def sample(
    run: Run,
    n: Annotated[int, tyro.conf.arg(aliases=("-n",))] = 64,
    out: Path | None = None,
    seed: int = 0,
    step: int | None = None,
) -> None:
    """Draw samples from a run and write them as a picture.

    Args:
        run: Directory of the run.
        n: How many.
        out: The PNG to write; by default samples.png in the run directory.
        seed: Seed of the draws.
        step: Which checkpoint; the latest by default.
    """
    if n < 1:
        raise ValueError(f"-n must be at least 1, not {n}")
    family, cfg, state = checkpoint.load(run, step)
    out = out or directory.resolve(run) / "samples.png"
    out.parent.mkdir(parents=True, exist_ok=True)
    draw = jax.jit(lambda key, state: family.sample(key, state, n, cfg))
    plot.save_samples(out, draw(jax.random.key(seed), state))
    print(f"{n} samples in {out}")


def evaluate(
    run: Run,
    data_dir: Path | None = None,
    seed: int = 0,
    step: int | None = None,
    num_samples: int = 10_000,
    extractor: str | None = None,
    quick: bool = False,
) -> None:
    """Measure a run on the test split of its data as its script does, and write report.json and report.html.

    Args:
        run: Directory of the run.
        data_dir: Where prepared data sets lie.
        seed: Seed of the evaluation.
        step: Which checkpoint; the latest by default.
        num_samples: Samples measured against the test split, if it has as many; 0 for none.
        extractor: Features those of pictures are measured by; by default the best that needs nothing.
        quick: Look at few test examples and samples only.
    """
    family, cfg, state = checkpoint.load(run, step)
    folder = directory.resolve(run)
    description, system = directory.read_description(folder), systems.of_run(folder)
    name, about = description["data"], description.get("about", {})
    train, test = (data.load(name, split, data_dir, about.get("image_size")) for split in ("train", "test"))
    if system is None and "system" in about:
        print(
            f"{about['system']} cannot be imported: this is the evaluation that any run gets", file=sys.stderr
        )
    if system is not None:
        train, test = system.transform(train), system.transform(test)
    script.evaluate_run(
        family,
        cfg,
        state,
        train,
        test,
        run,
        seed=seed,
        num_samples=num_samples,
        extractor=extractor,
        evaluate=None if system is None else system.evaluate,
        quick=quick,
    )


def show_report(run: Run) -> None:
    """Write a run's report.html anew from what is in its directory, and print its numbers.

    Args:
        run: Directory of the run.
    """
    page = report.write_page(run)
    written = page.with_name("report.json")
    if written.exists():
        print("\n".join(report.lines(json.loads(written.read_text())["metrics"])))
    print(page)


def train() -> None:
    """Train a family or a preset: `jaxgen train vae --data digits`; `jaxgen train --help` lists them."""


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the `jaxgen` command."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments == ["--version"]:
        print(f"jaxgen {jaxgen.__version__}")
        return
    if arguments[:1] == ["train"]:
        from jaxgen.script import presets  # imports every family

        systems.main(presets.SYSTEMS, arguments[1:], presets.__name__)
        return
    commands: dict[str, Callable[..., None]] = {
        "list": list_families,
        "train": train,
        "sample": sample,
        "evaluate": evaluate,
        "report": show_report,
    }
    with script.one_line_errors():
        tyro.extras.subcommand_cli_from_dict(commands, prog="jaxgen", args=arguments)
