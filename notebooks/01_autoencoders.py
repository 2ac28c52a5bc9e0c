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
# # Autoencoders, and what their codes are good for
#
# A plain autoencoder learns a code and nothing about how codes are distributed. This notebook shows what follows from
# that, what a variational autoencoder does about it, and then the uses of a latent space: ways through it, attributes,
# traversals, denoising and outliers. Everything is trained here, on 8x8 handwritten digits.

# %%
import os
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxgen
from jaxgen import data, plot, types
from jaxgen.autoencoder import ae, vae, vq_vae
from jaxgen.autoencoder.corruptions import GaussianNoise
from jaxgen.classical import gmm
from jaxgen.evaluation import denoise, likelihood, outliers
from jaxgen.latent import attributes, interpolate

STEPS = 30 if os.environ.get("JAXGEN_SMOKE") else 4000

train, test = data.load("digits"), data.load("digits", "test")
images, labels = jnp.asarray(test[:]["image"]), test[:]["label"]


def train_on_digits(family, **hyperparameters):
    cfg = types.shape_to(train, family.Config(**hyperparameters))
    return cfg, jaxgen.fit(family, cfg, train, steps=STEPS, batch_size=128, key=jax.random.key(0))


def show(*grids, columns, titles=(), size=3.5):
    axes = plt.subplots(1, len(grids), figsize=(size * len(grids), size), squeeze=False)[1][0]
    for axis, grid, title in zip(axes, grids, titles or [""] * len(grids), strict=True):
        axis.imshow(plot.grid(grid, columns, gap=1), cmap="gray")
        axis.set_title(title)
        axis.axis("off")


# %% [markdown]
# ## Three drawbacks of a plain autoencoder
#
# Two latents, so that the code can be drawn. The classes take unequal areas; between them lie holes, where the decoder
# makes nothing in particular; and no prior says where to sample.

# %%
ae_cfg, ae_state = train_on_digits(ae, num_latents=2)
codes = ae.encode(ae_state, images, ae_cfg)

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5))
points = left.scatter(*codes.T, c=labels, cmap="tab10", s=8)
figure.colorbar(points, ax=left)
square = ae.decode(ae_state, interpolate.bounding_square(codes, 15), ae_cfg)
right.imshow(plot.grid(square, columns=15, gap=0), cmap="gray")
right.axis("off")

# %% [markdown]
# Draws of N(0, I), which the codes do not follow, beside draws of densities fitted to the training codes: one Gaussian,
# and a mixture of twenty.

# %%
mixture_cfg = gmm.Config(shape=(2,), num_components=20)
mixture = gmm.fit(ae.encode(ae_state, train[:]["image"], ae_cfg), mixture_cfg)
key = jax.random.key(1)
show(
    ae.decode(ae_state, jax.random.normal(key, (36, 2)), ae_cfg),
    ae.sample(key, ae_state, 36, ae_cfg),
    ae.decode(ae_state, gmm.sample(key, mixture, 36, mixture_cfg), ae_cfg),
    columns=6,
    titles=("N(0, I)", "a Gaussian", "a mixture"),
)

# %% [markdown]
# ## A prior: the variational autoencoder
#
# Its loss keeps the codes near N(0, I), so evenly spaced quantiles of the prior fill the plane.

# %%
plane_cfg, plane_state = train_on_digits(vae, num_latents=2)
codes = vae.encode(plane_state, images, plane_cfg)

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5))
points = left.scatter(*codes.T, c=labels, cmap="tab10", s=8)
figure.colorbar(points, ax=left)
manifold = vae.decode(plane_state, interpolate.prior_quantiles(15), plane_cfg)
right.imshow(plot.grid(manifold, columns=15, gap=0), cmap="gray")
right.axis("off")

# %% [markdown]
# ## Ways between codes
#
# With more latents digits become sharper, and a picture can be morphed into another: along a line, or along an arc that
# stays where the prior has its mass.

