"""A prior of the codes of a VQ-VAE: the prior alone on these codes, and drawn codes decoded."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import data, types, values
from jaxgen.autoencoder import vector_networks, vq_vae
from jaxgen.autoencoder.networks import DenseDecoder
from jaxgen.autoregressive import codes, pixelcnn, transformer
from jaxgen.autoregressive.pixelcnn import GatedPixelCNN
from jaxgen.autoregressive.transformer import Transformer
from jaxgen.likelihoods import Symbols
from jaxgen.values import Adam

FIRST = vq_vae.Config(
    encoder=vector_networks.DenseEncoder(3, (8,)), decoder=DenseDecoder((8,)), num_codes=5, code_size=2
)
PRIOR = transformer.Config(network=Transformer(8, 1, 2), optimizer=Adam(1e-2))
SMALL = codes.Config(first=FIRST, prior=PRIOR)
CONDITIONAL = dataclasses.replace(PRIOR, network=Transformer(8, 1, 2, dropout=0.1), conditional=True)
RANDOM = (dataclasses.replace(SMALL, prior=CONDITIONAL),)
ELSEWHERE = tuple(
    f"prior.{name}" for name in ("shape", "num_classes", "levels", "likelihood", "network", "optimizer")
)
ELSEWHERE += ("first.", "prior=")

MAPS = vq_vae.Config(
    encoder=vector_networks.ResidualEncoder((4,)),
    decoder=vector_networks.ResidualDecoder((4,)),
    num_codes=5,
    code_size=2,
)


@functools.cache
def made(cfg):
    batch = dict(data.load("digits")[:32])
    cfg = types.from_data(codes, data.load("digits"), cfg)
    return cfg, jax.jit(codes.init, static_argnums=1)(jax.random.key(0), cfg, batch), batch


def test_the_default_prior_takes_the_codes_of_the_default_first_stage():
    cfg = types.from_data(codes, data.load("digits"), codes.Config())
    state = jax.eval_shape(lambda: codes.init(jax.random.key(0), cfg))
    drawn = jax.eval_shape(lambda state: codes.sample(jax.random.key(0), state, 3, cfg), state)
    assert drawn.shape == (3, 8, 8, 1)


@pytest.mark.slow
def test_the_prior_is_told_of_the_codes():
    cfg, state, batch = made(SMALL)
    prior = codes.prior(cfg)
    assert (prior.shape, prior.likelihood, prior.num_classes) == ((3, 1), Symbols(5), 10)
    assert codes.prior(codes.Config(first=MAPS)).shape == (4, 4, 1)
    x = jnp.asarray(batch["image"])
    tokens = codes.encode(state, x, cfg)
    np.testing.assert_array_equal(tokens[..., 0], vq_vae.encode(state.first, x, codes.first_config(cfg)))
    found = codes.code_log_prob(state, x, cfg)
    np.testing.assert_allclose(
        found, transformer.log_prob(codes.prior_state(state), tokens, prior), rtol=1e-6
    )
    assert values.from_json(values.to_json(cfg)) == cfg


def test_a_step_is_that_of_the_prior_and_leaves_the_first_stage():
    cfg, state, batch = made(SMALL)
    after, metrics = jax.jit(codes.train_step, static_argnums=2)(state, batch, cfg)
    tokens = {"tokens": codes.encode(state, jnp.asarray(batch["image"]), cfg)}
    step = jax.jit(transformer.train_step, static_argnums=2)
    alone, own = step(codes.prior_state(state), tokens, codes.prior(cfg))
    np.testing.assert_allclose(metrics["nll"], own["nll"], rtol=1e-5)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), after.params, alone.params
    )
    jax.tree.map(np.testing.assert_array_equal, after.first.params, state.first.params)


def test_samples_are_drawn_codes_decoded():
    cfg, state, _ = made(SMALL)
    key = jax.random.key(5)
    drawn = transformer.sample(key, codes.prior_state(state), 4, codes.prior(cfg), temperature=0.5)
    wanted = vq_vae.decode(state.first, drawn[..., 0], codes.first_config(cfg))
    np.testing.assert_allclose(codes.sample(key, state, 4, cfg, temperature=0.5), wanted, atol=1e-6)


@pytest.mark.slow
def test_maps_of_codes_go_through_convolutions():
    prior = pixelcnn.Config(network=GatedPixelCNN(4, 1))
    cfg, state, batch = made(codes.Config(first=MAPS, prior=prior))
    state, metrics = jax.jit(codes.train_step, static_argnums=2)(state, batch, cfg)
    assert np.isfinite(metrics["nll"])
    assert codes.sample(jax.random.key(0), state, 2, cfg).shape == (2, 8, 8, 1)
    assert codes.reconstruct(state, jnp.asarray(batch["image"]), cfg).shape == batch["image"].shape


@pytest.mark.slow
def test_codes_that_go_together_are_drawn_together():
    """Of two pictures the prior draws one or the other; the VQ-VAE alone mixes their codes."""
    x = jnp.concatenate([jnp.full((16, 8, 8, 1), -1.0), jnp.full((16, 8, 8, 1), 1.0)])
    cfg = codes.Config(first=MAPS, prior=dataclasses.replace(PRIOR, network=Transformer(16, 1, 2)))
    first_cfg, batch = codes.first_config(cfg), {"image": x}
    first = vq_vae.init(jax.random.key(0), first_cfg, batch)
    step = lambda state, _: vq_vae.train_step(state, batch, first_cfg)
    first, _ = jax.jit(lambda state: jax.lax.scan(step, state, length=100))(first)
    state = codes.around(jax.random.key(1), first, cfg)
    own = lambda state, _: codes.train_step(state, batch, cfg)
    state, metrics = jax.jit(lambda state: jax.lax.scan(own, state, length=200))(state)
    np.testing.assert_allclose(metrics["nll"][-1], np.log(2), atol=0.1)  # one bit for the picture
    pictures = vq_vae.reconstruct(first, x[15:17], first_cfg)
    mixed = lambda drawn: (jnp.abs(drawn[:, None] - pictures).max((2, 3, 4)).min(1) > 1e-3).mean()
    drawn = jax.jit(lambda key: codes.sample(key, state, 64, cfg))(jax.random.key(2))
    alone = jax.jit(lambda key: vq_vae.sample(key, first, 64, first_cfg))(jax.random.key(2))
    assert mixed(drawn) < 0.2 < 0.6 < mixed(alone)
