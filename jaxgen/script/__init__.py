"""Shared parts of experiment scripts: systems, options, and the evaluation, report and result of a run."""

from jaxgen.script.command_line import one_line_errors, run_script
from jaxgen.script.evaluation import evaluate_run, likelihoods, sampler
from jaxgen.script.systems import Options, System, main, run_system

__all__ = [
    "Options",
    "System",
    "evaluate_run",
    "likelihoods",
    "main",
    "one_line_errors",
    "run_script",
    "run_system",
    "sampler",
]
