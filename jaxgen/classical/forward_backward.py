"""Inference in a Markov chain seen through noise, from a table of emission log-likelihoods (T, K).

`forward` filters, `smooth` gives posteriors, `viterbi` the likeliest path, `posterior_sample` a random one:
each of one sequence in O(T K^2), in float32 or float64 (Rabiner 1989). `forward` and `smooth` also take many
sequences of equal length at once, which is faster than a vmap of them.

Probabilities are kept as logarithms. Scaled by their sum (Rabiner's section V.A), a state hundreds of nats
less likely than another becomes 0 and is lost, even if it is the only possible one later. A prediction is a
matrix product where that is exact, and a sum of exponentials where some state is all but unreachable, as in a
chain that moves from left to right. The smoother has no backward messages, which would overflow: it passes
posteriors back through the conditionals

    p(z_t = i | z_t+1 = j, x_1..t) = p(z_t = i | x_1..t) A_ij / p(z_t+1 = j | x_1..t)       (Kitagawa 1987),

all of which lie in [0, 1].
"""

import jax
import jax.numpy as jnp
from jax import Array


def forward(
    log_initial: Array, log_transition: Array, log_likelihoods: Array, mask: Array | None = None
) -> tuple[Array, Array]:
    """log p(x_1..T), (), and log p(z_t | x_1..t), (T, K), by one pass.

    Args:
        log_initial: (K,).
        log_transition: (K, K), from row to column.
        log_likelihoods: (T, K), log p(x_t | z_t = k), or (..., T, K) of many sequences; results have the same
            leading axes.
        mask: (T,) or (..., T) bool, False for padding at the end, which changes nothing.
    """
    tables, mask = _by_time(log_likelihoods, mask)
    inputs = log_initial, log_transition, tables, mask
    log_scale, filtered, _ = _either(inputs, lambda found: found, lambda found: found)
    return log_scale.sum(0), jnp.moveaxis(filtered, 0, -2)


def smooth(
    log_initial: Array, log_transition: Array, log_likelihoods: Array, mask: Array | None = None
) -> tuple[Array, Array, Array]:
    """log p(x), (); p(z_t | x), (T, K), 0 in padding; expected numbers of moves, (K, K). As `forward`.

    The posterior is the gradient of log p(x) in the table, and the expected moves are that in the
    logarithms of the transitions.
    """
    tables, mask = _by_time(log_likelihoods, mask)
    inputs = log_initial, log_transition, tables, mask
    after = mask[1:, ..., None]

    def products(found):
        log_scale, filtered, predicted = found
        transition, current = jnp.exp(log_transition), jnp.exp(filtered)

        def back(later, inputs):
            current, inverse, after = inputs
            ratio = later * inverse
            earlier = current * jnp.matmul(ratio, transition.T, precision="highest")
            return jnp.where(after, earlier, later), (later, jnp.where(after, ratio, 0.0))

        inputs = current[:-1], jnp.exp(-predicted), after
        first, (rest, ratios) = jax.lax.scan(back, current[-1], inputs, reverse=True)
        pairs = jnp.einsum("t...i,t...j->...ij", current[:-1], ratios, precision="highest")
        return log_scale.sum(0), jnp.concatenate([first[None], rest]), transition * pairs

    def sums(found):
        log_scale, filtered, predicted = found

        def back(carry, inputs):
            later, moves = carry
            filtered, predicted, after = inputs
            conditional = jnp.exp(filtered[..., None] + log_transition - predicted[..., None, :])
            joint = jnp.where(after[..., None], conditional * later[..., None, :], 0.0)
            return (jnp.where(after, joint.sum(-1), later), moves + joint), later

        start = jnp.exp(filtered[-1]), jnp.zeros((*filtered.shape[1:], filtered.shape[-1]), filtered.dtype)
        inputs = filtered[:-1], _finite(predicted), after
        (first, moves), rest = jax.lax.scan(back, start, inputs, reverse=True)
        return log_scale.sum(0), jnp.concatenate([first[None], rest]), moves

    log_z, posterior, moves = _either(inputs, products, sums)
    return log_z, jnp.moveaxis(jnp.where(mask[..., None], posterior, 0.0), 0, -2), moves


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
    _, log_filtered = forward(log_initial, log_transition, log_likelihoods, mask)
    _, mask = _masked(log_likelihoods, mask)
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

    def normalised(scores, log_scale):
        """Scores whose largest is 0, and what was taken from them: sums of many would lose their digits."""
        largest = _finite(jax.lax.stop_gradient(scores.max((-1, -2))))
        return scores - largest[..., None, None], log_scale + largest

    def combine(first, second):
        (a, log_a), (b, log_b) = first, second
        return normalised(_log_sum(a[..., :, :, None] + b[..., None, :, :], -2), log_a + log_b)

    start = normalised(scores, jnp.zeros(len(scores), scores.dtype))
    joint, log_scale = jax.lax.associative_scan(combine, start)
    log_total = _log_sum(joint[:, 0], -1)
    return log_scale[-1] + log_total[-1], joint[:, 0] - _finite(log_total)[:, None]


