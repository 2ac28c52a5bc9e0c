"""What the theory of adversarial networks says, computed on densities of one dimension.

python experiments/studies/gan_theory.py

Panels of the picture hold what was trained or optimised beside what theory gives; the JSON file holds the
numbers.
"""

import jaxgen.interrupts  # noqa: F401 - first, see there

import dataclasses
import time
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

from jaxgen import plot, script
from jaxgen.fields import PositiveInt
from jaxgen.gan import gan
from jaxgen.gan.losses import DIVERGENCES, LOSSES
from jaxgen.gan.networks import mlp
from jaxgen.script import result
from jaxgen.values import Adam, Linear

GRID = np.linspace(-12.0, 12.0, 4801)
"""Where densities are summed."""
WEIGHTS, MEANS, STDS = np.array([0.6, 0.4]), np.array([-1.0, 1.5]), np.array([0.5, 0.8])
"""The data: a mixture of two Gaussians. The model is the same mixture, moved by a shift."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Check what is known of the game on densities of one dimension."""

    steps: PositiveInt = 1500
    """Steps of each discriminator."""
    batch_size: PositiveInt = 512
    """Examples a step."""
    seed: int = 0
    """Of the discriminators and their batches."""
    results: Path = Path("experiments/results/theory")
    """Folder for the picture and the numbers."""


# Densities and distances --------------------------------------------------------------------------


def density(x, shift=0.0):
    """Of the mixture moved by `shift`."""
    z = (np.asarray(x)[..., None] - MEANS - shift) / STDS
    return (WEIGHTS / STDS * np.exp(-0.5 * z**2)).sum(-1) / np.sqrt(2 * np.pi)


def integral(values, x=GRID):
    return float(np.trapezoid(values, x))


def kl(p, q, x=GRID):
    """KL(p, q) in nats of two densities on a grid; infinite where q is 0 and p is not."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return integral(np.where(p > 0, p * np.log(p / q), 0.0), x)


def jensen_shannon(p, q, x=GRID):
    """In nats, at most log 2."""
    middle = (p + q) / 2
    return (kl(p, middle, x) + kl(q, middle, x)) / 2


def wasserstein(p, q, x=GRID):
    """W1: the area between the distribution functions."""
    step = x[1] - x[0]
    return integral(np.abs(np.cumsum(p - q) * step), x)


# The discriminator --------------------------------------------------------------------------------


class Mixture(nn.Module):
    """A generator that draws the mixture from codes (B, 2), moved by its one parameter."""

    @nn.compact
    def __call__(self, codes, train):
        shift = self.param("shift", nn.initializers.zeros, ())
        second = jax.scipy.stats.norm.cdf(codes[:, 0]) > WEIGHTS[0]
        mean, std = (jnp.where(second, values[1], values[0]) for values in (MEANS, STDS))
        return (mean + std * codes[:, 1] + shift)[:, None]


def trained_logits(shifts, options):
    """Logits (shifts, grid) of discriminators trained against a model at each shift, all at once."""
    cfg = gan.Config(
        shape=(1,),
        num_latents=2,
        generator=Mixture(),
        discriminator=mlp.Discriminator((64, 64)),
        discriminator_optimizer=Adam(2e-3, schedule=Linear(options.steps)),
    )

    def one(key, shift):
        state = gan.init(key, cfg)
        state = state._replace(params={**state.params, "generator": {"shift": shift}})

        def step(state, _):
            data_key, code_key = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, 1), state.step))
            codes = jax.random.normal(data_key, (options.batch_size, 2))
            real = Mixture().apply({"params": {"shift": 0.0}}, codes, True)
            state, _ = gan.discriminator_step(state, {"x": real}, code_key, cfg)
            return state._replace(step=state.step + 1), None

        state = jax.lax.scan(step, state, length=options.steps)[0]
        return gan.judge(state, jnp.float32(GRID)[:, None], cfg).logits

    keys = jax.random.split(jax.random.key(options.seed), len(shifts))
    return np.asarray(jax.jit(jax.vmap(one))(keys, jnp.float32(shifts)), np.float64)


def best_discriminator(logits, shifts):
    """Mean distance of D to p / (p + q), over data and samples, for each shift."""
    errors = []
    for row, shift in zip(logits, shifts, strict=True):
        p, q = density(GRID), density(GRID, shift)
        errors.append(integral((p + q) / 2 * np.abs(sigmoid(row) - p / (p + q))))
    return errors


def game_value(logits, shift):
    """E_p log D + E_q log(1 - D) of logits on the grid."""
    softplus = lambda v: np.logaddexp(0.0, v)
    return -integral(density(GRID) * softplus(-logits) + density(GRID, shift) * softplus(logits))


def sigmoid(v):
    return 0.5 * (1 + np.tanh(v / 2))


# The generator's gradient -------------------------------------------------------------------------


def generator_gradient(name, distance):
    """|d L_G / d shift| of N(shift, 1) at `distance` from the data N(0, 1), under the best discriminator."""
    x = GRID + distance
    weight = np.exp(-0.5 * (x - distance) ** 2) / np.sqrt(2 * np.pi) * (x[1] - x[0])
    best = lambda x: distance**2 / 2 - distance * x  # log p/q, held fixed while the generator moves

    def loss(shift):
        each = jax.vmap(lambda logit: LOSSES[name].generator(logit[None], logit[None]))
        return (weight * each(best(jnp.asarray(x) + shift))).sum()

    return abs(float(jax.grad(loss)(0.0)))


# The standard equation ----------------------------------------------------------------------------


def standard_equation(data, model, name):
    """max over f of min over q of  D(q, model) - E_q[f] + E_data[f], with D the f-divergence `name`.

    Densities are weights on points, and q any positive weights. q is sought at every point by ternary search,
    f by quasi-Newton ascent along data - q. Hu & Xing 2022, with alpha 0, beta 1 and a learned f.
    """
    divergence = DIVERGENCES[name]

    def best_ratio(f):
        """The u = q / model that minimises D's f(u) - u f at every point."""
        cost = lambda log_u: divergence.f(jnp.exp(log_u)) - jnp.exp(log_u) * f

        def third(_, ends):
            low, high = ends
            first, second = low + (high - low) / 3, high - (high - low) / 3
            lower = cost(first) < cost(second)
            return jnp.where(lower, low, first), jnp.where(lower, second, high)

        ends = jnp.full(len(f), -25.0), jnp.full(len(f), 25.0)
        return jnp.exp(sum(jax.lax.fori_loop(0, 90, third, ends)) / 2)

    @jax.jit
    def negative(logits):
        f, slope = jax.vmap(jax.value_and_grad(divergence.activation))(logits)  # keeps q finite
        ratio = best_ratio(f)
        value = (model * (divergence.f(ratio) - ratio * f)).sum() + (data * f).sum()
        return -value, -(data - model * ratio) * slope

    with jax.enable_x64(True):
        data, model = jnp.asarray(data, jnp.float64), jnp.asarray(model, jnp.float64)
        numbers = lambda logits: [np.asarray(x, np.float64) for x in negative(jnp.asarray(logits))]
        found = scipy.optimize.minimize(numbers, np.zeros(len(data)), jac=True, method="L-BFGS-B")
    return -float(found.fun)


