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

from jaxgen import distributions, keys, values
from jaxgen.arguments import checked
from jaxgen.diffusion import bound, networks, ode, scan
from jaxgen.diffusion.guidance import drawn, dropped, guided, labels
from jaxgen.diffusion.ode import RK4, Euler, Heun, Midpoint
from jaxgen.diffusion.processes import spread
from jaxgen.fields import Fraction, NonNegativeInt, PositiveFloat
from jaxgen.labels import Label
from jaxgen.nn import variables
from jaxgen.types import Batch, Metrics, observed

SINKHORN_STEPS = 50


@dataclasses.dataclass(frozen=True)
class Independent(values.Value):
    """Noise and data are paired at random."""

    def __call__(self, key: Array, x: Array, noise: Array) -> Array:
        """The partners of x (B, ...) among noise of its shape, in its order."""
        del key, x
        return noise


@dataclasses.dataclass(frozen=True)
class Optimal(values.Value):
    """Noise and data are paired by optimal transport within a batch."""

    entropy: PositiveFloat = 0.02
    """How far the transport plan is softened, as a share of the mean squared distance."""

    def __call__(self, key: Array, x: Array, noise: Array) -> Array:
        """The partners of x (B, ...) among noise of its shape, in its order."""
        return noise[transport(key, x, noise, self.entropy)]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(networks.Config):
    """Hyperparameters of flow matching, beside those of `networks`."""

    levels: NonNegativeInt = 256
    """Values of a pixel, spread over [-1, 1], dequantised by noise one level wide; 0 for real numbers."""
    label_dropout: Fraction = 0.1
    """Share of training examples whose label is withheld from a conditional model."""
    coupling: Independent | Optimal | values.Value = Independent()
    """How a batch pairs noise with data."""
    times: Literal["uniform", "logit_normal"] = "uniform"
    """Distribution of the training times."""
    sampler: Heun | Euler | Midpoint | RK4 | values.Value = Heun()
    """How `sample` follows the velocity where it is not told; its steps are also those of `log_prob`."""


class State(NamedTuple):
    """What training changes."""

    step: Array
    key: Array
    params: Any
    opt_state: Any
    ema: Any  # averaged parameters


@checked
def init(key: Array, cfg: Config, batch: Batch | None = None) -> State:
    """A fresh state; `batch` is not used. Raises ValueError for a shape the network cannot take."""
    del batch
    params_key, step_key = keys.named(key, "params", "steps")
    params = networks.init(params_key, cfg)
    ema = jax.tree.map(jnp.copy, params)
    opt_state = values.gradient_transformation(cfg.optimizer).init(params)
    return State(jnp.zeros((), jnp.int32), step_key, params, opt_state, ema)


@checked
def loss(params: Any, batch: Batch, key: Array, cfg: Config) -> tuple[Array, Metrics]:
    """Mean over the batch of the squared error of the velocity a dimension.

    `batch["label"]` (B,) is needed if conditional. `batch["noise"]`, shaped as the data, is the noise they
    are paired with, as `reflow` makes it; else it is drawn and paired as `cfg.coupling` does.
    """
    value, (metrics, _) = _objective(params, batch, key, cfg)
    return value, metrics


def transport(key: Array, x: Array, noise: Array, entropy: float) -> Array:
    """For each of x (B, ...) the index of its partner in `noise` (B, ...), drawn from an entropic plan, (B,).

    The plan minimises the mean squared distance less `entropy` of its mean value times the entropy of the
    plan, by Sinkhorn's iteration on logarithms (Cuturi 2013). A partner may be drawn twice.
    """
    x, noise = (a.reshape(a.shape[0], -1) for a in (x, noise))
    means = x.mean(0), noise.mean(0)
    # Each about its own mean: that changes the cost by what depends on one of the two alone, and so no plan,
    # while far from 0 the products lose the digits that tell partners apart.
    x, noise = (a - mean for a, mean in zip((x, noise), means, strict=True))
    products = jnp.matmul(x, noise.T, precision="highest")
    cost = (x**2).sum(-1)[:, None] + (noise**2).sum(-1) - 2 * products
    logits = -cost / (entropy * (cost.mean() + ((means[0] - means[1]) ** 2).sum()))

    def normalize(logits, _):
        logits = logits - jax.nn.logsumexp(logits, 1, keepdims=True)
        return logits - jax.nn.logsumexp(logits, 0, keepdims=True), None

    logits, _ = jax.lax.scan(normalize, logits, length=SINKHORN_STEPS)
    return jax.random.categorical(key, logits, axis=-1)


@checked
def train_step(state: State, batch: Batch, cfg: Config) -> tuple[State, Metrics]:
    """One step on `batch["image"]` or `batch["x"]`, (B, *shape); see `loss` for what else it may hold."""
    key = jax.random.fold_in(state.key, state.step)
    grads, (metrics, after) = jax.grad(_objective, has_aux=True)(state.params, batch, key, cfg)
    optimizer = values.gradient_transformation(cfg.optimizer)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = variables.with_stats(optax.apply_updates(state.params, updates), after)
    ema = cfg.average(state.ema, params, state.step)
    return State(state.step + 1, state.key, params, opt_state, ema), metrics


@checked
def sample(
    key: Array,
    state: State,
    n: int,
    cfg: Config,
    label: Label = None,
    *,
    sampler: Any = None,
    steps: int | None = None,
    guidance: Array | float | None = None,
) -> Array:
    """n draws by the averaged parameters, (n, *shape): noise that follows the velocity.

    If conditional, of the `label` given, one for all or (n,), else of labels drawn uniformly.

    Args:
        sampler: one of those of `ode`, such as `ode.Euler(10)`; by default the config's.
        steps: in place of the sampler's.
        guidance: weight of the label, see `jaxgen.diffusion.guidance`; None for the plain model.

    Raises ValueError for a label or guidance of an unconditional model, and for a label of no class.
    """
    return _path(key, state, n, cfg, label, sampler, steps, guidance).end()


