"""Generative adversarial networks: one step of two players, out of which the papers are configured.

A generator G maps codes z ~ N(0, I) to data, a discriminator D maps data to a logit, and they take turns:

    D:  minimise  L_D(D(x), D(G(z))) + weight penalty(D)          G:  minimise  L_G(D(x), D(G(z)))

(Goodfellow et al. 2014). The pair of losses is an entry of `losses`, the penalty one of `penalties`, the two
networks come from `networks` or from the caller; `presets` has the papers as values of Config.

A batch is split into `discriminator_steps` parts. Each serves one step of D, the last one then a step of G,
so that the examples of a step are those D is shown, however often it moves. Every turn draws fresh codes.
Real and generated data pass through D apart, real first, so that batch normalization treats each by its own
statistics. D's turn changes nothing of G, statistics included, and G's nothing of D.
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxgen.gan import penalties
from jaxgen.gan.augment import augment
from jaxgen.gan.losses import LOSSES
from jaxgen.gan.networks import dcgan, head, mlp, r3gan, resnet
from jaxgen.types import Batch, Metrics, observed

SMOOTHED = ("minimax", "non_saturating")
"""Losses with targets to smooth."""


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Hyperparameters of both players. All remedies are off but the average of the generator."""

    shape: tuple[int, ...] = (8, 8, 1)
    """Shape of one example."""
    num_classes: int = 0
    """Classes of the labels, if they are used."""
    num_latents: int = 64
    """Dimensions of z."""
    network: Literal["mlp", "dcgan", "resnet", "r3gan"] = "mlp"
    """Fully connected; strided convolutions; residual; residual without normalization."""
    generator_widths: tuple[int, ...] = (128, 128)
    """Widths of the generator's layers (mlp), or channels from its smallest images to its largest."""
    discriminator_widths: tuple[int, ...] = (128, 128)
    """Widths of the discriminator's layers, or channels from its largest images to its smallest."""
    generator_normalization: Literal["none", "batch", "conditional"] = "none"
    """Normalization of the generator's hidden layers, conditional by the label; r3gan has none."""
    discriminator_normalization: Literal["none", "batch", "layer", "spectral"] = "none"
    """Normalization of the discriminator's layers or weights; r3gan has none."""
    upsampling: Literal["transposed", "nearest"] = "transposed"
    """dcgan only: how the generator doubles the size."""
    activation: Literal["leaky_relu", "relu", "maxout"] = "leaky_relu"
    """mlp only: nonlinearity of the discriminator."""
    blocks: int = 2
    """r3gan only: residual blocks at each size."""
    init_std: float = 0.0
    """mlp and dcgan only: standard deviation of the initial weights; 0 for He's."""
    loss: str = "non_saturating"
    """Name of a pair of losses in `losses.LOSSES`."""
    penalty: Literal["none", "gradient", "gradient_one_sided", "dragan", "r1", "r2", "r1_r2"] = "none"
    """Penalty on the discriminator's gradient."""
    penalty_weight: float = 10.0
    """Weight of the penalty: lambda, or gamma of r1 and r2."""
    penalty_every: int = 1
    """Apply the penalty at every k-th step of the discriminator, with k times the weight."""
    weight_clip: float = 0.0
    """Cut the discriminator's parameters to [-c, c] after each of its steps; 0 does not."""
    orthogonal_weight: float = 0.0
    """Weight of the generator's orthogonal regularisation."""
    dropout: float = 0.0
    """mlp and dcgan only: share of the discriminator's hidden units that are dropped in training."""
    label_smoothing: float = 0.0
    """Aim real data at 1 minus this; for minimax and non_saturating."""
    label_flipping: float = 0.0
    """Probability with which a real and a generated example change roles in the discriminator's step."""
    instance_noise: float = 0.0
    """Initial standard deviation of the noise added to everything the discriminator sees."""
    instance_noise_steps: int = 10_000
    """Steps in which that noise falls linearly to zero."""
    augmentations: tuple[Literal["color", "translation", "cutout"], ...] = ()
    """Random transformations of all images the discriminator sees."""
    packing: int = 1
    """Examples the discriminator judges together, joined along their channels."""
    minibatch_stddev: int = 0
    """Show the last layer how much features vary within groups of so many judgements; 0 does not."""
    minibatch_kernels: int = 0
    """Show the last layer how near each judgement lies to the others under so many kernels; 0 does not."""
    feature_matching: bool = False
    """Train the generator to match the mean features of real data, in place of its loss."""
    conditioning: Literal["none", "concat", "projection", "auxiliary", "info"] = "none"
    """How the discriminator uses labels; the generator's are joined to z. Those of info are made up."""
    num_codes: int = 10
    """info only: made-up classes, which the discriminator learns to read off what was generated from them."""
    auxiliary_weight: float = 1.0
    """Weight of the discriminator's classification loss under auxiliary or info conditioning."""
    auxiliary_generator_weight: float = 0.1
    """The same of the generator's."""
    unrolling: int = 0
    """Steps the generator thinks the discriminator ahead, and differentiates through."""
    discriminator_steps: int = 1
    """Steps of the discriminator to one of the generator; the batch is split among them."""
    rule: Literal["adam", "rmsprop"] = "adam"
    """Optimizer of both players."""
    learning_rate: float = 2e-4
    """Step size of the generator."""
    discriminator_learning_rate: float | None = None
    """Step size of the discriminator; by default the generator's."""
    beta1: float = 0.5
    """Adam's decay of the mean gradient."""
    beta2: float = 0.999
    """Adam's decay of the squared gradient."""
    decay_steps: int = 0
    """Steps in which both step sizes fall linearly to zero; 0 keeps them constant."""
    ema_decay: float = 0.999
    """Decay of the averaged generator that samples are drawn from; grows to this in the first steps."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype of the networks; parameters, losses and penalties stay float32."""
    generator: nn.Module | None = None
    """Your own network: codes (B, num_latents + num_labels), train -> (B, *shape)."""
    discriminator: nn.Module | None = None
    """Your own network: (B, ...), train -> features (B, F); a last linear layer is added."""
    generator_optimizer: optax.GradientTransformation | None = None
    """Your own optimizer of the generator."""
    discriminator_optimizer: optax.GradientTransformation | None = None
    """Your own optimizer of the discriminator."""


