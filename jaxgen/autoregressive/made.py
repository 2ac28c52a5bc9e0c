"""MADE: masked autoencoder for distribution estimation (Germain et al. 2015).

An autoencoder some of whose weights are masked gives all conditionals in one pass,

    p(x) = prod_i p(x_i | x_j before x_i),     mask = degree of the unit before <= degree of the unit after,

where inputs have their places in an order as degrees, hidden units degrees between, and what is said of x_i
the degree below its own. Training goes over a pool of M masks, of several orders of the inputs or several
degrees of the hidden units, one for each step; the model is their mixture, p(x) = (1/M) sum_m p_m(x), which
is exact. Sampling takes the work of one pass for a symbol, or less: the sums of the hidden layers are kept,
and only units of the degree that has become known add to them.

Departs from the paper: the degrees of the hidden units are spread evenly and shuffled, not drawn, so that
every conditional sees all symbols before it; there are no direct connections from input to output; masks of
a batch are drawn from the pool, not taken in turn; the optimizer is Adam; p(x) averages probabilities, which
is a distribution, and not the logits.
"""

import dataclasses
import itertools
import math
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxgen import keys, labels, values
from jaxgen.arguments import checked
from jaxgen.autoregressive import sequential
from jaxgen.autoregressive.sequential import Cache, State, advance, init, measure
from jaxgen.fields import PositiveInt
from jaxgen.labels import Label
from jaxgen.nn import variables
from jaxgen.nn.masked import MaskedDense, hidden_degrees
from jaxgen.nn.mlp import Activation
from jaxgen.types import Batch, Metrics, observed

__all__ = [
    "MADE",
    "Config",
    "State",
    "advance",
    "begin",
    "init",
    "log_prob",
    "loss",
    "measure",
    "sample",
    "train_step",
]


class Sums(NamedTuple):
    """What sampling keeps: the masks, and the sums of the hidden units over what is known."""

    member: Array  # (n,), or (1,) where there is one mask for all
    order: Array  # (n or 1, T), the symbol at each place
    hidden: tuple[Array, ...]  # (n, width) each


