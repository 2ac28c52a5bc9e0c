"""Latent diffusion against plain diffusion of the codes, around first stages that are and are not trivial."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgen
from jaxgen import data, types, values
from jaxgen.autoencoder import ae, vae, vector_networks, vq_vae
from jaxgen.autoencoder.networks import DenseDecoder, DenseEncoder
from jaxgen.diffusion import ddpm, latent, processes
from jaxgen.diffusion.networks import MLP, Transformer, UNet
from jaxgen.diffusion.samplers import DDIM

TINY = ddpm.Config(network=MLP((8,)), num_steps=10, sampler=DDIM(4))
VAE = vae.Config(encoder=DenseEncoder((16,)), decoder=DenseDecoder((16,)), num_latents=4)
SMALL = latent.Config(first=VAE, prior=TINY)
ELSEWHERE = ("first.", "prior.")
RANDOM = (
    latent.Config(
        first=VAE,
        prior=dataclasses.replace(TINY, network=MLP((8,), dropout=0.5), conditional=True),
        flip=True,
    ),
)
QUANTISED = vq_vae.Config(
    shape=(4, 4, 1),
    encoder=vector_networks.DenseEncoder(3, (8,)),
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
    cfg = latent.Config(shape=QUANTISED.shape, first=QUANTISED, prior=TINY)
    batch = {"image": jax.random.normal(jax.random.key(0), (16, 4, 4, 1))}
    return cfg, jax.jit(functools.partial(latent.init, cfg=cfg))(jax.random.key(1), batch=batch), batch


def test_a_config_holds_those_of_the_first_stage_and_of_the_codes():
    first = vae.Config(encoder=DenseEncoder((7,)), decoder=DenseDecoder((7,)), num_latents=5)
    cfg = latent.Config(shape=(3, 2), num_classes=4, first=first, prior=TINY)
    assert latent.first_config(cfg) == dataclasses.replace(first, shape=(3, 2))
    assert latent.prior(cfg) == dataclasses.replace(TINY, shape=(5,), levels=0, num_classes=4)
    quantised = vq_vae.Config(
        encoder=vector_networks.ResidualEncoder((4,)),
        decoder=vector_networks.ResidualDecoder((4,)),
        code_size=3,
    )
    assert latent.prior(latent.Config(first=quantised)).shape == (4, 4, 3)
    assert latent.code_shape(latent.Config(shape=QUANTISED.shape, first=QUANTISED)) == (3, 2)
    assert values.from_json(values.to_json(cfg)) == cfg
    for name in (
        "jaxgen.diffusion.latent:State",
        "jaxgen.script:Options",
    ):
        with pytest.raises(ValueError, match="nor the Config of a family"):
            values.from_json({"is": name})


def test_facts_of_the_data_are_the_first_stages_and_codes_have_no_levels():
    digits = data.load("digits")
    cfg = types.from_data(latent, digits, latent.Config(prior=TINY))
    assert (cfg.shape, cfg.num_classes) == (digits.shape, 10)
    assert not hasattr(cfg, "levels")
    assert cfg.first == types.from_data(vae, digits, vae.Config())
    assert latent.prior(cfg).levels == 0
    assert latent.prior(cfg).num_classes == 10


@pytest.mark.slow
def test_codes_have_unit_variance_and_decoding_quantises_them(quantised):
    cfg, state, batch = quantised
    codes = latent.encode(state, batch["image"], cfg)
    assert codes.shape == (16, 3, 2)
    assert float(codes.std()) == pytest.approx(1.0, abs=1e-5)
    given = vq_vae.to_codes(state.first, batch["image"], QUANTISED)
    np.testing.assert_allclose(codes, given / given.std(), rtol=1e-5)
    plain = vq_vae.reconstruct(state.first, batch["image"], QUANTISED)
    np.testing.assert_allclose(latent.reconstruct(state, batch["image"], cfg), plain, atol=1e-6)


@pytest.mark.slow
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
        return (
            latent.sample(key, state, 3, cfg),
            latent.trajectory(key, state, 3, cfg, frames=2),
        ), vq_vae.decode(state.first, nearest, QUANTISED)

    (x, path), wanted = draw(jax.random.key(2))
    np.testing.assert_allclose(x, wanted, atol=1e-5)
    assert path.shape == (2, 3, 4, 4, 1)
    np.testing.assert_allclose(path[-1], x, atol=1e-5)


@pytest.mark.slow
def test_around_the_identity_it_is_diffusion_of_scaled_data():
    first = ae.Config(shape=(4,), encoder=Identity(), decoder=Identity())
    prior = dataclasses.replace(TINY, conditional=True)
    cfg = latent.Config(shape=(4,), num_classes=3, first=first, prior=prior)
    plain = dataclasses.replace(prior, shape=(4,), levels=0, num_classes=3)
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
    cfg = latent.Config(shape=(2, 2, 1), first=first, prior=dataclasses.replace(TINY, target="v"), flip=True)
    state = jax.jit(latent.init, static_argnums=1)(jax.random.key(0), cfg)

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
    for options, words in (
        ({"prior": ddpm.Config(network=UNet())}, r"U-Net takes images .* got \(16,\): use network mlp"),
        ({"prior": ddpm.Config(network=Transformer())}, r"DiT takes images .* got \(16,\): use network mlp"),
        ({"prior": dataclasses.replace(TINY, flip=True)}, "codes cannot be mirrored"),
        ({"first": vae.Config(conditional=True, num_classes=2)}, "first stage sees no labels"),
        ({"shape": (3,), "flip": True}, "only images"),
        ({"first": ddpm.Config()}, "configures no first stage"),
    ):
        cfg = latent.Config(**options)
        with pytest.raises(ValueError, match=words):
            jax.eval_shape(functools.partial(latent.init, cfg=cfg), jax.random.key(0))


@pytest.mark.slow
def test_a_run_is_loaded_with_its_first_stage(tmp_path):
    digits = data.load("digits")
    cfg = types.from_data(latent, digits, SMALL)
    options = {"steps": 1, "batch_size": 8, "key": jax.random.key(0), "sample_every": 0}
    jaxgen.fit(latent, cfg, digits, run_dir=tmp_path, mesh=jaxgen.shard.mesh(1), **options)
    family, again, state = jaxgen.load(tmp_path)
    assert (family, again, int(state.step)) == (latent, cfg, 1)


@pytest.mark.slow
def test_it_learns_more_of_digits_than_each_code_alone_tells():
    train, test = (jnp.asarray(data.load("digits", split)[:]["image"]) for split in ("train", "test"))
    first_cfg = ae.Config(
        shape=train.shape[1:], encoder=DenseEncoder((64,)), decoder=DenseDecoder((64,)), num_latents=16
    )
    prior = ddpm.Config(network=MLP((128, 128)), num_steps=200, target="x0")
    cfg = latent.Config(shape=train.shape[1:], first=first_cfg, prior=prior)

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
    assert float(drawn.std(0).mean()) == pytest.approx(float(again.std(0).mean()), rel=0.2)
