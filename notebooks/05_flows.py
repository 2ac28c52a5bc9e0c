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
# # Flows: densities pushed through invertible layers
#
# A flow is a function with an inverse whose change of volume is known, so the density of what comes out is known too. First
# the simplest one, a triangular matrix; then one that turns a Gaussian into two moons, one picture a layer, and takes the
# moons back; what a spline adds; and a flow that is given no data at all, but a density known up to a factor.

# %%
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import jaxgen
from jaxgen import data, types
from jaxgen.flow import affine, bijectors, planar, realnvp, spline
from jaxgen.flow.transforms import RationalQuadratic
from jaxgen.nn.mlp import MLP
from jaxgen.values import Adam, Cosine

SMOKE = bool(os.environ.get("JAXGEN_SMOKE"))


def train_on(dataset, family, steps, **hyperparameters):
    steps = 20 if SMOKE else steps
    optimizer = Adam(3e-3, schedule=Cosine(steps), gradient_clip=10.0)
    cfg = types.from_data(family, dataset, family.Config(optimizer=optimizer, **hyperparameters))
    return cfg, jaxgen.fit(family, cfg, dataset, steps=steps, batch_size=512, key=jax.random.key(0))


def show(panels, titles, color=None, limit=None):
    axes = plt.subplots(1, len(panels), figsize=(3.2 * len(panels), 3.4), squeeze=False)[1][0]
    colored = {} if color is None else {"c": color, "cmap": "hsv", "vmin": -np.pi, "vmax": np.pi}
    for axis, x, title in zip(axes, panels, titles, strict=True):
        axis.scatter(*np.asarray(x).T, s=2, **colored)
        axis.set(title=title, aspect="equal")
        if limit:
            axis.set(xlim=(-limit, limit), ylim=(-limit, limit))


# %% [markdown]
# ## A matrix: x = mean + L z
#
# Noise z is round. L stretches and shears it, and the density of x is N(mean, L L'). Maximum likelihood finds the Cholesky
# factor of the covariance of the data.

# %%
factor, mean = np.array([[1.5, 0.0], [1.0, 0.4]]), np.array([1.0, -0.5])
points = np.random.default_rng(0).normal(size=(5000, 2)) @ factor.T + mean
gaussian = data.Dataset("gaussian", "train", {"x": points})
cfg, state = train_on(gaussian, affine, 3000)
print("L by maximum likelihood\n", bijectors.cholesky_factor(state.params))
print("Cholesky factor of the covariance\n", np.linalg.cholesky(np.cov(points.T)))

z = jax.random.normal(jax.random.key(1), (2000, 2))
angle = np.arctan2(*z.T)
show([z, affine.decode(state, z, cfg)], ["z", "x = mean + L z"], angle, 5)

# %% [markdown]
# ## Two moons, one picture a layer
#
# Eight couplings, each of which moves one coordinate by what a network reads from the other. A colour is an angle of the
# noise, so it can be followed. From left to right the noise becomes the data: the last panel is a sample.

# %%
train, test = data.load("moons"), data.load("moons", "test")
cfg, state = train_on(train, realnvp, 3000, num_layers=8, network=MLP((64, 64)))

preprocessing, layers, scale = state.params
x = bijectors.diagonal(2).inverse(scale, z)[0]
stages = [x]
for index in reversed(range(cfg.num_layers)):
    own = jax.tree.map(lambda a, index=index: a[index], layers)
    x = realnvp.layer(cfg, index).inverse(own, x)[0]
    stages.append(x)
stages.append(cfg.preprocessing.bijector(2, 0).inverse(preprocessing, x)[0])
show(stages[:5], ["noise", *(f"layer {i}" for i in range(1, 5))], angle, 4)
show(stages[5:], [*(f"layer {i}" for i in range(5, 9)), "sample"], angle)

# %% [markdown]
# ## Two moons pulled back to a Gaussian
#
# The same function the other way takes test points to noise. If the density is right they are a standard Gaussian there:
# both moons lie side by side, and nothing is left of their shape.

# %%
x, label = test[:3000]["x"], test[:3000]["label"]
codes = realnvp.encode(state, x, cfg)
show([x, codes], ["test points", "their codes"], np.where(label == 0, -1.0, 1.0))
print("mean", codes.mean(0), "covariance", np.cov(codes.T).round(2).tolist())

# %% [markdown]
# ## The density, beside the true one
#
# Moons are known: half circles and Gaussian noise. No model can have a lower mean of -log p on test points than their own
# density has.

# %%
ticks = np.linspace(-1.6, 2.6, 150), np.linspace(-1.2, 1.7, 110)
grid = np.stack(np.meshgrid(*ticks), -1).reshape(-1, 2)
maps = {
    "true density": np.exp(train.log_density(grid)),
    "RealNVP": jnp.exp(realnvp.log_prob(state, jnp.float32(grid), cfg)),
}
axes = plt.subplots(1, 2, figsize=(11, 3.6))[1]
for axis, (title, values) in zip(axes, maps.items(), strict=True):
    axis.pcolormesh(*ticks, np.asarray(values).reshape(110, 150), cmap="magma")
    axis.set(title=title, aspect="equal")
print("entropy", -test.log_density(x).mean(), "nats; RealNVP", -realnvp.log_prob(state, x, cfg).mean())

