"""Downloading and preparing a data set of the tensorflow-datasets catalogue.

Reading a prepared data set does not need TensorFlow, but preparing one usually does. Without a network TFDS
retries for minutes and then prints pages of tracebacks, so this module first checks that the host answers.
"""

import importlib.util
import re
import threading
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from jaxgen.data.dataset import DataError, one_line

_DEFAULT_HOST = "https://storage.googleapis.com"
_PATIENCE = 4.0


def prepare(folder: Path, name: str) -> Path:
    """Download and prepare a data set of the catalogue; returns its folder."""
    import tensorflow_datasets as tfds

    base, *variant = re.split("[/:]", name)
    builder_class = tfds.builder_cls(base)
    configs = builder_class.builder_configs
    if "/" in name and configs and variant[0] not in configs:
        raise DataError(f"{base} has no variant {variant[0]!r}: it has {', '.join(configs)}")
    ways = (
        'prepare it with `pip install "jaxgen[prepare]"` and '
        f"`tfds build {name} --file_format=array_record`, or point --data-dir or TFDS_DATA_DIR at a folder "
        "where it is prepared"
    )
    silent = unreachable(next(iter(builder_class.url_infos or ()), _DEFAULT_HOST))
    if silent:
        raise DataError(f"{name} is not in {folder} and {silent} cannot be reached: {ways}")
    if importlib.util.find_spec("tensorflow") is None:
        raise DataError(f"{name} is not in {folder} and preparing it needs TensorFlow: {ways}")
    try:
        builder = tfds.builder(name, data_dir=folder)
        builder.download_and_prepare(file_format="array_record")
    except Exception as error:  # every builder fails in its own way
        raise DataError(
            f"{name} is not in {folder} and preparing it failed ({one_line(error)}): {ways}"
        ) from error
    return Path(builder.data_dir)


def unreachable(url: str) -> str:
    """The host of `url` if it does not answer within a few seconds, else ""."""
    parts = urllib.parse.urlsplit(url)
    answered = threading.Event()

    def ask():
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_PATIENCE).close()
            answered.set()
        except urllib.error.HTTPError:
            answered.set()  # a refusal is an answer too
        except Exception:
            return

    # In a thread because looking up a name has no time limit of its own.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    return "" if answered.is_set() else parts.hostname or url
