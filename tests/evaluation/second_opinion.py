"""Activations of a ported network by JAX, and by PyTorch where there is one."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import traverse_util

from tests.evaluation.random_state import summary

FOLDER = Path(__file__).parent


def golden(network):
    """What `torch_networks.py` wrote of random weights: {"size", "shapes", "layers"}."""
    return json.loads((FOLDER / f"{network}.json").read_text())


def by_jax(network, params, x):
    """Output of every convolution by its dotted name, "features" and "logits"."""

    @jax.jit
    def run(params, x):
        with jax.default_matmul_precision("float32"):
            return network.apply({"params": params}, x, capture_intermediates=True, mutable=["intermediates"])

    (features, logits), kept = run(params, x)
    flat = traverse_util.flatten_dict(kept["intermediates"], sep=".")
    layers = {name.removesuffix(".__call__"): values[0] for name, values in flat.items() if "." in name}
    return {**layers, "features": features, "logits": logits}


def torch_python():
    """A Python with PyTorch: the one JAXGEN_TORCH_PYTHON names, or this one; with neither, skips the test."""
    if named := os.environ.get("JAXGEN_TORCH_PYTHON"):
        return named
    if importlib.util.find_spec("torch") is None:
        pytest.skip("PyTorch is not installed, and JAXGEN_TORCH_PYTHON names no Python that has it")
    return sys.executable


def by_torch(network, state, images, size, folder):
    """The same from `torch_networks.py`."""
    python = torch_python()
    np.save(folder / "images.npy", images)
    script = [python, FOLDER / "torch_networks.py", network]
    files = [state, folder / "images.npy", folder / "activations.npz"]
    subprocess.run([*script, *files, "--size", str(size)], check=True, cwd=folder)
    with np.load(folder / "activations.npz") as archive:
        return dict(archive)


def check_summaries(found, golden):
    """Means, deviations and some entries of every layer are those of `golden`, to rounding."""
    for name, wanted in golden["layers"].items():
        tolerance = 1e-4 * (abs(wanted[0]) + wanted[1])
        np.testing.assert_allclose(summary(found[name]), wanted, atol=tolerance, rtol=0, err_msg=name)


def largest_error(found, wanted):
    """Over all layers of `wanted`, of the largest difference relative to the largest entry."""
    errors = {
        name: float(np.abs(found[name] - wanted[name]).max() / np.abs(wanted[name]).max()) for name in wanted
    }
    print(f"{len(errors)} layers, the worst {max(errors, key=errors.get)}: {max(errors.values()):.1e}")
    return max(errors.values())
