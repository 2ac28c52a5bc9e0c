"""What `jaxgen train` trains: every family with its default Config, and the adversarial papers.

The scripts in `experiments` have more: settings that were tuned, evaluations of their own, published figures.
"""

import functools
from typing import Any

from jaxgen import types
from jaxgen.gan import gan, presets
from jaxgen.script.stages import first_stage
from jaxgen.script.systems import Options, System

DATA = {"hmm": "weather", "markov": "weather", "wavenet": "tones"}
"""Data sets of families that do not take pictures; digits are those of the others."""

FIRST_STEPS = 2000
"""Training steps of the first stage of a model of codes."""


def _system(name: str, family: Any) -> System:
    summary = (family.__doc__ or "").splitlines()[0]
    before = functools.partial(first_stage, steps=FIRST_STEPS) if hasattr(family, "first_config") else None
    options = Options(data=DATA.get(name, "digits"), evaluate="quick")
    return System(family=family, config=family.Config(), paper=summary, options=options, before=before)


SYSTEMS = {
    path.rpartition(".")[2]: _system(path.rpartition(".")[2], f) for path, f in types.families().items()
}
SYSTEMS |= {
    name: System(
        family=gan,
        config=preset.config,
        paper=preset.paper,
        options=Options(batch_size=64 * preset.config.discriminator_steps, evaluate="quick"),
    )
    for name, preset in presets.PRESETS.items()
}
