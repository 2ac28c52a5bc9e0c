"""One step of each player against the slope of what its paper maximises, and weights that are normalized."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit

from jaxgen.gan import gan
from jaxgen.gan.conditioning import Projection
from jaxgen.gan.networks import dcgan, mlp, resnet
from jaxgen.values import SGD

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
REAL = RNG.normal(size=(16, 2)) + 1
CODES = RNG.normal(size=(16, 3))

GAMES = {
    "minimax": (
        lambda real, fake: np.log(expit(real)).mean() + np.log(1 - expit(fake)).mean(),
        lambda fake: -np.log(1 - expit(fake)).mean(),
    ),
    "non_saturating": (
        lambda real, fake: np.log(expit(real)).mean() + np.log(1 - expit(fake)).mean(),
        lambda fake: np.log(expit(fake)).mean(),
    ),
    "least_squares": (
        lambda real, fake: -((real - 1) ** 2).mean() / 2 - (fake**2).mean() / 2,
        lambda fake: -((fake - 1) ** 2).mean() / 2,
    ),
    "hinge": (
        lambda real, fake: np.minimum(0, real - 1).mean() + np.minimum(0, -fake - 1).mean(),
        lambda fake: fake.mean(),
    ),
    "wasserstein": (lambda real, fake: real.mean() - fake.mean(), lambda fake: fake.mean()),
    "relativistic": (
        lambda real, fake: np.log(expit(real - fake)).mean(),
        None,
    ),
}
"""What the discriminator maximises, of its logits, and what the generator maximises."""


class Identity(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return x


def slopes(function, values):
    """Central differences of a function of float64 arrays, one for each entry."""
    found = []
    for index, array in enumerate(values):
        slope = np.zeros_like(array)
        for place in np.ndindex(array.shape):
            ends = []
            for move in (1e-6, -1e-6):
                moved = [a.copy() for a in values]
                moved[index][place] += move
                ends.append(function(*moved))
            slope[place] = (ends[0] - ends[1]) / 2e-6
        found.append(slope)
    return found


@pytest.mark.parametrize("loss", GAMES)
def test_each_player_climbs_what_its_paper_maximises(loss, monkeypatch):
    """Linear players, plain gradient descent, slopes by finite differences."""
    monkeypatch.setattr(gan, "draw_codes", lambda key, n, cfg, truncation=None: jnp.float32(CODES[:n]))
    cfg = gan.Config(
        shape=(2,),
        num_latents=3,
        generator=mlp.Generator(()),
        discriminator=Identity(),
        loss=loss,
        generator_optimizer=SGD(0.1),
        discriminator_optimizer=SGD(0.1),
    )
    state, batch = gan.init(KEY, cfg), {"x": jnp.float32(REAL)}
    values = lambda state, player: [
        np.float64(state.params[player]["Dense_0"][name]) for name in ("kernel", "bias")
    ]
    generator, discriminator = (values(state, player) for player in ("generator", "discriminator"))

    def logits(weight, bias, x):
        return (x @ weight + bias)[:, 0]

    def fake(weight, bias):
        return CODES @ weight + bias

    of_discriminator, of_generator = GAMES[loss]
    if of_generator is None:
        of_generator = lambda logits_of_fake: of_discriminator(logits_of_fake, logits(*discriminator, REAL))
    climbs = {
        "discriminator": slopes(
            lambda *own: of_discriminator(logits(*own, REAL), logits(*own, fake(*generator))), discriminator
        ),
        "generator": slopes(lambda *own: of_generator(logits(*discriminator, fake(*own))), generator),
    }
    for step, player in ((gan.discriminator_step, "discriminator"), (gan.generator_step, "generator")):
        after, _ = step(state, batch, KEY, cfg)
        assert max(np.abs(slope).max() for slope in climbs[player]) > 0.05
        for new, old, slope in zip(values(after, player), values(state, player), climbs[player], strict=True):
            np.testing.assert_allclose(new - old, 0.1 * slope, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "body",
    [
        mlp.Discriminator((8, 8), "spectral"),
        dcgan.Discriminator((4, 6), "spectral"),
        resnet.Discriminator((4, 4, 4)),
    ],
    ids=["mlp", "dcgan", "resnet"],
)
def test_a_spectral_discriminator_does_not_change_with_the_scale_of_any_kernel(body):
    """Those of convolutions, of the last layer and of the embedding of labels among them."""
    cfg = gan.Config(discriminator=body, conditioning=Projection(), num_classes=3)
    state = gan.init(KEY, cfg)
    x, label = jax.random.normal(KEY, (4, 8, 8, 1)), jnp.array([0, 1, 2, 0])
    judge = jax.jit(lambda params: gan.judge(state._replace(params=params), x, cfg, label).logits)
    wanted = judge(state.params)
    leaves, tree = jax.tree.flatten(state.params["discriminator"])
    kernels = [index for index, leaf in enumerate(leaves) if leaf.ndim > 1]
    assert len(kernels) >= 4
    for index in kernels:
        scaled = [3.0 * leaf if at == index else leaf for at, leaf in enumerate(leaves)]
        found = judge({**state.params, "discriminator": jax.tree.unflatten(tree, scaled)})
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-5)


def test_other_discriminators_do():
    cfg = dataclasses.replace(gan.Config(), discriminator=dcgan.Discriminator((4, 6), "none"))
    state = gan.init(KEY, cfg)
    x = jax.random.normal(KEY, (4, 8, 8, 1))
    tripled = {**state.params, "discriminator": jax.tree.map(lambda a: 3 * a, state.params["discriminator"])}
    first, second = (gan.judge(s, x, cfg).logits for s in (state, state._replace(params=tripled)))
    assert np.abs(first - second).max() > 1e-2
