"""Adversarial losses: what discriminator and generator minimise, given the discriminator's logits.

With real data from p, samples from q and raw logits d, what the best discriminator's loss comes to is an
affine function of a distance of p and q:

| name | the discriminator's least loss | its best d |
|---|---|---|
| minimax, non_saturating (Goodfellow et al. 2014) | log 4 - 2 JS(p, q) | log p/q |
| least_squares (Mao et al. 2017), targets 0 for fake and 1 for real | 1/2 sum pq / (p + q) | p / (p + q) |
| hinge (Lim & Ye 2017) | 2 - 2 TV(p, q) | sign(p - q) |
| wasserstein (Arjovsky et al. 2017), over 1-Lipschitz d | -W1(p, q) | |
| relativistic, relativistic_average (Jolicoeur-Martineau 2019) | | |
| f:* (Nowozin et al. 2016) | -D_f(p, q) | g^-1(f'(p/q)) |

The f-divergence D_f(p, q) = sum_x q f(p / q) is at least E_p g(d) - E_q f*(g(d)) for every d: f* is the
conjugate sup_u (ut - f(u)), g an increasing map from the real line onto its domain. The generator of
"f:<name>" minimises that bound; the one of "f:<name>:practical" maximises E_q g(d) instead, as the
non-saturating loss does, and as the paper trains.

Every loss is finite, with finite slopes, at any logit. To that end exponentials go on along their tangent
above 20, where the ratio of p and q they stand for is 5e8.
"""

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array
from jax.nn import softplus

LossName: TypeAlias = Literal[
    "minimax",
    "non_saturating",
    "least_squares",
    "hinge",
    "wasserstein",
    "relativistic",
    "relativistic_average",
    "f:kl",
    "f:kl:practical",
    "f:reverse_kl",
    "f:reverse_kl:practical",
    "f:pearson",
    "f:pearson:practical",
    "f:neyman",
    "f:neyman:practical",
    "f:squared_hellinger",
    "f:squared_hellinger:practical",
    "f:jeffrey",
    "f:jeffrey:practical",
    "f:jensen_shannon",
    "f:jensen_shannon:practical",
    "f:gan",
    "f:gan:practical",
    "f:total_variation",
    "f:total_variation:practical",
]
"""The keys of `LOSSES`."""

LARGEST_EXPONENT = 20.0
"""Where exponentials give way to their tangent."""


class AdversarialLoss(NamedTuple):
    """Two scalars to minimise, of logits on real and on generated data, each (B,)."""

    discriminator: Callable[[Array, Array], Array]
    generator: Callable[[Array, Array], Array]
    threshold: float | None = 0.0
    """The logit above which the verdict is "real"; None where only differences of logits mean anything."""


class Divergence(NamedTuple):
    """An f-divergence by elementwise functions of a ratio u > 0, a number t where f* is finite, a logit v."""

    f: Callable[[Array], Array]
    conjugate: Callable[[Array], Array]
    """f*(t) = sup_u (ut - f(u))."""
    activation: Callable[[Array], Array]
    """g(v), which maps logits onto the domain of f*."""
    composite: Callable[[Array], Array]
    """f*(g(v)), computed as one."""
    threshold: float = 0.0
    """The logit of u = 1: g(threshold) = f'(1)."""


def _exp(x):
    """e^x, above 20 its tangent."""
    return jnp.exp(jnp.minimum(x, LARGEST_EXPONENT)) * (1 + jnp.maximum(x - LARGEST_EXPONENT, 0.0))


def _expm1(x):
    return jnp.where(x > 1.0, _exp(x) - 1, jnp.expm1(jnp.minimum(x, 1.0)))


@jax.custom_jvp
def wright_omega(x: Array) -> Array:
    """The w > 0 with w + log w = x, for -20 <= x: Lambert's W of e^x."""
    w = softplus(x)
    for _ in range(6):
        w = w * (1 + x - jnp.log(w)) / (1 + w)
    return w


@wright_omega.defjvp
def _wright_omega_jvp(primals, tangents):
    w = wright_omega(*primals)
    return w, w / (1 + w) * tangents[0]


def _jeffrey_conjugate(t):
    inside = jnp.minimum(t, LARGEST_EXPONENT)
    w = wright_omega(1 - inside)
    return w + 1 / w + inside - 2 + jnp.maximum(t - LARGEST_EXPONENT, 0.0) / w


def _identity(v):
    return v


