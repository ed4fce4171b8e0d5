"""What this process may use of the machine: cores, memory, GPUs, as system and container say."""

import math
import os
import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")


def quota() -> float | None:
    """Return the cores that a container's quota (cgroup, version 2 or 1) leaves, None: no quota."""
    with suppress(OSError, ValueError):
        most, period = (CGROUP / "cpu.max").read_text().split()[:2]
        return int(most) / int(period) if most != "max" else None
    with suppress(OSError, ValueError):
        folder = CGROUP / "cpu"
        most, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(most) / int(period) if int(most) > 0 else None
    return None


def affinity() -> int:
    """Return the cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cores() -> int:
    """Return the cores that this process may use: those it may run on, and no more than a quota is worth."""
    allowed = quota()
    return affinity() if allowed is None else max(1, min(affinity(), math.ceil(allowed)))


def free_memory() -> int | None:
    """Return the bytes of memory that are free for this process, None: unknown."""
    found = []
    with suppress(OSError, ValueError, IndexError):
        line = next(each for each in MEMINFO.read_text().splitlines() if each.startswith("MemAvailable:"))
        found.append(int(line.split()[1]) * 1024)
    with suppress(OSError, ValueError):
        most = (CGROUP / "memory.max").read_text().strip()
        if most != "max":
            found.append(int(most) - int((CGROUP / "memory.current").read_text()))
    return min(found, default=None)


def free_disk(folder: Path) -> tuple[int, int]:
    """Return the free bytes at a folder, and those that there are in all."""
    usage = shutil.disk_usage(folder)
    return usage.free, usage.total


@dataclass(frozen=True)
class Gpu:
    """A GPU as the driver names it."""

    name: str
    driver: str


def gpus() -> list[Gpu] | None:
    """Return the GPUs of the machine, whatever torch sees of them; None: nvidia-smi is not here.

    Raises:
        OSError: nvidia-smi finds no driver; says why.
    """
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except subprocess.TimeoutExpired as error:
        raise OSError("nvidia-smi does not answer") from error
    if done.returncode:
        raise OSError(((done.stdout + done.stderr).strip().splitlines() or ["it says nothing"])[0])
    lines = [line.split(", ") for line in done.stdout.splitlines() if ", " in line]
    return [Gpu(name=", ".join(parts[:-1]), driver=parts[-1]) for parts in lines]
