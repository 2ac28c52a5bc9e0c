"""Feature extractors: pictures in, vectors out, for the distances, precisions and scores of `evaluation`.

    extractor = features.load("small-cnn-mnist")
    real = features.of(extractor, data.load("mnist", "test"))       # (10000, 64)

| name | features | classifier | needs |
|---|---|---|---|
| `small-cnn-digits`, `small-cnn-mnist`, `small-cnn-fashion_mnist` | 64 | 10 digits or garments | nothing |
| `pca64`, or another number | 64 | | a data set to fit |
| `random-conv` | 64 | | nothing |
| `efficientnet-lite0`, or `efficientnet-lite0:96` for 96 pixels | 1280 | ImageNet | the extra `lite0` |
| `inception-v3:PATH`, experimental | 2048 | 1008 | your copy of its weights |

Numbers from different extractors cannot be compared, so `Extractor.name` belongs beside every one of them.
FID is the Frechet distance of one extractor alone, Inception-v3 with the reference weights (`is_reference`);
that of any other is "the Frechet distance (name)".
"""

import difflib
import re

from jaxgen.evaluation.features import efficientnet, inception, small_cnn, weightless
from jaxgen.evaluation.features.extractor import Extractor, Images, of, probabilities
from jaxgen.evaluation.features.inception import is_reference

__all__ = ["Extractor", "Images", "is_reference", "load", "of", "probabilities"]

_NAMES = (
    *(f"small-cnn-{name}" for name in small_cnn.SIZES),
    "pca64",
    "random-conv",
    "efficientnet-lite0",
    "inception-v3:PATH",
)


def load(name: str, dataset: Images | None = None) -> Extractor:
    """An extractor by name.

    Args:
        name: one of the table above, or "small-cnn" for the one trained on `dataset`.
        dataset: what "pca<d>" is fitted on, and whose name "small-cnn" looks at; others do not need it.

    Raises:
        ValueError: an unknown name (with the near ones), a data set that is missing, a damaged file.
    """
    if name == "small-cnn":
        return small_cnn.load(getattr(dataset, "name", None))
    if name in _NAMES and name.startswith("small-cnn-"):
        return small_cnn.load(name.removeprefix("small-cnn-"))
    if match := re.fullmatch(r"pca(\d+)", name):
        if dataset is None:
            raise ValueError(f"{name} is fitted on data: give load({name!r}, dataset)")
        return weightless.pca(dataset, int(match[1]))
    if name == "random-conv":
        return weightless.random_conv()
    kind, _, rest = name.partition(":")
    if kind == "efficientnet-lite0" and (not rest or rest.isdecimal()):
        return efficientnet.load(int(rest)) if rest else efficientnet.load()
    if kind == "inception-v3" and rest:
        return inception.load(rest)
    near = difflib.get_close_matches(name, _NAMES)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise ValueError(f"unknown feature extractor {name!r}: {hint}There are {', '.join(_NAMES)}")
