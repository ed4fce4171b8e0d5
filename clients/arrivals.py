"""What has arrived in a client's folder, in which order, and of which task it is: the ledger of a growing folder.

Rows of a file are arrivals: all of a new file, and what is appended to a known one. Each good row keeps the number that
it was given when it was first taken in, whatever arrives or vanishes later, so that a client's record can say how far
it has come. Where neither a folder task-NNN nor a manifest tells a row's task, it is of the task that the client is at
when a visit finds it; that too is never changed. What is not in the ledger yet has no task.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any

import numpy as np

from clients.memories import Ints
from fedcl.streams.folder import Found

FORMAT, NO_TASK = 1, -1


class BadLedger(ValueError):
    """A ledger that cannot be used; says why."""


@dataclass(frozen=True)
class Arrival:
    """Rows [first, first + rows) of a file, numbered from `number` on."""

    path: str
    first: int
    rows: int
    number: int
    task: int  # -1: no visit has found it yet

    def __post_init__(self) -> None:
        """Check what a file has told."""
        numbers = (self.first, self.rows, self.number, self.task)
        if not isinstance(self.path, str) or any(type(each) is not int for each in numbers):
            raise BadLedger("is damaged: an arrival without path and numbers")
        if self.first < 0 or self.rows < 1 or self.number < 0 or self.task < NO_TASK:
            raise BadLedger(f"is damaged: an arrival of {self.path[:80]!r} that cannot be")


Ledger = tuple[Arrival, ...]


def grown(ledger: Ledger, found: Found, tasks: Mapping[str, int]) -> Ledger:
    """Return the ledger with what is new in a folder, in the order of the files.

    Args:
        found: every good item that is there now.
        tasks: the task that a file says it belongs to, by path.
    """
    known: dict[str, int] = {}
    for each in ledger:
        known[each.path] = max(known.get(each.path, 0), each.first + each.rows)
    number, fresh = max((each.number + each.rows for each in ledger), default=0), []
    ends = np.zeros(len(found.files), np.int64)
    np.maximum.at(ends, found.file, found.row + 1)
    for path, end in zip(found.files, ends.tolist(), strict=True):
        first = known.get(path, 0)
        if end > first:
            fresh.append(Arrival(path, first, end - first, number, tasks.get(path, NO_TASK)))
            number += end - first
    return (*ledger, *fresh)


def taken_in(ledger: Ledger, task: int) -> Ledger:
    """Return the ledger in which what had no task yet is of this one."""
    return tuple(replace(each, task=task) if each.task == NO_TASK else each for each in ledger)


def places(ledger: Ledger, found: Found) -> tuple[Ints, Ints]:
    """Return number and task, (n,) each, of every item that is there; all of them are in the ledger."""
    by_path: dict[str, list[Arrival]] = {}
    for each in ledger:
        by_path.setdefault(each.path, []).append(each)
    number, task = np.empty(len(found.y), np.int64), np.empty(len(found.y), np.int64)
    bounds = np.searchsorted(found.file, np.arange(len(found.files) + 1))  # items stand file by file
    for place, path in enumerate(found.files):
        own, rows = by_path[path], slice(bounds[place], bounds[place + 1])
        which = np.searchsorted([each.first for each in own], found.row[rows], side="right") - 1
        number[rows] = np.array([each.number - each.first for each in own])[which] + found.row[rows]
        task[rows] = np.array([each.task for each in own])[which]
    return number, task


def dumped(ledger: Ledger, scenario: str) -> bytes:
    """Return a ledger as bytes; `scenario`: the hash of the configuration whose tasks it names."""
    held = {"format": FORMAT, "scenario": scenario, "arrivals": [astuple(each) for each in ledger]}
    return json.dumps(held, separators=(",", ":")).encode()


def loaded(data: bytes, scenario: str) -> Ledger:
    """Return the ledger of these bytes; an empty one of none.

    Raises:
        BadLedger: it is damaged, or that of another scenario.
    """
    if not data:
        return ()
    try:
        held: Any = json.loads(data)
        arrivals: Sequence[Any] = held["arrivals"]
        known = held["format"], held["scenario"]
        ledger = tuple(Arrival(*each) for each in arrivals)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        if isinstance(error, BadLedger):
            raise
        raise BadLedger("is damaged: it cannot be read") from error
    if known != (FORMAT, scenario):
        raise BadLedger("was written for another scenario")
    return ledger
