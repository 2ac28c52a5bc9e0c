"""Generative adversarial networks: one step of two players, out of which the papers are configured.

A generator G maps codes z ~ N(0, I) to data, a discriminator D maps data to a logit, and they take turns:

    D:  minimise  L_D(D(x), D(G(z))) + weight penalty(D)          G:  minimise  L_G(D(x), D(G(z)))

(Goodfellow et al. 2014). The pair of losses is an entry of `losses`. Networks, penalty, conditioning and the
remedies are values of the Config, ours or the caller's own; `presets` has the papers as Configs.

A batch is split into `discriminator_steps` parts. Each serves one step of D, the last one then a step of G,
so that the examples of a step are those D is shown, however often it moves. Every turn draws fresh codes.
Real and generated data pass through D apart, real first, so that batch normalization treats each by its own
statistics. D's turn changes nothing of G, statistics included, and G's nothing of D.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxgen import keys, labels
from jaxgen.arguments import checked
from jaxgen.gan import diagnostics, penalties
from jaxgen.gan.conditioning import Verdict
from jaxgen.gan.config import Config as Config
from jaxgen.gan.config import check, conditioning_of, draw_codes, networks, num_labels, optimizer, with_label
from jaxgen.gan.diagnostics import warnings as warnings
from jaxgen.gan.losses import LOSSES
from jaxgen.labels import Label
from jaxgen.nn import variables
from jaxgen.nn.variables import call
from jaxgen.types import Batch, Metrics, observed


class State(NamedTuple):
    """What training changes; `params`, `stats` and `opt_state` have a "generator" and a "discriminator"."""

    step: Array
    key: Array
    params: Any
    stats: Any  # running statistics, singular vectors, and the state of an "augmentation"
    opt_state: Any
    ema: Any  # the generator's averaged variables


@checked
def init(key: Array, cfg: Config, batch: Batch | None = None) -> State:
    """A fresh state; `batch` is not used.

    Raises ValueError for a shape the networks cannot make, and for settings that exclude each other.
    """
    del batch
    check(cfg)
    generator_key, discriminator_key, step_key = keys.named(key, "generator", "discriminator", "steps")
    generator, discriminator = networks(cfg)
    label = jnp.zeros(cfg.packing, jnp.int32)
    codes = jnp.zeros((cfg.packing, cfg.num_latents + conditioning_of(cfg).num_continuous_codes))
    x = jnp.zeros((cfg.packing, *cfg.shape))
    players = {
        "generator": variables.init(generator, generator_key, with_label(codes, label, cfg)),
        "discriminator": variables.init(discriminator, discriminator_key, x, label),
    }
    params = {player: variables.parted(made).params for player, made in players.items()}
    stats: dict[str, Any] = {player: variables.parted(made).stats for player, made in players.items()}
    opt_state = {player: optimizer(cfg, player).init(params[player]) for player in params}
    ema = jax.tree.map(jnp.copy, _variables(params["generator"], stats["generator"]))
    if cfg.augmentation is not None:
        stats["augmentation"] = cfg.augmentation.init()  # type: ignore[union-attr, attr-defined]
    return State(jnp.zeros((), jnp.int32), step_key, params, stats, opt_state, ema)


def discriminator_loss(
    params: Any, state: State, batch: Batch, key: Array, cfg: Config, turn: Array | int = 0
) -> tuple[Array, tuple[Any, Metrics]]:
    """L_D and the penalty with the discriminator's parameters `params` and all else from `state`.

    `turn` counts the discriminator's steps of a training step. Returns the loss, and the discriminator's new
    statistics with what there is to log.
    """
    loss, how = LOSSES[cfg.loss], conditioning_of(cfg)
    penalty: Any = cfg.penalty
    code_key, real_key, fake_key = keys.named(key, "codes", "real", "fake")
    flip_key, label_key, penalty_key, critic_key = keys.named(key, "flip", "label", "penalty", "critic")
    real, label = observed(batch), how.labels(batch, label_key)
    fake, codes, _ = _generate(state.params["generator"], state, code_key, len(real), label, cfg)
    # The singular vectors move here and nowhere else, so that the whole step sees the same weights.
    stats = state.stats["discriminator"]
    on_real, stats = _judge(params, stats, state, real, label, real_key, cfg, spectral=True)
    on_fake, stats = _judge(params, stats, state, fake, label, fake_key, cfg)
    real_logits, fake_logits = on_real.logits, on_fake.logits
    if cfg.label_flipping:
        flip = jax.random.bernoulli(flip_key, cfg.label_flipping, real_logits.shape)
        real_logits, fake_logits = (
            jnp.where(flip, fake_logits, real_logits),
            jnp.where(flip, real_logits, fake_logits),
        )
    value = adversarial = loss.discriminator(real_logits, fake_logits)
    # A target of 1 - s: s times softplus(d) - softplus(-d) = d.
    value = value + cfg.label_smoothing * real_logits.mean()
    reading, read = how.discriminator_loss(on_real, on_fake, label, codes)
    metrics = {
        "discriminator_loss": adversarial,
        "diversity": diagnostics.diversity(real, fake),
        **diagnostics.verdicts(loss, on_real.logits, on_fake.logits),
        **read,
    }
    value = value + reading
    if penalty is not None:

        def penalize():
            critic = _critic(params, stats, state, label, critic_key, cfg)
            sets = [x.reshape(-1, cfg.packing, *cfg.shape) for x in (real, fake)]
            return penalty(critic, sets[0], sets[1], penalty_key)

        if penalty.every > 1:
            due = (state.step * cfg.discriminator_steps + turn) % penalty.every == 0
            amount = penalty.every * jax.lax.cond(due, penalize, lambda: jnp.zeros(()))
        else:
            amount = penalize()
        value = value + penalty.factor * amount
        metrics["penalty"] = amount
    return value, (stats, metrics)


def generator_loss(
    params: Any, state: State, batch: Batch, key: Array, cfg: Config
) -> tuple[Array, tuple[Any, Metrics]]:
    """L_G with the generator's parameters `params` and all else from `state`.

    Returns the loss, and the generator's new statistics with what there is to log.
    """
    how = conditioning_of(cfg)
    code_key, real_key, fake_key = keys.named(key, "codes", "real", "fake")
    unrolling_key, label_key = keys.named(key, "unrolling", "label")
    real, label = observed(batch), how.labels(batch, label_key)
    fake, codes, stats = _generate(params, state, code_key, len(real), label, cfg)
    if cfg.unrolling:
        state = _unrolled(params, state, batch, unrolling_key, cfg)
    discriminator = state.params["discriminator"], state.stats["discriminator"], state
    on_real, _ = _judge(*discriminator, real, label, real_key, cfg)
    on_fake, _ = _judge(*discriminator, fake, label, fake_key, cfg)
    loss = LOSSES[cfg.loss]
    if cfg.feature_matching:
        value = ((on_real.features.mean(0) - on_fake.features.mean(0)) ** 2).sum()
        metrics = {"generator_loss": value}
    else:
        value = loss.generator(on_real.logits, on_fake.logits)
        slope = diagnostics.generator_slope(loss, on_real.logits, on_fake.logits)
        metrics = {"generator_loss": value, "generator_slope": slope}
    value = value + how.generator_loss(on_fake, label, codes)
    if cfg.orthogonal_weight:
        value = value + cfg.orthogonal_weight * penalties.orthogonal(params)
    return value, (stats, metrics)


def discriminator_step(
    state: State, batch: Batch, key: Array, cfg: Config, turn: Array | int = 0
) -> tuple[State, Metrics]:
    """One step of the discriminator alone; the state's `step` stays."""
    (_, (stats, metrics)), grads = jax.value_and_grad(discriminator_loss, has_aux=True)(
        state.params["discriminator"], state, batch, key, cfg, turn
    )
    state = _update(state, "discriminator", grads, stats, cfg)
    if cfg.weight_clip:
        clipped = penalties.clip_weights(state.params["discriminator"], cfg.weight_clip)
        state = state._replace(params={**state.params, "discriminator": clipped})
    return state, {**metrics, "discriminator_grad_norm": optax.tree.norm(grads)}


