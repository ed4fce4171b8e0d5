"""The events of a run sorted by what they tell: one record a round, the accuracies at the ends of tasks, the errors."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from fedcl.metrics import Indices, Matrix

Event = dict[str, Any]
EXPLODED = 1000.0  # times the loss of guessing: a training loss above it has exploded
MANY = 1 / 3  # of a round's updates that diverge: then the run has, whatever came later
REMEDIES = "try a smaller client.optimizer.lr, inputs of mean 0 and deviation 1, or client.clip=1"


@dataclass(frozen=True)
class Ends:
    """What was known at the ends of tasks, of the global model or of one client.

    Attributes:
        tasks: columns: task ids in the order in which they first ended.
        rounds: the round of each row.
        ended: the task that ended at each row. A task that comes back has a row for each of its ends, and one column.
        matrix: (rows, columns) accuracies, NaN where unknown.
    """

    tasks: list[int]
    rounds: list[int]
    ended: list[int]
    matrix: Matrix

    @cached_property
    def moments(self) -> tuple[Matrix, Indices]:
        """One row for each round in which tasks ended, and for each column the row at which it was first learnt."""
        rounds, last = np.unique(self.rounds[::-1], return_index=True)
        first = [self.rounds[self.ended.index(task)] for task in self.tasks]
        return self.matrix[::-1][last], np.searchsorted(rounds, first)

    def known(self) -> "Ends":
        """Leave out the columns of tasks that have no test item at all (never an accuracy); every row stays."""
        some = np.flatnonzero(~np.isnan(self.matrix).all(axis=0))
        return Ends([self.tasks[i] for i in some], self.rounds, self.ended, self.matrix[:, some])


def accuracies(values: Sequence[float | None] | None) -> list[float] | None:
    """Return an event's accuracies with NaN for None: unknown."""
    return None if values is None else [math.nan if value is None else float(value) for value in values]


def seen_accuracy(event: Mapping[str, Any]) -> float | None:
    """Return the mean accuracy of an evaluation over the tasks that have started; of all tasks while none has."""
    accuracy = event.get("accuracy")
    if accuracy is None:
        return None
    pairs = [(value, begun) for value, begun in zip(accuracy, event["started"], strict=True) if value is not None]
    values = [value for value, begun in pairs if begun] or [value for value, _ in pairs]
    return sum(values) / len(values) if values else None


def own_accuracy(event: Mapping[str, Any]) -> float | None:
    """Return the mean accuracy of clients on the task that each has just finished."""
    rows = [accuracy[task] for task, accuracy in zip(event["tasks"], event["accuracy"], strict=True) if accuracy]
    known = [value for value in rows if value is not None]
    return sum(known) / len(known) if known else None


def table(rows: Sequence[Any]) -> Matrix:
    """Return rows of the same length as a matrix; (0, 0) without rows."""
    return np.array(rows, np.float64).reshape(len(rows), len(rows[0]) if rows else 0)


def _ends(records: Iterable[tuple[int, int, list[float] | None]]) -> Ends:
    """Build `Ends` from (round, task, accuracy on every task or None) in order; unknown accuracies leave no row."""
    rows = [(round, task, accuracy) for round, task, accuracy in records if accuracy is not None]
    tasks = list(dict.fromkeys(task for _, task, _ in rows))
    matrix = table([[accuracy[task] for task in tasks] for _, _, accuracy in rows])
    return Ends(tasks, [row[0] for row in rows], [row[1] for row in rows], matrix)


