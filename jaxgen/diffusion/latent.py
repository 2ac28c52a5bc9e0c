"""Latent diffusion (Rombach, Blattmann, Lorenz, Esser & Ommer 2022).

An autoencoder, the first stage, turns data into smaller codes and back, and a diffusion model is trained on
these:

    z = k E(x),     L = E |eps - eps(z_t, t)|^2,     x = D(z / k),     k = 1 / std of the codes,

so that details which only cost work are left to the autoencoder. The first stage is any of `autoencoder`: of
a VAE the codes are posterior means, (num_latents,), of a VQ-VAE they are the encodings before they are
quantised, (h, w, code_size) maps for convolutions, and decoding quantises them.

It is trained beforehand, by itself, and stays as it is:

    first = jaxgen.fit(vq_vae, first_cfg, train, ...)
    cfg = latent.config(first_cfg, network="unet")
    start = latent.around(key, first, cfg, train[:2000])
    state = jaxgen.fit(latent, cfg, train, ..., start=start)

`init` alone puts the model around a fresh, untrained one. What is trained is `ddpm`, on `prior(cfg)` and the
codes that `encode` gives: its other functions take `ddpm_state(state)`.

Departs from the paper: posterior means in place of draws, and first stages without a discriminator.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen.autoencoder import ae, vae, vq_vae
from jaxgen.diffusion import ddpm
from jaxgen.types import Batch, Metrics, observed


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(ddpm.Config):
    """Hyperparameters of the diffusion of codes, those of `ddpm`, and the first stage."""

    first: Literal["ae", "vae", "vq_vae"] = "vae"
    """Family of the first stage."""
    first_options: tuple[tuple[str, Any], ...] = ()
    """Fields of the first stage's Config, with their values, that are not its defaults."""
    network: Literal["unet", "dit", "mlp"] = "mlp"
    """U-Net or transformer for codes that are maps, or fully connected."""
    levels: int = 0
    """Codes are real numbers: 0."""


class State(NamedTuple):
    """What training changes, and the first stage, which it does not."""

    step: Array
    key: Array
    params: Any  # of the diffusion of codes, as what follows
    opt_state: Any
    ema: Any
    first: Any  # the first stage's State, without its optimizer's
    scale: Array  # (), k


class FirstStage(NamedTuple):
    """A family, and its functions between data and real-valued codes."""

    family: Any
    encode: Callable[..., Array]
    decode: Callable[..., Array]


def _decode_nearest(state: vq_vae.State, z: Array, cfg: vq_vae.Config) -> Array:
    return vq_vae.decode(state, vq_vae.nearest(z, state.params["codebook"]), cfg)


FIRST = {
    "ae": FirstStage(ae, ae.encode, ae.decode),
    "vae": FirstStage(vae, vae.encode, vae.decode),
    "vq_vae": FirstStage(vq_vae, vq_vae.to_codes, _decode_nearest),
}


def config(first_cfg: Any, **options: Any) -> Config:
    """The Config of a model with a first stage of `first_cfg`; `options` are its other fields."""
    name: Any = type(first_cfg).__module__.rsplit(".", 1)[-1]
    if name not in FIRST or not isinstance(first_cfg, FIRST[name].family.Config):
        raise ValueError(f"{type(first_cfg)} configures no first stage: there are {', '.join(FIRST)}")
    changed = {
        field.name: getattr(first_cfg, field.name)
        for field in dataclasses.fields(first_cfg)
        if field.name != "shape" and getattr(first_cfg, field.name) != field.default
    }
    return Config(shape=first_cfg.shape, first=name, first_options=tuple(changed.items()), **options)


def first_config(cfg: Config) -> Any:
    """The Config of the first stage. Raises ValueError for options that it does not have."""
    try:
        return FIRST[cfg.first].family.Config(shape=cfg.shape, **dict(cfg.first_options))
    except TypeError as error:
        raise ValueError(f"first_options do not fit the first stage {cfg.first}: {error}") from None


