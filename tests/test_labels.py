"""Labels are checked alike by every function of every family that takes them."""

import dataclasses
import functools
import importlib
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgen
from jaxgen import data, labels, types
from jaxgen.classical import gda, naive_bayes
from jaxgen.gan import gan

KEY = jax.random.key(0)
FAMILIES = [
    name
    for name, family in jaxgen.families().items()
    if name.split(".")[1] != "classical" and "label" in inspect.signature(family.sample).parameters
]


@functools.cache
def make_case(name):
    """A family, two Configs, without and with labels, and a batch."""
    family = jaxgen.families()[name]
    _, package, module = name.split(".")
    own = importlib.import_module(f"tests.{package}.test_{module}")
    dataset = data.load("digits")
    configs = own.SMALL, *getattr(own, "RANDOM", ()), *getattr(own, "FURTHER", ())
    plain, *rest = (types.from_data(family, dataset, cfg) for cfg in configs)
    conditional = next(cfg for cfg in rest if "needs" in refusal(family, cfg))
    return family, plain, conditional, jax.tree.map(jnp.asarray, dict(dataset[:4]))


def refusal(family, cfg):
    """What is said of a Config whose data have no labels."""
    try:
        jax.eval_shape(lambda: family.init(KEY, dataclasses.replace(cfg, num_classes=0)))
    except ValueError as error:
        return str(error)
    return ""


def functions(family, cfg, batch):
    """Every function of a family that takes a label, as a function of it."""
    x, options = batch["image"], {}
    state = jax.tree.map(
        lambda leaf: KEY if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else jnp.zeros(leaf.shape),
        jax.eval_shape(functools.partial(family.init, cfg=cfg), KEY),
    )
    given = {"key": KEY, "state": state, "n": 4, "x": x, "cfg": cfg, "noise": x, "num_samples": 2}
    if family is gan:
        given["z"] = gan.draw_codes(KEY, 4, cfg)
    elif hasattr(cfg, "num_latents"):
        given["z"] = jnp.zeros((4, cfg.num_latents))
    elif hasattr(cfg, "num_dims"):
        given["z"] = jnp.zeros((4, cfg.num_dims))
        given |= {"params": state.params, "target_log_prob": lambda x: x.reshape(len(x), -1).sum(1)}
    for name, function in vars(family).items():
        parameters = inspect.signature(function).parameters if inspect.isfunction(function) else ()
        own = getattr(function, "__module__", "") == family.__name__
        ours = not name.startswith("_") and (own or name in getattr(family, "__all__", ()))
        if not ours or "label" not in parameters or name == "feature_maps":
            continue
        options = {each: given[each] for each in parameters if each in given}
        if "frames" in parameters:
            options["frames"] = 1
        yield name, functools.partial(function, **options)


@pytest.mark.parametrize("name", FAMILIES)
def test_labels_of_no_class_and_of_unconditional_models_are_refused(name):
    family, plain, conditional, batch = make_case(name)
    count = gan.num_labels(conditional) if family is gan else conditional.num_classes
    seen = set()
    for function_name, function in functions(family, conditional, batch):
        for label in (count, -1, np.array([0, count, 1, 1])):
            with pytest.raises(ValueError, match=f"of no class: there are 0 to {count - 1}"):
                function(label=label)
        with pytest.raises(ValueError, match="labels are integers"):
            function(label=0.5)
        seen.add(function_name)
    assert "sample" in seen
    for _, function in functions(family, plain, batch):
        with pytest.raises(ValueError, match="unconditional"):
            function(label=1)
    with pytest.raises(ValueError, match="for 4 examples"):
        jax.eval_shape(lambda: dict(functions(family, conditional, batch))["sample"](label=np.zeros(3, int)))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_conditional_model_is_not_trained_without_labels(name):
    family, _, conditional, batch = make_case(name)
    assert "labels" in refusal(family, conditional)
    state = jax.eval_shape(functools.partial(family.init, cfg=conditional), KEY)
    step = functools.partial(family.train_step, cfg=conditional)
    jax.eval_shape(step, state, batch)
    with pytest.raises(ValueError, match='the batch has no "label"'):
        jax.eval_shape(step, state, {"image": batch["image"]})


def test_labels_are_those_given_or_drawn():
    np.testing.assert_array_equal(labels.given(2, 3, 4), [2, 2, 2])
    np.testing.assert_array_equal(labels.given(np.array([0, 3]), 2, 4), [0, 3])
    np.testing.assert_array_equal(jax.jit(lambda label: labels.given(label, 2, 4))(1), [1, 1])
    assert (
        labels.given(None, 3, 0) is labels.drawn(KEY, None, 3, 0) is labels.of_batch({"label": 1}, 0) is None
    )
    drawn = labels.drawn(KEY, None, 4000, 4)
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / 4000, 0.25, atol=0.05)
    np.testing.assert_array_equal(labels.drawn(KEY, 1, 2, 4), [1, 1])
    with pytest.raises(ValueError, match="give the label of every example"):
        labels.given(None, 3, 4)


@pytest.mark.parametrize("family", [gda, naive_bayes], ids=lambda family: family.__name__)
def test_so_are_they_of_models_that_always_have_labels(family):
    dataset = data.load("digits")
    cfg = types.from_data(family, dataset, family.Config())
    sample = functools.partial(family.sample, KEY, family.init(KEY, cfg), 4, cfg)
    for label in (10, -1, np.array([0, 10, 1, 1])):
        with pytest.raises(ValueError, match="of no class: there are 0 to 9"):
            sample(label=label)
    for label in ("3", 3.0):
        with pytest.raises(ValueError, match="labels are integers"):
            sample(label=label)
    with pytest.raises(ValueError, match="for 4 examples"):
        sample(label=np.zeros(3, int))
