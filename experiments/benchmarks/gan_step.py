"""A training step of both players, of DCGAN and of WGAN-GP, beside the same step in PyTorch.

    python experiments/benchmarks/gan_step.py
    python experiments/benchmarks/gan_step.py --torch-python ~/torch/bin/python --systems dcgan

The presets of `jaxgen.gan` as they are, on pictures of 28x28 grey pixels: 64 of them a step of the
discriminator, of which WGAN-GP takes five, each with a gradient penalty that is differentiated twice. Both
sides keep the generator's average; jaxgen's also computes what it logs. `train_step.py` says how weights,
losses and gradients are checked first, and how the processes take turns. A first step's time is that of its
compilation.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from train_step import Sizes, compare, machine, prepare, rounded, table

SYSTEMS = {
    "dcgan": Sizes("dcgan", (28, 28, 1), (64, 128), 100, 64),
    "wgan_gp": Sizes("wgan_gp", (28, 28, 1), (64, 128), 100, 320),
}
OUTPUT = Path(__file__).with_suffix(".json")


@dataclasses.dataclass
class Options:
    """Time both players' steps of jaxgen beside PyTorch's."""

    systems: tuple[str, ...] = tuple(SYSTEMS)
    """Which of dcgan and wgan_gp."""
    torch: bool = True
    """Compare with PyTorch."""
    torch_python: Path = Path(sys.executable)
    """The Python that has PyTorch, if it is another one."""
    check: bool = True
    """Make sure that both sides compute the same losses and gradients."""
    threads: int = 1
    """Of either side; on Linux also the number of cores that they may use."""
    rounds: int = 5
    """How often each is timed."""
    seconds: float = 1.0
    """Roughly how long a timing takes."""
    smoke: bool = False
    """Networks and timings so small that only errors can be learned from them."""
    output: Path = OUTPUT
    """Where the numbers go."""


def main(options: Options) -> None:
    prepare(options, SYSTEMS)
    report: dict[str, Any] = {"threads": options.threads, "machine": machine(), "systems": {}}
    for name in options.systems:
        report["systems"][name] = compare(SYSTEMS[name], options, "gans")
        options.output.write_text(json.dumps(rounded(report), indent=1) + "\n")
    print(table(report))


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Options))
