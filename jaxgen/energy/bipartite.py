"""Two layers of units joined by weights: what every Boltzmann machine is made of.

Visible units v and binary hidden units h have the energy

    E(v, h) = -a(v) - c'h - s(v)'W h,     p(v, h) = exp(-E(v, h)) / Z,

with a(v) = b'v and s(v) = v for bits, a(v) = -|v - b|^2 / (2 std^2) and s(v) = v / std for Gaussian units.
Given one layer the units of the other are independent, and the hidden layer can be summed over,

    p(h | v) = sigmoid(c + W's(v)),
    p(v) = f(v) / Z,     log f(v) = a(v) + sum_j log(1 + exp(c_j + (W's(v))_j)),

where -log f is the free energy. A label is a group of visible units of which one is on. Layers of deep
machines of which every other one is given are a machine of two layers too.
"""

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen import distributions, keys
from jaxgen.fields import PositiveFloat
from jaxgen.likelihoods import Bernoulli
from jaxgen.values import Value

MOST_ENUMERATED = 20
"""Hidden units over whose states a sum is taken."""


class Params(NamedTuple):
    """Weights W and the biases b and c."""

    weight: Array  # (V, H)
    visible_bias: Array  # (V,)
    hidden_bias: Array  # (H,)


class Base(NamedTuple):
    """Biases of units that are independent of each other: a machine without weights."""

    visible_bias: Array  # (V,)
    hidden_bias: Array  # (H,)


@dataclasses.dataclass(frozen=True)
class Bits(Value):
    """Visible units that are 0 or 1."""

    binarisation: Literal["dynamic", "threshold"] = "dynamic"
    """Draw the bits from the grey values afresh at every presentation, or cut the grey values at 1/2."""

    measure = "bits"

    def check(self, levels: int) -> None:
        """Raises ValueError for data of real numbers."""
        if not levels:
            raise ValueError("bits are drawn from pictures, not from real numbers: use visible=Gaussian(std)")

    def units(self, key: Array | None, x: Array) -> Array:
        """States of the units by data x on [-1, 1], (B, D); without a key grey values are cut at 1/2."""
        return (Bernoulli(self.binarisation).targets(key, x) + 1) / 2

    def inputs(self, x: Array) -> Array:
        """Data on [-1, 1] as what hidden units are given, grey values as they are."""
        return (x + 1) / 2

    def data(self, v: Array) -> Array:
        """States, or their means, as data on [-1, 1]."""
        return 2 * v - 1

    def first_bias(self, v: Array) -> Array:
        """The bias at which units without weights have the mean of v (B, D), kept in [0.01, 0.99]."""
        mean = jnp.clip(v.mean(0), 0.01, 0.99)
        return jnp.log(mean) - jnp.log1p(-mean)

    def own(self, v: Array, bias: Array) -> Array:
        """The terms of a(v), (..., D)."""
        return v * bias

    def scaled(self, v: Array) -> Array:
        """s(v), what the weights see."""
        return v

    def mean(self, bias: Array, drive: Array) -> Array:
        """E[v | h], where `drive` is W h, (..., D)."""
        return jax.nn.sigmoid(bias + drive)

    def sample(self, key: Array, bias: Array, drive: Array) -> Array:
        """A draw of v given h."""
        return distributions.bernoulli(key, self.mean(bias, drive)).astype(drive.dtype)

    def log_sum(self, bias: Array, drive: Array) -> Array:
        """log sum_v exp(a(v) + s(v)'drive) for every unit, (..., D)."""
        return jax.nn.softplus(bias + drive)