def generator_step(state: State, batch: Batch, key: Array, cfg: Config) -> tuple[State, Metrics]:
    """One step of the generator alone, and of its average; the state's `step` stays."""
    (_, (stats, metrics)), grads = jax.value_and_grad(generator_loss, has_aux=True)(
        state.params["generator"], state, batch, key, cfg
    )
    state = _update(state, "generator", grads, stats, cfg)
    collections = _variables(state.params["generator"], state.stats["generator"])
    ema = cfg.average(state.ema, collections, state.step)
    return state._replace(ema=ema), {**metrics, "generator_grad_norm": optax.tree.norm(grads)}


@checked
def train_step(state: State, batch: Batch, cfg: Config) -> tuple[State, Metrics]:
    """`discriminator_steps` of D and one of G on `batch["image"]` or `batch["x"]`, (B, *shape).

    Conditional models also need `batch["label"]`. Raises ValueError for a batch that does not split.
    """
    key = jax.random.fold_in(state.key, state.step)
    turns_key, generator_key = keys.named(key, "turns", "generator")
    parts = _parts(batch, cfg)

    def turn(state, turn_and_part):
        index, part = turn_and_part
        return discriminator_step(state, part, jax.random.fold_in(turns_key, index), cfg, index)

    count = cfg.discriminator_steps
    state, metrics = jax.lax.scan(turn, state, (jnp.arange(count), parts))
    metrics = jax.tree.map(lambda values: values.mean(0), metrics)
    last = jax.tree.map(lambda part: part[-1], parts)
    state, generator_metrics = generator_step(state, last, generator_key, cfg)
    metrics = {**metrics, **generator_metrics}
    if cfg.augmentation is not None:
        sign, size = 2 * metrics["real_accuracy"] - 1, len(observed(batch))
        current = state.stats["augmentation"]
        current, more = cfg.augmentation.update(current, sign, state.step, size)  # type: ignore[union-attr, attr-defined]
        state = state._replace(stats={**state.stats, "augmentation": current})
        metrics |= more
    return state._replace(step=state.step + 1), metrics


