"""Every test runs on eight virtual CPU devices, so that sharding is exercised wherever the suite runs.

LLVM optimizes little, for most of a test's time is the compilation of what then runs once.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=1"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}"