DIVERGENCES: dict[str, Divergence] = {
    "kl": Divergence(
        f=lambda u: u * jnp.log(u),
        conjugate=lambda t: jnp.exp(t - 1),
        activation=_identity,
        composite=lambda v: _exp(v - 1),
        threshold=1.0,
    ),
    "reverse_kl": Divergence(
        f=lambda u: -jnp.log(u),
        conjugate=lambda t: -1 - jnp.log(-t),
        activation=lambda v: -_exp(-v),
        composite=lambda v: v - 1,
    ),
    "pearson": Divergence(
        f=lambda u: (u - 1) ** 2,
        conjugate=lambda t: t**2 / 4 + t,
        activation=_identity,
        composite=lambda v: v**2 / 4 + v,
    ),
    "neyman": Divergence(
        f=lambda u: (1 - u) ** 2 / u,
        conjugate=lambda t: 2 - 2 * jnp.sqrt(1 - t),
        activation=lambda v: -_expm1(-v),
        composite=lambda v: -2 * _expm1(-v / 2),
    ),
    "squared_hellinger": Divergence(
        f=lambda u: (jnp.sqrt(u) - 1) ** 2,
        conjugate=lambda t: t / (1 - t),
        activation=lambda v: -_expm1(-v),
        composite=_expm1,
    ),
    "jeffrey": Divergence(
        f=lambda u: (u - 1) * jnp.log(u),
        conjugate=_jeffrey_conjugate,
        activation=_identity,
        composite=_jeffrey_conjugate,
    ),
    "jensen_shannon": Divergence(
        f=lambda u: u * jnp.log(u) - (u + 1) * jnp.log((1 + u) / 2),
        conjugate=lambda t: -jnp.log(2 - jnp.exp(t)),
        activation=lambda v: jnp.log(2.0) - softplus(-v),
        composite=lambda v: softplus(v) - jnp.log(2.0),
    ),
    "gan": Divergence(
        f=lambda u: u * jnp.log(u) - (u + 1) * jnp.log(u + 1),
        conjugate=lambda t: -jnp.log(-jnp.expm1(t)),
        activation=lambda v: -softplus(-v),
        composite=softplus,
    ),
    "total_variation": Divergence(
        f=lambda u: jnp.abs(u - 1) / 2,
        conjugate=_identity,
        activation=lambda v: jnp.tanh(v) / 2,
        composite=lambda v: jnp.tanh(v) / 2,
    ),
}
"""Generating functions, natural logarithms throughout. "jensen_shannon" is twice the usual divergence, "gan"
that minus log 4. "pearson" has the conjugate over all real u, a smooth bound, but one that falls again below
t = -2: there its generator is pushed the wrong way, and the practical one is not."""


def _cross_entropy(real, fake):
    return softplus(-real).mean() + softplus(fake).mean()


def _relativistic_average(real, fake):
    return _cross_entropy(real - fake.mean(), fake - real.mean())


def _f_discriminator(real, fake, divergence):
    return divergence.composite(fake).mean() - divergence.activation(real).mean()


def _f_generator(real, fake, divergence):
    del real
    return -divergence.composite(fake).mean()


def _f_practical(real, fake, divergence):
    del real
    return -divergence.activation(fake).mean()


def _f_losses(name, divergence):
    practical, theoretical, discriminator = (
        functools.partial(function, divergence=divergence)
        for function in (_f_practical, _f_generator, _f_discriminator)
    )
    return {
        f"f:{name}": AdversarialLoss(discriminator, theoretical, divergence.threshold),
        f"f:{name}:practical": AdversarialLoss(discriminator, practical, divergence.threshold),
    }


LOSSES: dict[str, AdversarialLoss] = {
    "minimax": AdversarialLoss(_cross_entropy, lambda real, fake: -softplus(fake).mean()),
    "non_saturating": AdversarialLoss(_cross_entropy, lambda real, fake: softplus(-fake).mean()),
    "least_squares": AdversarialLoss(
        lambda real, fake: 0.5 * ((real - 1) ** 2).mean() + 0.5 * (fake**2).mean(),
        lambda real, fake: 0.5 * ((fake - 1) ** 2).mean(),
        threshold=0.5,
    ),
    "hinge": AdversarialLoss(
        lambda real, fake: jax.nn.relu(1 - real).mean() + jax.nn.relu(1 + fake).mean(),
        lambda real, fake: -fake.mean(),
    ),
    "wasserstein": AdversarialLoss(
        lambda real, fake: fake.mean() - real.mean(),
        lambda real, fake: -fake.mean(),
        threshold=None,
    ),
    "relativistic": AdversarialLoss(
        lambda real, fake: softplus(fake - real).mean(),
        lambda real, fake: softplus(real - fake).mean(),
        threshold=None,
    ),
    "relativistic_average": AdversarialLoss(
        _relativistic_average,
        lambda real, fake: _relativistic_average(fake, real),
        threshold=None,
    ),
}
for _name, _divergence in DIVERGENCES.items():
    LOSSES.update(_f_losses(_name, _divergence))
"""By name. The relativistic loss pairs by position in the batch; the average one is not halved."""
