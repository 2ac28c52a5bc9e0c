"""Penalties on critics whose gradients are known, and their second derivatives by finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxgen.gan import penalties
from jaxgen.gan.penalties import R1, R1R2, R2, Dragan, GradientPenalty

KEY = jax.random.key(0)
REAL, FAKE = jax.random.normal(jax.random.key(1), (2, 6, 4))
WEIGHT = jnp.array([1.0, -2.0, 0.5, 3.0])
NORM = float(jnp.linalg.norm(WEIGHT))
LINEAR = {
    GradientPenalty(): (NORM - 1) ** 2,
    GradientPenalty(target=5.0): (NORM - 5) ** 2,
    GradientPenalty(target=5.0, one_sided=True): 0.0,
    Dragan(): (NORM - 1) ** 2,
    Dragan(target=0.0): NORM**2,
    Dragan(target=5.0, one_sided=True): 0.0,
    R1(): NORM**2 / 2,
    R2(): NORM**2 / 2,
    R1R2(): NORM**2,
}
EACH = (GradientPenalty(), GradientPenalty(one_sided=True), Dragan(), R1(), R2(), R1R2())


@pytest.mark.parametrize("penalty", LINEAR, ids=str)
def test_a_linear_critic(penalty):
    critic = lambda x: x.reshape(len(x), -1) @ WEIGHT
    assert penalty(critic, REAL, FAKE, KEY) == pytest.approx(LINEAR[penalty], rel=1e-6)
    image = lambda x: x.reshape(6, 2, 2, 1)
    assert penalty(critic, image(REAL), image(FAKE), KEY) == pytest.approx(LINEAR[penalty], rel=1e-6)


def test_the_factor_is_the_weight_or_gamma():
    assert [p.factor for p in (GradientPenalty(2.0), Dragan(3.0), R1(4.0), R2(5.0), R1R2(6.0))] == [
        2,
        3,
        4,
        5,
        6,
    ]
    assert R1(0.5, every=16) == R1(gamma=0.5, every=16)


def test_a_quadratic_critic():
    a = np.array([[2.0, 1.0, 0, 0], [1, -1, 0, 0.5], [0, 0, 3, 0], [0, 0.5, 0, 1]], np.float32)
    critic = lambda x: 0.5 * jnp.einsum("bi,ij,bj->b", x, a, x)
    half = lambda x: float(0.5 * ((x @ a) ** 2).sum(1).mean())
    assert penalties.r1(critic, REAL) == pytest.approx(half(REAL), rel=1e-5)
    assert penalties.r2(critic, FAKE) == pytest.approx(half(FAKE), rel=1e-5)
    assert R2()(critic, REAL, FAKE, KEY) == pytest.approx(half(FAKE), rel=1e-5)
    assert R1R2()(critic, REAL, FAKE, KEY) == pytest.approx(half(REAL) + half(FAKE), rel=1e-5)
    between = penalties.gradient_penalty(critic, REAL, FAKE, KEY)
    share = jax.random.uniform(KEY, (6, 1))
    x = share * REAL + (1 - share) * FAKE
    np.testing.assert_allclose(between, ((jnp.linalg.norm(x @ a, axis=1) - 1) ** 2).mean(), rtol=1e-5)


def test_where_the_penalties_look():
    """A critic whose gradient is its input lets the norms be read off."""
    critic = lambda x: 0.5 * (x**2).sum(1)
    zeros, ones = jnp.zeros((20_000, 1)), jnp.ones((20_000, 1))
    squares = penalties.gradient_penalty(critic, zeros, ones, KEY, target=0.0)
    assert squares == pytest.approx(1 / 3, abs=0.01)  # E e^2 of e even in [0, 1]
    data = jax.random.normal(jax.random.key(1), (20_000, 1))
    around = penalties.dragan(critic, 10 + 2 * data, KEY, target=10.0)
    assert around == pytest.approx(4 + 1 / 12 + 0.5**2, rel=0.1)  # 2 data + u, u even in [0, 1]


@pytest.mark.parametrize("penalty", EACH, ids=str)
def test_a_batch_is_the_mean_of_its_rows(penalty):
    critic = lambda x: jnp.sin(x @ WEIGHT) + x[:, 0] ** 3
    key = jax.random.key(3)
    whole = penalty(critic, REAL, FAKE, key)
    twice = penalty(critic, jnp.concatenate([REAL] * 2), jnp.concatenate([FAKE] * 2), key)
    if isinstance(penalty, R1):
        rows = [penalty(critic, REAL[i : i + 1], FAKE[i : i + 1], key) for i in range(6)]
        assert whole == pytest.approx(float(np.mean(rows)), rel=1e-5)
        assert twice == pytest.approx(float(whole), rel=1e-5)
    else:
        assert 0.2 < twice / whole < 5  # other points, the same scale: no factor of the batch size


@pytest.mark.parametrize("penalty", EACH, ids=str)
def test_gradients_in_the_parameters_are_finite_differences(penalty):
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        params = [jnp.asarray(rng.normal(size=shape)) for shape in ((4, 8), (8,))]
        real, fake = jnp.asarray(rng.normal(size=(2, 6, 4)))

        def amount(params):
            critic = lambda x: jnp.tanh(x @ params[0]) @ params[1]
            return penalty(critic, real, fake, KEY)

        check_grads(amount, (params,), order=1, modes=["rev"], rtol=1e-5)


@pytest.mark.parametrize("penalty", EACH, ids=str)
def test_a_flat_critic_has_finite_gradients(penalty):
    amount = lambda w: penalty(lambda x: x @ w, REAL, FAKE, KEY)
    assert np.isfinite(jax.grad(amount)(jnp.zeros(4))).all()


@pytest.mark.slow
def test_wgan_gp_between_two_points_settles_above_slope_one():
    """Of w x on {theta} against {0} the best slope is 1 + theta / (2 lambda)."""
    theta, weight = 3.0, 10.0
    real, fake = jnp.full((4, 1), theta), jnp.zeros((4, 1))

    def loss(w):
        critic = lambda x: w * x[:, 0]
        gap = critic(fake).mean() - critic(real).mean()
        return gap + weight * penalties.gradient_penalty(critic, real, fake, KEY)

    w = jnp.float32(0.3)
    for _ in range(200):
        w = w - 0.03 * jax.grad(loss)(w)
    assert w == pytest.approx(1 + theta / (2 * weight), abs=1e-4)


def test_clipping_reaches_every_parameter():
    params = {"a": jnp.array([-3.0, 0.005]), "b": {"c": jnp.full((2, 2), 0.5)}}
    clipped = penalties.clip_weights(params, 0.01)
    np.testing.assert_allclose(clipped["a"], [-0.01, 0.005])
    np.testing.assert_allclose(clipped["b"]["c"], 0.01)


def test_orthogonal_regularisation():
    rotation = jnp.asarray(np.linalg.qr(np.random.default_rng(0).normal(size=(8, 3)))[0])
    params = {"kernel": 2 * rotation.reshape(2, 2, 2, 3), "bias": jnp.full(3, 7.0)}
    assert penalties.orthogonal(params) == pytest.approx(0, abs=1e-9)
    assert penalties.orthogonal(params, diagonal=True) == pytest.approx(3 * 9, rel=1e-5)
    columns = jnp.array([[1.0, 1.0], [0.0, 1.0]])
    assert penalties.orthogonal({"kernel": columns}) == pytest.approx(2)
    assert penalties.orthogonal({"kernel": columns}, diagonal=True) == pytest.approx(3)
