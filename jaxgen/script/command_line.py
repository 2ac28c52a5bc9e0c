"""Command lines of scripts: the options of a Config and its parts, and one-line messages for bad input.

The fields of a Config are options, such as `--num-latents 8`. The fields of a part form a group, such as
`--optimizer.beta1 0.5`. If the annotation of a field names several classes, an option such as
`--posterior log_normal` selects one of them, and the group then has the fields of that class.
"""

import ast
import contextlib
import dataclasses
import difflib
import functools
import inspect
import io
import itertools
import os
import re
import sys
import textwrap
import typing
import warnings
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Annotated, Any

import flax.linen as nn
import jax

from jaxgen import data, fields, interrupts, types, values
from jaxgen.data.dataset import one_line
from jaxgen.run import directory

FILLED_IN = (*types.FROM_THE_DATA, "dtype", "num_labels", "num_outputs")
"""Fields of a part that are filled in from its Config."""

_OWN = "own_options"  # the field of an `option_type` that holds those of no part


def run_script(main: Callable[[Any], None], options: type) -> None:
    """Run the `main` of a script that has no `System`, with the options from the command line.

    The fields of `options` are checked as those of a Config are, see `jaxgen.fields`.
    """
    import tyro

    with one_line_errors():
        with one_line_mistakes():
            given: Any = tyro.cli(options)
        fields.check(given, named=False)
        main(given)


def check_word(kind: str, word: str, words: Collection[str]) -> None:
    """Raises ValueError, naming the nearest one or all, for a word that is none of `words`."""
    if word not in words:
        near = difflib.get_close_matches(word, words, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(words)}"
        raise ValueError(f"there is no {kind} {word!r}: {hint}")


@contextlib.contextmanager
def one_line_errors():
    """Bad input ends the program with one line and exit status 2; JAXGEN_TRACEBACK=1 shows the traceback."""
    try:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
                with interrupts.watched():
                    yield
        finally:
            sys.stdout.flush()  # here, where a reader that is gone can be forgiven
    except KeyboardInterrupt as interrupt:
        print(f"\n{str(interrupt) or 'interrupted'}", file=sys.stderr)
        raise SystemExit(130) from None
    except (data.DataError, directory.RunError, ValueError, FloatingPointError) as error:
        if os.environ.get("JAXGEN_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:
        if os.environ.get("JAXGEN_TRACEBACK"):
            raise
        if isinstance(error, BrokenPipeError):  # of `| head`, which has read enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads on
            raise SystemExit(0) from None
        place = f": {error.filename}" if error.filename else ""
        print(f"error: {error.strerror or error}{place}", file=sys.stderr)
        raise SystemExit(2) from None
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        memory = isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)
        if os.environ.get("JAXGEN_TRACEBACK") or not memory:
            raise
        remedy = "take smaller batches, fewer samples or a smaller model"
        print(f"error: out of memory: {remedy} ({one_line(error)})", file=sys.stderr)
        raise SystemExit(2) from None


@contextlib.contextmanager
def one_line_mistakes():
    """Raises ValueError of one line for what tyro would say in a box and end the program with."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            yield
    except SystemExit as stop:
        if stop.code == 2:
            box, said = said.getvalue(), io.StringIO()
            raise ValueError(_sentence(box)) from None
        raise
    finally:
        sys.stderr.write(said.getvalue())


def _sentence(box: str) -> str:
    """The first paragraph below the title of tyro's box, and options that it holds for those meant."""
    lines = [line.strip("│ ") for line in box.splitlines()[1:] if line[:1] != "╰"]
    ruled = itertools.groupby(lines, lambda line: line.strip("─-") != "")
    said = [" ".join(group) for text, group in ruled if text] or [" ".join(box.split())]
    meant = "".join(part for part in said if part.startswith("Perhaps you meant"))
    near = ", ".join(dict.fromkeys(re.findall(r"(?<= )--[\w.-]+", meant)))
    return said[0].rstrip(".") + (f": did you mean {near}?" if near else "")


def delayed(command: Callable[..., Any]) -> Callable[..., Callable[[], Any]]:
    """The command with its arguments, which tyro reads, in place of what it does with them."""

    @functools.wraps(command)
    def given(*args: Any, **options: Any) -> Callable[[], Any]:
        return functools.partial(command, *args, **options)

    return given


def choose(config: Any, arguments: Sequence[str]) -> tuple[Any, list[str]]:
    """The config with the parts selected by arguments such as `--posterior log_normal`, and the rest."""
    import tyro

    rest = list(arguments)
    for depth in itertools.count():
        found = _alternatives(config)
        now = [path for path in found if path.count(".") == depth]
        if not now:
            return config, rest
        fields = []
        for index, path in enumerate(now):
            current, classes = found[path]
            word = _word(current, classes)
            words: Any = typing.Literal[tuple({**classes, word: None})]
            hint = Annotated[words, tyro.conf.arg(name=path)]
            fields.append((f"part{index}", hint, dataclasses.field(default=word)))
        parser = dataclasses.make_dataclass("Parts", fields)
        parsed: Any
        with one_line_mistakes():
            parsed, rest = tyro.cli(parser, args=rest, return_unknown_args=True, add_help=False)
        for index, path in enumerate(now):
            current, classes = found[path]
            other = classes.get(getattr(parsed, f"part{index}"), type(current))
            if other is not type(current):
                config = _replaced(config, path.split("."), other())
    raise AssertionError


