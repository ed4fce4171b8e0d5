"""Files that somebody names: plain ones only, opened without waiting, and no longer than their reader can use.

A pipe keeps its reader waiting for ever, a device such as /dev/zero has no end, and a file of terabytes fills the
memory. So whatever reads a path of a user's opens it here, with the most bytes that it takes.
"""

import errno
import os
import stat
import zipfile
from pathlib import Path
from typing import BinaryIO

from fedcl.errors import ConfigError

TEXT = 1 << 26  # bytes of a scenario, a sweep, options, groups of settings
KEY = 1 << 20  # bytes of a key or a certificate
ARRAYS = 1 << 30  # bytes of weights or data, packed and unpacked
KINDS = {
    stat.S_IFDIR: "is a folder", stat.S_IFIFO: "is a pipe", stat.S_IFCHR: "is a device", stat.S_IFBLK: "is a device",
    stat.S_IFSOCK: "is a socket",
}  # fmt: skip

Name = str | os.PathLike[str]


class Unfit(Exception):
    """Why a file is not read: a clause that follows its name."""


def opened(path: Name, most: int) -> BinaryIO:
    """Open a plain file of at most `most` bytes for reading; it is looked at before it is opened, and after.

    Raises:
        Unfit: it is none, is longer, or may not be read.
    """
    try:
        _check(os.stat(path), most)
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise Unfit(_why(path, error)) from error
    try:
        _check(os.fstat(descriptor), most)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def content(path: Name, most: int) -> bytes:
    """Return the bytes of a plain file.

    Raises:
        Unfit: it is none, is longer than `most`, or cannot be read.
    """
    try:
        with opened(path, most) as file:
            data = file.read(most + 1)
    except OSError as error:
        raise Unfit(_why(path, error)) from error
    if len(data) > most:  # it grows
        raise Unfit(too_long(len(data), most))
    return data


def named(path: Name, what: str, most: int) -> bytes:
    """Return the bytes of a file that a user has named.

    Args:
        what: what it was named by, for the error: "--config", "model.weights =".
        most: bytes that are read of such a file.

    Raises:
        ConfigError: it is not read; says why.
    """
    try:
        return content(path, most)
    except Unfit as error:
        raise ConfigError(f"{what} {os.fspath(path)!r}: {error}") from error


def text(path: Name, what: str, most: int = TEXT) -> str:
    """Return the text of a file that a user has named; arguments as those of `named`.

    Raises:
        ConfigError: it is not read, or is no UTF-8.
    """
    try:
        return named(path, what, most).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{what} {os.fspath(path)!r}: is no text in UTF-8 (byte {error.start})") from error


def unpacking(file: BinaryIO, most: int) -> BinaryIO:
    """Return a zip file (.npz) that unpacks to at most `most` bytes; its readers go no further than it announces.

    Raises:
        Unfit: it announces more, or is none.
    """
    try:
        size = sum(each.file_size for each in zipfile.ZipFile(file).infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise Unfit(f"is no zip file that can be read ({error})") from error
    if size > most:
        raise Unfit(f"unpacks to {size:,} bytes, more than the {most:,} that are read")
    file.seek(0)
    return file


def checked(path: Path, what: str, most: int) -> Path:
    """Return the path of a file that another library reads, after it has been opened once.

    Raises:
        ConfigError: it is no plain file that can be read, or a longer one.
    """
    try:
        opened(path, most).close()
    except Unfit as error:
        raise ConfigError(f"{what} {str(path)!r}: {error}") from error
    return path


def too_long(size: int, most: int) -> str:
    """Return the clause about a file that is too long."""
    return f"has {size:,} bytes, more than the {most:,} that are read"


def _check(found: os.stat_result, most: int) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise Unfit(f"{KINDS.get(stat.S_IFMT(found.st_mode), 'is something else')}; must be a plain file")
    if found.st_size > most:
        raise Unfit(too_long(found.st_size, most))


def _why(path: Name, error: OSError | ValueError) -> str:
    """Return what the system says in a clause."""
    if isinstance(error, ValueError):  # a zero byte
        return "is no name that a file can have"
    if error.errno == errno.ENOENT and os.path.islink(path):
        return "is a link to nothing"
    return "is not there" if error.errno == errno.ENOENT else f"cannot be read ({error.strerror})"
