"""What every experiment script shares: options, the config shaped to the data, fit, evaluation, report,
result.

A script is a dict of `System` and a call of `main`:

    SYSTEMS = {"vae": System(family=vae, config=vae.Config(), paper="Kingma & Welling 2014")}
    if __name__ == "__main__":
        main(SYSTEMS)
"""

import contextlib
import dataclasses
import functools
import os
import sys
import time
import typing
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import jax

import jaxgen
from jaxgen import data, runs, shard
from jaxgen.evaluation import likelihood, report, result, samples

Evaluate = Callable[..., dict[str, report.Metric]]
"""(key, state, train, test, cfg, folder) -> metrics on held-out data; may leave pictures in the folder."""

Before = Callable[[Any, Any, "Options"], tuple[Any, Any]]
"""(train, cfg, options) -> the config and a State from whose parameters to start, see `jaxgen.fit`."""

FROM_THE_DATA = ("shape", "num_classes")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How to run: everything that is not the model."""

    data: str = "digits"
    """Data set: a built-in or TensorFlow Datasets name, folder:PATH, npz:PATH or idx:PATH."""
    data_dir: Path | None = None
    """Where prepared data sets lie; by default TFDS_DATA_DIR, then ~/tensorflow_datasets."""
    image_size: int | None = None
    """Resize and crop images to this height and width."""
    steps: int = 2000
    """Training steps, those of a resumed run included."""
    batch_size: int = 128
    """Examples a step, over all devices."""
    seed: int = 0
    """Seed of the initial weights, the order of the data and every step."""
    run_dir: Path | None = None
    """Directory of the run; an existing one is resumed. By default a new one under runs/."""
    start: Path | None = None
    """Directory of a run of the same networks, also under other options, from whose parameters to start; for
    latent diffusion also of a first stage."""
    results: Path | None = None
    """Also write the result as <system>-<data>.json with its picture into this folder."""
    fsdp: int = 1
    """Devices over which the state itself is split; the rest split only the batch."""
    chunk: int | None = None
    """Steps a dispatch; by default as many as take half a second."""
    log_every: int = 100
    """Steps between log lines."""
    sample_every: int = 1000
    """Steps between pictures of samples; 0 for none."""
    save_every: int = 1000
    """Steps between checkpoints; 0 for one at the end."""
    num_samples: int = 10_000
    """Samples measured against the test split, if it has as many; 0 for none."""
    extractor: str | None = None
    """Features those of pictures are measured by; by default the best for the data that needs nothing."""
    logger: Literal["none", "tensorboard", "wandb"] = "none"
    """Where log lines go besides metrics.jsonl; needs the extra `logs`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class System:
    """One subcommand of a script: a family, its preset, and how it is judged."""

    family: Any
    config: Any
    paper: str
    """Authors and year, for the result."""
    options: Options = Options()
    evaluate: Evaluate | None = None
    """By default every likelihood the family has. Samples are measured besides."""
    before: Before | None = None
    """What has to be trained first, such as a model this one builds on; `--start` is then for it to read."""
    published: Mapping[tuple[str, str], tuple[float, str]] = dataclasses.field(default_factory=dict)
    """(data, metric) -> the published figure and where it stands."""


def main(systems: Mapping[str, System], arguments: list[str] | None = None) -> None:
    """The command line of a script: one subcommand a system."""
    import tyro

    def subcommand(name: str, system: System) -> Callable[..., None]:
        config_type = _command_line_type(system.config)
        default = config_type()

        def command(
            options: Options = system.options,
            config: config_type = default,  # type: ignore[valid-type]
        ) -> None:
            run_system(name, system, options, _plain(config, type(system.config)))

        command.__doc__ = f"{name}: {system.paper}"
        return command

    with one_line_errors():
        tyro.extras.subcommand_cli_from_dict(
            {name: subcommand(name, system) for name, system in systems.items()},
            args=arguments,
            config=(tyro.conf.OmitArgPrefixes,),
        )


def script(main: Callable[[Any], None], options: type) -> None:
    """Run a script that is no `System`: its `main`, with the options that the command line gives."""
    import tyro

    with one_line_errors():
        main(tyro.cli(options))


