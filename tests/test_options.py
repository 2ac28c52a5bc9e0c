"""Every option of every Config changes something: a walk over each family's Configs and their parts.

Each option is set to another value, and one of the family's programs must come out different: `init`, a step,
a sample, or a capability. A family's own test file says where the walk starts and what it cannot guess:
`SMALL`, the further Configs `RANDOM` and `FURTHER`, `OPTIONS`, other values by the path of an option, and
`ELSEWHERE`, the beginnings of paths that another family's walk goes over. What an option means is tested
there too; here it is only seen not to be ignored.
"""

import dataclasses
import functools
import importlib
import inspect
import re
import types as python_types
import typing

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

import jaxgen
from jaxgen import data, types, values
from jaxgen.classical import ppca
from jaxgen.types import observed

QUICK = ("jaxgen.autoencoder.ae", "jaxgen.classical.markov", "jaxgen.classical.ppca")
"""Families that are walked over in the default suite."""

FACTS = ("shape", "num_classes", "levels")
"""Options of a Config that the data set."""

FILLED = ("shape", "num_classes", "num_labels", "num_outputs", "levels", "dtype")
"""Options of parts that a Config fills in where they are None."""

KEY = jax.random.key(0)


# Programs, and whether they are the same


def text(function, *arguments):
    """What a function does with arrays of these shapes: its operations and all its constants."""
    closed = jax.make_jaxpr(function)(*arguments)
    written = re.sub(r"0x[0-9a-f]+", "", closed.pretty_print(use_color=False))
    return written, [(np.shape(const), np.asarray(const).tobytes()) for const in _constants(closed)]


def _constants(closed):
    for const in closed.consts:
        yield jax.random.key_data(const) if jax.dtypes.issubdtype(const.dtype, jax.dtypes.prng_key) else const
    for equation in closed.jaxpr.eqns:
        for param in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda leaf: isinstance(leaf, core.ClosedJaxpr)
        ):
            if isinstance(param, core.ClosedJaxpr):
                yield from _constants(param)


def programs(family, cfg, batch, many):
    """The programs of a family by name, as functions without arguments that write them down."""
    state = jax.eval_shape(functools.partial(family.init, cfg=cfg), KEY)
    x = observed(batch)
    init = functools.partial(family.init, cfg=cfg)
    found = {
        "train_step": lambda: text(functools.partial(family.train_step, cfg=cfg), state, batch),
        "init": lambda: (text(init, KEY), text(lambda key, batch: init(key, batch=batch), KEY, batch)),
        "sample": lambda: text(lambda key, state: family.sample(key, state, 3, cfg), KEY, state),
    }
    takes = {
        "loss": (lambda params: family.loss(params, batch, KEY, cfg), getattr(state, "params", None)),
        "elbo": (lambda state: family.elbo(KEY, state, x, cfg), state),
        "measure": (lambda: family.measure(cfg),),
    }
    for name in ("log_prob", "encode", "reconstruct", "classify", "score"):
        takes[name] = (lambda state, name=name: getattr(family, name)(state, x, cfg), state)
    for name, (function, *arguments) in takes.items():
        if hasattr(family, name):
            found[name] = lambda f=function, a=arguments, n=name: f() if n == "measure" else text(f, *a)
    if hasattr(family, "fit"):
        label = (many["label"],) if "label" in inspect.signature(family.fit).parameters else ()
        found["fit"] = lambda: [
            np.asarray(leaf).tobytes()
            for leaf in jax.tree.leaves(family.fit(observed(many), *label, cfg=cfg)._replace(key=0))
        ]
    return found


# The walk


def parts_class(found):
    plain = found in (nn.Module, values.Value) or not dataclasses.is_dataclass(found)
    return not plain and issubclass(found, nn.Module | values.Value)


def parts(value):
    return isinstance(value, nn.Module | values.Value) or dataclasses.is_dataclass(value)


def alternatives(cls, field, current):
    """Other values of a field, likelier ones first; for parts, of their other classes."""
    hint = typing.get_type_hints(cls)[field.name]
    if typing.get_origin(hint) in (typing.Union, python_types.UnionType):
        hints = typing.get_args(hint)
    else:
        hints = (hint,)
    found = []
    for hint in hints:
        if typing.get_origin(hint) is typing.Literal:
            found += [choice for choice in typing.get_args(hint) if choice != current]
        elif inspect.isclass(hint) and parts_class(hint) and type(current) is not hint:
            try:
                found.append(hint())
            except (TypeError, ValueError):
                continue  # a base class, or one that has to be told something
    if isinstance(current, bool):
        found.append(not current)
    elif isinstance(current, int):
        found += [current + 1, 2 * current, current - 1]
    elif isinstance(current, float):
        found += [0.5 * current, 0.5, 0.1, current + 1.0] if current else [0.1, 1.0]
    elif isinstance(current, tuple) and current and isinstance(current[0], int):
        found.append(tuple(2 * each for each in current))
    elif isinstance(current, tuple) and current and isinstance(current[0], str):
        found.append(current[:-1])
    elif current is None:
        found += [0.01 for hint in hints if hint is float] + [2 for hint in hints if hint is int]
    return found


