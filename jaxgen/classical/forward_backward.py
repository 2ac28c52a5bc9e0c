"""Inference in a Markov chain seen through noise, from a table of emission log-likelihoods (T, K).

`forward` filters, `smooth` gives posteriors, `viterbi` the likeliest path, `posterior_sample` a random one:
each of one sequence in O(T K^2), in float32 or float64; vmap them over sequences (Rabiner 1989).
"""

import jax
import jax.numpy as jnp
from jax import Array


def forward(
    log_initial: Array, log_transition: Array, log_likelihoods: Array, mask: Array | None = None
) -> tuple[Array, Array]:
    """log p(x_1..T), (), and log p(z_t | x_1..t), (T, K), by one pass of normalised products.

    Args:
        log_initial: (K,).
        log_transition: (K, K), from row to column.
        log_likelihoods: (T, K), log p(x_t | z_t = k).
        mask: (T,) bool, False for padding at the end, which changes nothing.
    """
    log_scale, filtered, *_ = _filter(log_initial, log_transition, log_likelihoods, mask)
    return log_scale.sum(), jnp.log(filtered)


def smooth(
    log_initial: Array, log_transition: Array, log_likelihoods: Array, mask: Array | None = None
) -> tuple[Array, Array, Array]:
    """log p(x), (); p(z_t | x), (T, K), 0 in padding; expected numbers of moves, (K, K). As `forward`.

    The posterior is the gradient of log p(x) in the table, and the expected moves are that in the
    logarithms of the transitions.
    """
    log_scale, filtered, likelihoods, scale, mask = _filter(
        log_initial, log_transition, log_likelihoods, mask
    )
    transition = jnp.exp(log_transition)

    def back(beta, inputs):
        likelihood, scale, real = inputs
        message = likelihood * beta / scale
        return jnp.where(real, transition @ message, beta), (beta, jnp.where(real, message, 0.0))

    _, (beta, message) = jax.lax.scan(
        back, jnp.ones_like(filtered[0]), (likelihoods, scale, mask), reverse=True
    )
    posterior = jnp.where(mask[:, None], filtered * beta, 0.0)
    moves = transition * jnp.matmul(filtered[:-1].T, message[1:], precision="highest")
    return log_scale.sum(), posterior, moves


def viterbi(
    log_initial: Array, log_transition: Array, log_likelihoods: Array, mask: Array | None = None
) -> tuple[Array, Array]:
    """The likeliest path, (T,) int32, and log p(x, path), (). As `forward`; in padding the path stays."""
    log_likelihoods, mask = _masked(log_likelihoods, mask)
    states = jnp.arange(len(log_initial))

    def back(value, inputs):
        likelihood, real = inputs
        scores = log_transition + likelihood + value
        best = jnp.where(real, scores.argmax(1), states)
        return jnp.where(real, scores.max(1), value), best

    value, best = jax.lax.scan(
        back, jnp.zeros_like(log_initial), (log_likelihoods[1:], mask[1:]), reverse=True
    )
    start = log_initial + log_likelihoods[0] + value
    first = start.argmax()
    _, rest = jax.lax.scan(lambda state, best: (best[state],) * 2, first, best)
    return jnp.append(first, rest).astype(jnp.int32), start.max()


def posterior_sample(
    key: Array, log_initial: Array, log_transition: Array, log_likelihoods: Array, mask: Array | None = None
) -> Array:
    """A draw of the whole path from p(z | x), (T,) int32, by filtering forward and sampling backward."""
    _, filtered, *_, mask = _filter(log_initial, log_transition, log_likelihoods, mask)
    log_filtered = jnp.log(filtered)
    keys = jax.random.split(key, len(log_filtered))
    last = jax.random.categorical(keys[-1], log_filtered[-1])

    def back(following, inputs):
        key, log_filtered, real = inputs
        drawn = jax.random.categorical(key, log_filtered + log_transition[:, following])
        state = jnp.where(real, drawn, following)
        return state, state

    _, rest = jax.lax.scan(back, last, (keys[:-1], log_filtered[:-1], mask[1:]), reverse=True)
    return jnp.append(rest, last).astype(jnp.int32)


