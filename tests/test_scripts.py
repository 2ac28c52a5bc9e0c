"""Every system of the experiment scripts takes a step on the data it is meant for; nothing is computed."""

import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from experiments import autoencoder, autoregressive, belief, boltzmann, classical, diffusion, energy, flow
from jaxgen import data, types

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
DOWNLOADS = {"mnist": ((28, 28, 1), 10), "fashion_mnist": ((28, 28, 1), 10), "cifar10": ((32, 32, 3), 10)}
"""Shapes and classes of the data sets that tests do not load."""
SCRIPTS = (autoencoder, autoregressive, belief, boltzmann, classical, diffusion, energy, flow)
"""tests/gan/test_presets.py has those of gan.py."""


CASES = {f"{s.__name__} {name}": system for s in SCRIPTS for name, system in s.SYSTEMS.items()}


@functools.cache
def examples(name):
    """A data set of this name, or one picture in its shape, half of it white."""
    if name not in DOWNLOADS:
        return data.load(name)
    shape, num_classes = DOWNLOADS[name]
    image = jnp.zeros((1, *shape), jnp.uint8).at[:, : shape[0] // 2].set(255)
    arrays = {"image": image, "label": jnp.zeros(1, jnp.int32)}
    return data.Dataset(name, "train", arrays, num_classes=num_classes)


@pytest.mark.slow
@pytest.mark.parametrize("double", [False, True], ids=["single", "double"])
@pytest.mark.parametrize("case", CASES)
def test_every_system_steps_and_samples(case, double):
    with jax.enable_x64(double):
        _steps_and_samples(case)


def _steps_and_samples(case):
    family, options = CASES[case].family, CASES[case].options
    dataset = examples(options.data)
    cfg = types.from_data(family, dataset, CASES[case].config)
    assert cfg.shape == dataset.shape
    batch = {
        name: jax.ShapeDtypeStruct((8, *value.shape[1:]), value.dtype) for name, value in dataset[:1].items()
    }
    state = jax.eval_shape(lambda batch: family.init(jax.random.key(0), cfg, batch), batch)
    after, metrics = jax.eval_shape(functools.partial(family.train_step, cfg=cfg), state, batch)
    assert jax.tree.structure(state) == jax.tree.structure(after)
    assert jax.tree.leaves(state) == jax.tree.leaves(after)
    assert metrics
    assert all(metric.shape == () for metric in metrics.values())
    samples = jax.eval_shape(lambda state: family.sample(jax.random.key(0), state, 3, cfg), state)
    assert samples.shape == (3, *cfg.shape)


def test_no_script_hides_a_module_of_the_standard_library():
    """A script's folder comes first on its path: JAX itself imports `compression` of Python 3.14."""
    scripts = {path.stem for path in EXPERIMENTS.rglob("*.py")}
    assert not scripts & (sys.stdlib_module_names | {"annotationlib", "compression"})