@checked
def sample(
    key: Array,
    state: State,
    n: int,
    cfg: Config,
    label: Label = None,
    truncation: float | None = None,
) -> Array:
    """n draws of the averaged generator, (n, *shape).

    Raises ValueError for a label of an unconditional model and for a label of no class, here and below.

    Args:
        label: classes of a conditional model, one for all or (n,); by default drawn evenly.
        truncation: draw every coordinate of z anew until it lies within this of 0 (Brock et al. 2019); less
            of it gives more typical and less varied samples.
    """
    code_key, label_key = keys.named(key, "codes", "label")
    label = labels.drawn(label_key, label, n, num_labels(cfg))
    return decode(state, draw_codes(code_key, n, cfg, truncation), cfg, label)


@checked
def decode(state: State, z: Array, cfg: Config, label: Label = None) -> Array:
    """Codes z, as of `draw_codes`, and labels (B,) to data (B, *shape), by the averaged generator."""
    label = labels.given(label, len(z), num_labels(cfg))
    return jnp.float32(call(networks(cfg)[0], state.ema, with_label(z, label, cfg), train=False))


def judge(state: State, x: Array, cfg: Config, label: Label = None) -> Verdict:
    """The discriminator's logits and features of data x (B, *shape), without noise or augmentation."""
    labels.check(label, num_labels(cfg))
    collections = _variables(state.params["discriminator"], state.stats["discriminator"])
    verdict: Any = call(networks(cfg)[1], collections, x, label, train=False)
    return verdict


