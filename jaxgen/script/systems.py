"""Systems, of which an experiment script consists.

A script is a dict of `System` and a call of `main`:

    SYSTEMS = {"vae": System(family=vae, config=vae.Config(), paper="Kingma & Welling 2014")}
    if __name__ == "__main__":
        main(SYSTEMS)
"""

import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import jax

import jaxgen
from jaxgen import data, fields, types, values
from jaxgen.fields import NonNegativeInt, PositiveInt
from jaxgen.run import directory, shard
from jaxgen.script import command_line, loggers, result
from jaxgen.script.evaluation import Evaluate, check, evaluate_run

Before = Callable[[Any, Any, "Options"], tuple[Any, Any]]
"""(train, cfg, options) -> the config, and the State from which training is initialised, see `jaxgen.fit`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The options of a run that do not belong to the model."""

    data: str = "digits"
    """Data set: a built-in or TensorFlow Datasets name, folder:PATH, npz:PATH or idx:PATH."""
    data_dir: Path | None = None
    """Folder of prepared data sets; by default TFDS_DATA_DIR, then ~/tensorflow_datasets."""
    image_size: PositiveInt | None = None
    """Resize and crop images to this height and width."""
    steps: PositiveInt | None = 2000
    """Training steps, including those before a resumption; None for one pass over the training data, without
    the examples that do not fill a batch."""
    batch_size: PositiveInt = 128
    """Examples per step, over all devices."""
    seed: int = 0
    """Seed of the initial weights, the order of the data and every step."""
    run_dir: Path | None = None
    """Directory of the run; an existing one is resumed. By default a new one under runs/."""
    start: Path | None = None
    """Directory of a run from whose parameters training is initialised. It must have the same networks, while
    other options may differ. For models of codes it may also be the run of a first stage."""
    results: Path | None = None
    """Also write the result, <system>-<data>/result.json with its pictures, into this folder."""
    fsdp: PositiveInt = 1
    """Devices over which large arrays of the state are split; the batch is split over all devices."""
    chunk: PositiveInt | None = None
    """Steps per dispatch; by default as many as take half a second."""
    log_every: PositiveInt = 100
    """Steps between log lines."""
    sample_every: NonNegativeInt = 1000
    """Steps between pictures of samples; 0 for none."""
    save_every: NonNegativeInt = 1000
    """Steps between checkpoints; 0 for one at the end."""
    validate_every: NonNegativeInt = 0
    """Steps between measurements of the loss on a fixed tenth of the training split, which is not trained on
    then; 0 for none. The best checkpoint is kept beside the last ones: `jaxgen sample RUN --step best`."""
    patience: PositiveInt | None = None
    """Stop after so many validations in turn that bring no lower loss, and evaluate the checkpoint with the
    lowest one; None trains for all steps and evaluates the last."""
    evaluate: Literal["none", "quick", "full"] = "full"
    """How much is measured after training: all of it, or that of few examples and samples, or nothing."""
    num_samples: NonNegativeInt = 10_000
    """Largest number of samples that are compared with the test split; 0 for none."""
    extractor: str | None = None
    """Feature extractor for distances of pictures; by default the best one that needs no download."""
    logger: Literal["none", "tensorboard", "wandb"] = "none"
    """Where log lines go in addition to metrics.jsonl; needs the extra `logs`."""


def _unchanged(dataset: Any) -> Any:
    return dataset


@dataclasses.dataclass(frozen=True, kw_only=True)
class System:
    """One subcommand of a script: a family, its config, and how it is evaluated."""

    family: Any
    config: Any
    paper: str
    """Authors and year, for the result."""
    options: Options = Options()
    transform: Callable[[Any], Any] = _unchanged
    """What is done to every split of the data before anything else, such as `data.transforms.binarised`."""
    evaluate: Evaluate | None = None
    """The evaluation; by default every likelihood of the family. Samples are always measured in addition."""
    before: Before | None = None
    """Trains what this model builds on, such as a first stage. It also interprets `--start` then."""
    published: Mapping[tuple[str, str], tuple[float, str]] = dataclasses.field(default_factory=dict)
    """(data, metric) -> the published figure and its source."""


