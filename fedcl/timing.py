"""Where a round's time goes: `fedcl run --profile`. Costs nothing where nobody asks.

Server and workers mark what they do (`doing`); workers' marks come back with their replies. `write` makes of them
profile.json (seconds a phase and round) and trace.json, which chrome://tracing and https://ui.perfetto.dev draw.
"""

import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from fedcl import writing

WANTED = "FEDCL_PROFILE"  # in the environment of a worker whose marks are wanted
# In the order of a round. Workers' phases lie within the server's waiting, one beside the other.
SERVER = ("selection", "broadcast", "waiting", "reduce", "update", "consolidation", "evaluation", "checkpoint")
WORKER = ("state in", "data", "training", "statistics", "state out")


class Mark(NamedTuple):
    """That a process did something from when to when."""

    phase: str
    begin: float  # seconds since the epoch, so that processes of one machine agree
    end: float
    process: int


_marks: list[Mark] | None = [] if os.environ.get(WANTED) else None  # None: nobody asks


@contextmanager
def doing(phase: str) -> Iterator[None]:
    """Mark the block as a phase of the round."""
    if _marks is None:
        yield
        return
    begin = time.time()
    try:
        yield
    finally:
        _marks.append(Mark(phase, begin, time.time(), os.getpid()))


def start() -> None:
    """Mark from now on, in this process and in workers that are yet to start."""
    global _marks
    os.environ[WANTED] = "1"
    _marks = []


def stop() -> list[Mark]:
    """Return what was marked and mark no longer."""
    global _marks
    os.environ.pop(WANTED, None)
    found, _marks = _marks or [], None
    return found


def taken() -> list[Mark]:
    """Return what was marked so far, and forget it: what a worker sends along."""
    if not _marks:
        return []
    found = list(_marks)
    _marks.clear()
    return found


def add(marks: Iterable[Mark]) -> None:
    """Take in what a worker has sent."""
    if _marks is not None:
        _marks.extend(marks)


def alone(marks: Iterable[Mark]) -> Iterator[tuple[Mark, float]]:
    """Yield each mark with its seconds less those of the marks of the same process that lie within it."""
    inner: dict[int, list[list[Any]]] = {}  # process -> marks that are open, each with the seconds that are its own
    for mark in sorted(marks, key=lambda each: (each.begin, -each.end)):
        stack = inner.setdefault(mark.process, [])
        while stack and stack[-1][0].end <= mark.begin:
            yield tuple(stack.pop())
        if stack:
            stack[-1][1] -= mark.end - mark.begin
        stack.append([mark, mark.end - mark.begin])
    for stack in inner.values():
        yield from map(tuple, stack)


def summary(marks: Sequence[Mark]) -> dict[str, Any]:
    """Return the seconds of each phase, without those of phases within it; those of workers are added up.

    Rounds are those in which somebody answered.
    """
    sums, rounds = dict.fromkeys((*SERVER, *WORKER), 0.0), sum(mark.phase == "update" for mark in marks)
    for mark, seconds in alone(marks):
        sums[mark.phase] += seconds
    phases = {
        phase: {"seconds": round(seconds, 6), "milliseconds_a_round": round(1e3 * seconds / max(1, rounds), 3)}
        for phase, seconds in sums.items()
    }
    return {"schema": 1, "rounds": rounds, "processes": len({mark.process for mark in marks}), "phases": phases}


def table(found: dict[str, Any]) -> str:
    """Return a summary as lines of text."""
    lines = [f"{'phase':<14} {'ms a round':>10}    of {found['rounds']} rounds, {found['processes']} processes"]
    lines += [f"{phase:<14} {each['milliseconds_a_round']:>10.1f}" for phase, each in found["phases"].items()]
    return "\n".join(lines)


def write(folder: Path, marks: list[Mark]) -> None:
    """Write profile.json and trace.json (Chrome's trace event format) into a run directory."""
    writing.write(folder / "profile.json", json.dumps(summary(marks), indent=2) + "\n")
    first, server = min((mark.begin for mark in marks), default=0.0), os.getpid()
    events: list[dict[str, Any]] = [
        {
            "name": "process_name",
            "ph": "M",
            "pid": process,
            "args": {"name": "server" if process == server else "worker"},
        }
        for process in sorted({mark.process for mark in marks})
    ]
    events += [
        {
            "name": mark.phase, "ph": "X", "pid": mark.process, "tid": int(mark.phase in WORKER),
            "ts": round((mark.begin - first) * 1e6), "dur": round((mark.end - mark.begin) * 1e6),
        }
        for mark in marks
    ]  # fmt: skip
    writing.write(folder / "trace.json", json.dumps({"traceEvents": events}) + "\n")
