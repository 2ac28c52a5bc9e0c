"""Meshes, and where batches and states live on them.

The same jitted step runs on one CPU core, eight GPUs or a TPU pod: only the shardings of its inputs differ,
and XLA inserts the collectives. A mesh has two axes. The batch is split over both; the state is replicated,
except that with `fsdp` > 1 every large array of it is split over that axis (fully sharded data parallelism,
Rajbhandari et al. 2020). Who knows `pmap`: `data` is its axis, `P("data")` its leading device dimension, and
the `psum` is implied.
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
    """All devices as a (data, fsdp) grid; `data` = -1 takes what `fsdp` leaves. A smaller grid takes the
    first devices.

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
    """A tree of NamedSharding for a state (arrays or their shapes): split over `fsdp` where that is worth it.

    An array is split along its largest axis that the `fsdp` axis divides.
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
    """The sharding of what every device holds whole."""
    return NamedSharding(mesh, REPLICATED)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """The tree on every device of the mesh; every process must hold the same values."""
    return jax.device_put(tree, replicated(mesh))


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """A global batch, split over the mesh, from this process's slice of it in host memory."""
    sharding = NamedSharding(mesh, BATCH)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), dict(batch)
    )


def constrain_batch(batch: Any, mesh: Mesh) -> Any:
    """Inside a compiled function: split the batch over the mesh."""
    return jax.lax.with_sharding_constraint(dict(batch), NamedSharding(mesh, BATCH))


def barrier(name: str) -> None:
    """Wait until every process is here; nothing to wait for where there is one."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)
