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
# # Classical models: counting, and expectation maximisation
#
# These models have exact likelihoods and are fitted without a gradient: by counting where everything is seen, and by
# expectation maximisation where something is hidden. All of them are the same three functions as the deep families,
# `init`, `train_step` and `sample`, and a `fit` that runs to convergence in one compiled loop.

# %%
import os
import re
import string
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from jaxgen import data
from jaxgen.classical import columns, emissions, gda, gmm, hmm, markov, naive_bayes
from jaxgen.data.sequences import WEATHER, WEATHER_TRANSITION

MOST = 1 if os.environ.get("JAXGEN_SMOKE") else 6

# %% [markdown]
# ## Gaussian discriminant analysis: where the sigmoid comes from
#
# One Gaussian for each class, and Bayes' rule. For two classes divide by the first term:
#
# $$p(1 \mid x) = \frac{\pi_1 N(x; m_1, S_1)}{\pi_1 N(x; m_1, S_1) + \pi_0 N(x; m_0, S_0)}
#   = \frac{1}{1 + e^{-a(x)}} = \sigma(a(x)), \qquad
#   a(x) = \log \frac{\pi_1 N(x; m_1, S_1)}{\pi_0 N(x; m_0, S_0)}.$$
#
# The sigmoid is nothing but Bayes' rule. If the classes share one covariance $S$, the term $x^\top S^{-1} x$ is in both
# densities and cancels; what is left is linear,
#
# $$a(x) = (m_1 - m_0)^\top S^{-1} x - \tfrac12 m_1^\top S^{-1} m_1 + \tfrac12 m_0^\top S^{-1} m_0
#   + \log \frac{\pi_1}{\pi_0},$$
#
# and for many classes the same division gives a softmax of $W x + b$ with $w_c = S^{-1} m_c$ and
# $b_c = \log \pi_c - \frac12 m_c^\top S^{-1} m_c$: `gda.linear_boundary`. With a covariance for each class the squares
# stay, and the boundaries are conics.

# %%
rng = np.random.default_rng(1)
shapes = np.array([[[1.0, 0.0], [0.8, 0.4]], [[0.4, 0.0], [0.0, 1.2]], [[0.5, 0.0], [-0.4, 0.4]]])
label = rng.integers(3, size=600)
middles = np.array([[-2.0, 0.0], [1.5, 0.5], [0.5, -2.5]])
blobs = middles[label] + np.einsum("nde,ne->nd", shapes[label], rng.normal(size=(600, 2)))
blobs, label = jnp.asarray(blobs, jnp.float32), jnp.asarray(label)
ticks = jnp.linspace(-6, 6, 200)
plane = jnp.stack(jnp.meshgrid(ticks, ticks), -1).reshape(-1, 2)

models = {
    "one covariance: lines": (gda, gda.Config(num_classes=3)),
    "one each: conics": (gda, gda.Config(num_classes=3, covariance="per_class")),
    "naive Bayes: conics along the axes": (naive_bayes, naive_bayes.Config(shape=(2,), num_classes=3)),
}
figure, axes = plt.subplots(1, 3, figsize=(15, 4.6))
for axis, (title, (family, config)) in zip(axes, models.items(), strict=True):
    fitted = family.fit(blobs, label, config)
    shares = jnp.exp(family.classify(fitted, plane, config)).reshape(200, 200, 3)
    axis.imshow(shares, extent=(-6, 6, -6, 6), origin="lower", alpha=0.5)
    axis.scatter(*blobs.T, c=np.eye(3)[label], s=5)
    right = float((family.classify(fitted, blobs, config).argmax(1) == label).mean())
    axis.set(title=f"{title}, {right:.1%} right")

shared = models["one covariance: lines"][1]
fitted = gda.fit(blobs, label, shared)
w, b = gda.linear_boundary(fitted, shared)
gap = abs(jax.nn.log_softmax(blobs @ w.T + b) - gda.classify(fitted, blobs, shared)).max()
print(f"softmax(W x + b) is Bayes' rule to {float(gap):.0e}")

# %% [markdown]
# On 8x8 digits, which are nothing like Gaussians, that already tells nine in ten apart and more:

# %%
train, test = data.load("digits"), data.load("digits", "test")
pixels = {"shape": train.shape, "num_classes": train.num_classes}
for family, config in (
    (gda, gda.Config(**pixels)),
    (gda, gda.Config(**pixels, covariance="per_class", shrinkage=0.2)),
    (naive_bayes, naive_bayes.Config(**pixels, columns=columns.Gaussian(0.1))),
):
    fitted = family.fit(train[:]["image"], train[:]["label"], config)
    right = (family.classify(fitted, test[:]["image"], config).argmax(1) == test[:]["label"]).mean()
    print(f"{family.__name__} {getattr(config, 'covariance', '')}: {float(right):.1%} of the test digits")

# %% [markdown]
# ## Gaussian mixture: expectation maximisation, step by step
#
# Points of three tilted Gaussians, and a mixture that starts as three circles near the middle. Each step asks how much
# each component answers for each point (the colours), and moves the component to the mean and covariance of its share.
# The likelihood never falls.

# %%
rng = np.random.default_rng(0)
tilts = np.array([[[1.2, 0.0], [0.9, 0.3]], [[0.3, 0.0], [0.5, 1.1]], [[0.6, 0.0], [-0.6, 0.4]]])
centers = np.array([[-2.0, 0.0], [1.5, 1.5], [2.0, -2.0]])
component = rng.integers(3, size=900)
noise = np.einsum("nde,ne->nd", tilts[component], rng.normal(size=(900, 2)))
points = jnp.asarray(centers[component] + noise, jnp.float32)

cfg = gmm.Config(num_components=3, stepwise_power=0.0)
state = gmm.init(jax.random.key(0), cfg)
step = jax.jit(partial(gmm.train_step, cfg=cfg))
circle = np.stack([np.cos(turn := np.linspace(0, 2 * np.pi, 60)), np.sin(turn)])


def draw(axis, state, title):
    axis.scatter(*points.T, c=np.clip(gmm.responsibilities(state, points, cfg), 0, 1), s=5)
    for mean, covariance in zip(state.params.means, state.params.covariances, strict=True):
        axis.plot(*(mean[:, None] + 2 * np.linalg.cholesky(covariance) @ circle), color="black")
    axis.set(title=title, aspect="equal", xlim=(-6, 6), ylim=(-5, 6))


figure, axes = plt.subplots(1, 6, figsize=(20, 3.4))
likelihoods = []
for index in range(41):
    if index in (shown := (0, 1, 4, 10, 40)):
        draw(axes[shown.index(index)], state, f"step {index}")
    state, metrics = step(state, {"x": points})
    likelihoods.append(-float(metrics["nll"]))
print("log-likelihood rises at every step:", bool(np.all(np.diff(likelihoods) > -1e-5)))
restarted = gmm.fit(points, gmm.Config(num_components=3, num_restarts=8))
draw(axes[5], restarted, "best of eight seeds")
best = float(gmm.log_prob(restarted, points, cfg).mean())
print(f"{likelihoods[-1]:.3f} nats a point from this start, {best:.3f} from the best of eight")

# %% [markdown]
# It climbs to the top that is nearest, and from this start that is not the highest: one component ends on two of the
# groups, and two share the third. The last panel is what `fit` finds from eight k-means++ seeds, run at once under `vmap`.
#
# How many components? More always fit the training points better; the Bayesian information criterion charges for their
# parameters.

# %%
for k in range(1, MOST + 1):
    many = gmm.Config(num_components=k, num_restarts=8)
    fitted = gmm.fit(points, many)
    log_p = float(gmm.log_prob(fitted, points, many).mean())
    print(f"{k} components: {log_p:.3f} nats a point, BIC {float(gmm.bic(fitted, points, many)):.0f}")

# %% [markdown]
# ## Markov chain: the weather
#
# Tomorrow depends on today alone, so fitting is counting. From four thousand fortnights:

# %%
days = data.load("weather").arrays["tokens"]
chain_cfg = markov.Config(shape=(14,), num_symbols=len(WEATHER))
chain = markov.fit(days, chain_cfg)
moves = markov.transition_matrix(chain, chain_cfg)
print("counted\n", np.round(moves, 3), "\ntrue\n", WEATHER_TRANSITION)
for name, share, stay in zip(WEATHER, markov.stationary(moves), markov.expected_stay(moves), strict=True):
    print(f"{name}: {share:.2f} of all days, {stay:.1f} in a row")
order, criterion = markov.choose_order(days, chain_cfg, range(min(4, MOST + 1)))
print("BIC by order", {order: round(value) for order, value in criterion.items()}, "-> order", order)

# %% [markdown]
# ## Markov chain: text
#
# The same counting on letters, here of Python's language reference, which every Python brings along. Context never seen
# takes its law from the shorter one (`backoff`).