class State(NamedTuple):
    """What training changes; `params`, `stats` and `opt_state` have a "generator" and a "discriminator"."""

    step: Array
    key: Array
    params: Any
    stats: Any  # running statistics and singular vectors
    opt_state: Any
    ema: Any  # the generator's averaged variables


def optimizer(cfg: Config, player: str) -> optax.GradientTransformation:
    """The config's own optimizer of the "generator" or the "discriminator", or the rule it names.

    Under a penalty applied at every k-th step Adam's constants become those of k steps in k + 1: step size
    times c, decays to the power c, c = k / (k + 1) (Karras et al. 2020).
    """
    own = getattr(cfg, f"{player}_optimizer")
    if own is not None:
        return own
    rate, steps, share = cfg.learning_rate, cfg.decay_steps, 1.0
    if player == "discriminator":
        rate = rate if cfg.discriminator_learning_rate is None else cfg.discriminator_learning_rate
        steps *= cfg.discriminator_steps
        if cfg.penalty != "none" and cfg.penalty_every > 1 and cfg.rule == "adam":
            share = cfg.penalty_every / (cfg.penalty_every + 1)
    schedule = optax.linear_schedule(share * rate, 0.0, steps) if steps else share * rate
    if cfg.rule == "rmsprop":
        return optax.rmsprop(schedule)
    return optax.adam(schedule, cfg.beta1**share, cfg.beta2**share)


def init(key: Array, cfg: Config, batch: Batch | None = None) -> State:
    """A fresh state; `batch` is not used.

    Raises ValueError for a shape the networks cannot make, and for settings that exclude each other.
    """
    del batch
    _check(cfg)
    generator_key, discriminator_key, step_key = jax.random.split(key, 3)
    generator, discriminator = _networks(cfg)
    label = jnp.zeros(cfg.packing, jnp.int32)
    codes = _codes(jnp.zeros((cfg.packing, cfg.num_latents)), label, cfg)
    variables = {
        "generator": generator.init(generator_key, codes, False),
        "discriminator": discriminator.init(
            discriminator_key, jnp.zeros((cfg.packing, *cfg.shape)), label, False
        ),
    }
    params = {player: v.get("params", {}) for player, v in variables.items()}
    stats = {player: {k: v[k] for k in v if k != "params"} for player, v in variables.items()}
    opt_state = {player: optimizer(cfg, player).init(params[player]) for player in params}
    ema = jax.tree.map(jnp.copy, _variables(params["generator"], stats["generator"]))
    return State(jnp.zeros((), jnp.int32), step_key, params, stats, opt_state, ema)


