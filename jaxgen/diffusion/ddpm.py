"""Denoising diffusion probabilistic models (Ho, Jain & Abbeel 2020).

Data are noised in T small Gaussian steps (`processes`), and a network learns to undo one,

    p(x_{t-1} | x_t) = N(mean of q(x_{t-1} | x_t, x_0) at x_0 = f(x_t, t), variance_t),
    L_simple = E |eps - eps(x_t, t)|^2,     x_t = alpha_t x_0 + sigma_t eps,     t uniform,

where eps, x_0 or v may be predicted. With every term at its own weight the loss is the bound

    -log p(x_0) <= KL(q(x_T | x_0) || N(0, I)) + sum_{t > 1} KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t))
                   - log p(x_0 | x_1),

which `elbo` reports, negated. The variance is fixed, or learned between its two bounds through the bound
(Nichol & Dhariwal 2021); the terms of L_simple may be weighed by min-SNR (Hang et al. 2023). A conditional
model is trained without its label now and then, so that it can be guided (Ho & Salimans 2022):

    prediction = (1 - w) unconditional + w conditional,

so w = 0 ignores the label, w = 1 is the plain conditional model, and more exaggerates what the label adds.
(The paper counts from w - 1.)

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

from jaxgen import distributions
from jaxgen.diffusion import bound, networks, processes, samplers, schedules
from jaxgen.types import Batch, Metrics, observed

HYBRID_WEIGHT = 1e-3
"""Of the bound beside L_simple, in bits per dimension."""

SCORE_TIMES = 10
"""Noise levels at which `score` looks."""


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(networks.Config):
    """Hyperparameters of the diffusion model, beside those of `networks`."""

    label_dropout: float = 0.1
    """Conditional only: share of training examples whose label is withheld."""
    num_steps: int = 1000
    """Steps T from data to noise."""
    schedule: Literal["linear", "quadratic", "cosine", "sigmoid"] = "linear"
    """How the noise grows."""
    zero_terminal_snr: bool = False
    """Rescale the schedule to leave no signal at all at T; predict v or x0 then."""
    target: Literal["eps", "x0", "v"] = "eps"
    """What the network predicts: the noise, the data, or the velocity between them."""
    variance: Literal["fixed_large", "fixed_small", "learned"] = "fixed_large"
    """Of the reverse steps: beta, that of the posterior, or learned between these."""
    objective: Literal["simple", "hybrid", "vlb"] = "simple"
    """Squared error; that and a thousandth of the bound, for a learned variance; the bound itself."""
    min_snr: float = 0.0
    """Not vlb: weigh errors of x_0 by min(SNR, this), in place of the target's own weight; 0 does not."""
    levels: int = 256
    """Values of a pixel, spread over [-1, 1], whose probability `elbo` bounds; 0 for continuous data."""
    flip: bool = False
    """Mirror half of the training pictures left to right."""
    sampler: Literal["ddim", "ddpm", "dpm_solver_pp", "heun"] = "ddim"
    """How `sample` draws where it is not told."""
    sampling_steps: int = 50
    """Network calls of `sample` where it is not told."""


class State(NamedTuple):
    """What training changes."""

    step: Array
    key: Array
    params: Any
    opt_state: Any
    ema: Any  # averaged parameters


def process(cfg: Config) -> processes.Gaussian:
    """The noising process of a config."""
    betas = schedules.betas(cfg.schedule, cfg.num_steps)
    return processes.gaussian(schedules.zero_terminal_snr(betas) if cfg.zero_terminal_snr else betas)


def init(key: Array, cfg: Config, batch: Batch | None = None) -> State:
    """A fresh state; `batch` is not used.

    Raises ValueError for a shape the network cannot take, and options that do not go together.
    """
    del batch
    _check(cfg)
    params_key, step_key = jax.random.split(key)
    label = jnp.zeros(1, jnp.int32) if cfg.conditional else None
    x, t = jnp.zeros((1, *cfg.shape)), jnp.zeros(1, jnp.int32)
    params = _network(cfg).init(params_key, x, t, label, False).get("params", {})
    ema = jax.tree.map(jnp.copy, params)
    return State(jnp.zeros((), jnp.int32), step_key, params, networks.optimizer(cfg).init(params), ema)


