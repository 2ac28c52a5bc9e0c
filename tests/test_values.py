"""Parts of a Config: optimizers against Optax's own, and what a config.json can and cannot name."""

import dataclasses
import json
import re
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen import fields, values


@dataclasses.dataclass(frozen=True)
class Own(values.Value):
    size: int = 1
    inner: values.Value = values.Constant()


class Network(nn.Module):
    widths: tuple[int, ...] = (2, 3)
    activation: object = nn.relu
    shape: tuple[int, ...] | None = None


def path_of(optimizer, steps=6):
    """Parameters on the way down a quadratic whose gradient is at first longer than 1."""
    if not isinstance(optimizer, optax.GradientTransformation):
        optimizer = optimizer()
    params, path = jnp.array([3.0, -1.0]), []
    state = optimizer.init(params)
    for _ in range(steps):
        updates, state = optimizer.update(2 * params, state, params)
        params = optax.apply_updates(params, updates)
        path.append(params)
    return np.stack(path)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (values.Adam(0.1), optax.adam(0.1)),
        (values.Adam(0.1, beta1=0.5, beta2=0.9, epsilon=1e-3), optax.adam(0.1, 0.5, 0.9, 1e-3)),
        (values.Adam(0.1, weight_decay=0.1), optax.adamw(0.1, weight_decay=0.1)),
        (values.RMSProp(0.1, decay=0.8), optax.rmsprop(0.1, 0.8)),
        (values.SGD(0.1, momentum=0.9), optax.sgd(0.1, 0.9)),
        (values.SGD(0.1, gradient_clip=0.5), optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1))),
        (values.SGD(0.1, schedule=values.Linear(4)), optax.sgd(optax.linear_schedule(0.1, 0.0, 4))),
        (values.SGD(0.1, schedule=values.Cosine(4)), optax.sgd(optax.cosine_decay_schedule(0.1, 4))),
        (
            values.SGD(0.1, schedule=values.Cosine(5, warmup_steps=2)),
            optax.sgd(optax.warmup_cosine_decay_schedule(0.0, 0.1, 2, 5)),
        ),
        (values.SGD(0.1, schedule=values.Constant(3)), optax.sgd(optax.linear_schedule(0.0, 0.1, 3))),
    ],
    ids=lambda value: type(value).__name__,
)
def test_optimizers_are_those_of_optax(ours, theirs):
    np.testing.assert_array_equal(path_of(ours), path_of(theirs))
    assert not np.array_equal(path_of(ours), path_of(dataclasses.replace(ours, learning_rate=0.2)))


def test_schedules_count_training_steps():
    for schedule in (values.Linear(4), values.Cosine(4), values.Cosine(6, 2), values.Constant(3)):
        once, thrice = (schedule(0.1, updates) for updates in (1, 3))
        np.testing.assert_allclose([once(i) for i in range(8)], [thrice(3 * i) for i in range(8)], atol=1e-8)


def test_an_optax_optimizer_stands_for_itself():
    sgd = optax.sgd(0.1)
    assert values.gradient_transformation(sgd) is sgd
    np.testing.assert_array_equal(path_of(values.gradient_transformation(values.SGD(0.1))), path_of(sgd))


def test_the_average_warms_up_and_then_forgets_by_its_decay():
    average = values.Average(0.9)
    np.testing.assert_allclose(average(jnp.zeros(()), jnp.ones(()), jnp.int32(0)), 0.9, rtol=1e-6)
    np.testing.assert_allclose(average(jnp.zeros(()), jnp.ones(()), jnp.int32(1000)), 0.1, rtol=1e-6)


@pytest.mark.parametrize("wrong", [{"learning_rate": -1.0}, {"gradient_clip": 0.0}])
def test_impossible_optimizers_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        values.Adam(**wrong)


def test_facts_are_filled_in_where_a_part_leaves_them_open():
    assert values.filled(Network(), shape=(4,), size=3) == Network(shape=(4,))
    assert values.filled(Network(shape=(5,)), shape=(4,)) == Network(shape=(5,))
    assert values.filled(None, shape=(4,)) is None


@pytest.mark.parametrize(
    "value",
    [
        values.Adam(0.1, schedule=values.Cosine(7), gradient_clip=2.0),
        Own(3, values.Linear(2)),
        Network((4,)),
        (1, (2.5, None), "word", True),
    ],
)
def test_parts_survive_json(value):
    again = values.from_json(json.loads(json.dumps(values.to_json(value))))
    assert again == value
    assert hash(again) == hash(value)


def test_numpy_numbers_are_written_as_numbers():
    assert values.to_json((np.int64(3), np.float32(0.5), np.bool_(True), jnp.float32(2))) == [
        3,
        0.5,
        True,
        2.0,
    ]


def test_what_is_no_json_is_not_written():
    class Local(nn.Module):
        pass

    for value in (lambda x: x, Network(activation=nn.tanh), optax.sgd(0.1), Local()):
        with pytest.raises(TypeError):
            values.to_json(value)