def feature_maps(state: State, x: Array, cfg: Config, label: Label = None) -> tuple[Array, ...]:
    """What each layer of the discriminator makes of data x (B, *shape), (B / packing, h, w, C) each.

    Raises ValueError for a network without feature maps.
    """
    labels.check(label, num_labels(cfg))
    collections = _variables(state.params["discriminator"], state.stats["discriminator"])
    _, sown = call(networks(cfg)[1], collections, x, label, train=False, mutable=["intermediates"])
    if not sown:
        name = type(cfg.discriminator).__module__.rpartition(".")[2]
        raise ValueError(f"the discriminator of {name} has no feature maps: dcgan's has")
    maps: tuple[Array, ...] = sown["intermediates"]["body"]["maps"]
    return tuple(jnp.float32(each) for each in maps)


def _generate(params, state, key, n, label, cfg):
    """n samples by batch statistics, their continuous codes, and the generator's new statistics."""
    stats, z = state.stats["generator"], draw_codes(key, n, cfg)
    x, moved = call(
        networks(cfg)[0],
        _variables(params, stats),
        with_label(z, label, cfg),
        train=True,
        key=keys.named(key, "dropout"),
        mutable=list(stats),
    )
    return jnp.float32(x), z[:, cfg.num_latents :], {**stats, **moved}


def _judge(params, stats, state, x, label, key, cfg, spectral=False):
    """The Verdict on x in training, and the new statistics; with `spectral` singular vectors move too."""
    look_key, dropout_key = keys.named(key, "look", "dropout")
    x = _looked_at(look_key, x, state, cfg)
    mutable = [name for name in stats if spectral or name != "spectral"]
    verdict, new = call(
        networks(cfg)[1], _variables(params, stats), x, label, train=True, key=dropout_key, mutable=mutable
    )
    return verdict, {**stats, **new}


def _unrolled(params, state, batch, key, cfg):
    """The state after steps of the discriminator against the generator `params`, differentiable in these."""

    def ahead(state, index):
        return discriminator_step(state, batch, jax.random.fold_in(key, index), cfg, index)[0], None

    state = state._replace(params={**state.params, "generator": params})
    return jax.lax.scan(jax.checkpoint(ahead), state, jnp.arange(cfg.unrolling))[0]


def _critic(params, stats, state, label, key, cfg):
    """Sets of examples (B / packing, packing, *shape) to logits, under augmentation but without dropout."""
    network = networks(cfg)[1]

    def critic(sets):
        x = _looked_at(key, sets.reshape(-1, *cfg.shape), state, cfg)
        verdict: Any = call(network, _variables(params, stats), x, label, train=False)
        return verdict.logits

    return critic


def _looked_at(key, x, state, cfg):
    """What the discriminator gets to see of x (B, *shape)."""
    augment_key, noise_key = keys.named(key, "augmentation", "noise")
    if cfg.augmentation is not None:
        x = cfg.augmentation(augment_key, x, state.stats["augmentation"])
    return x if cfg.instance_noise is None else cfg.instance_noise(noise_key, x, state.step)


def _update(state, player, grads, stats, cfg):
    updates, opt_state = optimizer(cfg, player).update(grads, state.opt_state[player], state.params[player])
    return state._replace(
        params={**state.params, player: optax.apply_updates(state.params[player], updates)},
        stats={**state.stats, player: stats},
        opt_state={**state.opt_state, player: opt_state},
    )


def _parts(batch, cfg):
    """The batch in `discriminator_steps` parts: every array (B, ...) as (parts, B / parts, ...)."""
    parts, size = cfg.discriminator_steps, len(observed(batch))
    if size % (parts * cfg.packing):
        raise ValueError(
            f"a batch of {size} does not split into {parts} discriminator steps of sets of {cfg.packing}:"
            f" use a multiple of {parts * cfg.packing}"
        )
    # Neighbours go to different parts, so that devices which hold a slice of the batch hold one of each part.
    split = lambda x: jnp.swapaxes(x.reshape(-1, parts, *x.shape[1:]), 0, 1)
    names = ("image" if "image" in batch else "x", "label")
    return {name: split(batch[name]) for name in names if name in batch}


def _variables(params, stats):
    return {"params": params, **stats}