def trajectory(
    key: Array, state: State, n: int, cfg: Config, label: Label = None, *, frames: int = 10, **options: Any
) -> Array:
    """States on the way from noise to the draws that `sample` returns, which are the last of them.

    (frames, n, *shape). The options are those of `sample`. Raises ValueError as `sample` does, and for more
    frames than steps.
    """
    return _path(key, state, n, cfg, label, **options).frames(frames)


def flow(
    state: State,
    noise: Array,
    cfg: Config,
    label: Label = None,
    *,
    sampler: Any = None,
    steps: int | None = None,
    guidance: Array | float | None = None,
) -> Array:
    """The data that noise (B, *shape) becomes, (B, *shape)."""
    return _flow(state, noise, cfg, label, sampler, steps, guidance).end()


def reflow(key: Array, state: State, n: int, cfg: Config, label: Label = None, **options: Any) -> Batch:
    """n pairs of noise and the data it becomes, as a batch to train on: "noise" and "image" or "x".

    Lines between them cross less than those between data and independent noise, and a model of them needs
    fewer steps (Liu, Gong & Liu 2023). `options` are those of `flow`. A conditional model's have a "label",
    the one given, or that for none.
    """
    noise = jax.random.normal(key, (n, *cfg.shape))
    name = "image" if len(cfg.shape) == 3 else "x"
    pairs = {"noise": noise, name: flow(state, noise, cfg, label, **options)}
    return {**pairs, "label": labels(label, n, cfg)} if cfg.conditional else pairs


def velocity(
    state: State, cfg: Config, label: Label = None, guidance: Array | float | None = None
) -> ode.Velocity:
    """The averaged v(x, t), t (), labelled and guided.

    Raises ValueError for a label or guidance of an unconditional model, and for a label of no class.
    """
    predict = lambda x, t, label: _predict(state.ema, x, t, label, cfg)[0]
    model = guided(predict, label, guidance, cfg)
    return lambda x, t: model(x, scan.times(t, x))


def measure(cfg: Config) -> str:
    """What `log_prob` is of: a density, of dequantised pixels if the data have levels."""
    del cfg
    return "density"


@checked
def log_prob(
    state: State,
    x: Array,
    cfg: Config,
    label: Label = None,
    *,
    steps: int | None = None,
    num_probes: int = 0,
    key: Array | None = None,
) -> Array:
    """log p(x) of real numbers x (B, *shape), in nats, (B,), by `steps` steps of fourth order.

    Exact but for the steps, at as many backward passes as dimensions; with `num_probes` the divergence is
    estimated by as many, which are signs drawn by the key, one for all steps. A conditional model without a
    label ignores it. Raises ValueError for probes without a key.
    """
    probes = None
    if num_probes:
        if key is None:
            raise ValueError("an estimated divergence draws probes: give log_prob a key")
        probes = jax.random.rademacher(key, (num_probes, *x.shape), x.dtype)
    sampler: Any = cfg.sampler
    times = jnp.linspace(1.0, 0.0, scan.with_steps(sampler, steps).steps + 1)
    return ode.log_prob(velocity(state, cfg, label), x, times, distributions.normal_log_prob, probes)


def _objective(params: Any, batch: Batch, key: Array, cfg: Config) -> tuple[Array, tuple[Metrics, Any]]:
    """The loss, its metrics, and the variables of the network afterwards."""
    time_key, noise_key, pair_key = keys.named(key, "time", "noise", "pairs")
    label_key, data_key, dropout_key = keys.named(key, "label", "data", "dropout")
    x = bound.rounded(observed(batch), cfg.levels)
    count = x.shape[0]
    if cfg.levels:
        x = x + 2 / (cfg.levels - 1) * (jax.random.uniform(data_key, x.shape) - 0.5)
    if "noise" in batch:
        noise = batch["noise"]
    else:
        coupling: Any = cfg.coupling
        noise = coupling(pair_key, x, jax.random.normal(noise_key, x.shape))
    if cfg.times == "logit_normal":
        t = jax.nn.sigmoid(jax.random.normal(time_key, (count,)))
    else:
        t = jax.random.uniform(time_key, (count,))
    x_t = (1 - spread(t, x)) * noise + spread(t, x) * x
    label = dropped(label_key, batch, cfg)
    predicted, after = _predict(params, x_t, t, label, cfg, dropout_key)
    error = predicted - (x - noise)
    value = (distributions.sum_per_example(error**2) / x[0].size).mean()
    cost = (distributions.sum_per_example((x - noise) ** 2) / x[0].size).mean()
    return value, ({"loss": value, "transport_cost": cost}, after)


def _path(key, state, n, cfg, label, sampler=None, steps=None, guidance=None):
    noise_key, label_key = keys.named(key, "noise", "label")
    noise = jax.random.normal(noise_key, (n, *cfg.shape))
    label = drawn(label_key, label, n, cfg)
    return _flow(state, noise, cfg, label, sampler, steps, guidance)


def _flow(state, noise, cfg, label, sampler=None, steps=None, guidance=None):
    sampler = scan.with_steps(cfg.sampler if sampler is None else sampler, steps)
    return sampler(velocity(state, cfg, label, guidance), noise)


def _predict(params, x, t, label, cfg, dropout_key=None):
    return networks.apply(params, x, 1000 * t, label, cfg, dropout_key)