def discriminator_loss(
    params: Any, state: State, batch: Batch, key: Array, cfg: Config, turn: Array | int = 0
) -> tuple[Array, tuple[Any, Metrics]]:
    """L_D and the penalty with the discriminator's parameters `params` and all else from `state`.

    `turn` counts the discriminator's steps of a training step. Returns the loss, and the discriminator's new
    statistics with what there is to log.
    """
    loss = LOSSES[cfg.loss]
    code_key, real_key, fake_key, flip_key, penalty_key, label_key = jax.random.split(key, 6)
    real, label = observed(batch), _label(batch, label_key, cfg)
    fake, _ = _generate(state.params["generator"], state, code_key, len(real), label, cfg)
    # The singular vectors move here and nowhere else, so that the whole step sees the same weights.
    moving, stats = ("batch_stats", "spectral"), state.stats["discriminator"]
    on_real, stats = _judge(params, stats, state, real, label, real_key, cfg, mutable=moving)
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
    metrics = {
        "discriminator_loss": adversarial,
        **_diagnostics(on_real.logits, on_fake.logits, loss.threshold),
    }
    if on_fake.classes is not None:
        labelled = (on_fake,) if cfg.conditioning == "info" else (on_fake, on_real)
        classification = sum(_cross_entropy(verdict.classes, label) for verdict in labelled)
        value = value + cfg.auxiliary_weight * classification
        metrics["class_accuracy"] = (labelled[-1].classes.argmax(-1) == label).mean()
    if cfg.penalty != "none":

        def penalty():
            critic = _critic(params, stats, state, label, real_key, cfg)
            sets = [x.reshape(-1, cfg.packing, *cfg.shape) for x in (real, fake)]
            return penalties.PENALTIES[cfg.penalty](critic, sets[0], sets[1], penalty_key)

        if cfg.penalty_every > 1:
            due = (state.step * cfg.discriminator_steps + turn) % cfg.penalty_every == 0
            amount = cfg.penalty_every * jax.lax.cond(due, penalty, lambda: jnp.zeros(()))
        else:
            amount = penalty()
        value = value + cfg.penalty_weight * amount
        metrics["penalty"] = amount
    return value, (stats, metrics)


def generator_loss(
    params: Any, state: State, batch: Batch, key: Array, cfg: Config
) -> tuple[Array, tuple[Any, Metrics]]:
    """L_G with the generator's parameters `params` and all else from `state`.

    Returns the loss, and the generator's new statistics with what there is to log.
    """
    code_key, real_key, fake_key, unrolling_key, label_key = jax.random.split(key, 5)
    real, label = observed(batch), _label(batch, label_key, cfg)
    fake, stats = _generate(params, state, code_key, len(real), label, cfg)
    if cfg.unrolling:
        state = _unrolled(params, state, batch, unrolling_key, cfg)
    discriminator = state.params["discriminator"], state.stats["discriminator"], state
    on_real, _ = _judge(*discriminator, real, label, real_key, cfg)
    on_fake, _ = _judge(*discriminator, fake, label, fake_key, cfg)
    if cfg.feature_matching:
        value = ((on_real.features.mean(0) - on_fake.features.mean(0)) ** 2).sum()
    else:
        value = LOSSES[cfg.loss].generator(on_real.logits, on_fake.logits)
    metrics = {"generator_loss": value}
    if on_fake.classes is not None:
        value = value + cfg.auxiliary_generator_weight * _cross_entropy(on_fake.classes, label)
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
    decay = jnp.minimum(cfg.ema_decay, (1.0 + state.step) / (10.0 + state.step))
    new = _variables(state.params["generator"], state.stats["generator"])
    ema = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, state.ema, new)
    return state._replace(ema=ema), {**metrics, "generator_grad_norm": optax.tree.norm(grads)}


