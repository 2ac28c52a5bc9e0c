"""Glow: its volume, what its first batch sets, its Gaussians and labels, and the bound of learned noise."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgen
from jaxgen import data, types
from jaxgen.flow import bijectors, glow, multiscale
from jaxgen.flow.dequantisation import Variational
from jaxgen.flow.preprocessing import Logit
from jaxgen.nn.couplings import ConvNet
from jaxgen.values import SGD, Average
from tests.flow.check import assert_bijector, assert_inverts, shaken, wide

NOISE = Variational(num_layers=2, network=ConvNet(4))
SMALL = glow.Config(num_levels=1, num_steps=2, network=ConvNet(4), optimizer=SGD(1e-3))
TRAINED = glow.Config(num_levels=1, num_steps=2, network=ConvNet(8))
RANDOM = (
    dataclasses.replace(SMALL, num_steps=1, conditional=True, dequantisation=NOISE),
    dataclasses.replace(SMALL, num_levels=2),
)
OPTIONS = {"levels": 33}
REAL = glow.Config(shape=(4, 4, 1), levels=0, num_levels=2, num_steps=2, network=ConvNet(4))
LABELLED = dataclasses.replace(REAL, num_levels=1, num_steps=1, num_classes=3, conditional=True)
PIXELS = dataclasses.replace(REAL, num_levels=1, num_steps=1, levels=5, dequantisation=NOISE)
LOG_SCALE = float(jax.nn.log_sigmoid(2.0))

init = jax.jit(glow.init, static_argnums=1)
log_prob = jax.jit(glow.log_prob, static_argnums=2)


def images(n=10, seed=0):
    return wide(16, seed)[:n].reshape(-1, 4, 4, 1)


def started(cfg, scale=0.1, batch=None):
    state = init(jax.random.key(0), cfg, batch)
    return state._replace(ema=shaken(state.ema, scale), params=shaken(state.params, scale))


@pytest.mark.slow
def test_it_inverts_and_knows_its_volume():
    x, state = wide(16), started(REAL)
    assert_bijector(glow.flow(REAL), state.ema["flow"], x)
    assert_inverts(glow.flow(REAL), state.ema["flow"], x)


@pytest.mark.slow
def test_with_labels_it_inverts_and_knows_its_volume():
    context = jax.nn.one_hot(jnp.arange(60) % 3, 3)
    assert_bijector(glow.flow(LABELLED), started(LABELLED).ema["flow"], wide(16), context)


@pytest.mark.slow
def test_the_first_batch_sets_the_volume_and_couplings_only_shrink():
    cfg = dataclasses.replace(REAL, num_levels=1)
    x = images(40)
    state = init(jax.random.key(0), cfg, {"x": x})
    pixels, _, (_, (actnorm, _, _), _, _) = state.params["flow"]
    _, log_det = glow.flow(cfg).forward(state.params["flow"], x.reshape(40, 16))
    expected = 2 * 8 * LOG_SCALE - pixels["log_scale"].sum() - 4 * actnorm["log_scale"].sum()
    np.testing.assert_allclose(log_det, expected, rtol=1e-4)
    assert actnorm["log_scale"].shape == (2, 4)


@pytest.mark.slow
def test_every_step_is_normalised_by_the_first_batch():
    x = images(60)
    pixels, _, (_, steps, _, _) = init(jax.random.key(0), REAL, {"x": x}).params["flow"]
    h = bijectors.diagonal(16).forward(pixels, x.reshape(60, 16))[0].reshape(x.shape)
    h = multiscale.squeeze().forward((), h)[0]
    actnorm = multiscale.everywhere(bijectors.diagonal(4))
    for index in range(REAL.num_steps):
        own = jax.tree.map(lambda a, index=index: a[index], steps)
        y = actnorm.forward(own[0], h)[0]
        np.testing.assert_allclose(y.mean((0, 1, 2)), 0, atol=1e-4)
        np.testing.assert_allclose(y.std((0, 1, 2)), 1, atol=1e-3)
        h = glow.step(REAL, (2, 2, 4)).forward(own, h)[0]


@pytest.mark.slow
def test_temperature_0_is_the_mode_of_the_noise():
    cfg = LABELLED
    state = started(cfg, 0.3)
    draw = jax.jit(lambda t: glow.sample(jax.random.key(1), state, 9, cfg, jnp.arange(9) % 3, temperature=t))
    mode, warm, cold = draw(0.0), draw(1.0), draw(0.5)
    z = jax.jit(lambda x: glow.encode(state, x, cfg, jnp.arange(9) % 3))
    np.testing.assert_allclose(z(mode), 0, atol=1e-4)
    np.testing.assert_allclose(z(cold), 0.5 * z(warm), atol=1e-3)
    np.testing.assert_array_equal(mode[0], mode[3])  # of one label
    assert jnp.abs(mode[0] - mode[1]).max() > 0.01  # the Gaussian of another has another mode
    assert jnp.abs(warm[0] - warm[3]).max() > 0.01


@pytest.mark.slow
def test_the_density_is_one_for_each_label_and_their_mean_without():
    state, x = started(LABELLED, 0.3), images(20)
    each = jnp.stack([log_prob(state, x, LABELLED, jnp.full(20, c)) for c in range(3)])
    assert jnp.abs(each[0] - each[1]).max() > 0.01
    np.testing.assert_allclose(log_prob(state, x, LABELLED), jax.nn.logsumexp(each, 0) - np.log(3), rtol=1e-4)


def test_labels_where_none_were_trained_and_none_where_they_were():
    state, plain = jax.eval_shape(lambda: started(LABELLED)), dataclasses.replace(LABELLED, conditional=False)
    x, z = jnp.zeros((4, 4, 4, 1)), jnp.zeros((4, 16))
    for refused in (
        lambda: glow.log_prob(state, x, plain, 1),
        lambda: glow.elbo(jax.random.key(0), state, x, plain, 1),
        lambda: glow.encode(state, x, plain, 1),
        lambda: glow.decode(state, z, plain, jnp.arange(4)),
        lambda: glow.sample(jax.random.key(0), state, 4, plain, 0),
    ):
        with pytest.raises(ValueError, match="this model is unconditional"):
            refused()
    for refused in (
        lambda: glow.encode(state, x, LABELLED),
        lambda: glow.decode(state, z, LABELLED),
    ):
        with pytest.raises(ValueError, match="this model is conditional: give the label"):
            refused()
    with pytest.raises(ValueError, match='the batch has no "label"'):
        glow.loss({"flow": state.params, "noise": ()}, {"x": x}, jax.random.key(0), LABELLED)
    with pytest.raises(ValueError, match="label 3 is of no class: there are 0 to 2"):
        glow.log_prob(state, x, LABELLED, 3)
    with pytest.raises(ValueError, match="a conditional model needs labels"):
        glow.init(jax.random.key(0), dataclasses.replace(LABELLED, num_classes=0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": (28, 28, 1), "num_levels": 3}, "a side of 28 can be squeezed 2 times, not 3: pad to 32"),
        ({"shape": (2,)}, r"a flow of images takes \(height, width, channels\), got \(2,\)"),
        ({"num_steps": 0}, "must be at least 1"),
        ({"preprocessing": Logit()}, "logit preprocessing is for pixels"),
        ({"dequantisation": NOISE}, "variational dequantisation is for pixels"),
    ],
)
def test_data_it_cannot_take_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        glow.init(jax.random.key(0), dataclasses.replace(REAL, **changes))


@pytest.mark.slow
@pytest.mark.parametrize(("num_steps", "scale"), [(1, 1.0), (1, 100.0), (2, 3.0)])
def test_far_away_and_at_extreme_parameters_nothing_is_nan(num_steps, scale):
    """Until numbers overflow in several steps after one another: then it is NaN, which `fit` refuses."""
    cfg = dataclasses.replace(REAL, num_levels=1, num_steps=num_steps)
    decode, state = jax.jit(glow.decode, static_argnums=2), started(cfg, scale)
    for x in (jnp.full((1, 4, 4, 1), 1e6), jnp.zeros((1, 4, 4, 1))):
        assert not np.isnan(log_prob(state, x, cfg)).any()
        assert not np.isnan(decode(state, x.reshape(1, 16), cfg)).any()


@pytest.mark.slow
def test_the_bound_is_one_on_the_probability_of_the_levels():
    """Its exponential is unbiased, whatever the noise, and so it is lower on average."""
    state = started(PIXELS, 0.1)
    x = jnp.broadcast_to(jnp.linspace(-1, 1, 5)[jnp.arange(16) % 5].reshape(4, 4, 1), (4000, 4, 4, 1))
    uniform = dataclasses.replace(PIXELS, dequantisation=glow.Uniform())
    learned, plain = (
        jax.jit(lambda key, cfg=cfg: glow.elbo(key, state, x, cfg))(jax.random.key(5))
        for cfg in (PIXELS, uniform)
    )
    exact = [np.log(np.exp(np.float64(bound)).mean()) for bound in (learned, plain)]
    np.testing.assert_allclose(exact[0], exact[1], atol=0.3)
    for bound, value in zip((learned, plain), exact, strict=True):
        assert bound.mean() < value
    noisy = x + 0.2 * jax.random.uniform(jax.random.key(6), x.shape, minval=-1.0)
    again = jax.jit(lambda key: glow.elbo(key, state, noisy, PIXELS))(jax.random.key(5))
    np.testing.assert_allclose(again, learned, atol=1e-3)


def test_the_loss_is_the_bound():
    state = init(jax.random.key(0), PIXELS)
    x = jnp.float32(np.random.default_rng(0).integers(0, 5, (8, 4, 4, 1)) / 2 - 1)
    params = shaken(state.params, 0.1)
    both = jax.jit(
        lambda key: (
            glow.loss(params, {"image": x}, key, PIXELS)[0],
            glow.elbo(key, state._replace(ema=params), x, PIXELS),
        )
    )
    value, bound = both(jax.random.key(1))
    np.testing.assert_allclose(value, -bound.mean(), rtol=1e-5)


@pytest.mark.slow
def test_samples_are_of_the_average():
    cfg = dataclasses.replace(PIXELS, dequantisation=glow.Uniform(), average=Average(0.5))
    batch = {"image": jnp.zeros((8, 4, 4, 1))}
    state = init(jax.random.key(0), cfg, batch)
    after, _ = jax.jit(glow.train_step, static_argnums=2)(state, batch, cfg)
    middle = jax.tree.map(lambda old, new: 0.1 * old + 0.9 * new, state.params, after.params)
    jax.tree.map(
        lambda found, wanted: np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6),
        after.ema,
        middle,
    )


@pytest.mark.slow
def test_it_learns_digits():
    train, test = data.load("digits"), data.load("digits", "test")
    cfg = glow.Config(num_levels=1, num_steps=2, network=ConvNet(16))
    cfg = types.from_data(glow, train, cfg)
    state = jaxgen.fit(glow, cfg, train, steps=300, batch_size=64, key=jax.random.key(0))
    first = glow.init(jax.random.key(0), cfg, train[:64])
    bound = jax.jit(lambda state: glow.elbo(jax.random.key(1), state, test[:]["image"], cfg).mean())
    assert bound(state) > bound(first) + 20
    x = glow.sample(jax.random.key(2), state, 100, cfg, temperature=0.7)
    assert np.abs(x.mean(0) - train[:]["image"].mean(0)).mean() < 0.15
