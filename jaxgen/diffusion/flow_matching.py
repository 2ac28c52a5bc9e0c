"""Flow matching and rectified flow (Lipman et al. 2023; Liu, Gong & Liu 2023).

Noise is joined to data by straight lines, and a network learns the mean velocity of those through a point,

    x_t = (1 - t) eps + t x,     loss = E |v(x_t, t) - (x - eps)|^2,     t from 0, noise, to 1, data.

Following v from t = 0 to 1 turns noise into samples, and the change of volume on the way gives the exact
likelihood. Lines cross less where each batch pairs its noise with its data by optimal transport (Tong et al.
2024; Pooladian et al. 2023), and hardly at all after `reflow`, training on the pairs a first model makes.

Departs from the papers: the pairing is drawn from an entropic transport plan, found in the compiled step by
Sinkhorn's iteration; 1000 t is embedded, by sinusoids made for times to 1000; fixed steps in place of an
adaptive solver.
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxgen import distributions
from jaxgen.diffusion import networks, ode
from jaxgen.types import Batch, Metrics, observed

PIXEL_STEP = 2 / 255
"""Distance of neighbouring 8-bit levels on [-1, 1]."""

SINKHORN_STEPS = 50


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(networks.Config):
    """Hyperparameters of flow matching, beside those of `networks`."""

    label_dropout: float = 0.1
    """Conditional only: share of training examples whose label is withheld."""
    coupling: Literal["independent", "optimal"] = "independent"
    """How a batch pairs noise with data: at random, or by optimal transport."""
    entropy: float = 0.02
    """Optimal only: how far the plan is softened, as a share of the mean squared distance."""
    times: Literal["uniform", "logit_normal"] = "uniform"
    """Distribution of the training times."""
    dequantize: bool = True
    """Add uniform noise one 8-bit level wide to images; turn off for continuous data."""
    sampling_steps: int = 50
    """Steps of `sample` and of `log_prob` where they are not told."""


class State(NamedTuple):
    """What training changes."""

    step: Array
    key: Array
    params: Any
    opt_state: Any
    ema: Any  # averaged parameters


def init(key: Array, cfg: Config, batch: Batch | None = None) -> State:
    """A fresh state; `batch` is not used. Raises ValueError for a shape the network cannot take."""
    del batch
    networks.check(cfg)
    params_key, step_key = jax.random.split(key)
    label = jnp.zeros(1, jnp.int32) if cfg.conditional else None
    inputs = jnp.zeros((1, *cfg.shape)), jnp.zeros(1), label, False
    params = networks.build(cfg).init(params_key, *inputs).get("params", {})
    ema = jax.tree.map(jnp.copy, params)
    return State(jnp.zeros((), jnp.int32), step_key, params, networks.optimizer(cfg).init(params), ema)


def loss(params: Any, batch: Batch, key: Array, cfg: Config) -> tuple[Array, Metrics]:
    """Mean over the batch of the squared error of the velocity a dimension.

    `batch["label"]` (B,) is needed if conditional. `batch["noise"]`, shaped as the data, is the noise they
    are paired with, as `reflow` makes it; else it is drawn and paired as `cfg.coupling` says.
    """
    time_key, noise_key, pair_key, label_key, data_key, dropout_key = jax.random.split(key, 6)
    x, label = observed(batch), batch.get("label")
    count = x.shape[0]
    if cfg.dequantize and len(cfg.shape) == 3:
        x = x + PIXEL_STEP * (jax.random.uniform(data_key, x.shape) - 0.5)
    if "noise" in batch:
        noise = batch["noise"]
    else:
        noise = jax.random.normal(noise_key, x.shape)
        if cfg.coupling == "optimal":
            noise = noise[transport(pair_key, x, noise, cfg.entropy)]
    t = jax.random.uniform(time_key, (count,))
    if cfg.times == "logit_normal":
        t = jax.nn.sigmoid(jax.random.normal(time_key, (count,)))
    label = networks.labels(label, count, cfg)
    if label is not None:
        dropped = jax.random.bernoulli(label_key, cfg.label_dropout, (count,))
        label = jnp.where(dropped, cfg.num_classes, label)
    spread = t.reshape(-1, *(1,) * (x.ndim - 1))
    x_t = (1 - spread) * noise + spread * x
    error = _predict(params, x_t, t, label, cfg, dropout_key) - (x - noise)
    value = (distributions.sum_per_example(error**2) / x[0].size).mean()
    cost = (distributions.sum_per_example((x - noise) ** 2) / x[0].size).mean()
    return value, {"loss": value, "transport_cost": cost}


def transport(key: Array, x: Array, noise: Array, entropy: float) -> Array:
    """For each of x (B, ...) the index of its partner in `noise` (B, ...), drawn from an entropic plan, (B,).

    The plan minimises the mean squared distance less `entropy` of its mean value times the entropy of the
    plan, by Sinkhorn's iteration on logarithms (Cuturi 2013). A partner may be drawn twice.
    """
    x, noise = (a.reshape(a.shape[0], -1) for a in (x, noise))
    cost = (x**2).sum(-1)[:, None] + (noise**2).sum(-1) - 2 * x @ noise.T
    logits = -cost / (entropy * cost.mean())

    def normalize(logits, _):
        logits = logits - jax.nn.logsumexp(logits, 1, keepdims=True)
        return logits - jax.nn.logsumexp(logits, 0, keepdims=True), None

    logits, _ = jax.lax.scan(normalize, logits, length=SINKHORN_STEPS)
    return jax.random.categorical(key, logits, axis=-1)


def train_step(state: State, batch: Batch, cfg: Config) -> tuple[State, Metrics]:
    """One step on `batch["image"]` or `batch["x"]`, (B, *shape); see `loss` for what else it may hold."""
    key = jax.random.fold_in(state.key, state.step)
    grads, metrics = jax.grad(loss, has_aux=True)(state.params, batch, key, cfg)
    updates, opt_state = networks.optimizer(cfg).update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = networks.average(state.ema, params, state.step, cfg.ema_decay)
    return State(state.step + 1, state.key, params, opt_state, ema), metrics


def sample(
    key: Array,
    state: State,
    n: int,
    cfg: Config,
    label: Array | int | None = None,
    *,
    steps: int | None = None,
    method: Literal["euler", "midpoint", "heun", "rk4"] = "heun",
    guidance: Array | float | None = None,
) -> Array:
    """n draws by the averaged parameters, (n, *shape): noise that follows the velocity for `steps` steps.

    If conditional, of the `label` given, one for all or (n,), else of labels drawn uniformly. Raises
    ValueError for a label or guidance of an unconditional model.
    """
    noise_key, label_key = jax.random.split(key)
    if cfg.conditional and label is None:
        label = jax.random.randint(label_key, (n,), 0, cfg.num_classes)
    noise = jax.random.normal(noise_key, (n, *cfg.shape))
    return flow(state, noise, cfg, label, steps=steps, method=method, guidance=guidance)


def flow(
    state: State,
    noise: Array,
    cfg: Config,
    label: Array | int | None = None,
    *,
    steps: int | None = None,
    method: str = "heun",
    guidance: Array | float | None = None,
) -> Array:
    """The data that noise (B, *shape) becomes, (B, *shape)."""
    times = jnp.linspace(0.0, 1.0, (cfg.sampling_steps if steps is None else steps) + 1)
    return ode.solve(velocity(state, cfg, label, guidance), noise, times, method)


def reflow(key: Array, state: State, n: int, cfg: Config, **options: Any) -> dict[str, Array]:
    """n pairs of noise and the data it becomes, as a batch to train on: "noise" and "image" or "x".

    Lines between them cross less than those between data and independent noise, and a model of them needs
    fewer steps (Liu, Gong & Liu 2023). `options` are those of `flow`.
    """
    noise = jax.random.normal(key, (n, *cfg.shape))
    name = "image" if len(cfg.shape) == 3 else "x"
    return {"noise": noise, name: flow(state, noise, cfg, **options)}


def velocity(
    state: State, cfg: Config, label: Array | int | None = None, guidance: Array | float | None = None
) -> ode.Velocity:
    """The averaged v(x, t), t (), with guidance as in `ddpm.predictor`.

    Raises ValueError for a label or guidance of an unconditional model.
    """
    if not cfg.conditional and (guidance is not None or label is not None):
        raise ValueError("an unconditional model takes no label and cannot be guided: train with conditional")

    def model(x, t):
        t = jnp.full(x.shape[0], t)
        labels = networks.labels(label, x.shape[0], cfg)
        if guidance is None:
            return _predict(state.ema, x, t, labels, cfg)
        twice = lambda a: jnp.concatenate([a, a])
        both = jnp.concatenate([labels, jnp.full_like(labels, cfg.num_classes)])
        given, ignoring = jnp.split(_predict(state.ema, twice(x), twice(t), both, cfg), 2)
        return (1 - guidance) * ignoring + guidance * given

    return model


def log_prob(
    state: State,
    x: Array,
    cfg: Config,
    label: Array | None = None,
    *,
    steps: int | None = None,
    num_probes: int = 0,
    key: Array | None = None,
) -> Array:
    """log p(x) of continuous data x (B, *shape), in nats, (B,), by `steps` steps of fourth order.

    Exact but for the steps, at as many backward passes as dimensions; with `num_probes` the divergence is
    estimated by as many, which are signs drawn by the key, one for all steps. A conditional model without a
    label ignores it. Raises ValueError for probes without a key.
    """
    probes = None
    if num_probes:
        if key is None:
            raise ValueError("an estimated divergence draws probes: give log_prob a key")
        probes = jax.random.rademacher(key, (num_probes, *x.shape), x.dtype)
    times = jnp.linspace(1.0, 0.0, (cfg.sampling_steps if steps is None else steps) + 1)
    return ode.log_prob(velocity(state, cfg, label), x, times, distributions.normal_log_prob, probes)


def _predict(params, x, t, label, cfg, dropout_key=None):
    rngs = None if dropout_key is None else {"dropout": dropout_key}
    inputs = x, 1000 * t, label, dropout_key is not None
    output: Any = networks.build(cfg).apply({"params": params}, *inputs, rngs=rngs)
    return output.astype(jnp.promote_types(output.dtype, jnp.float32))
