"""Latent diffusion against plain diffusion of the codes, around first stages that are and are not trivial."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import data
from jaxgen.autoencoder import ae, vae, vq_vae
from jaxgen.autoencoder.networks import DenseDecoder
from jaxgen.autoencoder.vector_networks import DenseEncoder, ResidualDecoder, ResidualEncoder
from jaxgen.diffusion import ddpm, latent, processes

TINY = {"network": "mlp", "hidden": (8,), "num_steps": 10, "sampling_steps": 4}
QUANTISED = vq_vae.Config(
    shape=(4, 4, 1),
    encoder=DenseEncoder(3, (8,)),
    decoder=DenseDecoder((8,)),
    num_codes=5,
    code_size=2,
)


class Identity(nn.Module):
    """What it is given."""

    def __call__(self, x):
        return x


@pytest.fixture(scope="module")
def quantised():
    cfg = latent.config(QUANTISED, **TINY)
    batch = {"image": jax.random.normal(jax.random.key(0), (16, 4, 4, 1))}
    return cfg, jax.jit(functools.partial(latent.init, cfg=cfg))(jax.random.key(1), batch=batch), batch


def test_a_config_holds_that_of_the_first_stage():
    first = vae.Config(shape=(3, 2), decoder=DenseDecoder((7,)), num_latents=5)
    cfg = latent.config(first, width=16)
    assert (cfg.first, cfg.shape, cfg.width) == ("vae", (3, 2), 16)
    assert cfg.first_options == (("num_latents", 5), ("decoder", DenseDecoder((7,))))
    assert latent.first_config(cfg) == first
    assert latent.prior(cfg) == ddpm.Config(shape=(5,), levels=0, network="mlp", width=16)
    quantised = vq_vae.Config(encoder=ResidualEncoder((4,)), decoder=ResidualDecoder((4,)), code_size=3)
    assert latent.prior(latent.config(quantised, network="unet")).shape == (4, 4, 3)
    assert latent.code_shape(latent.config(QUANTISED)) == (3, 2)


def test_codes_have_unit_variance_and_decoding_quantises_them(quantised):
    cfg, state, batch = quantised
    codes = latent.encode(state, batch["image"], cfg)
    assert codes.shape == (16, 3, 2)
    assert float(codes.std()) == pytest.approx(1.0, abs=1e-5)
    given = vq_vae.to_codes(state.first, batch["image"], QUANTISED)
    np.testing.assert_allclose(codes, given / given.std(), rtol=1e-5)
    plain = vq_vae.reconstruct(state.first, batch["image"], QUANTISED)
    np.testing.assert_allclose(latent.reconstruct(state, batch["image"], cfg), plain, atol=1e-6)


def test_a_step_leaves_the_first_stage(quantised):
    cfg, state, batch = quantised
    after, _ = jax.jit(functools.partial(latent.train_step, cfg=cfg))(state, batch)
    same = lambda *pair: jax.tree.leaves(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), *pair))
    assert all(same((state.first, state.scale), (after.first, after.scale)))
    assert not all(same(state.params, after.params))


def test_samples_are_decoded_samples_of_codes(quantised):
    cfg, state, _ = quantised

    @jax.jit
    def draw(key):
        codes = ddpm.sample(key, latent.ddpm_state(state), 3, latent.prior(cfg))
        nearest = vq_vae.nearest(codes / state.scale, state.first.params["codebook"])
        return latent.sample(key, state, 3, cfg, frames=2), vq_vae.decode(state.first, nearest, QUANTISED)

    (x, path), wanted = draw(jax.random.key(2))
    np.testing.assert_allclose(x, wanted, atol=1e-5)
    assert path.shape == (2, 3, 4, 4, 1)
    np.testing.assert_allclose(path[-1], x, atol=1e-5)


def test_around_the_identity_it_is_diffusion_of_scaled_data():
    first = ae.Config(shape=(4,), encoder=Identity(), decoder=Identity())
    cfg = latent.config(first, num_classes=3, conditional=True, **TINY)
    plain = ddpm.Config(shape=(4,), levels=0, num_classes=3, conditional=True, **TINY)
    assert latent.prior(cfg) == plain
    x, label = 5 * jax.random.normal(jax.random.key(0), (32, 4)), jnp.arange(32) % 3

    @jax.jit
    def both(key):
        batch = {"x": x, "label": label}
        state = latent.around(key, ae.init(key, first), cfg, batch)
        state, metrics = latent.train_step(state, batch, cfg)
        wanted, known = ddpm.train_step(ddpm.init(key, plain), {**batch, "x": x / x.std()}, plain)
        options = {"label": 1, "guidance": 2.0}
        samples = ddpm.sample(key, wanted, 5, plain, **options) * x.std()
        pairs = (metrics, known), (state.params, wanted.params), (state.ema, wanted.ema)
        return *pairs, (latent.sample(key, state, 5, cfg, **options), samples)

    for found, wanted in both(jax.random.key(1)):
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_pictures_are_mirrored_before_they_are_encoded():
    first = ae.Config(shape=(2, 2, 1), encoder=Identity(), decoder=Identity())
    cfg = latent.config(first, **TINY, flip=True, target="v")
    state = latent.init(jax.random.key(0), cfg)

    @jax.jit
    def losses(image):
        step = lambda cfg: latent.train_step(state, {"image": image}, cfg)[1]["loss"]
        return step(cfg), step(dataclasses.replace(cfg, flip=False))

    image = jnp.tile(jnp.array([[1.0, -1.0], [2.0, -2.0]])[None, :, :, None], (64, 1, 1, 1))
    some, none = map(float, losses(image))
    assert len({some, none, float(losses(image[:, :, ::-1])[1])}) == 3
    some, none = map(float, losses(jnp.abs(image)))
    assert some == pytest.approx(none, rel=1e-5)


def test_what_does_not_go_together_is_refused():
    for cfg, words in (
        (latent.Config(levels=256), "leave levels at 0"),
        (latent.Config(network="unet"), r"got \(16,\): use network mlp"),
        (latent.Config(first="vq_vae", first_options=(("num_latents", 3),)), r"do not fit .* vq_vae"),
        (latent.config(vae.Config(conditional=True, num_classes=2)), "first stage sees no labels"),
        (latent.config(ae.Config(shape=(3,)), flip=True), "only images"),
    ):
        with pytest.raises(ValueError, match=words):
            jax.eval_shape(functools.partial(latent.init, cfg=cfg), jax.random.key(0))
    with pytest.raises(ValueError, match="no first stage: there are ae, vae, vq_vae"):
        latent.config(ddpm.Config())


@pytest.mark.slow
def test_it_learns_more_of_digits_than_each_code_alone_tells():
    train, test = (jnp.asarray(data.load("digits", split)[:]["image"]) for split in ("train", "test"))
    first_cfg = ae.Config(shape=train.shape[1:], num_latents=16)
    cfg = latent.config(first_cfg, hidden=(128, 128), num_steps=200, target="x0")

    def scan(step, state, steps, key):
        def body(state, key):
            rows = jax.random.randint(key, (128,), 0, len(train))
            return step(state, {"image": train[rows]})[0], None

        return jax.lax.scan(body, state, jax.random.split(key, steps))[0]

    @jax.jit
    def fit(key):
        keys = jax.random.split(key, 5)
        first = scan(
            functools.partial(ae.train_step, cfg=first_cfg), ae.init(keys[0], first_cfg), 500, keys[1]
        )
        state = latent.around(keys[2], first, cfg, {"image": train})
        state = scan(functools.partial(latent.train_step, cfg=cfg), state, 3000, keys[3])
        codes = [latent.encode(state, x, cfg) for x in (train, test)]
        found = ddpm.loss(state.ema, {"x": codes[1]}, keys[4], latent.prior(cfg))[0]
        return codes[0], found, latent.sample(key, state, 500, cfg), latent.reconstruct(state, test, cfg)

    codes, found, drawn, again = fit(jax.random.key(0))
    # The best prediction of each code from its own mean and variance.
    alpha, sigma = (
        level[:, None] for level in processes.levels(ddpm.process(latent.prior(cfg)), np.arange(200))
    )
    variances = np.asarray(codes).var(0)
    left = (sigma**2 * variances / (alpha**2 * variances + sigma**2)).mean()
    assert found < 0.95 * left
    # Samples are spread over the pixels as data are, up to what the first stage loses.
    assert float(drawn.std(0).mean()) == pytest.approx(float(again.std(0).mean()), rel=0.15)
