"""Latent diffusion (Rombach, Blattmann, Lorenz, Esser & Ommer 2022).

An autoencoder, the first stage, turns data into smaller codes and back, and a diffusion model is trained on
these:

    z = k E(x),     L = E |eps - eps(z_t, t)|^2,     x = D(z / k),     k = 1 / std of the codes,

so that details which only cost work are left to the autoencoder. The first stage is any family with
`to_codes` and `from_codes`: of a VAE the codes are posterior means, (num_latents,), of a VQ-VAE they are the
encodings before they are quantised, (h, w, code_size) maps for convolutions, and decoding quantises them.

It is trained beforehand, by itself, and stays as it is:

    first = jaxgen.fit(vq_vae, first_cfg, train, ...)
    cfg = latent.Config(shape=train.shape, first=first_cfg, prior=ddpm.Config(network=UNet()))
    start = latent.around(key, first, cfg, train[:2000])
    state = jaxgen.fit(latent, cfg, train, ..., start=start)

`init` alone puts the model around a fresh, untrained one. What is trained is `ddpm`, on `prior(cfg)` and the
codes that `encode` gives: its other functions take `ddpm_state(state)`.

Departs from the paper: posterior means in place of draws, and first stages without a discriminator.
"""

import dataclasses
import functools
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen import keys, types, values
from jaxgen.arguments import checked
from jaxgen.autoencoder import ae, vae, vq_vae
from jaxgen.diffusion import ddpm, networks
from jaxgen.fields import NonNegativeInt, PositiveInt
from jaxgen.labels import Label
from jaxgen.types import Batch, Metrics, observed


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(values.Value):
    """A first stage, and the diffusion of its codes."""

    shape: tuple[PositiveInt, ...] = (8, 8, 1)
    """Shape of one example."""
    num_classes: NonNegativeInt = 0
    """Number of labels of the data; 0 if they have none."""
    first: vae.Config | ae.Config | vq_vae.Config | Any = vae.Config()
    """The first stage: the Config of a family with `to_codes` and `from_codes`, whose shape is filled in."""
    prior: ddpm.Config = ddpm.Config(network=networks.MLP())
    """The diffusion of codes, whose shape, number of classes and levels, none, are filled in."""
    flip: bool = False
    """Mirror half of the training pictures left to right, before they are encoded."""


class State(NamedTuple):
    """What training changes, and the first stage, which it does not."""

    step: Array
    key: Array
    params: Any  # of the diffusion of codes, as what follows
    opt_state: Any
    ema: Any
    first: Any  # the first stage's State, without its optimizer's
    scale: Array  # (), k


def from_data(dataset: Any, cfg: Config) -> Config:
    """The config whose first stage has the facts of a data set too."""
    first_cfg = types.from_data(family_of(cfg.first), dataset, cfg.first)
    return dataclasses.replace(types.shape_to(dataset, cfg), first=first_cfg)


def family_of(first_cfg: Any) -> Any:
    """The family of a first stage's Config. Raises ValueError for one that has no codes."""
    family = sys.modules[type(first_cfg).__module__]
    if not (hasattr(family, "to_codes") and hasattr(family, "from_codes")):
        raise ValueError(
            f"{type(first_cfg).__module__} configures no first stage: it has no to_codes and from_codes, as"
            " jaxgen.autoencoder.vae has"
        )
    return family


def first_config(cfg: Config) -> Any:
    """The Config of the first stage, with the shape of the data."""
    return dataclasses.replace(cfg.first, shape=cfg.shape)


@functools.cache
def prior(cfg: Config) -> ddpm.Config:
    """The Config of the diffusion of codes, with their shape."""
    return dataclasses.replace(cfg.prior, shape=code_shape(cfg), num_classes=cfg.num_classes, levels=0)


def code_shape(cfg: Config) -> tuple[int, ...]:
    """Shape of an example's codes."""
    family, first_cfg = family_of(cfg.first), first_config(cfg)

    def codes():
        return family.to_codes(
            family.init(jax.random.key(0), first_cfg), jnp.zeros((1, *cfg.shape)), first_cfg
        )

    return jax.eval_shape(codes).shape[1:]


