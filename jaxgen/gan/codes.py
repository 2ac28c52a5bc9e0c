"""What a generator is given, and what may be read off its examples: codes, labels, those InfoGAN makes up."""

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxgen import distributions
from jaxgen.gan.config import Config, num_labels
from jaxgen.gan.networks.head import Verdict
from jaxgen.types import Batch, observed


def draw_codes(key: Array, n: int, cfg: Config, truncation: float | None = None) -> Array:
    """n draws of z, (n, num_latents + num_continuous_codes): normal, and then even in [-1, 1]."""
    shape = (n, cfg.num_latents)
    if truncation is None:
        z = jax.random.normal(key, shape)
    else:
        z = jax.random.truncated_normal(key, -truncation, truncation, shape)
    if not cfg.num_continuous_codes:
        return z
    codes = jax.random.uniform(jax.random.fold_in(key, 1), (n, cfg.num_continuous_codes), minval=-1.0)
    return jnp.concatenate([z, codes], -1)


def labels_of(batch: Batch, key: Array, cfg: Config) -> Array | None:
    """The labels of a step, (B,): those of the batch, or made up; None of an unconditional model."""
    if cfg.conditioning == "info":
        return jax.random.randint(key, (len(observed(batch)),), 0, cfg.num_codes)
    return batch["label"] if cfg.conditioning != "none" else None


def with_label(z: Array, label: Array | None, cfg: Config) -> Array:
    """What the generator is given: z, and the label one-hot where there is one, (B, num_latents + ...)."""
    if not num_labels(cfg):
        return z
    return jnp.concatenate([z, jax.nn.one_hot(label, num_labels(cfg))], -1)


def continuous(z: Array, cfg: Config) -> Array:
    """The continuous codes of z, (B, num_continuous_codes)."""
    return z[:, cfg.num_latents :]


def misread(verdict: Verdict, label: Array | None, z: Array, cfg: Config) -> Array:
    """-log q(class, codes | example) in nats: what the discriminator read off, against what is true."""
    value = jnp.zeros(())
    if verdict.classes is not None:
        value += optax.softmax_cross_entropy_with_integer_labels(verdict.classes, label).mean()
    if verdict.codes is not None:
        value -= distributions.normal_log_prob(continuous(z, cfg), *verdict.codes).mean()
    return value
