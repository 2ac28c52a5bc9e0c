"""Every test runs on eight virtual CPU devices, so that sharding is exercised wherever the suite runs.

Most of a test's time is the compilation of what then runs once, so XLA is told to compile fast and not to
optimize much. With `-n`, the tests of one file, or of one family in test_protocol.py, go to one process,
which compiles once what they share. Compiled programs are kept in .pytest_cache: a second run takes about a
third of the time of the first.
"""

import gc
import os
from importlib.metadata import version
from pathlib import Path

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# More threads than cores: a device that waits for another holds one, and on few cores none would be left.
os.environ.setdefault("NPROC", "32")
FLAGS = ["--xla_force_host_platform_device_count=8", "--xla_cpu_parallel_codegen_split_count=1"]
if tuple(map(int, version("jax").split(".")[:2])) < (0, 11):  # newer ones do not know the flag
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")

os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

SLOW_SECONDS = 1200
"""What a slow test may take; pyproject.toml has what the others may."""

SHORT = ("test_options.py", "test_protocol.py", "test_scripts.py")
"""Files whose tests take a few steps of every family, and most of their time to compile these."""

MOST_MAPS = 20_000
"""Memory maps of a process, of which compiled programs take some each and Linux allows 65,530."""


def pytest_configure(config):
    # Those that run long are worth some optimization.
    level = 0 if config.option.markexpr == "not slow" else 1
    flags = [os.environ.get("XLA_FLAGS", ""), *FLAGS, f"--xla_backend_optimization_level={level}"]
    os.environ["XLA_FLAGS"] = " ".join(flags)


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_SECONDS))


def pytest_runtest_setup(item):
    """What is compiled to run a few times is not worth even the optimization of slow tests."""
    import jax

    short = item.path.name in SHORT and not item.name.startswith("test_training_helps")
    jax.config.update("jax_disable_most_optimizations", short)


def pytest_runtest_teardown(item, nextitem):
    """Forgets compiled programs at the end of a file, if they are many: too many maps kill a process."""
    maps = Path("/proc/self/maps")
    if nextitem is not None and nextitem.path == item.path and item.path.name != "test_protocol.py":
        return
    if maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPS:
        import jax

        jax.clear_caches()
        gc.collect()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            path, _, rest = nodeid.partition("::")
            return rest.partition("[")[2] if path.endswith("test_protocol.py") else path

    return ByFile(config, log)
