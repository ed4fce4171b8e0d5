"""What a watcher of a run sees beside the live line of `fedcl run`: accuracy per task, curves, errors, silence."""

import time
from collections.abc import Iterable
from typing import Any

from rich.console import Group
from rich.text import Text

from fedcl import foreign
from fedcl.chart import bar, curve
from fedcl.console import Event, Progress, duration, fraction
from fedcl.log import seen_accuracy

ROWS = 12  # tasks with a bar each; more are one line
SILENT = 15.0  # seconds without an event after which it is said


class RunView(Progress):
    """A listener of events that are read from a journal, perhaps long after they were written."""

    def forget(self) -> None:
        """Know nothing of a run."""
        super().forget()
        self.begun, self.status = False, ""  # status: how the run has ended, "" while it has not
        self._accuracies: list[tuple[int, float]] = []  # of the tasks that have started
        self._seen: list[float] = []  # mean accuracy, evaluation by evaluation
        self._losses: list[float] = []
        self._failures, self._failure = 0, ""
        self._beside, self._heard, self._past = 0.0, time.monotonic(), False

    def replay(self, events: Iterable[Event]) -> None:
        """Take what has happened before; only the run's start is said."""
        for event in events:
            self._past = event["event"] != "start"
            self(event)
        self._past = False

    def __call__(self, event: Event) -> None:
        """Take one event."""
        self.begun, self._heard = True, time.monotonic()
        if event["event"] in ("evaluation", "checkpoint") and event["round"]:
            self._beside += event["seconds"]
        super().__call__(event)

    def shown(self) -> Any:
        """Return the live line, and below it what is known of tasks, rounds, clients."""
        return Group(self.line(), *(Text(each, no_wrap=True, overflow="ellipsis") for each in self.details()))

    def details(self) -> list[str]:
        """Return the lines below the live line."""
        lines = self._tasks_shown()
        if len(self._seen) > 1:
            lines.append(f"accuracy  {curve(self._seen, low=0.0, high=1.0)} {fraction(self._seen[-1])}")
        if len(self._losses) > 1:
            lines.append(f"loss      {curve(self._losses)} {self._losses[-1]:.4f}")
        if self._failures:
            lines.append(f"{self._failures} client error{'s' * (self._failures > 1)}, the last: {self._failure}")
        silence = time.monotonic() - self._heard
        if silence > SILENT and not self.status:
            lines.append(f"nothing new for {duration(silence)}")
        return lines

    def _tasks_shown(self) -> list[str]:
        known = self._accuracies
        if len(known) > ROWS:
            return [
                f"tasks     {curve([value for _, value in known], low=0.0, high=1.0)} {known[0][0]}..{known[-1][0]}"
            ]
        return [f"{f'task {task}':9} {bar(value)} {fraction(value)}" for task, value in known]

    def _say(self, text: str) -> None:
        if not self._past:
            super()._say(text)

    def _warn(self, text: str, style: str = "yellow") -> None:
        if not self._past:
            super()._warn(text, style)

    def _took(self, event: Event) -> float:
        """Return the seconds that the events name: when they are read says nothing."""
        beside, self._beside = self._beside, 0.0
        return float(event["seconds"]) + beside

    def _on_round(self, event: Event) -> None:
        super()._on_round(event)
        if self._loss is not None:
            self._losses.append(self._loss)

    def _on_evaluation(self, event: Event) -> None:
        rows = enumerate(zip(event["accuracy"] or (), event["started"], strict=False))
        self._accuracies = [(task, value) for task, (value, begun) in rows if begun and value is not None]
        mean = seen_accuracy(event)
        if mean is not None:
            self._seen.append(mean)
        super()._on_evaluation(event)

    def _on_client_error(self, event: Event) -> None:
        self._failures += 1
        self._failure = f"client {event['client']} in round {event['round']}: {foreign.line(event['error'])}"
        super()._on_client_error(event)

    def _on_end(self, event: Event) -> None:
        self.status = event["status"]
