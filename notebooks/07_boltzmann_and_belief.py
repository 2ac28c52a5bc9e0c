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
# # Boltzmann machines and belief networks
#
# ## Part 1: Boltzmann machines and other energies
#
# A Boltzmann machine gives every state an energy E, and states of low energy are likely: p = exp(-E) / Z. The constant Z is a sum
# over all states, which makes these models hard to train and to judge. First, a machine so small that all its states can be
# listed; then annealed importance sampling, which estimates log Z from both sides; a restricted Boltzmann machine of digits; a
# deep machine and its mean field bound; and two modern relatives, whose energy or score is a network.

# %%
import dataclasses
import functools
import itertools
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxgen
from jaxgen import data, plot, types
from jaxgen.diffusion import networks
from jaxgen.energy import ais, dbm, ebm, rbm, score_matching
from jaxgen.energy.bipartite import Bits, Machine, Params
from jaxgen.energy.chains import Persistent
from jaxgen.energy.networks import MLP
from jaxgen.values import SGD, Adam, Cosine

SMOKE = bool(os.environ.get("JAXGEN_SMOKE"))


def every_state(num_units):
    return np.array(list(itertools.product((0.0, 1.0), repeat=num_units)), np.float32)


def random_params(num_visible, num_hidden, scale, seed):
    rng = np.random.default_rng(seed)
    shapes = (num_visible, num_hidden), (num_visible,), (num_hidden,)
    return Params(*(jnp.float32(scale * rng.normal(size=shape)) for shape in shapes))


def show(images, title, columns=10, axis=None):
    axis = axis or plt.subplots(figsize=(6, 6))[1]
    axis.imshow(plot.grid(images, columns)[..., 0], cmap="gray", vmin=0, vmax=255)
    axis.set_title(title)
    axis.axis("off")


# %% [markdown]
# ## A machine whose states can be listed
#
# Four visible and three hidden bits have 128 states. Weights are random, and biases are such that a state and its opposite, with
# all bits flipped, have the same energy, as in an Ising model without a field. The left picture has the probability of each
# state, which takes the sum Z over all 128. Without Z, Gibbs sampling draws from the same distribution: given the visible bits
# the hidden ones are independent, and the other way round, so both layers are drawn in turn. 5000 chains start with all bits
# at 0. After one sweep their histogram still shows where they came from; after enough sweeps it is that of the machine, up to
# the error of 5000 draws.

# %%
machine, params = Machine(), random_params(4, 3, 1.8, seed=3)
params = Params(params.weight, -params.weight.sum(1) / 2, -params.weight.sum(0) / 2)
v, h = every_state(4), every_state(3)
minus_energy = v @ params.visible_bias[:, None] + h @ params.hidden_bias + v @ params.weight @ h.T
log_z = jax.nn.logsumexp(minus_energy)
joint = np.exp(minus_energy - log_z)
print(
    f"log Z by all 128 states {log_z:.5f}, by the 8 states of the hidden layer {machine.log_partition(params):.5f}"
)

names = ["".join(str(int(bit)) for bit in state) for state in v]
left, right = plt.subplots(1, 2, figsize=(12, 4), width_ratios=(1, 2))[1]
picture = left.imshow(joint, cmap="magma", aspect="auto")
left.set(
    yticks=range(16), xlabel="hidden state", ylabel="visible state", title=f"p(v, h), log Z = {log_z:.3f}"
)
left.set_yticklabels(names, fontsize=7)
left.set_xticks(range(8), ["".join(str(int(bit)) for bit in state) for state in h], fontsize=7)
plt.colorbar(picture, ax=left)

num_chains = 5000
run = jax.jit(machine.gibbs, static_argnums=3)
counted = {}
for sweeps in (1, 3, 10, 300):
    states = run(jax.random.key(sweeps), params, jnp.zeros((num_chains, 4)), sweeps)
    rows = np.asarray(states @ jnp.array([8, 4, 2, 1])).astype(int)
    counted[sweeps] = np.bincount(rows, minlength=16) / num_chains
