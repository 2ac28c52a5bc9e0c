"""Planar and radial flows (Rezende & Mohamed 2015).

Each layer bends space along one direction, or around one point,

    planar:  f(x) = x + u tanh(w' x + b),            |det| = 1 + w'u sech^2(w' x + b),
    radial:  f(x) = x + beta (x - c) / (alpha + r),  |det| = (1 + beta h)^(D - 1) (1 + beta h - beta h^2 r),

r = |x - c| and h = 1 / (alpha + r). They are invertible where w'u > -1 and beta > -alpha, which the
parameters are made to satisfy (appendix A of the paper). f goes from data to noise with `direct="density"`,
so that maximum likelihood is cheap, and with "sampling" from noise to data, as in the paper and for
`reverse_kl`. Its inverse is the root of an equation, quadratic for a radial layer; for a planar layer it is
found by bisection and differentiated implicitly.

Departs from the paper: w'u > -1 + 0.001 and beta > -alpha + 0.001, so that no layer comes to be singular in
float32; the centre, the alpha and the direction of each layer are free, and nothing is amortised.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxgen import keys, values
from jaxgen.arguments import checked
from jaxgen.fields import PositiveInt
from jaxgen.flow import bijectors, density
from jaxgen.flow.preprocessing import Logit, Preprocessing, Standardize
from jaxgen.types import Batch, Metrics

MARGIN = 1e-3
"""How far a layer stays from being singular."""


class Layer(values.Value):
    """A kind of layers that bend vectors."""

    def bijector(self, num_dims: int) -> bijectors.Bijector:
        """The layer for vectors of so many numbers; its `forward` is in closed form."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Planar(Layer):
    """Layers that bend space along a direction."""

    def bijector(self, num_dims: int) -> bijectors.Bijector:
        """f(x) = x + u tanh(w' x + b)."""
        return planar(num_dims)


@dataclasses.dataclass(frozen=True)
class Radial(Layer):
    """Layers that bend space around a point."""

    def bijector(self, num_dims: int) -> bijectors.Bijector:
        """f(x) = x + beta (x - c) / (alpha + r)."""
        return radial(num_dims)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(density.Config):
    """Hyperparameters of planar and radial flows."""

    num_layers: PositiveInt = 32
    """Layers."""
    layer: Planar | Radial | Layer = Planar()
    """What they are."""
    direct: Literal["density", "sampling"] = "density"
    """What takes the closed form of the layers, the density of data or sampling."""
    preprocessing: Standardize | Logit | Preprocessing = Standardize()
    """What the data go through before the layers."""


class State(NamedTuple):
    """What training changes."""

    step: Array
    key: Array
    params: Any
    opt_state: Any


def planar(num_dims: int) -> bijectors.Bijector:
    """f(x) = x + u tanh(w' x + b), forward, of vectors (B, D)."""

    def init(key, x=None, context=None):
        del x, context
        u_key, w_key = jax.random.split(key)
        w = jax.random.normal(w_key, (num_dims,)) / jnp.sqrt(num_dims)
        return {"u": 0.1 * jax.random.normal(u_key, (num_dims,)), "w": w, "b": jnp.zeros(())}

    def read(params):
        """u, such that w'u > -1, and w'u."""
        u, w = params["u"], params["w"]
        inner = along(u, w)
        u = u + (jax.nn.softplus(inner) - 1 + MARGIN - inner) * w / (along(w, w) + 1e-12)
        return u, along(u, w)

    def forward(params, x, context=None):
        del context
        u, inner = read(params)
        bent = jnp.tanh(along(x, params["w"]) + params["b"])
        return x + bent[:, None] * u, jnp.log1p(inner * (1 - bent**2))

    def inverse(params, y, context=None):
        del context
        u, inner = read(params)
        # s = w'x solves s + w'u tanh(s + b) = w'y, whose left side rises.
        total, b = along(y, params["w"]), params["b"]
        gap = lambda s: s + inner * jnp.tanh(s + b) - total
        s = root(gap, total - abs(inner), total + abs(inner))
        bent = jnp.tanh(s + b)
        return y - bent[:, None] * u, -jnp.log1p(inner * (1 - bent**2))

    return bijectors.Bijector(init, forward, inverse)


def radial(num_dims: int) -> bijectors.Bijector:
    """f(x) = x + beta (x - c) / (alpha + |x - c|), forward, of vectors (B, D)."""

    def init(key, x=None, context=None):
        del x, context
        return {"center": jax.random.normal(key, (num_dims,)), "alpha": jnp.zeros(()), "beta": jnp.zeros(())}

    def read(params):
        """alpha > 0, and alpha + beta > 0."""
        alpha = jax.nn.softplus(params["alpha"]) + MARGIN
        return alpha, jax.nn.softplus(params["beta"]) + MARGIN

    def log_det(alpha, beta, r):
        h = 1 / (alpha + r)
        return (num_dims - 1) * jnp.log1p(beta * h) + jnp.log1p(beta * alpha * h**2)

    def forward(params, x, context=None):
        del context
        alpha, total = read(params)
        away = x - params["center"]
        r = length(away)
        beta = total - alpha
        return x + (beta / (alpha + r))[:, None] * away, log_det(alpha, beta, r)

    def inverse(params, y, context=None):
        del context
        alpha, total = read(params)
        away = y - params["center"]
        moved = length(away)
        # r (1 + beta / (alpha + r)) = |y - c|; the positive root, in the form that does not cancel.
        p = total - moved
        square_root = jnp.sqrt(p**2 + 4 * alpha * moved)
        r = jnp.where(p > 0, 2 * alpha * moved / (jnp.maximum(p, 0) + square_root), (square_root - p) / 2)
        beta = total - alpha
        factor = (alpha + r) / (total + r)  # r / |y - c|
        return params["center"] + factor[:, None] * away, -log_det(alpha, beta, r)

    return bijectors.Bijector(init, forward, inverse)


