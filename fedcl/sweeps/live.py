"""How a sweep goes, in the terminal: done, running, failed, time left, and where each running run is."""

import time
from pathlib import Path

from rich.console import Console, Group
from rich.text import Text

from fedcl.console import OnTerminal, duration
from fedcl.journal import EVENTS
from fedcl.sweeps.state import DONE, FAILED, HELD, HOPELESS, PRUNED, RUNNING, WAITING, State

TAIL = 8192  # bytes of a journal's end in which its last round is looked for
SHOWN = 16  # running runs that are named
ENDED = (DONE, PRUNED, HOPELESS, FAILED, HELD)


class Watcher(OnTerminal):
    """A listener of a sweep's state."""

    def __init__(self, out: Path, console: Console | None = None, *, quiet: bool = False) -> None:
        super().__init__(console, quiet=quiet)
        self._out, self._now = out, Group(Text("starting ..."))
        self._told: dict[str, str] = {}

    def __call__(self, state: State) -> None:
        """Show the state; say once of every run how it has ended."""
        self._now = Group(Text(line(state)), *(Text(each) for each in self._running(state)))
        for key, status in state.status.items():
            if status in ENDED and self._told.get(key, status) != status:
                self._say(f"{status}: {state.runs[key].title}{_why(state, key)}")
            self._told[key] = status

    def catch_up(self, state: State) -> None:
        """Show the state; how runs have ended so far is not said any more."""
        self._told = dict(state.status)
        self(state)

    def shown(self) -> Group:
        """Return the state in a line, and where each running run is."""
        return self._now

    def _running(self, state: State) -> list[str]:
        running = [run for key, run in state.runs.items() if state.status[key] == RUNNING]
        return [f"  {run.title}: round {last_round(run.folder(self._out))}" for run in running[:SHOWN]]


def _why(state: State, key: str) -> str:
    return f": {state.errors[key]}" if key in state.errors else ""


def line(state: State) -> str:
    """Return the state in a line."""
    counts, left = state.counts, state.left
    parts = [f"{counts[each]} {each}" for each in (DONE, RUNNING, WAITING, *ENDED[1:]) if counts[each]]
    parts.append(f"{duration(time.monotonic() - state.began)} so far")
    return " · ".join([*parts, f"ETA {'-' if left is None else duration(left)}"])


def last_round(folder: Path) -> int:
    """Return the last round in a run's journal, 0 where there is none yet."""
    try:
        with open(folder / EVENTS, "rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - TAIL))
            text = file.read()
    except OSError:
        return 0
    _, mark, rest = text.rpartition(b'"event": "round", "round": ')
    digits = rest.partition(b",")[0]
    return int(digits) if mark and digits.isdigit() else 0
