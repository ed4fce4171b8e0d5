"""The largest resident memory of this process and of each below it, as the kernel counts it."""

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

PROC = Path("/proc")


def peaks() -> dict[str, Any]:
    """Return the peak of this process and those of its descendants, largest first, in bytes.

    Where there is no /proc, descendants are the largest that has ended: all that such a system tells.
    """
    if (PROC / "self" / "status").exists():
        below = sorted((peak for pid in _below(os.getpid()) if (peak := _peak(pid))), reverse=True)
        return {"process": _peak(os.getpid()), "below": below}
    unit = 1 if sys.platform == "darwin" else 1024
    ended = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit
    return {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "below": [ended] if ended else []}


def _peak(pid: int) -> int:
    with suppress(OSError):  # it has ended meanwhile
        for line in (PROC / str(pid) / "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def _below(root: int) -> Iterator[int]:
    """Yield the processes below one, at any depth."""
    children: dict[int, list[int]] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
                children.setdefault(int(parent), []).append(int(entry.name))
    waiting = list(children.get(root, []))
    while waiting:
        pid = waiting.pop()
        yield pid
        waiting += children.get(pid, [])
