"""Destinations of log lines other than metrics.jsonl: the terminal, TensorBoard, Weights & Biases."""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxgen.run import directory
from jaxgen.run.fit import OnLog


def on_log(logger: str, run_dir: Path, family: Any, cfg: Any) -> OnLog:
    """A function for `fit` that sends log lines to the chosen logger.

    It also prints them if there is no progress bar. If the family has a function `warnings(metrics)`, each
    warning is written to standard error when it first appears.
    """
    senders: list[Callable[[int, dict[str, float]], Any]] = []
    if not sys.stderr.isatty():
        senders.append(lambda step, metrics: print(f"step {step}:", _words(metrics), flush=True))
    if hasattr(family, "warnings"):
        senders.append(functools.partial(_warn, family.warnings, set()))
    try:
        if logger == "tensorboard":
            import tensorboardX

            senders.append(functools.partial(_to_tensorboard, tensorboardX.SummaryWriter(str(run_dir))))
        elif logger == "wandb":
            import wandb

            wandb.init(project="jaxgen", dir=run_dir, config=directory.describe(family, cfg))
            senders.append(lambda step, metrics: wandb.log(metrics, step=step))
    except ImportError:
        raise ValueError(f'--logger {logger} needs pip install "jaxgen[logs]"') from None

    def log(step: int, metrics: dict[str, float], state: Any) -> None:
        del state
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
