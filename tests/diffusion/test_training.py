"""What all diffusion models share in training and sampling, by networks so small that all is known."""

import dataclasses
import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.diffusion import consistency, curricula, ddpm, edm, flow_matching, samplers
from jaxgen.diffusion.networks import MLP
from jaxgen.values import SGD, Average, Constant


class Line(nn.Module):
    """w x + b."""

    @nn.compact
    def __call__(self, x, t, label=None, train=False):
        weight, bias = (self.param(name, nn.initializers.constant(0.5), ()) for name in ("weight", "bias"))
        return weight * x + bias


class ByLabel(nn.Module):
    """The label itself: 2 for none, so long as there are two."""

    def __call__(self, x, t, label, train=False):
        return jnp.broadcast_to(jnp.float32(label)[:, None], x.shape)


CONFIGS = {
    ddpm: ddpm.Config(levels=0, num_steps=20, sampler=samplers.DDIM(3)),
    edm: edm.Config(),
    flow_matching: flow_matching.Config(levels=0),
    consistency: consistency.Config(curriculum=curricula.Fixed(8)),
}
FAMILIES = [pytest.param(family, id=family.__name__.rpartition(".")[2]) for family in CONFIGS]
BATCH = {"x": 0.5 * jax.random.normal(jax.random.key(1), (16, 2)) + 1}


def config(family, **changes):
    return dataclasses.replace(CONFIGS[family], **{"shape": (2,), "network": Line(), **changes})


def loss(family, params, state, cfg):
    """The loss that a step minimises, by the key of that step."""
    arguments = {}
    if family is consistency:
        arguments["intervals"] = cfg.curriculum(state.step)
    return family.loss(params, BATCH, jax.random.fold_in(state.key, state.step), cfg, **arguments)[0]


