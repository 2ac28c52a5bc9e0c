"""What every family promises, checked for each one found by walking the package.

A family's own test, tests/<package>/test_<family>.py, says how it is made small: `SMALL` is a Config that
compiles quickly, and `DATA` the name of its data set where that is not digits. Where a model so small learns
too little, `TRAINED` is the Config that is seen to learn.
"""

import ast
import dataclasses
import functools
import importlib
import inspect
import itertools
import json
import re
import subprocess
import sys
import typing
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgen
from jaxgen import data, fields, shard, types, values
from jaxgen.evaluation import likelihood, mmd
from jaxgen.run import directory
from jaxgen.types import observed

FAMILIES = jaxgen.families()

HEAVY = ("orbax", "tensorflow_datasets", "grain", "matplotlib", "tyro", "sklearn", "scipy", "PIL")

OF_EACH_KIND = ("jaxgen.autoencoder.vae", "jaxgen.gan.gan", "jaxgen.classical.gmm")
"""One family of each kind of training: what takes long is tested with these in the default suite."""

SOME = pytest.mark.parametrize(
    "name",
    [
        name if name in OF_EACH_KIND else pytest.param(name, marks=pytest.mark.slow)
        for name in sorted(FAMILIES)
    ],
)

BATCH_SIZE = 32


@dataclasses.dataclass
class Case:
    name: str
    family: object
    cfg: object
    dataset: data.Dataset
    batch: dict
    state: object

    @functools.cached_property
    def step(self):
        return jax.jit(functools.partial(self.family.train_step, cfg=self.cfg))

    @functools.cached_property
    def stepped(self):
        """The State after one step, and its metrics."""
        return self.step(self.state, self.batch)

    def fit(self, steps, **options):
        options = {"sample_every": 0, "save_every": 0, "key": jax.random.key(3), **options}
        return jaxgen.fit(self.family, self.cfg, self.dataset, steps=steps, batch_size=BATCH_SIZE, **options)


@functools.cache
def make_case(name, config="SMALL"):
    family = FAMILIES[name]
    _, package, module = name.split(".")
    own = importlib.import_module(f"tests.{package}.test_{module}")
    dataset = data.load(getattr(own, "DATA", "digits"))
    cfg = types.from_data(family, dataset, getattr(own, config, own.SMALL))
    batch = jax.tree.map(jnp.asarray, dict(dataset[:BATCH_SIZE]))
    state = jax.jit(functools.partial(family.init, cfg=cfg))(jax.random.key(0), batch=batch)
    return Case(name, family, cfg, dataset, batch, state)


@pytest.fixture(params=sorted(FAMILIES))
def case(request):
    return make_case(request.param)


def unkeyed(tree):
    """The tree with PRNG keys as the integers they are, for comparison."""
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return jax.tree.map(lambda x: np.asarray(jax.random.key_data(x) if is_key(x) else x), tree)


def assert_same_bits(first, second):
    chex.assert_trees_all_equal(unkeyed(first), unkeyed(second))


def assert_close(first, second, tolerance=2e-4):
    chex.assert_trees_all_close(unkeyed(first), unkeyed(second), rtol=tolerance, atol=tolerance)


def parts_of(value):
    """A Config, and every part inside of it."""
    yield value
    for field in values.options(value):
        inner = getattr(value, field.name)
        if dataclasses.is_dataclass(inner):
            yield from parts_of(inner)


def test_the_walk_finds_the_families():
    assert {"jaxgen.autoencoder.vae", "jaxgen.gan.gan", "jaxgen.classical.gmm"} <= set(FAMILIES)


def test_config_is_frozen_static_and_survives_json(case, tmp_path):
    cfg = case.cfg
    assert not jax.tree.leaves(cfg)
    with pytest.raises(dataclasses.FrozenInstanceError):
        cfg.shape = ()
    directory.write_text(tmp_path / "config.json", json.dumps(directory.describe(case.family, cfg)))
    again = directory.read_config(case.family, tmp_path)
    assert again == cfg
    assert hash(again) == hash(cfg)


