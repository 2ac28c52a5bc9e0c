"""How many pictures a second each feature extractor takes: writes features.json beside this file.

python experiments/benchmarks/features.py

The pictures are noise, 32x32 RGB except where an extractor takes only the size of its own data set.
Inception-v3 has random weights, which are as fast as any others.
"""

import json
import os
import time
from pathlib import Path

import jax
import numpy as np

from jaxgen.evaluation import features
from jaxgen.evaluation.features import inception, inception_network
from jaxgen.run import directory

REPEATS = 3
EXTRACTORS = {
    # pictures a measurement, chosen to take seconds
    "small-cnn-digits": 20_000,
    "small-cnn-mnist": 20_000,
    "pca64": 20_000,
    "random-conv": 10_000,
    "efficientnet-lite0:64": 2000,
    "efficientnet-lite0:112": 1000,
    "efficientnet-lite0:224": 250,
    "inception-v3": 50,
}
SHAPES = {"small-cnn-digits": (8, 8, 1), "small-cnn-mnist": (28, 28, 1)}


def load(name, images):
    if name == "inception-v3":
        params = inception_network.Network().init(jax.random.key(0), np.zeros((1, 299, 299, 3)))["params"]
        return inception.extractor("inception-v3-random", params)
    return features.load(name, images[:1000])


def measure(name, count):
    """Pictures a second in the fastest of several runs, and what compilation adds to the first."""
    shape = SHAPES.get(name, (32, 32, 3))
    images = np.random.RandomState(0).randint(256, size=(count, *shape)).astype(np.uint8)
    extractor = load(name, images)
    seconds = []
    for _ in range(1 + REPEATS):
        since = time.perf_counter()
        features.of(extractor, images)
        seconds.append(time.perf_counter() - since)
    return {
        "input": list(images.shape[1:]),
        "num_features": extractor.num_features,
        "images_per_second": float(f"{count / min(seconds[1:]):.3g}"),
        "compile_seconds": round(seconds[0] - min(seconds[1:]), 1),
    }


if __name__ == "__main__":
    extractors = {}
    for name, count in EXTRACTORS.items():
        extractors[name] = measure(name, count)
        print(name, extractors[name], flush=True)
    result = {
        "device": jax.devices()[0].device_kind,
        "cpu_count": os.cpu_count(),
        "versions": directory.versions(),
    }
    content = json.dumps({**result, "extractors": extractors}, indent=2) + "\n"
    Path(__file__).with_suffix(".json").write_text(content)
