"""Vector-quantised variational autoencoder, VQ-VAE (van den Oord, Vinyals & Kavukcuoglu 2017).

The encoder's output at each position, z, is replaced by the nearest of K learned vectors, and the decoder
sees only these: an example becomes a few integers. The networks minimise

    |x - g(q)|^2 + beta |z - sg(q)|^2,     q = e_i,   i = argmin_k |z - e_k|,

both means over all entries, where q passes its gradient on to z as if it were z ("straight through"). The
codebook follows the encoder by moving averages of what each vector stood for (appendix A.1 of the paper),

    n_k <- gamma n_k + (1 - gamma) count_k,   s_k <- gamma s_k + (1 - gamma) sum of its z,   e_k = s_k / n_k,

with n_k smoothed by epsilon. A vector that no z of a step is nearest to stays in place; one that
hardly any z was nearest to in a while is put onto a random one.

`sample` draws every position by itself from the frequencies its codes had in the latest steps. That ignores
how positions depend on each other, so samples are much worse than reconstructions: the prior of the paper is
an autoregressive model fitted to `encode`'s integers afterwards.

Departs from the paper: revival of unused vectors; a codebook that starts at encoded data where there is a
batch; Adam at a larger step size.
"""

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from jaxgen import keys, values
from jaxgen.arguments import checked
from jaxgen.autoencoder.networks import DenseDecoder
from jaxgen.autoencoder.vector_networks import DenseEncoder, ResidualDecoder, ResidualEncoder
from jaxgen.fields import Decay, NonNegativeFloat, PositiveInt
from jaxgen.nn import variables
from jaxgen.types import Batch, Metrics, observed


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(values.Value):
    """Hyperparameters of the VQ-VAE."""

    shape: tuple[PositiveInt, ...] = (8, 8, 1)
    """Shape of one example."""
    num_codes: PositiveInt = 64
    """Vectors in the codebook, K."""
    code_size: PositiveInt = 16
    """Dimensions of each."""
    encoder: DenseEncoder | ResidualEncoder | nn.Module = DenseEncoder()
    """Network that takes x (B, *shape) and gives z (B, *positions, code_size): a few positions, or a map."""
    decoder: DenseDecoder | ResidualDecoder | nn.Module = DenseDecoder()
    """Network that takes vectors (B, *positions, code_size) and gives data (B, *shape)."""
    commitment: NonNegativeFloat = 0.25
    """Weight of the encoder's distance to its vectors, beta."""
    decay: Decay = 0.99
    """Decay of counts and sums from one step to the next, gamma."""
    epsilon: NonNegativeFloat = 1e-5
    """What smooths the counts."""
    revive_below: NonNegativeFloat = 0.05
    """A vector with less than this fraction of the mean count is put elsewhere; 0 leaves all in place."""
    optimizer: values.Optimizer = values.Adam(1e-3)
    """Optimizer of both networks."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype of the networks; parameters, distances and the codebook stay float32."""


class State(NamedTuple):
    """What training changes. `params` has the networks and the "codebook" (K, code_size)."""

    step: Array
    key: Array
    params: Any
    opt_state: Any  # of the networks alone
    counts: Array  # (K,), n
    sums: Array  # (K, code_size), s
    frequencies: Array  # (positions, K), of each code at each position


@checked
def init(key: Array, cfg: Config, batch: Batch | None = None) -> State:
    """A fresh state; `batch`, if given, puts the codebook onto random encodings of it.

    Raises ValueError for a shape that the convolutional networks cannot take.
    """
    encoder_key, decoder_key, step_key = keys.named(key, "encoder", "decoder", "steps")
    codebook_key = keys.named(key, "codebook")
    z = jnp.zeros((1, *positions(cfg), cfg.code_size))
    trained = {
        "encoder": variables.init(_encoder(cfg), encoder_key, jnp.zeros((1, *cfg.shape))),
        "decoder": variables.init(_decoder(cfg), decoder_key, z),
    }
    if batch is None:
        bound = 1 / cfg.num_codes
        size = (cfg.num_codes, cfg.code_size)
        codebook = jax.random.uniform(codebook_key, size, jnp.float32, -bound, bound)
    else:
        z = _encode(trained, observed(batch), cfg).reshape(-1, cfg.code_size)
        codebook = jax.random.choice(codebook_key, z, (cfg.num_codes,), replace=len(z) < cfg.num_codes)
    return State(
        step=jnp.zeros((), jnp.int32),
        key=step_key,
        params={**trained, "codebook": codebook},
        opt_state=values.gradient_transformation(cfg.optimizer).init(trained),
        counts=jnp.ones(cfg.num_codes, jnp.float32),
        sums=jnp.copy(codebook),
        frequencies=jnp.full((math.prod(positions(cfg)), cfg.num_codes), 1 / cfg.num_codes, jnp.float32),
    )


