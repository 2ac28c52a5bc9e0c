"""Denoising diffusion probabilistic models (Ho, Jain & Abbeel 2020).

Data are noised in T small Gaussian steps (`processes`), and a network learns to undo one,

    p(x_{t-1} | x_t) = N(mean of q(x_{t-1} | x_t, x_0) at x_0 = f(x_t, t), variance_t),
    L_simple = E |eps - eps(x_t, t)|^2,     x_t = alpha_t x_0 + sigma_t eps,     t uniform,

where eps, x_0 or v may be predicted. With every term at its own weight the loss is the bound

    -log p(x_0) <= KL(q(x_T | x_0) || N(0, I)) + sum_{t > 1} KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t))
                   - log p(x_0 | x_1),

which `elbo` reports, negated. The variance is fixed, or learned between its two bounds through the bound
(Nichol & Dhariwal 2021); the terms of L_simple may be weighed by min-SNR (Hang et al. 2023). A conditional
model can be guided (`guidance`).

Departs from the papers: the times of a batch are spread evenly from a common random offset, which changes no
expectation (Kingma et al. 2021); the average of the parameters warms up; DDIM draws the samples by default.
"""

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxgen import distributions, keys, values
from jaxgen.arguments import checked
from jaxgen.diffusion import bound, networks, processes, samplers, scan, schedules
from jaxgen.diffusion.guidance import drawn, dropped, guided, labels
from jaxgen.diffusion.objectives import Bound, Hybrid, Simple
from jaxgen.diffusion.samplers import DDIM, DDPM, DPMSolverPP, Heun
from jaxgen.diffusion.schedules import Cosine, Linear, Quadratic, Sigmoid
from jaxgen.fields import Fraction, NonNegativeInt, PositiveInt
from jaxgen.labels import Label
from jaxgen.nn import variables
from jaxgen.types import Batch, Metrics, observed

SCORE_TIMES = 10
"""Noise levels at which `score` looks."""


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(networks.Config):
    """Hyperparameters of the diffusion model, beside those of `networks`."""

    levels: NonNegativeInt = 256
    """Values of a pixel, spread over [-1, 1], whose probability `elbo` bounds; 0 for real numbers."""
    label_dropout: Fraction = 0.1
    """Share of training examples whose label is withheld from a conditional model."""
    num_steps: PositiveInt = 1000
    """Steps T from data to noise."""
    schedule: Linear | Quadratic | Cosine | Sigmoid | values.Value = Linear()
    """How the noise grows."""
    zero_terminal_snr: bool = False
    """Rescale the schedule to leave no signal at all at T; predict v or x0 then."""
    target: Literal["eps", "x0", "v"] = "eps"
    """What the network predicts: the noise, the data, or the velocity between them."""
    variance: Literal["fixed_large", "fixed_small", "learned"] = "fixed_large"
    """Variance of the reverse steps: beta, that of the posterior, or learned between these."""
    objective: Simple | Hybrid | Bound | values.Value = Simple()
    """What is minimised; a learned variance needs the bound or a part of it."""
    flip: bool = False
    """Mirror half of the training pictures left to right."""
    sampler: DDIM | DDPM | DPMSolverPP | Heun | values.Value = DDIM()
    """How `sample` draws where it is not told."""


class State(NamedTuple):
    """What training changes."""

    step: Array
    key: Array
    params: Any
    opt_state: Any
    ema: Any  # averaged parameters


def process(cfg: Config) -> processes.Gaussian:
    """The noising process of a config."""
    schedule: Any = cfg.schedule
    betas = schedule(cfg.num_steps)
    return processes.gaussian(schedules.zero_terminal_snr(betas) if cfg.zero_terminal_snr else betas)


@checked
def init(key: Array, cfg: Config, batch: Batch | None = None) -> State:
    """A fresh state; `batch` is not used.

    Raises ValueError for a shape the network cannot take, and options that do not go together.
    """
    del batch
    _check(cfg)
    params_key, step_key = keys.named(key, "params", "steps")
    params = networks.init(params_key, cfg, _num_outputs(cfg), jnp.int32)
    ema = jax.tree.map(jnp.copy, params)
    opt_state = values.gradient_transformation(cfg.optimizer).init(params)
    return State(jnp.zeros((), jnp.int32), step_key, params, opt_state, ema)


@checked
def loss(params: Any, batch: Batch, key: Array, cfg: Config) -> tuple[Array, Metrics]:
    """Mean over the batch of what is minimised: squared error a dimension, the bound in bits a dimension.

    One t an example estimates the sum over all of them. `batch["label"]` (B,) is needed if conditional.
    """
    value, (metrics, _) = _objective(params, batch, key, cfg)
    return value, metrics


