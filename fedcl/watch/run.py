"""A run, watched: its journal read on, and how it has ended."""

import time
from pathlib import Path
from typing import Any

from rich.console import Console

from fedcl import kept
from fedcl.console import table
from fedcl.journal import EVENTS, RESULTS, failure, read_results
from fedcl.log import REMEDIES
from fedcl.real.tail import Tail
from fedcl.watch.pulse import Pulse
from fedcl.watch.view import RunView

PATIENCE = 5.0  # seconds for which the figures of a run that has ended are awaited
DIED = "died"


class RunWatch:
    """Follows one run directory."""

    def __init__(self, folder: Path, pulse: Pulse) -> None:
        self.folder, self._pulse = folder, pulse
        self.view = RunView()
        self._tail, self._fresh = Tail(folder / EVENTS, whole=True), True

    def look(self) -> str:
        """Take in what has been written since the last look; return how the run has ended, "" while it has not."""
        if self._tail.cut:  # the run goes on from a checkpoint: what came after that one will come again
            self._tail, self._fresh = Tail(self.folder / EVENTS, whole=True), True
            self.view.forget()
        events = self._new()
        with kept.sound(self.folder / EVENTS):
            if self._fresh:
                self.view.replay(events)
                self._fresh = False
            else:
                for event in events:
                    self.view(event)
        status = self.view.status
        if status in ("finished", "diverged") or (status and not self._pulse.supervised):
            return status
        return DIED if self._pulse.gone(bool(events)) and self.view.begun else ""

    def _new(self) -> list[dict[str, Any]]:
        """Return the events since the last look.

        Raises:
            kept.Damaged: a whole line is no event.
        """
        try:
            return list(self._tail.fresh())
        except kept.Damaged:
            if self._tail.cut:  # just now, in the middle of a line: all is read anew at the next look
                return []
            raise

    def tell(self, status: str, console: Console) -> None:
        """Say how the run stands, with its figures if it has ended."""
        for line in (self.view.line().plain, *self.view.details()):
            console.print(line, soft_wrap=True, markup=False)
        if not status:
            return
        results = self._results(status)
        if results:
            with kept.sound(self.folder / RESULTS):
                console.print(table(results))
        console.print(self._words(status), soft_wrap=True, markup=False)

    def _results(self, status: str) -> dict[str, Any] | None:
        """Return the figures of a run that has ended, which are written a moment after its last event."""
        end = time.monotonic() + (PATIENCE if status != DIED else 0.0)
        while True:
            results = read_results(self.folder)
            if results and results.get("status") == status:
                return results
            if time.monotonic() >= end:
                return None
            time.sleep(0.1)

    def _words(self, status: str) -> str:
        server = (self.folder.parent / "server.json").is_file()
        again = f"fedcl server --state {self.folder.parent} --resume" if server else f"fedcl run --resume {self.folder}"
        if status == "finished":
            return f"finished: {self.folder}"
        if status == "diverged":
            return f"diverged: {self.folder}; {REMEDIES}"
        if status == "failed":
            return f"failed: {failure(self.folder) or 'see error.log'}; {again} goes on from the last complete round"
        if status == DIED:
            return f"died: no process works in {self.folder}; {again} goes on from the last checkpoint"
        return f"{status}; {again} goes on"