@checked
def loss(params: Any, batch: Batch, key: Array, cfg: Config) -> tuple[Array, Metrics]:
    """Mean squared error plus commitment; the codebook's gradient is zero."""
    value, (metrics, *_) = _objective(params, batch, key, cfg)
    return value, metrics


@checked
def train_step(state: State, batch: Batch, cfg: Config) -> tuple[State, Metrics]:
    """One step on `batch["image"]` or `batch["x"]`, (B, *shape): Adam, then the moving averages."""
    key = jax.random.fold_in(state.key, state.step)
    grads, (metrics, z, indices, after) = jax.grad(_objective, has_aux=True)(state.params, batch, key, cfg)
    trained = _networks_of(state.params)
    optimizer = values.gradient_transformation(cfg.optimizer)
    updates, opt_state = optimizer.update(_networks_of(grads), state.opt_state, trained)
    trained = variables.with_stats(optax.apply_updates(trained, updates), after)
    used = jax.nn.one_hot(indices.reshape(len(indices), -1), cfg.num_codes, dtype=jnp.float32)
    counts, sums = update_statistics(state.counts, state.sums, z, used, cfg)
    counts, sums, dead = revive(keys.named(key, "revival"), counts, sums, z, cfg)
    # Smoothing would draw what hardly any z is nearest to to 0.
    moved, vectors = (used > 0).any((0, 1)) | dead, codebook(counts, sums, cfg)
    decay = jnp.minimum(cfg.decay, state.step / (state.step + 1)).astype(jnp.float32)
    state = State(
        step=state.step + 1,
        key=state.key,
        params={**trained, "codebook": jnp.where(moved[:, None], vectors, state.params["codebook"])},
        opt_state=opt_state,
        counts=counts,
        sums=sums,
        frequencies=decay * state.frequencies + (1 - decay) * used.mean(0),
    )
    return state, {
        **metrics,
        "perplexity": perplexity(used.mean((0, 1))),
        "revived": dead.sum().astype(jnp.float32),
    }


@checked
def sample(key: Array, state: State, n: int, cfg: Config) -> Array:
    """n decoded draws, (n, *shape), of codes independent at each position, with their frequencies."""
    logits = jnp.log(state.frequencies)
    indices = jax.random.categorical(key, logits, shape=(n, len(logits)))
    return decode(state, indices.reshape(n, *positions(cfg)), cfg)


@checked
def encode(state: State, x: Array, cfg: Config) -> Array:
    """Codes of data x (B, *shape): int32 (B, num_positions), or (B, h, w) from convolutions."""
    return nearest(to_codes(state, x, cfg), state.params["codebook"])


@checked
def decode(state: State, indices: Array, cfg: Config) -> Array:
    """Data of codes as `encode` gives them, (B, *shape)."""
    return _decode(state.params, state.params["codebook"][indices], cfg)


def to_codes(state: State, x: Array, cfg: Config) -> Array:
    """Real-valued codes of data x (B, *shape): z before it is quantised, (B, *positions, code_size)."""
    return _encode(state.params, x, cfg)


def from_codes(state: State, codes: Array, cfg: Config) -> Array:
    """Data of codes as `to_codes` gives them, (B, *shape): they are quantised and decoded."""
    return decode(state, nearest(codes, state.params["codebook"]), cfg)


@checked
def reconstruct(state: State, x: Array, cfg: Config) -> Array:
    """x encoded and decoded, (B, *shape)."""
    return decode(state, encode(state, x, cfg), cfg)


def positions(cfg: Config) -> tuple[int, ...]:
    """Shape of an example's codes. Raises ValueError for an encoder that gives no vectors of code_size."""
    x = jnp.zeros((1, *cfg.shape))
    z: Any = jax.eval_shape(lambda: _encoder(cfg).init_with_output(jax.random.key(0), x)[0])
    if z.ndim < 3 or z.shape[-1] != cfg.code_size:
        raise ValueError(f"the encoder must give (B, *positions, {cfg.code_size}), not (B, *{z.shape[1:]})")
    return z.shape[1:-1]


