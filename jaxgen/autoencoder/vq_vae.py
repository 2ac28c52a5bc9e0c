"""Vector-quantised variational autoencoder, VQ-VAE (van den Oord, Vinyals & Kavukcuoglu 2017).

The encoder's output at each position, z, is replaced by the nearest of K learned vectors, and the decoder
sees only these: an example becomes a few integers. The networks minimise

    |x - g(q)|^2 + beta |z - sg(q)|^2,     q = e_i,   i = argmin_k |z - e_k|,

both means over all entries, where q passes its gradient on to z as if it were z ("straight through"). The
codebook follows the encoder by moving averages of what each vector stood for (appendix A.1 of the paper),

    n_k <- gamma n_k + (1 - gamma) count_k,   s_k <- gamma s_k + (1 - gamma) sum of its z,   e_k = s_k / n_k,

with n_k smoothed by epsilon. A vector that hardly any z is nearest to is put onto a random one.

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

from jaxgen.autoencoder.ae import halved
from jaxgen.nn import conv
from jaxgen.types import Batch, Metrics, observed


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Hyperparameters of the VQ-VAE."""

    shape: tuple[int, ...] = (8, 8, 1)
    """Shape of one example."""
    num_codes: int = 64
    """Vectors in the codebook, K."""
    code_size: int = 16
    """Dimensions of each."""
    network: Literal["mlp", "conv"] = "mlp"
    """Fully connected, or strided convolutions, each of which halves height and width."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the encoder's layers (mlp) or its channels (conv); the decoder mirrors them."""
    num_positions: int = 8
    """Codes an example becomes (mlp); convolutions have one for each position of the smallest map."""
    num_residual_blocks: int = 2
    """Residual blocks on the smallest map, in encoder and decoder each (conv)."""
    residual_channels: int = 32
    """Channels inside a residual block (conv)."""
    commitment: float = 0.25
    """beta, the weight of the encoder's distance to its vectors."""
    decay: float = 0.99
    """gamma, of counts and sums from one step to the next."""
    epsilon: float = 1e-5
    """What smooths the counts."""
    revive_below: float = 0.05
    """A vector with less than this fraction of the mean count is put elsewhere; 0 leaves all in place."""
    learning_rate: float = 1e-3
    """Adam's step size."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype of the networks; parameters, distances and the codebook stay float32."""


class DenseEncoder(nn.Module):
    """(B, *shape) -> (B, num_positions, code_size)."""

    cfg: Config

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = x.reshape(x.shape[0], -1)
        for width in self.cfg.hidden:
            x = nn.relu(nn.Dense(width, dtype=self.cfg.dtype)(x))
        x = nn.Dense(self.cfg.num_positions * self.cfg.code_size, dtype=self.cfg.dtype)(x)
        return x.reshape(-1, self.cfg.num_positions, self.cfg.code_size)


class DenseDecoder(nn.Module):
    """(B, num_positions, code_size) -> (B, *shape)."""

    cfg: Config

    @nn.compact
    def __call__(self, z: Array) -> Array:
        x = z.reshape(z.shape[0], -1)
        for width in reversed(self.cfg.hidden):
            x = nn.relu(nn.Dense(width, dtype=self.cfg.dtype)(x))
        x = nn.Dense(math.prod(self.cfg.shape), dtype=self.cfg.dtype, name="out")(x)
        return x.reshape(-1, *self.cfg.shape)


class ConvEncoder(nn.Module):
    """(B, H, W, C) -> (B, h, w, code_size): 4x4 convolutions of stride 2, then residual blocks."""

    cfg: Config

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for channels in self.cfg.hidden:
            x = conv.Conv(channels, (4, 4), (2, 2), padding=((1, 1), (1, 1)), dtype=self.cfg.dtype)(x)
            x = nn.relu(x)
        x = ResidualStack(self.cfg)(x)
        return conv.Conv(self.cfg.code_size, (1, 1), dtype=self.cfg.dtype)(x)


class ConvDecoder(nn.Module):
    """(B, h, w, code_size) -> (B, H, W, C): residual blocks, then 4x4 transposed convolutions of stride 2."""

    cfg: Config

    @nn.compact
    def __call__(self, z: Array) -> Array:
        *widths, last = self.cfg.hidden
        x = ResidualStack(self.cfg)(conv.Conv(last, (3, 3), dtype=self.cfg.dtype)(z))
        for channels in reversed(widths):
            x = nn.relu(conv.ConvTranspose(channels, (4, 4), (2, 2), dtype=self.cfg.dtype)(x))
        return conv.ConvTranspose(self.cfg.shape[2], (4, 4), (2, 2), dtype=self.cfg.dtype, name="out")(x)