def prior(cfg: Config) -> ddpm.Config:
    """The Config of the diffusion of codes."""
    names = [field.name for field in dataclasses.fields(ddpm.Config)]
    plain = {name: getattr(cfg, name) for name in names}
    return ddpm.Config(**{**plain, "shape": code_shape(cfg), "flip": False})


@functools.cache
def code_shape(cfg: Config) -> tuple[int, ...]:
    """Shape of an example's codes."""
    family, encode, _ = FIRST[cfg.first]
    first_cfg = first_config(cfg)

    def codes():
        return encode(family.init(jax.random.key(0), first_cfg), jnp.zeros((1, *cfg.shape)), first_cfg)

    return jax.eval_shape(codes).shape[1:]


def init(key: Array, cfg: Config, batch: Batch | None = None) -> State:
    """A state around a fresh first stage; `batch`, if given, initialises that and sets the scale.

    Raises ValueError for a shape that one of the networks cannot take, and options that do not go together.
    """
    first_key, key = jax.random.split(key)
    return around(key, FIRST[cfg.first].family.init(first_key, first_config(cfg), batch), cfg, batch)


def around(key: Array, first: Any, cfg: Config, batch: Batch | None = None) -> State:
    """A fresh state around a State of the first stage; the codes of `batch`, if given, set the scale.

    Raises ValueError as `init` does.
    """
    _check(cfg)
    fresh = ddpm.init(key, prior(cfg))
    state = State(*fresh, first=first._replace(opt_state=()), scale=jnp.ones(()))
    return state if batch is None else state._replace(scale=1 / encode(state, observed(batch), cfg).std())


def train_step(state: State, batch: Batch, cfg: Config) -> tuple[State, Metrics]:
    """One step of `ddpm` on the codes of `batch["image"]` or `batch["x"]`, (B, *shape).

    `batch["label"]` (B,) is needed if conditional.
    """
    x = observed(batch)
    if cfg.flip:
        # ddpm splits the key of the step in five.
        key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), 5)
        mirrored = jax.random.bernoulli(key, 0.5, (x.shape[0], 1, 1, 1))
        x = jnp.where(mirrored, x[:, :, ::-1], x)
    codes = {**batch, "image": encode(state, x, cfg)}
    after, metrics = ddpm.train_step(ddpm_state(state), codes, prior(cfg))
    return State(*after, state.first, state.scale), metrics


def sample(
    key: Array, state: State, n: int, cfg: Config, label: Array | int | None = None, **options: Any
) -> Any:
    """n draws, (n, *shape): codes drawn as `ddpm.sample` does, by its options, and decoded.

    With `frames` also as many states on the way, decoded likewise, (frames, n, *shape).
    """
    codes = ddpm.sample(key, ddpm_state(state), n, prior(cfg), label, **options)
    if not options.get("frames"):
        return decode(state, codes, cfg)
    codes, path = codes
    return decode(state, codes, cfg), jax.lax.map(lambda codes: decode(state, codes, cfg), path)


def encode(state: State, x: Array, cfg: Config) -> Array:
    """Scaled codes of data x (B, *shape), (B, *code_shape)."""
    return state.scale * FIRST[cfg.first].encode(state.first, x, first_config(cfg))


def decode(state: State, z: Array, cfg: Config) -> Array:
    """Data of codes z as `encode` gives them, (B, *shape)."""
    return FIRST[cfg.first].decode(state.first, z / state.scale, first_config(cfg))


def reconstruct(state: State, x: Array, cfg: Config) -> Array:
    """x encoded and decoded, (B, *shape): no sample can be better than this."""
    return decode(state, encode(state, x, cfg), cfg)


def ddpm_state(state: State) -> ddpm.State:
    """The State of the diffusion of codes."""
    return ddpm.State(*state[: len(ddpm.State._fields)])


def _check(cfg: Config) -> None:
    if cfg.levels:
        raise ValueError("codes are real numbers, without levels: leave levels at 0")
    if cfg.flip and len(cfg.shape) != 3:
        raise ValueError(f"only images can be mirrored, got {cfg.shape}: turn flip off")
    if getattr(first_config(cfg), "conditional", False):
        raise ValueError("the first stage sees no labels: give them to the diffusion, with conditional")
