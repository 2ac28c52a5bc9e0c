"""The two-player step against one written out by hand, who changes what, and each remedy by definition."""

import dataclasses
import functools
import json

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

import jaxgen
from jaxgen import data, shard, values
from jaxgen.data import points
from jaxgen.evaluation import modes
from jaxgen.gan import gan
from jaxgen.gan.adaptive import Adaptive
from jaxgen.gan.augment import Augmentation, DiffAugment, InstanceNoise
from jaxgen.gan.conditioning import Auxiliary, Concat, Info, Projection, with_label
from jaxgen.gan.networks import dcgan, head, mlp
from jaxgen.gan.penalties import R1, R1R2, Dragan, GradientPenalty
from jaxgen.nn import norm
from jaxgen.run import directory
from jaxgen.values import SGD, Adam, Average, Linear, RMSProp

KEY = jax.random.key(0)
TINY = gan.Config(
    shape=(2,), num_latents=3, generator=mlp.Generator((8,)), discriminator=mlp.Discriminator((8,))
)
SMALL = dataclasses.replace(TINY, num_latents=4, generator=mlp.Generator((16,)))
TRAINED = gan.Config()
_THINNED = dataclasses.replace(
    SMALL, discriminator=mlp.Discriminator((16,), dropout=0.5), instance_noise=InstanceNoise()
)
RANDOM = tuple(
    dataclasses.replace(_THINNED, **remedies)
    for remedies in (
        {"augmentation": DiffAugment(), "label_flipping": 0.1, "discriminator_steps": 2, "packing": 2},
        {"augmentation": Adaptive(), "penalty": GradientPenalty(), "conditioning": Info(4, 2)},
        {"augmentation": DiffAugment(), "penalty": Dragan(every=2), "conditioning": Projection()},
        {"augmentation": Adaptive(), "penalty": R1(), "conditioning": Auxiliary(), "unrolling": 2},
    )
)
OPTIONS = {"loss": "hinge"}
BATCH = {"x": jax.random.normal(jax.random.key(1), (16, 2)) + 1, "label": jnp.arange(16) % 3}
CODES = np.random.default_rng(0).uniform(-1, 1, (16, 5)).astype(np.float32)

STEPS = (gan.discriminator_step, gan.generator_step)


def tiny(**changes):
    return dataclasses.replace(TINY, **changes)


INIT = functools.cache(functools.partial(gan.init, KEY))
STEP = jax.jit(gan.train_step)

NORMALIZED = tiny(
    generator=mlp.Generator((8,), "batch"), discriminator=mlp.Discriminator((8,), normalization="batch")
)


@pytest.fixture
def fixed(monkeypatch):
    """Codes that are always the same, so that what is generated is known whatever keys are made of."""
    codes = lambda key, n, cfg, truncation=None: jnp.asarray(
        CODES[:n, : cfg.num_latents + gan.conditioning_of(cfg).num_continuous_codes]
    )
    monkeypatch.setattr(gan, "draw_codes", codes)


def generated(state):
    """What TINY's generator makes of the fixed codes."""
    return mlp.Generator((8,), shape=(2,)).apply({"params": state.params["generator"]}, CODES[:, :3], True)


def discriminator_loss(cfg, state=None, batch=BATCH, **arguments):
    """The loss D minimises and the metrics, at the initial state."""
    state = INIT(cfg) if state is None else state
    value, (_, metrics) = gan.discriminator_loss(
        state.params["discriminator"], state, batch, KEY, cfg, **arguments
    )
    return value, metrics


def generator_loss(cfg, state, batch=BATCH):
    return gan.generator_loss(state.params["generator"], state, batch, KEY, cfg)[0]


def with_discriminator(state, **layers):
    """The state with some layers of the discriminator replaced."""
    params = {**state.params["discriminator"], **layers}
    return state._replace(params={**state.params, "discriminator": params})


assert_same = chex.assert_trees_all_equal


# The step -----------------------------------------------------------------------------------------


