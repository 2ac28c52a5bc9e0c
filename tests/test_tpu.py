"""Every family's step compiles for TPUs, without one: libtpu compiles ahead of time on a CPU machine."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import jaxgen

ROOT = Path(__file__).parent.parent

COMPILE = """
import functools, sys
import jax, numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding
from jaxgen import shard
from tests.test_protocol import make_case

name, topology = sys.argv[1:]
case = make_case(name)
devices = np.array(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
mesh = Mesh(devices.reshape(-1, 2), ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto))
place = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
state = jax.tree.map(place, case.state, shard.state_shardings(case.state, mesh))
batch = {name: place(x, NamedSharding(mesh, shard.BATCH)) for name, x in case.batch.items()}
step = jax.jit(functools.partial(case.family.train_step, cfg=case.cfg), donate_argnums=0)
compiled = step.lower(state, batch).compile()
text = compiled.as_text()
assert "all-reduce" in text or "reduce-scatter" in text
print(name, topology, compiled.memory_analysis().temp_size_in_bytes)
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu, from the tpu extra")
@pytest.mark.parametrize("topology", ["v4:2x2x4", "v5e:4x4", "v6e:4x4"])
@pytest.mark.parametrize("name", sorted(jaxgen.families()))
def test_a_sharded_step_compiles_for_tpu(name, topology):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TPU_SKIP_MDS_QUERY": "1", "XLA_FLAGS": ""}
    command = [sys.executable, "-c", COMPILE, name, topology]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
