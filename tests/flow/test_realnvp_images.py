"""RealNVP of images: its volume, the turns of its masks, its scales and labels, and that it learns."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgen
from jaxgen import data, types
from jaxgen.evaluation import likelihood
from jaxgen.flow import realnvp_images
from jaxgen.flow.dequantisation import Variational
from jaxgen.flow.preprocessing import Logit, Standardize
from jaxgen.flow.transforms import Additive
from jaxgen.nn.couplings import ConvNet, ResNet
from jaxgen.values import SGD
from tests.flow.check import assert_bijector, assert_inverts, shaken, wide

NOISE = Variational(num_layers=2, network=ConvNet(4))
SMALL = realnvp_images.Config(num_levels=1, num_couplings=2, network=ResNet(4, 1), optimizer=SGD(1e-3))
TRAINED = dataclasses.replace(realnvp_images.Config(), num_levels=1, num_couplings=2, network=ResNet(8, 1))
RANDOM = (
    dataclasses.replace(SMALL, network=ConvNet(4), conditional=True, dequantisation=NOISE),
    dataclasses.replace(SMALL, num_levels=2),
)
OPTIONS = {"levels": 33}
REAL = realnvp_images.Config(
    shape=(4, 4, 1),
    levels=0,
    num_levels=2,
    num_couplings=2,
    network=ResNet(4, 1),
    preprocessing=Standardize(),
)
LABELLED = dataclasses.replace(
    REAL, num_levels=1, num_couplings=1, network=ConvNet(4), num_classes=3, conditional=True
)

init = jax.jit(realnvp_images.init, static_argnums=1)
log_prob = jax.jit(realnvp_images.log_prob, static_argnums=2)


def images(n=10, seed=0):
    return wide(16, seed)[:n].reshape(-1, 4, 4, 1)


def started(cfg, scale=0.1, batch=None):
    state = init(jax.random.key(0), cfg, batch)
    return state._replace(ema=shaken(state.ema, scale), params=shaken(state.params, scale))


@pytest.mark.slow
def test_it_inverts_and_knows_its_volume():
    x, state = wide(16)[:40], started(REAL, 0.02)  # scales multiply over ten couplings
    assert_bijector(realnvp_images.flow(REAL), state.ema["flow"], x)
    assert_inverts(realnvp_images.flow(REAL), state.ema["flow"], x)


@pytest.mark.slow
def test_with_labels_it_inverts_and_knows_its_volume():
    context = jax.nn.one_hot(jnp.arange(60) % 3, 3)
    state = started(LABELLED)
    assert_bijector(realnvp_images.flow(LABELLED), state.ema["flow"], wide(16), context)
    x = images()
    each = [log_prob(state, x, LABELLED, jnp.full(10, c)) for c in range(3)]
    assert jnp.abs(each[0] - each[1]).max() > 0.01
    mean = jax.nn.logsumexp(jnp.stack(each), 0) - np.log(3)
    np.testing.assert_allclose(log_prob(state, x, LABELLED), mean, rtol=1e-4)


def test_couplings_are_as_many_at_each_scale_as_asked_for():
    cfg = dataclasses.replace(REAL, num_couplings=3)
    _, _, large = jax.eval_shape(lambda: realnvp_images.init(jax.random.key(0), cfg)).params["flow"]
    counts = []
    scale = large
    while len(scale) == 4:
        board, _, channels, scale = scale
        counts.append([part[1]["shift"].shape for part in (board, channels)])
    assert counts == [[(3, 1), (3, 4)], [(3, 2), (3, 8)]]
    assert scale[0][1]["shift"].shape == (4, 4)


@pytest.mark.slow
def test_it_begins_as_the_standardised_gaussian():
    """Couplings do nothing, and actnorms of numbers that are normalised nothing but rounding."""
    rng = np.random.default_rng(0)
    x = jnp.float32(3 + 2 * rng.normal(size=(4000, 4, 4, 1)))
    state = init(jax.random.key(0), REAL, {"x": x})
    z = realnvp_images.encode(state, x, REAL)
    standard = ((x - x.mean(0)) / x.std(0)).reshape(-1, 16)
    np.testing.assert_allclose(jnp.sort(z, 1), jnp.sort(standard, 1), atol=1e-3)


@pytest.mark.slow
def test_only_scales_change_the_volume_of_additive_couplings():
    cfg = dataclasses.replace(REAL, num_levels=1, transform=Additive())
    state, x = started(cfg), wide(16)
    pixels, _, (board, _, channels, (last, _)) = state.ema["flow"]
    _, log_det = jax.jit(realnvp_images.flow(cfg).forward)(state.ema["flow"], x)
    positions = {16: board, 4: channels}
    expected = -pixels["log_scale"].sum() - 4 * last[1]["log_scale"].sum()
    expected -= sum(count * part[1]["log_scale"].sum() for count, part in positions.items())
    np.testing.assert_allclose(log_det, expected, rtol=1e-4)


@pytest.mark.slow
def test_temperature_scales_the_noise_and_0_gives_its_mode():
    cfg = LABELLED
    state = started(cfg)
    label = jnp.arange(6) % 3
    draw = jax.jit(lambda t: realnvp_images.sample(jax.random.key(1), state, 6, cfg, label, temperature=t))
    z = jax.jit(lambda x: realnvp_images.encode(state, x, cfg, label))
    mode, cold, warm = draw(0.0), draw(0.5), draw(1.0)
    np.testing.assert_allclose(z(mode), 0, atol=1e-4)
    np.testing.assert_allclose(z(cold), 0.5 * z(warm), atol=1e-3)
    np.testing.assert_allclose(mode[0], mode[3], atol=1e-6)
    assert jnp.abs(mode[0] - mode[1]).max() > 0.01


def test_labels_where_none_were_trained_and_none_where_they_were():
    plain = dataclasses.replace(LABELLED, conditional=False)
    state, x, z = started(LABELLED), jnp.zeros((4, 4, 4, 1)), jnp.zeros((4, 16))
    for refused in (
        lambda: realnvp_images.log_prob(state, x, plain, 1),
        lambda: realnvp_images.elbo(jax.random.key(0), state, x, plain, 1),
        lambda: realnvp_images.encode(state, x, plain, 1),
        lambda: realnvp_images.decode(state, z, plain, jnp.arange(4)),
        lambda: realnvp_images.sample(jax.random.key(0), state, 4, plain, 0),
    ):
        with pytest.raises(ValueError, match="this model is unconditional"):
            refused()
    for refused in (
        lambda: realnvp_images.encode(state, x, LABELLED),
        lambda: realnvp_images.decode(state, z, LABELLED),
    ):
        with pytest.raises(ValueError, match="this model is conditional: give the label"):
            refused()
    with pytest.raises(ValueError, match='the batch has no "label"'):
        realnvp_images.loss(state.params, {"x": x}, jax.random.key(0), LABELLED)
    with pytest.raises(ValueError, match="a conditional model needs labels"):
        realnvp_images.init(jax.random.key(0), dataclasses.replace(LABELLED, num_classes=0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": (28, 28, 1), "num_levels": 3}, "a side of 28 can be squeezed 2 times, not 3: pad to 32"),
        ({"shape": (2,)}, r"a flow of images takes \(height, width, channels\), got \(2,\)"),
        ({"num_couplings": 0}, "must be at least 1"),
        ({"preprocessing": Logit()}, "logit preprocessing is for pixels"),
        ({"dequantisation": NOISE}, "variational dequantisation is for pixels"),
    ],
)
def test_data_it_cannot_take_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        realnvp_images.init(jax.random.key(0), dataclasses.replace(REAL, **changes))


@pytest.mark.slow
def test_far_away_and_at_extreme_parameters_nothing_is_nan():
    cfg = dataclasses.replace(REAL, num_levels=1, num_couplings=1)
    decode, state = jax.jit(realnvp_images.decode, static_argnums=2), started(cfg, 1.0)
    for x in (jnp.full((1, 4, 4, 1), 1e6), jnp.zeros((1, 4, 4, 1))):
        assert not np.isnan(log_prob(state, x, cfg)).any()
        assert not np.isnan(decode(state, x.reshape(1, 16), cfg)).any()


@pytest.mark.slow
def test_the_slope_of_the_logit_counts():
    """Pixels that are uniform on their levels have log2(levels) bits/dim, but for what the logit costs."""
    levels = 17
    image = np.random.default_rng(0).integers(0, levels, (2000, 4, 4, 1)) / (levels - 1) * 2 - 1
    pixels = data.Dataset("noise", "test", {"image": image.astype(np.float32)}, levels=levels)
    cfg = dataclasses.replace(REAL, num_levels=1, preprocessing=Logit(1e-6))
    cfg = types.from_data(realnvp_images, pixels, cfg)
    state = init(jax.random.key(0), cfg, pixels[:])
    for name, bound in (
        ("nll", lambda key, x: realnvp_images.log_prob(state, x, cfg)),
        ("negative_elbo", lambda key, x: realnvp_images.elbo(key, state, x, cfg)),
    ):
        found = likelihood.reported(
            jax.random.key(1), bound, pixels, realnvp_images.measure(cfg), name, batch_size=2000
        )
        bits = found[f"{name}_bits_per_dim"]["value"]
        assert bits == pytest.approx(np.log2(levels) + 0.0147 / np.log(2), abs=0.02)


@pytest.mark.slow
def test_it_learns_digits():
    train, test = data.load("digits"), data.load("digits", "test")
    cfg = types.from_data(realnvp_images, train, TRAINED)
    state = jaxgen.fit(realnvp_images, cfg, train, steps=300, batch_size=64, key=jax.random.key(0))
    first = realnvp_images.init(jax.random.key(0), cfg, train[:64])
    bound = jax.jit(lambda state: realnvp_images.elbo(jax.random.key(1), state, test[:]["image"], cfg).mean())
    assert bound(state) > bound(first) + 20