@checked
def train_step(state: State, batch: Batch, cfg: Config) -> tuple[State, Metrics]:
    """One step on `batch["image"]` or `batch["x"]`, (B, *shape), `batch["label"]` (B,) if conditional."""
    key = jax.random.fold_in(state.key, state.step)
    grads, (metrics, after) = jax.grad(_objective, has_aux=True)(state.params, batch, key, cfg)
    optimizer = values.gradient_transformation(cfg.optimizer)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = variables.with_stats(optax.apply_updates(state.params, updates), after)
    ema = cfg.average(state.ema, params, state.step)
    metrics = {**metrics, "grad_norm": optax.tree.norm(grads)}
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
    """n draws by the averaged parameters, (n, *shape); guidance doubles the calls of the network.

    If conditional, of the `label` given, one for all or (n,), else of labels drawn uniformly. Pixels are kept
    within [-1, 1] at every step.

    Args:
        sampler: one of those of `samplers`, such as `samplers.DPMSolverPP(20)`; by default the config's.
        steps: network calls, in place of the sampler's.
        guidance: weight of the label, see `jaxgen.diffusion.guidance`; None for the plain model.

    Raises ValueError for more steps than T, for a label or guidance of an unconditional model, and for a
    label of no class.
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


def predictor(
    state: State,
    cfg: Config,
    label: Label = None,
    guidance: Array | float | None = None,
    exponent: bool = False,
) -> samplers.Model:
    """The averaged network as `samplers` take it: model(x_t, t) -> `cfg.target`, labelled and guided.

    With `exponent` it also returns that of a learned variance, which is the conditional one.

    Raises ValueError for a label or guidance of an unconditional model, and for a label of no class.
    """

    def predict(x, t, label):
        (prediction, v), _ = _predict(state.ema, x, t, label, cfg)
        return (prediction, _exponent(v)) if exponent else prediction

    return guided(predict, label, guidance, cfg)


def measure(cfg: Config) -> str:
    """What `elbo` bounds: the probability of the levels of pixels, or a density of real numbers."""
    return "levels" if cfg.levels else "density"


@checked
def elbo(
    key: Array, state: State, x: Array, cfg: Config, label: Label = None, num_terms: int | None = None
) -> Array:
    """Lower bound on log p(x), with one draw of x_t for each t, in nats, (B,).

    Of the levels that the pixels of x are nearest to, or the density of real numbers. T network calls; with
    `num_terms` as many, for an estimate without bias from times spread evenly, the first always among them.
    If conditional, on log p(x | label), or without a label on the density of the model that ignores it.
    """
    if num_terms is None:
        return -vlb_terms(key, state, x, cfg, label).sum(0)
    if not 2 <= num_terms <= cfg.num_steps:
        raise ValueError(f"num_terms must lie in 2 to {cfg.num_steps}, got {num_terms}")
    gaussian, count, x = process(cfg), num_terms - 1, bound.rounded(x, cfg.levels)
    offset_key, noise_key = keys.named(key, "offsets", "noise")
    offsets = jax.random.uniform(offset_key, (count, x.shape[0]))
    width = (cfg.num_steps - 1) / count
    times = 1 + jnp.int32((jnp.arange(count)[:, None] + offsets) * width)
    times = jnp.minimum(times, cfg.num_steps - 1)
    term = lambda row: _drawn_term(jax.random.fold_in(noise_key, row[0]), state, x, row[1], label, cfg)
    total = jax.lax.map(term, (1 + jnp.arange(count), times)).sum(0) * width
    return -(bound.prior_term(gaussian, x) + total + term((0, jnp.zeros(x.shape[0], jnp.int32))))


def vlb_terms(key: Array, state: State, x: Array, cfg: Config, label: Label = None) -> Array:
    """The terms of the negative bound, in nats, (T + 1, B): -log p(x_0 | x_1), every KL, and that at T."""
    x, noise_key = bound.rounded(x, cfg.levels), keys.named(key, "noise")

    def term(t):
        t_key = jax.random.fold_in(noise_key, t)
        return _drawn_term(t_key, state, x, jnp.full(x.shape[0], t), label, cfg)

    terms = jax.lax.map(term, jnp.arange(cfg.num_steps))
    return jnp.concatenate([terms, bound.prior_term(process(cfg), x)[None]])


@checked
def score(state: State, x: Array, cfg: Config) -> Array:
    """How well noise is told from x: minus its squared error a dimension over several levels, (B,).

    Higher is more typical. All examples get the same noise, so the ranking has no randomness of its own.
    """
    gaussian = process(cfg)
    times = (np.arange(SCORE_TIMES) + 0.5) / SCORE_TIMES * cfg.num_steps

    def error(t):
        noise = jax.random.normal(jax.random.fold_in(jax.random.key(0), t), x.shape[1:])
        noise = jnp.broadcast_to(noise, x.shape)
        t = jnp.full(x.shape[0], t)
        x_t = processes.q_sample(gaussian, x, t, noise)
        (prediction, _), _ = _predict(state.ema, x_t, t, labels(None, x.shape[0], cfg), cfg)
        eps = processes.convert(gaussian, prediction, x_t, t, cfg.target, "eps")
        return distributions.sum_per_example((eps - noise) ** 2) / math.prod(x.shape[1:])

    return -jax.lax.map(error, jnp.asarray(times, jnp.int32)).mean(0)


def _objective(params: Any, batch: Batch, key: Array, cfg: Config) -> tuple[Array, tuple[Metrics, Any]]:
    """The loss, its metrics, and the variables of the network afterwards."""
    time_key, noise_key, label_key = keys.named(key, "time", "noise", "label")
    flip_key, dropout_key = keys.named(key, "flip", "dropout")
    x0, gaussian = observed(batch), process(cfg)
    count = x0.shape[0]
    if cfg.flip:
        mirrored = jax.random.bernoulli(flip_key, 0.5, (count, 1, 1, 1))
        x0 = jnp.where(mirrored, x0[:, :, ::-1], x0)
    offset = jax.random.uniform(time_key, ()) + jnp.arange(count) / count
    t = jnp.minimum(jnp.int32(cfg.num_steps * (offset % 1.0)), cfg.num_steps - 1)
    noise = jax.random.normal(noise_key, x0.shape)
    x_t = processes.q_sample(gaussian, x0, t, noise)
    output, after = _predict(params, x_t, t, dropped(label_key, batch, cfg), cfg, dropout_key)
    prediction, v = output
    alpha, sigma = (processes.spread(level, x0) for level in processes.levels(gaussian, t))
    difference = prediction - processes.join(x0, noise, alpha, sigma, cfg.target)
    mse = distributions.sum_per_example(difference**2) / x0[0].size

    def bits(held):
        mean = jax.lax.stop_gradient(prediction) if held else prediction
        terms = cfg.num_steps * _term(gaussian, mean, v, x0, x_t, t, cfg)
        return (terms + bound.prior_term(gaussian, x0)).mean() / (x0[0].size * math.log(2))

    objective: Any = cfg.objective
    value, metrics = objective(mse, bits, t, gaussian, cfg.target)
    return value, ({"loss": value, "mse": mse.mean(), **metrics}, after)


def _drawn_term(key, state, x, t, label, cfg):
    """A term of the bound at times t (B,), with x_t drawn by the key, (B,)."""
    gaussian = process(cfg)
    x_t = processes.q_sample(gaussian, x, t, jax.random.normal(key, x.shape))
    (prediction, v), _ = _predict(state.ema, x_t, t, labels(label, x.shape[0], cfg), cfg)
    return _term(gaussian, prediction, v, x, x_t, t, cfg)


def _term(gaussian, prediction, v, x0, x_t, t, cfg):
    options = {"target": cfg.target, "variance": cfg.variance, "levels": cfg.levels}
    return bound.term(gaussian, prediction, _exponent(v), x0, x_t, t, **options)


def _exponent(v):
    """Of a learned variance, 0 to 1, from what the network says, -1 to 1."""
    return None if v is None else 0.5 * (v + 1)


def _path(key, state, n, cfg, label, sampler=None, steps=None, guidance=None):
    start_key, noise_key, label_key = keys.named(key, "start", "noise", "label")
    if steps is not None and steps > cfg.num_steps:
        raise ValueError(f"cannot sample in {steps} steps: the process has {cfg.num_steps}")
    sampler = scan.with_steps(cfg.sampler if sampler is None else sampler, steps)
    label = drawn(label_key, label, n, cfg)
    model = predictor(state, cfg, label, guidance, exponent=cfg.variance == "learned")
    x = jax.random.normal(start_key, (n, *cfg.shape))
    options = {"target": cfg.target, "variance": cfg.variance, "clip": 1.0 if cfg.levels else None}
    return sampler(model, x, process(cfg), noise_key, **options)


def _predict(params, x, t, label, cfg, dropout_key=None):
    """The target (B, *shape) and v of a learned variance or None, and the network's variables afterwards."""
    output, after = networks.apply(params, x, t, label, cfg, dropout_key, _num_outputs(cfg))
    return (jnp.split(output, 2, -1) if cfg.variance == "learned" else (output, None)), after


def _num_outputs(cfg):
    return 2 if cfg.variance == "learned" else 1


def _check(cfg: Config) -> None:
    if cfg.zero_terminal_snr and cfg.target == "eps":
        raise ValueError(
            "eps says nothing of x_0 where no signal is left: with zero_terminal_snr predict v or x0"
        )
    learned, teaches = cfg.variance == "learned", getattr(cfg.objective, "teaches_variance", True)
    if isinstance(cfg.objective, Hybrid) and not learned:
        raise ValueError(
            "a hybrid objective trains a learned variance: set variance to learned, or use simple"
        )
    if learned and not teaches:
        raise ValueError("squared errors teach a learned variance nothing: set objective to hybrid or bound")
    if cfg.flip and len(cfg.shape) != 3:
        raise ValueError(f"only images can be mirrored, got {cfg.shape}: turn flip off")
