"""How files of ours are opened to be written: never through a symbolic link, and never anything but a regular file.

In a folder that somebody else may write to, a link under the name of one of our files would have us write wherever it
leads. (Files that are written whole replace what stands there: `fedcl.journal.replace_file`. What a user names as an
output, a report or a figure, goes where the user says.)
"""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from fedcl.errors import ConfigError

OWN = 0o600  # mode of what nobody else may read


class Foreign(ConfigError, OSError):
    """Something that is not ours stands where a file of ours belongs."""


def descriptor(path: Path | str, flags: int, mode: int = 0o666) -> int:
    """Open or create a file as `os.open` does.

    Raises:
        Foreign: a link, or something else than a regular file, stands there.
        OSError: it cannot be opened.
    """
    what = f"{str(path)!r}: a file of fedcl's own belongs there, but"
    try:
        opened = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, mode)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise Foreign(f"{what} it is a symbolic link, which is not followed: remove it") from error
        if error.errno == errno.ENXIO:  # a pipe that nobody reads
            raise Foreign(f"{what} it is no regular file: remove it") from error
        raise
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        raise Foreign(f"{what} it is no regular file: remove it")
    return opened


def appending(path: Path | str, mode: int = 0o666) -> BinaryIO:
    """Open a file to be read and appended to, created if it is not there."""
    return open(descriptor(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, mode), "a+b")


def write(path: Path | str, data: bytes | str, mode: int = 0o666) -> None:
    """Write a small file of ours anew, text in UTF-8."""
    with open(descriptor(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
        file.write(data if isinstance(data, bytes) else data.encode("utf-8", "backslashreplace"))
