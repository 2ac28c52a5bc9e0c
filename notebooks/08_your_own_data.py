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
# # Your own data
#
# A data set is a dictionary of arrays with a name: `data.Dataset("mine", "train", {"image": x, "label": y})`. What is in it, a
# model finds by the names: "image" (N, height, width, channels), "x" (N, D), "tokens" (N, T), "label" (N,). This notebook shows
# arrays in memory, a folder of pictures, a table and sequences, and what is said of data that are not what they should be.

# %%
import os
import tempfile
import warnings
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits, load_wine

import jaxgen
from jaxgen import data, plot
from jaxgen.autoencoder import vae
from jaxgen.classical import gmm, hmm

SMOKE = bool(os.environ.get("JAXGEN_SMOKE"))
key = jax.random.key(0)


def show(images, columns=None):
    plt.figure(figsize=(6, 3))
    plt.imshow(plot.grid(images, columns), cmap="gray", vmin=0, vmax=255)
    plt.axis("off")


# %% [markdown]
# ## Pictures in memory
#
# Pictures are `uint8`, or floats in [-1, 1], where -1 is black. Labels are integers from 0, or words, which are numbered in
# alphabetical order. A test split is a second `Dataset`; give it the names of the first, so that the same word has the same number.

# %%
pixels, digit = load_digits(return_X_y=True)
scaled = pixels.reshape(-1, 8, 8, 1) / 16  # from 0 to 1
names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
words = np.array(names)[digit]

train = data.Dataset("mine", "train", {"image": 2 * scaled[:1500] - 1, "label": words[:1500]})
test = data.Dataset(
    "mine", "test", {"image": 2 * scaled[1500:] - 1, "label": words[1500:]}, label_names=train.label_names
)
print(len(train), "examples of shape", train.shape, "with labels", train.label_names)

# %%
cfg = vae.Config(shape=train.shape, num_latents=8)
state = jaxgen.fit(vae, cfg, train, steps=50 if SMOKE else 3000, batch_size=128, key=key)
print("test ELBO", vae.elbo(key, state, test[:]["image"], cfg).mean(), "nats")
show(vae.sample(key, state, 24, cfg), 12)

# %% [markdown]
# What does not fit is said in one line with a remedy: channels that come first, pictures without an axis of channels, and values
# of 0 to 255 that are no bytes are refused. Pictures from 0 to 1 would be valid, from grey to white, so there is a warning.


# %%
def said_of(arrays):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            data.Dataset("mine", "train", arrays)
        except data.DataError as error:
            return error
    return f"warning: {caught[0].message}"


for image in (
    np.zeros((100, 3, 32, 32), np.uint8),
    np.zeros((100, 28, 28), np.uint8),
    np.full((100, 28, 28, 1), 255.0),
    scaled,
):
    print(said_of({"image": image}), end="\n\n")

# %% [markdown]
# ## A folder of pictures
#
# `folder:PATH` reads the image files of a folder. Subfolders are classes, or splits if they are called `train` and `test`;
# otherwise a fixed fifth of each class is the test split. A path without `folder:` is asked for it, and a folder with too few
# pictures says why nothing is left to test. On the command line this is `--data folder:PATH`, with `--image-size 64` if sizes
# differ.

# %%
folder = Path(tempfile.mkdtemp())
for index in range(300):
    file = folder / words[index] / f"{index}.png"
    file.parent.mkdir(exist_ok=True)
    Image.fromarray((255 * scaled[index, ..., 0]).astype(np.uint8)).save(file)

pictures = data.load(f"folder:{folder}")
print(
    len(pictures),
    "examples to train on,",
    len(data.load(f"folder:{folder}", "test")),
    "to test, of",
    pictures.label_names,
)


# %%
def said_of_name(name, split="train"):
    try:
        data.load(name, split)
    except data.DataError as error:
        return str(error).replace(str(folder), "FOLDER")


alone = folder / "alone"
alone.mkdir()
next(folder.glob("*/*.png")).rename(alone / "0.png")
print(said_of_name(str(folder)).partition("?")[0] + "?", end="\n\n")
print(said_of_name(f"folder:{alone}", "test"))

# %% [markdown]
# ## A table
#
# Columns of numbers are "x" (N, D), read with `np.loadtxt` or Pandas. Scale them first, here to a mean of 0 and a standard deviation
# of 1 on the training rows; models do not do it for you. A mixture of Gaussians gives every row a density, exactly.

# %%
wine = load_wine()
rows = np.random.default_rng(0).permutation(len(wine.data))
x, kind = wine.data[rows], wine.target[rows]
x = (x - x[:140].mean(0)) / x[:140].std(0)
table = data.Dataset("wine", "train", {"x": x[:140]})
mixture = gmm.Config(shape=table.shape, num_components=3, regularization=0.1)
fitted = jaxgen.fit(gmm, mixture, table, steps=10 if SMOKE else 100, batch_size=136, key=key)
print("test log-density", gmm.log_prob(fitted, x[140:], mixture).mean(), "nats")

# %% [markdown]
# The same table as a file is `npz:PATH`, with the arrays "x" and "label":

# %%
np.savez(folder / "wine.npz", x=x.astype(np.float32), label=wine.target_names[kind])
loaded = data.load(f"npz:{folder / 'wine.npz'}")
print(loaded.shape, loaded.label_names, len(loaded), "rows to train on")

# %% [markdown]
# ## Sequences
#
# Symbols are integers, "tokens" (N, T), all of one length; here windows of 12 letters of a text. What a model has to know of them
# beyond their shape, such as the number of symbols, `from_data` finds. A hidden Markov model draws sequences of its own.

# %%
text = "the quick brown fox jumps over the lazy dog while seven wizards make toxic brew for the evil queen and jack"
alphabet = sorted(set(text))
tokens = np.array([alphabet.index(letter) for letter in text])
windows = np.lib.stride_tricks.sliding_window_view(tokens, 12)
letters = data.Dataset("letters", "train", {"tokens": windows})
chain = jaxgen.types.from_data(hmm, letters, hmm.Config(num_states=4))
model = jaxgen.fit(hmm, chain, letters, steps=20 if SMOKE else 300, batch_size=len(windows), key=key)
for sequence in np.asarray(hmm.sample(key, model, 3, chain)):
    print("".join(alphabet[symbol] for symbol in sequence))
