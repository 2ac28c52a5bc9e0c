"""Noise schedules: how fast the data drown, as functions and as the values that a Config holds.

A discrete schedule is beta_t, the variance of the noise added at step t = 1..T, kept at index t - 1 in
float64, because the signal left, alpha_bar_t = prod (1 - beta), loses digits in float32. A schedule of noise
levels is sigma_i, decreasing, of data to which noise is added without being scaled.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from jaxgen import values
from jaxgen.fields import FiniteFloat, NonNegativeFloat, PositiveFloat

MAX_BETA = 0.999
"""Largest beta of any schedule: the last steps of the cosine, and coarse steps of all, are cut here."""


def betas(name: str, num_steps: int, **options: float) -> np.ndarray:
    """The schedule of a name in `SCHEDULES`, (num_steps,) float64, each entry in (0, 1).

    Raises ValueError for an unknown name and for no steps.

    Example:
        betas("linear", 1000)
        betas("quadratic", 1000, first=0.00085, last=0.012)
    """
    if name not in SCHEDULES:
        raise ValueError(f"no noise schedule {name!r}: there are {', '.join(SCHEDULES)}")
    if num_steps < 1:
        raise ValueError(f"a noise schedule has at least 1 step, not {num_steps}")
    return np.clip(SCHEDULES[name](num_steps, **options), 0.0, MAX_BETA)


def linear(num_steps: int, first: float | None = None, last: float | None = None) -> np.ndarray:
    """beta from `first` to `last` in equal steps (Ho et al. 2020).

    By default 0.1 / T to 20 / T: the 1e-4 to 0.02 of the paper's T = 1000, and as much noise for any T.
    """
    # From the last: a schedule of one step is the last beta.
    return np.linspace(last or 20 / num_steps, first or 0.1 / num_steps, num_steps)[::-1]


def quadratic(num_steps: int, first: float | None = None, last: float | None = None) -> np.ndarray:
    """sqrt(beta) from sqrt(first) to sqrt(last) in equal steps (Song et al. 2021); defaults as in `linear`.

    Called "scaled linear" elsewhere; Rombach et al. 2022 take 0.00085 to 0.012.
    """
    start, end = np.sqrt(last or 20 / num_steps), np.sqrt(first or 0.1 / num_steps)
    return np.linspace(start, end, num_steps)[::-1] ** 2


def cosine(num_steps: int, offset: float = 0.008) -> np.ndarray:
    """alpha_bar(u) = cos^2((u + s) / (1 + s) pi / 2), divided by its value at 0 (Nichol & Dhariwal 2021)."""
    return _from_alpha_bar(lambda u: np.cos((u + offset) / (1 + offset) * np.pi / 2) ** 2, num_steps)


def sigmoid(num_steps: int, start: float = -3.0, end: float = 3.0, temperature: float = 1.0) -> np.ndarray:
    """alpha_bar(u) falls along a logistic curve from `start` to `end` (Jabri, Fleet & Chen 2023).

    Not the schedule whose beta itself rises along a logistic curve, which has the same name elsewhere.
    """
    logistic = lambda x: 1 / (1 + np.exp(-x / temperature))
    curve = lambda u: logistic(end) - logistic(u * (end - start) + start)
    return _from_alpha_bar(curve, num_steps)


SCHEDULES: dict[str, Callable[..., np.ndarray]] = {
    "linear": linear,
    "quadratic": quadratic,
    "cosine": cosine,
    "sigmoid": sigmoid,
}
"""Every discrete schedule by name: number of steps and options -> beta."""


@dataclasses.dataclass(frozen=True)
class Named(values.Value):
    """A schedule of `SCHEDULES` by the name of its class, with its options as fields."""

    def __call__(self, num_steps: int) -> np.ndarray:
        """beta, (num_steps,) float64."""
        return betas(type(self).__name__.lower(), num_steps, **dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True)
class Linear(Named):
    """beta in equal steps (Ho et al. 2020)."""

    first: PositiveFloat | None = None
    """First beta; 0.1 / T by default."""
    last: PositiveFloat | None = None
    """Last beta; 20 / T by default."""


@dataclasses.dataclass(frozen=True)
class Quadratic(Named):
    """The root of beta in equal steps (Song et al. 2021)."""

    first: PositiveFloat | None = None
    """First beta; 0.1 / T by default."""
    last: PositiveFloat | None = None
    """Last beta; 20 / T by default."""


@dataclasses.dataclass(frozen=True)
class Cosine(Named):
    """alpha_bar along a squared cosine (Nichol & Dhariwal 2021)."""

    offset: NonNegativeFloat = 0.008
    """Shift of the start, which keeps the first beta from being too small."""


@dataclasses.dataclass(frozen=True)
class Sigmoid(Named):
    """alpha_bar along a logistic curve (Jabri, Fleet & Chen 2023)."""

    start: FiniteFloat = -3.0
    """Where on the logistic curve alpha_bar is 1."""
    end: FiniteFloat = 3.0
    """Where on the logistic curve alpha_bar is 0."""
    temperature: PositiveFloat = 1.0
    """Width of the logistic curve."""


def zero_terminal_snr(betas: np.ndarray) -> np.ndarray:
    """The schedule with sqrt(alpha_bar) moved and scaled to end at 0 but start as it did (Lin et al. 2024).

    The last beta is then 1 and x_T pure noise, from which eps says nothing of x_0: predict v or x_0.

    Raises ValueError for a schedule of one step, whose start is its end.
    """
    if len(betas) < 2:
        raise ValueError("a schedule of one step cannot keep its start and end at zero signal")
    root = np.sqrt(np.cumprod(1 - np.asarray(betas, np.float64)))
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    alpha_bar = root**2
    return 1 - alpha_bar / np.append(1.0, alpha_bar[:-1])


def karras(
    num_steps: int, smallest: float = 0.002, largest: float = 80.0, exponent: float = 7.0
) -> np.ndarray:
    """Noise levels from `largest` to `smallest` in equal steps of sigma^(1 / exponent) (Karras et al. 2022).

    (num_steps,) float64, decreasing; the 0 that comes after is not among them.

    Raises ValueError for no levels.
    """
    if num_steps < 1:
        raise ValueError(f"there is at least 1 noise level, not {num_steps}")
    return np.linspace(largest ** (1 / exponent), smallest ** (1 / exponent), num_steps) ** exponent


def _from_alpha_bar(curve, num_steps):
    alpha_bar = curve(np.linspace(0.0, 1.0, num_steps + 1))
    return 1 - alpha_bar[1:] / alpha_bar[:-1]
