"""Every preset steps on what it is meant for, at the sizes it says it takes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest

from jaxgen.gan import gan, presets
from jaxgen.gan.penalties import GradientPenalty

CONFIGS = {name: preset.config for name, preset in presets.PRESETS.items()}
LARGE = {"dcgan_64": presets.DCGAN_64, "sngan_cifar10": presets.SNGAN_CIFAR10}


def traced(cfg, batch_size):
    """Shapes of the state before and after a step, of its metrics and of samples; nothing is computed."""
    state = jax.eval_shape(lambda: gan.init(jax.random.key(0), cfg))
    name = "image" if len(cfg.shape) == 3 else "x"
    batch = {
        name: jax.ShapeDtypeStruct((batch_size, *cfg.shape), jnp.float32),
        "label": jax.ShapeDtypeStruct((batch_size,), jnp.int32),
    }
    after, metrics = jax.eval_shape(functools.partial(gan.train_step, cfg=cfg), state, batch)
    samples = jax.eval_shape(lambda state: gan.sample(jax.random.key(0), state, 3, cfg), state)
    return state, after, metrics, samples


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CONFIGS | LARGE))
def test_every_preset_steps_and_samples(name):
    cfg = (CONFIGS | LARGE)[name]
    state, after, metrics, samples = traced(cfg, 4 * cfg.discriminator_steps)
    assert jax.tree.structure(state) == jax.tree.structure(after)
    assert jax.tree.leaves(state) == jax.tree.leaves(after)
    assert all(metric.shape == () for metric in metrics.values())
    assert samples.shape == (3, *cfg.shape)
    assert ("penalty" in metrics) == (cfg.penalty is not None)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nsgan", "dcgan", "r3gan"])
def test_presets_take_the_digits(name):
    cfg = dataclasses.replace(CONFIGS[name], shape=(8, 8, 1))
    assert traced(cfg, 8)[-1].shape == (3, 8, 8, 1)


def test_points_keep_the_loss_and_take_the_networks_of_the_plane():
    cfg = presets.points(presets.WGAN_GP, penalty=GradientPenalty(0.1))
    assert (cfg.loss, cfg.penalty) == ("wasserstein", GradientPenalty(0.1))
    state, _, _, samples = traced(cfg, 20)
    assert samples.shape == (3, 2)
    assert state.params["discriminator"]["body"]["Dense_0"]["kernel"].shape == (2, 1000)
    assert state.params["generator"]["Dense_3"]["kernel"].shape == (400, 400)


@pytest.mark.slow
def test_sizes_are_the_papers():
    count = lambda cfg, player: sum(
        leaf.size for leaf in jax.tree.leaves(traced(cfg, 8 * cfg.discriminator_steps)[0].params[player])
    )
    kernels = 16 * (1024 * 512 + 512 * 256 + 256 * 128 + 128 * 3) + 100 * 16 * 1024
    normalizations = 2 * (1024 + 512 + 256 + 128)
    assert count(presets.DCGAN_64, "generator") == kernels + normalizations + 3
