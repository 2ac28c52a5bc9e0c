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
# # Autoregressive models: one symbol after the other
#
# Any distribution is a product of conditionals, p(x) = p(x_1) p(x_2 | x_1) p(x_3 | x_1, x_2) ..., and a network that gives them
# all at once can be trained by maximum likelihood, without a bound. What the network may see is then everything: first, masked
# convolutions and the pixels that they miss; then digits that are continued from their upper half; then sound.

# %%
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Audio, display

import jaxgen
from jaxgen import data, types
from jaxgen.autoregressive import pixelcnn, sequential, wavenet
from jaxgen.autoregressive.pixelcnn import GatedPixelCNN, PixelCNN
from jaxgen.autoregressive.wavenet import WaveNet
from jaxgen.data.sound import RATE
from jaxgen.likelihoods import Categorical
from jaxgen.types import observed
from jaxgen.values import Adam, Cosine

SMOKE = bool(os.environ.get("JAXGEN_SMOKE"))


def train_on(dataset, family, steps, batch_size, **hyperparameters):
    steps = 20 if SMOKE else steps
    optimizer = Adam(2e-3, schedule=Cosine(steps), gradient_clip=1.0)
    cfg = types.from_data(family, dataset, family.Config(optimizer=optimizer, **hyperparameters))
    return cfg, jaxgen.fit(family, cfg, dataset, steps=steps, batch_size=batch_size, key=jax.random.key(0))


# %% [markdown]
# ## What a masked convolution does not see
#
# The gradient of one pixel's logit shows which pixels it depends on. A stack of masked convolutions misses a wedge to the right,
# above the pixel, however deep it is: the blind spot. The gated network has a vertical stack, which reads whole rows, and none.

# %%
SIDE, PLACE = 15, (9, 7)


def field(network):
    cfg = pixelcnn.Config(shape=(SIDE, SIDE, 1), network=network)
    state = pixelcnn.init(jax.random.key(0), cfg)
    network = sequential.network(cfg)
    x = jax.random.normal(jax.random.key(1), (8, SIDE * SIDE, 1))
    logit = lambda x: network.apply({"params": state.params}, x)[0][:, PLACE[0] * SIDE + PLACE[1]].sum()
    return jnp.abs(jax.jit(jax.grad(logit))(x)).sum((0, 2)).reshape(SIDE, SIDE) > 0


networks = {
    f"{name}, {depth} layers": network(8, depth, first_kernel=5)
    for depth in (2, 4, 8)
    for name, network in (("PixelCNN", PixelCNN), ("gated", GatedPixelCNN))
}
figure, axes = plt.subplots(2, 3, figsize=(9, 6.2))
for axis, (name, network) in zip(axes.T.ravel(), networks.items(), strict=True):
    seen = np.asarray(field(network), float)
    seen[PLACE] = 0.5
    axis.imshow(seen, cmap="magma", vmin=0, vmax=1)
    axis.set(title=name, xticks=[], yticks=[])
figure.tight_layout()

# %% [markdown]
# ## Digits from their upper half
#
# A Gated PixelCNN of 8x8 digits with 17 grey values, trained for a few minutes. Each row shows a test digit whose lower half is
# hidden, six continuations, and the digit itself. Sampling keeps what every layer has made of the pixels before, so a pixel
# takes the work of one pixel.

# %%
train, test = data.load("digits"), data.load("digits", "test")
cfg, state = train_on(
    train, pixelcnn, 1500, 64, likelihood=Categorical(), network=GatedPixelCNN(16, 4, first_kernel=5)
)
x = jnp.asarray(test[:8]["image"])
nll = -pixelcnn.log_prob(state, jnp.asarray(test[:]["image"]), cfg)
print(f"{nll.mean() / 64 / np.log(2):.2f} bits a pixel of held-out digits, of log2(17) = {np.log2(17):.2f}")

# %%
sample = jax.jit(lambda key, prefix: pixelcnn.sample(key, state, 8, cfg, prefix=prefix))
completed = [sample(jax.random.key(i), x[:, :4]) for i in range(6)]
rows = jnp.stack([jnp.concatenate([x[:, :4], jnp.zeros_like(x[:, 4:])], 1), *completed, x], 1)
picture = np.asarray(jnp.pad(rows, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)), constant_values=0.3))[..., 0]
picture = picture.transpose(0, 2, 1, 3).reshape(80, 80)
plt.figure(figsize=(6, 6))
plt.imshow(picture, cmap="gray", vmin=-1, vmax=1)
plt.axis("off")
# %% [markdown]
# At a temperature below 1 likelier pixels are drawn, and fewer different ones.

# %%
figure, axes = plt.subplots(1, 3, figsize=(9, 3.2))
for axis, temperature in zip(axes, (0.5, 1.0, 1.5), strict=True):
    drawn = pixelcnn.sample(jax.random.key(0), state, 25, cfg, temperature=temperature)
    tiles = np.asarray(jnp.pad(drawn, ((0, 0), (1, 1), (1, 1), (0, 0))))[..., 0]
    axis.imshow(
        tiles.reshape(5, 5, 10, 10).transpose(0, 2, 1, 3).reshape(50, 50), cmap="gray", vmin=-1, vmax=1
    )
    axis.set(title=f"temperature {temperature}", xticks=[], yticks=[])
figure.tight_layout()

# %% [markdown]
# ## A sound continued
#
# WaveNet reads sound as 256 codes, finer where it is quiet, and its dilated convolutions see hundreds of samples back. Trained on
# tones of four timbres, it is given the first half of held-out ones and goes on. After so few steps, on a CPU, it has learned
# what a tone is like and not yet to hold one: it keeps the pitch for a few periods and wanders off then.

# %%
tones, held_out = data.load("tones"), data.load("tones", "test")
sound_cfg, sound_state = train_on(tones, wavenet, 600, 8, network=WaveNet(24, 48, 2, 7))
print("receptive field:", sequential.network(sound_cfg).receptive_field, "samples")
heard = jnp.asarray(observed(held_out[:4]))
nll = -wavenet.log_prob(sound_state, jnp.asarray(observed(held_out[:64])), sound_cfg).mean()
print(f"{nll / tones.shape[0] / np.log(2):.2f} bits a sample of held-out tones, of 8")

# %%
half = tones.shape[0] // 2
go_on = jax.jit(lambda key, prefix: wavenet.sample(key, sound_state, 4, sound_cfg, prefix=prefix))
continued = np.asarray(go_on(jax.random.key(0), heard[:, :half]))
time = np.arange(tones.shape[0]) / RATE
figure, axes = plt.subplots(4, 2, figsize=(10, 8), width_ratios=(2, 1))
for row, (wave, spectrum) in enumerate(axes):
    wave.plot(
        time[half - 200 : half + 300], continued[row, half - 200 : half + 300], lw=0.8, label="continued"
    )
    wave.plot(time[half - 200 : half + 300], heard[row, half - 200 : half + 300], lw=0.8, label="test")
    wave.axvline(time[half], color="gray", ls=":")
    wave.set(title=held_out.label_names[int(held_out[row]["label"])])
    spectrum.specgram(continued[row], NFFT=128, Fs=RATE, noverlap=112)
    spectrum.axvline(time[half], color="white", ls=":")
axes[0, 0].legend()
figure.tight_layout()

# %%
for row in range(2):
    display(Audio(np.tile(continued[row], 4), rate=RATE))