# %%
cfg, state = train_on_digits(vae, num_latents=12)
z = vae.encode(state, images[:8], cfg)
paths = [interpolate.path(z[:4], z[4:], 9, along) for along in (interpolate.lerp, interpolate.slerp)]
strips = [vae.decode(state, path.swapaxes(0, 1).reshape(-1, 12), cfg) for path in paths]
show(*strips, columns=9, titles=("lines", "arcs"), size=5)

# %% [markdown]
# ## Attributes
#
# The mean code of zeros minus that of all others is a direction: adding it makes a digit rounder, subtracting it takes
# that away.

# %%
codes = vae.encode(state, jnp.asarray(train[:]["image"]), cfg)
roundness = attributes.attribute_vector(codes, train[:]["label"] == 0)
strengths = jnp.linspace(-1, 1, 9)
changed = attributes.apply(z[:5], roundness, strengths).swapaxes(0, 1).reshape(-1, 12)
show(vae.decode(state, changed, cfg), columns=9, size=5)

# %% [markdown]
# ## Traversals
#
# One latent at a time, the busiest first.

# %%
order = np.argsort(-np.asarray(codes.std(0)))[:6]
rows = [interpolate.traverse(z[1], int(dimension), jnp.linspace(-2, 2, 9)) for dimension in order]
show(vae.decode(state, jnp.concatenate(rows), cfg), columns=9, size=5)

# %% [markdown]
# ## Labels: the conditional VAE

# %%
label_cfg, label_state = train_on_digits(vae, num_latents=6, conditional=True)
wanted = jnp.repeat(jnp.arange(10), 9)
show(vae.sample(key, label_state, 90, label_cfg, label=wanted), columns=9, size=4)

# %% [markdown]
# ## Codes that are integers: VQ-VAE
#
# Each digit becomes eight of 64 code words: 48 bits. Test digits over what comes back.

# %%
vq_cfg, vq_state = train_on_digits(vq_vae)
print("the first test digit is", vq_vae.encode(vq_state, images[:1], vq_cfg)[0])
show(
    jnp.concatenate([images[:12], vq_vae.reconstruct(vq_state, images[:12], vq_cfg)]),
    columns=12,
    size=6,
)

# %% [markdown]
# ## Denoising
#
# Trained to give back the clean picture from a noisy one. The peak signal-to-noise ratio, in dB, before and after.

# %%
noisy_cfg, noisy_state = train_on_digits(ae, corruption=GaussianNoise(0.5), num_latents=32)
noisy = noisy_cfg.corruption(key, images)
cleaned = ae.reconstruct(noisy_state, noisy, noisy_cfg)
print("noisy  ", denoise.psnr(images, noisy).mean())
print("cleaned", denoise.psnr(images, cleaned).mean())
show(jnp.concatenate([images[:12], noisy[:12], cleaned[:12]]), columns=12, size=6)

# %% [markdown]
# ## Outliers
#
# Digits against digits with their pixels shuffled: how often does a score put a digit above an outlier? By reconstruction
# error, and by the evidence lower bound.

# %%
shuffled = jax.random.permutation(key, images.reshape(len(images), -1), axis=1).reshape(images.shape)
error = jax.jit(partial(ae.score, ae_state, cfg=ae_cfg))
bound = jax.jit(partial(vae.elbo, key, state, cfg=cfg))
print("reconstruction error", outliers.auroc(error(images), error(shuffled)))
print("evidence lower bound", outliers.auroc(bound(images), bound(shuffled)))

# %% [markdown]
# ## How likely are the digits?
#
# Bounds on the log-likelihood of test digits in nats, from loose to tight.

# %%
for num_samples in (1, 10, 100):
    value = vae.iwae(key, state, images, cfg, num_samples).mean()
    print(f"{num_samples:4} draws: {value:.2f} nats, {likelihood.bits_per_dim(-value, 64):.3f} bits a pixel")
