"""Device meshes, and how batches and states are placed on them.

The same jitted step runs on one CPU core, eight GPUs or a TPU pod: only the shardings of its inputs differ,
and XLA inserts the collectives. A mesh has two axes, `data` and `fsdp`. The batch is split over both. The
state is replicated, except that with `fsdp` > 1 its large arrays are split over that axis (fully sharded data
parallelism, Rajbhandari et al. 2020).

For users of `pmap`: the `data` axis corresponds to the mapped axis of `pmap`. Arrays have no leading device
axis; `PartitionSpec("data")` says instead that the first axis is split. No `psum` or `pmean` is written,
because the step is a function of the global batch.
"""

import math
import os
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

BATCH = PartitionSpec(("data", "fsdp"))
REPLICATED = PartitionSpec()

SMALLEST_SHARDED = 2**12
"""Arrays with fewer elements are replicated: splitting them costs more than it saves."""


def initialize() -> None:
    """Join the processes of a multi-host run; does nothing on a single machine.

    The cluster is detected from the environment (Slurm, Open MPI, GKE, TPU pods) or named by
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. Call it before anything else touches JAX.
    """
    if jax.distributed.is_initialized():
        return
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    if address:
        jax.distributed.initialize(
            address, int(os.environ["JAX_NUM_PROCESSES"]), int(os.environ["JAX_PROCESS_ID"])
        )
    elif any(int(os.environ.get(name, 1)) > 1 for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")) or (
        "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
    ):
        jax.distributed.initialize()


def mesh(data: int = -1, fsdp: int = 1) -> Mesh:
    """All devices as a (data, fsdp) grid.

    `data` = -1 stands for the number of devices divided by `fsdp`. A smaller grid uses the first devices.

    Raises ValueError if there are not as many devices as the sizes ask for.
    """
    devices = jax.devices()
    if data == -1:
        if len(devices) % fsdp:
            raise ValueError(f"fsdp = {fsdp} does not divide the {len(devices)} devices")
        data = len(devices) // fsdp
    if data * fsdp > len(devices):
        raise ValueError(f"a {data} x {fsdp} mesh needs {data * fsdp} devices, there are {len(devices)}")
    axis_types = (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh((data, fsdp), ("data", "fsdp"), axis_types, devices=devices[: data * fsdp])


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Raises ValueError, naming the nearest sizes that fit, if the mesh cannot split the batch evenly."""
    if batch_size < 1 or batch_size % mesh.size:
        below = batch_size // mesh.size * mesh.size
        sizes = " or ".join(str(size) for size in (below, below + mesh.size) if size > 0)
        raise ValueError(f"batch size {batch_size} cannot be split over {mesh.size} devices; use {sizes}")


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """A tree of NamedSharding for a state (arrays or their shapes).

    An array of at least `SMALLEST_SHARDED` elements is split over the `fsdp` axis, along the largest of its
    axes that are divisible by it. Other arrays are replicated.
    """
    size = mesh.shape["fsdp"]

    def sharding(leaf):
        fitting = [axis for axis in range(leaf.ndim) if leaf.shape[axis] % size == 0]
        if size == 1 or not fitting or math.prod(leaf.shape) < SMALLEST_SHARDED:
            return replicated(mesh)
        axis = max(fitting, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*(None,) * axis, "fsdp"))

    return jax.tree.map(sharding, state)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device holds in full."""
    return NamedSharding(mesh, REPLICATED)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """The tree, replicated on every device of the mesh; every process must pass the same values."""
    return jax.device_put(tree, replicated(mesh))


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """The global batch, split over the mesh, assembled from each process's slice in host memory."""
    sharding = NamedSharding(mesh, BATCH)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), dict(batch)
    )


def constrain_batch(batch: Any, mesh: Mesh) -> Any:
    """Inside a compiled function: split the batch over the mesh."""
    return jax.lax.with_sharding_constraint(dict(batch), NamedSharding(mesh, BATCH))


def barrier(name: str) -> None:
    """Wait until every process has reached this call; does nothing in a single process."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)