def ranges_of(hint):
    """The ranges that an annotation declares, and None for each plain number that declares none."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        yield from (mark for mark in arguments[1:] if isinstance(mark, fields.Range))
    elif hint in (int, float):
        yield None
    else:
        for inner in arguments:
            yield from ranges_of(inner)


def mistakes(part, field, hint):
    """Values that no field of this type takes: a misspelt word, another type, a number out of range."""
    value = getattr(part, field.name)
    if hint is not Any and Any not in typing.get_args(hint):
        yield object()
    if typing.get_origin(hint) is typing.Literal:
        yield f"{value}x"
    for bounds in ranges_of(hint):
        low = bounds.above if bounds.least is None else bounds.least - 1
        low = float("nan") if low is None else low
        yield (low, *value[1:]) if isinstance(value, tuple) else low


def test_every_field_refuses_what_it_cannot_mean(case):
    for part in parts_of(case.cfg):
        hints = typing.get_type_hints(type(part), include_extras=True)
        for field in values.options(part):
            hint, current = hints[field.name], getattr(part, field.name)
            assert None not in ranges_of(hint), f"{type(part).__name__}.{field.name} declares no range"
            assert not fields.misfit(current, hint)
            for wrong in mistakes(part, field, hint):
                with pytest.raises(
                    ValueError, match=rf"{type(part).__name__}: {field.name} must be"
                ) as raised:
                    fields.check(replaced(part, field.name, wrong))
                assert "\n" not in str(raised.value)


def replaced(part, name, value):
    return (
        part.clone(**{name: value})
        if isinstance(part, nn.Module)
        else dataclasses.replace(part, **{name: value})
    )


class Other(typing.NamedTuple):
    step: object
    key: object


def wrong_calls(case):
    """Calls of a family's functions with one wrong argument each, by what the message has to name."""
    family, state, cfg = case.family, case.state, case.cfg
    batch, key = dict(case.batch), jax.random.key(0)
    data_name, x = next((name, batch[name]) for name in types.DATA if name in batch)
    wider = jnp.concatenate([x, x], -1) if x.ndim > 2 or not hasattr(cfg, "any_length") else x[..., None]
    other = next(other.Config() for other in OTHERS if other is not family)
    rest = {name: entry for name, entry in batch.items() if name != data_name}
    for label, wrong in (
        (f"only {', '.join(rest) or 'nothing'}", rest),
        (re.escape(f"not {wider.shape}"), {**batch, data_name: wider}),
        ("label of shape \\(3,\\)", {**batch, "label": jnp.zeros(3, jnp.int32)}),
        ("mapping such as", x),
        ("not uint8", {**batch, data_name: x.astype(jnp.uint8)}),
        ("must be an array, not a list", {**batch, data_name: [0.0]}),
        ("must be an array, not a list", {**batch, "label": [0]}),
        ("has no examples", jax.tree.map(lambda entry: entry[:0], batch)),
        *([("not int32", {**batch, "image": x.astype(jnp.int32)})] if data_name == "image" else []),
        *([("not float32", {**batch, "tokens": jnp.float32(x)})] if data_name == "tokens" else []),
    ):
        yield f"train_step: batch.*{label}", lambda wrong=wrong: family.train_step(state, wrong, cfg)
    yield "train_step: state must be .*, not .*Other", lambda: family.train_step(Other(0, key), batch, cfg)
    yield (
        f"train_step: cfg must be .*, not .*{type(other).__module__.rpartition('.')[2]}.Config",
        (lambda: family.train_step(state, batch, other)),
    )
    yield "init: key must be a typed key .*, not 0", lambda: family.init(0, cfg)
    yield "init: cfg.shape must be", lambda: family.init(key, dataclasses.replace(cfg, shape=()))
    yield "sample: key must be a typed key", lambda: family.sample(jnp.zeros(2, jnp.uint32), state, 2, cfg)
    yield "sample: key must be one key", lambda: family.sample(jax.random.split(key, 3), state, 2, cfg)
    yield "sample: cfg must be", lambda: family.sample(key, state, 2, other)
    yield "sample: n must be at least 0, not -1", lambda: family.sample(key, state, -1, cfg)
    yield "sample: n must be an integer, not 2.5", lambda: family.sample(key, state, 2.5, cfg)
    yield (
        "sample: n must be an integer, not a traced one",
        (lambda: jax.jit(lambda n: family.sample(key, state, n, cfg))(2)),
    )
    for name in ("log_prob", "elbo", "encode", "reconstruct", "classify", "score"):
        function = getattr(family, name, None)
        if function:
            first = (key,) if name == "elbo" else ()
            yield (
                f"{name}: x must be of shape .*: give a batch, x\\[None\\]",
                (lambda function=function, first=first: function(*first, state, x[0], cfg)),
            )
            yield (
                f"{name}: x must be of shape",
                (lambda function=function, first=first: function(*first, state, wider, cfg)),
            )


