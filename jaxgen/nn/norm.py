"""Flax's batch, group and instance normalization, with the backward pass in closed form; spectral norms.

With x^ = (x - mean) / std over n entries and y = scale x^ + bias, the gradient of <y, g> in x is

    (scale g - a - b x^) / std,     a = E[scale g],  b = E[scale g x^]

(Ioffe & Szegedy 2015, section 3): two sums over the image and one linear combination. Autodiff takes more
sums, and XLA computes g anew for each it fuses. That is less work on any platform, so none is singled out.

The variance is E[(x - mean)^2] in float32 or better. Linen's default, E[x^2] - mean^2, is a tenth off where
the mean is a thousand standard deviations, and no faster on CPU. Reverse mode to any order; no `jax.jvp`.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import canonicalize_dtype
from jax import Array, lax

Initializer = nn.initializers.Initializer

FIRST_ITERATIONS = 20
"""Steps of the power method when a spectrally normalized layer is initialized."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5, 6))
def normalize(
    x: Array, scale: Array, bias: Array, axes: tuple[int, ...], num_groups: int, epsilon: float, dtype: Any
) -> tuple[Array, Array, Array]:
    """x at zero mean and unit variance over `axes` and within each of `num_groups` groups of channels.

    Args:
        x: (..., C).
        scale, bias: (C,).
        axes: without the last.
        epsilon: added to the variance.
        dtype: of the result.

    Returns:
        scale x^ + bias (..., C), and the mean and the variance, shaped as x with 1 for every one of `axes`.
    """
    return _forward(x, scale, bias, axes, num_groups, epsilon, dtype)[0]


def _forward(x, scale, bias, axes, num_groups, epsilon, dtype):
    wide = _widen(x)
    mean = _mean(wide.sum(axes, keepdims=True), x, axes, num_groups)
    variance = _mean(((wide - mean) ** 2).sum(axes, keepdims=True), x, axes, num_groups)
    y = ((wide - mean) * (lax.rsqrt(variance + epsilon) * scale) + bias).astype(dtype)
    return (y, mean, variance), (x, scale, bias, mean, variance)


def _backward(axes, num_groups, epsilon, dtype, residuals, cotangents):
    x, scale, bias, mean, variance = residuals
    wide, (g, g_mean, g_variance) = _widen(x), cotangents
    g = g.astype(wide.dtype)
    average = functools.partial(_mean, x=x, axes=axes, num_groups=num_groups)
    inverse = lax.rsqrt(variance + epsilon)
    sum_g = g.sum(axes, keepdims=True)
    # Not centred first: XLA then makes one pass, and at mean = 1000 std the rounding is still below 1e-3.
    sum_gx = ((g * wide).sum(axes, keepdims=True) - mean * sum_g) * inverse
    slope = inverse**2 * average(sum_gx * scale) - 2 * average(g_variance)
    offset = inverse * average(sum_g * scale) - average(g_mean)
    grad_x = g * (inverse * scale) - (wide - mean) * slope - offset
    grad_scale, grad_bias = (a.reshape(-1, a.shape[-1]).sum(0) for a in (sum_gx, sum_g))
    return grad_x.astype(x.dtype), grad_scale.astype(scale.dtype), grad_bias.astype(bias.dtype)


normalize.defvjp(_forward, _backward)


def _widen(x):
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _mean(sums, x, axes, num_groups):
    """From sums over `axes`, the mean over these and over each group, repeated for its channels."""
    channels = x.shape[-1]
    size = channels // num_groups
    if size > 1:
        sums = sums.reshape(*sums.shape[:-1], num_groups, size).sum(-1)
        sums = jnp.repeat(sums, size, -1)
    return sums / (size * math.prod(x.shape[axis] for axis in axes))


class BatchNorm(nn.Module):
    """`flax.linen.BatchNorm` of (..., C): statistics over all axes but the last, also where jit shards them.

    Collection `batch_stats` keeps exponential moving averages `mean` and `var`, (C,) float32.
    """

    use_running_average: bool | None = None
    momentum: float = 0.99
    epsilon: float = 1e-5
    dtype: Any = None
    param_dtype: Any = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = nn.initializers.zeros
    scale_init: Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: Array, use_running_average: bool | None = None) -> Array:
        use_running_average = nn.merge_param(
            "use_running_average", self.use_running_average, use_running_average
        )
        channels = x.shape[-1]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        scale, bias, dtype = _parameters(self, x)
        if use_running_average:
            factor = lax.rsqrt(running_var.value + self.epsilon) * scale
            return ((_widen(x) - running_mean.value) * factor + bias).astype(dtype)
        axes = tuple(range(x.ndim - 1))
        y, mean, variance = normalize(x, scale, bias, axes, channels, self.epsilon, dtype)
        if not self.is_initializing():
            for running, new in ((running_mean, mean), (running_var, variance)):
                running.value = self.momentum * running.value + (1 - self.momentum) * new.reshape(channels)
        return y