@contextlib.contextmanager
def one_line_errors():
    """Bad input ends the program with one line and exit status 2; JAXGEN_TRACEBACK=1 shows where."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
            yield
    except KeyboardInterrupt as interrupt:
        print(f"\n{interrupt or 'interrupted'}", file=sys.stderr)
        raise SystemExit(130) from None
    except (data.DataError, runs.RunError, ValueError, FloatingPointError) as error:
        if os.environ.get("JAXGEN_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def run_system(name: str, system: System, options: Options, cfg: Any) -> Any:
    """Train and evaluate one system as its script does; returns the State."""
    run_dir = options.run_dir or _new_run_dir(name, options)
    options = dataclasses.replace(options, run_dir=run_dir)
    state = run(system.family, cfg, options, system.evaluate, system.before)
    if options.results and jax.process_index() == 0:
        folder, published = options.results, system.published
        result.write(folder, run_dir, name, system.paper, options.data, options.seed, published)
    return state


def run(
    family: Any,
    cfg: Any,
    options: Options,
    evaluate: Evaluate | None = None,
    before: Before | None = None,
) -> Any:
    """Load the data, shape `cfg` to it, fit, evaluate on the test split, report; returns the State."""
    shard.initialize()
    train, test = (
        data.load(options.data, s, options.data_dir, options.image_size) for s in ("train", "test")
    )
    cfg = shape_to(train, cfg)
    run_dir = options.run_dir or _new_run_dir(family.__name__.rsplit(".", 1)[-1], options)
    start = None
    if before is not None:
        cfg, start = before(train, cfg, dataclasses.replace(options, run_dir=run_dir))
    elif options.start is not None:
        start = jaxgen.load(options.start)[2]
    state = jaxgen.fit(
        family,
        cfg,
        train,
        steps=options.steps,
        batch_size=options.batch_size,
        key=jax.random.key(options.seed),
        run_dir=run_dir,
        start=start,
        mesh=shard.mesh(fsdp=options.fsdp),
        chunk=options.chunk,
        log_every=options.log_every,
        sample_every=options.sample_every,
        save_every=options.save_every,
        on_log=_on_log(options, run_dir, family, cfg) if jax.process_index() == 0 else None,
    )
    evaluate_run(
        family,
        cfg,
        state,
        train,
        test,
        run_dir,
        seed=options.seed,
        num_samples=options.num_samples,
        extractor=options.extractor,
        evaluate=evaluate,
    )
    return state


def evaluate_run(
    family: Any,
    cfg: Any,
    state: Any,
    train: Any,
    test: Any,
    run_dir: Path,
    *,
    seed: int = 0,
    num_samples: int = 10_000,
    extractor: str | None = None,
    evaluate: Evaluate | None = None,
) -> dict[str, report.Metric]:
    """Evaluate on held-out data; writes report.json and report.html, prints the numbers."""
    run_dir = runs.resolve(run_dir)
    key = jax.random.fold_in(jax.random.key(seed), 1)
    samples_key = jax.random.fold_in(jax.random.key(seed), 2)
    since = time.perf_counter()
    if evaluate is None:
        metrics = likelihood.evaluate(key, family, state, test, cfg)
    else:
        metrics = evaluate(key, state, train, test, cfg, run_dir)
    if num_samples:
        metrics |= samples.evaluate(
            samples_key, family, state, train, test, cfg, num_samples, extractor, run_dir
        )
    if jax.process_index() == 0:
        facts = {"test_split": test.split, "evaluation_minutes": round((time.perf_counter() - since) / 60, 2)}
        page = report.write(run_dir, metrics, num_params=num_params(state), **facts)
        print("\n".join(report.lines(metrics)))
        print(f"pictures in {run_dir}, all on one page in {page.name}")
    return metrics


def shape_to(dataset: Any, cfg: Any) -> Any:
    """`cfg` with the data set's shape and number of classes, where it has such fields."""
    names = {field.name for field in dataclasses.fields(cfg)}
    facts = {"shape": dataset.shape, "num_classes": dataset.num_classes}
    return dataclasses.replace(cfg, **{name: facts[name] for name in FROM_THE_DATA if name in names})


def num_params(state: Any) -> int:
    """Trained numbers in a State: the leaves of its `params`."""
    return sum(leaf.size for leaf in jax.tree.leaves(getattr(state, "params", ())))


def _new_run_dir(name: str, options: Options) -> Path:
    if jax.process_count() > 1:
        raise ValueError("several processes need one --run-dir, given to all of them")
    return Path("runs") / f"{name}-{result.file_name(options.data)}-{time.strftime('%Y%m%d-%H%M%S')}"


def _on_log(
    options: Options, run_dir: Path, family: Any, cfg: Any
) -> Callable[[int, dict[str, float]], None]:
    """Prints a line where there is no progress bar, and passes the numbers to the logger asked for.

    A family's `warnings(metrics)`, if it has that, go to standard error, each when it first appears.
    """
    senders: list[Callable[[int, dict[str, float]], Any]] = []
    if not sys.stderr.isatty():
        senders.append(lambda step, metrics: print(f"step {step}:", _words(metrics), flush=True))
    if hasattr(family, "warnings"):
        senders.append(functools.partial(_warn, family.warnings, set()))
    try:
        if options.logger == "tensorboard":
            import tensorboardX

            senders.append(functools.partial(_to_tensorboard, tensorboardX.SummaryWriter(str(run_dir))))
        elif options.logger == "wandb":
            import wandb

            wandb.init(project="jaxgen", dir=run_dir, config=runs.describe(family, cfg))
            senders.append(lambda step, metrics: wandb.log(metrics, step=step))
    except ImportError:
        raise ValueError(f'--logger {options.logger} needs pip install "jaxgen[logs]"') from None

    def log(step: int, metrics: dict[str, float]) -> None:
        for send in senders:
            send(step, metrics)

    return log


def _warn(warnings_of: Any, standing: set[str], step: int, metrics: dict[str, float]) -> None:
    lines = warnings_of(metrics)
    for line in lines:
        if line not in standing:
            print(f"warning: step {step}: {line}", file=sys.stderr, flush=True)
    standing.clear()
    standing.update(lines)


def _to_tensorboard(writer: Any, step: int, metrics: dict[str, float]) -> None:
    for name, value in metrics.items():
        writer.add_scalar(name, value, step)
    writer.flush()


def _words(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())


def _command_line_type(config: Any) -> type:
    """The config's class, its values as defaults, without what is no option of a command line."""
    import tyro

    hints = typing.get_type_hints(type(config))
    fields = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        shown = field.name not in FROM_THE_DATA and _is_plain(hints[field.name])
        hint = hints[field.name] if shown else Annotated[hints[field.name], tyro.conf.Suppress]
        fields.append((field.name, hint, dataclasses.field(default=value)))
    bases = (type(config),)
    return dataclasses.make_dataclass(type(config).__name__, fields, bases=bases, frozen=True, kw_only=True)


def _is_plain(hint: Any) -> bool:
    """Whether a type can be written on a command line: numbers, words and tuples of them."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return True
    if arguments:
        return all(_is_plain(argument) for argument in arguments if argument is not ...)
    return hint in (bool, int, float, str, type(None))


def _plain(config: Any, config_type: type) -> Any:
    return config_type(**{field.name: getattr(config, field.name) for field in dataclasses.fields(config)})
