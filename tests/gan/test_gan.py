"""The two-player step against one written out by hand, who changes what, and each remedy by definition."""

import dataclasses
import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

import jaxgen
from jaxgen import data, shard
from jaxgen.data import points
from jaxgen.evaluation import modes
from jaxgen.gan import gan, penalties
from jaxgen.gan.networks import head, mlp
from jaxgen.nn import norm

KEY = jax.random.key(0)
TINY = gan.Config(shape=(2,), num_latents=3, generator_widths=(8,), discriminator_widths=(8,))
BATCH = {"x": jax.random.normal(jax.random.key(1), (16, 2)) + 1, "label": jnp.arange(16) % 3}
NORMALIZED = dataclasses.replace(TINY, generator_normalization="batch", discriminator_normalization="batch")


def tiny(**changes):
    return dataclasses.replace(TINY, **changes)


def discriminator_loss(cfg, state=None, batch=BATCH, **arguments):
    """The loss D minimises and the metrics, at the initial state."""
    state = gan.init(KEY, cfg) if state is None else state
    value, (_, metrics) = gan.discriminator_loss(
        state.params["discriminator"], state, batch, KEY, cfg, **arguments
    )
    return value, metrics


def assert_same(first, second):
    chex.assert_trees_all_equal(first, second)


# The step -----------------------------------------------------------------------------------------


