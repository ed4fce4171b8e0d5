"""Whether the process that works in a folder lives, as far as its lock tells from here.

A lock that is free says that the process is gone, where locks reach: not on every shared path they do. So from another
machine than the one that had the lock last, and once events have come although it was free, nothing is concluded.
"""

import platform
import time
from collections.abc import Sequence
from pathlib import Path

from fedcl.lock import holder, machine

GRACE = 3.0  # seconds that a lock is free before its process counts as gone


class Pulse:
    """The locks of a folder and of those whose process would start another one in it."""

    def __init__(self, folders: Sequence[Path], *, patient: bool = True) -> None:
        self._folders, self._grace = folders, GRACE if patient else 0.0
        self._free: float | None = None  # since when
        self._blind = False

    @property
    def supervised(self) -> bool:
        """Whether somebody is there who starts another process in the folder, should this one end too early."""
        try:
            return any(holder(folder) is not None for folder in self._folders[1:])
        except OSError:
            return False

    def gone(self, moved: bool) -> bool:
        """Return whether the process is gone for certain.

        Args:
            moved: whether events have come since the last look, in which nobody need have had the lock.
        """
        now = time.monotonic()
        try:
            held = any(holder(folder) is not None for folder in self._folders)
            elsewhere = machine(self._folders[0]) not in ("", platform.node())
        except OSError:  # not ours to read, or a path without locks
            return False
        if held:
            self._free = None
            return False
        if self._free is None:
            self._free = now
        elif moved:
            self._blind = True
        return not (self._blind or elsewhere) and now - self._free >= self._grace