for place, (sweeps, share) in enumerate(counted.items()):
    distance = 0.5 * np.abs(share - joint.sum(1)).sum()
    right.bar(np.arange(16) + 0.2 * place - 0.3, share, 0.2, label=f"sweep {sweeps}, distance {distance:.3f}")
right.plot(np.arange(16), joint.sum(1), "k_", ms=22, mew=2, label="p(v), exact")
right.set_xticks(range(16), names, fontsize=7)
right.set(title="Gibbs chains from 0000, and total variation to p(v)", xlabel="visible state")
right.legend()
plt.tight_layout()

# %% [markdown]
# ## log Z from both sides
#
# Annealed importance sampling takes chains from independent bits, whose log Z is known, to the machine through many temperatures,
# and its estimate of log Z is low on average. Chains that go back from draws of the machine give one that is high on average.
# Here is a machine of 100 visible and 14 hidden bits, whose log Z is the sum over 2^14 hidden states. The more temperatures, the
# nearer are both to it, and their distance shows the error where no exact value is known.

# %%
params = random_params(100, 14, 0.8, seed=1)
log_z = float(machine.log_partition(params))
draws = run(jax.random.key(0), params, jnp.zeros((100, 100)), 20 if SMOKE else 500)
counts = (1, 4, 16, 64, 256)[: 2 if SMOKE else None]
found = [
    ais.bracket(jax.random.key(count), params, draws, num_temperatures=count, widest=float("inf"))
    for count in counts
]
axis = plt.subplots(figsize=(7, 4))[1]
for name in ("forward", "reverse"):
    values, errors = (np.array([getattr(f, name + end) for f in found]) for end in ("", "_error"))
    axis.errorbar(counts, values, errors, marker="o", ms=4, capsize=3, label=name)
axis.axhline(log_z, color="black", ls="--", label=f"exact, {log_z:.2f}")
axis.set(xscale="log", xlabel="temperatures", ylabel="log Z, nats", title="100 chains each way")
axis.legend()
print(
    f"{counts[-1]} temperatures: {found[-1].forward:.2f} and {found[-1].reverse:.2f} nats, exactly {log_z:.2f}"
)

# %% [markdown]
# ## A restricted Boltzmann machine of digits
#
# 100 hidden units learn digits of 8x8 pixels, cut to black and white, by persistent contrastive divergence: draws of the machine
# come from chains that go on from step to step. One machine is given 300 digits only, so that it overfits, and one all digits
# of the training split. The likelihood of a set of digits needs log Z, but the difference of two sets does not: the mean free
# energy of held-out digits minus that of training digits grows when the machine learns its examples by heart (Hinton 2010).

# %%
train, held_out = data.load("digits", "train-validation"), data.load("digits", "validation")
few = data.Dataset("300 digits", "train", {"image": train[:300]["image"]}, levels=train.levels)
cfg = rbm.Config(
    shape=few.shape,
    levels=few.levels,
    num_hidden=100,
    visible=Bits("threshold"),
    chains=Persistent(100, 5),
    weight_decay=0.0,
    optimizer=SGD(0.05, momentum=0.5),
)


def free_energies(cfg, steps, dataset, sets):
    """The state after training, and the mean free energy of each of the sets before every 50 steps."""
    batches = data.batches(dataset, 100, seed=0)
    state = rbm.init(jax.random.key(0), cfg, batches(0))

    @jax.jit
    def advance(state, images):
        free = [-rbm.log_unnormalized(state, x, cfg).mean() for x in sets]
        step = lambda state, image: (rbm.train_step(state, {"image": image}, cfg)[0], None)
        return jax.lax.scan(step, state, images)[0], free

    curves = []
    for start in range(0, steps, 50):
        state, free = advance(state, np.stack([batches(start + i)["image"] for i in range(50)]))
        curves.append(free)
    return state, np.array(curves)


