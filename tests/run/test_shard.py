import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import jaxgen
from jaxgen import data, shard
from tests import line


def test_meshes_have_the_sizes_asked_for():
    assert dict(shard.mesh().shape) == {"data": 8, "fsdp": 1}
    assert dict(shard.mesh(fsdp=4).shape) == {"data": 2, "fsdp": 4}
    assert dict(shard.mesh(data=1).shape) == {"data": 1, "fsdp": 1}
    with pytest.raises(ValueError, match="fsdp must be at least 1, not 0"):
        shard.mesh(fsdp=0)
    with pytest.raises(ValueError, match="fsdp = 3 does not divide the 8 devices"):
        shard.mesh(fsdp=3)
    with pytest.raises(ValueError, match="needs 16 devices, there are 8"):
        shard.mesh(data=4, fsdp=4)


@pytest.mark.parametrize(("size", "named"), [(4, "use 8"), (13, "use 8 or 16"), (0, "use 8")])
def test_batches_that_do_not_split_are_refused(size, named):
    with pytest.raises(ValueError, match=named):
        shard.check_batch_size(size, shard.mesh())
    shard.check_batch_size(64, shard.mesh())


def test_only_large_arrays_are_split_along_an_axis_that_divides():
    mesh = shard.mesh(fsdp=4)
    state = {
        "tall": jnp.zeros((1024, 6)),
        "wide": jnp.zeros((3, 4096)),
        "odd": jnp.zeros((4099, 3)),
        "small": jnp.zeros(8),
    }
    specs = jax.tree.map(lambda sharding: sharding.spec, shard.state_shardings(state, mesh))
    assert specs["tall"] == PartitionSpec("fsdp")
    assert specs["wide"] == PartitionSpec(None, "fsdp")
    assert specs["odd"] == specs["small"] == PartitionSpec()
    split = jax.device_put(state["tall"], shard.state_shardings(state, mesh)["tall"])
    assert {piece.data.shape for piece in split.addressable_shards} == {(256, 6)}


def test_a_batch_is_split_over_every_device_and_keeps_its_values():
    batch = {"x": np.arange(32.0).reshape(16, 2)}
    placed = shard.put_batch(batch, shard.mesh(fsdp=2))
    np.testing.assert_array_equal(placed["x"], batch["x"])
    assert {piece.data.shape for piece in placed["x"].addressable_shards} == {(2, 2)}


def test_initialize_leaves_a_single_machine_alone(monkeypatch):
    for name in ("JAX_COORDINATOR_ADDRESS", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)
    shard.initialize()
    assert not jax.distributed.is_initialized()


def test_virtual_devices_get_more_threads_than_there_are_devices(monkeypatch):
    monkeypatch.setattr(shard, "_num_cores", lambda: 2)
    monkeypatch.setattr(shard, "_has_started", lambda: False)
    monkeypatch.setenv("XLA_FLAGS", "--some_flag --xla_force_host_platform_device_count=12")
    monkeypatch.delenv("NPROC")
    shard.provide_threads()
    assert os.environ["NPROC"] == "48"
    monkeypatch.setenv("NPROC", "7")
    shard.provide_threads()
    assert os.environ["NPROC"] == "7"


@pytest.mark.parametrize(
    ("flags", "cores", "started"),
    [("", 2, False), ("--xla_force_host_platform_device_count=2", 3, False)]
    + [("--xla_force_host_platform_device_count=2", 2, True)],
)
def test_threads_are_left_alone_where_they_suffice_or_it_is_too_late(monkeypatch, flags, cores, started):
    monkeypatch.setattr(shard, "_num_cores", lambda: cores)
    monkeypatch.setattr(shard, "_has_started", lambda: started)
    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.delenv("NPROC")
    shard.provide_threads()
    assert "NPROC" not in os.environ


def test_it_is_known_that_jax_has_started():
    jax.devices()
    before = jax.config.jax_num_cpu_devices
    assert shard._has_started()
    assert jax.config.jax_num_cpu_devices == before


@pytest.mark.parametrize("threads", ["8", ""])
def test_a_mesh_that_could_wait_for_ever_is_refused(monkeypatch, threads):
    whole = shard.mesh()
    monkeypatch.setenv("NPROC", threads)
    monkeypatch.setattr(shard, "_num_cores", lambda: 2)
    with pytest.raises(ValueError, match=r"8 virtual devices on 8 threads .* NPROC=32"):
        shard.mesh()
    options = {"steps": 1, "batch_size": 8, "key": jax.random.key(0), "mesh": whole}
    with pytest.raises(ValueError, match="NPROC=32"):
        jaxgen.fit(line, line.Config(), data.load("moons"), **options)
    shard.mesh(data=1)


TWO_DEVICES = """
{first}
import jax
import jaxgen
from jaxgen import data, shard
from jaxgen.classical import gmm
digits = data.load("digits")
cfg = gmm.Config(shape=digits.shape, num_components=3)
jaxgen.fit(gmm, cfg, digits, steps=5, batch_size=64, key=jax.random.key(5), mesh=shard.mesh(data=2))
"""


@pytest.mark.slow
@pytest.mark.parametrize("first", ["", "import jax; jax.devices()"])
def test_a_mixture_on_two_virtual_devices_of_two_cores_trains_or_says_what_to_set(first):
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    environment.pop("NPROC")
    command = [sys.executable, "-c", TWO_DEVICES.format(first=first)]
    if hasattr(os, "sched_setaffinity"):
        command[2] = f"import os; os.sched_setaffinity(0, {{0, 1}} & os.sched_getaffinity(0))\n{command[2]}"
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    if first:
        assert "or start Python with NPROC=32" in done.stderr
    else:
        assert done.returncode == 0, done.stderr