# %% [markdown]
# ## Temperature
#
# Less noise, less variety: draws of 0.5, 0.7 and 1 times the noise. What a temperature leaves out is the edge of the data, and
# where the flow had to stretch space it takes more than that.

# %%
temperatures = (0.5, 0.7, 1.0)
drawn = [realnvp.sample(jax.random.key(2), state, 2000, cfg, temperature=t) for t in temperatures]
show(drawn, [f"temperature {t}" for t in temperatures])

# %% [markdown]
# ## What a spline adds
#
# A scale and a shift can only stretch what a coupling moves. A monotone spline can have any shape: here the map of one number
# by random knots, and its slope, by which densities are divided.

# %%
transform = RationalQuadratic(6, 3.0)
raw = 1.5 * jax.random.normal(jax.random.key(4), (transform.num_parameters,))
u = jnp.linspace(-4, 4, 400)
v, log_slope = transform.forward(raw, u)
knots = transform.knots(raw)
left, right = plt.subplots(1, 2, figsize=(11, 3.5))[1]
left.plot(u, v)
left.plot(knots.x, knots.y, "o", label="knots")
left.legend()
left.set(title="y(x)")
right.plot(u, jnp.exp(log_slope))
right.set(title="dy/dx", yscale="log")
plt.tight_layout()

# %% [markdown]
# So a spline flow has the edges of a checkerboard after a minute, which affine couplings smear. Its entropy is log 32 = 3.466
# nats.

# %%
train, test = data.load("checkerboard"), data.load("checkerboard", "test")
ticks = np.linspace(-4.5, 4.5, 150)
grid = jnp.float32(np.stack(np.meshgrid(ticks, ticks), -1).reshape(-1, 2))
axes = plt.subplots(1, 2, figsize=(9, 4.2))[1]
flows = {
    "RealNVP": (realnvp, {"network": MLP((64, 64))}),
    "splines": (spline, {"layer": spline.Coupling(MLP((64, 64))), "transform": RationalQuadratic(16)}),
}
for axis, (title, (family, parts)) in zip(axes, flows.items(), strict=True):
    cfg, state = train_on(train, family, 2000, **parts)
    nll = -family.log_prob(state, test[:5000]["x"], cfg).mean()
    axis.pcolormesh(ticks, ticks, np.exp(family.log_prob(state, grid, cfg)).reshape(150, 150), cmap="magma")
    axis.set(title=f"{title}: {nll:.3f} nats", aspect="equal")

# %% [markdown]
# ## Given a class
#
# With `conditional=True` the label is read by every network: one flow, a density for each moon. Without a label `log_prob` is
# that of both together.

# %%
train = data.load("moons")
cfg, state = train_on(train, realnvp, 1500, conditional=True, network=MLP((64, 64)))
show([realnvp.sample(jax.random.key(3), state, 1500, cfg, label) for label in (0, 1)], train.label_names)

# %% [markdown]
# ## No data: a density known up to a factor
#
# A flow can be trained by its own samples, if the density to approximate can be evaluated: KL(flow || target) is a mean over
# draws of log p - log target, and the gradient goes through the draws. Here the target is an energy of Rezende & Mohamed, and
# the flow is made of planar layers, one more in each panel but for factors of two. The target is heated at first, so that no
# part of it is missed.


# %%
def target(x):
    wave = jnp.sin(2 * jnp.pi * x[:, 0] / 4)
    return -0.5 * ((x[:, 1] - wave) / 0.4) ** 2 - 0.5 * (x[:, 0] / 3) ** 4


def approximate(num_layers, steps=20 if SMOKE else 4000):
    cfg = planar.Config(shape=(2,), levels=0, num_layers=num_layers, direct="sampling")
    optimizer = optax.adam(optax.cosine_decay_schedule(5e-3, steps))
    params = planar.init(jax.random.key(0), cfg).params

    def step(carry, index):
        params, opt_state = carry
        heated = lambda x: jnp.minimum(1.0, 0.05 + 2 * index / steps) * target(x)
        key = jax.random.fold_in(jax.random.key(1), index)
        grads = jax.grad(planar.reverse_kl)(params, key, heated, 256, cfg)
        updates, opt_state = optimizer.update(grads, opt_state)
        return (optax.apply_updates(params, updates), opt_state), None

    run = jax.jit(lambda carry: jax.lax.scan(step, carry, jnp.arange(steps))[0])
    params, _ = run((params, optimizer.init(params)))
    divergence = planar.reverse_kl(params, jax.random.key(2), target, 10_000, cfg)
    return planar.flow(cfg).inverse(params, jax.random.normal(jax.random.key(3), (2000, 2)))[0], divergence


ticks = np.linspace(-4, 4, 200)
grid = np.stack(np.meshgrid(ticks, ticks), -1).reshape(-1, 2)
energy = np.exp(target(grid)).reshape(200, 200)
log_z = np.log(energy.sum() * (ticks[1] - ticks[0]) ** 2)
depths = (2, 8, 32)
axes = plt.subplots(1, 4, figsize=(13, 3.6))[1]
axes[0].pcolormesh(ticks, ticks, energy, cmap="magma")
axes[0].set(title="target", aspect="equal")
for axis, depth in zip(axes[1:], depths, strict=True):
    x, divergence = approximate(depth)
    axis.scatter(*x.T, s=2)
    title = f"{depth} layers, KL {divergence + log_z:.3f} nats"
    axis.set(title=title, aspect="equal", xlim=(-4, 4), ylim=(-4, 4))