# %%
from pydoc_data.topics import topics

alphabet = " " + string.ascii_lowercase
letters = " ".join(re.findall("[a-z]+", " ".join(topics[name] for name in sorted(topics)).lower()))
symbols = np.array([[alphabet.index(letter) for letter in letters[:300_000]]])
for order in range(MOST):
    text_cfg = markov.Config(
        shape=(120,), num_symbols=27, order=order, smoothing=0.2, backoff=True, max_rows=2**18
    )
    written = markov.sample(jax.random.key(0), markov.fit(symbols, text_cfg), 1, text_cfg)[0]
    print(order, "".join(alphabet[letter] for letter in np.asarray(written)))

# %% [markdown]
# `experiments/studies/text.py` measures them on held-out paragraphs: from 4.1 bits a letter at order 0 to 1.5 at order 5.
#
# ## Hidden Markov model: the weather behind the umbrella
#
# Someone indoors sees only whether people carry umbrellas: on one sunny day in ten, four rainy ones in five, and three
# foggy ones in ten. The filter knows the past alone; the smoother, looking back, knows what followed too.

# %%
umbrella = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]])
hmm_cfg = hmm.Config(shape=(60,), num_states=3, emission=emissions.Symbols(2))
law = markov.stationary(jnp.float32(WEATHER_TRANSITION))
params = hmm.Params(law, jnp.float32(WEATHER_TRANSITION), jnp.float32(umbrella))
truth = hmm.init(jax.random.key(0), hmm_cfg)._replace(params=params)

path_key, seen_key = jax.random.split(jax.random.key(3))
paths = hmm.sample_states(path_key, truth, 500, hmm_cfg)
seen = jax.random.categorical(seen_key, jnp.log(params.emission[paths]))


@jax.jit
@jax.vmap
def infer(seen):
    table = jnp.log(params.initial), jnp.log(params.transition), hmm.log_likelihoods(params, seen, hmm_cfg)
    return jnp.exp(hmm.forward(*table)[1]), hmm.smooth(*table)[1], hmm.viterbi(*table)[0]


filtered, posterior, likeliest = infer(seen)

figure, axes = plt.subplots(4, 1, figsize=(12, 6), sharex=True)
axes[0].imshow(seen[:1], aspect="auto", cmap="Blues")
axes[0].set(title="umbrella", yticks=[])
for axis, shares, title in zip(axes[1:3], (filtered[0], posterior[0]), ("filter", "smoother"), strict=True):
    axis.stackplot(range(60), *shares.T, labels=WEATHER, colors=("gold", "steelblue", "lightgrey"))
    axis.set(title=title, ylim=(0, 1), xlim=(0, 59))
axes[1].legend(loc="upper right", fontsize=7)
axes[3].step(range(60), paths[0], where="mid", label="true")
axes[3].step(range(60), likeliest[0], where="mid", linestyle="--", label="likeliest path")
axes[3].set(yticks=range(3), yticklabels=WEATHER)
axes[3].legend(loc="upper right", fontsize=7)
figure.tight_layout()
guesses = {"filter": filtered.argmax(-1), "smoother": posterior.argmax(-1), "path": likeliest}
for name, guess in guesses.items():
    print(f"{name}: right on {float((guess == paths).mean()):.1%} of the days of 500 such stretches")

# %% [markdown]
# ## Baum-Welch: the weather from thermometers
#
# Without being told the weather, nor the climate, the model finds both from two noisy readings a day: temperature and
# humidity. States come out in any order, so they are matched by temperature.

# %%
climate = np.array([[24.0, 40.0], [12.0, 90.0], [8.0, 70.0]])
readings = climate[days[:400]] + rng.normal(size=(400, 14, 2)) * [3.0, 8.0]
readings_cfg = hmm.Config(shape=(14, 2), num_states=3, emission=emissions.Gaussians(covariance="diagonal"))
found = hmm.fit(jnp.float32(readings), readings_cfg)
order = np.argsort(-np.asarray(found.params.emission.means[:, 0, 0]))
print("means\n", np.round(found.params.emission.means[order, 0], 1))
print("moves\n", np.round(found.params.transition[order][:, order], 2))
guess = np.argsort(order)[np.asarray(hmm.decode_states(found, jnp.float32(readings), readings_cfg))]
print(f"weather right on {(guess == days[:400]).mean():.1%} of the days, in {int(found.step)} steps")
