"""One process at a time in a folder: a file `lock` that the operating system frees when its holder is gone."""

import fcntl
import os
import platform
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from fedcl import writing
from fedcl.errors import ConfigError

TRIES, BETWEEN = 5, 0.02  # attempts at a lock that is held, and seconds between two


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
        try:
            opened = writing.descriptor(self._path, os.O_RDWR | os.O_CREAT, writing.OWN)
        except writing.Foreign:
            raise
        except OSError as error:
            raise ConfigError(f"{str(self._path.parent)!r} cannot be written ({error.strerror})") from error
        if not _taken(opened):
            os.close(opened)
            folder = self._path.parent
            what = f"{str(folder)!r} is in use by process {holder(folder)}"
            raise ConfigError(f"{what}: stop it, or name another folder")
        os.ftruncate(opened, 0)
        os.write(opened, f"{os.getpid()} {platform.node()}\n".encode())
        self._opened = opened
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Free it."""
        os.close(self._opened)


def _taken(opened: int) -> bool:
    """Take a lock and return True; False: it stays held."""
    for _ in range(TRIES):
        with suppress(BlockingIOError):  # somebody may only be looking whether it is held (`holder`), for no time
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(BETWEEN)
    return False


def holder(folder: Path) -> int | None:
    """Return the process that has the lock of a folder; None: nobody has."""
    try:
        opened = os.open(folder / "lock", os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        process = _written(os.read(opened, 300))[0]
        return int(process) if process.isdecimal() else 0
    finally:
        os.close(opened)
    return None


def machine(folder: Path) -> str:
    """Return the name of the machine whose process had the lock of a folder last; "": nobody had, or it is unknown."""
    try:
        return _written((folder / "lock").read_bytes())[1]
    except FileNotFoundError:
        return ""


def _written(content: bytes) -> tuple[str, str]:
    process, _, name = content.decode(errors="replace").strip().partition(" ")
    return process, name