class MADE(nn.Module):
    """Masked layers, of the masks of one member of the pool.

    Symbols x (B, T, F) and contexts (B, C), which have degree 0, to (B, T, num_outputs). With a cache each
    example has a mask of its own, and its symbols come in the order of that. Raises ValueError without a
    hidden layer.
    """

    widths: tuple[PositiveInt, ...] = (500, 500)
    """Widths of the hidden layers; with fewer units than symbols some do not see all those before them."""
    activation: Activation = "relu"
    """Nonlinearity of the hidden layers."""
    num_masks: PositiveInt = 1
    """Masks in the pool."""
    orders: Literal["natural", "random"] = "natural"
    """All masks are of the order that symbols have in the data, or each is of a random order of its own."""
    num_outputs: PositiveInt | None = None
    """Numbers that it gives for a symbol; filled in by the model."""

    @nn.compact
    def __call__(
        self,
        x: Array,
        *context: Array,
        train: bool = False,
        cache: Sums | None = None,
        place: Array | int = 0,
        member: Array | int = 0,
    ) -> tuple[Array, Sums | None]:
        del train
        self._check()
        size, num_outputs = x.shape[-1], self.num_outputs or 1
        num_symbols = x.shape[1] if cache is None else cache.order.shape[1]
        context = tuple(given.astype(x.dtype) for given in context)
        num_context = sum(given.shape[-1] for given in context)
        widths = (num_context + num_symbols * size, *self.widths, num_symbols * num_outputs)
        layers = [MaskedDense(*pair, name=f"layer_{i}") for i, pair in enumerate(itertools.pairwise(widths))]
        activation = getattr(nn, self.activation)
        _, degrees, hidden = self._pool(num_symbols, num_context > 0)
        chosen = lambda a: a[0] if self.num_masks == 1 else jnp.asarray(a)[member]
        if cache is None:
            h = jnp.concatenate([*context, x.reshape(len(x), num_symbols * size)], -1)
            below = jnp.concatenate([jnp.zeros(num_context, int), chosen(degrees).repeat(size)])
            for layer, own in zip(layers, (*map(chosen, hidden),), strict=False):
                h = activation(layer(h, below, own))
                below = own
            h = layers[-1](h, below, (chosen(degrees) - 1).repeat(num_outputs))
            return h.reshape(len(x), num_symbols, num_outputs), None
        return self._next(layers, x, context, cache, place, hidden)

    def _next(self, layers, x, context, cache, place, hidden):
        """The outputs at `place` in the order of each example, whose symbol before is x.

        A hidden unit is final at the place of its degree, adds to units of the same or higher degree there
        and never again. So the masks are of units, and the weights are the same for all examples.
        """
        first, *others, last = layers
        num_symbols, activation = cache.order.shape[1], getattr(nn, self.activation)
        before, here = (cache.order[:, jnp.maximum(place - back, 0)] for back in (1, 0))
        split = first.num_inputs - num_symbols * x.shape[-1]
        rows = first.kernel[split:].reshape(num_symbols, x.shape[-1], -1)[before]  # (n or 1, F, width)
        new = ((x * (place > 0)) @ rows)[:, 0]
        total = first.bias + (jnp.concatenate(context, -1) @ first.kernel[:split] if context else 0)
        sums = []
        for kept, degrees, layer in zip(cache.hidden, hidden, (*others, None), strict=True):
            degrees = jnp.asarray(degrees)[cache.member]
            sums.append(kept + jnp.where(degrees >= place, new, 0))
            h = activation(sums[-1] + total)
            if layer is not None:
                new, total = jnp.where(degrees == place, h, 0) @ layer.kernel, layer.bias
        columns = last.kernel.reshape(last.num_inputs, num_symbols, -1)[:, here]  # (width, n or 1, outputs)
        h = jnp.where(degrees <= place, h, 0)[:, None] @ columns.swapaxes(0, 1)
        return h + last.bias.reshape(num_symbols, -1)[here][:, None], cache._replace(hidden=tuple(sums))

    def empty_cache(self, count: int, length: int, dtype: Any, member: Array | None = None) -> Sums:
        """Nothing known yet of `count` examples of `length` symbols, each with the mask of its `member`."""
        self._check()
        member = jnp.zeros(1, jnp.int32) if member is None or self.num_masks == 1 else member
        hidden = tuple(jnp.zeros((count, width), dtype) for width in self.widths)
        return Sums(member, jnp.asarray(self._pool(length, True)[0])[member], hidden)

    def _pool(self, num_symbols, from_zero):
        """Of every mask the order (M, T), degrees of the inputs (M, T), and of hidden layers, (M, width)."""
        count = self.num_masks
        order = np.tile(np.arange(num_symbols, dtype=np.int32), (count, 1))
        hidden = [np.tile(hidden_degrees(width, num_symbols, from_zero), (count, 1)) for width in self.widths]
        rng = np.random.default_rng(0)
        if self.orders == "random":
            order = rng.permuted(order, axis=1)
        if count > 1:
            hidden = [rng.permuted(degrees, axis=1) for degrees in hidden]
        return order, order.argsort(1) + 1, hidden

    def _check(self):
        if not self.widths:
            raise ValueError("MADE needs a hidden layer: give one width or more")


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(sequential.Common):
    """Hyperparameters of MADE."""

    network: MADE | nn.Module = MADE()
    """Symbols to the likelihood's parameters."""


@checked
def loss(params: Any, batch: Batch, key: Array, cfg: Config) -> tuple[Array, Metrics]:
    """Mean negative log-likelihood in nats per example, of one mask drawn from the pool.

    `batch["label"]` (B,) is needed if conditional.
    """
    nll, (metrics, _) = _objective(params, batch, key, cfg)
    return nll, metrics


