"""The `jaxgen` command: what there is, and what can be done with a run."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import jax
import tyro

import jaxgen
from jaxgen import data, plot, script, types
from jaxgen.run import checkpoint, directory
from jaxgen.script import command_line, drawing, report, systems

Run = Annotated[Path, tyro.conf.Positional]
Step = int | Literal["best"] | None


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
    step: Step = None,
    label: tuple[int, ...] | None = None,
    guidance: float | None = None,
    sampler: str | None = None,
    steps: int | None = None,
    truncation: float | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
) -> None:
    """Draw samples from a run and write them as a picture, a picture each, or arrays.

    The options from --label on are those of the family's `sample`, which need not have all of them.

    Args:
        run: Directory of the run.
        n: How many.
        out: A .png for one picture, an .npz for arrays, or a folder for a PNG each; by default samples.png in
            the run directory.
        seed: Seed of the draws.
        step: Which checkpoint, or best for that with the lowest validation loss; the latest by default.
        label: Classes, one for all or several that are taken in turn.
        guidance: Weight of the label in a conditional diffusion model.
        sampler: Sampler of a diffusion model, such as ddim, with its default numbers.
        steps: Steps of the sampler or of the chains.
        truncation: Largest magnitude of each coordinate of a code.
        temperature: Below 1 for more typical samples.
        top_k: Draw each symbol of so many most probable ones.
        top_p: Draw each symbol of the most probable ones that have this probability together.
    """
    _check_least("-n", n)
    family, cfg, state = checkpoint.load(run, step)
    out = out or directory.resolve(run) / "samples.png"
    drawing.check_out(out, cfg.shape)
    given = {"label": label, "guidance": guidance, "sampler": sampler, "steps": steps}
    given |= {"truncation": truncation, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    chosen = drawing.options(family, cfg, given)
    drawing.write(out, drawing.samples(jax.random.key(seed), family, state, n, cfg, **chosen))
    print(f"{n} samples in {out}")


def reconstruct(
    run: Run,
    files: Annotated[tuple[Path, ...], tyro.conf.Positional],
    out: Path | None = None,
    step: Step = None,
    label: tuple[int, ...] | None = None,
) -> None:
    """Reconstruct pictures by a run, and write each one over its reconstruction.

    Args:
        run: Directory of the run.
        files: Pictures, which are resized and cropped to the size of the data.
        out: The PNG to write; by default reconstructed.png in the run directory.
        step: Which checkpoint, or best for that with the lowest validation loss; the latest by default.
        label: Classes of the pictures, for a conditional model.
    """
    family, cfg, state = checkpoint.load(run, step)
    if not isinstance(family, types.HasReconstruct):
        raise ValueError(f"{family.__name__.removeprefix('jaxgen.')} does not reconstruct")
    if not files:
        raise ValueError("name the pictures to reconstruct: jaxgen reconstruct RUN FILES")
    out = out or directory.resolve(run) / "reconstructed.png"
    if out.suffix != ".png":
        raise ValueError(f"--out is a .png, not {out.name!r}")
    chosen = drawing.options(family, cfg, {"label": label}, "reconstruct")
    x = drawing.read_pictures(files, cfg.shape)
    again = drawing.reconstructions(family, state, x, cfg, **chosen)
    out.parent.mkdir(parents=True, exist_ok=True)
    plot.save_pairs(out, x, again)
    print(f"{len(x)} pictures, each over its reconstruction, in {out}")


def interpolate(
    run: Run,
    n: Annotated[int, tyro.conf.arg(aliases=("-n",))] = 8,
    points: int = 10,
    out: Path | None = None,
    seed: int = 0,
    step: Step = None,
    label: tuple[int, ...] | None = None,
    arc: bool = False,
) -> None:
    """Go from one sample of a run to another through their codes, and write a row of pictures for each path.

    Args:
        run: Directory of the run.
        n: Paths.
        points: Points of each, its ends included.
        out: A .png for one picture, an .npz for arrays, or a folder for a PNG each; by default
            interpolation.png in the run directory.
        seed: Seed of the ends.
        step: Which checkpoint, or best for that with the lowest validation loss; the latest by default.
        label: Classes, one for all or several that are taken in turn.
        arc: Go along arcs and not lines, for codes that are normal noise, as those of flows and GANs are.
    """
    _check_least("-n", n)
    _check_least("--points", points, 2)
    family, cfg, state = checkpoint.load(run, step)
    out = out or directory.resolve(run) / "interpolation.png"
    drawing.check_out(out, cfg.shape)
    chosen = drawing.options(family, cfg, {"label": label})
    x = drawing.between(jax.random.key(seed), family, state, n, points, cfg, arc, **chosen)
    drawing.write(out, x.reshape(n * points, *x.shape[2:]), columns=points)
    print(f"{n} paths of {points} points in {out}")


def evaluate(
    run: Run,
    data_dir: Path | None = None,
    seed: int = 0,
    step: Step = None,
    num_samples: int = 10_000,
    extractor: str | None = None,
    quick: bool = False,
) -> None:
    """Measure a run on the test split of its data as its script does, and write report.json and report.html.

    Args:
        run: Directory of the run.
        data_dir: Where prepared data sets lie.
        seed: Seed of the evaluation.
        step: Which checkpoint, or best for that with the lowest validation loss; the latest by default.
        num_samples: Samples measured against the test split, if it has as many; 0 for none.
        extractor: Features those of pictures are measured by; by default the best that needs nothing.
        quick: Look at few test examples and samples only.
    """
    _check_least("--num-samples", num_samples, 0)
    family, cfg, state = checkpoint.load(run, step)
    folder = directory.resolve(run)
    description, system = directory.read_description(folder), systems.of_run(folder)
    name, about = description["data"], description.get("about", {})
    splits = "train-validation" if description.get("split") == "train-validation" else "train", "test"
    train, test = (data.load(name, split, data_dir, about.get("image_size")) for split in splits)
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


def _check_least(option: str, number: int, least: int = 1) -> None:
    if number < least:
        raise ValueError(f"{option} must be at least {least}, not {number}")


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
        "reconstruct": reconstruct,
        "interpolate": interpolate,
        "evaluate": evaluate,
        "report": show_report,
    }
    with script.one_line_errors():
        if arguments and not arguments[0].startswith("-"):
            command_line.check_word("command", arguments[0], commands)
        with command_line.one_line_mistakes():
            delayed = {name: command_line.delayed(command) for name, command in commands.items()}
            command = tyro.extras.subcommand_cli_from_dict(delayed, prog="jaxgen", args=arguments)
        command()
