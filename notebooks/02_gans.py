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
# # Adversarial networks: the game, how it goes wrong, and what helps
#
# A generator makes examples, a discriminator tells them from data, and each learns from the other. First what theory
# says about that, computed where integrals are sums; then a generator that loses the data, and what cures it; then
# digits. Everything is trained here.

# %%
import dataclasses
import os
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxgen
from jaxgen import data, plot
from jaxgen.data import points
from jaxgen.evaluation import modes
from jaxgen.gan import diagnostics, gan, presets
from jaxgen.gan.conditioning import Concat
from jaxgen.gan.losses import LOSSES
from jaxgen.gan.networks import mlp
from jaxgen.gan.penalties import R1
from jaxgen.latent import interpolate
from jaxgen.values import Adam, Average

SMOKE = bool(os.environ.get("JAXGEN_SMOKE"))

# %% [markdown]
# ## The best discriminator knows the ratio of densities
#
# Against a fixed generator the logistic loss is least where D = p / (p + q). Here the data are N(0, 1) and samples come
# from N(shift, 1). One discriminator is trained for each shift, all of them at once: states are explicit, so `vmap` does
# that.

# %%
cfg = gan.Config(
    shape=(1,),
    num_latents=1,
    generator=mlp.Generator(()),  # no hidden layer: x = weight z + bias
    discriminator=mlp.Discriminator((32, 32)),
    discriminator_optimizer=Adam(2e-3, beta1=0.5),
)


@jax.jit
@jax.vmap
def best_logits(shift):
    """Logits on the grid x of a discriminator trained to tell N(0, 1) from N(shift, 1)."""
    state = gan.init(jax.random.key(0), cfg)
    generator = {"Dense_0": {"kernel": jnp.ones((1, 1)), "bias": shift[None]}}
    state = state._replace(params={**state.params, "generator": generator})

    def step(state, index):
        real_key, key = jax.random.split(jax.random.fold_in(jax.random.key(1), index))
        return gan.discriminator_step(state, {"x": jax.random.normal(real_key, (512, 1))}, key, cfg)[0], None

    state = jax.lax.scan(step, state, jnp.arange(20 if SMOKE else 1500))[0]
    return gan.judge(state, x[:, None], cfg).logits


x = jnp.linspace(-5, 8, 651)
density = lambda shift: jax.scipy.stats.norm.pdf(x - shift)
shifts = jnp.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0])
logits = best_logits(shifts)

plt.fill_between(x, density(0.0), alpha=0.3, label="data, p")
plt.fill_between(x, density(1.5), alpha=0.3, label="samples, q")
plt.plot(x, density(0.0) / (density(0.0) + density(1.5)), "k--", label="p / (p + q)")
plt.plot(x, jax.nn.sigmoid(logits[3]), label="D, trained")
plt.xlim(-3.5, 5)
plt.legend()

# %% [markdown]
# With that discriminator the game is worth -log 4 + 2 JSD(p, q): the generator minimises a distance to the data, and at
# the end, where D says 1/2 everywhere, the value is -log 4.


# %%
def integral(values):
    return jnp.trapezoid(values, x)


def jensen_shannon(p, q):
    middle = (p + q) / 2
    return 0.5 * integral(jax.scipy.special.rel_entr(p, middle) + jax.scipy.special.rel_entr(q, middle))


for shift, row in zip(shifts, logits, strict=True):
    p, q = density(0.0), density(shift)
    value = -integral(p * jax.nn.softplus(-row) + q * jax.nn.softplus(row))
    print(
        f"shift {shift:3.1f}: value {value:.3f}, -log 4 + 2 JSD {-np.log(4) + 2 * jensen_shannon(p, q):.3f}"
    )

# %% [markdown]
# ## Why the first loss is not used, and why Wasserstein's is
#
# Left: the gradient that moves the samples, under the best discriminator. The minimax loss has none left once samples are
# far from the data, which is where it is needed; the non-saturating loss does. Right: two distributions that hardly
# overlap. However far they are apart, the Jensen-Shannon divergence is log 2, so it does not say which way to go. The
# Wasserstein distance does.


# %%
def gradient(name, distance):
    """|d loss / d shift| of samples N(distance, 1) against data N(0, 1)."""
    z = jnp.linspace(-6, 6, 1201)
    weight = jax.scipy.stats.norm.pdf(z) * (z[1] - z[0])
    logit = lambda x: distance**2 / 2 - distance * x  # log p/q
    each = jax.vmap(lambda logit: LOSSES[name].generator(logit[None], logit[None]))
    return abs(jax.grad(lambda shift: (weight * each(logit(z + distance + shift))).sum())(0.0))


distances = jnp.linspace(0.1, 6, 40)
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
for name in ("minimax", "non_saturating"):
    left.semilogy(distances, jax.vmap(partial(gradient, name))(distances), label=name)
left.set(xlabel="distance of samples from data", title="the generator's gradient")