OTHERS = importlib.import_module("jaxgen.autoencoder.ae"), importlib.import_module("jaxgen.classical.gmm")


def test_wrong_arguments_are_named(case):
    for words, call in wrong_calls(case):
        with pytest.raises(ValueError, match=rf"^\w+\.{words}[^\n]*(\n|$)") as raised:
            jax.eval_shape(call)
        assert len(str(raised.value).partition("\n---")[0].splitlines()) == 1


def test_every_option_is_explained(case):
    for part in parts_of(case.cfg):
        explained = {}
        for cls in type(part).__mro__:
            if cls in (nn.Module, values.Value, object) or not dataclasses.is_dataclass(cls):
                continue
            body = ast.parse(inspect.getsource(cls)).body[0].body
            for field, text in itertools.pairwise([*body, None]):
                if isinstance(field, ast.AnnAssign):
                    explained[field.target.id] = getattr(getattr(text, "value", None), "value", None)
        for field in values.options(part):
            sentence = explained.get(field.name)
            assert isinstance(sentence, str), f"{type(part).__name__}.{field.name}"
            assert " only:" not in sentence, f"{field.name} belongs to a part of its own"


def test_state_is_a_named_tuple_of_distinct_arrays(case):
    state = case.state
    assert isinstance(state, tuple)
    assert {"step", "key"} <= set(state._fields)
    assert state.step.dtype == jnp.int32
    assert state.step.shape == ()
    assert jnp.issubdtype(state.key.dtype, jax.dtypes.prng_key)

    def fresh():
        leaves = jax.tree.leaves(case.family.init(jax.random.key(0), case.cfg, case.batch))
        assert all(isinstance(leaf, jax.Array) for leaf in leaves)
        assert len({id(leaf) for leaf in leaves}) == len(leaves)
        return leaves

    jax.eval_shape(fresh)


def test_init_needs_no_batch_and_keeps_its_shapes(case):
    without = jax.eval_shape(lambda: case.family.init(jax.random.key(0), case.cfg))
    chex.assert_trees_all_equal_shapes_and_dtypes(without, case.state)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(without))  # a step would be compiled twice


def test_batches_of_numpy_are_taken_without_jit(case):
    batch = jax.tree.map(np.asarray, case.batch)
    jax.eval_shape(lambda key: case.family.init(key, case.cfg, batch), jax.random.key(0))
    jax.eval_shape(lambda state: case.family.train_step(state, batch, case.cfg), case.state)


def test_step_is_pure(case):
    before = unkeyed(case.state)
    first, second = case.stepped, case.step(case.state, case.batch)
    assert_same_bits(first, second)
    assert_same_bits(before, unkeyed(case.state))
    assert int(first[0].step) == int(case.state.step) + 1
    assert_same_bits(first[0].key, case.state.key)
    chex.assert_trees_all_equal_shapes_and_dtypes(first[0], case.state)


def test_metrics_are_finite_scalars_on_the_device(case):
    _, metrics = case.stepped
    assert metrics
    for name, value in metrics.items():
        assert isinstance(value, jax.Array), name
        assert value.shape == (), name
        assert np.isfinite(value), name


@pytest.mark.slow
def test_jit_equals_eager_and_scan_equals_loop(case):
    eager = case.family.train_step(case.state, case.batch, case.cfg)
    assert_close(eager, case.stepped)
    looped = case.state
    for _ in range(3):
        looped, _ = case.step(looped, case.batch)
    scanned, _ = jax.jit(
        lambda state: jax.lax.scan(
            lambda s, _: case.family.train_step(s, case.batch, case.cfg), state, length=3
        )
    )(case.state)
    assert_close(scanned, looped)


@pytest.mark.slow
def test_convolutions_of_a_step_are_channels_last(case):
    """On CPU those of other layouts take up to hundreds of times as long in the loop that `fit` makes."""
    text = case.step.lower(case.state, case.batch).as_text()
    found = re.findall(r"stablehlo\.convolution\(.*?dim_numbers = (\S.*?), window", text)
    assert len(found) == text.count("stablehlo.convolution(")
    for layout in found:
        x, kernel, y = re.fullmatch(r"\[(.*)\]x\[(.*)\]->\[(.*)\]", layout).groups()
        space = x.removeprefix("b, ").removesuffix(", f")
        assert (x, kernel, y) == (f"b, {space}, f", f"{space}, i, o", f"b, {space}, f")
        assert space == ", ".join(map(str, range(space.count(",") + 1)))