def nearest(z: Array, codebook: Array) -> Array:
    """Index of the vector of `codebook` (K, D) nearest to each of z (..., D), int32 (...)."""
    centre = codebook.mean(0)  # far from 0 the products lose the digits that tell vectors apart
    z, codebook = z - centre, codebook - centre
    product = jnp.matmul(z, codebook.T, precision="highest")
    return jnp.argmin(0.5 * (codebook**2).sum(1) - product, -1).astype(jnp.int32)


def straight_through(z: Array, quantised: Array) -> Array:
    """The values of `quantised` with the gradient of z."""
    return z + lax.stop_gradient(quantised - z)


def update_statistics(counts: Array, sums: Array, z: Array, used: Array, cfg: Config) -> tuple[Array, Array]:
    """Moving averages (K,) and (K, D) after encodings z (..., D) whose codes `used` (..., K) has one-hot."""
    z, used = z.reshape(-1, cfg.code_size), used.reshape(-1, cfg.num_codes)
    counts = cfg.decay * counts + (1 - cfg.decay) * used.sum(0)
    return counts, cfg.decay * sums + (1 - cfg.decay) * jnp.matmul(used.T, z, precision="highest")


def revive(key: Array, counts: Array, sums: Array, z: Array, cfg: Config) -> tuple[Array, Array, Array]:
    """Counts and sums with those of hardly used vectors as if each stood for a random z, and which, (K,)."""
    z, mean = z.reshape(-1, cfg.code_size), counts.mean()
    dead = counts < cfg.revive_below * mean
    fresh = z[jax.random.randint(key, (cfg.num_codes,), 0, len(z))]
    counts, sums = jnp.where(dead, mean, counts), jnp.where(dead[:, None], mean * fresh, sums)
    return counts, sums, dead


def codebook(counts: Array, sums: Array, cfg: Config) -> Array:
    """Vectors (K, D) of the statistics: sums over counts, these smoothed without changing their total."""
    total = counts.sum()
    smoothed = (counts + cfg.epsilon) / (total + cfg.num_codes * cfg.epsilon) * total
    return sums / smoothed[:, None]


def perplexity(frequencies: Array) -> Array:
    """exp of the entropy of frequencies (..., K): K if all codes are used alike, 1 if only one is."""
    return jnp.exp(jax.scipy.special.entr(frequencies).sum(-1))


def _objective(
    params: Any, batch: Batch, key: Array, cfg: Config
) -> tuple[Array, tuple[Metrics, Array, Array, dict[str, Any]]]:
    """The loss, and its metrics, encodings (B, *positions, D), codes (B, *positions), and the networks with
    the statistics that they leave."""
    x, (encoder_key, decoder_key) = observed(batch), keys.named(key, "encoder", "decoder")
    z, encoder = variables.train(_encoder(cfg), params["encoder"], encoder_key, x)
    z = jnp.float32(z)
    vectors = lax.stop_gradient(params["codebook"])
    indices = nearest(lax.stop_gradient(z), vectors)
    quantised = vectors[indices]
    passed = straight_through(z, quantised)
    output, decoder = variables.train(_decoder(cfg), params["decoder"], decoder_key, passed)
    mse = ((jnp.float32(output) - x) ** 2).mean()
    commitment = ((z - quantised) ** 2).mean()
    value = mse + cfg.commitment * commitment
    metrics = {"loss": value, "mse": mse, "commitment": commitment}
    return value, (metrics, z, indices, {"encoder": encoder, "decoder": decoder})


def _networks_of(params: Any) -> dict[str, Any]:
    """Without the codebook, which no optimizer touches."""
    return {"encoder": params["encoder"], "decoder": params["decoder"]}


def _encode(params: Any, x: Array, cfg: Config) -> Array:
    return jnp.float32(variables.apply(_encoder(cfg), params["encoder"], x))


def _decode(params: Any, z: Array, cfg: Config) -> Array:
    return jnp.float32(variables.apply(_decoder(cfg), params["decoder"], z))


def _encoder(cfg: Config) -> nn.Module:
    return values.filled(cfg.encoder, num_outputs=cfg.code_size, dtype=cfg.dtype)


def _decoder(cfg: Config) -> nn.Module:
    return values.filled(cfg.decoder, shape=cfg.shape, dtype=cfg.dtype)