class GroupNorm(nn.Module):
    """`flax.linen.GroupNorm` of (B, ..., C): statistics of each example and group of channels.

    Give `num_groups`, or None and `group_size`; ValueError where that does not divide the channels.
    """

    num_groups: int | None = 32
    group_size: int | None = None
    epsilon: float = 1e-6
    dtype: Any = None
    param_dtype: Any = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = nn.initializers.zeros
    scale_init: Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1]
        if (self.num_groups is None) == (self.group_size is None):
            raise ValueError("GroupNorm takes one of num_groups and group_size, and None for the other")
        name = "group_size" if self.num_groups is None else "num_groups"
        divisor = getattr(self, name)
        if divisor < 1 or channels % divisor:
            fitting = ", ".join(str(n) for n in range(1, channels + 1) if channels % n == 0)
            raise ValueError(f"GroupNorm: {name}={divisor} does not divide {channels} channels; {fitting} do")
        num_groups = self.num_groups or channels // divisor
        scale, bias, dtype = _parameters(self, x)
        axes = tuple(range(1, x.ndim - 1))
        return normalize(x, scale, bias, axes, num_groups, self.epsilon, dtype)[0]


class InstanceNorm(nn.Module):
    """`flax.linen.InstanceNorm` of (B, ..., C): statistics of each example and channel."""

    epsilon: float = 1e-6
    dtype: Any = None
    param_dtype: Any = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = nn.initializers.zeros
    scale_init: Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale, bias, dtype = _parameters(self, x)
        axes = tuple(range(1, x.ndim - 1))
        return normalize(x, scale, bias, axes, x.shape[-1], self.epsilon, dtype)[0]


class SpectralNorm(nn.Module):
    """`layer` with each of its kernels W divided by its largest singular value, u'Wv (Miyato et al. 2018).

    A kernel counts as the matrix (inputs, C_out), all axes but the last flattened; parameters of one axis
    stay as they are. Collection `spectral` keeps the singular vectors. Where it is mutable, and only there, a
    call first takes `num_iterations` steps of the power method and keeps the result. So let one pass of a
    training step have it mutable, hand what that returns to the others, and all of them see one kernel. The
    gradient passes through W but not through the vectors.

    Example:
        y = SpectralNorm(conv.Conv(64, (3, 3)))(x)
    """

    layer: nn.Module
    num_iterations: int = 1
    epsilon: float = 1e-12

    @nn.compact
    def __call__(self, *args: Any) -> Array:
        call = nn.map_variables(
            lambda layer: layer(*args),
            "params",
            lambda variables: jax.tree_util.tree_map_with_path(self._normalized, variables),
            init=self.is_initializing(),
            mutable=True,
        )
        return call(self.layer)

    def _normalized(self, path, kernel):
        if kernel.ndim < 2:
            return kernel
        matrix = _widen(kernel).reshape(-1, kernel.shape[-1])
        name = "/".join(str(part.key) for part in path[1:])
        start = lambda size: self._unit(jax.random.normal(self.make_rng("params"), (size,)))
        u = self.variable("spectral", f"{name}/u", start, matrix.shape[0])
        v = self.variable("spectral", f"{name}/v", start, matrix.shape[1])
        if self.is_mutable_collection("spectral"):
            fixed = lax.stop_gradient(matrix)
            for _ in range(FIRST_ITERATIONS if self.is_initializing() else self.num_iterations):
                u.value = self._unit(fixed @ v.value)
                v.value = self._unit(u.value @ fixed)
        return (kernel / (u.value @ matrix @ v.value)).astype(kernel.dtype)

    def _unit(self, x):
        return x * lax.rsqrt((x**2).sum() + self.epsilon)


def _parameters(module, x):
    """Scale (C,) and bias (C,), learned or not, and the dtype of the result."""
    shape, dtype = x.shape[-1:], module.param_dtype
    scale, bias = jnp.ones(shape, dtype), jnp.zeros(shape, dtype)
    learned = []
    if module.use_scale:
        scale = module.param("scale", module.scale_init, shape, dtype)
        learned.append(scale)
    if module.use_bias:
        bias = module.param("bias", module.bias_init, shape, dtype)
        learned.append(bias)
    return scale, bias, canonicalize_dtype(x, *learned, dtype=module.dtype)