def train_step(state: State, batch: Batch, cfg: Config) -> tuple[State, Metrics]:
    """`discriminator_steps` of D and one of G on `batch["image"]` or `batch["x"]`, (B, *shape).

    Conditional models also need `batch["label"]`. Raises ValueError for a batch that does not split.
    """
    key = jax.random.fold_in(state.key, state.step)
    parts = _parts(batch, cfg)

    def turn(state, turn_and_part):
        index, part = turn_and_part
        return discriminator_step(state, part, jax.random.fold_in(key, index), cfg, index)

    count = cfg.discriminator_steps
    state, metrics = jax.lax.scan(turn, state, (jnp.arange(count), parts))
    metrics = jax.tree.map(lambda values: values.mean(0), metrics)
    last = jax.tree.map(lambda part: part[-1], parts)
    state, generator_metrics = generator_step(state, last, jax.random.fold_in(key, count), cfg)
    return state._replace(step=state.step + 1), {**metrics, **generator_metrics}


def sample(
    key: Array,
    state: State,
    n: int,
    cfg: Config,
    label: Array | None = None,
    truncation: float | None = None,
) -> Array:
    """n draws of the averaged generator, (n, *shape).

    Args:
        label: (n,) classes of a conditional model; by default drawn evenly.
        truncation: draw every coordinate of z anew until it lies within this of 0 (Brock et al. 2019); less
            of it gives more typical and less varied samples.
    """
    code_key, label_key = jax.random.split(key)
    shape = (n, cfg.num_latents)
    if truncation is None:
        z = jax.random.normal(code_key, shape)
    else:
        z = jax.random.truncated_normal(code_key, -truncation, truncation, shape)
    if cfg.conditioning != "none" and label is None:
        label = jax.random.randint(label_key, (n,), 0, num_labels(cfg))
    return decode(state, z, cfg, label)


def decode(state: State, z: Array, cfg: Config, label: Array | None = None) -> Array:
    """Codes z (B, num_latents) and labels (B,) to data (B, *shape), by the averaged generator."""
    return jnp.float32(_networks(cfg)[0].apply(state.ema, _codes(z, label, cfg), False))


def judge(state: State, x: Array, cfg: Config, label: Array | None = None) -> head.Verdict:
    """The discriminator's logits and features of data x (B, *shape), without noise or augmentation."""
    variables = _variables(state.params["discriminator"], state.stats["discriminator"])
    verdict: Any = _networks(cfg)[1].apply(variables, x, label, False)
    return verdict


def num_labels(cfg: Config) -> int:
    """Classes of the labels that go with z; 0 of an unconditional model."""
    if cfg.conditioning == "none":
        return 0
    return cfg.num_codes if cfg.conditioning == "info" else cfg.num_classes


def _networks(cfg: Config) -> tuple[nn.Module, nn.Module]:
    module = {"mlp": mlp, "dcgan": dcgan, "resnet": resnet, "r3gan": r3gan}[cfg.network]
    first: dict[str, Any] = {"dtype": cfg.dtype}
    second: dict[str, Any] = {"dtype": cfg.dtype}
    if cfg.network == "r3gan":
        first["blocks"] = second["blocks"] = cfg.blocks
    else:
        first["normalization"], first["num_labels"] = cfg.generator_normalization, num_labels(cfg)
        second["normalization"] = cfg.discriminator_normalization
    if cfg.network in ("mlp", "dcgan"):
        first["std"] = second["std"] = cfg.init_std
        second["dropout"] = cfg.dropout
    if cfg.network == "mlp":
        second["activation"] = cfg.activation
    if cfg.network == "dcgan":
        first["upsampling"] = cfg.upsampling
    generator = cfg.generator or module.Generator(cfg.shape, cfg.generator_widths, **first)
    body = cfg.discriminator or module.Discriminator(cfg.discriminator_widths, **second)
    discriminator = head.Discriminator(
        body,
        cfg.packing,
        cfg.conditioning,
        num_labels(cfg),
        cfg.minibatch_stddev,
        cfg.minibatch_kernels,
        cfg.discriminator_normalization,
        cfg.init_std,
        cfg.dtype,
    )
    return generator, discriminator


def _generate(params, state, key, n, label, cfg):
    """n samples by batch statistics, and the generator's new statistics."""
    variables = _variables(params, state.stats["generator"])
    codes = _codes(jax.random.normal(key, (n, cfg.num_latents)), label, cfg)
    x, stats = _networks(cfg)[0].apply(variables, codes, True, mutable=["batch_stats", "spectral"])
    return jnp.float32(x), {**state.stats["generator"], **stats}


