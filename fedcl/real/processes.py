"""A child process with a log of its own, that does not outlive its supervisor."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from fedcl import writing

PR_SET_PDEATHSIG = 1
GRACE = 10.0  # seconds that a child has to end by itself


def _die_with_parent() -> None:
    """Ask Linux to kill this process when its supervisor is gone, however that happened."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Child:
    """A supervised process. Its output is appended to a log."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.name, self.log = name, log
        self._began = self._heard = log.stat().st_size if log.exists() else 0
        with writing.appending(log) as out:
            self._process = subprocess.Popen(
                command, env=dict(environment), stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                start_new_session=True, preexec_fn=_die_with_parent,
            )  # fmt: skip

    def __enter__(self) -> "Child":
        """Return the child."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End it, and what it started in its session."""
        self.stop()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    def stop(self) -> None:
        """Ask the child and its descendants to end; kill what has not ended after a while."""
        for number, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, GRACE)):
            try:
                os.killpg(self.pid, number)
            except ProcessLookupError:
                break
            end = time.monotonic() + patience
            while time.monotonic() < end and (self.alive or _group_lives(self.pid)):
                time.sleep(0.05)
        self._process.wait()

    def fresh(self) -> str:
        """Return what it has written since this was asked last."""
        with open(self.log, "rb") as file:
            file.seek(self._heard)
            text = file.read()
        self._heard += len(text)
        return text.decode(errors="replace")

    def said(self) -> str:
        """Return what it has written since it started."""
        with open(self.log, "rb") as file:
            file.seek(self._began)
            return file.read().decode(errors="replace")


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True
