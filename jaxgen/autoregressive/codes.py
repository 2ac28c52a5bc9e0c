"""Autoregressive prior of the codes of a VQ-VAE (van den Oord, Vinyals & Kavukcuoglu 2017).

A VQ-VAE, the first stage, turns data into few symbols c = encode(x) and back, and an autoregressive model is
trained on these:

    log p(c) = sum_t log p(c_t | c_1 ... c_{t-1}),     x = decode(c),     c ~ p(c),

where the VQ-VAE by itself draws every symbol alone. The prior is any family of this package; a map of codes
is to it a picture of one channel, whose values are symbols. The first stage is trained beforehand, by itself,
and stays as it is:

    first = jaxgen.fit(vq_vae, first_cfg, train, ...)
    cfg = codes.Config(shape=train.shape, first=first_cfg, prior=pixelcnn.Config())
    state = jaxgen.fit(codes, cfg, train, ..., start=codes.around(key, first, cfg))

`init` alone puts the prior around a fresh, untrained one.
"""

import dataclasses
import functools
import sys
from typing import Any, NamedTuple

import jax
from jax import Array

from jaxgen import keys, types, values
from jaxgen.arguments import checked
from jaxgen.autoencoder import vq_vae
from jaxgen.autoregressive import pixelcnn, sequential, transformer
from jaxgen.fields import NonNegativeInt, PositiveInt
from jaxgen.labels import Label
from jaxgen.likelihoods import Symbols
from jaxgen.types import DATA, Batch, Metrics, observed


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(values.Value):
    """A first stage, and the prior of its codes."""

    shape: tuple[PositiveInt, ...] = (8, 8, 1)
    """Shape of one example."""
    num_classes: NonNegativeInt = 0
    """Number of labels of the data; 0 if they have none."""
    first: vq_vae.Config | Any = vq_vae.Config()
    """The first stage, whose shape is filled in."""
    prior: pixelcnn.Config | transformer.Config | Any = transformer.Config()
    """The model of codes, whose shape, likelihood and number of classes are filled in."""


class State(NamedTuple):
    """What training changes, and the first stage, which it does not."""

    step: Array
    key: Array
    params: Any  # of the prior, as what follows
    opt_state: Any
    ema: Any
    first: Any  # the first stage's State, without its optimizer's


def from_data(dataset: Any, cfg: Config) -> Config:
    """The config whose first stage has the facts of a data set too."""
    first_cfg = types.from_data(vq_vae, dataset, cfg.first)
    return dataclasses.replace(types.shape_to(dataset, cfg), first=first_cfg)


def family_of(prior_cfg: Any) -> Any:
    """The family of a prior's Config."""
    return sys.modules[type(prior_cfg).__module__]


def first_config(cfg: Config) -> Any:
    """The Config of the first stage, with the shape of the data."""
    return dataclasses.replace(cfg.first, shape=cfg.shape)


@functools.cache
def prior(cfg: Config) -> Any:
    """The Config of the prior, with the facts of the codes."""
    return dataclasses.replace(
        cfg.prior,
        shape=(*vq_vae.positions(first_config(cfg)), 1),
        levels=0,
        num_classes=cfg.num_classes,
        likelihood=Symbols(cfg.first.num_codes),
    )


@checked
def init(key: Array, cfg: Config, batch: Batch | None = None) -> State:
    """A state around a fresh first stage, which `batch`, if given, initialises.

    Raises ValueError for a shape that one of the networks cannot take.
    """
    first_key, prior_key = keys.named(key, "first", "prior")
    return around(prior_key, vq_vae.init(first_key, first_config(cfg), batch), cfg)


def around(key: Array, first: Any, cfg: Config, batch: Batch | None = None) -> State:
    """A fresh state around a State of the first stage; `batch` is not used.

    Raises ValueError as `init` does.
    """
    del batch
    return _joined(family_of(cfg.prior).init(key, prior(cfg)), first._replace(opt_state=()))


@checked
def train_step(state: State, batch: Batch, cfg: Config) -> tuple[State, Metrics]:
    """One step of the prior on the codes of `batch["image"]` or `batch["x"]`, (B, *shape).

    `batch["label"]` (B,) is needed if the prior is conditional.
    """
    tokens = {name: entry for name, entry in batch.items() if name not in DATA}
    tokens["tokens"] = encode(state, observed(batch), cfg)
    after, metrics = family_of(cfg.prior).train_step(prior_state(state), tokens, prior(cfg))
    return _joined(after, state.first), metrics


@checked
def sample(
    key: Array,
    state: State,
    n: int,
    cfg: Config,
    label: Label = None,
    *,
    prefix: Array | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Array:
    """n draws, (n, *shape): codes drawn as the prior's `sample` does, by its options, and decoded."""
    draw = family_of(cfg.prior).sample
    options = {"prefix": prefix, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    return decode(state, draw(key, prior_state(state), n, prior(cfg), label, **options), cfg)


def code_log_prob(state: State, x: Array, cfg: Config, label: Label = None) -> Array:
    """log p(c) of the codes c of x (B, *shape) in nats, (B,): of these symbols, and not of x."""
    return family_of(cfg.prior).log_prob(prior_state(state), encode(state, x, cfg), prior(cfg), label)


@checked
def encode(state: State, x: Array, cfg: Config) -> Array:
    """Codes of data x (B, *shape), (B, *positions, 1) int32."""
    codes = vq_vae.encode(state.first, x, first_config(cfg))
    return codes.reshape(codes.shape[0], *prior(cfg).shape)


@checked
def decode(state: State, codes: Array, cfg: Config) -> Array:
    """Data of codes as `encode` gives them, (B, *shape)."""
    return vq_vae.decode(state.first, codes[..., 0], first_config(cfg))


@checked
def reconstruct(state: State, x: Array, cfg: Config) -> Array:
    """x encoded and decoded, (B, *shape): no sample can be better than this."""
    return decode(state, encode(state, x, cfg), cfg)


def prior_state(state: State) -> sequential.State:
    """The State of the prior."""
    return sequential.State(*state[: len(sequential.State._fields)])


def _joined(own: sequential.State, first: Any) -> State:
    """The State of the prior, and that of the first stage."""
    return State(**own._asdict(), first=first)