@dataclasses.dataclass(frozen=True)
class Gaussian(Value):
    """Visible units that are real numbers with noise of a given standard deviation."""

    std: PositiveFloat = 1.0
    """Standard deviation of p(v | h), in the units of the data."""

    measure = "density"

    def check(self, levels: int) -> None:
        """All data are real numbers."""

    def units(self, key: Array | None, x: Array) -> Array:
        """The data themselves."""
        del key
        return x

    def inputs(self, x: Array) -> Array:
        """The data themselves."""
        return x

    def data(self, v: Array) -> Array:
        """The states themselves."""
        return v

    def first_bias(self, v: Array) -> Array:
        """The mean of v (B, D)."""
        return v.mean(0)

    def own(self, v: Array, bias: Array) -> Array:
        """The terms of a(v), (..., D)."""
        return -0.5 * ((v - bias) / self.std) ** 2

    def scaled(self, v: Array) -> Array:
        """s(v), what the weights see."""
        return v / self.std

    def mean(self, bias: Array, drive: Array) -> Array:
        """E[v | h], where `drive` is W h, (..., D)."""
        return bias + self.std * drive

    def sample(self, key: Array, bias: Array, drive: Array) -> Array:
        """A draw of v given h."""
        return self.mean(bias, drive) + self.std * jax.random.normal(key, drive.shape, drive.dtype)

    def log_sum(self, bias: Array, drive: Array) -> Array:
        """log of the integral of exp(a(v) + s(v)'drive) over v for every unit, (..., D)."""
        return 0.5 * math.log(2 * math.pi) + math.log(self.std) + drive * (bias / self.std + 0.5 * drive)


