"""What is printed never ends what is done: a terminal that is gone, a full disk, an old encoding cost the words alone.

Letters that the encoding of an output lacks are replaced. An output that fails (its reader has left, its terminal was
closed, its disk is full) is given up: what is printed afterwards is lost, and what was being done goes on.
"""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO


class Output(io.TextIOBase):
    """A standard output that takes every text, whatever becomes of it. It has no `buffer`: nobody writes past it."""

    def __init__(self, stream: TextIO | None) -> None:
        """Stand before a stream; None: it was closed before the process began."""
        self._stream, self.lost = stream, ""  # why it was given up, "" while it works
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")

    @property
    def encoding(self) -> str:  # type: ignore[override]  # io says so of a class variable
        """The encoding of the stream."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]
        """What happens to letters that it lacks."""
        return "replace"

    def write(self, text: str) -> int:
        """Write, as long as it works."""
        self._tried("write", text)
        return len(text)

    def flush(self) -> None:
        """Flush, as long as it works."""
        self._tried("flush")

    def writable(self) -> bool:
        """Return True: it takes everything."""
        return True

    def isatty(self) -> bool:
        """Return whether it is a terminal that still works."""
        return bool(self._tried("isatty"))

    def fileno(self) -> int:
        """Return the descriptor of the stream.

        Raises:
            OSError: it has none.
        """
        if self._stream is None:
            raise io.UnsupportedOperation("fileno")
        return self._stream.fileno()

    def _tried(self, name: str, *given: str) -> Any:
        if self._stream is None:
            return None
        try:
            return getattr(self._stream, name)(*given)
        except UnicodeEncodeError:  # of a stream that could not be told to replace
            return self._stream.write(given[0].encode("ascii", "replace").decode())
        except (OSError, ValueError) as error:  # ValueError: it was closed
            self.lost = getattr(error, "strerror", None) or str(error)
            self._give_up()
            return None

    def _give_up(self) -> None:
        """Let what is left in the stream's buffer go nowhere: Python would try once more when it ends."""
        stream, self._stream = self._stream, None
        with suppress(OSError, ValueError, AttributeError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())  # type: ignore[union-attr]
            os.close(nowhere)
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()  # type: ignore[union-attr]


@contextmanager
def guarded() -> Iterator[Output]:
    """Let nothing that is printed inside the block fail; give the standard output, which says what became of it."""
    before = sys.stdout, sys.stderr
    out, err = Output(sys.stdout), Output(sys.stderr)
    sys.stdout, sys.stderr = out, err
    try:
        yield out
    finally:
        out.flush()
        err.flush()
        sys.stdout, sys.stderr = before
