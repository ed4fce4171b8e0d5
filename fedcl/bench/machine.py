"""On what a figure was measured."""

import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedcl.bench.spec import ENVIRONMENT
from fedcl.distribution import installed
from fedcl.machine import cores

PACKAGES = ("fedcl", "torch", "numpy", "flwr", "ray", "pfl")


def machine() -> dict[str, Any]:
    """Return cores, processor, versions, environment and date."""
    return {
        "cores": cores(), "cpu": processor(), "system": platform.system(), "python": platform.python_version(),
        **{name: installed(name) for name in PACKAGES},
        "environment": ENVIRONMENT, "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


def processor() -> str:
    """Return what the processor is called."""
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or f"{os.cpu_count()} cores"