@dataclasses.dataclass(frozen=True)
class Machine:
    """What the numbers of `Params` mean. States v (..., V) end with one-hot labels, if there are labels."""

    visible: Bits | Gaussian = Bits()
    """The visible units that are no labels."""
    num_labels: int = 0
    """How many of the visible units, the last ones, are a label: one of them is on."""
    copies: tuple[int, int] = (1, 1)
    """Copies of the visible and of the hidden layer that share the weights, as one layer of a deep machine is
    trained: what is added to a layer comes from all copies of the other one."""

    def hidden_field(self, params: Params, v: Array) -> Array:
        """What is added up for each hidden unit, c + W's(v), (..., H)."""
        return params.hidden_bias + self.copies[0] * self._scaled(v) @ params.weight

    def hidden_mean(self, params: Params, v: Array) -> Array:
        """p(h = 1 | v), (..., H)."""
        return jax.nn.sigmoid(self.hidden_field(params, v))

    def sample_hidden(self, key: Array, params: Params, v: Array) -> Array:
        """A draw of h given v, (..., H)."""
        return distributions.bernoulli(key, self.hidden_mean(params, v)).astype(v.dtype)

    def visible_mean(self, params: Params, h: Array) -> Array:
        """E[v | h], (..., V)."""
        (bias, label_bias), (drive, label_drive) = self._drives(params, h)
        label = jax.nn.softmax(label_bias + label_drive) if self.num_labels else label_drive
        return jnp.concatenate([self.visible.mean(bias, drive), label], -1)

    def sample_visible(self, key: Array, params: Params, h: Array) -> Array:
        """A draw of v given h, (..., V)."""
        (bias, label_bias), (drive, label_drive) = self._drives(params, h)
        v = self.visible.sample(keys.named(key, "visible"), bias, drive)
        if not self.num_labels:
            return v
        chosen = jax.random.categorical(keys.named(key, "visible label"), label_bias + label_drive)
        return jnp.concatenate([v, jax.nn.one_hot(chosen, self.num_labels, dtype=v.dtype)], -1)

    def own(self, v: Array, bias: Array) -> Array:
        """The terms of a(v), (..., V)."""
        (units, label), (bias, label_bias) = self._split(v), self._split(bias)
        return jnp.concatenate([self.visible.own(units, bias), label * label_bias], -1)

    def log_unnormalized(self, params: Params, v: Array) -> Array:
        """log f(v), minus the free energy, of states v (..., V): (...,) nats."""
        hidden = jax.nn.softplus(self.hidden_field(params, v)).sum(-1)
        return self.copies[0] * self.own(v, params.visible_bias).sum(-1) + self.copies[1] * hidden

    def log_unnormalized_hidden(self, params: Params, h: Array) -> Array:
        """The same of hidden states h (..., H), the visible layer being summed over."""
        (bias, label_bias), (drive, label_drive) = self._drives(params, h)
        log_sum = self.visible.log_sum(bias, drive).sum(-1) + h @ params.hidden_bias
        return log_sum + (jax.nn.logsumexp(label_bias + label_drive, -1) if self.num_labels else 0.0)

    def log_partition(self, params: Params) -> Array:
        """log Z in nats, by the sum over all hidden states.

        Raises ValueError for more than `MOST_ENUMERATED` hidden units, which `ais.log_partition` is for,
        and for copies of a layer.
        """
        self.check_whole()
        num_hidden = params.hidden_bias.shape[0]
        if num_hidden > MOST_ENUMERATED:
            raise ValueError(
                f"a sum over 2^{num_hidden} states takes too long: estimate log Z by ais.log_partition"
            )
        inner = min(num_hidden, 10)
        states = jnp.asarray(all_states(inner), params.weight.dtype)
        blocks = jnp.asarray(all_states(num_hidden - inner), params.weight.dtype)

        def block(rest):
            h = jnp.concatenate([jnp.broadcast_to(rest, (len(states), len(rest))), states], -1)
            return jax.nn.logsumexp(self.log_unnormalized_hidden(params, h))

        return jax.nn.logsumexp(jax.lax.map(block, blocks))

    def check_whole(self) -> None:
        """Raises ValueError for copies of a layer, whose probabilities are of all copies together."""
        if self.copies != (1, 1):
            raise ValueError(f"copies={self.copies} are for training one layer: a likelihood takes (1, 1)")

    def base(self, params: Params, v: Array) -> Base:
        """Independent units that have the means of states v (N, V) and of the hidden units given them.

        Means of bits are kept in [0.01, 0.99].
        """
        units, label = self._split(v)
        visible_bias = jnp.concatenate([self.visible.first_bias(units), Bits().first_bias(label)])
        return Base(visible_bias, Bits().first_bias(self.hidden_mean(params, v)))

    def between(self, params: Params, base: Base, beta: Array | float) -> Params:
        """The machine a share beta of the way from independent units."""
        mixed = lambda first, last: (1 - beta) * first + beta * last
        return Params(
            beta * params.weight,
            mixed(base.visible_bias, params.visible_bias),
            mixed(base.hidden_bias, params.hidden_bias),
        )

    def gibbs(
        self, key: Array, params: Params, v: Array, num_steps: int, clamped: Array | None = None
    ) -> Array:
        """States v (n, V) after so many draws of h given v and of v given h; `clamped` (n, num_labels) stay.

        Raises ValueError for a negative number of steps.
        """
        if num_steps < 0:
            raise ValueError(f"num_steps must not be negative, got {num_steps}")

        def step(index, v):
            hidden_key, visible_key = keys.named(jax.random.fold_in(key, index), "hidden", "visible units")
            h = self.sample_hidden(hidden_key, params, v)
            return self.clamp(self.sample_visible(visible_key, params, h), clamped)

        return jax.lax.fori_loop(0, num_steps, step, self.clamp(v, clamped))

    def joined(self, v: Array, label: Array | None) -> Array:
        """States of the units that are no labels, (B, D), with labels (B,), if there are any."""
        if label is None:
            return v
        return jnp.concatenate([v, jax.nn.one_hot(label, self.num_labels, dtype=v.dtype)], -1)

    def with_every_label(self, v: Array) -> Array:
        """States of the units that are no labels, (B, D), with each of the labels, (B, num_labels, V)."""
        hot = jnp.tile(jnp.eye(self.num_labels, dtype=v.dtype), (len(v), 1, 1))
        return jnp.concatenate([jnp.repeat(v[:, None], self.num_labels, 1), hot], -1)

    def clamp(self, v: Array, label: Array | None) -> Array:
        """v with its label replaced by a one-hot `label`, if there is one."""
        return v if label is None else jnp.concatenate([self._split(v)[0], label], -1)

    def _scaled(self, v: Array) -> Array:
        units, label = self._split(v)
        return (
            jnp.concatenate([self.visible.scaled(units), label], -1)
            if self.num_labels
            else self.visible.scaled(v)
        )

    def _drives(self, params: Params, h: Array) -> Any:
        """Biases of the units and of the label, and what comes from h."""
        return self._split(params.visible_bias), self._split(self.copies[1] * h @ params.weight.T)

    def _split(self, v: Array) -> tuple[Array, Array]:
        at = v.shape[-1] - self.num_labels
        return v[..., :at], v[..., at:]


def flat(x: Array) -> Array:
    """Data (B, *shape) as states of a layer, (B, D)."""
    x = jnp.asarray(x)
    return x.reshape(len(x), math.prod(x.shape[1:]))


def all_states(num_units: int) -> np.ndarray:
    """All states of binary units, (2^n, n)."""
    return (np.arange(2**num_units)[:, None] >> np.arange(num_units)) & 1
