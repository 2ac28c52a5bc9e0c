"""Flax's batch, group and instance normalization, with fast derivatives in both modes; spectral norms.

`normalize.py` says how.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import canonicalize_dtype
from jax import Array, lax

from jaxgen.nn.normalize import normalize, widen

Initializer = nn.initializers.Initializer

FIRST_ITERATIONS = 20
"""Steps of the power method when a spectrally normalized layer is initialized."""


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
            return ((widen(x) - running_mean.value) * factor + bias).astype(dtype)
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
        matrix = widen(kernel).reshape(-1, kernel.shape[-1])
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
