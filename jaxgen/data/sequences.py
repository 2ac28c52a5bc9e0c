"""Sequences of symbols: a Markov chain of the weather, a textbook example."""

import numpy as np

from jaxgen.data.dataset import Dataset

WEATHER = ("sunny", "rainy", "foggy")
WEATHER_TRANSITION = np.array([[0.8, 0.05, 0.15], [0.2, 0.6, 0.2], [0.2, 0.3, 0.5]])
"""p(tomorrow | today), with today in the rows."""
WEATHER_STATIONARY = np.array([0.5, 0.25, 0.25])
"""The stationary distribution: WEATHER_STATIONARY @ WEATHER_TRANSITION equals it."""

_SIZES = {"train": 4000, "test": 1000}
_SEEDS = {"train": 0, "test": 1}
_DAYS = 14


def weather(split: str) -> Dataset:
    """Sequences of 14 days from a Markov chain of three kinds of weather, "tokens" (N, 14) int32."""
    rng = np.random.RandomState(_SEEDS[split])  # whose streams NumPy keeps from version to version
    uniform = rng.uniform(size=(_DAYS, _SIZES[split], 1))
    days = [(uniform[0] > WEATHER_STATIONARY.cumsum()).sum(1)]
    for row in uniform[1:]:
        days.append((row > WEATHER_TRANSITION[days[-1]].cumsum(1)).sum(1))
    return Dataset("weather", split, {"tokens": np.stack(days, 1).astype(np.int32)})


BUILT_IN = {"weather": weather}
