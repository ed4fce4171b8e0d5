"""The run directory: events.jsonl (one JSON object a line, append only), error.log, and JSON files written whole.

A run killed at any moment leaves complete lines and at most one torn line at the end, which readers pass over and the
next writer cuts off. Files that are written whole appear under their name at once (temporary name, then rename).
"""

import json
import math
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from fedcl import foreign, writing
from fedcl.errors import FederationError

Event = dict[str, Any]
EVENTS, ERRORS, RESULTS = "events.jsonl", "error.log", "results.json"
TEMPORARIES = ".*.tmp"
FAILED = "the run failed: "  # begins a line of error.log


def sync_path(path: Path) -> None:
    """Force a file's bytes, or a folder's list of names, onto the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def replace_file(path: Path, parts: Iterable[Any], *, sync: bool) -> None:
    """Write a file whole or not at all: under a temporary name in the same folder, then renamed onto `path`.

    Args:
        path: the file to create or replace; its folder must exist.
        parts: bytes, or C-contiguous arrays, written one after another.
        sync: force the bytes onto the disk before the rename and the rename itself afterwards.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with open(writing.descriptor(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
            for each in parts:
                file.write(each)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if sync:
        sync_path(path.parent)


def _non_finite(value: Any, key: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, float) and not math.isfinite(value):
        yield key, value
    elif isinstance(value, Mapping):
        for name, each in value.items():
            yield from _non_finite(each, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for i, each in enumerate(value):
            yield from _non_finite(each, f"{key}[{i}]")


def to_json(value: Any, indent: int | None = None) -> str:
    """Return strict JSON in ASCII.

    Raises:
        ValueError: a number is NaN or infinite, which JSON cannot say; names its key. An absent figure is None.
    """
    try:
        return json.dumps(value, allow_nan=False, indent=indent)
    except ValueError:
        for key, number in _non_finite(value, ""):
            raise ValueError(f"{key or 'the value'} = {number}: must be finite to be written as JSON") from None
        raise


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write one JSON file, whole or not at all, and force it onto the disk.

    Raises:
        ValueError: a number is not finite; the file is left as it was.
    """
    replace_file(path, [to_json(value, indent=2).encode() + b"\n"], sync=True)


def read_results(folder: Path) -> dict[str, Any] | None:
    """Return the results.json of a run directory, None where there is none yet."""
    try:
        results: dict[str, Any] = json.loads((folder / RESULTS).read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    return results


def finished(folder: Path) -> bool:
    """Return whether the run has finished and nothing of what it leaves behind is missing."""
    results = read_results(folder)
    return results is not None and bool(results["status"] == "finished")


def failure(folder: Path, behind: int = 0) -> str:
    """Return why a run could not go on, as error.log says behind a byte the last time; "": it does not say."""
    path = folder / ERRORS
    if not path.exists() or path.stat().st_size <= behind:
        return ""
    with open(path, "rb") as file:
        file.seek(behind)
        lines = file.read().decode(errors="replace").splitlines()
    return next((line.removeprefix(FAILED) for line in reversed(lines) if line.startswith(FAILED)), "")


def read_events(folder: Path) -> Iterator[Event]:
    """Iterate over the complete events of a run directory; safe while the run is still writing.

    Raises:
        FederationError: a complete line is not a JSON object.
    """
    path = folder / EVENTS
    if not path.exists():
        return
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                event = json.loads(line)
            except ValueError as error:
                raise FederationError(f"{path} line {number} is not JSON: {error}") from error
            if not isinstance(event, dict):
                raise FederationError(f"{path} line {number} is not an event")
            yield event


class Journal:
    """The one writer of a run's events."""

    def __init__(self, folder: Path, listeners: Sequence[Callable[[Event], None]] = ()) -> None:
        """Open (or create) the journal of a run directory, cutting off a torn last line.

        Args:
            folder: the run directory, created if absent.
            listeners: called with every event once it is written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.path, self.listeners = folder, folder / EVENTS, tuple(listeners)
        self._file = writing.appending(self.path)  # open for the whole run; see close
        self._cut(self._last_line_end())

    def __enter__(self) -> "Journal":
        """Return the journal itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close the file."""
        self.close()

    def _last_line_end(self) -> int:
        """Return the offset just behind the last newline, searching backwards."""
        end = self.offset
        while end > 0:
            start = max(0, end - 65536)
            self._file.seek(start)
            newline = self._file.read(end - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
        return 0

    def _cut(self, offset: int) -> None:
        if offset < self.offset:
            self._file.truncate(offset)
            self.sync()

    @property
    def offset(self) -> int:
        """Bytes written so far: where the next event begins."""
        return os.fstat(self._file.fileno()).st_size

    def write(self, event: Event) -> None:
        """Append one event, hand it to the operating system, then call the listeners.

        Raises:
            ValueError: a number is NaN or infinite (names the event and the key); nothing is written.
        """
        try:
            line = to_json(event)
        except ValueError as error:
            raise ValueError(f"event {event.get('event')!r}: {error}") from error
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        for listener in self.listeners:
            listener(event)

    def truncate(self, offset: int) -> None:
        """Forget the events behind `offset`, an earlier value of `offset`, for good: a resumed run writes them again.

        Raises:
            FederationError: the journal is shorter, or no event ends there.
        """
        if not 0 <= offset <= self.offset:
            raise FederationError(f"{self.path} has {self.offset} bytes, but the checkpoint knows of {offset}")
        if offset:
            self._file.seek(offset - 1)
            if self._file.read(1) != b"\n":
                raise FederationError(f"{self.path} has no event that ends at byte {offset}")
        self._cut(offset)

    def events(self) -> Iterator[Event]:
        """Iterate over the events written so far (see `read_events`)."""
        return read_events(self.folder)

    def error(self, text: str, quoted: str = "") -> None:
        """Append a failure to error.log.

        Args:
            text: our own words; what they repeat of others' is one line without control characters (`fedcl.foreign`).
            quoted: others' words, such as a client's traceback: each line is marked.
        """
        held = f"{foreign.plain(text).rstrip()}\n" + (f"{foreign.quoted(quoted)}\n" if quoted.strip() else "")
        with writing.appending(self.folder / ERRORS) as file:
            file.write(held.encode("utf-8", "backslashreplace"))

    def sync(self) -> None:
        """Force everything written so far onto the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; writing afterwards is an error."""
        self._file.close()