def _either(inputs, products, sums):
    """`products` of what the filter finds by matrix products if that is exact, else `sums` of what sums find.

    A product drops terms below the smallest number of the type, so it is exact to tiny^0.3 if no sum is below
    tiny^0.7 (1e-26 in float32).
    """
    initial, transition, *data = inputs
    found = _filter(_product(transition), initial, *data)
    _, filtered, predicted = found
    smallest = 0.7 * jnp.log(jnp.finfo(filtered.dtype).tiny)
    exact = (predicted > smallest).all() & jnp.isfinite(filtered.max(-1)).all()
    return jax.lax.cond(
        exact, lambda: products(found), lambda: sums(_filter(_sum(transition), initial, *data))
    )


def _filter(predict, log_initial, tables, mask):
    """log p(x_t | x_1..t-1) (T, ...), log p(z_t | x_1..t) (T, ..., K), log p(z_t+1 | x_1..t) one shorter."""

    def update(predicted, table):
        joint = predicted + table
        scale = _log_sum(joint, -1)
        return joint - _finite(scale)[..., None], scale

    def step(previous, inputs):
        table, real = inputs
        predicted = predict(previous)
        filtered, scale = update(predicted, table)
        filtered = jnp.where(real[..., None], filtered, previous)
        return filtered, (filtered, jnp.where(real, scale, 0.0), predicted)

    first, first_scale = update(log_initial, tables[0])
    _, (rest, scales, predicted) = jax.lax.scan(step, first, (tables[1:], mask[1:]))
    first_scale = jnp.where(mask[0], first_scale, 0.0)
    scales, filtered = jnp.concatenate([first_scale[None], scales]), jnp.concatenate([first[None], rest])
    return scales, filtered, predicted


def _product(log_transition):
    transition = jnp.exp(log_transition)

    def predict(filtered):
        total = jnp.matmul(jnp.exp(filtered), transition, precision="highest")
        return jnp.where(total > 0, jnp.log(jnp.where(total > 0, total, 1.0)), -jnp.inf)

    return predict


def _sum(log_transition):
    return lambda filtered: _log_sum(filtered[..., None] + log_transition, -2)


def _by_time(log_likelihoods, mask):
    """Tables with time as their first axis, 0 in padding, (T, ..., K), and the mask (T, ...)."""
    log_likelihoods, mask = _masked(log_likelihoods, mask)
    return jnp.moveaxis(log_likelihoods, -2, 0), jnp.moveaxis(mask, -1, 0)


def _masked(log_likelihoods, mask):
    if mask is None:
        return log_likelihoods, jnp.ones(log_likelihoods.shape[:-1], bool)
    return jnp.where(mask[..., None], log_likelihoods, 0.0), mask


def _log_sum(a, axis):
    """log sum exp of an axis, with gradients that are finite where terms, or all of them, are -inf."""
    largest = _finite(jax.lax.stop_gradient(a.max(axis, keepdims=True)))
    total = jnp.exp(a - largest).sum(axis)
    possible = total > 0
    log_total = jnp.log(jnp.where(possible, total, 1.0)) + largest.squeeze(axis)
    return jnp.where(possible, log_total, -jnp.inf)


def _finite(a):
    """`a`, and 0 where it is -inf: what is impossible is not normalised."""
    return jnp.where(jnp.isfinite(a), a, 0.0)


def _repeat(matrix, mask):
    return jnp.broadcast_to(matrix, (len(mask) - 1, *matrix.shape))
