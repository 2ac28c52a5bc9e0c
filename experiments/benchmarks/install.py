"""How long a fresh install of the core takes, and how much disk: writes install.json beside this file.

python experiments/benchmarks/install.py
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def measure() -> dict[str, object]:
    """A virtual environment and `pip install` of the core over pip's warm cache: seconds, megabytes."""
    with tempfile.TemporaryDirectory() as folder:
        since = time.perf_counter()
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([f"{folder}/bin/pip", "install", "--quiet", str(ROOT)], check=True)
        seconds = time.perf_counter() - since
        size = sum(path.lstat().st_size for path in Path(folder).rglob("*") if path.is_file())
        packages = subprocess.run(
            [f"{folder}/bin/pip", "list", "--format=json"], capture_output=True, check=True
        )
    return {
        "seconds": round(seconds, 1),
        "megabytes": round(size / 1e6),
        "packages": len(json.loads(packages.stdout)),
        "python": platform.python_version(),
        "cpu_count": os.cpu_count(),
    }


if __name__ == "__main__":
    result = measure()
    print(result)
    Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