steps = 100 if SMOKE else 2000
sets = [jnp.asarray(part[:300]["image"]) for part in (few, held_out)]
axis = plt.subplots(figsize=(7, 4))[1]
for name, dataset in (("300 digits", few), (f"{len(train)} digits", train)):
    state, curves = free_energies(cfg, steps, dataset, sets)
    axis.plot(50 * np.arange(len(curves)), curves[:, 1] - curves[:, 0], label=f"trained on {name}")
axis.set(xlabel="steps", ylabel="nats", title="free energy of held-out digits minus that of the 300")
axis.legend()

# %% [markdown]
# The machine of all digits, the last of both, in pictures. Filters are the weights of hidden units, each scaled by itself:
# contrasts of a few pixels each. Fantasies are what its chains show after 2000 sweeps from noise, as means of pixels. The rows
# below are held-out digits and, under each, what comes back by way of the means of the hidden units.

# %%
filters = np.asarray(state.params.weight.T).reshape(-1, *cfg.shape)
filters = filters / np.abs(filters).max((1, 2, 3), keepdims=True)
fantasies = jax.jit(lambda key: rbm.sample(key, state, 100, cfg, num_steps=20 if SMOKE else 2000))(
    jax.random.key(1)
)
axes = plt.subplots(1, 2, figsize=(12, 6))[1]
show(filters, "filters", axis=axes[0])
show(fantasies, "fantasies", axis=axes[1])

# %%
x = 2.0 * (held_out[:12]["image"] > 0) - 1
pairs = np.concatenate([x, rbm.reconstruct(state, x, cfg)])
show(pairs, "digits and their reconstructions", 12, plt.subplots(figsize=(9, 2))[1])

# %% [markdown]
# ## A deep machine and its bound
#
# In a deep Boltzmann machine the posterior of the hidden layers has no closed form. Mean field takes independent bits in its place,
# whose probabilities are found by turns: each layer given its neighbours. No turn lowers the bound on log p(v), which the pictures
# show for the 16 states of four visible bits under two hidden layers of six. What is left of the gap is the divergence of
# independent bits from the posterior, in which hidden bits depend on each other.


# %%
@functools.partial(jax.jit, static_argnums=2)
def bound(params, v, turns):
    cfg = dbm.Config(shape=(2, 2, 1), widths=(6, 6), tolerance=0.0, most_turns=turns)
    return dbm.bound(params, *dbm.mean_field(params, v, cfg))


turns = (1, 2, 3, 4, 6, 8, 12)
axes = plt.subplots(1, 2, figsize=(11, 4))[1]
for axis, scale in zip(axes, (0.5, 2.0), strict=True):
    first, second = random_params(4, 6, scale, seed=0), random_params(6, 6, scale, seed=1)
    biases = (first.visible_bias, first.hidden_bias, second.hidden_bias)
    deep = dbm.Params((first.weight, second.weight), biases)
    # Both sums over a hidden layer: over h_1 by its 64 states, and over h_2 in closed form.
    h = every_state(6)
    given_h = h @ biases[1] + jax.nn.softplus(biases[2] + h @ second.weight).sum(-1)
    exact = v @ biases[0] + jax.nn.logsumexp((v @ first.weight) @ h.T + given_h, -1)
    gaps = np.array([exact - bound(deep, jnp.asarray(v), count) for count in turns])
    axis.plot(turns, gaps, color="C0", alpha=0.5)
    title = f"weights N(0, {scale}^2), mean gap {gaps[-1].mean():.2f} nats"
    axis.set(xlabel="turns", ylabel="log p(v) minus the bound, nats", ylim=0, title=title)
plt.tight_layout()

# %% [markdown]
# ## An energy that is a network
#
# Any network with one number as its output is an energy. It is trained as the machines are, by draws of the model, which come from
# Langevin dynamics: steps down the gradient of the energy, with noise. The pictures are of two moons: the true log-density;
# minus the energy, which is log p up to a constant, after a short training that has left some mass between the moons; and ends
# of chains that start at uniform noise.

