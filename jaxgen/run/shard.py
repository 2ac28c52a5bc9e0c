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
import re
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

BATCH = PartitionSpec(("data", "fsdp"))
REPLICATED = PartitionSpec()

SMALLEST_SHARDED = 2**12
"""Arrays with fewer elements are replicated: splitting them costs more than it saves."""

THREADS = 32
"""Threads of the CPU backend where virtual devices are asked for, at least four for each of them."""


def provide_threads() -> None:
    """Give virtual CPU devices more threads than there are devices, unless JAX has started or NPROC is set.

    By default there is one thread per core. Devices that wait for each other in a collective hold one each,
    and if none is left for the work that they wait for, they wait for ever. XLA reads the number of threads
    from NPROC when the backend starts. `import jaxgen` calls this, and `mesh` does so again.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    asked = [int(n) for n in re.findall(r"--xla_force_host_platform_device_count=(\d+)", flags)[-1:]]
    number = max([*asked, _num_cpu_devices()])
    if number >= _num_cores() and number > 1 and "NPROC" not in os.environ and not _has_started():
        os.environ["NPROC"] = str(max(THREADS, 4 * number))


def check_threads(mesh: Mesh) -> None:
    """Raises ValueError if the virtual CPU devices of a mesh could wait for each other for ever."""
    here = [d for d in mesh.devices.flat if d.process_index == jax.process_index() and d.platform == "cpu"]
    nproc = os.environ.get("NPROC", "")
    threads = max(int(nproc) if nproc.isdigit() else _num_cores(), jax.local_device_count())
    if len(here) > 1 and threads <= len(here):
        raise ValueError(
            f"{len(here)} virtual devices on {threads} threads can wait for each other for ever: import"
            f" jaxgen before the first use of JAX, or start Python with NPROC={max(THREADS, 4 * len(here))}"
            " in the environment"
        )


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _num_cpu_devices() -> int:
    """What the option of JAX asks for; -1 for none."""
    return jax.config.jax_num_cpu_devices  # type: ignore[attr-defined]


def _has_started() -> bool:
    """Whether the backends of JAX are initialised: from then on this option can no longer be changed."""
    current = _num_cpu_devices()
    try:
        jax.config.update("jax_num_cpu_devices", current + 1)
    except RuntimeError:
        return True
    jax.config.update("jax_num_cpu_devices", current)
    return False


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

    Raises ValueError for a size below 1, if there are not as many devices as the sizes ask for, or if virtual
    devices have too few threads.
    """
    provide_threads()
    for name, size in (("data", data), ("fsdp", fsdp)):
        if size < 1 and (name, size) != ("data", -1):
            raise ValueError(f"{name} must be at least 1, not {size}")
    devices = jax.devices()
    if data == -1:
        if len(devices) % fsdp:
            raise ValueError(f"fsdp = {fsdp} does not divide the {len(devices)} devices")
        data = len(devices) // fsdp
    if data * fsdp > len(devices):
        raise ValueError(f"a {data} x {fsdp} mesh needs {data * fsdp} devices, there are {len(devices)}")
    axis_types = (AxisType.Auto, AxisType.Auto)
    made = jax.make_mesh((data, fsdp), ("data", "fsdp"), axis_types, devices=devices[: data * fsdp])
    check_threads(made)
    return made


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