def stepped(family, cfg, state):
    """The State after a step, and the gradient of its loss."""

    @jax.jit
    def both(state):
        gradient = jax.grad(lambda params: loss(family, params, state, cfg))(state.params)
        return family.train_step(state, BATCH, cfg)[0], gradient

    return both(state)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_descends_and_the_average_follows(family):
    cfg = config(family, optimizer=SGD(0.1), average=Average(0.9))
    state = family.init(jax.random.key(0), cfg)._replace(step=jnp.int32(2))
    state = state._replace(ema=jax.tree.map(lambda leaf: leaf - 7.0, state.ema))
    after, gradient = stepped(family, cfg, state)
    wanted = jax.tree.map(lambda leaf, slope: leaf - 0.1 * slope, state.params, gradient)
    chex.assert_trees_all_close(after.params, wanted, rtol=1e-5)
    kept = (1 + 2) / (10 + 2)  # at step 2, less than 0.9
    wanted = jax.tree.map(lambda old, new: kept * old + (1 - kept) * new, state.ema, after.params)
    chex.assert_trees_all_close(after.ema, wanted, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_step_size_warms_up_and_long_gradients_are_shortened(family):
    cfg = config(family, optimizer=SGD(0.1, schedule=Constant(warmup_steps=4), gradient_clip=1e-3))
    state = family.init(jax.random.key(0), cfg)
    for share in (0.0, 0.25, 0.5):
        after, gradient = stepped(family, cfg, state)
        norm = np.linalg.norm(jax.tree.leaves(gradient))
        assert norm > 1e-3
        wanted = jax.tree.map(
            lambda leaf, slope, share=share, norm=norm: leaf - share * 0.1 * 1e-3 / norm * slope,
            state.params,
            gradient,
        )
        moved = [np.subtract(*map(jax.tree.leaves, (tree, state.params))) for tree in (after.params, wanted)]
        np.testing.assert_allclose(*moved, rtol=2e-2, atol=1e-7)
        state = after


@pytest.mark.parametrize("family", FAMILIES)
def test_all_but_training_goes_by_the_average(family):
    """Other parameters change nothing, and another average does."""
    cfg = config(family)
    state = family.init(jax.random.key(0), cfg)
    moved = jax.tree.map(lambda leaf: leaf + 0.3, state.params)
    uses = {"sample": lambda state: family.sample(jax.random.key(2), state, 3, cfg)}
    for name in ("score", "log_prob"):
        if hasattr(family, name):
            uses[name] = lambda state, name=name: getattr(family, name)(state, BATCH["x"], cfg)
    if hasattr(family, "elbo"):
        uses["elbo"] = lambda state: family.elbo(jax.random.key(2), state, BATCH["x"], cfg)
    for name, use in uses.items():
        found = [jax.jit(use)(s) for s in (state, state._replace(params=moved), state._replace(ema=moved))]
        np.testing.assert_array_equal(found[0], found[1], err_msg=name)
        assert np.abs(found[0] - found[2]).max() > 1e-3, name


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_is_in_training_alone(family):
    cfg, dry = (config(family, network=MLP((32,), dropout=rate)) for rate in (0.5, 0.0))
    state = family.init(jax.random.key(0), cfg)
    params = jax.tree.map(lambda leaf: leaf + 0.1, state.params)
    state = state._replace(params=params, ema=params)
    wet, without = (jax.jit(functools.partial(loss, family, cfg=c))(params, state) for c in (cfg, dry))
    assert abs(wet - without) > 1e-4
    drawn = [jax.jit(lambda c=c: family.sample(jax.random.key(2), state, 3, c))() for c in (cfg, dry)]
    np.testing.assert_array_equal(*drawn)


@pytest.mark.slow
@pytest.mark.parametrize("family", [edm, flow_matching], ids=["edm", "flow_matching"])
def test_labels_are_withheld_as_often_as_said(family):
    """Of the label 0, where none is 2: the loss of a network that says the label is higher by 2^2 a time."""
    cfg = config(family, network=ByLabel(), num_classes=2, conditional=True)
    batch = {"x": jnp.zeros((50_000, 2)), "label": jnp.zeros(50_000, jnp.int32)}
    losses = jax.jit(family.loss, static_argnums=3)
    found = [
        float(losses({}, batch, jax.random.key(0), dataclasses.replace(cfg, label_dropout=share))[0])
        for share in (0.0, 0.25)
    ]
    assert found[1] - found[0] == pytest.approx(0.25 * 2**2, abs=0.05)
    with pytest.raises(ValueError, match="label_dropout must be at least 0 and at most 1, not 1"):
        family.loss({}, batch, jax.random.key(0), dataclasses.replace(cfg, label_dropout=1.5))


def test_guidance_of_a_velocity_is_affine_between_the_two_models():
    cfg = config(flow_matching, network=ByLabel(), num_classes=2, conditional=True)
    state = flow_matching.init(jax.random.key(0), cfg)
    x, label = jnp.zeros((3, 2)), jnp.array([0, 1, 1])
    for scale in (0.0, 1.0, 3.0):
        found = flow_matching.velocity(state, cfg, label, scale)(x, jnp.float32(0.5))[:, 0]
        np.testing.assert_allclose(found, (1 - scale) * 2 + scale * label)


def test_the_noise_of_several_calls_adds_up_to_their_levels():
    """Of a function that returns what it is given: each level less the smallest, drawn anew each time."""
    levels, smallest = (3.0, 2.0, 1.0), 0.8
    x = consistency.multistep(
        lambda x, level: x, jnp.zeros((200_000, 1)), levels, jax.random.key(0), smallest
    )
    assert float(x.var()) == pytest.approx(sum(level**2 - smallest**2 for level in levels), rel=0.01)


def test_dropout_of_a_consistency_model_is_that_of_its_target():
    """Both sides of a pair lose the same features, as the papers say."""
    seen = []

    class Spy(nn.Module):
        @nn.compact
        def __call__(self, x, t, label=None, train=False):
            if train:
                seen.append(nn.Dropout(0.5, deterministic=False)(jnp.ones((4, 8))))
            return x

    cfg = config(consistency, network=Spy())
    consistency.loss({}, BATCH, jax.random.key(0), cfg, 8)
    first, second = seen
    assert 0 < (first == 0).mean() < 1
    np.testing.assert_array_equal(first, second)
