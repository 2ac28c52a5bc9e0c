"""The systems of the benchmark as jaxgen runs them, served to `train_step.py`.

The networks of the GAN are written here, from jaxgen's layers. Weights and gradients go out as PyTorch lays
them out, under the names that its twins in `torch_models.py` have.
"""

import dataclasses
import functools
import itertools
import math
import time
from typing import Any, ClassVar, NamedTuple
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from train_step import NUM_BATCHES, Sizes, peak_memory, serve

import jaxgen
from jaxgen import data, likelihoods, shard
from jaxgen.autoencoder import networks, vae
from jaxgen.nn import conv, norm
from jaxgen.run import directory

HALVE = {"kernel_size": (4, 4), "strides": (2, 2), "padding": 1}
BatchNorm = functools.partial(norm.BatchNorm, use_running_average=False, momentum=0.9)


class Generator(nn.Module):
    """(B, num_latents) -> images (B, H, W, C) in (-1, 1)."""

    sizes: Sizes

    @nn.compact
    def __call__(self, z):
        narrow, wide = self.sizes.hidden
        height, width, channels = self.sizes.shape
        x = nn.Dense(height * width // 16 * wide, use_bias=False)(z)
        x = nn.relu(BatchNorm()(x.reshape(-1, height // 4, width // 4, wide)))
        x = nn.relu(BatchNorm()(conv.ConvTranspose(narrow, **HALVE, use_bias=False)(x)))
        return nn.tanh(conv.ConvTranspose(channels, **HALVE)(x))


class Discriminator(nn.Module):
    """Images (B, H, W, C) -> logits of being real (B,)."""

    sizes: Sizes

    @nn.compact
    def __call__(self, x):
        narrow, wide = self.sizes.hidden
        x = nn.leaky_relu(conv.Conv(narrow, **HALVE)(x), 0.2)
        x = nn.leaky_relu(BatchNorm()(conv.Conv(wide, **HALVE, use_bias=False)(x)), 0.2)
        return nn.Dense(1)(x.reshape(len(x), -1))[:, 0]


class GANState(NamedTuple):
    step: Any
    key: Any
    params: Any
    batch_stats: Any
    opt_state: Any


class GAN:
    """One update of the discriminator, then one of the generator, each with fakes of its own."""

    def __init__(self, sizes):
        self.sizes = sizes
        self.networks = {"generator": Generator(sizes), "discriminator": Discriminator(sizes)}
        self.optimizer = optax.adam(2e-4, b1=0.5)

    def init(self, key):
        inputs = {"generator": (self.sizes.num_latents,), "discriminator": self.sizes.shape}
        variables = {
            name: net.init(key, jnp.zeros((1, *inputs[name]))) for name, net in self.networks.items()
        }
        params, batch_stats = (
            {name: value[kind] for name, value in variables.items()} for kind in ("params", "batch_stats")
        )
        opt_state = {name: self.optimizer.init(value) for name, value in params.items()}
        return GANState(jnp.int32(0), key, params, batch_stats, opt_state)

    def train_step(self, state, batch):
        key = jax.random.fold_in(state.key, state.step)
        z = jax.random.normal(key, (2, self.sizes.batch_size, self.sizes.num_latents))
        losses = {
            "discriminator": functools.partial(self.discriminator_loss, real=batch["image"], z=z[0]),
            "generator": functools.partial(self.generator_loss, z=z[1]),
        }
        metrics = {}
        for name, loss in losses.items():
            grads, (metrics[name], batch_stats) = jax.grad(
                lambda own, loss=loss, name=name, state=state: loss(
                    {**state.params, name: own}, state.batch_stats
                ),
                has_aux=True,
            )(state.params[name])
            updates, opt_state = self.optimizer.update(grads, state.opt_state[name])
            state = state._replace(
                params={**state.params, name: optax.apply_updates(state.params[name], updates)},
                batch_stats=batch_stats,
                opt_state={**state.opt_state, name: opt_state},
            )
        return state._replace(step=state.step + 1), metrics

    def discriminator_loss(self, params, batch_stats, real, z):
        fake, batch_stats = self._apply("generator", params, batch_stats, z)
        real_logits, batch_stats = self._apply("discriminator", params, batch_stats, real)
        fake_logits, batch_stats = self._apply("discriminator", params, batch_stats, fake)
        loss = jax.nn.softplus(-real_logits).mean() + jax.nn.softplus(fake_logits).mean()
        return loss, (loss, batch_stats)

    def generator_loss(self, params, batch_stats, z):
        fake, batch_stats = self._apply("generator", params, batch_stats, z)
        logits, batch_stats = self._apply("discriminator", params, batch_stats, fake)
        loss = jax.nn.softplus(-logits).mean()
        return loss, (loss, batch_stats)

    def _apply(self, name, params, batch_stats, x):
        variables = {"params": params[name], "batch_stats": batch_stats[name]}
        y, updated = self.networks[name].apply(variables, x, mutable="batch_stats")
        return y, {**batch_stats, name: updated["batch_stats"]}

    def check(self, state, bits, noise):
        """The losses and gradients that PyTorch has to reproduce, each of its own network."""
        losses = {
            "discriminator": functools.partial(self.discriminator_loss, real=bits, z=noise),
            "generator": functools.partial(self.generator_loss, z=noise),
        }
        values, grads = {}, {}
        for name, loss in losses.items():
            (values[name], _), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(
                state.params, state.batch_stats
            )
            grads[name] = gradient[name]
        return values, grads


class VAE:
    """`jaxgen.autoencoder.vae` of one config."""

    def __init__(self, sizes):
        encoder, decoder = {
            "mlp": (networks.DenseEncoder, networks.DenseDecoder),
            "conv": (networks.ConvEncoder, networks.ConvDecoder),
        }[sizes.network]
        self.cfg = vae.Config(
            shape=sizes.shape,
            num_latents=sizes.num_latents,
            encoder=encoder(sizes.hidden),
            decoder=decoder(sizes.hidden[::-1]),
        )
        self.init = functools.partial(vae.init, cfg=self.cfg)
        self.train_step = functools.partial(vae.train_step, cfg=self.cfg)

    def check(self, state, bits, noise):
        """The loss and gradient that PyTorch has to reproduce; `bits`, -1 and 1, stay as they are."""
        with mock.patch.object(jax.random, "normal", lambda key, shape: noise.reshape(shape)):
            loss = functools.partial(vae.loss, batch={"image": bits}, key=state.key, cfg=self.cfg)
            (value, _), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(state.params)
        return {"loss": value}, grads


class Side:
    """One system, run one step a dispatch ("step") or many ("loop")."""

    systems: ClassVar = {"mlp": VAE, "conv": VAE, "gan": GAN}
    num_checked: int | None = None
    """Examples that losses and gradients are checked on; None for a batch."""

    def __init__(self, sizes, variant, threads):
        del threads  # XLA has as many as there are cores to use
        self.sizes = sizes
        self.system = self.systems[sizes.network](sizes)
        self.state = jax.jit(self.system.init)(jax.random.key(0))
        images = np.random.default_rng(0).uniform(-1, 1, (NUM_BATCHES, sizes.batch_size, *sizes.shape))
        self.images = jnp.asarray(images, jnp.float32)
        self.batches = [{"image": image} for image in self.images]
        self.step = jax.jit(self.system.train_step, donate_argnums=0)
        self.loop = jax.jit(self._many, donate_argnums=0)
        self.run = self._run_loop if variant == "loop" else self._run_steps

    def seconds(self, count):
        """Wall-clock time of `count` training steps."""
        since = time.perf_counter()
        jax.block_until_ready(self.run(count))
        return time.perf_counter() - since

    def _run_steps(self, count):
        for batch in itertools.islice(itertools.cycle(self.batches), count):
            self.state, metrics = self.step(self.state, batch)
        return self.state, metrics

    def _run_loop(self, count):
        self.state, totals = self.loop(self.state, self.images, jnp.int32(count))
        return self.state, totals

    def _many(self, state, images, count):
        shapes = jax.eval_shape(self.system.train_step, state, {"image": images[0]})[1]
        totals = jax.tree.map(lambda metric: jnp.zeros(metric.shape), shapes)

        def body(carry):
            index, state, totals = carry
            state, metrics = self.system.train_step(state, {"image": images[state.step % NUM_BATCHES]})
            return index + 1, state, jax.tree.map(jnp.add, totals, metrics)

        return lax.while_loop(lambda carry: carry[0] < count, body, (jnp.int32(0), state, totals))[1:]

    def product_rate(self):
        """Floating-point operations a second of a large matrix product in float32."""
        size, repeats = 2048, 5
        a = jnp.ones((size, size))
        jax.block_until_ready(product(a, a))
        since = time.perf_counter()
        for _ in range(repeats):
            jax.block_until_ready(product(a, a))
        return 2 * size**3 * repeats / (time.perf_counter() - since)

    def fit_rates(self, chunks, seconds):
        """Median of steps a second through `jaxgen.fit`, for each number of steps a dispatch."""
        shape = (NUM_BATCHES * self.sizes.batch_size, *self.sizes.shape)
        images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        dataset = data.Dataset("noise", "train", {"image": images})
        every = max(chunks)
        steps = every * (1 + math.ceil(seconds / self.seconds(every)))
        rates = {}
        for chunk in chunks:
            times = [0.0]
            jaxgen.fit(
                vae,
                self.system.cfg,
                dataset,
                steps=steps + every,
                batch_size=self.sizes.batch_size,
                key=jax.random.key(0),
                mesh=shard.mesh(1),
                chunk=chunk,
                log_every=every,
                on_log=lambda *_, times=times: times.append(time.perf_counter()),
            )
            rates[chunk] = every / float(np.median(np.diff(times[1:])))
        return rates

    def likelihood_seconds(self, num_examples, num_samples):
        """Wall-clock time of the VAE's importance-weighted bound."""
        image = jnp.round(self.images[0, :num_examples])
        since = time.perf_counter()
        jax.block_until_ready(bound(jax.random.key(0), self.state, image, self.system.cfg, num_samples))
        return time.perf_counter() - since

    def log_likelihood(self, given, num_samples):
        """That bound on the exported inputs, for every example."""
        bits = jnp.asarray(np.load(given)["bits"].transpose(0, 2, 3, 1))
        cfg = dataclasses.replace(self.system.cfg, likelihood=likelihoods.Bernoulli("threshold"))
        return np.asarray(bound(jax.random.key(0), self.state, bits, cfg, num_samples)).tolist()

    def export(self, path):
        """Write weights, inputs, losses and gradients, for PyTorch to reproduce; returns the losses."""
        generator = np.random.default_rng(1)
        bits = np.sign(generator.normal(size=self.images.shape[1:])).astype(np.float32)
        noise = generator.normal(size=(self.sizes.batch_size, self.sizes.num_latents)).astype(np.float32)
        bits, noise = bits[: self.num_checked], noise[: self.num_checked]
        losses, grads = self.system.check(self.state, bits, noise)
        written = {f"loss:{name}": value for name, value in losses.items()}
        for kind, tree in (("weight", self.state.params), ("gradient", grads)):
            written |= {f"{kind}:{name}": value for name, value in torch_layout(tree).items()}
        np.savez(path, bits=bits.transpose(0, 3, 1, 2), noise=noise, **written)
        return {name: float(value) for name, value in losses.items()}

    def peak_memory(self):
        return peak_memory()

    def versions(self):
        return directory.versions()


product = jax.jit(jnp.matmul)
bound = jax.jit(vae.iwae, static_argnums=(3, 4))


def torch_layout(tree):
    """{"module.layer.weight": array} of a tree of Linen's parameters, or of their gradients."""
    arrays = {}
    for path, leaf in jax.tree.flatten_with_path(tree)[0]:
        *modules, kind = (entry.key for entry in path)
        array = np.asarray(leaf)
        if array.ndim == 4 and modules[0] in ("decoder", "generator"):
            array = array[::-1, ::-1].transpose(2, 3, 0, 1)
        elif array.ndim == 4:
            array = array.transpose(3, 2, 0, 1)
        elif array.ndim == 2:
            array = array.T
        arrays[".".join([*modules, "bias" if kind == "bias" else "weight"])] = array
    return arrays


if __name__ == "__main__":
    serve(Side)
