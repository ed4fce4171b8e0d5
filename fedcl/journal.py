"""The run directory: events.jsonl (one JSON object a line, append only), error.log, and JSON files written whole.

A run killed at any moment leaves complete lines and at most one torn line at the end, which readers pass over and the
next writer cuts off. Files that are written whole appear under their name at once (temporary name, then rename).
"""

import json
import math
import os
import re
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from fedcl import files, foreign, kept, writing
from fedcl.errors import FederationError

Event = dict[str, Any]
EVENTS, ERRORS, RESULTS = "events.jsonl", "error.log", "results.json"
SCHEMA = 1  # of results.json
TEMPORARIES = ".*.tmp"
LAST = 1 << 20  # bytes at a journal's end among which its last event is looked for
LOST = b'{"event": "damaged"}'  # stands in the place of a line that cannot be read
TEMPORARY = re.compile(r"\..+\.[0-9]+-[0-9a-f]{8}\.tmp", re.DOTALL)  # what `replace_file` calls its own
MEND = "put back a copy of it; a run that has not finished goes on without that line (fedcl run --resume)"
FAILED = "the run failed: "  # begins a line of error.log


def sync_path(path: Path) -> None:
    """Force a file's bytes, or a folder's list of names, onto the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def replace_file(path: Path, parts: Iterable[Any], *, sync: bool, mode: int = 0o666) -> None:
    """Write a file whole or not at all: under a temporary name in the same folder, then renamed onto `path`.

    Args:
        path: the file to create or replace; its folder must exist.
        parts: bytes, or C-contiguous arrays, written one after another.
        sync: force the bytes onto the disk before the rename and the rename itself afterwards.
        mode: of the file, less what the process's umask takes away.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with open(writing.descriptor(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
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
    path = folder / RESULTS
    if not os.path.lexists(path):
        return None
    return kept.read_json(path, SCHEMA, "delete it; fedcl run --resume writes it anew from the events")


def finished(folder: Path) -> bool:
    """Return whether the run has finished and nothing of what it leaves behind is missing.

    The journal decides; results.json, which is made of it, must be there, whole, and say the same.
    """
    try:
        results = read_results(folder)
    except kept.Damaged:  # it is written anew
        return False
    end = _last(folder / EVENTS) if results else {}
    said = [(each.get("status"), each.get("weights_sha256")) for each in (results or {}, end)]
    return end.get("event") == "end" and said[0] == said[1] and ended(results or {"status": ""})


def ended(results: Mapping[str, Any]) -> bool:
    """Return whether a run's results.json tells of all its rounds, also where training has diverged in them."""
    return bool(results["status"] == "finished" or (results["status"] == "diverged" and results.get("complete")))


def _last(path: Path) -> Event:
    """Return the last complete event of a journal, {} where it has none that can be read."""
    try:
        with files.opened(path, sys.maxsize) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LAST))
            *_, line, _ = [b"", *file.read().split(b"\n")]
        return event_of(line)
    except (files.Unfit, ValueError):
        return {}


def event_of(line: bytes) -> Event:
    """Return the event in a line.

    Raises:
        ValueError: it holds none.
    """
    try:
        event = json.loads(line)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    if not (isinstance(event, dict) and isinstance(event.get("event"), str)):
        raise ValueError("it is not an event")
    return event


def failure(folder: Path, behind: int = 0) -> str:
    """Return why a run could not go on, as error.log says behind a byte the last time; "": it does not say."""
    path = folder / ERRORS
    if not path.exists() or path.stat().st_size <= behind:
        return ""
    with open(path, "rb") as file:
        file.seek(behind)
        lines = file.read().decode(errors="replace").splitlines()
    return next((line.removeprefix(FAILED) for line in reversed(lines) if line.startswith(FAILED)), "")


def read_events(folder: Path, *, strict: bool = True) -> Iterator[Event]:
    """Iterate over the complete events of a run directory; safe while the run is still writing.

    Args:
        strict: refuse lines that cannot be read; False: leave them out.

    Raises:
        kept.Damaged: a complete line is no event, or the file is none that can be read.
    """
    path = folder / EVENTS
    if not os.path.lexists(path):
        return
    try:
        opened = files.opened(path, sys.maxsize)
    except files.Unfit as error:
        raise kept.Damaged(f"{path}: {error}") from error
    with opened as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            if line.isspace():  # too short for a note that something was lost here (`Journal.mend`)
                continue
            try:
                event = event_of(line)
            except ValueError as error:
                if not strict:
                    continue
                raise kept.damaged(path, f"line {number}: {error}", MEND) from error
            yield event


def _readable(line: bytes) -> bool:
    try:
        return line.isspace() or bool(event_of(line))
    except ValueError:
        return False


def clear(folder: Path) -> None:
    """Delete what writers that were killed have left in a folder; nobody else may write there meanwhile."""
    for path in folder.glob(TEMPORARIES):
        if TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


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

    def mend(self, offset: int) -> int:
        """Replace what cannot be read before `offset`, where a whole checkpoint says that an event ends.

        Every line keeps its length, and says that something was lost; what stood there goes to events.jsonl.broken.

        Returns:
            How many lines were replaced.
        """
        self._file.flush()
        if self.offset < offset:
            os.truncate(self.path, offset)
        lost = []
        with open(writing.descriptor(self.path, os.O_RDWR), "r+b") as file:  # not to append
            file.seek(max(0, offset - 1))
            if offset and file.read(1) != b"\n":
                file.seek(offset - 1)
                file.write(b"\n")
            file.seek(0)
            while file.tell() < offset:
                start, line = file.tell(), file.readline()
                if not _readable(line):
                    lost.append(line)
                    file.seek(start)
                    length = len(line) - 1
                    file.write((LOST if length >= len(LOST) else b"").ljust(length) + b"\n")
        if lost:
            with writing.appending(self.path.with_name(f"{EVENTS}.broken")) as aside:
                aside.writelines(lost)
        return len(lost)

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
