"""Who had what, and when: which client was asked in which round for which task, and what classes its tasks hold."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedcl import trust
from fedcl.config import Scenario, build
from fedcl.errors import ConfigError, FederationError
from fedcl.log import Log
from fedcl.report.cells import Stretch
from fedcl.streams import Stream, build_stream

MOST_COLUMNS = 120  # of a class mix; of more a column is a task


def visits(log: Log) -> dict[int, dict[int, int]]:
    """Return each client's task by the round in which it was asked; entries that are no numbers are left out."""
    found: dict[int, dict[int, int]] = {}
    for round, event in sorted(log.rounds.items()):
        for client, task in zip(event.get("clients") or (), event.get("tasks") or (), strict=False):
            if isinstance(client, int) and isinstance(task, int):
                found.setdefault(client, {})[round] = task
    return found


def shown(log: Log, most: int) -> list[int]:
    """Return the clients that a chart has room for: those asked most often, equal ones by number; ascending."""
    asked = visits(log)
    return sorted(sorted(asked, key=lambda client: (-len(asked[client]), client))[:most])


def stretches(asked: dict[int, int], rounds: int, columns: int) -> list[Stretch]:
    """Return one client's visits as stretches of rounds at one task, at most `columns` of them.

    Where there are more rounds than columns, the last visit of a column's rounds stands for all of them.
    """
    wide = max(1.0, rounds / columns)
    taken = {int((round - 1) // wide): task for round, task in sorted(asked.items())}
    found: list[Stretch] = []
    for column, task in taken.items():
        start, stop = column * wide, min((column + 1) * wide, float(rounds))
        if found and found[-1][1] == start and found[-1][2] == task:
            found[-1] = (found[-1][0], stop, task)
        else:
            found.append((start, stop, task))
    return found


@dataclass(frozen=True)
class Mix:
    """How many training items clients have of each class of each task.

    Attributes:
        names: of the rows: clients.
        heads: tasks (name, how many columns).
        counts: (rows, columns) items.
        by_class: whether a column is a class; otherwise it is a task.
    """

    names: list[str]
    heads: list[tuple[str, int]]
    counts: list[list[int]]
    by_class: bool

    @property
    def most(self) -> int:
        """The largest count."""
        return max((max(row) for row in self.counts), default=0)


def mix(stream: Stream, clients: Sequence[int]) -> Mix:
    """Count what these clients have of each task that is in their own stream."""
    kinds = [list(task.classes) for task in stream.tasks]
    by_class = sum(map(len, kinds)) <= MOST_COLUMNS
    counts = []
    for client in clients:
        row: list[int] = []
        for task, classes in enumerate(kinds):
            if by_class:
                items = stream.train.cell(client, task) if stream.own[client, task] else np.empty(0, np.int64)
                found = np.bincount(np.asarray(stream.dataset.y)[items], minlength=stream.dataset.classes)
                row += [int(found[label]) for label in classes]
            else:
                row.append(int(stream.train.count[client, task]) if stream.own[client, task] else 0)
        counts.append(row)
    heads = [(f"T{task}", len(classes) if by_class else 1) for task, classes in enumerate(kinds)]
    return Mix([str(client) for client in clients], heads, counts, by_class)


def stream_text(config: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a configuration that says what its stream is."""
    part: dict[str, Any] = {name: config[name] for name in ("seed", "data", "stream") if name in config}
    server = config.get("server")
    asked = server.get("clients_per_round") if isinstance(server, dict) else None
    return {"name": "stream", **part, "server": {"clients_per_round": asked}}


def _foreign(config: dict[str, Any]) -> str:
    """Return the first part of the stream that is named as `package.module:Name`, "" for none."""
    stream = config.get("stream")
    parts = stream.values() if isinstance(stream, dict) else ()
    names = (part.get("name") or part.get("kind") if isinstance(part, dict) else part for part in parts)
    return next((name for name in names if isinstance(name, str) and ":" in name), "")


def stream_of(config: dict[str, Any]) -> Stream:
    """Lay out the stream of a run's configuration. Nothing that it names outside fedcl is imported.

    Raises:
        ConfigError: the configuration or its data is not there, or the data lies on other machines.
    """
    if "stream" not in config:
        raise ConfigError("there is no config.yaml that says what the stream is")
    if name := _foreign(config):
        raise ConfigError(f"its stream is {name!r}: a report imports nothing that a configuration names")
    try:
        with trust.trusting(()):
            stream = build_stream(build(Scenario, stream_text(config)))
    except (FederationError, OSError, ValueError) as error:
        raise ConfigError(f"its data cannot be read: {error}") from error
    if stream.dataset.elsewhere:
        raise ConfigError("the data lies with the clients, on their own machines")
    return stream