def test_equal_configs_do_not_retrace(case):
    traces = []

    def step(state, batch, cfg):
        traces.append(cfg)
        return case.family.train_step(state, batch, cfg)

    traced = jax.jit(step, static_argnums=2)
    for _ in range(2):
        traced.trace(case.state, case.batch, dataclasses.replace(case.cfg))
    assert len(traces) == 1


@pytest.mark.slow
def test_state_can_be_donated(case):
    step = jax.jit(functools.partial(case.family.train_step, cfg=case.cfg), donate_argnums=0)
    kept = state = jax.tree.map(jnp.copy, case.state)
    for _ in range(3):
        state, _ = step(state, case.batch)
    reference = case.state
    for _ in range(3):
        reference, _ = case.step(reference, case.batch)
    assert_close(state, reference)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(kept))


def test_samples_look_like_the_data(case):
    draw = jax.jit(lambda key: case.family.sample(key, case.state, 5, case.cfg))
    first, again, other = (np.asarray(draw(jax.random.key(seed))) for seed in (0, 0, 1))
    assert first.shape == (5, *case.dataset.shape)
    assert np.isfinite(first).all()
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_no_samples_are_an_empty_array(case):
    draw = lambda key: case.family.sample(key, case.state, 0, case.cfg)
    assert jax.eval_shape(draw, jax.random.key(0)).shape == (0, *case.dataset.shape)


@SOME
def test_no_examples_are_no_results(name):
    case = make_case(name)
    family, cfg, x, key = case.family, case.cfg, observed(case.batch)[:0], jax.random.key(1)
    for name in {"log_prob", "encode", "reconstruct", "score"} & set(dir(family)):
        found = jax.eval_shape(
            lambda state, x, name=name: getattr(family, name)(state, x, cfg), case.state, x
        )
        assert all(leaf.shape[0] == 0 for leaf in jax.tree.leaves(found))
    if hasattr(family, "elbo"):
        assert jax.eval_shape(lambda state, x: family.elbo(key, state, x, cfg), case.state, x).shape == (0,)


def test_capabilities_return_what_they_promise(case):
    """Shapes of every capability, and a measure of every likelihood; the family's own test has numbers."""
    family, cfg, x, key = case.family, case.cfg, observed(case.batch), jax.random.key(1)
    shape = lambda function: jax.eval_shape(function, case.state, x).shape
    checked = 0
    for name in {"log_prob", "elbo"} & set(dir(family)):
        if name == "log_prob":
            assert shape(lambda state, x: family.log_prob(state, x, cfg)) == (BATCH_SIZE,)
        else:
            assert shape(lambda state, x: family.elbo(key, state, x, cfg)) == (BATCH_SIZE,)
        assert family.measure(cfg) in likelihood.UNITS
        checked += 1
    if hasattr(family, "reconstruct"):
        assert shape(lambda state, x: family.reconstruct(state, x, cfg)) == x.shape
        checked += 1
    if hasattr(family, "loss"):
        value, metrics = jax.eval_shape(
            lambda params: family.loss(params, case.batch, key, cfg), case.state.params
        )
        assert value.shape == ()
        assert all(metric.shape == () for metric in metrics.values())
        checked += 1
    if not checked:
        pytest.skip("no density, no reconstruction and no loss")


@SOME
def test_losses_have_forward_derivatives(name):
    """A directional derivative by forward mode equals that by reverse mode."""
    case = make_case(name)
    if not hasattr(case.family, "loss"):
        pytest.skip("not trained by the gradient of one loss")
    loss = lambda params: case.family.loss(params, case.batch, jax.random.key(1), case.cfg)[0]
    direction = jax.tree.map(
        lambda x: jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), case.state.params
    )

    @jax.jit
    def both(params, direction):
        forward = jax.jvp(loss, (params,), (direction,))[1]
        products = jax.tree.map(lambda g, d: (g * d).sum(), jax.grad(loss)(params), direction)
        return forward, sum(jax.tree.leaves(products))

    forward, reverse = both(case.state.params, direction)
    np.testing.assert_allclose(forward, reverse, rtol=1e-3, atol=1e-4)