narrow = lambda shift: jax.scipy.stats.norm.pdf(x - shift, scale=0.05)
apart = jnp.linspace(0, 2, 41)
right.plot(apart, [jensen_shannon(narrow(0.0), narrow(shift)) for shift in apart], label="Jensen-Shannon")
step = x[1] - x[0]
distance = lambda p, q: integral(jnp.abs(jnp.cumsum(p - q) * step))
right.plot(apart, [distance(narrow(0.0), narrow(shift)) for shift in apart], label="Wasserstein-1")
right.set(xlabel="distance of two narrow Gaussians", title="how far two distributions are apart")
left.legend()
right.legend()
# %% [markdown]
# `experiments/studies/gan_theory.py` has more of this, among it how the vanilla, the f- and the Wasserstein GAN come out of one
# equation.
#
# ## Collapse, and its cure
#
# Eight narrow Gaussians on a circle. A game played too fast never settles: samples run to where the discriminator thinks
# best at the moment, are found out, and run on; half of the ring is lost. At a fifth of the speed, with less momentum, it
# works; and comparing pairs (the relativistic loss), with a smooth discriminator (penalties R1 and R2 on its gradient) and
# steps that shrink to nothing, brings samples nearer to the data: Huang et al. 2024. One and the same step trains all
# three, for they differ in the values of one Config. `diagnostics.warnings` reads the last log line: it tells of copies of a few
# examples and of saturation, and lets half a ring pass.

# %%
ring = data.load("ring")
steps = 30 if SMOKE else 3000
players = ("generator_optimizer", "discriminator_optimizer")
equal = gan.Config(
    shape=(2,),
    num_latents=2,
    generator=mlp.Generator((128, 128, 128)),
    discriminator=mlp.Discriminator((128, 128, 128)),
    average=Average(0.0),
)
systems = {
    "too fast": dataclasses.replace(equal, **dict.fromkeys(players, Adam(5e-3, beta1=0.9))),
    "slower": dataclasses.replace(equal, **dict.fromkeys(players, Adam(1e-3, beta1=0.5))),
    "relativistic, R1 and R2": presets.decaying(presets.POINTS["r3gan"].config, steps),
}
figure, axes = plt.subplots(1, 3, figsize=(13, 4.5), sharex=True, sharey=True)
for axis, (name, cfg) in zip(axes, systems.items(), strict=True):
    rows = []
    state = jaxgen.fit(
        gan,
        cfg,
        ring,
        steps=steps,
        batch_size=256,
        key=jax.random.key(0),
        on_log=lambda step, row, state, rows=rows: rows.append(row),
    )
    samples = gan.sample(jax.random.key(1), state, 2500, cfg)
    found = modes.mode_statistics(samples, points.ring_centers(), points.RING_STD)
    print(f"{name}: {found['modes']} of 8 modes, {found['high_quality']:.0%} of samples near one")
    print("   ", *(diagnostics.warnings(rows[-1]) or ["no warning"]))
    axis.scatter(*ring[:2500]["x"].T, s=2, color="0.8")
    axis.scatter(*samples.T, s=2)
    axis.set(title=name, aspect="equal", xlim=(-1.5, 1.5), ylim=(-1.5, 1.5))

# %% [markdown]
# ## Digits
#
# A small network on 8x8 digits, told by R1 to be gentle, with labels: rows are classes. `diagnostics.warnings` reads a
# log line and says what goes wrong, if something does; here it has nothing to say.

# %%
digits = data.load("digits")
cfg = gan.Config(
    shape=digits.shape,
    num_classes=10,
    conditioning=Concat(),
    num_latents=32,
    generator=mlp.Generator((256, 256)),
    discriminator=mlp.Discriminator((256, 256)),
    penalty=R1(1.0),
    generator_optimizer=Adam(1e-3, beta1=0.0),
    discriminator_optimizer=Adam(1e-3, beta1=0.0),
)
rows = []
state = jaxgen.fit(
    gan,
    cfg,
    digits,
    steps=30 if SMOKE else 6000,
    batch_size=64,
    key=jax.random.key(0),
    on_log=lambda step, row, state: rows.append({"step": step, **row}),
)
print("warnings:", diagnostics.warnings(rows[-1]))

label = jnp.repeat(jnp.arange(10), 12)
figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5))
left.imshow(plot.grid(gan.sample(jax.random.key(1), state, 120, cfg, label=label), columns=12), cmap="gray")
left.axis("off")
for name in ("diversity", "real_accuracy", "fake_accuracy", "discriminator_slope"):
    right.plot([row["step"] for row in rows], [row[name] for row in rows], label=name)
right.set(xlabel="step", ylim=(0, 1.3))
right.legend()
# %% [markdown]
# ## Ways between codes
#
# Along arcs, since codes of a Gaussian lie near a sphere. The label stays, the hand changes.

# %%
ends = gan.draw_codes(jax.random.key(2), 12, cfg).reshape(2, 6, -1)
z = interpolate.path(*ends, 12, interpolate.slerp).swapaxes(0, 1).reshape(72, -1)
images = gan.decode(state, z, cfg, jnp.repeat(jnp.array([0, 2, 3, 5, 7, 8]), 12))
plt.imshow(plot.grid(images, columns=12), cmap="gray")
plt.axis("off")
# %% [markdown]
# Typical or varied: codes cut off at 0.3, 0.7, 1.2 and not at all, a row each, all of them eights. Less of the prior gives
# cleaner digits, all alike.

# %%
eights = jnp.full(12, 8)
cut = [
    gan.sample(jax.random.key(3), state, 12, cfg, label=eights, truncation=limit)
    for limit in (0.3, 0.7, 1.2, None)
]
plt.imshow(plot.grid(jnp.concatenate(cut), columns=12), cmap="gray")
plt.axis("off")
