"""The files below a folder that may be read, in an order that no file system decides; what may not be is named."""

import os
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass

UNFINISHED = (".tmp", ".part")  # still being written: left alone, as hidden files are
MOST_DEPTH = 16  # folders within folders
MOST_WORDS = 200  # characters of a reason


@dataclass(frozen=True)
class Fault:
    """What is left out, and why: the path below the folder, and a clause that follows it."""

    path: str
    reason: str

    def __str__(self) -> str:
        """Return both in one sentence."""
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class File:
    """A plain file: its path below the folder, with slashes, and where its bytes lie."""

    path: str
    real: str


def printable(text: str) -> str:
    """Return text without line ends, escape sequences and halves of characters, which names of files may hold."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def fault(path: str, reason: str) -> Fault:
    """Return a fault that can be printed whatever the file is called and holds."""
    short = reason if len(reason) <= MOST_WORDS else f"{reason[: MOST_WORDS - 3]}..."
    return Fault(printable(path), printable(short))


def why(error: OSError) -> str:
    """Return what the system says, without the path."""
    return error.strerror or type(error).__name__


def walk(folder: str, endings: Collection[str]) -> Iterator[File | Fault]:
    """Yield every plain file below a folder, sorted by name folder by folder, and a fault for what is not read.

    Hidden and unfinished ones are left alone. A link is followed to a file inside the folder only; a link to a folder
    is not followed, since it would bring the same items twice.

    Args:
        folder: where to begin; it must be one that can be listed.
        endings: of files that are read (".npz"); a folder named like one is a fault.
    """
    root = os.path.realpath(folder)
    yield from _below(root, root, "", endings)


def _below(root: str, here: str, prefix: str, endings: Collection[str]) -> Iterator[File | Fault]:
    try:
        with os.scandir(here) as listed:
            entries = sorted(listed, key=lambda each: each.name)
    except OSError as error:
        yield fault(prefix, f"cannot be listed ({why(error)})")
        return
    for entry in entries:
        path = prefix + entry.name
        if entry.name.startswith(".") or entry.name.endswith(UNFINISHED):
            continue
        if not entry.is_dir(follow_symlinks=False):
            yield _file(root, entry, path)
        elif os.path.splitext(entry.name)[1].lower() in endings:
            yield fault(path, "is a folder, though it is named like a file")
        elif path.count("/") >= MOST_DEPTH:
            yield fault(path, f"lies more than {MOST_DEPTH} folders deep")
        else:
            yield from _below(root, entry.path, f"{path}/", endings)


def _file(root: str, entry: os.DirEntry[str], path: str) -> File | Fault:
    try:
        real = os.path.realpath(entry.path, strict=True)
        mode = os.stat(real).st_mode
    except OSError as error:
        return fault(path, f"is a link to nothing ({why(error)})" if entry.is_symlink() else f"is gone ({why(error)})")
    if os.path.commonpath([root, real]) != root:
        return fault(path, "is a link out of the folder")
    if stat.S_ISDIR(mode):
        return fault(path, "is a link to a folder; only links to files are followed")
    return File(path, real) if stat.S_ISREG(mode) else fault(path, "is no plain file")
