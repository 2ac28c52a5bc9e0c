"""Command lines of scripts: options of dataclasses and Configs, and bad input answered in one line."""

import contextlib
import dataclasses
import os
import sys
import typing
import warnings
from collections.abc import Callable
from typing import Annotated, Any

from jaxgen import data, types
from jaxgen.run import directory


def run_script(main: Callable[[Any], None], options: type) -> None:
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
    except (data.DataError, directory.RunError, ValueError, FloatingPointError) as error:
        if os.environ.get("JAXGEN_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def command_line_type(config: Any) -> type:
    """The config's class, its values as defaults, without what is no option of a command line."""
    import tyro

    hints = typing.get_type_hints(type(config))
    fields = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        shown = field.name not in types.FROM_THE_DATA and _is_plain(hints[field.name])
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


def plain(config: Any, config_type: type) -> Any:
    """The Config that parsed options describe."""
    return config_type(**{field.name: getattr(config, field.name) for field in dataclasses.fields(config)})