@SOME
def test_a_split_batch_gives_the_same_step(name):
    case = make_case(name)
    mesh = shard.mesh(data=8)
    state, batch = shard.replicate(case.state, mesh), shard.put_batch(case.batch, mesh)
    assert_close(case.step(state, batch), case.stepped, 1e-3)


@pytest.mark.slow
def test_eight_devices_equal_one(case):
    one, eight = (case.fit(3, mesh=shard.mesh(data=count)) for count in (1, 8))
    assert_close(one, eight, 1e-3)


@pytest.mark.slow
def test_a_sharded_state_equals_a_replicated_one(case):
    replicated, sharded = (case.fit(3, mesh=shard.mesh(fsdp=fsdp)) for fsdp in (1, 4))
    assert_close(replicated, sharded, 1e-3)


@SOME
def test_resuming_equals_a_straight_run_bit_for_bit(name, tmp_path):
    case = make_case(name)
    straight = case.fit(7)
    case.fit(3, run_dir=tmp_path)
    assert_same_bits(case.fit(7, run_dir=tmp_path), straight)


@pytest.mark.slow
def test_checkpoints_move_between_device_counts(case, tmp_path):
    eight, one = (shard.mesh(data=data, fsdp=fsdp) for data, fsdp in ((2, 4), (1, 1)))
    saved = case.fit(2, run_dir=tmp_path, mesh=eight)
    restored = case.fit(2, run_dir=tmp_path, mesh=one)
    assert_same_bits(saved, restored)
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(restored)} == {1}
    case.fit(3, run_dir=tmp_path, mesh=one)
    back = case.fit(3, run_dir=tmp_path, mesh=eight)
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(back)} == {8}
    family, cfg, loaded = jaxgen.load(tmp_path)
    assert (family, cfg) == (case.family, case.cfg)
    assert_same_bits(loaded, back)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_double_precision(name):
    """The loop, its dispatches and the sampler under jax_enable_x64; the State keeps the types of `init`."""
    with jax.enable_x64(True):
        case = make_case.__wrapped__(name)
        plain = jax.eval_shape(functools.partial(case.family.init, cfg=case.cfg), jax.random.key(0))
        chex.assert_trees_all_equal_shapes_and_dtypes(plain, case.state)
        after = case.fit(3, chunk=2)
        chex.assert_trees_all_equal_shapes_and_dtypes(after, case.state)
        sample = case.family.sample(jax.random.key(4), after, 2, case.cfg)
        assert sample.shape == (2, *case.dataset.shape)
        assert np.isfinite(sample).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_training_helps_on_real_data(name):
    case = make_case(name, "TRAINED")
    rows = []
    state = case.fit(300, mesh=shard.mesh(1), log_every=50, on_log=lambda _, row, state: rows.append(row))
    if {"loss", "nll"} & rows[0].keys():
        name = "loss" if "loss" in rows[0] else "nll"
        assert rows[-1][name] < rows[0][name]
        return
    # Players of a game have losses that need not fall: their samples must come nearer to the data.
    flat = lambda x: np.asarray(x).reshape(len(x), -1)
    real = flat(observed(case.dataset[:500]))
    draw = jax.jit(lambda state: case.family.sample(jax.random.key(4), state, 500, case.cfg))
    before, after = (mmd.mmd2(real, flat(draw(s))) for s in (case.state, state))
    assert after < 0.8 * before


def test_imports_are_light():
    code = f"""
import importlib, sys
for name in {sorted(FAMILIES)}:
    importlib.import_module(name)
    heavy = [module for module in {HEAVY} if module in sys.modules]
    assert not heavy, f"{{name}} imports {{heavy}}"
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_submodules_are_attributes_and_imported_when_named():
    code = """
import sys, jaxgen
assert "jaxgen.autoencoder.vae" not in sys.modules and "jaxgen.evaluation" not in sys.modules
assert jaxgen.autoencoder.vae.Config(num_latents=2).num_latents == 2
assert callable(jaxgen.evaluation.frechet.frechet_distance)
assert "gan" in dir(jaxgen) and "vae" in dir(jaxgen.autoencoder)
assert not hasattr(jaxgen, "nowhere") and not hasattr(jaxgen.gan, "nowhere")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