def option_type(value: Any, title: str, prefix: str = "") -> type:
    """A dataclass for tyro with the options of a Config or a part, whose values are the defaults.

    Options that belong to no part stand in a box of the help that is called `title`.
    """
    import tyro

    hints, help_of = typing.get_type_hints(type(value)), sentences(type(value))
    others = _alternatives(value, deep=False)
    own: list[Any] = []
    fields: list[Any] = []
    for field in values.options(value):
        name, current = field.name, getattr(value, field.name)
        option, text = name.replace("_", "-"), help_of.get(name, "")
        if name in (FILLED_IN if prefix else types.FROM_THE_DATA):
            continue
        if option in others:
            text += f" Here {_word(*others[option])}."
        if dataclasses.is_dataclass(current):
            inner = option_type(current, "", f"{prefix}{option}.")
            if dataclasses.fields(inner):
                hint: Any = Annotated[inner, tyro.conf.arg(help=text)]
                fields.append((name, hint, dataclasses.field(default_factory=inner)))
        elif _is_plain(hints[name]):
            hint = Annotated[hints[name], tyro.conf.arg(help=text)]
            own.append((name, hint, dataclasses.field(default=current)))
    summary = {"__doc__": (type(value).__doc__ or "").splitlines()[0]}
    kind: Any = {"frozen": True, "kw_only": True}
    if title and own:
        box = dataclasses.make_dataclass(type(value).__name__, own, namespace=summary, **kind)
        hint = Annotated[box, tyro.conf.arg(name=title), tyro.conf.OmitArgPrefixes]
        own = [(_OWN, hint, dataclasses.field(default_factory=box))]
    return dataclasses.make_dataclass(
        type(value).__name__, own + fields, namespace={"of": value, **summary}, **kind
    )


def chosen(options: Any) -> Any:
    """The Config or part that parsed options of an `option_type` describe."""
    return _with_fields(type(options).of, _fields(options))


def _fields(options: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if field.name == _OWN:
            found |= _fields(value)
        else:
            found[field.name] = chosen(value) if hasattr(type(value), "of") else value
    return found


def sentences(cls: Any) -> dict[str, str]:
    """The docstring below each field of a class and of its bases, on one line."""
    base: Any = cls.__base__
    found = sentences(base) if base not in (object, nn.Module, values.Value, None) else {}
    try:
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body  # type: ignore[attr-defined]
    except (OSError, TypeError):
        return found
    for field, text in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
            value = getattr(text.value, "value", None)
            if isinstance(value, str):
                found = found | {field.target.id: " ".join(value.split())}  # type: ignore[union-attr]
    return found


def choices(config: Any) -> str:
    """The parts that have alternatives, with the words that select them, one per line."""
    found = _alternatives(config)
    lines = [
        f"--{path} {'|'.join(classes)} ({_word(current, classes)})"
        for path, (current, classes) in found.items()
    ]
    return "\n".join(["Parts, each with options of its own:", *lines]) if lines else ""


def _word(current: Any, classes: dict[str, type]) -> str:
    return next((word for word, c in classes.items() if c is type(current)), "own")


def _alternatives(value: Any, deep: bool = True) -> dict[str, tuple[Any, dict[str, type]]]:
    """The parts that have alternatives: {path: (the part, {name on the command line: class})}."""
    hints, found = typing.get_type_hints(type(value)), {}
    for field in values.options(value):
        current = getattr(value, field.name)
        classes = part_classes(hints[field.name])
        if len(classes) > 1:
            found[field.name.replace("_", "-")] = current, classes
        if deep and dataclasses.is_dataclass(current):
            inner = _alternatives(current)
            found |= {f"{field.name.replace('_', '-')}.{path}": entry for path, entry in inner.items()}
    return found


def part_classes(hint: Any) -> dict[str, type]:
    """The classes of parts in a Union, without the base classes that admit a user's own parts."""
    classes = [c for c in typing.get_args(hint) if isinstance(c, type) and dataclasses.is_dataclass(c)]
    classes = [c for c in classes if c is not nn.Module]
    names = [_snake(c.__name__) for c in classes]
    if len(set(names)) < len(names):
        names = [c.__module__.rsplit(".", 1)[-1] for c in classes]
    none = {"none": type(None)} if classes and type(None) in typing.get_args(hint) else {}
    return none | dict(zip(names, classes, strict=True))


def _snake(name: str) -> str:
    """A class name as a word of a command line: "log_normal"; "dreg" of DReG, which has no words in it."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
    return name.lower() if any(len(word) == 1 for word in words.split("_")) else words


def _replaced(value: Any, path: Sequence[str], part: Any) -> Any:
    name, *rest = path[0].replace("-", "_"), *path[1:]
    return _with_fields(value, {name: _replaced(getattr(value, name), rest, part) if rest else part})


def _with_fields(value: Any, changed: dict[str, Any]) -> Any:
    return value.clone(**changed) if isinstance(value, nn.Module) else dataclasses.replace(value, **changed)


def _is_plain(hint: Any) -> bool:
    """Whether values of a type can be given on a command line: numbers, words and tuples of them."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return True
    if arguments:
        return all(_is_plain(argument) for argument in arguments if argument is not ...)
    return hint in (bool, int, float, str, Path, type(None))
