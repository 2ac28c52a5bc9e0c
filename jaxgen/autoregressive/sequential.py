"""What all autoregressive models share: log p(x) = sum_t log p(x_t | x_1 ... x_{t-1}), its step and sampling.

Data x (B, *shape) are T symbols in raster order, channels innermost, (B, T, symbol_size): one number each, or
all channels of a pixel where the likelihood says so. A network reads what the likelihood makes of symbols,
x (B, T, F), and contexts (B, C) that all of them are given, and returns the likelihood's parameters for every
symbol, (B, T, num_outputs), those of symbol t by the symbols before t alone, and None:

    network(x, *context, train=False) -> outputs, None

It can also do one position at a time. It is then given the symbol before, (B, 1, F), which is to be ignored
at place 0, and a cache of what it has made of those before that, which begins as `empty_cache`:

    network(x, *context, cache=cache, place=t) -> outputs (B, 1, num_outputs), cache
    network.empty_cache(count, T, dtype) -> cache of arrays

so that a symbol takes the work of one position. `sample` scans over positions. A network's fields `shape` and
`num_outputs` are filled in where they are None.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxgen import keys, labels, values
from jaxgen.arguments import checked
from jaxgen.fields import NonNegativeInt, PositiveInt
from jaxgen.labels import Label
from jaxgen.likelihoods import Bernoulli, Categorical, Likelihood, LogisticMixture, Symbols
from jaxgen.nn import variables
from jaxgen.types import Batch, Metrics, observed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Common(values.Value):
    """What the Configs of all autoregressive models have, and a `network`."""

    shape: tuple[PositiveInt, ...] = (8, 8, 1)
    """Shape of one example."""
    num_classes: NonNegativeInt = 0
    """Number of labels of the data; 0 if they have none."""
    levels: NonNegativeInt = 256
    """Values that a pixel of the data has, spread evenly over [-1, 1]; 0 for real numbers."""
    likelihood: Bernoulli | Categorical | LogisticMixture | Likelihood = Bernoulli()
    """p(x_t | x_1 ... x_{t-1}), of bits drawn from the grey values, or of the levels of pixels."""
    conditional: bool = False
    """Give the label to the network: p(x | label)."""
    optimizer: values.Optimizer = values.Adam(1e-3, gradient_clip=1.0)
    """The optimizer."""
    average: values.Average = values.Average(0.999)
    """Average of the parameters, by which is sampled and evaluated."""

    @property
    def num_context(self) -> int:
        """Length of the vectors that symbols are given one by one: 0, for none, unless a model has them."""
        return 0


class State(NamedTuple):
    """What training changes."""

    step: Array
    key: Array
    params: Any
    opt_state: Any
    ema: Any  # averaged parameters


class Cache(NamedTuple):
    """What sampling remembers of the symbols before `place`."""

    place: Array
    content: Any
    context: tuple[Array, ...]


@checked
def init(key: Array, cfg: Common, batch: Batch | None = None) -> State:
    """A fresh state; `batch` is not used.

    Raises ValueError for a shape that the network or the likelihood cannot take, and a conditional model of
    data without labels.
    """
    del batch
    labels.check_conditional(cfg)
    likelihood(cfg).check(cfg.shape)
    params_key, step_key = keys.named(key, "params", "steps")
    x = symbols(jnp.zeros((1, *cfg.shape), _dtype(cfg)), cfg)
    every = jnp.zeros((1, x.shape[1], cfg.num_context)) if cfg.num_context else None
    context = _context(0 if cfg.conditional else None, every, 1, cfg)
    params = variables.init(network(cfg), params_key, likelihood(cfg).inputs(x), *context)
    opt_state = values.gradient_transformation(cfg.optimizer).init(params)
    ema = jax.tree.map(jnp.copy, params)
    return State(jnp.zeros((), jnp.int32), step_key, params, opt_state, ema)


@checked
def loss(params: Any, batch: Batch, key: Array, cfg: Common) -> tuple[Array, Metrics]:
    """Mean negative log-likelihood in nats per example.

    `batch["label"]` (B,) is needed if conditional, `batch["context"]` (B, T, C) if `num_context` is C.
    """
    nll, (metrics, _) = _objective(params, batch, key, cfg)
    return nll, metrics


@checked
def train_step(state: State, batch: Batch, cfg: Common) -> tuple[State, Metrics]:
    """One step on the examples of a batch, (B, *shape), with what `loss` needs beside them."""
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
    cfg: Common,
    label: Label = None,
    *,
    context: Array | None = None,
    prefix: Array | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Array:
    """n draws, (n, *shape), of the averaged parameters.

    If conditional, of the `label` given, one for all or (n,), else of labels drawn uniformly.

    Args:
        context: what symbols are given one by one, (n, T, C), or (T, C) for all draws, if `num_context` is C.
        prefix: the beginning of every draw, which stays as it is: (n, p, *shape[1:]), p rows of pixels, or p
            symbols of a sequence; or (p, *shape[1:]), one for all.
        temperature, top_k, top_p: see `Likelihood.sharpened`.

    Raises:
        ValueError: a prefix of another shape or that is longer than the data, a context that is missing, of
            another shape or of a model without one, and what `Likelihood.sharpened` raises.
    """
    noise_key, label_key = keys.named(key, "noise", "label")
    label = labels.drawn(label_key, label, n, labels.count(cfg))
    given = prefix_symbols(prefix, n, cfg)
    cache = begin(state, n, cfg, label, context)
    x = continued(noise_key, state, cache, given, cfg, temperature=temperature, top_k=top_k, top_p=top_p)
    return x.reshape(n, *cfg.shape)


def continued(key: Array, state: State, cache: Cache, given: Array, cfg: Common, **options: Any) -> Array:
    """Symbols drawn one after the other from an empty cache, (n, T, symbol_size).

    They begin with those `given` (n, p, symbol_size). `options` are those of `Likelihood.sharpened`.
    """
    num_symbols, _ = layout(cfg)
    known = jnp.arange(num_symbols) < given.shape[1]
    given = jnp.pad(given, ((0, 0), (0, num_symbols - given.shape[1]), (0, 0))).swapaxes(0, 1)

    def draw(carry, row):
        cache, symbol = carry
        known, given = row
        step_key = jax.random.fold_in(key, cache.place)
        cache, output = advance(state, cache, symbol, cfg)
        output = likelihood(cfg).sharpened(output, **options)
        drawn = likelihood(cfg).sample(step_key, {}, output).astype(given.dtype)
        symbol = jnp.where(known, given, drawn)
        return (cache, symbol), symbol

    start = cache, jnp.zeros(given.shape[1:], given.dtype)
    return jax.lax.scan(draw, start, (known, given))[1].swapaxes(0, 1)


def measure(cfg: Common) -> str:
    """What `log_prob` is of: "bits", "levels" or "symbols"."""
    return cfg.likelihood.measure


@checked
def log_prob(
    state: State,
    x: Array,
    cfg: Common,
    label: Label = None,
    *,
    context: Array | None = None,
    key: Array | None = None,
) -> Array:
    """log p(x) of x (B, *shape) in nats, (B,), of the averaged parameters.

    Bits are drawn from grey values by `key`; without one, grey values are cut at 1/2, and bits are what they
    are. If conditional it is log p(x | label), or without a label log p(x), all labels being equally likely.
    `context` is as in `sample`.
    """
    x = likelihood(cfg).targets(key, x)

    def given(label):
        return conditional_log_prob(state.ema, x, label, cfg, context=context)

    if not cfg.conditional or label is not None:
        return given(label)
    return jax.nn.logsumexp(jax.lax.map(given, jnp.arange(cfg.num_classes)), 0) - math.log(cfg.num_classes)


def begin(state: State, n: int, cfg: Common, label: Label = None, context: Array | None = None) -> Cache:
    """The cache for n sequences of which nothing is known yet.

    `label` is needed if conditional; `context` is as in `sample`.
    """
    contexts = _context(label, context, n, cfg)
    content = network(cfg).empty_cache(n, layout(cfg)[0], jnp.result_type(*jax.tree.leaves(state.ema)))
    return Cache(jnp.zeros((), jnp.int32), content, contexts)


def advance(state: State, cache: Cache, symbol: Array, cfg: Common) -> tuple[Cache, Array]:
    """The cache with one symbol more, and the likelihood's parameters (n, num_outputs) of the next one.

    `symbol` (n, symbol_size) is the last one that is known, as the data have it; at the beginning it is
    ignored.
    """
    x = likelihood(cfg).inputs(symbol[:, None])
    where = {"cache": cache.content, "place": cache.place}
    outputs, content = variables.apply(network(cfg), state.ema, x, *cache.context, **where)
    return Cache(cache.place + 1, content, cache.context), _at_least_float32(outputs[:, 0])


def symbols(x: Array, cfg: Common) -> Array:
    """Data (B, *shape) as symbols, (B, T, symbol_size). Raises ValueError for data of another shape."""
    if x.shape[1:] != tuple(cfg.shape):
        raise ValueError(f"the model is of data {tuple(cfg.shape)}, not {x.shape[1:]}")
    return x.reshape(x.shape[0], *layout(cfg))


def layout(cfg: Common) -> tuple[int, int]:
    """T and symbol_size of the data."""
    num_channels = cfg.shape[-1] if len(cfg.shape) == 3 else 1
    size = cfg.likelihood.symbol_size(num_channels)
    return math.prod(cfg.shape) // size, size


def likelihood(cfg: Common) -> Likelihood:
    """The likelihood, with the facts of the data."""
    return values.filled(cfg.likelihood, shape=cfg.shape, levels=cfg.levels)


def network(cfg: Any) -> nn.Module:
    """The network, with the facts of the data."""
    num_outputs = likelihood(cfg).num_outputs(layout(cfg)[1])
    return values.filled(cfg.network, shape=cfg.shape, num_outputs=num_outputs)


def _objective(params: Any, batch: Batch, key: Array, cfg: Common) -> tuple[Array, tuple[Metrics, Any]]:
    """The loss, its metrics, and the variables of the network afterwards."""
    data_key, dropout_key = keys.named(key, "data", "dropout")
    x = likelihood(cfg).training_targets(data_key, observed(batch))
    label = labels.of_batch(batch, labels.count(cfg))
    context = batch.get("context") if cfg.num_context else None
    log_p, after = training_log_prob(params, x, label, cfg, dropout_key, context=context)
    nll = -log_p.mean()
    return nll, ({"nll": nll}, after)


def conditional_log_prob(
    params: Any,
    x: Array,
    label: Label,
    cfg: Common,
    first: int | None = None,
    *,
    context: Array | None = None,
    **options: Any,
) -> Array:
    """log p(x | label) of what the likelihood is of, x (B, *shape), in nats, (B,).

    Of the `first` symbols, or of all. `options` go to the network.
    """
    x = symbols(x, cfg)
    inputs, contexts = likelihood(cfg).inputs(x), _context(label, context, len(x), cfg)
    outputs, _ = variables.apply(network(cfg), params, inputs, *contexts, **options)
    return likelihood(cfg).log_prob({}, _at_least_float32(outputs)[:, :first], x[:, :first])


def training_log_prob(
    params: Any,
    x: Array,
    label: Label,
    cfg: Common,
    key: Array,
    *,
    context: Array | None = None,
    **options: Any,
) -> tuple[Array, Any]:
    """`conditional_log_prob` in training, and the network's variables afterwards."""
    x = symbols(x, cfg)
    inputs, contexts = likelihood(cfg).inputs(x), _context(label, context, len(x), cfg)
    (outputs, _), after = variables.train(network(cfg), params, key, inputs, *contexts, **options)
    return likelihood(cfg).log_prob({}, _at_least_float32(outputs), x), after