@checked
def init(key: Array, cfg: Config, batch: Batch | None = None) -> State:
    """A state around a fresh first stage; `batch`, if given, initialises that and sets the scale.

    Raises ValueError for a shape that one of the networks cannot take, and options that do not go together.
    """
    first_key, prior_key = keys.named(key, "first", "prior")
    return around(prior_key, family_of(cfg.first).init(first_key, first_config(cfg), batch), cfg, batch)


def around(key: Array, first: Any, cfg: Config, batch: Batch | None = None) -> State:
    """A fresh state around a State of the first stage; the codes of `batch`, if given, set the scale.

    Raises ValueError as `init` does.
    """
    _check(cfg)
    fresh = ddpm.init(key, prior(cfg))
    state = State(*fresh, first=first._replace(opt_state=()), scale=jnp.ones(()))
    return state if batch is None else state._replace(scale=1 / encode(state, observed(batch), cfg).std())


@checked
def train_step(state: State, batch: Batch, cfg: Config) -> tuple[State, Metrics]:
    """One step of `ddpm` on the codes of `batch["image"]` or `batch["x"]`, (B, *shape).

    `batch["label"]` (B,) is needed if conditional.
    """
    x = observed(batch)
    if cfg.flip:
        key = keys.named(jax.random.fold_in(state.key, state.step), "flip before encoding")
        mirrored = jax.random.bernoulli(key, 0.5, (x.shape[0], 1, 1, 1))
        x = jnp.where(mirrored, x[:, :, ::-1], x)
    codes = {**batch, "image": encode(state, x, cfg)}
    after, metrics = ddpm.train_step(ddpm_state(state), codes, prior(cfg))
    return State(*after, state.first, state.scale), metrics


@checked
def sample(
    key: Array,
    state: State,
    n: int,
    cfg: Config,
    label: Label = None,
    *,
    sampler: Any = None,
    steps: int | None = None,
    guidance: Array | float | None = None,
) -> Array:
    """n draws, (n, *shape): codes drawn as `ddpm.sample` does, by its options, and decoded."""
    options = {"sampler": sampler, "steps": steps, "guidance": guidance}
    return decode(state, ddpm.sample(key, ddpm_state(state), n, prior(cfg), label, **options), cfg)


def trajectory(key: Array, state: State, n: int, cfg: Config, label: Label = None, **options: Any) -> Array:
    """States on the way to the draws that `sample` returns, decoded likewise, (frames, n, *shape).

    The options are those of `ddpm.trajectory`.
    """
    path = ddpm.trajectory(key, ddpm_state(state), n, prior(cfg), label, **options)
    return jax.lax.map(lambda codes: decode(state, codes, cfg), path)


@checked
def encode(state: State, x: Array, cfg: Config) -> Array:
    """Scaled codes of data x (B, *shape), (B, *code_shape)."""
    return state.scale * family_of(cfg.first).to_codes(state.first, x, first_config(cfg))


@checked
def decode(state: State, z: Array, cfg: Config) -> Array:
    """Data of codes z as `encode` gives them, (B, *shape)."""
    return family_of(cfg.first).from_codes(state.first, z / state.scale, first_config(cfg))


@checked
def reconstruct(state: State, x: Array, cfg: Config) -> Array:
    """x encoded and decoded, (B, *shape): no sample can be better than this."""
    return decode(state, encode(state, x, cfg), cfg)


def ddpm_state(state: State) -> ddpm.State:
    """The State of the diffusion of codes."""
    return ddpm.State(*state[: len(ddpm.State._fields)])


def _check(cfg: Config) -> None:
    if cfg.prior.flip:
        raise ValueError("codes cannot be mirrored: set flip of the latent diffusion, not of its prior")
    if cfg.flip and len(cfg.shape) != 3:
        raise ValueError(f"only images can be mirrored, got {cfg.shape}: turn flip off")
    if getattr(first_config(cfg), "conditional", False):
        raise ValueError("the first stage sees no labels: give them to the prior, with conditional")
