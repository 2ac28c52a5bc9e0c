"""Inception-v3 as the Frechet inception distance uses it: EXPERIMENTAL, never run on the real weights here.

Szegedy et al. 2016, "Rethinking the Inception architecture for computer vision", in the graph published on
2015-12-05, whose 2048 averages before the classifier Heusel et al. 2017 named FID after. It differs from the
paper: 1008 outputs, averages that leave padding out, and in the last block a maximum in place of the average.
This network follows the PyTorch port of that graph by M. Seitzer (pytorch-fid), names of the layers included,
and agrees layer by layer with such a network in PyTorch on random weights.

The weights are not part of this package. `load` reads the user's own copy of the port's file,
pt_inception-2015-12-05-6726825d.pth, without PyTorch. Only distances of features made with that file may be
called FID (and KID, and only its score the inception score): `is_reference` tells.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax import Array
from jax.tree_util import Partial

from jaxgen.data.dataset import one_line
from jaxgen.evaluation.features import ported, torch_file
from jaxgen.evaluation.features.extractor import Extractor, check_images
from jaxgen.evaluation.features.inception_network import Network

NUM_FEATURES = 2048
SIZE = 299
EPSILON = 1e-3
REFERENCE = "inception-v3-6726825d"
"""Name of the extractor with the reference weights: their file is called by the beginning of its SHA-256."""


def load(path: str | Path) -> Extractor:
    """The extractor "inception-v3-<hash>", with its classifier of 1008 classes.

    Takes gray or RGB pictures of any size and brings them to 299 x 299 pixels by bilinear interpolation
    without antialiasing. As in the code of the inception score (Salimans et al. 2016), the classifier leaves
    the bias of its last layer out.

    Args:
        path: the state dict, as the port's .pth file or as an .npz of the same names and shapes.

    Raises:
        ValueError: no such file, a damaged one, or weights of another network.
    """
    path = Path(path).expanduser()
    state = _read_npz(path) if path.suffix == ".npz" else torch_file.read(path)
    params = ported.on_device(_checked(path, state))
    return extractor(f"inception-v3-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}", params)


def extractor(name: str, params: Any) -> Extractor:
    """As `load`, with parameters of `inception_network.Network`."""
    return Extractor(name, NUM_FEATURES, Partial(_extract, params), Partial(_classify, params))


def is_reference(candidate: Extractor) -> bool:
    """Whether distances of these features may be called FID and KID, and its score the inception score."""
    return candidate.name == REFERENCE


def convert(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """`Network`'s parameters from the state dict of the PyTorch port."""
    units = [name.removesuffix(".conv.weight") for name in state if name.endswith(".conv.weight")]
    folded = {
        (*unit.split("."), "conv"): ported.folded(state, f"{unit}.conv", f"{unit}.bn", EPSILON)
        for unit in units
    }
    return {**traverse_util.unflatten_dict(folded), "fc": {"kernel": state["fc.weight"].T}}


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        # Opened here, because NumPy leaves a file open that is no archive.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except Exception as error:  # zipfile, zlib and NumPy raise a dozen types on damaged files
        raise ValueError(f"{path} cannot be read as an npz archive: {one_line(error)}") from error


def _checked(path: Path, state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The converted parameters, of exactly the names and shapes of the network."""
    wanted = jax.eval_shape(Network().init, jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))["params"]
    try:
        params = convert(state)
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} does not hold the Inception of FID: {error} is missing or odd") from error
    shapes = [
        {".".join(key): array.shape for key, array in traverse_util.flatten_dict(tree).items()}
        for tree in (params, wanted)
    ]
    for name in sorted(shapes[0].keys() | shapes[1].keys()):
        found, right = (tree.get(name) for tree in shapes)
        if found != right:
            raise ValueError(f"{path} does not hold the Inception of FID: {name} is {found}, not {right}")
    return params


def _outputs(params: Any, images: Array, which: int) -> Array:
    check_images(images, "inception-v3", channels=(1, 3), smallest=8)

    def outputs(images):
        return Network().apply({"params": params}, ported.resized(images, SIZE, antialias=False))[which]

    with jax.default_matmul_precision("float32"):
        return ported.in_chunks(outputs, images)


def _extract(params: Any, images: Array) -> Array:
    return _outputs(params, images, 0)


def _classify(params: Any, images: Array) -> Array:
    return jax.nn.softmax(_outputs(params, images, 1))