def main(
    systems: Mapping[str, System], arguments: list[str] | None = None, module: str | None = None
) -> None:
    """The command line of a script: one subcommand per system.

    Args:
        systems: by the name of the subcommand.
        arguments: those of the command line; by default those of this program.
        module: where the systems can be imported from as SYSTEMS; by default the running script.
    """
    import tyro

    arguments = sys.argv[1:] if arguments is None else list(arguments)

    def subcommand(name: str, system: System) -> Callable[..., Callable[[], Any]]:
        of_run: Any = command_line.option_type(system.options, "run")
        of_model: Any = command_line.option_type(system.config, "model")
        run, model = of_run(), of_model()

        def command(
            options: Annotated[of_run, tyro.conf.arg(name="")] = run,
            config: Annotated[of_model, tyro.conf.arg(name="")] = model,
        ) -> Callable[[], Any]:
            chosen = command_line.chosen(options), command_line.chosen(config)
            return functools.partial(run_system, name, system, *chosen, module)

        command.__doc__ = f"{system.paper}\n\n{command_line.choices(system.config)}"
        return command

    def summary(system: System) -> Callable[[], None]:
        def command() -> None: ...

        command.__doc__ = system.paper
        return command

    with command_line.one_line_errors():
        if arguments and not arguments[0].startswith("-"):
            command_line.check_word("system", arguments[0], systems)
        program = Path(sys.argv[0]).name if module is None else "jaxgen train"
        if arguments and arguments[0] in systems:  # the others need no parsers, which take seconds
            name, system = arguments[0], systems[arguments[0]]
            cfg, rest = command_line.choose(system.config, arguments[1:])
            chosen = subcommand(name, dataclasses.replace(system, config=cfg))
            with command_line.one_line_mistakes():
                run = tyro.cli(chosen, prog=f"{program} {name}", args=rest)
            run()
            return
        with command_line.one_line_mistakes():
            tyro.extras.subcommand_cli_from_dict(
                {name: summary(system) for name, system in systems.items()}, prog=program, args=arguments
            )


def run_system(name: str, system: System, options: Options, cfg: Any, module: str | None = None) -> Any:
    """Train and evaluate one system as its script does, and return the State."""
    fields.check(options, named=False)  # before a first stage is trained
    if options.patience is not None and not options.validate_every:
        raise ValueError("--patience is that of validation: give --validate-every too")
    shard.initialize()
    run_dir = options.run_dir or _new_run_dir(name, options)
    options = dataclasses.replace(options, run_dir=run_dir)
    load = lambda split: system.transform(
        data.load(options.data, split, options.data_dir, options.image_size)
    )
    train, test = load("train-validation" if options.validate_every else "train"), load("test")
    validation = load("validation") if options.validate_every else None
    if options.evaluate != "none":
        check(train, test, options.num_samples, options.extractor, options.results)
    cfg = types.from_data(system.family, train, cfg)
    start = None
    module = module or main_module()
    about: dict[str, Any] = {"system": f"{module}:{name}", "image_size": options.image_size}
    if options.start is not None:
        about["start_minutes"] = result.training_minutes(directory.resolve(options.start))
    if system.before is not None:
        cfg, start = system.before(train, cfg, options)
    elif options.start is not None:
        start = jaxgen.load(options.start)[2]
    steps = max(1, len(train) // options.batch_size) if options.steps is None else options.steps
    state = jaxgen.fit(
        system.family,
        cfg,
        train,
        steps=steps,
        batch_size=options.batch_size,
        key=jax.random.key(options.seed),
        run_dir=run_dir,
        start=start,
        mesh=shard.mesh(fsdp=options.fsdp),
        chunk=options.chunk,
        log_every=options.log_every,
        sample_every=options.sample_every,
        save_every=options.save_every,
        validation=validation,
        validate_every=options.validate_every or 1000,
        patience=options.patience,
        on_log=loggers.on_log(options.logger, run_dir, system.family, cfg)
        if jax.process_index() == 0
        else None,
        facts=about,
    )
    if options.evaluate == "none":
        return state
    evaluate_run(
        system.family,
        cfg,
        state,
        train,
        test,
        run_dir,
        seed=options.seed,
        num_samples=options.num_samples,
        extractor=options.extractor,
        evaluate=system.evaluate,
        quick=options.evaluate == "quick",
    )
    if options.results and options.evaluate == "full" and jax.process_index() == 0:
        folder, published = options.results, system.published
        result.write(folder, run_dir, name, system.paper, options.data, options.seed, published)
    return state


def main_module() -> str:
    """The name under which the running script can be imported: "experiments.gan" of experiments/gan.py."""
    running = sys.modules["__main__"]
    if running.__spec__ is not None:
        return running.__spec__.name
    path = Path(getattr(running, "__file__", None) or "interactive").resolve()
    names = [path.stem]
    while (path.parent / "__init__.py").exists():
        path = path.parent
        names.insert(0, path.name)
    return ".".join(names)


def of_run(run_dir: Path) -> System | None:
    """The System that a run's config.json names; None if it names none, or one that cannot be imported."""
    name = directory.read_description(run_dir).get("about", {}).get("system")
    if not name:
        return None
    module, _, system = name.partition(":")
    try:
        found = getattr(values.imported(module), "SYSTEMS", {}).get(system)
    except ValueError:
        return None
    return found if isinstance(found, System) else None


def _new_run_dir(name: str, options: Options) -> Path:
    if jax.process_count() > 1:
        raise ValueError("several processes need one --run-dir, given to all of them")
    return Path("runs") / f"{name}-{result.file_name(options.data)}-{time.strftime('%Y%m%d-%H%M%S')}"
