"""Data sets by name, and shuffled batches as a pure function of the step."""

from jaxgen.data.batching import DeviceBatches, StreamedBatches, batches
from jaxgen.data.dataset import DataError, Dataset, StreamedDataset, in_order, take
from jaxgen.data.points import grid_centers, ring_centers
from jaxgen.data.sources import load, names

__all__ = [
    "DataError",
    "Dataset",
    "DeviceBatches",
    "StreamedBatches",
    "StreamedDataset",
    "batches",
    "grid_centers",
    "in_order",
    "load",
    "names",
    "ring_centers",
    "take",
]
