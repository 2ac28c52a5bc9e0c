# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A tour of jaxgen
#
# A model is a Python module with four names: `Config`, `init`, `train_step` and `sample`. This notebook takes one, the
# variational autoencoder, through everything there is: data, a step, a run, samples, and loading the run again.

# %%
import os
import tempfile
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import jaxgen
from jaxgen import data, plot
from jaxgen.autoencoder import vae

STEPS = 50 if os.environ.get("JAXGEN_SMOKE") else 5000


def show(images, columns=None, size=5):
    plt.figure(figsize=(size, size))
    plt.imshow(plot.grid(images, columns), cmap="gray")
    plt.axis("off")


# %% [markdown]
# ## Data
#
# `data.load` finds a set by name. `digits` needs no download; `mnist` or any other name of TensorFlow Datasets works the
# same way, and so do `folder:PATH` and `npz:PATH`. Indexing gives examples as a model takes them: images in [-1, 1].

# %%
train, test = data.load("digits"), data.load("digits", "test")
print(len(train), "training and", len(test), "test images of shape", train.shape)
show(train[:64]["image"])

# %% [markdown]
# ## A step
#
# The config is a frozen dataclass, the state a tuple of arrays, and a step a pure function of state and batch. Nothing is
# hidden, so `jax.jit`, `jax.grad` and `jax.vmap` apply as they always do.

# %%
cfg = vae.Config(shape=train.shape, num_latents=2)
state = vae.init(jax.random.key(0), cfg)
step = jax.jit(partial(vae.train_step, cfg=cfg))

batches = data.batches(train, batch_size=128, seed=0)  # a pure function of the step
for i in range(3):
    state, metrics = step(state, batches(i))
    print(int(state.step), {name: round(float(value), 2) for name, value in metrics.items()})

# %% [markdown]
# ## A run
#
# `fit` does the rest for any family: it sends many steps to the device at once, splits the batch over all devices, logs,
# draws samples and saves checkpoints. Run the cell twice and it resumes where it ended.

# %%
run_dir = tempfile.mkdtemp()
state = jaxgen.fit(vae, cfg, train, steps=STEPS, batch_size=128, key=jax.random.key(0), run_dir=run_dir)

# %% [markdown]
# ## Samples
#
# Decoded draws of the prior. Under them, test images beside their reconstructions.

# %%
show(vae.sample(jax.random.key(1), state, 64, cfg))

# %%
x = jnp.asarray(test[:12]["image"])
show(jnp.concatenate([x, vae.reconstruct(state, x, cfg)]), columns=12, size=10)

# %% [markdown]
# ## The latent plane
#
# Two latents can be drawn. Left, where the encoder puts each class of the test set; right, what the decoder makes of evenly
# spaced quantiles of the prior.

# %%
images, labels = jnp.asarray(test[:]["image"]), test[:]["label"]
codes = vae.encode(state, images, cfg)
quantiles = jax.scipy.stats.norm.ppf(jnp.linspace(0.05, 0.95, 15))
plane = jnp.stack(jnp.meshgrid(quantiles, -quantiles), -1).reshape(-1, 2)

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5))
points = left.scatter(*codes.T, c=labels, cmap="tab10", s=8)
figure.colorbar(points, ax=left)
right.imshow(plot.grid(vae.decode(state, plane, cfg), columns=15, gap=0), cmap="gray")
right.axis("off")

# %% [markdown]
# ## How good is it?
#
# The evidence lower bound, and the importance-weighted bound, which comes closer to the true log-likelihood the more draws
# it takes. Both in nats per image, on images the model never saw.

# %%
print("ELBO     ", vae.elbo(jax.random.key(2), state, images, cfg).mean())
for num_samples in (1, 10, 100):
    print(f"IWAE-{num_samples:<4}", vae.iwae(jax.random.key(2), state, images, cfg, num_samples).mean())

# %% [markdown]
# ## Loading it again
#
# A run directory is enough: it names the family and holds its config and state. From a shell, `jaxgen sample RUN` does the
# same.

# %%
family, cfg, state = jaxgen.load(run_dir)
show(family.sample(jax.random.key(3), state, 16, cfg))