# %%
points, test = data.load("moons"), data.load("moons", "test")
steps = 20 if SMOKE else 2000
cfg = ebm.Config(
    network=MLP((128, 128)),
    num_steps=30,
    step_size=2e-3,
    noise=None,
    gradient_clip=None,
    regularization=1e-3,
    optimizer=Adam(1e-3, beta1=0.0, schedule=Cosine(steps), gradient_clip=1.0),
)
cfg = types.from_data(ebm, points, cfg)
state = jaxgen.fit(ebm, cfg, points, steps=steps, batch_size=256, key=jax.random.key(0))
ticks = np.linspace(-1.6, 2.6, 150), np.linspace(-1.2, 1.7, 110)
grid = np.stack(np.meshgrid(*ticks), -1).reshape(-1, 2)
log_p = {
    "true log-density": test.log_density(grid),
    "minus the energy": np.asarray(ebm.score(state, jnp.float32(grid), cfg)),
}
drawn = ebm.sample(jax.random.key(1), state, 2000, cfg, num_steps=20 if SMOKE else None)
axes = plt.subplots(1, 3, figsize=(13, 3.4))[1]
for axis, (title, values) in zip(axes[:2], log_p.items(), strict=True):
    highest = values.max()
    axis.pcolormesh(*ticks, values.reshape(110, 150), cmap="magma", vmin=highest - 10, vmax=highest)
    axis.set(title=title, aspect="equal")
axes[2].scatter(*np.asarray(drawn).T, s=2)
axes[2].set(title="ends of chains", aspect="equal", xlim=(-1.6, 2.6), ylim=(-1.2, 1.7))

# %% [markdown]
# ## A score without an energy
#
# Langevin dynamics needs no more than the gradient of log p, the score, and denoising teaches it without any chain in training.
# One network learns the scores of data with more and with less noise. Arrows show where it points; sampling follows them from the
# most noise to the least.

# %%
steps = 20 if SMOKE else 4000
cfg = score_matching.Config(
    network=networks.MLP((128, 128, 128)),
    num_levels=10,
    optimizer=Adam(1e-3, schedule=Cosine(steps), gradient_clip=1.0),
)
cfg = types.from_data(score_matching, points, cfg)
state = jaxgen.fit(score_matching, cfg, points, steps=steps, batch_size=256, key=jax.random.key(0))
levels = score_matching.noise_levels(cfg)
x = test[:2000]["x"]
coarse = np.stack(np.meshgrid(np.linspace(-1.6, 2.6, 22), np.linspace(-1.2, 1.7, 16)), -1).reshape(-1, 2)
axes = plt.subplots(1, 4, figsize=(16, 3.4))[1]
for axis, level in zip(axes[:3], levels[[1, 4, 6]], strict=True):
    arrows = score_matching.log_gradient(state, jnp.float32(coarse), cfg, level=level)
    noisy = x + level * np.random.default_rng(0).normal(size=x.shape)
    axis.scatter(*noisy.T, s=1, color="C1", alpha=0.4)
    axis.quiver(*coarse.T, *np.asarray(arrows).T, angles="xy")
    axis.set(title=f"noise {level:.2f}", aspect="equal", xlim=(-1.7, 2.7), ylim=(-1.3, 1.8))
drawn = score_matching.sample(jax.random.key(1), state, 2000, cfg, steps_per_level=2 if SMOKE else None)
axes[3].scatter(*np.asarray(drawn).T, s=2)
axes[3].set(title="samples", aspect="equal", xlim=(-1.6, 2.6), ylim=(-1.2, 1.7))

# %% [markdown]
# ## Part 2: Belief networks
#
# A belief network has arrows: hidden causes turn units below them on. To draw from it is easy, and to find the causes of what is
# seen is not, because causes compete. Below, two rare causes each turn on the same unit. Seen alone, the unit makes both causes
# likely, but once one of them is known to be there, the other is no longer needed: it is explained away. Gibbs sampling, one
# unit at a time, finds the true posterior; a recognition network whose units are independent cannot have this shape.

# %%
from jaxgen.belief import helmholtz, nvil, predictability, sigmoid_belief_net, sigmoid_net
from jaxgen.belief.nvil import NVIL, VIMCO
from jaxgen.belief.sigmoid_net import Generative
from jaxgen.nn.sigmoid_layers import Layer