def standard_equation_lipschitz(data, model, x, beta):
    """max over 1-Lipschitz f of min over q of  beta KL(q, model) - E_q[f] + E_data[f], q a distribution.

    The best q is model exp(f / beta), normalised. As beta grows it is tied to the model, and what is left is
    the Wasserstein GAN: W1(data, model).
    """
    gaps = np.diff(x)

    def negative(slopes):
        f = np.concatenate([[0.0], np.cumsum(slopes * gaps)])
        top = (f / beta).max()
        weights = model * np.exp(f / beta - top)
        value = (data * f).sum() - beta * (np.log(weights.sum()) + top)
        residual = data - weights / weights.sum()
        return -value, -gaps * np.cumsum(residual[::-1])[::-1][1:]

    bounds = [(-1.0, 1.0)] * len(gaps)
    found = scipy.optimize.minimize(negative, np.zeros(len(gaps)), jac=True, bounds=bounds, method="L-BFGS-B")
    return -float(found.fun)


def f_divergence(data, model, name):
    """sum model f(data / model)."""
    return float((model * np.asarray(DIVERGENCES[name].f(jnp.asarray(data / model)), np.float64)).sum())


# Numbers and picture ------------------------------------------------------------------------------


def compute(options):
    """All numbers of the picture, by panel."""
    shifts = np.array([0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0])
    logits = trained_logits(shifts, options)
    p = density(GRID)
    divergences = [jensen_shannon(p, density(GRID, shift)) for shift in shifts]
    distances = np.linspace(0.25, 6.0, 24)
    apart = np.linspace(0.0, 2.0, 41)
    narrow = lambda shift: np.exp(-0.5 * ((GRID - shift) / NARROW) ** 2) / (NARROW * np.sqrt(2 * np.pi))
    x = np.linspace(-5.0, 6.0, 111)
    data, model = (density(x, shift) / density(x, shift).sum() for shift in (0.0, 1.0))
    names = ("gan", "jensen_shannon", "kl", "reverse_kl", "squared_hellinger")
    betas = np.geomspace(0.1, 1e4, 11)
    return {
        "best_discriminator": {
            "shifts": shifts.tolist(),
            "mean_error": best_discriminator(logits, shifts),
            "x": GRID[::20].tolist(),
            "trained": sigmoid(logits[SHOWN])[::20].tolist(),
            "p/(p+q)": (p / (p + density(GRID, shifts[SHOWN])))[::20].tolist(),
        },
        "value": {
            "shifts": shifts.tolist(),
            "trained": [game_value(row, shift) for row, shift in zip(logits, shifts, strict=True)],
            "-log 4 + 2 JSD": [-np.log(4) + 2 * value for value in divergences],
        },
        "generator_gradient": {
            "distances": distances.tolist(),
            **{
                name: [generator_gradient(name, d) for d in distances]
                for name in ("minimax", "non_saturating")
            },
        },
        "two_points": {
            "distances": apart.tolist(),
            "std": NARROW,
            "jensen_shannon": [jensen_shannon(narrow(0.0), narrow(shift)) for shift in apart],
            "kl": [shift**2 / (2 * NARROW**2) for shift in apart],
            "wasserstein": [wasserstein(narrow(0.0), narrow(shift)) for shift in apart],
        },
        "standard_equation": {
            "cases": names,
            "optimised": [standard_equation(data, model, name) for name in names],
            "divergence": [f_divergence(data, model, name) for name in names],
        },
        "standard_equation_lipschitz": {
            "betas": betas.tolist(),
            "optimised": [standard_equation_lipschitz(data, model, x, beta) for beta in betas],
            "wasserstein": float((np.abs(np.cumsum(data - model))[:-1] * np.diff(x)).sum()),
        },
    }


