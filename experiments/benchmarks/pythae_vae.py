"""A training step and the importance-sampled likelihood of a VAE, beside pythae's.

    python experiments/benchmarks/pythae_vae.py --pythae-python ~/pythae/bin/python

Both sides have pythae's default network, one hidden layer of 512 units. pythae is given jaxgen's weights and
must reproduce the loss and, within the error of the estimates, the likelihood. Then both are timed in turn,
round after round, and ratios are taken within a round. pythae's step is its model and Adam in a bare loop,
without its trainer; its likelihood is timed at the better of two numbers of draws a pass.
"""

import contextlib
import dataclasses
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

from train_step import TOLERANCE, Sizes, Worker, machine, ratios, rounded, steps_for, summary

SIZES = Sizes("mlp", (28, 28, 1), (512,), 16, 128)
AT_ONCE = (100, 1000)
"""Draws that pythae decodes in one pass."""
OUTPUT = Path(__file__).with_suffix(".json")


@dataclasses.dataclass
class Options:
    """Time a VAE of jaxgen beside the same of pythae."""

    pythae_python: Path = Path(sys.executable)
    """The Python that has pythae, if it is another one."""
    threads: int = 2
    """Of either side; on Linux also the number of cores that they may use."""
    rounds: int = 7
    """How often each is timed."""
    seconds: float = 1.5
    """Roughly how long a timing of training takes."""
    num_examples: int = 20
    """Examples whose likelihood is timed, of pythae; of jaxgen five times as many."""
    num_samples: int = 1000
    """Draws for each."""
    output: Path = OUTPUT
    """Where the numbers go."""


def main(options: Options) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    with contextlib.ExitStack() as stack:
        ours = Worker(Path(sys.executable), "jaxgen_models.py", SIZES, "loop", options.threads)
        stack.callback(ours.close)
        theirs = Worker(options.pythae_python, "pythae_models.py", SIZES, "plain", options.threads)
        stack.callback(theirs.close)
        report = {"sizes": SIZES._asdict(), "threads": options.threads, "machine": machine()}
        report["check"] = check(ours, theirs)
        counts = {side: steps_for(options.seconds, side) for side in (ours, theirs)}
        draws, small = options.num_samples, options.num_examples
        large = 5 * small
        ours.call("likelihood_seconds", large, draws)  # compiles
        steps, likelihoods = {ours: [], theirs: []}, {ours: [], theirs: []}
        for number in range(options.rounds):
            for side in (ours, theirs)[:: -1 if number % 2 else 1]:
                steps[side].append(side.call("seconds", counts[side]) / counts[side])
            likelihoods[ours].append(ours.call("likelihood_seconds", large, draws) / large)
            taken = [theirs.call("likelihood_seconds", small, draws, at_once) for at_once in AT_ONCE]
            likelihoods[theirs].append(min(taken) / small)
        for name, times in (("step_seconds", steps), ("likelihood_seconds_an_example", likelihoods)):
            report[name] = {
                "jaxgen": summary(times[ours]),
                "pythae": summary(times[theirs]),
                "ratio": ratios(times[theirs], times[ours]),
            }
        report["versions"] = ours.call("versions") | theirs.call("versions")
    options.output.write_text(json.dumps(rounded(report), indent=1) + "\n")
    for name in ("step_seconds", "likelihood_seconds_an_example"):
        row = report[name]
        print(
            f"{name:32} jaxgen {1e3 * row['jaxgen']['median']:8.2f} ms   pythae"
            f" {1e3 * row['pythae']['median']:8.2f} ms   ratio {row['ratio']['median']:.2f}"
        )


def check(ours: Worker, theirs: Worker, num_samples: int = 2000) -> dict[str, float]:
    """Errors of pythae's loss and of its likelihood; ends the program where they are too large."""
    with tempfile.TemporaryDirectory() as folder:
        given = str(Path(folder, "given.npz"))
        expected = ours.call("export", given)
        found = theirs.call("check", given, num_samples)
        bounds = ours.call("log_likelihood", given, num_samples)
    loss_error = abs(found["loss"] / expected["loss"] - 1)
    bound_error = abs(found["log_likelihood"] - statistics.fmean(bounds))
    if loss_error > TOLERANCE or bound_error > 0.1:
        raise SystemExit(f"pythae and jaxgen differ: {loss_error:.1e} in the loss, {bound_error:.2g} nats")
    return {"relative_error_of_loss": loss_error, "difference_of_log_likelihood": bound_error}


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Options))
