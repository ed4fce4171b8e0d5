"""The sums of a round that wait until all its tables are in: in memory up to a bound, behind it in a nameless file."""

import tempfile
from pathlib import Path
from typing import IO

import numpy as np

from fedcl.machine import free_memory
from fedcl.orders import Array

SHARE, LEAST = 0.25, 1 << 30  # of the free memory, where that is known, and bytes: what is kept in memory


class Sums:
    """Flat vectors by number. One a cohort is kept, so of a thousand clients in ten cohorts there are ten."""

    def __init__(self, folder: Path, most: int | None = None) -> None:
        """Keep nothing yet.

        Args:
            folder: where the nameless file lies; it needs the room of what exceeds `most` bytes.
            most: bytes that are kept in memory; None: a share of what is free.
        """
        self._folder, self._left = folder, most if most is not None else int(SHARE * (free_memory() or 0)) or LEAST
        self._held: dict[int, Array] = {}
        self._filed: dict[int, tuple[int, int, str]] = {}  # number -> first byte, entries, dtype
        self._file: IO[bytes] | None = None

    def put(self, number: int, flat: Array) -> None:
        """Keep a vector under a number, in the place of the one that had it."""
        self.drop(number)
        if flat.nbytes <= self._left:
            self._held[number], self._left = flat, self._left - flat.nbytes
            return
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 (closed with the round)
        begin = self._file.seek(0, 2)
        self._file.write(np.ascontiguousarray(flat).data)
        self._filed[number] = begin, len(flat), str(flat.dtype)

    def get(self, number: int) -> Array:
        """Return the vector of a number."""
        if number in self._held:
            return self._held[number]
        begin, entries, dtype = self._filed[number]
        assert self._file is not None
        self._file.seek(begin)
        return np.frombuffer(self._file.read(entries * np.dtype(dtype).itemsize), dtype)

    def drop(self, number: int) -> None:
        """Forget a vector."""
        self._filed.pop(number, None)
        self._left += self._held.pop(number).nbytes if number in self._held else 0

    def close(self) -> None:
        """Give the room back."""
        self._held.clear()
        if self._file is not None:
            self._file.close()