NARROW = 0.02
"""Standard deviation of what stands for a point."""
SHOWN = 4
"""Which of the shifts the first panel shows."""
PANELS = (
    "best_discriminator",
    "value",
    "generator_gradient",
    "two_points",
    "standard_equation",
    "standard_equation_lipschitz",
)


def save_picture(path, found):
    """Six panels: what was trained or optimised beside what theory gives."""
    best, value, gradient, points, equation, lipschitz = (found[name] for name in PANELS)
    shift, target = best["shifts"][SHOWN], lipschitz["wasserstein"]
    places = np.arange(len(equation["cases"]))
    panels = [
        plot.Panel(
            [
                plot.Curve(best["x"], density(best["x"]), "data p", "C0:"),
                plot.Curve(best["x"], density(best["x"], shift), "model q", "C1:"),
                plot.Curve(best["x"], best["trained"], "D, trained", "C2-"),
                plot.Curve(best["x"], best["p/(p+q)"], "p / (p + q)", "k--"),
            ],
            "The best discriminator",
            "x",
            limits=((-4, 6), None),
        ),
        plot.Panel(
            [
                plot.Curve(value["shifts"], value["-log 4 + 2 JSD"], "-log 4 + 2 JSD(p, q)", "k--"),
                plot.Curve(value["shifts"], value["trained"], "trained D", "C2o"),
            ],
            "The value of the game",
            "shift of the model",
            levels={"-log 4": -np.log(4)},
        ),
        plot.Panel(
            [
                plot.Curve(gradient["distances"], gradient[name], name.replace("_", "-"), "-")
                for name in ("minimax", "non_saturating")
            ],
            "The generator's gradient under the best D",
            "distance of model and data",
            log="y",
        ),
        plot.Panel(
            [
                plot.Curve(points["distances"], points["jensen_shannon"], "Jensen-Shannon", "-"),
                plot.Curve(points["distances"], points["wasserstein"], "Wasserstein-1", "-"),
                plot.Curve(points["distances"], points["kl"], "KL", "-"),
            ],
            f"Two points (std {points['std']}) moving apart",
            "distance",
            limits=(None, (-0.1, 2.5)),
        ),
        plot.Panel(
            [
                plot.Curve(places - 0.1, equation["optimised"], "min over q, max over f", "C2o"),
                plot.Curve(places + 0.1, equation["divergence"], "divergence of data and model", "ks"),
            ],
            "The standard equation, D an f-divergence",
            levels={"": 0.0},
            ticks=[name.replace("_", "\n") for name in equation["cases"]],
        ),
        plot.Panel(
            [
                plot.Curve(
                    lipschitz["betas"], lipschitz["optimised"], "min over q, max over 1-Lipschitz f", "C2o-"
                )
            ],
            "The standard equation, beta KL(q, model)",
            "beta",
            levels={"W1(data, model)": target},
            log="x",
            limits=(None, (0, 1.1 * target)),
        ),
    ]
    plot.save_panels(path, panels, size=(4.3, 3.75))


def main(options: Options) -> None:
    """Compute, print what was reached beside what theory says, save picture and numbers."""
    since = time.perf_counter()
    found = compute(options)
    options.results.mkdir(parents=True, exist_ok=True)
    save_picture(options.results / "theory.png", found)
    result.save(options.results / "theory.json", {"seed": options.seed, **found}, since)
    print("\n".join(lines(found)))


def lines(found):
    value, equation, lipschitz = (
        found[k] for k in ("value", "standard_equation", "standard_equation_lipschitz")
    )
    table = zip(value["shifts"], value["trained"], value["-log 4 + 2 JSD"], strict=True)
    yield from (f"value at shift {s:4.2f}: trained {v:.4f}, -log 4 + 2 JSD {t:.4f}" for s, v, t in table)
    yield f"mean |D - p/(p+q)|: {max(found['best_discriminator']['mean_error']):.4f} at most"
    table = zip(equation["cases"], equation["optimised"], equation["divergence"], strict=True)
    yield from (
        f"standard equation, {name}: {value:.5f}, divergence {target:.5f}" for name, value, target in table
    )
    reached, target = lipschitz["optimised"][-1], lipschitz["wasserstein"]
    yield f"standard equation, 1-Lipschitz f, beta {lipschitz['betas'][-1]:g}: {reached:.5f}, W1 {target:.5f}"


if __name__ == "__main__":
    script.run_script(main, Options)