@pytest.mark.parametrize(
    "name",
    [
        "subprocess:Popen",
        "os:system",
        "builtins:eval",
        "antigravity:geohash",
        "__main__:Own",
        "jaxgen.values:from_json",
        "jaxgen.values:importlib.import_module",
        "jaxgen.values:nowhere",
        "no_such_module:Class",
        ":",
        "",
    ],
)
def test_a_stranger_can_name_nothing_but_parts(name, monkeypatch, tmp_path):
    import subprocess

    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("it was called"))
    with pytest.raises(ValueError):
        values.from_json({"is": name, "args": ["touch", str(tmp_path / "ran")]})
    assert not (tmp_path / "ran").exists()


def test_equal_parts_compile_once():
    traces = []

    @jax.tree_util.register_static
    @dataclasses.dataclass(frozen=True)
    class Config:
        network: nn.Module = Network()
        optimizer: values.Optimizer = values.Adam(0.1)

    @jax.jit
    def function(cfg):
        traces.append(cfg)
        return jnp.zeros(())

    for cfg in (Config(), Config(Network(), values.Adam(0.1)), Config(Network((2, 3)).clone())):
        function(cfg)
    assert len(traces) == 1


# Types of fields


@dataclasses.dataclass(frozen=True)
class Ranged(values.Value):
    count: fields.PositiveInt = 1
    share: fields.Fraction | None = None
    sizes: tuple[fields.PositiveInt, ...] = ()
    pair: tuple[int, int] = (1, 2)
    word: Literal["linear", "cosine"] = "linear"
    part: values.Adam | values.SGD | None = None
    flag: bool = False
    anything: Any = None
    size: Annotated[float, fields.Range(above=0, below=2)] = 1.0

    def __post_init__(self):
        assert self.count > 0, "it is called before the fields are checked"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"count": 0}, "count must be at least 1, not 0"),
        ({"count": 2.0}, "count must be an integer, not 2.0"),
        ({"count": True}, "count must be an integer, not True"),
        ({"share": 1.5}, "share must be at least 0 and at most 1, not 1.5"),
        ({"share": float("nan")}, "share must be at least 0 and at most 1, not nan"),
        ({"share": "half"}, "share must be a number, not 'half'"),
        ({"sizes": (3, 0)}, "sizes must be at least 1, not 0, in (3, 0)"),
        ({"sizes": [3]}, "sizes must be a tuple, not the list [3]"),
        ({"sizes": 3}, "sizes must be a tuple, not 3"),
        ({"pair": (1, 2, 3)}, "pair must have 2 entries, not (1, 2, 3)"),
        ({"word": "cosin"}, "word must be 'linear' or 'cosine', not 'cosin': did you mean 'cosine'?"),
        ({"word": 1}, "word must be 'linear' or 'cosine', not 1"),
        ({"part": "adm"}, "part must be Adam(), SGD() or None, not 'adm': did you mean Adam()?"),
        ({"part": values.SGD}, "did you mean SGD()?"),
        ({"flag": 1}, "flag must be True or False, not 1"),
        ({"size": 2}, "size must be above 0 and below 2, not 2"),
        ({"size": float("inf")}, "size must be above 0 and below 2, not inf"),
    ],
)
def test_a_field_of_another_type_is_refused_by_its_name(wrong, words):
    with pytest.raises(ValueError, match=rf"^test_values.Ranged: .*{re.escape(words)}"):
        Ranged(**wrong)
    with pytest.raises(ValueError, match=re.escape(words)):
        dataclasses.replace(Ranged(), **wrong)


def test_numbers_of_numpy_and_of_a_trace_are_numbers():
    Ranged(count=np.int64(3), share=np.float32(0.5), sizes=(np.int32(1),), flag=np.bool_(True), size=1)
    jax.jit(lambda rate: values.Adam(rate) and rate)(0.1)


def test_a_default_is_never_refused():
    @dataclasses.dataclass(frozen=True)
    class Careless(values.Value):
        rate: fields.PositiveFloat = None

    Careless()
    with pytest.raises(ValueError, match="rate"):
        Careless(-1.0)


def test_networks_are_checked_with_the_value_that_holds_them():
    class Typed(nn.Module):
        widths: tuple[fields.PositiveInt, ...] = (2, 3)

    @dataclasses.dataclass(frozen=True)
    class Holder(values.Value):
        network: nn.Module = Typed()
        several: tuple[nn.Module, ...] = ()

    for wrong in ({"network": Typed((0,))}, {"several": (Typed(), Typed((0,)))}):
        with pytest.raises(ValueError, match=r"Typed: widths must be at least 1"):
            Holder(**wrong)


def test_a_misspelt_field_of_a_file_is_named():
    with pytest.raises(TypeError, match="Adam has no 'learning_rat': did you mean learning_rate"):
        values.from_json({"is": "jaxgen.values:Adam", "learning_rat": 1.0})
