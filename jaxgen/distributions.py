"""Log-densities and divergences used by more than one family, in nats.

All of them work in float32 whatever the compute dtype, and sum over every axis but the first: (B, ...) ->
(B,).
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


def sum_per_example(x: Array) -> Array:
    """Sum over every axis but the first, (B, ...) -> (B,)."""
    return flat(x).sum(-1)


def bernoulli_log_prob(x: Array, logits: Array) -> Array:
    """log p(x) of independent bits x in {0, 1} with p(1) = sigmoid(logits), (B,).

    What is no bit is taken for the nearest.
    """
    # Flat before the arithmetic, which XLA then fuses with the sum.
    x, logits = flat(x), flat(logits.astype(jnp.float32))
    return -_softplus(jnp.where(x > 0.5, -logits, logits)).sum(-1)


def flat(x: Array) -> Array:
    """(B, ...) -> (B, D), also of no examples."""
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))


@jax.custom_jvp
def _softplus(x: Array) -> Array:
    """log(1 + e^x) to within rounding at 1, in a third of the time of jax.nn.softplus on a CPU."""
    return jnp.maximum(x, 0) + jnp.log(1 + jnp.exp(-abs(x)))


_softplus.defjvps(lambda tangent, _, x: jax.nn.sigmoid(x) * tangent)


def bernoulli(key: Array, probability: Array) -> Array:
    """Independent bits, True with the given probability in [0, 1], (B, ...).

    Sixteen random bits decide each, so a probability counts as the nearest multiple of 2^-16, and 0 and 1 are
    certain: what is rarer than 2^-17 never happens.
    """
    size = math.prod(probability.shape[1:])
    words = jax.random.bits(key, (probability.shape[0], -(-size // 2)), jnp.uint32)
    halves = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(len(words), 2 * words.shape[1])[:, :size]
    return halves.reshape(probability.shape).astype(jnp.float32) + 0.5 < 2.0**16 * probability


def normal_log_prob(x: Array, mean: Array | float = 0.0, log_variance: Array | float = 0.0) -> Array:
    """log N(x; mean, exp(log_variance)) with independent coordinates, (B,)."""
    mean, log_variance = jnp.float32(mean), jnp.float32(log_variance)
    squares = (x - mean) ** 2 * jnp.exp(-log_variance)
    return -0.5 * sum_per_example(squares + log_variance + math.log(2 * math.pi))


def discretized_normal_log_prob(x: Array, mean: Array, log_variance: Array, levels: int) -> Array:
    """log P(x) of `levels` values spread over [-1, 1] under a normal integrated over each, (B,).

    The outermost values take the tails, so the probabilities of all levels sum to one. What lies beyond
    them is taken for them.
    """
    scale, half = jnp.exp(-0.5 * log_variance), 1 / (levels - 1)
    x = jnp.clip(x, -1.0, 1.0)
    difference = x - mean
    # Both ends below the mean, by symmetry: there the logarithms of the tails differ most.
    sign = jnp.where(difference > 0, -1.0, 1.0)
    high, low = (sign * difference + half) * scale, (sign * difference - half) * scale
    log_high, log_low = jax.scipy.special.log_ndtr(high), jax.scipy.special.log_ndtr(low)
    inside = log_high + jnp.log(-jnp.expm1(jnp.minimum(log_low - log_high, -1e-12)))
    lowest = jax.scipy.special.log_ndtr((difference + half) * scale)
    highest = jax.scipy.special.log_ndtr(-(difference - half) * scale)
    log_prob = jnp.where(x < -1 + half, lowest, jnp.where(x > 1 - half, highest, inside))
    return sum_per_example(log_prob)


def kl_normal(
    mean: Array,
    log_variance: Array,
    other_mean: Array | float = 0.0,
    other_log_variance: Array | float = 0.0,
) -> Array:
    """KL(N(mean, exp(log_variance)) || the other normal, by default N(0, I)), independent coordinates, (B,).

    Kingma & Welling 2014, appendix B.
    """
    mean, log_variance = jnp.float32(mean), jnp.float32(log_variance)
    difference, log_ratio = mean - other_mean, log_variance - other_log_variance
    scaled = difference**2 * jnp.exp(-jnp.float32(other_log_variance))
    return 0.5 * sum_per_example(scaled + (jnp.expm1(log_ratio) - log_ratio))


def lognormal_log_prob(z: Array, mean: Array | float = 0.0, log_variance: Array | float = 0.0) -> Array:
    """log p(z) where log z ~ N(mean, exp(log_variance)) with independent coordinates, (B,).

    -inf unless all coordinates are positive.
    """
    z = jnp.float32(z)
    positive = z > 0
    log_z = jnp.log(jnp.where(positive, z, 1.0))
    log_prob = normal_log_prob(log_z, mean, log_variance) - sum_per_example(log_z)
    return jnp.where(flat(positive).all(1), log_prob, -jnp.inf)


def kl_lognormal(
    mean: Array,
    log_variance: Array,
    other_mean: Array | float = 0.0,
    other_log_variance: Array | float = 0.0,
) -> Array:
    """KL between log-normals, of mean and log-variance of log z, (B,).

    A KL does not change under a map that both sides share: this is `kl_normal` of the logarithms.
    """
    return kl_normal(mean, log_variance, other_mean, other_log_variance)


def kl_categorical(logits: Array) -> Array:
    """KL(softmax(logits) || uniform) over the last axis, summed over the variables, (B, ..., K) -> (B,)."""
    log_probability = jax.nn.log_softmax(jnp.float32(logits))
    possible = log_probability > -jnp.inf
    log_ratio = jnp.where(possible, log_probability, 0.0) + math.log(logits.shape[-1])
    return sum_per_example(jnp.where(possible, jnp.exp(log_probability) * log_ratio, 0.0))


def geometric_js_normal(
    mean: Array,
    log_variance: Array,
    other_mean: Array | float = 0.0,
    other_log_variance: Array | float = 0.0,
    alpha: float = 0.5,
    dual: bool = False,
) -> Array:
    """Skew-geometric Jensen-Shannon divergence of q = N(mean, ...) and p, by default N(0, I), (B,).

    With the normal G ~ q^alpha p^(1 - alpha) between them,

        (1 - alpha) KL(q || G) + alpha KL(p || G),     dual: (1 - alpha) KL(G || q) + alpha KL(G || p),

    Deasy, Simidjievski & Lio 2020. alpha = 0 is KL(q || p) and alpha = 1 is KL(p || q), those of the dual the
    other way round. Unlike the Jensen-Shannon divergence it is not bounded by log 2.
    """
    q = jnp.float32(mean), jnp.float32(log_variance)
    zeros = jnp.zeros_like(q[0])
    p = zeros + other_mean, zeros + other_log_variance
    precisions = alpha * jnp.exp(-q[1]), (1 - alpha) * jnp.exp(-p[1])
    total = precisions[0] + precisions[1]
    between = (precisions[0] * q[0] + precisions[1] * p[0]) / total, -jnp.log(total)
    if dual:
        return (1 - alpha) * kl_normal(*between, *q) + alpha * kl_normal(*between, *p)
    return (1 - alpha) * kl_normal(*q, *between) + alpha * kl_normal(*p, *between)


def importance_weighted_bound(
    key: Array,
    propose: Callable[[Array], tuple[Any, Array]],
    log_joint: Callable[[Any], Array],
    num_samples: int,
) -> Array:
    """log 1/K sum_k p(x, z_k) / q(z_k | x), in nats, (B,).

    At most log p(x) on average, rising with K = `num_samples`; exact for any K where q is the posterior
    (Burda, Grosse & Salakhutdinov 2016). The draws are streamed through a running log-sum-exp, so memory does
    not grow with their number.

    Args:
        propose: key -> (z, log q(z | x) (B,)).
        log_joint: z -> log p(x, z), (B,).

    Raises ValueError for no draws.
    """
    if num_samples < 1:
        raise ValueError(f"a bound takes at least 1 draw of z, not {num_samples}")

    def accumulate(carry, index):
        largest, total = carry
        z, log_proposal = propose(jax.random.fold_in(key, index))
        log_weight = log_joint(z) - log_proposal
        new_largest = jnp.maximum(largest, log_weight)
        at = jnp.where(new_largest > -jnp.inf, new_largest, 0.0)  # no draw yet that is possible
        total = total * jnp.exp(largest - at) + jnp.exp(log_weight - at)
        return (new_largest, total), None

    shape = jax.eval_shape(propose, key)[1]
    start = jnp.full(shape.shape, -jnp.inf), jnp.zeros(shape.shape)
    (largest, total), _ = jax.lax.scan(accumulate, start, jnp.arange(num_samples))
    return largest + jnp.log(total) - math.log(num_samples)


def systematic_resample(key: Array, weights: Array, num_draws: int) -> Array:
    """Indices (B, num_draws) drawn by weights (B, K) that sum to 1, from evenly spaced quantiles of them.

    Index k comes num_draws * weights[k] times on average, and never more than one away from that (Kitagawa
    1996).
    """
    offset = jax.random.uniform(key, (len(weights), 1))
    quantiles = (offset + jnp.arange(num_draws)) / num_draws
    below = jnp.cumsum(weights, 1)[:, None, :] < quantiles[:, :, None]
    return jnp.minimum(below.sum(-1), weights.shape[1] - 1)


def gumbel_softmax(key: Array, logits: Array, temperature: Array | float, hard: bool = False) -> Array:
    """A relaxed one-hot draw of the categorical softmax(logits), (..., K) -> (..., K).

    softmax((logits + g) / temperature) with Gumbel noise g (Jang, Gu & Poole 2017; Maddison, Mnih & Teh
    2017). Its largest entry is an exact draw at any temperature. `hard` returns that draw itself, with the
    gradient of the relaxed one (straight-through).
    """
    logits = jnp.float32(logits)
    soft = jax.nn.softmax((logits + jax.random.gumbel(key, logits.shape)) / temperature)
    if not hard:
        return soft
    return jax.nn.one_hot(soft.argmax(-1), soft.shape[-1]) + (soft - jax.lax.stop_gradient(soft))


def discretized_logistic_mixture_log_prob(x: Array, parameters: Array, levels: int = 256) -> Array:
    """log P(x) of pixels under a mixture of logistics integrated over each level, (B,).

    The `levels` values of a pixel exhaust its probability: -1 and 1 take the tails, and what lies beyond them
    is taken for them. In colour the mixture component is shared by the channels of a pixel, and the means of
    green and blue are linear in the channels before them (Salimans et al. 2017).

    Args:
        x: (B, ..., C) levels on [-1, 1], 2 / (levels - 1) apart, with one or three channels.
        parameters: (B, ..., 3 K) for one channel, (B, ..., 10 K) for three: K logits of the components, C K
            means, C K log-scales (those below -7 count as -7, but -inf is a point), and in colour 3 K
            coefficients, squashed by tanh.
    """
    logits, means, log_scales, coefficients = _mixture(parameters, x.shape[-1])
    x = jnp.clip(jnp.float32(x), -1.0, 1.0)[..., None]
    if coefficients is not None:
        red, green = x[..., 0, :], x[..., 1, :]
        shifts = [jnp.zeros_like(red), *_colour_shifts(coefficients, red, green)]
        means = means + jnp.stack(jnp.broadcast_arrays(*shifts), -2)
    inverse, half = jnp.exp(-log_scales), 1 / (levels - 1)
    upper, lower = (x + half - means) * inverse, (x - half - means) * inverse
    # log(F(upper) - F(lower)) without cancellation; a width too small for float32 stays a logarithm.
    log_width = math.log(2 * half) - log_scales
    wide = log_width > -40.0
    width = jnp.exp(jnp.where(wide, log_width, 0.0))
    log_share = jnp.where(wide, jnp.log(-jnp.expm1(-width)), log_width)
    inside = jax.nn.log_sigmoid(upper) + jax.nn.log_sigmoid(-lower) + log_share
    tails = jnp.where(x > 1 - half, jax.nn.log_sigmoid(-lower), inside)
    log_prob = jnp.where(x < half - 1, jax.nn.log_sigmoid(upper), tails).sum(-2)
    return sum_per_example(jax.nn.logsumexp(jax.nn.log_softmax(logits) + log_prob, -1))


def discretized_logistic_mixture_mean(parameters: Array, num_channels: int) -> Array:
    """The mean of the mixture to within half a level, (..., num_channels) on [-1, 1].

    That of the logistics with their tails moved to -1 and 1. In colour the channels after the first follow
    the means of those before, which is exact but for what the tails bend.
    """
    logits, means, log_scales, coefficients = _mixture(parameters, num_channels)
    scales = jnp.exp(jnp.minimum(log_scales, 30.0))  # a wider one has the mean 0 too

    def clipped_mean(channel, shift=0.0):
        mean, scale = means[..., channel, :] + shift, scales[..., channel, :]
        upper, lower = (mean + 1) / scale, (mean - 1) / scale
        # scale (softplus(upper) - softplus(lower)) - 1, in the form that does not cancel.
        tails = jnp.log1p(jnp.exp(-abs(upper))) - jnp.log1p(jnp.exp(-abs(lower)))
        wide = scale > 2
        rise = jnp.log1p(jnp.expm1(2 / jnp.where(wide, scale, 2.0)) * jax.nn.sigmoid(lower))
        narrow_mean = jnp.clip(mean, -1.0, 1.0) + scale * tails
        return jnp.clip(jnp.where(wide, scale * rise - 1, narrow_mean), -1.0, 1.0)

    channels = [clipped_mean(0)]
    if coefficients is not None:
        red = channels[0]
        green = clipped_mean(1, _colour_shifts(coefficients, red, red)[0])
        channels += [green, clipped_mean(2, _colour_shifts(coefficients, red, green)[1])]
    return (jax.nn.softmax(logits)[..., None, :] * jnp.stack(channels, -2)).sum(-1)


def discretized_logistic_mixture_sample(
    key: Array, parameters: Array, num_channels: int, levels: int = 256
) -> Array:
    """A draw of `discretized_logistic_mixture_log_prob`, (..., num_channels), on its levels."""
    component_key, noise_key = jax.random.split(key)
    logits, all_means, all_log_scales, all_coefficients = _mixture(parameters, num_channels)
    component = jax.random.categorical(component_key, logits)[..., None, None]
    chosen = lambda a: jnp.take_along_axis(a, component, -1)[..., 0]
    means = chosen(all_means)
    noise = jax.random.logistic(noise_key, means.shape) * jnp.exp(chosen(all_log_scales))

    def level(channel, shift=0.0):
        x = jnp.clip(means[..., channel] + shift + noise[..., channel], -1.0, 1.0)
        return jnp.round((x + 1) * ((levels - 1) / 2)) / ((levels - 1) / 2) - 1

    channels = [level(0)]
    if all_coefficients is not None:
        red, coefficients = channels[0], chosen(all_coefficients)
        green = level(1, coefficients[..., 0] * red)
        channels += [green, level(2, coefficients[..., 1] * red + coefficients[..., 2] * green)]
    return jnp.stack(channels, -1)


def _mixture(parameters: Array, num_channels: int) -> tuple[Array, Array, Array, Array | None]:
    """Logits (..., K); means and log-scales (..., C, K); coefficients (..., 3, K), or None without colour."""
    if num_channels not in (1, 3):
        raise ValueError(f"a mixture of logistics is over 1 or 3 channels, not {num_channels}")
    groups = {1: 3, 3: 10}[num_channels]
    num_components = parameters.shape[-1] // groups
    if num_components * groups != parameters.shape[-1] or not num_components:
        raise ValueError(f"{num_channels} channels take {groups} K parameters, not {parameters.shape[-1]}")
    split = jnp.float32(parameters).reshape(*parameters.shape[:-1], groups, num_components)
    means, log_scales = split[..., 1 : 1 + num_channels, :], split[..., 1 + num_channels :, :]
    coefficients = jnp.tanh(log_scales[..., num_channels:, :]) if num_channels == 3 else None
    log_scales = log_scales[..., :num_channels, :]
    log_scales = jnp.where(log_scales > -jnp.inf, jnp.maximum(log_scales, -7.0), log_scales)
    return split[..., 0, :], means, log_scales, coefficients


def _colour_shifts(coefficients: Array, red: Array, green: Array) -> tuple[Array, Array]:
    """What red, and red and green, add to the means of green and of blue."""
    first, second, third = (coefficients[..., i, :] for i in range(3))
    return first * red, second * red + third * green