def along(x: Array, w: Array) -> Array:
    """w'x of vectors (..., D), in full precision on every platform: both directions must agree on it."""
    return jnp.matmul(x, w, precision="highest")


def length(x: Array) -> Array:
    """|x| of vectors (B, D), with the derivative 0 at 0."""
    squares = (x**2).sum(-1)
    return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)


def root(function: Callable[[Array], Array], low: Array, high: Array) -> Array:
    """Where a function that rises, and acts on each number by itself, is zero between low and high (B,).

    By bisection to the last bit; its derivative is that of the implicit function, in both modes.
    """
    num_steps = jnp.finfo(low.dtype).nmant + 8

    def solve(function, start):
        del start

        def halve(_, ends):
            low, high = ends
            middle = 0.5 * (low + high)
            above = function(middle) > 0
            return jnp.where(above, low, middle), jnp.where(above, middle, high)

        low_end, high_end = jax.lax.fori_loop(0, num_steps, halve, jax.lax.stop_gradient((low, high)))
        return 0.5 * (low_end + high_end)

    tangent = lambda linear, y: y / linear(jnp.ones_like(y))
    return jax.lax.custom_root(function, jax.lax.stop_gradient(low), solve, tangent)


def flow(cfg: Config) -> bijectors.Bijector:
    """The bijector: preprocessing, layers, and a scale and shift of each dimension.

    Raises ValueError for fewer than one layer.
    """
    layer = cfg.layer.bijector(cfg.num_dims)
    layers = bijectors.scanned(lambda _: layer, cfg.num_layers)
    return bijectors.chain(
        cfg.preprocessing.bijector(cfg.num_dims, cfg.levels),
        bijectors.inverted(layers) if cfg.direct == "sampling" else layers,
        bijectors.diagonal(cfg.num_dims),
    )


@checked
def init(key: Array, cfg: Config, batch: Batch | None = None) -> State:
    """A fresh state; `batch`, if given, sets the scales and shifts.

    Raises ValueError for fewer than one layer, and for preprocessing that the data cannot have.
    """
    params_key, data_key, step_key = keys.named(key, "params", "data", "steps")
    x = None if batch is None else density.training_data(data_key, batch, cfg)
    params = flow(cfg).init(params_key, x)
    opt_state = values.gradient_transformation(cfg.optimizer).init(params)
    return State(jnp.zeros((), jnp.int32), step_key, params, opt_state)


@checked
def loss(params: Any, batch: Batch, key: Array, cfg: Config) -> tuple[Array, Metrics]:
    """Mean negative log-likelihood in nats per example, of dequantised data."""
    nll = -density.log_prob(flow(cfg), params, density.training_data(key, batch, cfg)).mean()
    return nll, {"nll": nll}


@checked
def train_step(state: State, batch: Batch, cfg: Config) -> tuple[State, Metrics]:
    """One step on `batch["image"]` or `batch["x"]`, (B, *shape)."""
    key = jax.random.fold_in(state.key, state.step)
    grads, metrics = jax.grad(loss, has_aux=True)(state.params, batch, key, cfg)
    optimizer = values.gradient_transformation(cfg.optimizer)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return state._replace(step=state.step + 1, params=params, opt_state=opt_state), metrics


@checked
def sample(key: Array, state: State, n: int, cfg: Config, *, temperature: float = 1.0) -> Array:
    """n draws, (n, *shape), of noise with `temperature` as its standard deviation."""
    return decode(state, temperature * jax.random.normal(key, (n, cfg.num_dims)), cfg)


def measure(cfg: Config) -> str:
    """What `log_prob` is of: a density, of dequantised pixels if the data have levels."""
    del cfg
    return "density"


@checked
def log_prob(state: State, x: Array, cfg: Config) -> Array:
    """log p(x) of real numbers x (B, *shape) in nats, (B,)."""
    return density.log_prob(flow(cfg), state.params, x)


@checked
def encode(state: State, x: Array, cfg: Config) -> Array:
    """The noise that becomes x, (B, D)."""
    return flow(cfg).forward(state.params, x.reshape(x.shape[0], cfg.num_dims))[0]


@checked
def decode(state: State, z: Array, cfg: Config) -> Array:
    """The data that noise z (B, D) becomes, (B, *shape)."""
    return flow(cfg).inverse(state.params, z)[0].reshape(z.shape[0], *cfg.shape)


def reverse_kl(
    params: Any,
    key: Array,
    target_log_prob: Callable[[Array], Array],
    n: int,
    cfg: Config,
    *,
    path: bool = False,
) -> Array:
    """KL(p || target) up to a constant, see `density.reverse_kl`."""
    return density.reverse_kl(flow(cfg), params, key, target_log_prob, n, cfg, path=path)
