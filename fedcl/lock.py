"""One process at a time in a folder: a file `lock` that the operating system frees when its holder is gone."""

import fcntl
import os
from pathlib import Path
from types import TracebackType

from fedcl.errors import ConfigError


class Lock:
    """The lock of a folder, held inside a `with` block; its file says by whom."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "lock"
        self._opened = -1

    def __enter__(self) -> "Lock":
        """Take the lock.

        Raises:
            ConfigError: another process has it.
        """
        opened = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(opened)
            folder = self._path.parent
            what = f"{str(folder)!r} is in use by process {holder(folder)}"
            raise ConfigError(f"{what}: stop it, or name another folder") from error
        os.ftruncate(opened, 0)
        os.write(opened, f"{os.getpid()}\n".encode())
        self._opened = opened
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Free it."""
        os.close(self._opened)


def holder(folder: Path) -> int | None:
    """Return the process that has the lock of a folder; None: nobody has."""
    try:
        opened = os.open(folder / "lock", os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.read(opened, 32).decode().strip()
        return int(text) if text.isdecimal() else 0
    finally:
        os.close(opened)
    return None