def _judge(params, stats, state, x, label, key, cfg, mutable=("batch_stats",)):
    """The Verdict on x in training, and the new statistics."""
    look_key, dropout_key = jax.random.split(key)
    x = _looked_at(look_key, x, state.step, cfg)
    variables, rngs = _variables(params, stats), {"dropout": dropout_key}
    verdict, new = _networks(cfg)[1].apply(variables, x, label, True, rngs=rngs, mutable=mutable)
    return verdict, {**stats, **new}


def _unrolled(params, state, batch, key, cfg):
    """The state after steps of the discriminator against the generator `params`, differentiable in these."""

    def ahead(state, index):
        return discriminator_step(state, batch, jax.random.fold_in(key, index), cfg, index)[0], None

    state = state._replace(params={**state.params, "generator": params})
    return jax.lax.scan(jax.checkpoint(ahead), state, jnp.arange(cfg.unrolling))[0]


def _critic(params, stats, state, label, key, cfg):
    """Sets of examples (B / packing, packing, *shape) to logits, under augmentation but without dropout."""
    network = _networks(cfg)[1]

    def critic(sets):
        x = _looked_at(jax.random.split(key)[0], sets.reshape(-1, *cfg.shape), state.step, cfg)
        verdict: Any = network.apply(_variables(params, stats), x, label, False)
        return verdict.logits

    return critic


def _looked_at(key, x, step, cfg):
    """What the discriminator gets to see of x (B, *shape)."""
    augment_key, noise_key = jax.random.split(key)
    x = augment(augment_key, x, cfg.augmentations)
    if cfg.instance_noise:
        std = cfg.instance_noise * jnp.maximum(1 - step / cfg.instance_noise_steps, 0.0)
        x = x + std * jax.random.normal(noise_key, x.shape)
    return x


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
    kept = {"label": batch["label"]} if cfg.conditioning not in ("none", "info") else {}
    name = "image" if "image" in batch else "x"
    return jax.tree.map(split, {name: batch[name], **kept})


def _label(batch, key, cfg):
    if cfg.conditioning == "info":
        return jax.random.randint(key, (len(observed(batch)),), 0, cfg.num_codes)
    return batch["label"] if cfg.conditioning != "none" else None


def _codes(z, label, cfg):
    if cfg.conditioning == "none":
        return z
    return jnp.concatenate([z, jax.nn.one_hot(label, num_labels(cfg))], -1)


def _variables(params, stats):
    return {"params": params, **stats}


def _cross_entropy(logits, label):
    return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()


def _diagnostics(real, fake, threshold):
    """Mean logits, and how often the discriminator is right; where logits are relative, about their means."""
    above = lambda other: other.mean() if threshold is None else threshold
    return {
        "real_logit": real.mean(),
        "fake_logit": fake.mean(),
        "real_accuracy": (real > above(fake)).mean(),
        "fake_accuracy": (fake < above(real)).mean(),
    }


def _check(cfg):
    """Raises ValueError for settings that do not go together."""
    if cfg.loss not in LOSSES:
        raise ValueError(f"unknown loss {cfg.loss!r}: there are {', '.join(sorted(LOSSES))}")
    if cfg.penalty != "none" and cfg.discriminator_normalization == "batch":
        raise ValueError(
            "a penalty on the gradient of each example needs a discriminator that keeps them apart:"
            ' discriminator_normalization "none", "layer" or "spectral", not "batch"'
        )
    if cfg.label_smoothing and cfg.loss not in SMOOTHED:
        raise ValueError(f"label_smoothing is for the losses {' and '.join(SMOOTHED)}, not {cfg.loss}")
    if cfg.conditioning != "none" and not num_labels(cfg):
        raise ValueError(f"conditioning {cfg.conditioning!r} needs data with labels")
    if cfg.generator_normalization == "conditional" and cfg.conditioning == "none":
        raise ValueError('generator_normalization "conditional" needs a conditioning other than "none"')
    if cfg.packing > 1 and cfg.conditioning in ("projection", "auxiliary", "info"):
        raise ValueError(f'packing goes with conditioning "none" or "concat", not {cfg.conditioning!r}')
