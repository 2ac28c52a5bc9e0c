"""Options of Configs with parts, as a command line gives them."""

import dataclasses
import sys

import flax.linen as nn
import jax
import pytest
import tyro

from jaxgen import values
from jaxgen.script import command_line


@dataclasses.dataclass(frozen=True)
class Narrow(values.Value):
    """One number."""

    scale: float = 1.0
    """Its size."""


@dataclasses.dataclass(frozen=True)
class LogWide(values.Value):
    """Some numbers."""

    sizes: tuple[int, ...] = (1, 2)
    """Their sizes."""


class Network(nn.Module):
    """A network."""

    widths: tuple[int, ...] = (3,)
    """Widths of its layers."""
    shape: tuple[int, ...] | None = None
    """Shape of its output."""


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What a model takes."""

    shape: tuple[int, ...] = (2,)
    """Shape of one example."""
    num_latents: int = 3
    """Dimensions of z."""
    prior_part: Narrow | LogWide | values.Value | None = Narrow()
    """How z is distributed."""
    network: nn.Module = Network()
    """From z to data."""
    optimizer: values.Optimizer = values.Adam()
    """How parameters move."""


@dataclasses.dataclass(frozen=True)
class Own(values.Value):
    """Defined by a user."""

    rate: float = 0.5
    """Their number."""


def parse(line, config=None):
    cfg, rest = command_line.choose(Config() if config is None else config, line.split())
    return command_line.chosen(tyro.cli(command_line.option_type(cfg, "model"), args=rest))


def test_options_of_parts_are_groups():
    line = "--num-latents 4 --prior-part.scale 2.5 --network.widths 7 8 --optimizer.beta1 0.5"
    expected = Config(
        num_latents=4, prior_part=Narrow(2.5), network=Network((7, 8)), optimizer=values.Adam(beta1=0.5)
    )
    assert parse(line) == expected
    assert parse("") == Config()


def test_another_part_is_chosen_by_its_name_wherever_it_stands():
    line = "--prior-part.sizes 4 5 --optimizer.schedule.decay-steps 9 --prior-part log_wide"
    cfg = parse(f"{line} --optimizer sgd --optimizer.schedule cosine --optimizer.momentum 0.9")
    assert cfg.prior_part == LogWide((4, 5))
    assert cfg.optimizer == values.SGD(momentum=0.9, schedule=values.Cosine(9))
    assert parse("--prior-part none").prior_part is None
    assert parse("--prior-part narrow", Config(prior_part=Narrow(3.0))).prior_part == Narrow(3.0)


def test_a_part_of_the_callers_own_has_its_options_and_can_be_replaced():
    config = Config(prior_part=Own())
    assert parse("--prior-part.rate 2", config).prior_part == Own(2.0)
    assert parse("--prior-part log_wide", config).prior_part == LogWide()


@pytest.mark.parametrize(
    "line", ["--prior-part nothing", "--prior-part.sizes 3", "--shape 3", "--network.shape 3"]
)
def test_what_is_no_option_is_refused(line):
    with pytest.raises(ValueError, match=line.split()[-2]), command_line.one_line_mistakes():
        parse(line)


def test_help_has_a_sentence_for_each_option_and_names_what_can_be_chosen(capsys):
    with pytest.raises(SystemExit):
        parse("--help")
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for sentence in ("Dimensions of z.", "How z is distributed.", "Its size.", "Widths of its layers."):
        assert sentence in text
    assert "Step size." in text  # of a base class
    for title in ("model options", "network options", "optimizer.schedule options"):
        assert title in text
    assert text.index("model options") < text.index("--num-latents") < text.index("prior-part options")
    chosen = command_line.choices(Config())
    assert "--prior-part none|narrow|log_wide (narrow)" in chosen
    assert "--optimizer.schedule constant|linear|cosine (constant)" in chosen


def test_names_of_alternatives_are_words():
    words = {
        "GradientPenalty": "gradient_penalty",
        "DDIM": "ddim",
        "R1R2": "r1_r2",
        "LogNormal": "log_normal",
    }
    assert {name: command_line._snake(name) for name in words} == words


def test_what_is_said_beside_mistakes_is_passed_on(capsys):
    with command_line.one_line_mistakes():
        print("a warning", file=sys.stderr)
    assert capsys.readouterr().err == "a warning\n"
