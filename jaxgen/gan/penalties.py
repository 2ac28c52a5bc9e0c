"""Penalties on a discriminator's gradient, weight clipping, and orthogonal regularisation.

A critic maps data (B, ...) to logits (B,), each row on its own: the penalties sum the logits and take the
gradient in the data, which is every row's own gradient only if rows do not mix. Batch normalisation in the
discriminator breaks that. All of them are scalars in float32 or better; their weight is the caller's.

A Config holds one of the classes at the end, each a penalty with its weight; new ones derive from `Penalty`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen.fields import NonNegativeFloat, PositiveInt
from jaxgen.values import Value

Critic = Callable[[Array], Array]


def gradient_penalty(
    critic: Critic, real: Array, fake: Array, key: Array, target: float = 1.0, one_sided: bool = False
) -> Array:
    """E (|grad critic| - target)^2 at points drawn evenly between pairs of `real` and `fake`, both (B, ...).

    With `one_sided` only norms above the target count. Gulrajani et al. 2017, with weight 10.
    """
    share = jax.random.uniform(key, (len(real), *(1,) * (real.ndim - 1)))
    return _off_target(critic, share * real + (1 - share) * fake, target, one_sided)


def dragan(critic: Critic, real: Array, key: Array, target: float = 1.0, one_sided: bool = False) -> Array:
    """E (|grad critic| - target)^2 around the data: at real + std(real) u / 2, u even in [0, 1].

    The standard deviation is one number for the whole batch. Kodali et al. 2017, with weight 10.
    """
    noise = 0.5 * real.std() * jax.random.uniform(key, real.shape)
    return _off_target(critic, real + noise, target, one_sided)


def r1(critic: Critic, real: Array) -> Array:
    """1/2 E |grad critic|^2 at the data (Mescheder et al. 2018)."""
    return 0.5 * _squared_gradients(critic, real).mean()


def r2(critic: Critic, fake: Array) -> Array:
    """1/2 E |grad critic|^2 at the samples (Mescheder et al. 2018)."""
    return 0.5 * _squared_gradients(critic, fake).mean()


def clip_weights(params: Any, limit: float) -> Any:
    """Every parameter cut to [-limit, limit] (Arjovsky et al. 2017)."""
    return jax.tree.map(lambda x: jnp.clip(x, -limit, limit), params)


def orthogonal(params: Any, diagonal: bool = False) -> Array:
    """Sum over the kernels W (inputs, C_out) of |W'W|^2 off the diagonal, so that columns become orthogonal.

    With `diagonal` it is |W'W - I|^2, which also asks for columns of norm 1. Brock et al. 2019, with weight
    1e-4; axes but the last are flattened, and parameters of one axis do not count.
    """

    def distance(kernel):
        matrix = kernel.reshape(-1, kernel.shape[-1])
        product, identity = matrix.T @ matrix, jnp.eye(matrix.shape[1])
        return ((product - identity if diagonal else product * (1 - identity)) ** 2).sum()

    return jnp.asarray(sum(distance(leaf) for leaf in jax.tree.leaves(params) if leaf.ndim > 1))


def _squared_gradients(critic, x):
    """|grad critic|^2 of each row, (B,)."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    gradients = jax.grad(lambda x: critic(x).sum())(x)
    return (gradients.reshape(len(x), -1) ** 2).sum(-1)


def _off_target(critic, x, target, one_sided):
    norms = jnp.sqrt(_squared_gradients(critic, x) + 1e-12)  # a plain norm has a NaN slope at 0
    excess = norms - target
    return ((jax.nn.relu(excess) if one_sided else excess) ** 2).mean()


@dataclasses.dataclass(frozen=True)
class Penalty(Value):
    """What all penalties have. Called with a critic, real and generated data and a key, one is a scalar."""

    every: PositiveInt = dataclasses.field(default=1, kw_only=True)
    """Apply the penalty at every k-th step of the discriminator, with k times the weight."""

    @property
    def factor(self) -> float:
        """What the scalar is multiplied by in the discriminator's loss."""
        raise NotImplementedError

    def __call__(self, critic: Critic, real: Array, fake: Array, key: Array) -> Array:
        """The penalty without its factor."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class GradientPenalty(Penalty):
    """`gradient_penalty`, between real and generated data (Gulrajani et al. 2017)."""

    weight: NonNegativeFloat = 10.0
    """Weight of the penalty, lambda."""
    target: NonNegativeFloat = 1.0
    """Norm that the gradient is drawn to."""
    one_sided: bool = False
    """Penalise only norms above the target."""

    @property
    def factor(self) -> float:
        return self.weight

    def __call__(self, critic: Critic, real: Array, fake: Array, key: Array) -> Array:
        return gradient_penalty(critic, real, fake, key, self.target, self.one_sided)


@dataclasses.dataclass(frozen=True)
class Dragan(GradientPenalty):
    """`dragan`, around real data (Kodali et al. 2017)."""

    def __call__(self, critic: Critic, real: Array, fake: Array, key: Array) -> Array:
        return dragan(critic, real, key, self.target, self.one_sided)


@dataclasses.dataclass(frozen=True)
class R1(Penalty):
    """`r1`, at real data (Mescheder et al. 2018)."""

    gamma: NonNegativeFloat = 10.0
    """Weight of half the squared norm."""

    @property
    def factor(self) -> float:
        return self.gamma

    def __call__(self, critic: Critic, real: Array, fake: Array, key: Array) -> Array:
        return r1(critic, real)


@dataclasses.dataclass(frozen=True)
class R2(R1):
    """`r2`, at generated data (Mescheder et al. 2018)."""

    def __call__(self, critic: Critic, real: Array, fake: Array, key: Array) -> Array:
        return r2(critic, fake)


@dataclasses.dataclass(frozen=True)
class R1R2(R1):
    """The sum of both, at real and at generated data (Huang et al. 2024)."""

    def __call__(self, critic: Critic, real: Array, fake: Array, key: Array) -> Array:
        return r1(critic, real) + r2(critic, fake)