net = Generative((Layer(jnp.full((1, 2), 8.0), jnp.full(1, -4.0)),), jnp.full(2, -3.0))
causes = every_state(2)
exact = np.exp(sigmoid_net.log_joint(net, [jnp.ones((4, 1)), jnp.asarray(causes)]))
exact = exact / exact.sum()
seen = jnp.ones((5000, 1))
drawn = np.asarray(sigmoid_belief_net.posterior(jax.random.key(0), net, seen, 50)[1])
share = [(drawn == cause).all(1).mean() for cause in causes]
one = exact[2:].sum()
apart = [(1 - one) ** 2, one * (1 - one), one * (1 - one), one**2]
axis = plt.subplots(figsize=(7, 3.5))[1]
for place, (name, heights) in enumerate(
    {"exact": exact, "Gibbs sampling": share, "independent units, same means": apart}.items()
):
    axis.bar(np.arange(4) + 0.27 * place - 0.27, heights, 0.27, label=name)
axis.set_xticks(range(4), ["neither", "second", "first", "both"])
axis.set(title="causes of a unit that is on", ylabel="posterior probability", ylim=(0, 0.6))
axis.legend()

# %% [markdown]
# ## Learning with a recognition network
#
# Three ways to train a net with 14 hidden units on digits cut to black and white. It has 2^14 hidden states, so that its exact
# likelihood can be followed. Wake-sleep teaches each network by what the other one draws. NVIL raises the bound by score-function
# gradients, and VIMCO the tighter bound of five draws. One run each, so small differences say nothing.

# %%
train, held_out = data.load("digits", "train-validation"), data.load("digits", "validation")
steps, every = (20, 10) if SMOKE else (2000, 250)
common = {"widths": (14,), "visible": Bits("threshold"), "optimizer": Adam(3e-3)}
ways = {
    "wake-sleep": (helmholtz, helmholtz.Config(**common)),
    "NVIL": (nvil, nvil.Config(**common)),
    "VIMCO, 5 draws": (nvil, nvil.Config(**common, estimator=VIMCO(5))),
}


def follow(family, cfg):
    """The state after training, and the exact negative log-likelihood of held-out digits on the way."""
    cfg = types.from_data(family, train, cfg)
    batches, x = data.batches(train, 64, seed=0), jnp.asarray(held_out[:]["image"])
    state, curve = family.init(jax.random.key(0), cfg, batches(0)), []

    @jax.jit
    def advance(state, images):
        nll = -family.exact_log_prob(state, x, cfg).mean()
        step = lambda state, image: (family.train_step(state, {"image": image}, cfg)[0], None)
        return jax.lax.scan(step, state, images)[0], nll

    for start in range(0, steps + 1, every):
        images = np.stack([batches(start + i)["image"] for i in range(every)])
        following, nll = advance(state, images)
        curve.append(float(nll))
        state = state if start == steps else following
    return cfg, state, curve


axis = plt.subplots(figsize=(7, 4))[1]
trained = {}
for name, (family, cfg) in ways.items():
    cfg, state, curve = follow(family, cfg)
    trained[name] = cfg, state
    axis.plot(np.arange(0, steps + 1, every), curve, label=f"{name}, {curve[-1]:.2f}")
axis.set(xlabel="steps", ylabel="nats", title="exact negative log-likelihood of held-out digits")
axis.legend()

# %% [markdown]
# Dreams of the net that NVIL has trained, as means of pixels given a draw of the hidden units, and what each hidden unit adds to the
# logits of the pixels.

# %%
cfg, state = trained["NVIL"]
axes = plt.subplots(1, 2, figsize=(12, 4))[1]
show(nvil.sample(jax.random.key(1), state, 60, cfg), "dreams", 12, axes[0])
weights = np.asarray(state.params.net.generative.layers[0].weight.T).reshape(-1, *cfg.shape)
show(weights / np.abs(weights).max((1, 2, 3), keepdims=True), "weights of the hidden units", 7, axes[1])

