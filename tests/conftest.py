"""Every test runs on eight virtual CPU devices, so that sharding is exercised wherever the suite runs.

LLVM optimizes little, for most of a test's time is the compilation of what then runs once. With `-n`, the
tests of one file, or of one family in test_protocol.py, go to one process, which compiles once what they
share. Compiled programs are kept in .pytest_cache: a second run takes about a third of the time of the first.
"""

import os
from pathlib import Path

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# More threads than cores: a device that waits for another holds one, and on few cores none would be left.
os.environ.setdefault("NPROC", "32")
FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=1"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}"

os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

SLOW_SECONDS = 1200
"""What a slow test may take; pyproject.toml has what the others may."""


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_SECONDS))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            path, _, rest = nodeid.partition("::")
            return rest.partition("[")[2] if path.endswith("test_protocol.py") else path

    return ByFile(config, log)
