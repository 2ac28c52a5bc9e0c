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
# # Diffusion: drown a picture in noise, and learn to undo it
#
# Forward, noise is added in many small steps until nothing is left; backward, a network undoes them one by one. First
# the noise, on a digit; then the backward process where it is known exactly, which shows what samplers do; then a network
# that learns it in a few minutes, its samples frame by frame, what they cost, and what else it can do.

# %%
import os
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxgen
from jaxgen import data, plot, types
from jaxgen.diffusion import ddpm, editing, networks, processes, samplers, schedules
from jaxgen.evaluation import features, frechet
from jaxgen.values import Adam, Cosine

SMOKE = bool(os.environ.get("JAXGEN_SMOKE"))


def show(images, columns, title=""):
    plt.figure(figsize=(9, 9 * len(images) / columns / columns + 0.3))
    plt.imshow(plot.grid(images, columns), cmap="gray", vmin=0, vmax=255)
    plt.title(title)
    plt.axis("off")


train, test = data.load("digits"), data.load("digits", "test")

# %% [markdown]
# ## Forward: four ways to drown a digit
#
# x_t = alpha_t x_0 + sigma_t noise: at any time in one step. A schedule says how fast the signal goes; here one a row, in
# ten of its thousand steps. The linear one has lost the digit by half of the way, the cosine takes its time.

# %%
times = np.linspace(0, 999, 10).astype(int)
x0 = jnp.repeat(test[:1]["image"], 10, 0)
noise = jnp.broadcast_to(jax.random.normal(jax.random.key(0), x0[:1].shape), x0.shape)
rows, figure = [], plt.figure(figsize=(6, 3))
for name in schedules.SCHEDULES:
    process = processes.gaussian(schedules.betas(name, 1000))
    rows.append(processes.q_sample(process, x0, times, noise))
    plt.plot(processes.levels(process, np.arange(1000))[0], label=name)
plt.xlabel("t")
plt.ylabel("alpha, what is left of the picture")
plt.legend()
show(jnp.concatenate(rows), 10, ", ".join(schedules.SCHEDULES))

# %% [markdown]
# ## Backward, where it is known
#
# Two points of data, -1 and 1. What a network would have to learn is then a formula: the mean of the data given x_t is
# tanh(alpha x_t / sigma^2). Samplers take any such function. The same noise runs to the same end by DDIM, whose paths are
# smooth, as by ancestral sampling, whose paths are not, half of it to each point.

# %%
process = processes.gaussian(schedules.betas("cosine", 1000))
alpha, sigma = (jnp.float32(level) for level in processes.levels(process, np.arange(1000)))
exact = lambda x, t: jnp.tanh(alpha[t][:, None] * x / sigma[t][:, None] ** 2)

x = jax.random.normal(jax.random.key(1), (40, 1))
every = samplers.spaced(1000, 200)
smooth = samplers.ddim.path(exact, x, process, every, target="x0").frames(200)
rough = samplers.ddpm.path(exact, x, process, every, jax.random.key(2), target="x0").frames(200)
figure, both = plt.subplots(1, 2, figsize=(11, 3.5), sharey=True)
for axes, paths, name in zip(both, (smooth, rough), ("DDIM", "ancestral"), strict=True):
    axes.plot(every, paths[..., 0], linewidth=0.7)
    axes.invert_xaxis()
    axes.set(title=name, xlabel="t")

# %% [markdown]
# ## A network learns it
#
# A small U-Net sees a noisy digit and t, and is asked for the noise. It is told the class too, but for one example in ten,
# so that it can do without. Everything below comes from this one model.

# %%
num_steps = 10 if SMOKE else 1500
optimizer = Adam(1e-3, schedule=Cosine(decay_steps=num_steps), gradient_clip=1.0)
network = networks.MLP((32,)) if SMOKE else networks.UNet()
cfg = ddpm.Config(network=network, num_steps=50 if SMOKE else 1000, conditional=True, optimizer=optimizer)
cfg = types.from_data(ddpm, train, cfg)
log = []
state = jaxgen.fit(
    ddpm,
    cfg,
    train,
    steps=num_steps,
    batch_size=128,
    key=jax.random.key(0),
    on_log=lambda step, metrics, state: log.append({"step": step, **metrics}),
)
plt.figure(figsize=(6, 3))
plt.semilogy([row["step"] for row in log], [row["mse"] for row in log])
plt.xlabel("step")
plt.ylabel("squared error of the noise")

# %% [markdown]
# ## Backward, frame by frame
#
# From noise at the left to a digit at the right, a class a row, in fifty calls of the network.

# %%
label = jnp.arange(10)
frames = ddpm.trajectory(jax.random.key(3), state, 10, cfg, label, steps=50, frames=10)
show(frames.swapaxes(0, 1).reshape(-1, *cfg.shape), 10)

# %% [markdown]
# ## The final grid

# %%
show(ddpm.sample(jax.random.key(4), state, 100, cfg, jnp.repeat(label, 10)), 10)

