"""When: every client's own stream of tasks, in its own time. Synchronous is the case where all are equal."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from fedcl import keys
from fedcl.errors import ConfigError
from fedcl.keys import Purpose
from fedcl.settings import Settings, setting
from fedcl.streams.dataset import Ints

# What the draws of Purpose.SCHEDULE are for.
ORDER, LENGTH, START = 0, 1, 2
NO_TASK = -1


@dataclass(frozen=True, eq=False)
class Timeline:
    """Where every client is in its own stream at any round. Rounds count from 1, positions and clocks from 0."""

    order: Ints  # (clients, positions) global task id at each position, -1 = padding behind
    begin: Ints  # (clients, positions + 1) own clock at which each position begins; padding repeats the end
    start: Ints  # (clients,) rounds before the client joins
    rounds: int  # of the whole run
    clock: str  # "rounds" | "participations"
    online: bool  # each visit trains on its own disjoint slice of the task's data
    open: bool = False  # how long positions last is not known before: they end when newer data has arrived

    def clocks(self, round: int, visits: Ints) -> Ints:
        """Return each client's own clock (clients,) in a round: negative before its start.

        Args:
            round: from 1.
            visits: (clients,) visits so far; they count where the clock is "participations".
        """
        if self.open and round > self.rounds:
            return self.begin[:, -1]  # what nobody knew the end of ends with the run
        passed = round - 1 - self.start
        return passed if self.clock == "rounds" else np.where(passed < 0, passed, visits)

    def positions(self, clocks: Ints) -> Ints:
        """Return the current position (clients,): -1 before the start, the number of positions after the end."""
        left = (self.begin[:, 1:] <= clocks[:, None]).sum(axis=1)
        return np.where(clocks < 0, -1, np.minimum(left, (self.order != NO_TASK).sum(axis=1)))

    def tasks(self, positions: Ints) -> Ints:
        """Return the global task id (clients,) at each client's position, -1 before the start and after the end."""
        width = self.order.shape[1]
        at = self.order[np.arange(len(self.order)), np.clip(positions, 0, width - 1)]
        return np.where((positions < 0) | (positions >= width), NO_TASK, at)

    def finished(self, before_positions: Ints, after_positions: Ints) -> NDArray[np.bool_]:
        """Return which clients (clients,) left a position between two moments; joining is not leaving."""
        return (before_positions >= 0) & (after_positions > before_positions)

    def skipping(self, counts: Ints) -> "Timeline":
        """Return the timeline in which no visit is to nothing, given the items (clients, tasks) of each task.

        Needed where the clock is the client's own visits: waiting for a visit to nothing would never end. A task
        without items takes no time; in an online stream a task takes no more visits than it has items.
        """
        lengths = np.diff(self.begin, axis=1)
        row, position = np.nonzero(self.order != NO_TASK)
        items, planned = counts[row, self.order[row, position]], lengths[row, position]
        lengths[row, position] = np.minimum(planned, items) if self.online else np.where(items > 0, planned, 0)
        begin = np.concatenate([self.begin[:, :1], np.cumsum(lengths, axis=1)], axis=1)
        return replace(self, begin=begin)

    def moved(self, visits: Ints, items: Ints, least: int) -> tuple["Timeline", Ints, Ints]:
        """Return the open timeline in which whom newer data has reached has moved on, who that is, and from which task.

        A client moves to the next position that has items once it has made `least` visits to the one that it is at, or
        where there is nothing for it to do. Who has never been at a position does not leave it.

        Args:
            visits: (clients,) so far.
            items: (clients, tasks) what each client has of each task now.
            least: visits to a task before the next.
        """
        everyone, begin = np.arange(len(visits)), self.begin.copy()
        now = (begin[:, 1:] <= visits[:, None]).sum(axis=1)
        later = (items > 0) & (np.arange(items.shape[1]) > now[:, None])
        been = visits - begin[everyone, now]
        goes = later.any(axis=1) & ((been >= least) | (items[everyone, now] == 0))
        left = np.flatnonzero(goes & (been > 0))
        for client in np.flatnonzero(goes).tolist():
            begin[client, now[client] + 1 : later[client].argmax() + 1] = visits[client]
        return replace(self, begin=begin), left, now[left]

    def slots(self, clients: Ints, clocks: Ints) -> tuple[Ints, Ints]:
        """Return how far into its position each client is, and the position's length, (k,) each; 0 and 1 outside."""
        begin = self.begin[clients]
        position = (begin[:, 1:] <= clocks[:, None]).sum(axis=1)
        inside = (clocks >= 0) & (clocks < begin[:, -1])
        row, position = np.arange(len(clients)), np.where(inside, position, 0)
        first, stop = begin[row, position], begin[row, position + 1]
        return np.where(inside, clocks - first, 0), np.where(inside, stop - first, 1)