def loss(params: Any, batch: Batch, key: Array, cfg: Config) -> tuple[Array, Metrics]:
    """Mean over the batch of what is minimised: squared error a dimension, the bound in bits a dimension.

    One t an example estimates the sum over all of them. `batch["label"]` (B,) is needed if conditional.
    """
    time_key, noise_key, label_key, flip_key, dropout_key = jax.random.split(key, 5)
    x0, gaussian = observed(batch), process(cfg)
    count = x0.shape[0]
    if cfg.flip:
        mirrored = jax.random.bernoulli(flip_key, 0.5, (count, 1, 1, 1))
        x0 = jnp.where(mirrored, x0[:, :, ::-1], x0)
    offset = jax.random.uniform(time_key, ()) + jnp.arange(count) / count
    t = jnp.minimum(jnp.int32(cfg.num_steps * (offset % 1.0)), cfg.num_steps - 1)
    noise = jax.random.normal(noise_key, x0.shape)
    x_t = processes.q_sample(gaussian, x0, t, noise)
    label = networks.labels(batch.get("label"), count, cfg)
    if label is not None:
        dropped = jax.random.bernoulli(label_key, cfg.label_dropout, (count,))
        label = jnp.where(dropped, cfg.num_classes, label)
    prediction, v = _predict(params, x_t, t, label, cfg, dropout_key)
    alpha, sigma = (_spread(level, x0) for level in processes.levels(gaussian, t))
    difference = prediction - processes.join(x0, noise, alpha, sigma, cfg.target)
    mse = distributions.sum_per_example(difference**2) / x0[0].size
    value, metrics = (_weights(gaussian, cfg)[t] * mse).mean(), {"mse": mse.mean()}
    if cfg.objective != "simple":
        still = jax.lax.stop_gradient(prediction) if cfg.objective == "hybrid" else prediction
        terms = cfg.num_steps * _term(gaussian, still, v, x0, x_t, t, cfg)
        bits = (terms + bound.prior_term(gaussian, x0)).mean() / (x0[0].size * math.log(2))
        metrics["bits_per_dim"] = bits
        value = bits if cfg.objective == "vlb" else value + HYBRID_WEIGHT * bits
    return value, {"loss": value, **metrics}


def train_step(state: State, batch: Batch, cfg: Config) -> tuple[State, Metrics]:
    """One step on `batch["image"]` or `batch["x"]`, (B, *shape), `batch["label"]` (B,) if conditional."""
    key = jax.random.fold_in(state.key, state.step)
    grads, metrics = jax.grad(loss, has_aux=True)(state.params, batch, key, cfg)
    updates, opt_state = networks.optimizer(cfg).update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = networks.average(state.ema, params, state.step, cfg.ema_decay)
    metrics = {**metrics, "grad_norm": optax.tree.norm(grads)}
    return State(state.step + 1, state.key, params, opt_state, ema), metrics


