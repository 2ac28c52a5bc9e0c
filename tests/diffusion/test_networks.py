"""What the four families share: the fields of `networks.Config`, and networks of the caller's own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen import values
from jaxgen.diffusion import consistency, ddpm, edm, flow_matching, networks

FAMILIES = (ddpm, edm, flow_matching, consistency)


class Scale(nn.Module):
    """One number times x, and one that stands for the label, where there are labels."""

    num_labels: int | None = None
    dtype: str | None = None

    @nn.compact
    def __call__(self, x, t, label=None, train=False):
        out = self.param("scale", nn.initializers.constant(0.3), ()).astype(self.dtype) * x
        if self.num_labels:
            out = out + nn.Embed(self.num_labels, 1)(label)
        return out


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_the_optimizer_and_the_average_are_the_configs(family):
    """A step of gradient descent by hand, and its average, of a network that is the caller's own."""
    cfg = family.Config(
        shape=(2,), network=Scale(), optimizer=values.SGD(0.1), average=values.Average(0.05), dtype="bfloat16"
    )
    assert networks.of(cfg) == Scale(num_labels=0, dtype="bfloat16")
    batch = {"x": jnp.ones((4, 2))}

    @jax.jit
    def step(key):
        state = family.init(key, cfg)
        options = {"intervals": 10} if family is consistency else {}
        step_key = jax.random.fold_in(state.key, 0)
        gradient = jax.grad(lambda p: family.loss(p, batch, step_key, cfg, **options)[0])(state.params)
        return state.params, gradient, family.train_step(state, batch, cfg)[0]

    before, gradient, after = step(jax.random.key(0))
    assert gradient["scale"] != 0
    wanted = before["scale"] - 0.1 * gradient["scale"]
    np.testing.assert_allclose(after.params["scale"], wanted, rtol=1e-3)
    np.testing.assert_allclose(after.ema["scale"], 0.05 * before["scale"] + 0.95 * wanted, rtol=1e-3)


def test_an_optax_optimizer_and_labels_are_filled_in():
    cfg = ddpm.Config(
        shape=(2,), network=Scale(), optimizer=optax.adam(0.1), conditional=True, num_classes=4, levels=0
    )
    state = jax.eval_shape(lambda key: ddpm.init(key, cfg), jax.random.key(0))
    assert state.params["Embed_0"]["embedding"].shape == (5, 1)
    assert jax.tree.structure(state.opt_state) == jax.tree.structure(optax.adam(0.1).init(state.params))


@pytest.mark.slow
def test_networks_of_ours_heed_their_options():
    """Each changes the parameters, or is the dropout that other tests see."""
    image = ddpm.Config(network=networks.UNet(width=8, num_groups=4), conditional=True, num_classes=2)

    def sizes(network, variance="fixed_large", **options):
        cfg = ddpm.Config(
            network=network, variance=variance, objective=ddpm.Bound(), num_classes=2, **options
        )
        params = jax.eval_shape(lambda key: ddpm.init(key, cfg), jax.random.key(0)).params
        return sorted(leaf.shape for leaf in jax.tree.leaves(params))

    for network, *changes in (
        (
            image.network,
            ("width", 16),
            ("multipliers", (1, 2, 4)),
            ("num_blocks", 2),
            ("attention_sizes", (8,)),
            ("patch", 2),
        ),
        (networks.Transformer(width=8, depth=1), ("width", 16), ("depth", 2), ("patch", 2)),
        (networks.MLP((4,)), ("widths", (4, 4))),
    ):
        found = sizes(network)
        for name, value in changes:
            assert sizes(network.clone(**{name: value})) != found, name
        assert sizes(network, conditional=True) != found
        assert sizes(network, "learned") != found
    for network, bad in ((image.network, "num_heads"), (networks.Transformer(width=8), "num_heads")):
        with pytest.raises(ValueError, match="3 heads do not divide"):
            sizes(network.clone(**{bad: 3}))
    with pytest.raises(ValueError, match="divi"):
        sizes(image.network.clone(num_groups=3))
