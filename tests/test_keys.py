"""Random keys: names have numbers of their own, and no key serves twice in a step, a sample or a bound."""

import ast
import functools
import importlib
import inspect
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgen
from jaxgen import data, keys, shard, types
from jaxgen.classical import ppca
from jaxgen.script import evaluation, report
from jaxgen.types import observed
from tests.used_keys import uses

KEY = jax.random.key(0)
TRAINED_BY_GRADIENT = [
    name for name, family in jaxgen.families().items() if name.split(".")[1] != "classical"
]

LONG = ("glow", "realnvp_images", "tarflow", "rbm", "dbn", "dbm", "sigmoid_belief_net")
"""With autoregressive ones, whose samplers go symbol by symbol, families that take longest to follow."""


def words(key):
    return tuple(np.asarray(jax.random.key_data(key)).ravel().tolist())


def test_a_named_key_is_none_of_those_that_count():
    first, second = keys.named(KEY, "noise", "time")
    assert words(first) == words(keys.named(KEY, "noise"))
    assert words(first) != words(second)
    assert words(jax.random.split(KEY, 8)[3]) == words(jax.random.fold_in(KEY, 3))  # why there are names
    assert keys.number("noise") == keys.number("noise") >= 2**31


def test_no_two_names_have_one_number():
    names = set()
    for path in pathlib.Path(jaxgen.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "keys.named":
                own = [argument.value for argument in node.args[1:]]
                assert len(own) == len(set(own)), f"{path}: {own}"
                names |= set(own)
    assert len(names) > 20
    assert len({keys.number(name) for name in names}) == len(names)


def cases():
    for name in TRAINED_BY_GRADIENT:
        _, package, module = name.split(".")
        own = importlib.import_module(f"tests.{package}.test_{module}")
        for index in range(len(getattr(own, "RANDOM", ())) + 1):
            slow = index or package == "autoregressive" or module in LONG
            yield pytest.param(name, index, marks=pytest.mark.slow if slow else [])


@functools.cache
def make_case(name, index):
    """A family, its SMALL or one of its RANDOM Configs, a batch, and the shapes of its State."""
    family = jaxgen.families()[name]
    _, package, module = name.split(".")
    own = importlib.import_module(f"tests.{package}.test_{module}")
    dataset = data.load(getattr(own, "DATA", "digits"))
    cfg = types.from_data(family, dataset, (own.SMALL, *getattr(own, "RANDOM", ()))[index])
    batch = jax.tree.map(jnp.asarray, dict(dataset[:8]))
    return family, cfg, batch, jax.eval_shape(functools.partial(family.init, cfg=cfg), KEY)


@pytest.mark.parametrize(("name", "index"), list(cases()))
def test_no_key_serves_twice(name, index):
    family, cfg, batch, state = make_case(name, index)
    rest = {field: getattr(state, field) for field in state._fields if field not in ("key", "step")}
    completed = lambda key, step, rest: type(state)(**rest, key=key, step=step)
    programs = {
        "init": lambda key, step, rest, batch: family.init(key, cfg, batch),
        "train_step": lambda key, step, rest, batch: family.train_step(
            completed(key, step, rest), batch, cfg
        ),
        "sample": lambda key, step, rest, batch: family.sample(key, completed(key, step, rest), 3, cfg),
    }
    for capability in {"elbo", "iwae"} & set(dir(family)):
        function = getattr(family, capability)
        options = {"num_samples": 3} if capability == "iwae" else {}
        if "num_terms" in inspect.signature(function).parameters:
            options["num_terms"] = 4
        programs[capability] = lambda key, step, rest, batch, function=function, options=options: function(
            key, completed(key, step, rest), observed(batch), cfg, **options
        )
    for what, program in programs.items():
        found = uses(program, KEY, jnp.int32(3), unknown=(rest, batch))
        assert not found.twice(), what
        if what == "train_step" and index and getattr(cfg, "levels", 2):  # a flow of points draws nothing
            assert found.drawn


def test_the_walk_finds_keys_that_serve_twice():
    def numbers_twice(key):
        return jax.random.normal(key, (2,)), jax.random.uniform(key, (3,))

    def numbers_and_further_keys(key):
        return jax.random.normal(key, (2,)), jax.random.normal(jax.random.fold_in(key, 1), (2,))

    def two_ways_to_one(key):
        return jax.random.normal(jax.random.split(key)[1]), jax.random.normal(jax.random.fold_in(key, 1))

    def the_same_each_time(key):
        return jax.lax.scan(lambda _, x: (None, jax.random.normal(key)), None, jnp.arange(2))

    for function in (numbers_twice, numbers_and_further_keys, two_ways_to_one, the_same_each_time):
        assert uses(function, KEY).twice(), function
        assert uses(jax.jit(function), KEY).twice(), function


def test_an_evaluation_draws_nothing_that_its_training_drew(tmp_path, monkeypatch):
    """Both start from the seed."""
    named, made = keys.named, []

    def recorded(key, *names):
        found = named(key, *names)
        if not isinstance(key, jax.core.Tracer):
            made.extend(found if len(names) > 1 else [found])
        return found

    monkeypatch.setattr(keys, "named", recorded)
    train, cfg = data.load("digits"), ppca.Config(num_latents=2)
    state = jaxgen.fit(ppca, cfg, train, steps=1, batch_size=8, key=jax.random.key(5), mesh=shard.mesh(1))
    count = len(made)
    monkeypatch.setattr(report, "write", lambda run_dir, *_, **facts: run_dir)
    evaluation.evaluate_run(
        ppca, cfg, state, train, train, tmp_path, seed=5, num_samples=0, evaluate=lambda key, *_: {}
    )
    assert 0 < count < len(made)
    assert len({words(key) for key in made}) == len(made)