@dataclass(frozen=True)
class Log:
    """The events of a run, one record a round (a round that was repeated after a resume counts once, its last time)."""

    start: Event = field(default_factory=dict)
    end: Event = field(default_factory=dict)
    rounds: dict[int, Event] = field(default_factory=dict)
    evaluations: dict[int, Event] = field(default_factory=dict)
    checkpoints: dict[int, Event] = field(default_factory=dict)
    consolidations: dict[int, Event] = field(default_factory=dict)
    scores: dict[int, Event] = field(default_factory=dict)  # clients scored for the selection
    locals: dict[int, Event] = field(default_factory=dict)  # clients after their own update, before it was merged
    task_ends: dict[tuple[int, int], list[float] | None] = field(default_factory=dict)
    client_ends: dict[tuple[int, int], tuple[int, list[float] | None]] = field(default_factory=dict)
    traces: dict[tuple[int, int], Event] = field(default_factory=dict)  # inside a client's visit, by (round, client)
    diverging: dict[int, Event] = field(default_factory=dict)  # rounds in which losses explode or updates diverge
    errors: list[Event] = field(default_factory=list)
    damaged: int = 0  # lines of the journal that could not be read

    @property
    def diverged(self) -> bool:
        """Whether training has diverged: at the end, or so many updates of a round that it is no client's matter."""
        last = self.diverging.get(self.last_round, {})
        return bool(last.get("exploded")) or any(
            event["updates"] > MANY * event["asked"] for event in self.diverging.values()
        )

    @property
    def complete(self) -> bool:
        """Whether all rounds were run, whatever they have come to."""
        rounds = self.start.get("rounds")
        return self.status == "finished" or (self.status == "diverged" and self.end.get("round") == rounds)

    @property
    def status(self) -> str:
        """Return what the end event says; "running" without one, or when the run went on after it."""
        return str(self.end.get("status", "finished")) if self.end else "running"

    @property
    def last_round(self) -> int:
        """Return the last round whose answers were aggregated, 0 for none."""
        return max(self.rounds, default=0)

    @cached_property
    def trained(self) -> set[int]:
        """Task ids that some client has trained on."""
        return set(self.began)

    @cached_property
    def began(self) -> dict[int, int]:
        """The first round in which some client trained on a task, by task."""
        rounds = sorted(self.rounds.items(), reverse=True)
        return {task: round for round, event in rounds for task in event.get("tasks", ()) if task >= 0}

    @cached_property
    def ends(self) -> Ends:
        """The global model at the ends of tasks."""
        return _ends((round, task, accuracy) for (round, task), accuracy in sorted(self.task_ends.items()))

    @cached_property
    def clients(self) -> dict[int, Ends]:
        """Each client at its own task ends, on its own test items."""
        own: dict[int, list[tuple[int, int, list[float] | None]]] = {}
        for (round, client), (task, accuracy) in sorted(self.client_ends.items()):
            own.setdefault(client, []).append((round, task, accuracy))
        return {client: _ends(records) for client, records in sorted(own.items())}

    @cached_property
    def series(self) -> tuple[list[int], Matrix]:
        """The rounds at which the global model was evaluated, and its accuracies (points, tasks)."""
        points = {round: accuracy for (round, _), accuracy in self.task_ends.items()}
        points |= {round: accuracies(event["accuracy"]) for round, event in self.evaluations.items()}
        known = {round: points[round] for round in sorted(points) if points[round] is not None}
        return list(known), table(list(known.values()))


def collect(events: Iterable[Event]) -> Log:
    """Sort events into a `Log`. Unknown kinds of events are left out."""
    by_round = ("rounds", "evaluations", "checkpoints", "consolidations", "scores", "locals")
    log: dict[str, Any] = {"start": {}, "end": {}, **{name: {} for name in (*by_round, "diverging")}}
    task_ends: dict[tuple[int, int], list[float] | None] = {}
    client_ends: dict[tuple[int, int], tuple[int, list[float] | None]] = {}
    traces: dict[tuple[int, int], Event] = {}
    errors, damaged = [], 0
    for event in events:
        kind = event.get("event")
        if kind in ("start", "end"):
            log[kind] = event
        elif kind in ("round", "evaluation", "checkpoint", "consolidation", "local"):
            log[f"{kind}s"][event["round"]] = event
        elif kind == "scores":
            log["scores"][event["round"]] = event
        elif kind == "task_end":
            task_ends |= {(event["round"], task): accuracies(event["accuracy"]) for task in event["tasks"]}
        elif kind == "client_task_end":
            for client, task, accuracy in zip(event["clients"], event["tasks"], event["accuracy"], strict=True):
                client_ends[event["round"], client] = task, accuracies(accuracy)
        elif kind == "client_trace":
            traces[event["round"], event["client"]] = event
        elif kind == "client_error":
            errors.append(event)
        elif kind == "damaged":
            damaged += 1
        elif kind == "diverging":
            log["diverging"][event["round"]] = event
        elif kind == "fallback":  # what came after the round to which the run has gone back comes again, or never was
            for name in (*by_round, "diverging"):
                log[name] = {round: each for round, each in log[name].items() if round <= event["to"]}
            task_ends = {key: each for key, each in task_ends.items() if key[0] <= event["to"]}
            client_ends = {key: each for key, each in client_ends.items() if key[0] <= event["to"]}
            traces = {key: each for key, each in traces.items() if key[0] <= event["to"]}
        if kind in ("start", "round"):
            log["end"] = {}  # the run was resumed
    return Log(**log, task_ends=task_ends, client_ends=client_ends, traces=traces, errors=errors, damaged=damaged)
