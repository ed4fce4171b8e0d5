"""A sweep, watched: its journal read on, and how it has ended."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from fedcl import kept
from fedcl.journal import EVENTS, finished
from fedcl.real.tail import Tail
from fedcl.sweeps.axes import Point
from fedcl.sweeps.folder import PLAN, read_plan, run_folder
from fedcl.sweeps.live import Watcher
from fedcl.sweeps.state import DONE, FAILED, HELD, RUNNING, WAITING, State
from fedcl.watch.pulse import Pulse

Event = Mapping[str, Any]


@dataclass(frozen=True)
class Planned:
    """A run of a sweep, as sweep.json names it."""

    key: str
    title: str

    def folder(self, out: Path) -> Path:
        """Return its run directory."""
        return run_folder(out, self.key)


class SweepWatch:
    """Follows a sweep's folder."""

    def __init__(self, out: Path, pulse: Pulse) -> None:
        self._out, self._pulse = out, pulse
        self.view = Watcher(out)
        self._state = self._planned()
        self._tail, self._fresh = Tail(out / EVENTS, whole=True), True

    def look(self) -> str:
        """Take in what has been written since the last look; return how the sweep has ended, "" while it has not."""
        events = list(self._tail.fresh())
        with kept.sound(self._out / EVENTS):
            for event in events:
                self._take(event)
        gone = self._pulse.gone(bool(events))
        if gone:
            self._settle()
        (self.view.catch_up if self._fresh else self.view)(self._state)
        self._fresh = False
        return self._ended(gone)

    def tell(self, status: str, console: Console) -> None:
        """Say how the sweep stands."""
        if status:  # it took as long as it wrote
            written = (self._out / EVENTS).stat().st_mtime - (self._out / PLAN).stat().st_mtime
            self._state.began = time.monotonic() - max(0.0, written)
            self.view.catch_up(self._state)
        console.print(self.view.shown())
        for key, error in self._state.errors.items():
            console.print(escape(f"failed: {self._state.runs[key].title}: {error}"), soft_wrap=True)
        words = {
            "finished": f"finished: {self._out}",
            "failed": f"{self._state.counts[FAILED]} runs failed; fedcl sweep --retry-failed runs them again",
            "stopped": "stopped; the same fedcl sweep goes on",
            "died": f"died: no process works in {self._out}; the same fedcl sweep goes on",
        }
        if status:
            console.print(escape(words[status]), soft_wrap=True)

    def _planned(self) -> State:
        """Return the sweep as it is planned; a sitting begins with its plan."""
        runs: dict[str, Planned] = {}
        plan = read_plan(self._out)
        for each in plan["points"]:
            point = Point(labels=each["labels"], overrides=tuple(each["overrides"]), seed=each["seed"])
            runs.setdefault(each["key"], Planned(each["key"], point.title))
        self._search = plan.get("search")
        age = max(0.0, time.time() - (self._out / PLAN).stat().st_mtime)
        return State(runs=runs, status=dict.fromkeys(runs, WAITING), errors={}, began=time.monotonic() - age)

    def _take(self, event: Event) -> None:
        """Take one event of the sweep's journal."""
        state, kind, key = self._state, event["event"], event.get("key", "")
        if kind == "sweep":  # of another sitting, perhaps with other runs
            before, self._state = state, self._planned()
            self._state.status |= {each: how for each, how in before.status.items() if each in self._state.runs}
            self._state.errors = {each: why for each, why in before.errors.items() if each in self._state.runs}
            self._settle()
            self._state.status |= {each: WAITING for each, how in self._state.status.items() if how == HELD}
        elif kind == "run_start":
            if key not in state.runs:  # a search chooses its runs on the way
                state.runs = {**state.runs, key: Planned(key, str(event["title"]))}
            state.status[key] = RUNNING
            state.most = max(state.most, state.counts[RUNNING])
            state.errors.pop(key, None)
        elif kind == "run_end" and key in state.runs:
            state.status[key] = event["status"]
            if event["status"] == DONE:
                state.seconds.append(event["seconds"])
            if event["error"]:
                state.errors[key] = event["error"]

    def _settle(self) -> None:
        """Look what has become of runs whose sweep is gone: they have finished, or wait for the next sitting.

        A search may have planned some since it began.
        """
        planned = self._planned()
        self._state.runs = {**planned.runs, **self._state.runs}
        self._state.status = {**planned.status, **self._state.status}
        for key, how in self._state.status.items():
            if how == RUNNING:
                self._state.status[key] = DONE if finished(self._state.runs[key].folder(self._out)) else WAITING

    def _ended(self, gone: bool) -> str:
        counts = self._state.counts
        if self._search and not gone:  # there may be more to come, whatever has ended
            return ""
        if self._search and not all(each["best"] for each in read_plan(self._out)["search"]["studies"]):
            return "stopped" if counts[HELD] else "died"
        if not counts[RUNNING] and not counts[WAITING] and not counts[HELD]:
            return "failed" if counts[FAILED] else "finished"
        if counts[HELD] and not counts[RUNNING]:
            return "stopped"
        return "died" if gone else ""