def test_with_everything_off_it_is_the_textbook_step():
    """Two networks, two gradients, two Adams, and nothing of the engine but its keys."""
    cfg = tiny(ema_decay=0.0)
    start = gan.init(KEY, cfg)
    generator, body, adam = mlp.Generator((2,), (8,)), mlp.Discriminator((8,)), optax.adam(2e-4, 0.5, 0.999)

    def logits(params, x):
        features = body.apply({"params": params["body"]}, x, True)
        return (features @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"])[:, 0]

    def loss_d(params, params_g, z):
        real, fake = (logits(params, x) for x in (BATCH["x"], generator.apply({"params": params_g}, z, True)))
        return -jnp.log(jax.nn.sigmoid(real)).mean() - jnp.log(1 - jax.nn.sigmoid(fake)).mean()

    def loss_g(params, params_d, z):
        fake = logits(params_d, generator.apply({"params": params}, z, True))
        return -jnp.log(jax.nn.sigmoid(fake)).mean()

    @jax.jit
    def textbook(params_g, params_d, opt_g, opt_d, step):
        key = jax.random.fold_in(start.key, step)
        d_key, g_key = (jax.random.split(jax.random.fold_in(key, turn), n)[0] for turn, n in ((0, 5), (1, 4)))
        z_d, z_g = (jax.random.normal(k, (16, 3)) for k in (d_key, g_key))
        updates, opt_d = adam.update(jax.grad(loss_d)(params_d, params_g, z_d), opt_d)
        params_d = optax.apply_updates(params_d, updates)
        updates, opt_g = adam.update(jax.grad(loss_g)(params_g, params_d, z_g), opt_g)
        return optax.apply_updates(params_g, updates), params_d, opt_g, opt_d

    state, step = start, jax.jit(functools.partial(gan.train_step, cfg=cfg))
    players = [state.params["generator"], state.params["discriminator"]]
    players += [adam.init(params) for params in players]
    for index in range(3):
        players = textbook(*players, index)
        state, _ = step(state, BATCH)
    expected = {"generator": players[0], "discriminator": players[1]}
    chex.assert_trees_all_close(state.params, expected, atol=2e-6)
    assert_same(state.ema["params"], state.params["generator"])


def test_each_player_leaves_the_other_alone():
    cfg = NORMALIZED
    state = gan.init(KEY, cfg)
    after_d, _ = gan.discriminator_step(state, BATCH, KEY, cfg)
    after_g, _ = gan.generator_step(state, BATCH, KEY, cfg)
    for after, mover, other in (
        (after_d, "discriminator", "generator"),
        (after_g, "generator", "discriminator"),
    ):
        for tree in ("params", "stats", "opt_state"):
            first, second = getattr(state, tree), getattr(after, tree)
            assert_same(first[other], second[other])
            pairs = zip(jax.tree.leaves(first[mover]), jax.tree.leaves(second[mover]), strict=True)
            assert all((a != b).any() for a, b in pairs), tree
    assert_same(state.ema, after_d.ema)


class Normalized(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return norm.BatchNorm(not train, momentum=0.9)(x)


def test_real_and_generated_data_have_statistics_of_their_own():
    cfg = tiny(discriminator=Normalized())
    state = gan.init(KEY, cfg)
    _, (stats, _) = gan.discriminator_loss(state.params["discriminator"], state, BATCH, KEY, cfg)
    variables = {"params": state.params["generator"], **state.stats["generator"]}
    z = jax.random.normal(jax.random.split(KEY, 5)[0], (16, 3))
    fake = mlp.Generator((2,), (8,)).apply(variables, z, True)
    (kept,) = stats["batch_stats"]["body"].values()
    real_mean, fake_mean = BATCH["x"].mean(0), fake.mean(0)
    np.testing.assert_allclose(kept["mean"], 0.9 * (0.1 * real_mean) + 0.1 * fake_mean, rtol=1e-5)
    np.testing.assert_allclose(
        kept["var"], 0.9 * (0.9 + 0.1 * BATCH["x"].var(0)) + 0.1 * fake.var(0), rtol=1e-5
    )
    # Each is centred by itself, so that a mean logit is the bias and tells nothing of the source.
    _, metrics = discriminator_loss(cfg, state)
    assert metrics["real_logit"] == pytest.approx(float(metrics["fake_logit"]), abs=1e-6)


def test_several_discriminator_steps_take_a_part_of_the_batch_each():
    cfg = tiny(discriminator_steps=4)
    state = gan.init(KEY, cfg)
    after, metrics = gan.train_step(state, BATCH, cfg)
    key, expected, losses = jax.random.fold_in(state.key, 0), state, []
    for turn in range(4):
        part = {"x": BATCH["x"][turn::4]}
        expected, row = gan.discriminator_step(expected, part, jax.random.fold_in(key, turn), cfg, turn)
        losses.append(float(row["discriminator_loss"]))
    expected, _ = gan.generator_step(expected, part, jax.random.fold_in(key, 4), cfg)
    chex.assert_trees_all_close(after.params, expected.params, atol=1e-6)
    assert metrics["discriminator_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    counts = {player: int(optax.tree.get(after.opt_state[player], "count")) for player in after.opt_state}
    assert counts == {"discriminator": 4, "generator": 1}
    with pytest.raises(ValueError, match=r"batch of 16 does not split into 3 .* multiple of 6"):
        gan.train_step(state, BATCH, tiny(discriminator_steps=3, packing=2))


def test_the_average_of_the_generator_is_its_closed_form():
    cfg = dataclasses.replace(NORMALIZED, ema_decay=0.3, learning_rate=0.05)
    state = gan.init(KEY, cfg)
    step = jax.jit(functools.partial(gan.train_step, cfg=cfg))
    expected = {"params": state.params["generator"], **state.stats["generator"]}
    for index in range(5):
        state, _ = step(state, BATCH)
        decay = min(0.3, (1 + index) / (10 + index))
        new = {"params": state.params["generator"], **state.stats["generator"]}
        expected = jax.tree.map(lambda a, b, decay=decay: decay * a + (1 - decay) * b, expected, new)
    assert decay == 0.3
    chex.assert_trees_all_close(state.ema, expected, rtol=1e-5, atol=1e-7)
    z = jax.random.normal(jax.random.split(KEY)[0], (4, 3))
    drawn = mlp.Generator((2,), (8,), "batch").apply(expected, z, False)
    np.testing.assert_allclose(gan.sample(KEY, state, 4, cfg), drawn, rtol=1e-4, atol=1e-5)


def test_step_sizes_fall_to_zero_by_the_generators_count():
    cfg = tiny(discriminator_steps=2, decay_steps=4, discriminator_learning_rate=1e-2, learning_rate=1e-3)
    for player, rate, count in (("generator", 1e-3, 4), ("discriminator", 1e-2, 8)):
        rule = gan.optimizer(cfg, player)
        state, sizes = rule.init(jnp.zeros(())), []
        for _ in range(count + 1):
            update, state = rule.update(jnp.ones(()), state)
            sizes.append(-float(update))
        np.testing.assert_allclose(sizes, rate * (1 - np.arange(count + 1) / count), rtol=1e-4, atol=1e-9)


# Penalties ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(penalties.PENALTIES))
def test_the_penalty_of_the_step_is_that_of_its_discriminator(name):
    """A linear discriminator with weight w: everything is known."""

    class Identity(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return x.reshape(len(x), -1)

    cfg = tiny(discriminator=Identity(), penalty=name, penalty_weight=3.0)
    state = gan.init(KEY, cfg)
    slope = float(jnp.linalg.norm(state.params["discriminator"]["Dense_0"]["kernel"]))
    known = {
        "r1": slope**2 / 2,
        "r2": slope**2 / 2,
        "r1_r2": slope**2,
        "gradient_one_sided": max(slope - 1, 0) ** 2,
    }
    value, metrics = discriminator_loss(cfg, state)
    assert metrics["penalty"] == pytest.approx(known.get(name, (slope - 1) ** 2), rel=1e-5)
    without, _ = discriminator_loss(dataclasses.replace(cfg, penalty="none"), state)
    assert value - without == pytest.approx(3 * float(metrics["penalty"]), rel=1e-4, abs=1e-6)


def test_r1_of_packed_images_through_convolutions_is_its_finite_difference():
    cfg = gan.Config(
        shape=(4, 4, 1),
        network="dcgan",
        generator_widths=(4,),
        discriminator_widths=(4,),
        penalty="r1",
        packing=2,
    )
    state = gan.init(KEY, cfg)
    image = jax.random.uniform(KEY, (4, 4, 4, 1), minval=-1)
    _, metrics = discriminator_loss(cfg, state, {"image": image})
    step, total = 1e-2, 0.0
    logits = jax.jit(lambda x: gan.judge(state, x, cfg).logits.sum())
    for index in np.ndindex(image.shape):
        rise = logits(image.at[index].add(step)) - logits(image.at[index].add(-step))
        total += float(rise / (2 * step)) ** 2
    assert metrics["penalty"] == pytest.approx(0.5 * total / 2, rel=2e-3)  # the mean over two sets


def test_lazy_penalties_average_to_the_eager_one():
    eager, lazy = (tiny(penalty="r1", penalty_every=k) for k in (1, 4))
    state = gan.init(KEY, eager)
    once = float(discriminator_loss(eager, state)[1]["penalty"])
    amounts = [float(discriminator_loss(lazy, state, turn=turn)[1]["penalty"]) for turn in range(8)]
    np.testing.assert_allclose(amounts, [4 * once, 0, 0, 0] * 2, rtol=1e-6)
    later = state._replace(step=jnp.int32(3))
    steps = dataclasses.replace(lazy, discriminator_steps=3)  # turn 3 of step 3 is D's twelfth
    assert discriminator_loss(steps, later, turn=3)[1]["penalty"] == pytest.approx(4 * once)
    assert discriminator_loss(steps, later, turn=2)[1]["penalty"] == 0


def test_lazy_penalties_change_adams_constants():
    rule = gan.optimizer(tiny(penalty="r1", penalty_every=16, beta1=0.0, beta2=0.99), "discriminator")
    state = rule.init(jnp.zeros(()))
    first, state = rule.update(jnp.float32(1.0), state)
    assert first == pytest.approx(-2e-4 * 0.9412, rel=1e-4)
    second, _ = rule.update(jnp.float32(3.0), state)
    decay = 0.99059
    variance = (decay * (1 - decay) + (1 - decay) * 9) / (1 - decay**2)
    assert second == pytest.approx(-2e-4 * 0.9412 * 3 / variance**0.5, rel=1e-3)
    plain = gan.optimizer(tiny(penalty="r1", penalty_every=16), "generator")
    assert plain.update(jnp.float32(1.0), plain.init(jnp.zeros(())))[0] == pytest.approx(-2e-4, rel=1e-4)


def test_clipping_holds_the_discriminator_and_not_the_generator():
    cfg = dataclasses.replace(NORMALIZED, weight_clip=0.01, loss="wasserstein", rule="rmsprop")
    state, _ = gan.train_step(gan.init(KEY, cfg), BATCH, cfg)
    largest = {
        player: max(float(jnp.abs(x).max()) for x in jax.tree.leaves(tree))
        for player, tree in state.params.items()
    }
    assert largest["discriminator"] == pytest.approx(0.01)
    assert largest["generator"] > 0.1
    (stats,) = state.stats["discriminator"]["batch_stats"]["body"].values()
    assert float(stats["var"].min()) > 0.1


def test_singular_vectors_move_once_in_the_discriminators_step_only():
    cfg = tiny(discriminator_normalization="spectral", penalty="gradient")
    state = gan.init(KEY, cfg)
    after, _ = gan.discriminator_step(state, BATCH, KEY, cfg)
    kernel = state.params["discriminator"]["body"]["Dense_0"]["kernel"]
    before, moved = (s.stats["discriminator"]["spectral"]["body"]["SpectralNorm_0"] for s in (state, after))
    u = kernel @ before["kernel/v"]
    v = kernel.T @ (u / jnp.linalg.norm(u))
    np.testing.assert_allclose(moved["kernel/u"], u / jnp.linalg.norm(u), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(moved["kernel/v"], v / jnp.linalg.norm(v), rtol=1e-4, atol=1e-6)
    assert_same(
        gan.generator_step(after, BATCH, KEY, cfg)[0].stats["discriminator"], after.stats["discriminator"]
    )


# Remedies -----------------------------------------------------------------------------------------


def logits_of(cfg, state):
    """D's logits on the real data and on the samples of `discriminator_loss`."""
    z = jax.random.normal(jax.random.split(KEY, 5)[0], (16, 3))
    fake = mlp.Generator((2,), (8,)).apply({"params": state.params["generator"]}, z, True)
    return (gan.judge(state, x, cfg).logits for x in (BATCH["x"], fake))


def test_smoothing_moves_the_target_of_real_data_alone():
    cfg = tiny(label_smoothing=0.1)
    state = gan.init(KEY, cfg)
    real, fake = logits_of(cfg, state)
    expected = optax.sigmoid_binary_cross_entropy(real, 0.9) + optax.sigmoid_binary_cross_entropy(fake, 0.0)
    assert discriminator_loss(cfg, state)[0] == pytest.approx(float(expected.mean()), rel=1e-5)


def test_flipping_exchanges_the_targets():
    state = gan.init(KEY, TINY)
    real, fake = logits_of(TINY, state)
    value, metrics = discriminator_loss(tiny(label_flipping=1.0), state)
    expected = jax.nn.softplus(real).mean() + jax.nn.softplus(-fake).mean()
    assert value == pytest.approx(float(expected), rel=1e-5)
    assert metrics["real_logit"] == pytest.approx(float(real.mean()), rel=1e-5)
    some = [float(discriminator_loss(tiny(label_flipping=p), state)[0]) for p in (0.0, 0.5, 1.0)]
    assert min(some[0], some[2]) < some[1] < max(some[0], some[2])


def test_instance_noise_reaches_both_sources_and_decays():
    class Spread(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return x.std(keepdims=True) * jnp.ones((len(x), 1))

    cfg = tiny(discriminator=Spread(), instance_noise=10.0, instance_noise_steps=4)
    state = gan.init(KEY, cfg)
    kernel = {"kernel": jnp.ones((1, 1)), "bias": jnp.zeros(1)}
    state = state._replace(params={**state.params, "discriminator": {"Dense_0": kernel}})
    spreads = []
    for step in (0, 2, 4, 9):
        _, metrics = discriminator_loss(cfg, state._replace(step=jnp.int32(step)))
        spreads.append([metrics["real_logit"], metrics["fake_logit"]])
    np.testing.assert_allclose(spreads[0], 10, rtol=0.35)
    np.testing.assert_allclose(spreads[1], 5, rtol=0.35)
    _, clean = discriminator_loss(dataclasses.replace(cfg, instance_noise=0.0), state)
    for row in spreads[2:]:
        np.testing.assert_allclose(row, [clean["real_logit"], clean["fake_logit"]], rtol=1e-6)


def test_dropout_thins_training_and_not_judging():
    cfg = tiny(dropout=0.5)
    state = gan.init(KEY, cfg)
    values = {
        float(
            gan.discriminator_loss(state.params["discriminator"], state, BATCH, jax.random.key(k), cfg)[1][1][
                "real_logit"
            ]
        )
        for k in range(3)
    }
    assert len(values) == 3
    assert_same(gan.judge(state, BATCH["x"], cfg), gan.judge(state, BATCH["x"], TINY))


def test_packing_joins_neighbours():
    x = jnp.arange(12.0).reshape(6, 2)
    np.testing.assert_array_equal(head.pack(x, 3), x.reshape(2, 6))
    assert_same(head.pack(x, 1), x)
    image = jax.random.normal(KEY, (4, 3, 3, 2))
    packed = head.pack(image, 2)
    np.testing.assert_array_equal(packed[1], jnp.concatenate([image[2], image[3]], -1))
    cfg = tiny(packing=2)
    state = gan.init(KEY, cfg)
    assert state.params["discriminator"]["body"]["Dense_0"]["kernel"].shape == (4, 8)
    assert gan.judge(state, BATCH["x"], cfg).logits.shape == (8,)


def test_group_stddev():
    same = jnp.ones((8, 5))
    np.testing.assert_allclose(head.group_stddev(same, 4), 1e-4)
    x = jax.random.normal(KEY, (8, 5))
    value = head.group_stddev(x, 4)
    assert value.shape == (8, 1)
    np.testing.assert_allclose(value[:4, 0], x[:4].std(0).mean(), rtol=1e-5)
    shuffled = jnp.concatenate([x[:4][::-1], x[4:]])
    np.testing.assert_allclose(head.group_stddev(shuffled, 4), value, rtol=1e-5)
    np.testing.assert_allclose(head.group_stddev(x[:6], 4)[4:, 0], x[4:6].std(0).mean(), rtol=1e-4)
    cfg = tiny(minibatch_stddev=4)
    state = gan.init(KEY, cfg)
    assert state.params["discriminator"]["Dense_0"]["kernel"].shape == (9, 1)
    gan.train_step(state, BATCH, cfg)


def test_feature_matching_is_the_distance_of_mean_features():
    cfg = tiny(feature_matching=True)
    state = gan.init(KEY, cfg)
    value, _ = gan.generator_loss(state.params["generator"], state, BATCH, KEY, cfg)
    z = jax.random.normal(jax.random.split(KEY, 4)[0], (16, 3))
    fake = mlp.Generator((2,), (8,)).apply({"params": state.params["generator"]}, z, True)
    means = [gan.judge(state, x, cfg).features.mean(0) for x in (BATCH["x"], fake)]
    assert value == pytest.approx(float(((means[0] - means[1]) ** 2).sum()), rel=1e-5)


def test_minibatch_discrimination_counts_near_neighbours():
    codes = jnp.array([[[0.0, 0]], [[0, 0]], [[1, 2]], [[50, 0]]])
    near = np.exp(-3)
    np.testing.assert_allclose(head.nearness(codes)[:, 0], [1 + near, 1 + near, 2 * near, 0], atol=1e-6)
    cfg = tiny(minibatch_kernels=6)
    state = gan.init(KEY, cfg)
    assert state.params["discriminator"]["Dense_0"]["kernel"].shape == (8, 30)
    five, three = (gan.judge(state, jnp.ones((n, 2)), cfg).logits[0] for n in (5, 3))
    weights = state.params["discriminator"]["Dense_1"]["kernel"][8:]
    np.testing.assert_allclose(five - three, 2 * weights.sum(), rtol=1e-4)  # two more at distance 0


@pytest.mark.slow
def test_the_unrolled_generator_answers_the_discriminator_to_come():
    cfg = tiny(unrolling=2, discriminator_learning_rate=0.1)
    state = gan.init(KEY, cfg)
    key = jax.random.split(KEY, 4)[3]

    def by_hand(params):
        ahead = state._replace(params={**state.params, "generator": params})
        for index in range(2):
            ahead, _ = gan.discriminator_step(ahead, BATCH, jax.random.fold_in(key, index), cfg)
        return gan.generator_loss(params, ahead, BATCH, KEY, TINY)[0]

    loss = lambda params: gan.generator_loss(params, state, BATCH, KEY, cfg)[0]
    params = state.params["generator"]
    values = [jax.jit(jax.value_and_grad(f))(params) for f in (loss, by_hand)]
    chex.assert_trees_all_close(*values, rtol=1e-3, atol=1e-5)
    # Holding the discriminator of the future fixed gives another gradient: that of its answer is missing.
    ahead = gan._unrolled(params, state, BATCH, key, cfg)
    fixed = jax.grad(lambda p: gan.generator_loss(p, ahead, BATCH, KEY, TINY)[0])(params)
    difference = optax.tree.norm(optax.tree.sub(values[0][1], fixed))
    assert difference > 0.05 * optax.tree.norm(fixed)
    after, _ = gan.generator_step(state, BATCH, KEY, cfg)
    assert_same(after.params["discriminator"], state.params["discriminator"])


def test_augmentation_reaches_real_and_generated_images():
    cfg = gan.Config(
        shape=(8, 8, 1), augmentations=("cutout",), generator_widths=(8,), discriminator_widths=(8,)
    )
    state = gan.init(KEY, cfg)
    batch = {"image": jax.random.uniform(KEY, (8, 8, 8, 1), minval=-1)}
    seen = []
    plain = dataclasses.replace(cfg, augmentations=())
    for config in (cfg, plain):
        _, metrics = discriminator_loss(config, state, batch)
        seen.append((float(metrics["real_logit"]), float(metrics["fake_logit"])))
    assert seen[0][0] != seen[1][0]
    assert seen[0][1] != seen[1][1]
    grads = [
        jax.grad(lambda p, c=c: gan.generator_loss(p, state, batch, KEY, c)[0])(state.params["generator"])
        for c in (cfg, plain)
    ]
    norms = [float(optax.tree.norm(g)) for g in grads]
    assert 0 < norms[0] != norms[1]


# Labels -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("conditioning", ["concat", "projection", "auxiliary"])
def test_conditional_models_step_and_sample_by_class(conditioning):
    cfg = tiny(conditioning=conditioning, num_classes=3)
    state = gan.init(KEY, cfg)
    after, metrics = gan.train_step(state, BATCH, cfg)
    assert np.isfinite(list(metrics.values())).all()
    z = jnp.zeros((3, 3))
    x = gan.decode(after, z, cfg, jnp.arange(3))
    assert len(np.unique(x[:, 0])) == 3
    np.testing.assert_array_equal(gan.decode(after, z, cfg, jnp.array([2, 0, 1])), x[jnp.array([2, 0, 1])])
    first, second = (gan.sample(KEY, after, 5, cfg, label=jnp.full(5, c)) for c in (0, 1))
    assert (first != second).all()
    assert gan.sample(KEY, after, 5, cfg).shape == (5, 2)


def test_projection_with_a_zero_embedding_is_unconditional():
    cfg = tiny(conditioning="projection", num_classes=3)
    state = gan.init(KEY, cfg)
    params = state.params["discriminator"]
    embedding = params["Embed_0"]["embedding"]
    plain = gan.judge(
        state._replace(params={"discriminator": {k: v for k, v in params.items() if k != "Embed_0"}}),
        BATCH["x"],
        TINY,
    )
    label = BATCH["label"]
    expected = plain.logits + (embedding[label] * plain.features).sum(-1)
    np.testing.assert_allclose(
        gan.judge(state, BATCH["x"], cfg, label).logits, expected, rtol=1e-5, atol=1e-6
    )
    zero = {**params, "Embed_0": {"embedding": 0 * embedding}}
    flat = gan.judge(state._replace(params={"discriminator": zero}), BATCH["x"], cfg, label)
    np.testing.assert_array_equal(flat.logits, plain.logits)


def test_auxiliary_losses_have_their_weights():
    cfg = tiny(conditioning="auxiliary", num_classes=3, auxiliary_weight=0.0, auxiliary_generator_weight=0.0)
    state = gan.init(KEY, cfg)
    params = jax.tree.map(jnp.zeros_like, state.params["discriminator"]["Dense_1"])
    state = state._replace(
        params={**state.params, "discriminator": {**state.params["discriminator"], "Dense_1": params}}
    )
    weighted = dataclasses.replace(cfg, auxiliary_weight=2.0, auxiliary_generator_weight=0.5)
    gain = discriminator_loss(weighted, state)[0] - discriminator_loss(cfg, state)[0]
    assert gain == pytest.approx(2 * 2 * np.log(3), rel=1e-4)  # uniform, on real and on generated data
    losses = [gan.generator_loss(state.params["generator"], state, BATCH, KEY, c)[0] for c in (weighted, cfg)]
    assert losses[0] - losses[1] == pytest.approx(0.5 * np.log(3), rel=1e-4)


def test_made_up_classes_need_no_labels_and_are_read_off_samples_alone():
    cfg = tiny(conditioning="info", num_codes=4, auxiliary_weight=0.0, auxiliary_generator_weight=0.0)
    state = gan.init(KEY, cfg)
    assert state.params["generator"]["Dense_0"]["kernel"].shape == (3 + 4, 8)
    batch = {"x": BATCH["x"]}
    weighted = dataclasses.replace(cfg, auxiliary_weight=2.0, auxiliary_generator_weight=0.5)
    head_params = jax.tree.map(jnp.zeros_like, state.params["discriminator"]["Dense_1"])
    flat = {**state.params["discriminator"], "Dense_1": head_params}
    state = state._replace(params={**state.params, "discriminator": flat})
    gain = discriminator_loss(weighted, state, batch)[0] - discriminator_loss(cfg, state, batch)[0]
    assert gain == pytest.approx(2 * np.log(4), rel=1e-4)
    losses = [gan.generator_loss(state.params["generator"], state, batch, KEY, c)[0] for c in (weighted, cfg)]
    assert losses[0] - losses[1] == pytest.approx(0.5 * np.log(4), rel=1e-4)
    assert gan.sample(KEY, state, 5, cfg).shape == (5, 2)


def test_continuous_codes_are_read_off_as_gaussians():
    """The loss of the two readers against SciPy's density, with heads set by hand."""
    cfg = tiny(conditioning="info", num_codes=0, num_continuous_codes=2, auxiliary_weight=0.0)
    batch, code_key = {"x": BATCH["x"]}, jax.random.split(KEY, 6)[0]
    codes = np.asarray(gan.draw_codes(code_key, 16, cfg))[:, 3:]
    assert np.abs(codes).max() <= 1
    for learned, bias in ((False, [0.3, -0.2]), (True, [0.3, -0.2, 1.0, -0.5])):
        cfg = dataclasses.replace(cfg, learned_variance=learned)
        state = gan.init(KEY, cfg)
        assert state.params["generator"]["Dense_0"]["kernel"].shape == (3 + 2, 8)
        reader = {"kernel": jnp.zeros((8, len(bias))), "bias": jnp.array(bias)}
        params = {**state.params["discriminator"], "Dense_1": reader}
        state = state._replace(params={**state.params, "discriminator": params})
        std = np.exp(0.5 * 10 * np.tanh(np.array(bias[2:]) / 10)) if learned else 1.0
        expected = -scipy.stats.norm.logpdf(codes, bias[:2], std).sum(-1).mean()
        value, metrics = discriminator_loss(dataclasses.replace(cfg, auxiliary_weight=2.0), state, batch)
        assert value - discriminator_loss(cfg, state, batch)[0] == pytest.approx(2 * expected, rel=1e-4)
        assert metrics["code_error"] == pytest.approx(((codes - bias[:2]) ** 2).mean(), rel=1e-4)
        z = gan.draw_codes(jax.random.split(KEY, 5)[0], 16, cfg)[:, 3:]
        expected = -scipy.stats.norm.logpdf(z, bias[:2], std).sum(-1).mean()
        losses = [
            gan.generator_loss(
                state.params["generator"],
                state,
                batch,
                KEY,
                dataclasses.replace(cfg, auxiliary_generator_weight=weight),
            )[0]
            for weight in (0.5, 0.0)
        ]
        assert losses[0] - losses[1] == pytest.approx(0.5 * expected, rel=1e-4)
    assert gan.sample(KEY, state, 5, cfg).shape == (5, 2)


@pytest.mark.slow
def test_a_continuous_code_comes_to_mean_something():
    """A class and a code on two lines: both can be read off samples, and the code moves along the line."""
    rng = np.random.default_rng(0)
    side, along = rng.integers(2, size=4096), rng.uniform(-1, 1, 4096)
    lines = data.Dataset(
        "lines", "train", {"x": np.stack([along, 2 * side - 1.0], 1) + 0.05 * rng.normal(size=(4096, 2))}
    )
    cfg = gan.Config(
        shape=(2,),
        num_latents=2,
        generator_widths=(64, 64),
        discriminator_widths=(64, 64),
        conditioning="info",
        num_codes=2,
        num_continuous_codes=1,
        learned_variance=True,
        auxiliary_generator_weight=1.0,
        learning_rate=1e-3,
        ema_decay=0.99,
    )
    rows = []
    options = {"batch_size": 128, "key": KEY, "mesh": shard.mesh(1), "sample_every": 0, "log_every": 500}
    state = jaxgen.fit(gan, cfg, lines, steps=1500, on_log=lambda step, row: rows.append(row), **options)
    assert rows[-1]["code_error"] < 0.1  # 1/3 of a reader who knows nothing
    assert rows[-1]["class_accuracy"] > 0.95
    z = gan.draw_codes(jax.random.key(1), 200, cfg)
    x = gan.decode(state, z, cfg, jnp.zeros(200, jnp.int32))
    assert abs(np.corrcoef(z[:, -1], x[:, 0])[0, 1]) > 0.8


def test_labels_become_channels():
    x = jnp.ones((2, 3, 3, 1))
    labelled = head.with_label(x, jnp.array([1, 0]), 2)
    np.testing.assert_array_equal(labelled[0, 1, 2], [1, 0, 1])
    np.testing.assert_array_equal(labelled[1, 2, 0], [1, 1, 0])
    np.testing.assert_array_equal(head.with_label(jnp.ones((1, 2)), jnp.array([2]), 3), [[1, 1, 0, 0, 1]])


# The rest -----------------------------------------------------------------------------------------


def test_truncated_codes_lie_within_and_follow_the_density():
    class Identity(nn.Module):
        @nn.compact
        def __call__(self, z, train):
            return z

    cfg = tiny(generator=Identity(), num_latents=2)
    state = gan.init(KEY, cfg)
    z = np.asarray(gan.sample(KEY, state, 20_000, cfg, truncation=1.0))
    assert np.abs(z).max() <= 1
    drawn = np.random.default_rng(0).normal(size=400_000)
    kept = drawn[np.abs(drawn) <= 1]
    assert z.std() == pytest.approx(kept.std(), rel=0.01)
    assert np.abs(gan.sample(KEY, state, 20_000, cfg)).max() > 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "hing"}, r"unknown loss 'hing': there are .*hinge"),
        ({"penalty": "r1", "discriminator_normalization": "batch"}, "keeps them apart"),
        ({"label_smoothing": 0.1, "loss": "hinge"}, "label_smoothing is for"),
        ({"conditioning": "concat"}, "needs data with labels"),
        ({"conditioning": "projection", "num_classes": 3, "packing": 2}, "packing goes with"),
        ({"adaptive_augmentations": ("blit",)}, "augmentations are of images"),
        ({"num_continuous_codes": 2}, "continuous codes go with"),
        ({"conditioning": "info", "num_codes": 0}, "needs num_codes or"),
        ({"generator_normalization": "conditional"}, "needs a conditioning"),
        ({"network": "dcgan"}, r"divisible by 2, not \(2,\)"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        gan.init(KEY, tiny(**changes))


@pytest.mark.slow
def test_bfloat16_computes_and_keeps_float32_parameters():
    cfg = tiny(
        dtype="bfloat16", penalty="r1", discriminator_normalization="spectral", conditioning="projection"
    )
    cfg = dataclasses.replace(cfg, num_classes=3, generator_normalization="batch")
    state = gan.init(KEY, cfg)
    after, metrics = jax.jit(functools.partial(gan.train_step, cfg=cfg))(state, BATCH)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    assert {leaf.dtype for leaf in jax.tree.leaves(after.params)} == {jnp.dtype("float32")}
    assert all(value.dtype == jnp.float32 for value in metrics.values())
    exact, rough = (discriminator_loss(c, state)[0] for c in (dataclasses.replace(cfg, dtype="float32"), cfg))
    assert rough == pytest.approx(float(exact), rel=0.05)
    assert rough != exact


def test_networks_and_optimizers_of_ones_own_train_sample_and_load(tmp_path):
    cfg = tiny(
        generator=mlp.Generator((2,), (7,)),
        discriminator=mlp.Discriminator((9,)),
        generator_optimizer=optax.sgd(1e-3),
        discriminator_optimizer=optax.sgd(1e-3),
    )
    ring = data.load("ring")
    options = {"batch_size": 32, "key": KEY, "mesh": shard.mesh(1), "sample_every": 0}
    state = jaxgen.fit(gan, cfg, ring, steps=20, run_dir=tmp_path, **options)
    assert state.params["generator"]["Dense_0"]["kernel"].shape == (3, 7)
    with pytest.raises(jaxgen.RunError, match="its own discriminator, discriminator_optimizer, generator"):
        jaxgen.load(tmp_path)
    family, cfg, loaded = jaxgen.load(tmp_path, cfg=cfg)
    assert family.sample(KEY, loaded, 3, cfg).shape == (3, 2)


def test_it_learns_the_ring():
    cfg = gan.Config(
        shape=(2,),
        num_latents=2,
        generator_widths=(128, 128, 128),
        discriminator_widths=(128, 128, 128),
        packing=2,
        learning_rate=1e-3,
        ema_decay=0.99,
    )
    ring = data.load("ring")
    options = {"batch_size": 256, "key": KEY, "mesh": shard.mesh(1), "sample_every": 0}
    state = jaxgen.fit(gan, cfg, ring, steps=2000, **options)
    x = gan.sample(jax.random.key(1), state, 2500, cfg)
    reached = modes.mode_statistics(x, points.ring_centers(), points.RING_STD)
    assert reached["modes"] == 8
    assert reached["high_quality"] > 0.7
    assert reached["reverse_kl"] < 0.1