# %% [markdown]
# ## How many calls are enough?
#
# The same noise by three samplers, each row with more calls than the one above. DDIM is a first-order method, the other
# two are of second order: DPM-Solver++ is nearly where it will stay after ten calls, Heun's method, which spends two on a
# step, after twenty.

# %%
calls = (5, 10) if SMOKE else (5, 10, 20, 50)
many = jnp.arange(20 if SMOKE else 360) % 10
drawn = {}
methods = {"DDIM": samplers.DDIM(), "DPM-Solver++": samplers.DPMSolverPP(), "Heun": samplers.Heun()}
for name, sampler in methods.items():
    for steps in calls:
        draw = partial(ddpm.sample, n=len(many), cfg=cfg, label=many, sampler=sampler, steps=steps)
        drawn[name, steps] = jax.jit(draw)(jax.random.key(5), state)
    show(jnp.concatenate([drawn[name, steps][:10] for steps in calls]), 10, f"{name}: {calls} calls")

# %% [markdown]
# In numbers: the Frechet distance to test digits in the features of a classifier. What real training digits get is the
# dashed line.

# %%
extractor = features.load("small-cnn", test)


def distance(images):
    first, second = (frechet.Moments().update(features.of(extractor, x)) for x in (test[:]["image"], images))
    return frechet.frechet_distance(first.mean, first.covariance, second.mean, second.covariance)


figure, axes = plt.subplots(figsize=(6, 3.5))
for name in methods:
    axes.plot(calls, [distance(drawn[name, steps]) for steps in calls], marker="o", label=name)
rows = np.random.default_rng(0).permutation(len(train))[: len(many)]
axes.axhline(distance(train[np.sort(rows)]["image"]), color="grey", linestyle="--")
axes.set(xlabel="calls of the network", ylabel="Frechet distance", xscale="log")
axes.set_xticks(calls, calls)
axes.minorticks_off()
axes.legend()

# %% [markdown]
# ## Guidance
#
# prediction = (1 - w) unconditional + w conditional: w = 0 ignores the class, 1 is what was trained, more exaggerates what
# makes a digit of this class. A column a class, a row a scale, the same noise. What is gained in clarity is lost in
# variety; `experiments/studies/guidance.py` measures both.

# %%
guidance = (0.0, 1.0, 2.0, 5.0)
guided = [ddpm.sample(jax.random.key(7), state, 10, cfg, label, guidance=scale) for scale in guidance]
show(jnp.concatenate(guided), 10, f"w = {guidance}")

# %% [markdown]
# ## What else it can do
#
# Fill in: the left half of a digit is given, the right half drawn, four times. Go from one digit to another through
# their noise, by running DDIM backward. Redraw a digit from half of the noise. All of these take the trained network as a
# function, `ddpm.predictor`.

# %%
process = ddpm.process(cfg)
model, steps = ddpm.predictor(state, cfg), samplers.spaced(cfg.num_steps, 50)
known = test[:10]["image"]
mask = jnp.zeros(cfg.shape).at[:, :4].set(1.0)
filled = editing.inpainting(model, jnp.tile(known, (4, 1, 1, 1)), mask, process)
start = jax.random.normal(jax.random.key(8), (40, *cfg.shape))
drawn = samplers.ddim(filled, start, process, steps, clip=1.0)
show(
    jnp.concatenate([known, jnp.where(mask == 1, known, -1.0), drawn]),
    10,
    "digits, what is given, four guesses",
)

between = editing.between(model, known[:5], known[5:], process, steps, 10, iterations=3)
show(between.swapaxes(0, 1).reshape(-1, *cfg.shape), 10, "from one digit to another")

redrawn = [
    editing.redraw(model, known, process, steps, strength, jax.random.key(9), clip=1.0)
    for strength in (0.2, 0.5, 0.8)
]
show(jnp.concatenate([known, *redrawn]), 10, "digits, and redrawn from 0.2, 0.5 and 0.8 of the noise")

# %% [markdown]
# ## What a digit costs in bits
#
# The bound on -log p(x_0) is a sum over t. Most of it is paid at the first few times, for detail no eye sees: which of its
# 17 levels each pixel has.

# %%
x = test[: 10 if SMOKE else 100]["image"]
terms = jax.jit(lambda key: ddpm.vlb_terms(key, state, x, cfg, test[: len(x)]["label"]))(jax.random.key(10))
bits = np.asarray(terms.mean(1)) / (np.log(2) * x[0].size)
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.5))
left.loglog(1 + np.arange(len(bits) - 1), bits[:-1])
left.set(xlabel="t", ylabel="bits/dim of this term")
right.semilogx(1 + np.arange(len(bits) - 1), bits[:-1].cumsum())
right.set(xlabel="t", ylabel="bits/dim up to here")
print(f"{bits.sum():.2f} bits/dim, of which {bits[-1]:.5f} at T")