@checked
def train_step(state: State, batch: Batch, cfg: Config) -> tuple[State, Metrics]:
    """One step on the examples of a batch, (B, *shape), and `batch["label"]` (B,) if conditional."""
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
    prefix: Array | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Array:
    """n draws, (n, *shape), of the averaged parameters, each by a mask drawn from the pool for it.

    With a prefix masks are as likely as they find it. Arguments, and what is raised, are those of
    `sequential.sample`; ValueError also for a prefix in random orders.
    """
    noise_key, label_key, mask_key = keys.named(key, "noise", "label", "mask")
    label = labels.drawn(label_key, label, n, labels.count(cfg))
    if prefix is not None and not _natural(cfg):
        raise ValueError('only symbols in natural order begin with a prefix: train with orders="natural"')
    given = sequential.prefix_symbols(prefix, n, cfg)
    cache = sequential.begin(state, n, cfg, label)
    if num_masks(cfg) > 1:
        (num_symbols, _), known = sequential.layout(cfg), given.shape[1]
        weights = jnp.zeros((num_masks(cfg), n))
        if known:
            padded = jnp.pad(given, ((0, 0), (0, num_symbols - known), (0, 0))).reshape(n, *cfg.shape)
            weights = _by_mask(state, padded, label, cfg, known)
        member = jax.random.categorical(mask_key, weights, 0)
        network = sequential.network(cfg)
        cache = cache._replace(
            content=network.empty_cache(n, num_symbols, cache.content.hidden[0].dtype, member)
        )
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    x = sequential.continued(noise_key, state, cache, given, cfg, **options)
    if not _natural(cfg):
        x = jnp.take_along_axis(x, cache.content.order.argsort(1)[..., None], 1)
    return x.reshape(n, *cfg.shape)


@checked
def log_prob(state: State, x: Array, cfg: Config, label: Label = None, *, key: Array | None = None) -> Array:
    """log p(x) of x (B, *shape) in nats, (B,), of the averaged parameters and the mixture of all masks.

    Bits and labels are as in `sequential.log_prob`.
    """
    x = sequential.likelihood(cfg).targets(key, x)
    given = lambda label: _by_mask(state, x, label, cfg)
    if not cfg.conditional or label is not None:
        parts = given(label)
    else:
        parts = jax.lax.map(given, jnp.arange(cfg.num_classes)).reshape(-1, len(x))
    return jax.nn.logsumexp(parts, 0) - math.log(len(parts))


def begin(state: State, n: int, cfg: Config, label: Label = None) -> Cache:
    """The cache for n sequences of which nothing is known yet. `label` is needed if conditional.

    Raises ValueError for several masks or a random order: `advance` is one distribution, of the next symbol.
    """
    labels.check(label, labels.count(cfg))
    if num_masks(cfg) > 1 or not _natural(cfg):
        raise ValueError(
            'only one mask in natural order goes symbol by symbol: num_masks=1, orders="natural"'
        )
    return sequential.begin(state, n, cfg, label)


def num_masks(cfg: Config) -> int:
    """Masks in the pool; a network that knows none has one."""
    return getattr(cfg.network, "num_masks", 1)


def _objective(params: Any, batch: Batch, key: Array, cfg: Config) -> tuple[Array, tuple[Metrics, Any]]:
    """The loss, its metrics, and the variables of the network afterwards."""
    data_key, mask_key, dropout_key = keys.named(key, "data", "mask", "dropout")
    x = sequential.likelihood(cfg).training_targets(data_key, observed(batch))
    label = labels.of_batch(batch, labels.count(cfg))
    count = num_masks(cfg)
    mask: dict[str, Any] = {"member": jax.random.randint(mask_key, (), 0, count)} if count > 1 else {}
    log_p, after = sequential.training_log_prob(params, x, label, cfg, dropout_key, **mask)
    nll = -log_p.mean()
    return nll, ({"nll": nll}, after)


def _natural(cfg):
    return getattr(cfg.network, "orders", "natural") == "natural"


def _by_mask(state, x, label, cfg, first=None):
    """log p(x | label) of the `first` symbols of x, or all of them, by every mask, (M, B)."""
    given = lambda **mask: sequential.conditional_log_prob(state.ema, x, label, cfg, first=first, **mask)
    if num_masks(cfg) == 1:
        return given()[None]
    return jax.lax.map(lambda member: given(member=member), jnp.arange(num_masks(cfg)))
