"""Distil a trained EDM into a consistency model, which needs one call a sample.

python experiments/diffusion.py edm --run-dir runs/teacher
python experiments/studies/distill.py runs/teacher --steps 3000
"""

import jaxgen.interrupts  # first, see there

import dataclasses
from pathlib import Path

import jax
import tyro

import jaxgen
from jaxgen import data, script
from jaxgen.diffusion import consistency, curricula, edm
from jaxgen.evaluation.comparison import compare
from jaxgen.fields import PositiveFloat, PositiveInt
from jaxgen.run import directory
from jaxgen.script.evaluation import sampler
from jaxgen.values import Adam

CALLS = (1, 2, 4, 8)
"""Network calls of the student's samples that are measured."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """A student of a run's network, on the run's data."""

    teacher: tyro.conf.Positional[Path]
    """Directory of a run of `edm`."""
    run_dir: Path | None = None
    """Directory of the student's run; resumed if it exists; by default the teacher's with -distilled."""
    data_dir: Path | None = None
    """Where prepared data sets lie."""
    steps: PositiveInt = 3000
    """Training steps."""
    batch_size: PositiveInt = 128
    """Examples a step, over all devices."""
    intervals: PositiveInt = 17
    """Intervals between noise levels, each a step of the teacher's flow."""
    learning_rate: PositiveFloat = 4e-4
    """Adam's step size."""
    seed: int = 0
    """Seed of the order of the data and every step."""
    num_samples: PositiveInt = 10_000
    """Samples measured against the test split, if it has as many."""


def main(options: Options) -> None:
    """Train the student, and measure it and its teacher."""
    family, teacher_cfg, teacher = jaxgen.load(options.teacher)
    if family is not edm:
        raise ValueError(f"{options.teacher} is a run of {family.__name__}: give one of jaxgen.diffusion.edm")
    source = directory.resolve(options.teacher)
    name = directory.read_description(source)["data"]
    size = teacher_cfg.shape[0] if len(teacher_cfg.shape) == 3 else None
    train, test = (data.load(name, split, options.data_dir, size) for split in ("train", "test"))
    cfg = consistency.Config(
        curriculum=curricula.Fixed(options.intervals),
        distribution=curricula.Uniform(),
        weights="uniform",
        optimizer=Adam(options.learning_rate, gradient_clip=1.0),
    )
    key = jax.random.key(options.seed)
    cfg, start = consistency.distil(key, teacher, teacher_cfg, cfg)
    run_dir = options.run_dir or source.with_name(f"{source.name}-distilled")
    state = jaxgen.fit(
        consistency,
        cfg,
        train,
        steps=options.steps,
        batch_size=options.batch_size,
        key=key,
        run_dir=run_dir,
        start=start,
        on_log=lambda step, metrics, state: print(f"step {step}: loss {metrics['loss']:.4g}", flush=True),
    )

    def evaluate(key, state, train, test, cfg, folder):
        """Distances of the teacher's samples and, with their picture, of the student's in few calls."""
        if len(cfg.shape) != 3:
            return {}
        draws = {"teacher, 35 calls": sampler(edm, teacher, teacher_cfg, steps=18)}
        draws |= {f"{calls} calls": sampler(consistency, state, cfg, steps=calls) for calls in CALLS}
        picture = folder / "samplers.png"
        return compare(draws, train, test, options.num_samples, key=key, picture=picture)

    parts = consistency, cfg, state, train, test, run_dir
    script.evaluate_run(*parts, seed=options.seed, num_samples=options.num_samples, evaluate=evaluate)


if __name__ == "__main__":
    script.run_script(main, Options)