def forward_associative(
    log_initial: Array, log_transition: Array, log_likelihoods: Array, mask: Array | None = None
) -> tuple[Array, Array]:
    """As `forward`, in O(log T) steps of O(T K^3) work: for long sequences on accelerators.

    Saerkkae & Garcia-Fernandez 2021.
    """
    log_likelihoods, mask = _masked(log_likelihoods, mask)
    k = len(log_initial)
    log_moves = jnp.concatenate([jnp.broadcast_to(log_initial, (1, k, k)), _repeat(log_transition, mask)])
    scores = log_moves + log_likelihoods[:, None]
    identity = jnp.where(jnp.eye(k, dtype=bool), 0.0, -jnp.inf)
    scores = jnp.where(mask[:, None, None], scores, identity)

    def normalised(matrix, log_rows):
        total = matrix.sum(-1)
        safe = jnp.where(total > 0, total, 1.0)
        return matrix / safe[..., None], log_rows + jnp.log(total)

    def combine(first, second):
        (matrix1, log_rows1), (matrix2, log_rows2) = first, second
        largest = _finite_max(log_rows2)
        weighted = matrix1 * jnp.exp(log_rows2 - largest)[..., None, :]
        product = jnp.matmul(weighted, matrix2, precision="highest")
        return normalised(product, log_rows1 + largest)

    largest = _finite_max(scores)
    elements = normalised(jnp.exp(scores - largest), largest[..., 0])
    matrices, log_rows = jax.lax.associative_scan(combine, elements)
    return log_rows[-1, 0], jnp.log(matrices[:, 0])


def _filter(log_initial, log_transition, log_likelihoods, mask):
    """log c_t (T,), p(z_t | x_1..t) (T, K), likelihoods over their maximum (T, K), c_t (T, 1), mask (T,)."""
    log_likelihoods, mask = _masked(log_likelihoods, mask)
    transition = jnp.exp(log_transition)
    largest = _finite_max(log_likelihoods)
    likelihoods = jnp.exp(log_likelihoods - largest)

    def step(predicted, inputs):
        likelihood, real = inputs
        joint = predicted * likelihood
        scale = jnp.where(real, joint.sum(), 1.0)
        filtered = joint / jnp.where(scale > 0, scale, 1.0)
        return filtered, scale

    def scan(previous, inputs):
        predicted = previous @ transition
        filtered, scale = step(predicted, inputs)
        filtered = jnp.where(inputs[1], filtered, previous)
        return filtered, (filtered, scale)

    first, first_scale = step(jnp.exp(log_initial), (likelihoods[0], mask[0]))
    _, (filtered, scale) = jax.lax.scan(scan, first, (likelihoods[1:], mask[1:]))
    filtered, scale = jnp.concatenate([first[None], filtered]), jnp.append(first_scale, scale)
    safe = jnp.where(scale > 0, scale, 1.0)
    log_scale = jnp.where(scale > 0, jnp.log(safe), -jnp.inf) + largest[:, 0]
    return log_scale, filtered, likelihoods, safe, mask


def _masked(log_likelihoods, mask):
    if mask is None:
        return log_likelihoods, jnp.ones(len(log_likelihoods), bool)
    return jnp.where(mask[:, None], log_likelihoods, 0.0), mask


def _finite_max(a):
    """The largest of the last axis, kept, or 0 if all are -inf."""
    largest = jax.lax.stop_gradient(a.max(-1, keepdims=True))
    return jnp.where(jnp.isfinite(largest), largest, 0.0)


def _repeat(matrix, mask):
    return jnp.broadcast_to(matrix, (len(mask) - 1, *matrix.shape))
