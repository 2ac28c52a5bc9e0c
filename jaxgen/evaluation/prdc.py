"""Precision, recall, density and coverage of a set of samples, from nearest neighbours.

A set is taken for the union of balls around its points, each as wide as its k-th neighbour is far. With r_i
the radius of real i, q_j of fake j and d_ij their distance,

    precision = mean_j [exists i: d_ij <= r_i]       recall   = mean_i [exists j: d_ij <= q_j]
    density   = sum_ij [d_ij <= r_i] / (k M)         coverage = mean_i [exists j: d_ij <= r_i].

Kynkaanniemi et al. 2019 (precision and recall, k = 3); Naeem et al. 2020 (density and coverage, k = 5), whose
code has < in place of <=, which differs where points are repeated. Under equal laws and N = M, E density = 1
and coverage tends to 1 - 2^-k; precision and recall have no such value, and one far real point can cover
everything. A set against itself has density 1 + 1/k, for each ball holds its own centre too.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen.evaluation import checks, distances


def prdc(real: Any, fake: Any, k: int = 5) -> dict[str, float]:
    """{"precision", "recall", "density", "coverage"} of features real (N, d) and fake (M, d).

    A radius is the distance to the k-th nearest other point of the same set, and inside means at most as far,
    to the rounding of float32. The memory is a few times `distances.TILE_BYTES` beside the features, however
    large N and M; features split over devices along their rows are worked on by all of them.

    Raises:
        ValueError: sets of different d, of fewer than k + 1 examples, or with values that are not finite.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    real, fake = checks.features(real=real, fake=fake, at_least=k + 1, why=f"k = {k}")
    real, fake = distances.centred(real, fake)
    whole = distances.on_every_device(real), distances.on_every_device(fake)
    precise, recalled, in_ball = map(np.asarray, _statistics(real, fake, *whole, k))
    return {
        "precision": float(precise.mean()),
        "recall": float(recalled.mean()),
        "density": float(in_ball.sum(dtype=np.int64) / (k * len(fake))),
        "coverage": float((in_ball > 0).mean()),
    }


@functools.partial(jax.jit, static_argnames="k")
def _statistics(
    real: Array, fake: Array, all_real: Array, all_fake: Array, k: int
) -> tuple[Array, Array, Array]:
    """Of each fake (M,) whether a real ball holds it; of each real (N,) whether a fake ball holds it, and
    how many fakes its own ball holds. The arguments twice: their rows split over devices, and whole."""
    n = len(real)
    real_radii = distances.neighbours(real, all_real, k, exclude_self=True)[0][:, -1]
    fake_radii = distances.neighbours(fake, all_fake, k, exclude_self=True)[0][:, -1]
    radii_of_rows = jnp.append(real_radii, -jnp.inf)  # nothing is inside the ball of a padded row

    def tile(part):
        rows, index = part
        # Less what float32 cannot tell from 0, so that the copies of a point are in a ball of radius 0.
        squared = distances.squared(rows, all_fake) - distances.rounding(rows, all_fake)
        in_real = squared <= radii_of_rows[index][:, None]
        in_fake = squared <= fake_radii
        return in_real.any(0), in_fake.any(1), in_real.sum(1)

    precise, recalled, in_ball = jax.lax.map(tile, distances.tiles(real, len(all_fake)))
    return precise.any(0), distances.untile(recalled, n), distances.untile(in_ball, n)