class ResidualStack(nn.Module):
    """x + Conv1x1(relu(Conv3x3(relu(x)))), as often as the config says; (B, h, w, C) to the same."""

    cfg: Config

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for _ in range(self.cfg.num_residual_blocks):
            y = conv.Conv(self.cfg.residual_channels, (3, 3), dtype=self.cfg.dtype)(nn.relu(x))
            x = x + conv.Conv(x.shape[-1], (1, 1), dtype=self.cfg.dtype)(nn.relu(y))
        return nn.relu(x)


class State(NamedTuple):
    """What training changes. `params` has the networks and the "codebook" (K, code_size)."""

    step: Array
    key: Array
    params: Any
    opt_state: Any  # of the networks alone
    counts: Array  # (K,), n
    sums: Array  # (K, code_size), s
    frequencies: Array  # (positions, K), of each code at each position


def optimizer(cfg: Config) -> optax.GradientTransformation:
    """Adam, for the networks."""
    return optax.adam(cfg.learning_rate)


def init(key: Array, cfg: Config, batch: Batch | None = None) -> State:
    """A fresh state; `batch`, if given, puts the codebook onto random encodings of it.

    Raises ValueError for a shape the convolutional networks cannot halve as often as they must.
    """
    encoder_key, decoder_key, codebook_key, step_key = jax.random.split(key, 4)
    encoder, decoder = _networks(cfg)
    networks = {
        "encoder": encoder.init(encoder_key, jnp.zeros((1, *cfg.shape)))["params"],
        "decoder": decoder.init(decoder_key, jnp.zeros((1, *positions(cfg), cfg.code_size)))["params"],
    }
    if batch is None:
        bound = 1 / cfg.num_codes
        size = (cfg.num_codes, cfg.code_size)
        codebook = jax.random.uniform(codebook_key, size, minval=-bound, maxval=bound)
    else:
        z = _encode(networks, observed(batch), cfg).reshape(-1, cfg.code_size)
        codebook = jax.random.choice(codebook_key, z, (cfg.num_codes,), replace=len(z) < cfg.num_codes)
    return State(
        step=jnp.zeros((), jnp.int32),
        key=step_key,
        params={**networks, "codebook": codebook},
        opt_state=optimizer(cfg).init(networks),
        counts=jnp.ones(cfg.num_codes),
        sums=jnp.copy(codebook),
        frequencies=jnp.full((math.prod(positions(cfg)), cfg.num_codes), 1 / cfg.num_codes, jnp.float32),
    )


def loss(params: Any, batch: Batch, key: Array, cfg: Config) -> tuple[Array, Metrics]:
    """Mean squared error plus commitment. `key` is unused; the codebook's gradient is zero."""
    del key
    value, (metrics, _, _) = _objective(params, batch, cfg)
    return value, metrics


def train_step(state: State, batch: Batch, cfg: Config) -> tuple[State, Metrics]:
    """One step on `batch["image"]` or `batch["x"]`, (B, *shape): Adam, then the moving averages."""
    key = jax.random.fold_in(state.key, state.step)
    grads, (metrics, z, indices) = jax.grad(_objective, has_aux=True)(state.params, batch, cfg)
    networks = _networks_of(state.params)
    updates, opt_state = optimizer(cfg).update(_networks_of(grads), state.opt_state, networks)
    networks = optax.apply_updates(networks, updates)
    used = jax.nn.one_hot(indices.reshape(len(indices), -1), cfg.num_codes)
    counts, sums = update_statistics(state.counts, state.sums, z, used, cfg)
    counts, sums, revived = revive(key, counts, sums, z, cfg)
    decay = jnp.minimum(cfg.decay, state.step / (state.step + 1))
    state = State(
        step=state.step + 1,
        key=state.key,
        params={**networks, "codebook": codebook(counts, sums, cfg)},
        opt_state=opt_state,
        counts=counts,
        sums=sums,
        frequencies=decay * state.frequencies + (1 - decay) * used.mean(0),
    )
    return state, {**metrics, "perplexity": perplexity(used.mean((0, 1))), "revived": revived}