def sample(
    key: Array,
    state: State,
    n: int,
    cfg: Config,
    label: Array | int | None = None,
    *,
    sampler: Literal["ddim", "ddpm", "dpm_solver_pp", "heun"] | None = None,
    steps: int | None = None,
    guidance: Array | float | None = None,
    eta: Array | float = 0.0,
    frames: int = 0,
) -> Any:
    """n draws by the averaged parameters, (n, *shape), in `steps` network calls; guidance doubles each.

    If conditional, of the `label` given, one for all or (n,), else of labels drawn uniformly. Pixels are kept
    within [-1, 1] at every step. With `frames` also as many states on the way, (frames, n, *shape).

    Raises ValueError for more steps than T, for a label or guidance of an unconditional model, and for eta
    with another sampler than ddim.
    """
    start_key, noise_key, label_key = jax.random.split(key, 3)
    if cfg.conditional and label is None:
        label = jax.random.randint(label_key, (n,), 0, cfg.num_classes)
    sampler = cfg.sampler if sampler is None else sampler
    steps = min(cfg.sampling_steps, cfg.num_steps) if steps is None else steps
    times = samplers.spaced(cfg.num_steps, steps)
    x = jax.random.normal(start_key, (n, *cfg.shape))
    options: dict[str, Any] = {"target": cfg.target, "clip": 1.0 if cfg.levels else None, "frames": frames}
    if sampler != "ddim" and (isinstance(eta, jax.core.Tracer) or np.any(eta)):
        raise ValueError(f"eta belongs to ddim, not to {sampler}")
    if sampler == "ddpm":
        options["variance"] = cfg.variance
        model = predictor(state, cfg, label, guidance, exponent=cfg.variance == "learned")
        return samplers.ddpm(model, x, process(cfg), times, noise_key, **options)
    model = predictor(state, cfg, label, guidance)
    if sampler == "ddim":
        stochastic = isinstance(eta, jax.core.Tracer) or np.any(eta)
        options |= {"eta": eta, "key": noise_key if stochastic else None}
        return samplers.ddim(model, x, process(cfg), times, **options)
    if sampler == "heun":
        return samplers.heun(
            model, x, process(cfg), samplers.spaced(cfg.num_steps, (steps + 1) // 2), **options
        )
    if sampler != "dpm_solver_pp":
        raise ValueError(f"no sampler {sampler!r}: there are ddim, ddpm, dpm_solver_pp, heun")
    return samplers.dpm_solver_pp(model, x, process(cfg), times, **options)


def predictor(
    state: State,
    cfg: Config,
    label: Array | int | None = None,
    guidance: Array | float | None = None,
    exponent: bool = False,
) -> samplers.Model:
    """The averaged network as `samplers` take it: model(x_t, t) -> `cfg.target`, labelled and guided.

    Unguided without `guidance`; else conditional and unconditional predictions come from one doubled batch.
    With `exponent` it also returns that of a learned variance, the conditional one.

    Raises ValueError for a label or guidance of an unconditional model.
    """
    if not cfg.conditional and (guidance is not None or label is not None):
        raise ValueError("an unconditional model takes no label and cannot be guided: train with conditional")

    def model(x, t):
        labels = networks.labels(label, x.shape[0], cfg)
        if guidance is None:
            prediction, v = _predict(state.ema, x, t, labels, cfg)
        else:
            twice = lambda a: jnp.concatenate([a, a])
            both = jnp.concatenate([labels, jnp.full_like(labels, cfg.num_classes)])
            prediction, v = _predict(state.ema, twice(x), twice(t), both, cfg)
            conditional, unconditional = jnp.split(prediction, 2)
            prediction = (1 - guidance) * unconditional + guidance * conditional
            v = None if v is None else v[: x.shape[0]]
        return (prediction, _exponent(v)) if exponent else prediction

    return model


def elbo(
    key: Array, state: State, x: Array, cfg: Config, label: Array | None = None, num_terms: int | None = None
) -> Array:
    """Lower bound on log p(x), with one draw of x_t for each t, in nats, (B,).

    Of the levels of the pixels, or the density of continuous data. T network calls; with `num_terms` as many,
    for an estimate without bias from times spread evenly, the first always among them. If conditional, on log
    p(x | label), or without a label on the density of the model that ignores it.
    """
    if num_terms is None:
        return -vlb_terms(key, state, x, cfg, label).sum(0)
    if not 2 <= num_terms <= cfg.num_steps:
        raise ValueError(f"num_terms must lie in 2 to {cfg.num_steps}, got {num_terms}")
    gaussian, count = process(cfg), num_terms - 1
    offsets = jax.random.uniform(jax.random.fold_in(key, cfg.num_steps), (count, x.shape[0]))
    width = (cfg.num_steps - 1) / count
    times = 1 + jnp.int32((jnp.arange(count)[:, None] + offsets) * width)
    times = jnp.minimum(times, cfg.num_steps - 1)
    term = lambda t: _drawn_term(key, state, x, t, label, cfg)
    total = jax.lax.map(term, times).sum(0) * width
    return -(bound.prior_term(gaussian, x) + total + term(jnp.zeros(x.shape[0], jnp.int32)))


def vlb_terms(key: Array, state: State, x: Array, cfg: Config, label: Array | None = None) -> Array:
    """The terms of the negative bound, in nats, (T + 1, B): -log p(x_0 | x_1), every KL, and that at T."""
    term = lambda t: _drawn_term(key, state, x, jnp.full(x.shape[0], t), label, cfg)
    terms = jax.lax.map(term, jnp.arange(cfg.num_steps))
    return jnp.concatenate([terms, bound.prior_term(process(cfg), x)[None]])


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
        prediction, _ = _predict(state.ema, x_t, t, networks.labels(None, x.shape[0], cfg), cfg)
        eps = processes.convert(gaussian, prediction, x_t, t, cfg.target, "eps")
        return distributions.sum_per_example((eps - noise) ** 2) / x[0].size

    return -jax.lax.map(error, jnp.asarray(times, jnp.int32)).mean(0)


def _drawn_term(key, state, x, t, label, cfg):
    """A term of the bound at times t (B,), with x_t drawn by a key for each time, (B,)."""
    gaussian = process(cfg)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, t * x.shape[0] + jnp.arange(x.shape[0]))
    noise = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(keys)
    x_t = processes.q_sample(gaussian, x, t, noise)
    prediction, v = _predict(state.ema, x_t, t, networks.labels(label, x.shape[0], cfg), cfg)
    return _term(gaussian, prediction, v, x, x_t, t, cfg)


