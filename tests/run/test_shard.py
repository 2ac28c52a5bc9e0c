import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxgen import shard


def test_meshes_have_the_sizes_asked_for():
    assert dict(shard.mesh().shape) == {"data": 8, "fsdp": 1}
    assert dict(shard.mesh(fsdp=4).shape) == {"data": 2, "fsdp": 4}
    assert dict(shard.mesh(data=1).shape) == {"data": 1, "fsdp": 1}
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