def sample(key: Array, state: State, n: int, cfg: Config) -> Array:
    """n decoded draws, (n, *shape), of codes independent at each position, with their frequencies."""
    logits = jnp.log(state.frequencies)
    indices = jax.random.categorical(key, logits, shape=(n, len(logits)))
    return decode(state, indices.reshape(n, *positions(cfg)), cfg)


def encode(state: State, x: Array, cfg: Config) -> Array:
    """Codes of data x (B, *shape): int32 (B, num_positions), or (B, h, w) from convolutions."""
    return nearest(encodings(state, x, cfg), state.params["codebook"])


def encodings(state: State, x: Array, cfg: Config) -> Array:
    """What becomes the codes of data x (B, *shape): z, float32 (B, *positions, code_size)."""
    return _encode(state.params, x, cfg)


def decode(state: State, indices: Array, cfg: Config) -> Array:
    """Data of codes as `encode` gives them, (B, *shape)."""
    return _decode(state.params, state.params["codebook"][indices], cfg)


def to_codes(state: State, x: Array, cfg: Config) -> Array:
    """Real-valued codes of data x (B, *shape), (B, *positions, code_size), before they are quantised."""
    return encodings(state, x, cfg)


def from_codes(state: State, z: Array, cfg: Config) -> Array:
    """Data of codes as `to_codes` gives them, (B, *shape)."""
    return decode(state, nearest(z, state.params["codebook"]), cfg)


def reconstruct(state: State, x: Array, cfg: Config) -> Array:
    """x encoded and decoded, (B, *shape)."""
    return decode(state, encode(state, x, cfg), cfg)


def positions(cfg: Config) -> tuple[int, ...]:
    """Shape of an example's codes."""
    return halved(cfg.shape, len(cfg.hidden)) if cfg.network == "conv" else (cfg.num_positions,)


def nearest(z: Array, codebook: Array) -> Array:
    """Index of the vector of `codebook` (K, D) nearest to each of z (..., D), int32 (...)."""
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
    """Counts and sums with those of hardly used vectors as if each stood for a random z, and their number."""
    z, mean = z.reshape(-1, cfg.code_size), counts.mean()
    dead = counts < cfg.revive_below * mean
    fresh = z[jax.random.randint(key, (cfg.num_codes,), 0, len(z))]
    counts, sums = jnp.where(dead, mean, counts), jnp.where(dead[:, None], mean * fresh, sums)
    return counts, sums, dead.sum().astype(jnp.float32)


def codebook(counts: Array, sums: Array, cfg: Config) -> Array:
    """Vectors (K, D) of the statistics: sums over counts, these smoothed without changing their total."""
    total = counts.sum()
    smoothed = (counts + cfg.epsilon) / (total + cfg.num_codes * cfg.epsilon) * total
    return sums / smoothed[:, None]


def perplexity(frequencies: Array) -> Array:
    """exp of the entropy of frequencies (..., K): K if all codes are used alike, 1 if only one is."""
    return jnp.exp(jax.scipy.special.entr(frequencies).sum(-1))


def _objective(params: Any, batch: Batch, cfg: Config) -> tuple[Array, tuple[Metrics, Array, Array]]:
    """The loss, and its metrics, encodings (B, *positions, D) and codes (B, *positions)."""
    x = observed(batch)
    z = _encode(params, x, cfg)
    vectors = lax.stop_gradient(params["codebook"])
    indices = nearest(lax.stop_gradient(z), vectors)
    quantised = vectors[indices]
    mse = ((_decode(params, straight_through(z, quantised), cfg) - x) ** 2).mean()
    commitment = ((z - quantised) ** 2).mean()
    value = mse + cfg.commitment * commitment
    return value, ({"loss": value, "mse": mse, "commitment": commitment}, z, indices)


def _networks_of(params: Any) -> dict[str, Any]:
    """Without the codebook, which no optimizer touches."""
    return {"encoder": params["encoder"], "decoder": params["decoder"]}


def _encode(params: Any, x: Array, cfg: Config) -> Array:
    return jnp.float32(_networks(cfg)[0].apply({"params": params["encoder"]}, x))


def _decode(params: Any, z: Array, cfg: Config) -> Array:
    return jnp.float32(_networks(cfg)[1].apply({"params": params["decoder"]}, z))


def _networks(cfg: Config) -> tuple[nn.Module, nn.Module]:
    if cfg.network == "conv":
        halved(cfg.shape, len(cfg.hidden))
        return ConvEncoder(cfg), ConvDecoder(cfg)
    return DenseEncoder(cfg), DenseDecoder(cfg)
