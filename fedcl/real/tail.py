"""A file of JSON lines that another process writes, read on from where one stopped."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedcl import files, kept


class Tail:
    """What is new in a file of JSON lines; what stands in it at first is not, unless the `whole` file is asked for."""

    def __init__(self, path: Path, *, whole: bool = False) -> None:
        self._path, self._last = path, b""
        self._read = 0 if whole else self._size()

    def _size(self) -> int:
        return self._path.stat().st_size if self._path.exists() else 0

    def fresh(self) -> Iterator[dict[str, Any]]:
        """Yield the lines that have been completed since; a file that was cut off is read on from its end.

        Raises:
            kept.Damaged: a line cannot be read; the next call goes on behind it.
        """
        size = self._size()
        self._read = min(self._read, size)
        if size == self._read:
            return
        try:
            opened = files.opened(self._path, sys.maxsize)
        except files.Unfit as error:
            raise kept.Damaged(f"{self._path}: {error}") from error
        with opened as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._read, self._last = self._read + len(line), line
                if line.isspace():
                    continue
                try:
                    found = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise kept.damaged(self._path, error) from error
                if not isinstance(found, dict):
                    raise kept.damaged(self._path, "a line is no block of named values")
                yield found

    @property
    def cut(self) -> bool:
        """Whether the last line that was read stands there no more: the file was cut off, perhaps written on since."""
        if not self._last:
            return False
        try:
            with open(self._path, "rb") as file:
                file.seek(self._read - len(self._last))
                return file.read(len(self._last)) != self._last
        except FileNotFoundError:
            return True