def test_with_everything_off_it_is_the_textbook_step(fixed):
    """Two networks, two gradients, two Adams, and nothing of the engine."""
    cfg = tiny(average=Average(0.0))
    state = INIT(cfg)
    generator, body = mlp.Generator((8,), shape=(2,)), mlp.Discriminator((8,))
    adam = optax.adam(2e-4, 0.5, 0.999)

    def logits(params, x):
        features = body.apply({"params": params["body"]}, x, True)
        return (features @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"])[:, 0]

    def loss_d(params, params_g):
        fake = generator.apply({"params": params_g}, CODES[:, :3], True)
        wrong = jnp.log(1 - jax.nn.sigmoid(logits(params, fake)))
        return -jnp.log(jax.nn.sigmoid(logits(params, BATCH["x"]))).mean() - wrong.mean()

    def loss_g(params, params_d):
        fake = logits(params_d, generator.apply({"params": params}, CODES[:, :3], True))
        return -jnp.log(jax.nn.sigmoid(fake)).mean()

    @jax.jit
    def textbook(params_g, params_d, opt_g, opt_d):
        updates, opt_d = adam.update(jax.grad(loss_d)(params_d, params_g), opt_d)
        params_d = optax.apply_updates(params_d, updates)
        updates, opt_g = adam.update(jax.grad(loss_g)(params_g, params_d), opt_g)
        return optax.apply_updates(params_g, updates), params_d, opt_g, opt_d

    step = jax.jit(functools.partial(gan.train_step, cfg=cfg))
    players = [state.params["generator"], state.params["discriminator"]]
    players += [adam.init(params) for params in players]
    for _ in range(3):
        players = textbook(*players)
        state, _ = step(state, BATCH)
    expected = {"generator": players[0], "discriminator": players[1]}
    chex.assert_trees_all_close(state.params, expected, atol=2e-6)
    assert_same(state.ema["params"], state.params["generator"])


def test_each_player_leaves_the_other_alone():
    cfg = dataclasses.replace(NORMALIZED, discriminator=mlp.Discriminator((8,), "spectral"))
    state = INIT(cfg)
    both = jax.jit(lambda state: [f(state, BATCH, KEY, cfg)[0] for f in STEPS])
    players = ("discriminator", "generator")
    for after, mover, other in zip(both(state), players, players[::-1], strict=True):
        for tree in ("params", "stats", "opt_state"):
            first, second = getattr(state, tree), getattr(after, tree)
            assert_same(first[other], second[other])
            pairs = zip(jax.tree.leaves(first[mover]), jax.tree.leaves(second[mover]), strict=True)
            # A singular vector of one number is 1 and stays it.
            assert all((a != b).any() for a, b in pairs if a.size > 1), tree
        if mover == "discriminator":
            assert_same(state.ema, after.ema)


class Normalized(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return norm.BatchNorm(not train, momentum=0.9)(x)


@pytest.mark.slow
def test_real_and_generated_data_have_statistics_of_their_own(fixed):
    cfg = tiny(discriminator=Normalized())
    state = INIT(cfg)
    params = state.params["discriminator"]
    _, (stats, metrics) = gan.discriminator_loss(params, state, BATCH, KEY, cfg)
    fake = generated(state)
    (kept,) = stats["batch_stats"]["body"].values()
    np.testing.assert_allclose(kept["mean"], 0.9 * (0.1 * BATCH["x"].mean(0)) + 0.1 * fake.mean(0), rtol=1e-5)
    np.testing.assert_allclose(
        kept["var"], 0.9 * (0.9 + 0.1 * BATCH["x"].var(0)) + 0.1 * fake.var(0), rtol=1e-5
    )
    # Each is centred by itself, so that a mean logit is the bias and tells nothing of the source.
    assert metrics["real_logit"] == pytest.approx(float(metrics["fake_logit"]), abs=1e-6)


def test_several_discriminator_steps_take_a_part_of_the_batch_each(fixed):
    cfg = tiny(discriminator_steps=4)
    state = INIT(cfg)
    after, metrics = jax.jit(functools.partial(gan.train_step, cfg=cfg))(state, BATCH)
    step = jax.jit(functools.partial(gan.discriminator_step, cfg=cfg))
    expected, losses = state, []
    for turn in range(4):
        part = {"x": BATCH["x"][turn::4]}
        expected, row = step(expected, part, KEY)
        losses.append(float(row["discriminator_loss"]))
    expected, _ = jax.jit(functools.partial(gan.generator_step, cfg=cfg))(expected, part, KEY)
    chex.assert_trees_all_close(after.params, expected.params, atol=1e-6)
    assert metrics["discriminator_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    counts = {player: int(optax.tree.get(after.opt_state[player], "count")) for player in after.opt_state}
    assert counts == {"discriminator": 4, "generator": 1}
    with pytest.raises(ValueError, match=r"batch of 16 does not split into 3 .* multiple of 6"):
        gan.train_step(state, BATCH, tiny(discriminator_steps=3, packing=2))


PLAYED = dataclasses.replace(
    NORMALIZED,
    average=Average(0.3),
    loss="wasserstein",
    weight_clip=0.01,
    generator_optimizer=Adam(0.05, beta1=0.5),
    discriminator_optimizer=RMSProp(2e-4),
)


def test_the_average_of_the_generator_is_its_closed_form():
    state = INIT(PLAYED)
    expected = {"params": state.params["generator"], **state.stats["generator"]}
    for index in range(5):
        state, _ = STEP(state, BATCH, PLAYED)
        decay = min(0.3, (1 + index) / (10 + index))
        new = {"params": state.params["generator"], **state.stats["generator"]}
        expected = jax.tree.map(lambda a, b, decay=decay: decay * a + (1 - decay) * b, expected, new)
    assert decay == 0.3
    chex.assert_trees_all_close(state.ema, expected, rtol=1e-5, atol=1e-7)
    drawn = mlp.Generator((8,), "batch", shape=(2,)).apply(expected, CODES[:4, :3], False)
    np.testing.assert_allclose(gan.decode(state, CODES[:4, :3], PLAYED), drawn, rtol=1e-4, atol=1e-5)


def test_clipping_holds_the_discriminator_and_not_the_generator():
    state, _ = STEP(INIT(PLAYED), BATCH, PLAYED)
    largest = {
        player: max(float(jnp.abs(x).max()) for x in jax.tree.leaves(tree))
        for player, tree in state.params.items()
    }
    assert largest["discriminator"] == pytest.approx(0.01)
    assert largest["generator"] > 0.1
    (stats,) = state.stats["discriminator"]["batch_stats"]["body"].values()
    assert float(stats["var"].min()) > 0.1


def updates(cfg, player, gradients):
    """What an optimizer makes of numbers given one after another."""
    rule = gan.optimizer(cfg, player)
    state, found = rule.init(jnp.zeros(())), []
    for gradient in gradients:
        update, state = rule.update(jnp.float32(gradient), state)
        found.append(float(update))
    return np.array(found)


def test_step_sizes_fall_to_zero_by_the_training_steps():
    cfg = tiny(
        discriminator_steps=2,
        generator_optimizer=Adam(1e-3, schedule=Linear(4)),
        discriminator_optimizer=Adam(1e-2, schedule=Linear(4)),
    )
    for player, rate, count in (("generator", 1e-3, 4), ("discriminator", 1e-2, 8)):
        expected = -rate * (1 - np.arange(count + 1) / count)
        np.testing.assert_allclose(updates(cfg, player, np.ones(count + 1)), expected, rtol=1e-4, atol=1e-9)


# Penalties ----------------------------------------------------------------------------------------


class Identity(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return x.reshape(len(x), -1)


def test_the_penalty_of_the_step_is_that_of_its_discriminator():
    """A linear discriminator with weight w: everything is known."""
    cfg = tiny(discriminator=Identity())
    state = INIT(cfg)
    slope = float(jnp.linalg.norm(state.params["discriminator"]["Dense_0"]["kernel"]))
    without, metrics = discriminator_loss(cfg, state)
    assert "penalty" not in metrics
    for penalty, known in ((GradientPenalty(3.0), (slope - 1) ** 2), (R1R2(3.0), slope**2)):
        value, metrics = discriminator_loss(dataclasses.replace(cfg, penalty=penalty), state)
        assert metrics["penalty"] == pytest.approx(known, rel=1e-5)
        assert value - without == pytest.approx(3 * float(metrics["penalty"]), rel=1e-4, abs=1e-6)


class Smooth(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.tanh(nn.Dense(8)(x))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "body"),
    [
        ((2,), Smooth()),
        pytest.param((4, 4, 1), dcgan.Discriminator((4,), "none", std=0.0), marks=pytest.mark.slow),
    ],
)
def test_r1_of_packed_examples_is_its_finite_difference(shape, body):
    cfg = tiny(shape=shape, discriminator=body, penalty=R1(), packing=2)
    state = INIT(cfg)
    x = jax.random.uniform(KEY, (16, *shape), minval=-1)
    _, metrics = discriminator_loss(cfg, state, {"image" if len(shape) == 3 else "x": x})
    moves = 1e-2 * jnp.eye(x.size).reshape(-1, *x.shape)
    logits = jax.jit(jax.vmap(lambda move: gan.judge(state, x + move, cfg).logits.sum()))
    slopes = (logits(moves) - logits(-moves)) / 2e-2
    assert metrics["penalty"] == pytest.approx(0.5 * float((slopes**2).sum()) / 8, rel=2e-3)  # of eight sets


def test_lazy_penalties_average_to_the_eager_one():
    lazy = tiny(penalty=R1(every=4))
    state = INIT(lazy)
    once = float(discriminator_loss(tiny(penalty=R1()), state)[1]["penalty"])

    @functools.partial(jax.jit, static_argnums=0)
    @functools.partial(jax.vmap, in_axes=(None, 0, 0))
    def amount(cfg, step, turn):
        return discriminator_loss(cfg, state._replace(step=step), turn=turn)[1]["penalty"]

    amounts = amount(lazy, jnp.zeros(8, jnp.int32), jnp.arange(8))
    np.testing.assert_allclose(amounts, [4 * once, 0, 0, 0] * 2, rtol=1e-6)
    # Of three steps a training step, turn 3 of step 3 is D's twelfth.
    steps = dataclasses.replace(lazy, discriminator_steps=3)
    amounts = amount(steps, jnp.array([3, 3], jnp.int32), jnp.array([3, 2]))
    np.testing.assert_allclose(amounts, [4 * once, 0], rtol=1e-6)


def test_lazy_penalties_change_adams_constants_and_no_other_rules():
    cfg = tiny(penalty=R1(every=16), discriminator_optimizer=Adam(2e-4, beta1=0.0, beta2=0.99))
    decay = 0.99059
    variance = (decay * (1 - decay) + (1 - decay) * 9) / (1 - decay**2)
    expected = -2e-4 * 0.9412 * np.array([1, 3 / variance**0.5])
    np.testing.assert_allclose(updates(cfg, "discriminator", [1, 3]), expected, rtol=1e-3)
    np.testing.assert_allclose(updates(cfg, "generator", [1]), [-2e-4], rtol=1e-4)
    other = dataclasses.replace(cfg, discriminator_optimizer=SGD(2e-4))
    np.testing.assert_allclose(updates(other, "discriminator", [1]), [-2e-4], rtol=1e-4)


@pytest.mark.slow
def test_singular_vectors_move_once_in_the_discriminators_loss():
    cfg = tiny(
        discriminator=mlp.Discriminator((8,), "spectral"),
        penalty=GradientPenalty(),
        conditioning=Projection(),
        num_classes=3,
    )
    state = INIT(cfg)
    _, (after, _) = gan.discriminator_loss(state.params["discriminator"], state, BATCH, KEY, cfg)
    kernel = state.params["discriminator"]["body"]["Dense_0"]["kernel"]
    before, moved = state.stats["discriminator"]["spectral"], after["spectral"]
    assert set(moved) == {"body", "SpectralNorm_0", "SpectralNorm_1"}  # the last layer and the embedding, too
    before, moved = (tree["body"]["SpectralNorm_0"] for tree in (before, moved))
    u = kernel @ before["kernel/v"]
    v = kernel.T @ (u / jnp.linalg.norm(u))
    np.testing.assert_allclose(moved["kernel/u"], u / jnp.linalg.norm(u), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(moved["kernel/v"], v / jnp.linalg.norm(v), rtol=1e-4, atol=1e-6)


def test_orthogonal_regularisation_has_its_weight():
    state = INIT(TINY)
    kernels = [leaf for leaf in jax.tree.leaves(state.params["generator"]) if leaf.ndim > 1]
    products = [kernel.T @ kernel for kernel in kernels]
    expected = sum(float(((p * (1 - jnp.eye(len(p)))) ** 2).sum()) for p in products)
    gain = generator_loss(tiny(orthogonal_weight=0.5), state) - generator_loss(TINY, state)
    assert gain == pytest.approx(0.5 * expected, rel=1e-4)


# Remedies -----------------------------------------------------------------------------------------


def test_smoothing_and_flipping_move_the_targets(fixed):
    state = INIT(TINY)
    real, fake = (gan.judge(state, x, TINY).logits for x in (BATCH["x"], generated(state)))
    cross_entropy = optax.sigmoid_binary_cross_entropy
    expected = cross_entropy(real, 0.9).mean() + cross_entropy(fake, 0.0).mean()
    assert discriminator_loss(tiny(label_smoothing=0.1), state)[0] == pytest.approx(float(expected), rel=1e-5)
    found = [discriminator_loss(tiny(label_flipping=p), state) for p in (0.0, 0.5, 1.0)]
    expected = jax.nn.softplus(real).mean() + jax.nn.softplus(-fake).mean()
    assert found[2][0] == pytest.approx(float(expected), rel=1e-5)
    assert found[2][1]["real_logit"] == pytest.approx(float(real.mean()), rel=1e-5)
    none, some, all_ = (float(value) for value, _ in found)
    assert min(none, all_) < some < max(none, all_)


class Spread(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return x.std(keepdims=True) * jnp.ones((len(x), 1))


def test_instance_noise_reaches_both_sources_and_decays(fixed):
    cfg = tiny(discriminator=Spread(), instance_noise=InstanceNoise(std=10.0, steps=4))
    layer = {"kernel": jnp.ones((1, 1)), "bias": jnp.zeros(1)}
    state = with_discriminator(INIT(cfg), Dense_0=layer)
    spreads = []
    for step in (0, 2, 4, 9):
        _, metrics = discriminator_loss(cfg, state._replace(step=jnp.int32(step)))
        spreads.append([metrics["real_logit"], metrics["fake_logit"]])
    np.testing.assert_allclose(spreads[0], 10, rtol=0.35)
    np.testing.assert_allclose(spreads[1], 5, rtol=0.35)
    _, clean = discriminator_loss(dataclasses.replace(cfg, instance_noise=None), state)
    for row in spreads[2:]:
        np.testing.assert_allclose(row, [clean["real_logit"], clean["fake_logit"]], rtol=1e-6)


def test_dropout_thins_training_and_not_judging():
    cfg = tiny(discriminator=mlp.Discriminator((8,), dropout=0.5))
    state = INIT(cfg)
    loss = lambda key: gan.discriminator_loss(state.params["discriminator"], state, BATCH, key, cfg)[1][1]
    assert len({float(loss(jax.random.key(k))["real_logit"]) for k in range(3)}) == 3
    assert_same(gan.judge(state, BATCH["x"], cfg), gan.judge(state, BATCH["x"], TINY))


def test_packing_joins_neighbours():
    x = jnp.arange(12.0).reshape(6, 2)
    np.testing.assert_array_equal(head.pack(x, 3), x.reshape(2, 6))
    assert_same(head.pack(x, 1), x)
    image = jax.random.normal(KEY, (4, 3, 3, 2))
    packed = head.pack(image, 2)
    np.testing.assert_array_equal(packed[1], jnp.concatenate([image[2], image[3]], -1))
    cfg = tiny(packing=2)
    state = INIT(cfg)
    assert state.params["discriminator"]["body"]["Dense_0"]["kernel"].shape == (4, 8)
    assert gan.judge(state, BATCH["x"], cfg).logits.shape == (8,)


@pytest.mark.slow
def test_group_stddev_is_a_feature_of_the_last_layer():
    np.testing.assert_allclose(head.group_stddev(jnp.ones((8, 5)), 4), 1e-4)
    x = jax.random.normal(KEY, (8, 5))
    value = head.group_stddev(x, 4)
    assert value.shape == (8, 1)
    np.testing.assert_allclose(value[:4, 0], x[:4].std(0).mean(), rtol=1e-5)
    shuffled = jnp.concatenate([x[:4][::-1], x[4:]])
    np.testing.assert_allclose(head.group_stddev(shuffled, 4), value, rtol=1e-5)
    np.testing.assert_allclose(head.group_stddev(x[:6], 4)[4:, 0], x[4:6].std(0).mean(), rtol=1e-4)
    cfg = tiny(minibatch=head.GroupStddev(size=2))
    state = INIT(cfg)
    kernel = state.params["discriminator"]["Dense_0"]["kernel"]
    verdict = gan.judge(state, BATCH["x"], cfg)
    last = jnp.concatenate([verdict.features, head.group_stddev(verdict.features, 2)], -1)
    np.testing.assert_allclose(verdict.logits, (last @ kernel)[:, 0], rtol=1e-4, atol=1e-6)


def test_feature_matching_is_the_distance_of_mean_features(fixed):
    state = INIT(TINY)
    means = [gan.judge(state, x, TINY).features.mean(0) for x in (BATCH["x"], generated(state))]
    value = generator_loss(tiny(feature_matching=True), state)
    assert value == pytest.approx(float(((means[0] - means[1]) ** 2).sum()), rel=1e-5)


@pytest.mark.slow
def test_minibatch_discrimination_counts_near_neighbours():
    codes = jnp.array([[[0.0, 0]], [[0, 0]], [[1, 2]], [[50, 0]]])
    near = np.exp(-3)
    np.testing.assert_allclose(head.nearness(codes)[:, 0], [1 + near, 1 + near, 2 * near, 0], atol=1e-6)
    cfg = tiny(minibatch=head.MinibatchDiscrimination(kernels=6))
    state = INIT(cfg)
    assert state.params["discriminator"]["Dense_0"]["kernel"].shape == (8, 30)
    many, few = (gan.judge(state, jnp.ones((n, 2)), cfg).logits[0] for n in (16, 8))
    weights = state.params["discriminator"]["Dense_1"]["kernel"][8:]
    np.testing.assert_allclose(many - few, 8 * weights.sum(), rtol=1e-4)  # eight more at distance 0


@pytest.mark.slow
def test_the_unrolled_generator_answers_the_discriminator_to_come(fixed):
    cfg = tiny(unrolling=2, discriminator_optimizer=Adam(0.1, beta1=0.5))
    state = INIT(cfg)

    def ahead(params):
        after = state._replace(params={**state.params, "generator": params})
        for _ in range(2):
            after, _ = gan.discriminator_step(after, BATCH, KEY, cfg)
        return after

    params = state.params["generator"]
    loss = lambda params: gan.generator_loss(params, state, BATCH, KEY, cfg)[0]
    by_hand = lambda params: gan.generator_loss(params, ahead(params), BATCH, KEY, TINY)[0]
    found = [jax.jit(jax.value_and_grad(f))(params) for f in (loss, by_hand)]
    chex.assert_trees_all_close(*found, rtol=1e-3, atol=1e-5)
    # Holding the discriminator of the future fixed gives another gradient: that of its answer is missing.
    future = ahead(params)
    fixed = jax.grad(lambda p: gan.generator_loss(p, future, BATCH, KEY, TINY)[0])(params)
    difference = optax.tree.norm(optax.tree.sub(found[0][1], fixed))
    assert difference > 0.01 * optax.tree.norm(fixed)
    after, _ = gan.generator_step(state, BATCH, KEY, cfg)
    assert_same(after.params["discriminator"], state.params["discriminator"])


@dataclasses.dataclass(frozen=True)
class Scaled(Augmentation):
    """An augmentation of one's own."""

    factor: float = 2.0

    def __call__(self, key, x, state):
        return self.factor * x


def test_augmentation_reaches_real_and_generated_images(fixed):
    """By a linear discriminator without a bias, whose mean logits it scales."""
    plain = tiny(shape=(1, 2, 1), discriminator=Identity())
    cfg = dataclasses.replace(plain, augmentation=Scaled(3.0))
    state, batch = INIT(cfg), {"image": BATCH["x"].reshape(16, 1, 2, 1)}
    (_, before), (_, after) = (discriminator_loss(c, state, batch) for c in (plain, cfg))
    for name in ("real_logit", "fake_logit"):
        assert after[name] == pytest.approx(3 * float(before[name]), rel=1e-5)
    plain, cfg = (dataclasses.replace(c, loss="wasserstein") for c in (plain, cfg))
    first, second = (generator_loss(c, state, batch) for c in (plain, cfg))
    assert second == pytest.approx(3 * float(first), rel=1e-5)


# Labels -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_conditional_models_judge_and_sample_by_class():
    cfg = tiny(conditioning=Concat(), num_classes=3)
    after = INIT(cfg)
    logits = gan.judge(after, jnp.ones((3, 2)), cfg, jnp.arange(3)).logits
    assert len(np.unique(logits)) == 3
    swapped = {**BATCH, "label": BATCH["label"][::-1]}
    assert discriminator_loss(cfg, after)[0] != discriminator_loss(cfg, after, swapped)[0]
    z = jnp.zeros((3, 3))
    x = gan.decode(after, z, cfg, jnp.arange(3))
    assert len(np.unique(x[:, 0])) == 3
    np.testing.assert_array_equal(gan.decode(after, z, cfg, jnp.array([2, 0, 1])), x[jnp.array([2, 0, 1])])
    first, second = (gan.sample(KEY, after, 5, cfg, label=jnp.full(5, c)) for c in (0, 1))
    assert (first != second).all()
    assert gan.sample(KEY, after, 5, cfg).shape == (5, 2)


def test_projection_with_a_zero_embedding_is_unconditional():
    cfg = tiny(conditioning=Projection(), num_classes=3)
    state, label = INIT(cfg), BATCH["label"]
    params = state.params["discriminator"]
    bare = {name: layer for name, layer in params.items() if name != "Embed_0"}
    plain = gan.judge(state._replace(params={"discriminator": bare}), BATCH["x"], TINY)
    embedding = params["Embed_0"]["embedding"]
    expected = plain.logits + (embedding[label] * plain.features).sum(-1)
    judged = gan.judge(state, BATCH["x"], cfg, label).logits
    np.testing.assert_allclose(judged, expected, rtol=1e-5, atol=1e-6)
    zero = with_discriminator(state, Embed_0={"embedding": 0 * embedding})
    np.testing.assert_array_equal(gan.judge(zero, BATCH["x"], cfg, label).logits, plain.logits)


@pytest.mark.parametrize(("way", "classes", "readings"), [(Auxiliary, 3, 2), (Info, 4, 1)])
def test_readings_have_their_weights(way, classes, readings):
    """A uniform classifier; made-up classes need no labels and are read off generated data alone."""
    size = {"num_codes": classes} if way is Info else {}
    off, on = (
        tiny(conditioning=way(weight=a, generator_weight=b, **size), num_classes=3)
        for a, b in ((0.0, 0.0), (2.0, 0.5))
    )
    batch = {"x": BATCH["x"]} if way is Info else BATCH
    state = INIT(off)
    assert state.params["generator"]["Dense_0"]["kernel"].shape == (3 + classes, 8)
    flat = jax.tree.map(jnp.zeros_like, state.params["discriminator"]["Dense_1"])
    state = with_discriminator(state, Dense_1=flat)
    gain = discriminator_loss(on, state, batch)[0] - discriminator_loss(off, state, batch)[0]
    assert gain == pytest.approx(readings * 2 * np.log(classes), rel=1e-4)
    gain = generator_loss(on, state, batch) - generator_loss(off, state, batch)
    assert gain == pytest.approx(0.5 * np.log(classes), rel=1e-4)
    assert gan.sample(KEY, state, 5, off).shape == (5, 2)


@pytest.mark.parametrize("learned", [False, True])
def test_continuous_codes_are_read_off_as_gaussians(fixed, learned):
    """The loss of the two readers against SciPy's density, with heads set by hand."""
    off, on = (
        tiny(conditioning=Info(0, 2, learned, weight=a, generator_weight=b))
        for a, b in ((0.0, 0.0), (2.0, 0.5))
    )
    bias = np.array([0.3, -0.2, 1.0, -0.5] if learned else [0.3, -0.2])
    std = np.exp(0.5 * 10 * np.tanh(bias[2:] / 10)) if learned else 1.0
    state = INIT(off)
    assert state.params["generator"]["Dense_0"]["kernel"].shape == (3 + 2, 8)
    reader = {"kernel": jnp.zeros((8, len(bias))), "bias": jnp.float32(bias)}
    state, batch = with_discriminator(state, Dense_1=reader), {"x": BATCH["x"]}
    expected = -scipy.stats.norm.logpdf(CODES[:, 3:], bias[:2], std).sum(-1).mean()
    value, metrics = discriminator_loss(on, state, batch)
    assert value - discriminator_loss(off, state, batch)[0] == pytest.approx(2 * expected, rel=1e-4)
    assert metrics["code_error"] == pytest.approx(((CODES[:, 3:] - bias[:2]) ** 2).mean(), rel=1e-4)
    gain = generator_loss(on, state, batch) - generator_loss(off, state, batch)
    assert gain == pytest.approx(0.5 * expected, rel=1e-4)


def test_continuous_codes_are_even_and_the_last_of_z():
    z = np.asarray(gan.draw_codes(KEY, 2000, tiny(conditioning=Info(4, 2))))
    assert z.shape == (2000, 3 + 2)
    assert scipy.stats.kstest(z[:, 3:].ravel(), scipy.stats.uniform(-1, 2).cdf).pvalue > 0.01
    assert scipy.stats.kstest(z[:, :3].ravel(), "norm").pvalue > 0.01


@pytest.mark.slow
def test_a_continuous_code_comes_to_mean_something():
    """A class and a code on two lines: both can be read off samples, and the code moves them one way."""
    rng = np.random.default_rng(0)
    side, along = rng.integers(2, size=4096), rng.uniform(-1, 1, 4096)
    lines = data.Dataset(
        "lines", "train", {"x": np.stack([along, 2 * side - 1.0], 1) + 0.05 * rng.normal(size=(4096, 2))}
    )
    cfg = gan.Config(
        shape=(2,),
        num_latents=2,
        generator=mlp.Generator((64, 64)),
        discriminator=mlp.Discriminator((64, 64)),
        conditioning=Info(num_codes=2, num_continuous_codes=1, learned_variance=True, generator_weight=1.0),
        generator_optimizer=Adam(2e-4, beta1=0.5),
        discriminator_optimizer=Adam(2e-4, beta1=0.5),
        average=Average(0.99),
    )
    rows = []
    options = {"batch_size": 128, "key": KEY, "mesh": shard.mesh(1), "sample_every": 0, "log_every": 500}
    state = jaxgen.fit(gan, cfg, lines, steps=1500, on_log=lambda step, row, _: rows.append(row), **options)
    # A reader who knows nothing has 1/3. At five times the learning rate the mean of 500 steps reached 24,
    # and runs that differ in rounding alone ended on both sides of 0.2.
    assert rows[-1]["code_error"] < 0.05
    assert rows[-1]["class_accuracy"] > 0.95
    z = gan.draw_codes(jax.random.key(1), 200, cfg)
    x = gan.decode(state, z, cfg, jnp.zeros(200, jnp.int32))
    correlations = np.corrcoef(z[:, -1], np.asarray(x).T)[0, 1:]
    assert np.abs(correlations).max() > 0.8


def test_labels_become_channels():
    x = jnp.ones((2, 3, 3, 1))
    labelled = with_label(x, jnp.array([1, 0]), 2)
    np.testing.assert_array_equal(labelled[0, 1, 2], [1, 0, 1])
    np.testing.assert_array_equal(labelled[1, 2, 0], [1, 1, 0])
    np.testing.assert_array_equal(with_label(jnp.ones((1, 2)), jnp.array([2]), 3), [[1, 1, 0, 0, 1]])


# The rest -----------------------------------------------------------------------------------------


class Code(nn.Module):
    @nn.compact
    def __call__(self, z, train):
        return z


def test_truncated_codes_lie_within_and_follow_the_density():
    cfg = tiny(generator=Code(), num_latents=2)
    state = INIT(cfg)
    z = np.asarray(gan.sample(KEY, state, 20_000, cfg, truncation=1.0))
    assert np.abs(z).max() <= 1
    drawn = np.random.default_rng(0).normal(size=400_000)
    kept = drawn[np.abs(drawn) <= 1]
    assert z.std() == pytest.approx(kept.std(), rel=0.01)
    assert np.abs(gan.sample(KEY, state, 20_000, cfg)).max() > 3


BATCH_NORMALIZED = mlp.Discriminator((8,), normalization="batch")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "hing"}, r"not 'hing': did you mean 'hinge'"),
        ({"penalty": R1(), "discriminator": BATCH_NORMALIZED}, "keeps them apart"),
        ({"label_smoothing": 0.1, "loss": "hinge"}, "label_smoothing is for"),
        ({"label_smoothing": 1.5}, "label_smoothing must be at least 0 and below 1"),
        ({"conditioning": Concat()}, "Concat needs data with labels"),
        ({"conditioning": Projection(), "num_classes": 3, "packing": 2}, "packing goes with .* Projection"),
        ({"augmentation": Adaptive()}, "augmentations are of images"),
        ({"augmentation": DiffAugment()}, "augmentations are of images"),
        ({"generator": mlp.Generator((8,), "conditional")}, "needs a conditioning"),
        ({"generator": dcgan.Generator((8,))}, r"divisible by 2, not \(2,\)"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        gan.init(KEY, tiny(**changes))


def test_values_refuse_what_means_nothing():
    with pytest.raises(ValueError, match="nothing to read off"):
        Info(num_codes=0)
    with pytest.raises(ValueError, match="every must be at least 1, not 0"):
        R1(every=0)


@pytest.mark.slow
def test_bfloat16_computes_and_keeps_float32_parameters():
    cfg = tiny(
        dtype="bfloat16",
        penalty=R1(),
        generator=mlp.Generator((8,), "batch"),
        discriminator=mlp.Discriminator((8,), "spectral"),
        conditioning=Projection(),
        num_classes=3,
    )
    state = INIT(cfg)
    after, metrics = STEP(state, BATCH, cfg)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    assert {leaf.dtype for leaf in jax.tree.leaves(after.params)} == {jnp.dtype("float32")}
    assert all(value.dtype == jnp.float32 for value in metrics.values())
    exact, rough = (discriminator_loss(c, state)[0] for c in (dataclasses.replace(cfg, dtype="float32"), cfg))
    assert rough == pytest.approx(float(exact), rel=0.05)
    assert rough != exact


class Wide(nn.Module):
    """A generator of one's own, which has the data's shape and the compute dtype filled in."""

    width: int = 7
    shape: tuple[int, ...] | None = None
    dtype: str | None = None

    @nn.compact
    def __call__(self, z, train):
        hidden = nn.relu(nn.Dense(self.width, dtype=self.dtype)(z))
        return nn.Dense(self.shape[0], dtype=self.dtype)(hidden)


OWN = tiny(generator=Wide(9), generator_optimizer=SGD(1e-3), discriminator_optimizer=optax.sgd(1e-3))


def test_networks_and_optimizers_of_ones_own_step_and_are_written_down():
    state = jax.eval_shape(lambda: gan.init(KEY, OWN))
    assert state.params["generator"]["Dense_0"]["kernel"].shape == (3, 9)
    after, _ = jax.eval_shape(functools.partial(gan.train_step, cfg=OWN), state, BATCH)
    assert jax.tree.leaves(after) == jax.tree.leaves(state)
    described = directory.describe(gan, OWN)
    assert described["custom"] == ["discriminator_optimizer"]  # functions are no JSON
    assert values.from_json(json.loads(json.dumps(described["config"]["generator"]))) == Wide(9)


@pytest.mark.slow
def test_networks_and_optimizers_of_ones_own_train_sample_and_load(tmp_path):
    options = {"batch_size": 32, "key": KEY, "mesh": shard.mesh(1), "sample_every": 0}
    jaxgen.fit(gan, OWN, data.load("ring"), steps=20, run_dir=tmp_path, **options)
    with pytest.raises(jaxgen.RunError, match="had its own discriminator_optimizer:"):
        jaxgen.load(tmp_path)
    family, cfg, loaded = jaxgen.load(tmp_path, cfg=OWN)
    assert family.sample(KEY, loaded, 3, cfg).shape == (3, 2)


@pytest.mark.slow
def test_samples_come_to_have_the_mean_and_the_spread_of_the_data():
    """A linear generator of a Gaussian that is narrower in one direction."""
    cfg = gan.Config(
        shape=(2,),
        num_latents=2,
        generator=mlp.Generator(()),
        discriminator=mlp.Discriminator((16,)),
        penalty=R1(0.1),
        generator_optimizer=Adam(5e-3, beta1=0.5),
        discriminator_optimizer=Adam(1e-2, beta1=0.5),
        average=Average(0.98),
    )
    mean, std = np.array([1.0, -0.5]), np.array([1.0, 0.4])

    @jax.jit
    def trained(state):
        def step(state, index):
            x = mean + std * jax.random.normal(jax.random.fold_in(jax.random.key(2), index), (128, 2))
            return gan.train_step(state, {"x": x}, cfg)[0], None

        return jax.lax.scan(step, state, jnp.arange(2000))[0]

    x = np.asarray(gan.sample(jax.random.key(1), trained(INIT(cfg)), 4000, cfg))
    np.testing.assert_allclose(x.mean(0), mean, atol=0.1)
    np.testing.assert_allclose(x.std(0), std, atol=0.1)


@pytest.mark.slow
def test_it_learns_the_ring():
    """Eight narrow modes, all of them found."""
    optimizer = Adam(1e-3, beta1=0.5)
    cfg = gan.Config(
        shape=(2,),
        num_latents=2,
        generator=mlp.Generator((128, 128, 128)),
        discriminator=mlp.Discriminator((128, 128, 128)),
        packing=2,
        generator_optimizer=optimizer,
        discriminator_optimizer=optimizer,
        average=Average(0.99),
    )
    ring = data.load("ring")
    options = {"batch_size": 256, "key": KEY, "mesh": shard.mesh(1), "sample_every": 0}
    state = jaxgen.fit(gan, cfg, ring, steps=2000, **options)
    x = gan.sample(jax.random.key(1), state, 2500, cfg)
    reached = modes.mode_statistics(x, points.ring_centers(), points.RING_STD)
    assert reached["modes"] == 8
    assert reached["high_quality"] > 0.7
    assert reached["reverse_kl"] < 0.1
