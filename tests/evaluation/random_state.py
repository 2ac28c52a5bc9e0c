"""Numbers that tests and `torch_networks.py` draw alike: weights, pictures, summaries of activations."""

import zlib

import numpy as np


def random_state(shapes):
    """Numbers for a state dict that depend on nothing but its names, and keep activations near one."""
    state = {}
    for name, shape in shapes.items():
        draw = np.random.RandomState(zlib.crc32(name.encode()))
        if len(shape) > 1:
            values = draw.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        elif name.endswith(("running_var", "weight")):
            values = draw.uniform(0.5, 1.5, shape)
        else:
            values = 0.1 * draw.standard_normal(shape)
        state[name] = values.astype(np.float32)
    return state


def random_images():
    """(2, 50, 350, 3) in [-1, 1]: to be enlarged along one side and reduced along the other."""
    return np.random.RandomState(0).uniform(-1, 1, (2, 50, 350, 3)).astype(np.float32)


def summary(values):
    """Mean, standard deviation and four entries of an array."""
    values = np.asarray(values, np.float64)
    entries = values.ravel()[np.linspace(0, values.size - 1, 6).astype(int)[1:-1]]
    return [float(f"{x:.7g}") for x in (values.mean(), values.std(), *entries)]