def _term(gaussian, prediction, v, x0, x_t, t, cfg):
    options = {"target": cfg.target, "variance": cfg.variance, "levels": cfg.levels}
    return bound.term(gaussian, prediction, _exponent(v), x0, x_t, t, **options)


def _exponent(v):
    """Of a learned variance, 0 to 1, from what the network says, -1 to 1."""
    return None if v is None else 0.5 * (v + 1)


def _weights(gaussian, cfg):
    """Weight of the squared error at each time, (T,)."""
    if not cfg.min_snr:
        return jnp.ones(cfg.num_steps)
    snr = np.exp(processes.log_snr(gaussian, np.arange(cfg.num_steps)))
    own = {"eps": snr, "x0": 1.0, "v": snr + 1}[cfg.target]
    return jnp.float32(np.minimum(snr, cfg.min_snr) / own)


def _predict(params, x, t, label, cfg, dropout_key=None):
    """The target (B, *shape), and v of a learned variance or None."""
    rngs = None if dropout_key is None else {"dropout": dropout_key}
    train = dropout_key is not None
    output = jnp.float32(_network(cfg).apply({"params": params}, x, t, label, train, rngs=rngs))
    return jnp.split(output, 2, -1) if cfg.variance == "learned" else (output, None)


def _network(cfg):
    return networks.build(cfg, 2 if cfg.variance == "learned" else 1)


def _spread(row, x):
    row = jnp.asarray(row, jnp.float32)
    return row.reshape(row.shape + (1,) * (x.ndim - row.ndim))


def _check(cfg: Config) -> None:
    networks.check(cfg)
    if cfg.zero_terminal_snr and cfg.target == "eps":
        raise ValueError(
            "eps says nothing of x_0 where no signal is left: with zero_terminal_snr predict v or x0"
        )
    if cfg.objective == "hybrid" and cfg.variance != "learned":
        raise ValueError(
            "the hybrid objective trains a learned variance: set variance to learned, or use simple"
        )
    if cfg.variance == "learned" and cfg.objective == "simple":
        raise ValueError("squared errors teach a learned variance nothing: set objective to hybrid or vlb")
    if cfg.flip and len(cfg.shape) != 3:
        raise ValueError(f"only images can be mirrored, got {cfg.shape}: turn flip off")