@dataclass(frozen=True, kw_only=True)
class Schedule(Settings, ABC):
    """What all schedules have in common."""

    opens: ClassVar[bool] = False  # data decides how long tasks last: nobody knows before (`Timeline.open`)

    clock: Literal["rounds", "participations"] = setting("rounds", "what moves a client on: rounds, or its own visits")
    online: bool = setting(False, "each visit trains once on its own slice of the task's data, never on all of it")
    rounds: int | None = setting(
        None, "rounds of the run; default: as many as all streams need", low=1, high=1_000_000_000
    )

    @abstractmethod
    def streams(self, clients: int, tasks: int, seed: int) -> tuple[Ints, Ints, Ints]:
        """Return order (clients, positions) padded with -1, lengths (the same) padded with 0, and start (clients,)."""

    def timeline(self, clients: int, tasks: int, per_round: int, seed: int) -> Timeline:
        """Lay every client's stream out in time.

        Args:
            clients: number of clients.
            tasks: number of tasks of the federation.
            per_round: clients asked in a round.
            seed: the run's seed.

        Raises:
            ConfigError: the settings do not fit clients or tasks.
        """
        order, lengths, start = self.streams(clients, tasks, seed)
        begin = np.concatenate([np.zeros((clients, 1), np.int64), np.cumsum(lengths, axis=1)], axis=1)
        rounds = self.rounds or self._needed(begin[:, -1], start, per_round)
        return Timeline(order, begin, start, rounds, self.clock, self.online, self.opens)

    def _needed(self, ends: Ints, start: Ints, per_round: int) -> int:
        if self.clock == "rounds":
            return int((start + ends).max())
        # A client is asked every clients / per_round rounds on average.
        return int(start.max()) + -(-int(ends.max()) * len(ends) // per_round)


@dataclass(frozen=True, kw_only=True)
class Synchronous(Schedule):
    """All clients at the same task at the same time, in order of the task ids."""

    rounds_per_task: int = setting(30, "length of every task", low=1, high=1_000_000)
    first_rounds: int | None = setting(None, "length of the first task; default: as the others", low=1, high=1_000_000)

    def streams(self, clients: int, tasks: int, seed: int) -> tuple[Ints, Ints, Ints]:
        """Return the same stream for everyone."""
        shape = (clients, tasks)
        order, lengths = np.broadcast_to(np.arange(tasks), shape), np.full(shape, self.rounds_per_task)
        lengths[:, 0] = self.first_rounds or self.rounds_per_task
        return order.copy(), lengths, np.zeros(clients, np.int64)


@dataclass(frozen=True, kw_only=True)
class Own(Schedule):
    """Every client with its own order of the tasks, its own lengths and its own start."""

    rounds_per_task: int = setting(30, "mean length of a task", low=1, high=1_000_000)
    order: Literal["same", "random"] = setting("random", "order of the tasks: by id, or drawn for each client")
    spread: float = setting(0.5, "lengths are uniform in rounds_per_task * [1 - spread, 1 + spread]", low=0, below=1)
    start: int = setting(0, "the start is uniform in [0, start] rounds", low=0, high=1_000_000)

    def streams(self, clients: int, tasks: int, seed: int) -> tuple[Ints, Ints, Ints]:
        """Draw each client's stream; it depends on the client's number and not on how many there are."""
        ids = np.arange(clients)

        def key(part: int) -> keys.Bits:
            return keys.key(seed, Purpose.SCHEDULE, ids, part)

        order = np.broadcast_to(np.arange(tasks), (clients, tasks)).copy()
        if self.order == "random":
            order = keys.permutations(key(ORDER), np.full(clients, tasks), tasks)
        low, high = self.lengths()
        lengths = low + keys.below(keys.bits(key(LENGTH), tasks), high - low + 1)
        return order, lengths, keys.below(keys.bits(key(START), 1)[:, 0], self.start + 1)

    def lengths(self) -> tuple[int, int]:
        """Return the shortest and the longest length, in rounds."""
        # Rounded first: 30 * (1 - 0.7) is a little above 9.
        low = math.ceil(round(self.rounds_per_task * (1 - self.spread), 6))
        high = math.floor(round(self.rounds_per_task * (1 + self.spread), 6))
        return max(1, low), max(1, low, high)


@dataclass(frozen=True, kw_only=True)
class Entry(Settings):
    """One client's stream, written out."""

    start: int = setting(0, "rounds before the client joins")
    tasks: list[int] = setting([], "task ids in order; they may repeat or be left out")
    rounds: list[int] = setting([], "length of each of them")

    def problems(self, tasks: int) -> Iterator[str]:
        """Yield what is wrong with it in a federation of `tasks` tasks, as `key = value: reason`."""
        if self.start < 0:
            yield f"start = {self.start}: must be at least 0"
        if not self.tasks:
            yield "tasks = []: must name at least one task"
        for task in self.tasks:
            if not 0 <= task < tasks:
                yield f"tasks = {self.tasks}: there is no task {task}; the last is {tasks - 1} (stream.tasks)"
        if len(self.rounds) != len(self.tasks) or min(self.rounds, default=1) < 1:
            yield f"rounds = {self.rounds}: must be {len(self.tasks)} lengths of at least 1, one for each of tasks"


@dataclass(frozen=True, kw_only=True)
class Explicit(Schedule):
    """Every client's stream written out: clients: [{start: 0, tasks: [0, 1], rounds: [10, 5]}, ...]."""

    clients: list[Entry] = setting([], "one entry a client: start, tasks (ids), rounds (lengths)")

    def entries(self) -> list[Entry]:
        """Return the entries; a scenario file brings them as plain dicts."""
        return [each if isinstance(each, Entry) else Entry(**each) for each in self.clients]

    def streams(self, clients: int, tasks: int, seed: int) -> tuple[Ints, Ints, Ints]:
        """Pad the entries to the longest.

        Raises:
            ConfigError: not one entry a client, an unknown task, or lengths that do not fit the tasks.
        """
        entries = self.entries()
        if len(entries) != clients:
            raise ConfigError(
                f"stream.schedule.clients: {len(entries)} entries for {clients} clients; "
                f"write one entry a client or set stream.clients = {len(entries)}"
            )
        for number, entry in enumerate(entries):
            for problem in entry.problems(tasks):
                raise ConfigError(f"stream.schedule.clients[{number}].{problem}")
        shape = (clients, max(len(entry.tasks) for entry in entries))
        order, lengths = np.full(shape, NO_TASK), np.zeros(shape, np.int64)
        for number, entry in enumerate(entries):
            order[number, : len(entry.tasks)], lengths[number, : len(entry.tasks)] = entry.tasks, entry.rounds
        return order, lengths, np.array([entry.start for entry in entries], np.int64)


@dataclass(frozen=True, kw_only=True)
class Arrival(Schedule):
    """Every client at the task of its own newest data: what has arrived since a visit is the next task."""

    opens: ClassVar[bool] = True

    clock: Literal["participations"] = setting("participations", "a client's own visits: nothing else moves it on")
    rounds: int = setting(100, "rounds of the run", low=1, high=1_000_000_000)
    least: int = setting(1, "visits to a task before the next, even if newer data is there", low=1, high=1_000_000)

    def streams(self, clients: int, tasks: int, seed: int) -> tuple[Ints, Ints, Ints]:
        """Return streams in the order of the tasks, of which only the first has begun."""
        lengths = np.zeros((clients, tasks), np.int64)
        lengths[:, 0] = self.rounds
        return np.tile(np.arange(tasks), (clients, 1)), lengths, np.zeros(clients, np.int64)
