"""What is checked of every autoregressive model: order, normalisation, and that the cache changes nothing."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.autoregressive import sequential


def initial(family, cfg, scale=0.3, seed=7):
    """A State whose parameters, averaged ones too, have noise added: many a layer begins as zeros."""
    state = jax.jit(family.init, static_argnums=1)(jax.random.key(0), cfg)
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda a: a + jnp.float32(scale * rng.normal(size=a.shape)), state.params)
    return state._replace(params=params, ema=params)


def dependence(state, cfg, x, label=None):
    """Whether output t of some example depends on symbol s, bool (T, T) by [t, s], by the Jacobian.

    It is of the likelihood's parameters by what the network reads, summed in size over examples and numbers.
    """
    network, likelihood = sequential.network(cfg), sequential.likelihood(cfg)
    inputs = likelihood.inputs(sequential.symbols(x, cfg))
    context = () if label is None else (jax.nn.one_hot(jnp.full(len(x), label), cfg.num_classes),)

    def outputs(inputs, context):
        return network.apply({"params": state.ema}, inputs[None], *(c[None] for c in context))[0][0]

    jacobian = jax.jit(jax.vmap(jax.jacrev(outputs)))(inputs, context)  # (B, T, K, T, F)
    return np.asarray(jnp.abs(jacobian).sum((0, 2, 4)) > 0)


def earlier(num_symbols):
    """Whether symbol s is before t, bool (T, T) by [t, s]."""
    return np.tri(num_symbols, k=-1, dtype=bool)


def assert_normalized(family, state, cfg, symbols, label=None):
    """The probabilities of all data made of these symbols sum to 1, and they differ."""
    every = itertools.product(symbols, repeat=int(np.prod(cfg.shape)))
    x = jnp.asarray(list(every)).reshape(-1, *cfg.shape)
    log_p = jax.jit(lambda state: family.log_prob(state, x, cfg, label))(state)
    np.testing.assert_allclose(np.exp(np.asarray(log_p, np.float64)).sum(), 1.0, rtol=1e-4)
    assert np.std(log_p) > 0.1


def assert_cached_equals_full(family, state, cfg, x, label=None, tolerance=1e-5):
    """Position by position, the numbers that `advance` gives are those of the full pass."""
    network, likelihood = sequential.network(cfg), sequential.likelihood(cfg)
    x = sequential.symbols(x, cfg)

    @jax.jit
    def both(state, x):
        cache = family.begin(state, len(x), cfg, label)
        full, _ = network.apply({"params": state.ema}, likelihood.inputs(x), *cache.context)
        # At the beginning any symbol will do: it is to be ignored.
        before = jnp.concatenate([x[:, -1:], x[:, :-1]], 1).swapaxes(0, 1)
        step = lambda cache, symbol: family.advance(state, cache, symbol, cfg)
        return full, jax.lax.scan(step, cache, before)[1].swapaxes(0, 1)

    full, cached = both(state, x)
    np.testing.assert_allclose(cached, full, rtol=tolerance, atol=tolerance)
    assert np.std(full) > 0.01


def assert_samples_equal_a_naive_loop(family, state, cfg, n=3, label=None, **options):
    """The samples of a loop that runs the whole network for every symbol are the same, from the same key."""
    key = jax.random.key(3)
    sample = functools.partial(family.sample, n=n, cfg=cfg, label=label, **options)
    drawn = jax.jit(lambda state: sample(key, state))(state)
    noise_key = sequential.keys.named(key, "noise")
    network, likelihood = sequential.network(cfg), sequential.likelihood(cfg)
    context = family.begin(state, n, cfg, label).context

    @jax.jit
    def one(x, t):
        outputs, _ = network.apply({"params": state.ema}, likelihood.inputs(x), *context)
        return likelihood.sample(jax.random.fold_in(noise_key, t), {}, outputs[:, t])

    x = jnp.zeros_like(sequential.symbols(drawn, cfg))
    for t in range(x.shape[1]):
        x = x.at[:, t].set(one(x, t).astype(x.dtype))
    np.testing.assert_allclose(drawn.reshape(x.shape), x, atol=1e-6)


def assert_prefix_is_kept(family, state, cfg, prefix, **options):
    """Samples begin with the prefix, and go on in more than one way."""
    n = len(prefix)
    sample = lambda key: family.sample(key, state, n, cfg, prefix=prefix, **options)
    drawn = np.asarray(jax.jit(jax.vmap(sample))(jax.random.split(jax.random.key(0), 8)))
    length = prefix.shape[1]
    np.testing.assert_array_equal(drawn[:, :, :length], np.broadcast_to(prefix, (8, *prefix.shape)))
    assert (drawn[1:, :, length:] != drawn[0, :, length:]).any()