def replaced(value, /, **changes):
    return value.clone(**changes) if isinstance(value, nn.Module) else dataclasses.replace(value, **changes)


def choice(name, value):
    """The option, and the choice made if it is one: each of them counts by itself, of numbers any one."""
    made = type(value).__name__ if parts(value) else value if isinstance(value, str) else ""
    return f"{name}={made}" if made else name


def walk(value, options, rebuild, path=""):
    """Of all options of a Config `value` and its parts: another choice, the present one, and how to take it.

    The last is a function that makes the Config with the other choice, None where none can be guessed;
    `rebuild` makes the whole Config of another `value`.
    """
    for field in values.options(value):
        current, name = getattr(value, field.name), f"{path}{field.name}"
        if (not path and field.name in FACTS) or (path and field.name in FILLED and current is None):
            continue
        swap = lambda new, name=field.name: rebuild(replaced(value, **{name: new}))
        others = [options[name]] if name in options else alternatives(type(value), field, current)
        for other in others:
            yield choice(name, other), choice(name, current), functools.partial(swap, other)
        inside = [(f"{name}.", each, swap) for each in (current, *others) if parts(each)]
        if isinstance(current, tuple) and any(map(parts, current)):
            for index, each in enumerate(current):
                within = lambda new, at=index, row=current, swap=swap: swap((*row[:at], new, *row[at + 1 :]))
                inside.append((f"{name}[{index}].", each, within))
        if not others and not inside:
            yield name, name, None
        for start, each, within in inside:
            yield from walk(each, options, within, start)


def differs(family, cfg, changed, data, written):
    """Whether some program of the changed Config is another one; why not, if there is no such model."""
    if changed is None:
        return "none can be guessed"
    try:
        others = programs(family, changed(), *data)
        for name, program in others.items():
            if name not in written:
                written[name] = programs(family, cfg, *data)[name]()
            if program() != written[name]:
                return True
    except (ValueError, TypeError) as error:
        return str(error).partition("\n")[0]
    return False


def walked(family, own):
    """A family's options that change a program, those that do not, and what cannot be tried, with why."""
    dataset = data.load(getattr(own, "DATA", "digits"))
    batches = [jax.tree.map(jnp.asarray, dict(dataset[:count])) for count in (8, 100)]
    options, elsewhere = getattr(own, "OPTIONS", {}), getattr(own, "ELSEWHERE", ())
    heeded, ignored, impossible = set(), set(), {}
    for cfg in (own.SMALL, *getattr(own, "RANDOM", ()), *getattr(own, "FURTHER", ())):
        cfg, written = types.from_data(family, dataset, cfg), {}
        for path, own_path, changed in walk(cfg, options, lambda value: value):
            if {path, own_path} <= heeded or path.startswith(elsewhere):
                continue
            found = differs(family, cfg, changed, batches, written)
            if isinstance(found, str):
                impossible[path] = found
            elif found:
                heeded |= {path, own_path}
            else:
                ignored.add(path)
    return heeded, ignored - heeded, {path: why for path, why in impossible.items() if path not in heeded}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
        for name in sorted(jaxgen.families())
    ],
)
def test_every_option_changes_a_program(name):
    _, package, module = name.split(".")
    own = importlib.import_module(f"tests.{package}.test_{module}")
    heeded, ignored, impossible = walked(jaxgen.families()[name], own)
    assert heeded
    assert not ignored, f"options that change nothing: {', '.join(sorted(ignored))}"
    assert not impossible, f"other values for OPTIONS to give: {impossible}"


@dataclasses.dataclass(frozen=True)
class Rule(values.Value):
    """A step size, and what nobody looks at."""

    rate: float = 0.1
    idle: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    shape: tuple[int, ...] = (2,)
    rule: Rule = Rule()
    name: str = "me"
    unused: typing.Literal["this", "that"] = "this"


def test_the_walk_finds_what_is_ignored():
    family = python_types.SimpleNamespace(
        init=lambda key, cfg, batch=None: ppca.State(jnp.int32(0), key, jnp.zeros(2), None),
        train_step=lambda state, batch, cfg: (state._replace(params=cfg.rule.rate * state.params), {}),
        sample=lambda key, state, n, cfg: jnp.zeros((n, 2)),
    )
    found = walked(family, python_types.SimpleNamespace(SMALL=Config()))
    assert found == ({"rule.rate"}, {"rule.idle", "unused=that"}, {"name": "none can be guessed"})
