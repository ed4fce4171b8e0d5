"""A disk that forgets: what a run does to its files, step by step, and what a power cut may leave of it.

What is recorded: files that `fedcl.writing` and `fedcl.journal` open, their writes and cuts, and every fsync, rename,
unlink and mkdir.
What a cut leaves: the bytes that a file had at its last fsync, or more; the names that a folder had at its last fsync,
and any of the changes since. So a name may be there without its bytes, and bytes without their name.
"""

import errno
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fedcl import journal, writing


@dataclass(frozen=True)
class Step:
    """One thing done to the disk: `what` is create, write, cut, sync, rename, unlink or mkdir."""

    what: str
    path: str
    file: int = 0  # the file behind the name, whatever it is called later
    data: bytes = b""
    at: int = 0  # byte of a write, length of a cut
    new: str = ""  # name after a rename


class File:
    """An open file that records what is written; unbuffered, as every write of the journal is flushed anyway."""

    def __init__(self, recorder: "Recorder", file: Any, path: str, number: int) -> None:
        self._recorder, self._file, self._path, self._number = recorder, file, path, number

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "File":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, data: Any) -> int:
        plain = bytes(memoryview(data))
        at = os.fstat(self._file.fileno()).st_size  # all that is written here is appended
        self._recorder.note(Step("write", self._path, self._number, data=plain, at=at))
        self._file.write(plain)
        self._file.flush()
        return len(plain)

    def truncate(self, length: int) -> int:
        self._recorder.note(Step("cut", self._path, self._number, at=length))
        return int(self._file.truncate(length))


@dataclass
class Recorder:
    """Notes every step under a folder; `full(step)` says whether there is no space left for it."""

    folder: Path
    full: Callable[[Step], bool] = lambda step: False
    steps: list[Step] = field(default_factory=list)
    names: dict[str, int] = field(default_factory=dict)  # the file behind each name now
    files: int = 0
    told: bool = False

    def once(self) -> bool:
        """Return True the first time."""
        first, self.told = not self.told, True
        return first

    def note(self, step: Step) -> None:
        if self.full(step):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.steps.append(step)

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Put the recording layer between the run and the disk."""
        plain = {name: getattr(os, name) for name in ("replace", "unlink", "mkdir", "fsync")}
        described = writing.descriptor

        def descriptor(path: Any, flags: int, *args: Any) -> int:
            name = str(path)
            if self._mine(name) and flags & os.O_CREAT and (not os.path.exists(name) or name not in self.names):
                self.files += 1
                self.note(Step("create", name, self.files))
                self.names[name] = self.files
            return described(path, flags, *args)

        def opened(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            name = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else ""
            if name not in self.names:
                return open(path, mode, *args, **kwargs)
            return File(self, open(path, mode, buffering=0), name, self.names[name])

        def replace(source: Any, target: Any) -> None:
            if self._mine(str(target)):
                self.note(Step("rename", str(source), self.names[str(source)], new=str(target)))
                self.names[str(target)] = self.names.pop(str(source))
            plain["replace"](source, target)

        def unlink(path: Any, **kwargs: Any) -> None:
            plain["unlink"](path, **kwargs)
            if self._mine(str(path)):
                self.note(Step("unlink", str(path), self.names.pop(str(path))))

        def mkdir(path: Any, *args: Any, **kwargs: Any) -> None:
            if self._mine(str(path)) and not os.path.isdir(path) and os.path.isdir(os.path.dirname(path)):
                self.note(Step("mkdir", str(path)))
            plain["mkdir"](path, *args, **kwargs)

        def fsync(opened: int) -> None:
            name = os.readlink(f"/proc/self/fd/{opened}")
            if self._mine(name) or name == str(self.folder):
                self.note(Step("sync", name, self.names.get(name, 0)))
            plain["fsync"](opened)

        patch.setattr(writing, "descriptor", descriptor)
        for module in (journal, writing):
            patch.setattr(module, "open", opened, raising=False)
        for name, ours in {"replace": replace, "unlink": unlink, "mkdir": mkdir, "fsync": fsync}.items():
            patch.setattr(os, name, ours)

    def _mine(self, name: str) -> bool:
        return name.startswith(f"{self.folder}/")


class Disk:
    """What is on the disk for good, and what is only on its way there."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)
        self.bytes: dict[int, tuple[bytes, bytes]] = {}  # of each file: for good, and as the run sees them
        self.names: dict[str, int] = {}  # for good
        self.folders = {self.folder}
        self.waiting: dict[str, list[Step]] = {}  # changes of a folder's names since its last fsync

    def take(self, step: Step) -> None:
        """Do a step."""
        safe, now = self.bytes.get(step.file, (b"", b""))
        if step.what in ("create", "rename", "unlink", "mkdir"):
            self.waiting.setdefault(os.path.dirname(step.path), []).append(step)
        if step.what == "write":
            now = now[: step.at] + step.data
        elif step.what == "cut":
            now = now[: step.at]
        elif step.what == "sync" and step.file:
            safe = now
        elif step.what == "sync":
            for each in self.waiting.pop(step.path, []):
                rename(self.names, self.folders, each)
        if step.file:
            self.bytes[step.file] = (safe, now)

    def left(self, draws: random.Random | None, everything: bool = False) -> tuple[dict[str, bytes], set[str]]:
        """Return the files and folders that a power cut leaves.

        Args:
            draws: which of the changes under way have come through; None: all of them or none.
        """
        names, folders = dict(self.names), set(self.folders)
        for steps in self.waiting.values():
            for step in steps:
                if draws.random() < 0.5 if draws else everything:
                    rename(names, folders, step)
        files = {}
        for name, number in names.items():
            safe, now = self.bytes[number]
            cut = draws.choice([len(safe), draws.randint(0, len(now)), len(now)]) if draws else len(now) * everything
            files[name] = safe if cut <= len(safe) and now.startswith(safe) else now[:cut]
        return {name: data for name, data in files.items() if os.path.dirname(name) in folders}, folders


def rename(names: dict[str, int], folders: set[str], step: Step) -> None:
    """Change the names of files and folders as a step does."""
    if step.what == "mkdir":
        folders.add(step.path)
        return
    if names.get(step.path) == step.file or step.what == "create":
        names.pop(step.path, None)
    if step.what != "unlink":
        names[step.new or step.path] = step.file


def cuts(
    steps: list[Step], folder: Path, draws: random.Random, each: int
) -> Iterator[tuple[int, dict[str, bytes], set[str]]]:
    """Yield what a power cut after the first n steps may leave, for every n: nothing, everything, and `each` draws."""
    disk = Disk(folder)
    for n in range(len(steps) + 1):
        for chance, everything in [(None, False), (None, True), *[(draws, False)] * each]:
            yield n, *disk.left(chance, everything)
        if n < len(steps):
            disk.take(steps[n])


def restored(files: dict[str, bytes], folders: set[str], was: Path, into: Path) -> None:
    """Write files and folders that lay under `was` into a new folder."""
    into.mkdir()
    for each in sorted(folders):
        (into / os.path.relpath(each, was)).mkdir(exist_ok=True)
    for name, data in files.items():
        (into / os.path.relpath(name, was)).write_bytes(data)