# %% [markdown]
# ## What each trick does to the gradient
#
# The score-function gradient is right on average and noisy. At the parameters just trained, this is the variance of the recognition
# network's gradient over draws of the hidden units, divided by the squared length of its mean, on one batch. A running mean of the
# signal takes most of the noise away; a baseline that depends on the picture takes more. A net with one hidden layer has no use
# for local signals.

# %%
batch = {"image": jnp.asarray(train[:64]["image"])}


def noise(estimator, params, signal, count=20 if SMOKE else 400):
    own = dataclasses.replace(cfg, estimator=estimator)

    def gradient(key):
        grads = jax.grad(nvil.estimate, has_aux=True)(params, batch, key, own, signal)[0]
        return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(grads.net.recognition)])

    draws = jax.jit(lambda key: jax.lax.map(gradient, jax.random.split(key, count)))(jax.random.key(2))
    one, two = draws[: count // 2].mean(0), draws[count // 2 :].mean(0)
    return float(draws.var(0).sum() / (one * two).sum())


plain = NVIL(learned=False, centred=False, normalised=False, local=False, decay=1.0)
bare = state.params._replace(baselines=())
raw = dataclasses.replace(cfg, estimator=dataclasses.replace(plain, decay=0.0))
signal = nvil.estimate(bare, batch, jax.random.key(3), raw, state.signal)[1][1]
bars = {
    "none": noise(plain, bare, signal),
    "centred": noise(dataclasses.replace(plain, centred=True), bare, signal),
    "centred and learned": noise(NVIL(decay=1.0), state.params, state.signal),
    "VIMCO, 5 draws": noise(VIMCO(5), bare, signal),
}
axis = plt.subplots(figsize=(7, 3))[1]
axis.barh(list(bars), list(bars.values()))
axis.set(xscale="log", xlabel="variance / squared mean", title="noise of the gradient")
axis.invert_yaxis()

# %% [markdown]
# ## Codes whose units do not tell of each other
#
# In predictability minimisation a predictor guesses each unit of a code from the others, and the encoder makes this impossible. The
# data are pictures with four horizontal and four vertical bars, each there with probability 1/4 and independent of the others.
# Mutual information of units is drawn for a plain autoencoder with sigmoid units, and for the game. Units of the game are nearly
# bits, which alone are enough to draw the pictures again; whether its units share less information differs from seed to seed.

# %%
rng = np.random.default_rng(0)
bars_on = rng.random((2, 6000, 4, 1)) < 0.25
pictures = np.where(bars_on[0] | bars_on[1].swapaxes(1, 2), 255, 0).astype(np.uint8)[..., None]
dataset = data.Dataset("bars", "train", {"image": pictures[:5000]}, levels=2)
x = jnp.asarray(data.Dataset("bars", "test", {"image": pictures[5000:]}, levels=2)[:]["image"])
axes = plt.subplots(1, 3, figsize=(13, 3.6), width_ratios=(1, 1, 1.4))[1]
for axis, (name, weight) in zip(axes, {"autoencoder": 0.0, "game": 4.0}.items(), strict=False):
    cfg = predictability.Config(shape=(4, 4, 1), num_units=8, weight=weight, predictor_optimizer=Adam(3e-3))
    state = jaxgen.fit(
        predictability, cfg, dataset, steps=20 if SMOKE else 3000, batch_size=128, key=jax.random.key(0)
    )
    y = predictability.encode(state, x, cfg)
    information = np.asarray(predictability.mutual_information(y))
    decoded = predictability.decode(state, jnp.round(y), cfg)
    error = float(((decoded - x) ** 2).mean())
    picture = axis.imshow(information, cmap="magma", vmin=0, vmax=0.7)
    mean = information[np.triu_indices(8, 1)].mean()
    axis.set_title(f"{name}: {mean:.3f} nats a pair\nerror from bits {error:.3f}")
plt.colorbar(picture, ax=axes[:2], label="nats; entropies on the diagonal")
show(np.concatenate([x[:10], decoded[:10]]), "pictures, and from the bits of the game", 10, axes[2])
