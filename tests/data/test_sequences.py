import numpy as np

from jaxgen import data
from jaxgen.data import sequences


def test_weather_is_the_chain_it_says():
    train, test = (data.load("weather", split).arrays["tokens"] for split in ("train", "test"))
    assert train.shape == (4000, 14)
    assert not np.array_equal(train[:1000], test)
    moves = np.zeros((3, 3))
    np.add.at(moves, (train[:, :-1].ravel(), train[:, 1:].ravel()), 1)
    np.testing.assert_allclose(moves / moves.sum(1, keepdims=True), sequences.WEATHER_TRANSITION, atol=0.012)
    for day in (0, 13):
        share = np.bincount(train[:, day]) / len(train)
        np.testing.assert_allclose(share, sequences.WEATHER_STATIONARY, atol=0.03)
    np.testing.assert_allclose(
        sequences.WEATHER_STATIONARY @ sequences.WEATHER_TRANSITION, sequences.WEATHER_STATIONARY
    )
