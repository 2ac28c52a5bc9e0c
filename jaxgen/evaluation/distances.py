"""Squared Euclidean distances between two sets, a tile of rows at a time: what the neighbour metrics share.

No N x M matrix is ever held: a tile has as many rows as fit into `TILE_BYTES`, and `jax.lax.map` runs over
tiles. Distances are float32. |x|^2 + |y|^2 - 2 x'y loses the digits that the norms have before the comma, so
sets are centred first, the products are taken at highest precision, and in few dimensions, where points
may lie much closer to each other than to the mean, the differences are taken one by one.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec

TILE_BYTES = 2**26
"""Size of one tile of distances; a computation holds a few of them at a time, however large the sets."""

BY_DIFFERENCES = 16
"""Up to as many dimensions, distances are sums of squared differences; a matrix product beyond."""

ROW_MULTIPLE = 64  # of a tile, so that any usual number of devices divides it
_EPSILON = float(jnp.finfo(jnp.float32).eps)
BLOCK = 64  # columns of which only the smallest is looked at first


def centred(reference: Any, *others: Any) -> list[Array]:
    """All sets (N, d) minus the mean of `reference`, in float32.

    Arrays of float64 are shifted before they are rounded, so that a large common offset does no harm. They
    are shifted twice, because the mean of many large float32 numbers is only near theirs.
    """
    sets = [reference, *others]
    for _ in range(2):
        shift = sets[0].mean(0)
        sets = [x - shift for x in sets]
    return [jnp.asarray(x, jnp.float32) for x in sets]


def on_every_device(x: Array) -> Array:
    """x, which may be split over the devices of a mesh, whole on each of them: what tiles are compared with.

    Without it, XLA may split the columns of a tile instead of its rows, and then has to gather every tile.
    """
    if isinstance(x.sharding, NamedSharding):
        return jax.device_put(x, NamedSharding(x.sharding.mesh, PartitionSpec()))
    return x


def squared(x: Array, y: Array) -> Array:
    """|x_i - y_j|^2 of float32 x (N, d) and y (M, d), (N, M), never negative."""
    if x.shape[1] <= BY_DIFFERENCES:
        return sum((x[:, None, i] - y[None, :, i]) ** 2 for i in range(x.shape[1]))  # type: ignore[return-value]
    products = jnp.matmul(x, y.T, precision="highest")
    return jnp.maximum((x * x).sum(1)[:, None] + (y * y).sum(1) - 2.0 * products, 0.0)


def rounding(x: Array, y: Array) -> Array:
    """About as much as `squared` may be wrong by, (N, M) or what broadcasts to it."""
    if x.shape[1] <= BY_DIFFERENCES:
        return 4.0 * _EPSILON * squared(x, y)
    return 4.0 * _EPSILON * ((x * x).sum(1)[:, None] + (y * y).sum(1))


def tiles(x: Array, columns: int) -> tuple[Array, Array]:
    """Rows of x (N, d) in tiles (T, R, d), and the row number of each (T, R), N where a tile is padded.

    R is such that R x columns float32 numbers fit into TILE_BYTES. Row i lies in tile i mod T: if x is split
    over devices along its rows, so is every tile, and all devices work at once.
    """
    n = len(x)
    number = max(1, -(-n * columns * 4 // TILE_BYTES))
    rows = -(-n // (number * ROW_MULTIPLE)) * ROW_MULTIPLE
    padded = jnp.pad(x, ((0, number * rows - n), (0, 0)))
    index = jnp.minimum(jnp.arange(number * rows), n)
    return padded.reshape(rows, number, -1).swapaxes(0, 1), index.reshape(rows, number).T


def untile(values: Array, n: int) -> Array:
    """What was computed for each row of `tiles`, (T, R, ...), in the order of the n rows, (n, ...)."""
    return values.swapaxes(0, 1).reshape(-1, *values.shape[2:])[:n]


def smallest(values: Array, k: int) -> tuple[Array, Array]:
    """The k smallest of each row of (R, M), in order, and where they are: (R, k) both.

    They lie in the k blocks of columns with the smallest minima, so that only those are sorted: on CPU
    several times faster than `jax.lax.top_k` of the whole row.
    """
    rows, columns = values.shape
    blocks = -(-columns // BLOCK)
    if k >= blocks:
        negative, index = jax.lax.top_k(-values, k)
        return -negative, index
    padded = jnp.pad(values, ((0, 0), (0, blocks * BLOCK - columns)), constant_values=jnp.inf)
    padded = padded.reshape(rows, blocks, BLOCK)
    _, chosen = jax.lax.top_k(-padded.min(2), k)
    candidates = jnp.take_along_axis(padded, chosen[:, :, None], 1).reshape(rows, -1)
    negative, place = jax.lax.top_k(-candidates, k)
    block = jnp.take_along_axis(chosen, place // BLOCK, 1)
    return -negative, block * BLOCK + place % BLOCK


@functools.partial(jax.jit, static_argnames=("k", "exclude_self"))
def neighbours(x: Array, y: Array, k: int, exclude_self: bool = False) -> tuple[Array, Array]:
    """Squared distances to the k nearest of y (M, d) from each of x (N, d), nearest first, and their numbers.

    Both (N, k). `exclude_self`, where x is y, leaves out the point itself but not its copies.
    """

    def tile(part):
        rows, index = part
        distances = squared(rows, y)
        if exclude_self:
            distances = jnp.where(index[:, None] == jnp.arange(len(y)), jnp.inf, distances)
        return smallest(distances, k)

    distances, index = jax.lax.map(tile, tiles(x, len(y)))
    return untile(distances, len(x)), untile(index, len(x))


def nearest(x: Array, y: Array, exclude_self: bool = False) -> tuple[Array, Array]:
    """Distance from each of x (N, d) to the nearest of y (M, d), and its number, both (N,).

    The distance is taken anew from the differences: of an exact copy it is exactly 0.
    """
    y = on_every_device(y)
    index = neighbours(x, y, 1, exclude_self)[1][:, 0]
    return jnp.sqrt(((x - y[index]) ** 2).sum(1)), index