def _context(label: Label, every: Array | None, n: int, cfg: Common) -> tuple[Array, ...]:
    """What the network is given beside the symbols.

    One-hot labels (n, num_classes) if there are labels, and what `every` symbol is given, (n, T, C), if
    `num_context` is C.
    """
    given = labels.given(label, n, labels.count(cfg))
    found = () if given is None else (jax.nn.one_hot(given, cfg.num_classes, dtype=jnp.float32),)
    if not cfg.num_context:
        if every is not None:
            raise ValueError("this model is given no context: its num_context is 0")
        return found
    if every is None:
        raise ValueError("this model is given a context: its num_context is not 0, and there is none")
    one, every = (layout(cfg)[0], cfg.num_context), jnp.asarray(every)
    if every.shape not in (one, (n, *one)):
        raise ValueError(f"the context of {n} examples must be of shape {(n, *one)}, not {every.shape}")
    return *found, jnp.broadcast_to(every, (n, *one))


def prefix_symbols(prefix: Array | None, n: int, cfg: Common) -> Array:
    """The symbols of a prefix, (n, p, symbol_size)."""
    _, size = layout(cfg)
    if prefix is None:
        return jnp.zeros((n, 0, size), _dtype(cfg))
    prefix = jnp.asarray(prefix)
    if prefix.ndim == len(cfg.shape):
        prefix = jnp.broadcast_to(prefix, (n, *prefix.shape))
    wanted = (n, *cfg.shape[1:])
    if prefix.ndim != len(cfg.shape) + 1 or (prefix.shape[0], *prefix.shape[2:]) != wanted:
        raise ValueError(f"a prefix of {n} examples {tuple(cfg.shape)} is not of shape {prefix.shape}")
    if prefix.shape[1] > cfg.shape[0]:
        raise ValueError(f"the prefix has {prefix.shape[1]} entries, the data only {cfg.shape[0]}")
    prefix = likelihood(cfg).targets(None, prefix)
    return prefix.reshape(n, math.prod(prefix.shape[1:]) // size, size)


def _dtype(cfg: Common) -> Any:
    """That of the data."""
    return jnp.int32 if isinstance(cfg.likelihood, Symbols) else jnp.float32


def _at_least_float32(outputs: Array) -> Array:
    return outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))
