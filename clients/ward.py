"""A client's own folder as a stream: what lies there now, and what of it a visit shows.

The order of a server names a client and a task; everything else is here. The folder is read (`fedcl.streams.folder`),
what is new in it gets a number and a task (`clients.arrivals`), and of the result a `Site` is made for this one visit,
whose stream holds the client's items and, behind them, the samples that its memory has kept: a file may vanish, what
was admitted stays. So losses, memories, curricula and statistics see a stream like any other.

In a client's record cursor and items are numbers of its ledger, and `x` are the remembered samples themselves. Inside a
visit both are positions in the visit's stream, as everywhere else: `Visit.load` and `Visit.save` translate.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from clients import arrivals, records
from clients.arrivals import BadLedger, Ledger
from clients.memories import Ints, Records
from clients.site import Site
from clients.versions import LostRecords, Place
from clients.work import Store
from fedcl import keys
from fedcl.config import config_hash
from fedcl.errors import ConfigError
from fedcl.keys import Purpose
from fedcl.orders import ConsolidateOrder, Order, ScoreOrder, StockOrder, StockReply, TrainOrder
from fedcl.streams import Cells, Stream, Timeline
from fedcl.streams.folder import TEST, Expected, Found, apart, read_folder
from fedcl.streams.formats import ENDINGS
from fedcl.streams.local import Local
from fedcl.streams.manifest import numbers_of
from fedcl.streams.walk import Fault, File, fault, walk

Asked = TypeVar("Asked", bound=Order)
Signature = tuple[Any, ...]
TASK_BOUND = (TrainOrder, ConsolidateOrder, ScoreOrder)  # orders for a client's items of one task
_LAST: dict[str, tuple[Signature, Found]] = {}  # of each folder, what was read when something in it had changed last


class NoData(LostRecords):
    """Clients whose folders cannot be used, a sentence each; `words` stay on the node, for they name its files."""

    def __init__(self, why: dict[int, str], words: dict[int, str] | None = None) -> None:
        super().__init__(why)
        self.words = words or {}


@dataclass(frozen=True, eq=False)
class Ward:
    """What one client has now."""

    found: Found  # n items
    ledger: Ledger
    test: NDArray[np.bool_]  # (n,)
    faults: tuple[Fault, ...]

    @cached_property
    def _places(self) -> tuple[Ints, Ints]:
        return arrivals.places(self.ledger, self.found)

    @property
    def number(self) -> Ints:
        """(n,) of each item in the client's ledger."""
        return self._places[0]

    @property
    def task(self) -> Ints:
        """(n,) of each item, -1: of none yet."""
        return self._places[1]


def look(folder: Path, settings: Local, ledger: Ledger, tasks: int) -> Ward:
    """Read a client's folder.

    Args:
        ledger: what is known of it.
        tasks: how many the federation has.

    Raises:
        ConfigError: there is no such folder, or its manifest cannot be read.
    """
    found = _read(folder, settings.expected)
    told, faults = numbers_of(folder, list(found.files))
    late = {path: task for path, task in told.items() if task >= tasks}
    faults += [fault(path, f"is of task {task}; the last is {tasks - 1} (stream.tasks)") for path, task in late.items()]
    if told:
        good = [number for number, path in enumerate(found.files) if path in told and path not in late]
        found = _only(found, np.array(good, np.int64))
    faults += [
        fault("tables", f"the column {name!r} is left out as the index that pandas writes") for name in found.index
    ]
    test = _held_out(found, folder, settings.test)
    return Ward(found, arrivals.grown(ledger, found, told), test, (*found.faults, *faults))


def _read(folder: Path, expected: Expected) -> Found:
    """Read a folder, or what is remembered of it where no file has changed since."""
    signature: Signature = (expected, *_stamps(folder))
    known = _LAST.get(str(folder))
    if known is None or known[0] != signature:
        _LAST[str(folder)] = known = signature, read_folder(folder, expected)
    return known[1]


def _stamps(folder: Path) -> list[Any]:
    """Return by what one sees whether something in a folder has changed."""
    stamps: list[Any] = []
    for each in walk(str(folder), ENDINGS) if folder.is_dir() else ():
        stamps.append(each.path)
        with suppress(OSError):  # it vanishes at this moment
            status = os.stat(each.real) if isinstance(each, File) else None
            stamps.append(status and (status.st_size, status.st_mtime_ns, status.st_ino))
    return stamps


def _only(found: Found, files: Ints) -> Found:
    """Return the items of some files."""
    keep, place = np.isin(found.file, files), np.full(len(found.files), -1)
    place[files] = np.arange(len(files))
    paths = tuple(found.files[each] for each in files.tolist())
    return replace(
        found, x=found.x[keep], y=found.y[keep], file=place[found.file[keep]], row=found.row[keep], files=paths
    )


def _held_out(found: Found, folder: Path, share: float) -> NDArray[np.bool_]:
    """Return which items (n,) are for testing: those below test/ if it is there, else by a hash of path and row.

    A hash, so that an item stays what it is whatever else arrives or vanishes.
    """
    if (folder / TEST).is_dir():
        return np.array([apart(path)[0] for path in found.files], np.bool_)[found.file]
    digests = [hashlib.blake2b(path.encode("utf-8", "surrogateescape"), digest_size=7) for path in found.files]
    own = np.array([int.from_bytes(each.digest(), "big") for each in digests], np.int64)
    drawn = keys.at(keys.key(0, Purpose.DATA, own)[found.file], found.row)
    return (drawn >> np.uint64(11)) * 2.0**-53 < share


def settled(ledger: Ledger, order: Order, row: int, stream: Stream) -> Ledger:
    """Return the ledger in which an order's visit has given what has no task yet one, if it is the visit to do so.

    Where the schedule says when a task is on, that is the task of whatever has arrived meanwhile. Where the data does
    (an open timeline), what has arrived since the newest task began is the next one, or more of the last.
    """
    if not isinstance(order, TrainOrder | ScoreOrder | StockOrder) or order.tasks[row] < 0:
        return ledger
    newest, last, task = max((each.task for each in ledger), default=-1), len(stream.tasks) - 1, int(order.tasks[row])
    if stream.timeline.open and isinstance(order, StockOrder):
        task = min(newest + 1, last)
    waits = stream.timeline.open and task <= newest and task < last
    return ledger if waits else arrivals.taken_in(ledger, task)


@dataclass(frozen=True, kw_only=True)
class Visit:
    """One order's visit to the folders of its clients: the site that it sees, and the store of its records."""

    site: Site
    order: Order
    kept: Store
    old: Records  # (k,) as they are kept
    numbers: tuple[Ints, ...]  # of each client, those of the cell that the visit trains on, in its order
    number: Ints  # (n,) of every item in its client's ledger; remembered samples stand behind them
    faults: tuple[tuple[Fault, ...], ...]  # what was left out of each client's folder

    def idle(self) -> list[int]:
        """Return the clients for whom the order has nothing to do."""
        if not isinstance(self.order, TASK_BOUND):
            return []
        return [client for client, own in zip(self.order.clients.tolist(), self.numbers, strict=True) if not len(own)]

    def load(self, clients: Ints, packs: list[str], rows: Ints, fresh: Records) -> Records:
        """Return the records as the visit sees them."""
        rows = np.searchsorted(self.order.clients, clients, sorter=(by := np.argsort(self.order.clients)))
        found = self.old[by[rows]].copy()
        for new, row in zip(found, by[rows].tolist(), strict=True):
            if isinstance(self.order, TrainOrder):
                task = int(self.order.tasks[row])
                new["cursor"][task] = np.searchsorted(self.numbers[row], new["cursor"][task])
            if "x" in self.old.dtype.names:  # type: ignore[operator]
                size = len(new["items"])
                new["items"] = len(self.number) + row * size + np.arange(size)
        return found

    def save(
        self, name: str, clients: Ints, records: Records, old: Records | None = None, seldom: Sequence[str] = ()
    ) -> str:
        """Keep the records as they are when no visit is on: with the samples that were admitted, and numbers."""
        kept, place = records.copy(), {client: row for row, client in enumerate(self.order.clients.tolist())}
        for new, client in zip(kept, clients.tolist(), strict=True):
            row, x = place[client], self.site.stream.dataset.x
            if isinstance(self.order, TrainOrder):
                task, numbers = int(self.order.tasks[row]), self.numbers[row]
                new["cursor"][task] = max(self.old[row]["cursor"][task], numbers[-1] + 1 if len(numbers) else 0)
            if "x" in self.old.dtype.names:  # type: ignore[operator]
                fresh = new["items"] < len(self.number)
                new["x"][fresh] = x[new["items"][fresh]]
                new["items"] = np.where(fresh, self.number.take(new["items"], mode="clip"), self.old[row]["items"])
        return self.kept.save(name, clients, kept)


def visit(base: Site, order: Asked, store: Store, folders: Mapping[int, Path], place: Place) -> Visit:
    """Look into the folders of an order's clients and lay their stream out.

    A training order writes the ledgers: what it finds new has its number and its task for good.

    Args:
        base: the site of the scenario, which has no items.
        folders: of the node's clients, by number.
        place: where ledgers lie.

    Raises:
        NoData: some folders or ledgers cannot be used.
        LostRecords: some records cannot.
    """
    wards, words = [], dict[int, str]()
    scenario, tasks = config_hash(base.scenario), len(base.stream.tasks)
    for row, client in enumerate(order.clients.tolist()):
        try:
            ledger = arrivals.loaded(place.ledger(client, order.federation), scenario)
            ward = look(folders[client], base.scenario.stream.dataset, ledger, tasks)
            ward = replace(ward, ledger=settled(ward.ledger, order, row, base.stream))
            if type(order) is TrainOrder and ward.ledger != ledger:
                place.keep_ledger(client, order.federation, arrivals.dumped(ward.ledger, scenario))
            wards.append(ward)
        except (ConfigError, BadLedger, OSError) as error:
            words[client] = f"its ledger {error}" if isinstance(error, BadLedger) else str(error)
    if words:
        raise NoData({each: f"client {each}: its folder cannot be used; its node says why" for each in words}, words)
    old = store.load(order.clients, order.packs, order.rows, records.fresh(base.record))
    laid = _laid(base, order, store, wards, old)
    why = {client: f"client {client}: it has nothing of the task (any more)" for client in laid.idle()}
    if why:
        raise NoData(why)
    return laid


def _laid(base: Site, order: Order, store: Store, wards: list[Ward], old: Records) -> Visit:
    """Lay the clients' items behind one another, with their memories at the end, and cut them into cells."""
    shape = base.stream.train.count.shape
    remembered = [old["x"].reshape(-1, *base.stream.dataset.x.shape[1:])] if "x" in (old.dtype.names or ()) else []
    labels = [old["labels"].reshape(-1)] if remembered else []
    x = np.concatenate([*(ward.found.x for ward in wards), *remembered])
    y = np.concatenate([*(ward.found.y for ward in wards), *labels])
    cells = {split: Cells.counted(np.zeros(shape, np.int64)) for split in ("train", "test")}
    items: dict[str, list[Ints]] = {split: [np.empty(0, np.int64)] for split in cells}
    begin, numbers = 0, []
    for row, (client, ward) in enumerate(zip(order.clients.tolist(), wards, strict=True)):
        own = np.lexsort((ward.number, ward.task))
        for split, mine in (("train", ~ward.test & _shown(base.stream, order, row, ward, old)), ("test", ward.test)):
            chosen = own[mine[own] & (ward.task[own] >= 0)]
            count = np.bincount(ward.task[chosen], minlength=shape[1])
            cells[split].start[client] = sum(map(len, items[split])) + np.cumsum(count) - count
            cells[split].count[client] = count
            items[split].append(begin + chosen)
            if split == "train":
                at = int(order.tasks[row]) if isinstance(order, TASK_BOUND) else -1
                numbers.append(ward.number[chosen[ward.task[chosen] == at]])
        begin += len(ward.number)
    stream = replace(
        base.stream,
        dataset=replace(base.stream.dataset, x=x, y=y, test_x=x, test_y=y),
        timeline=_timeline(base.stream, order),
        train=replace(cells["train"], items=np.concatenate(items["train"])),
        test=replace(cells["test"], items=np.concatenate(items["test"])),
    )
    return Visit(
        site=replace(base, stream=stream), order=order, kept=store, old=old, numbers=tuple(numbers),
        number=np.concatenate([ward.number for ward in wards]), faults=tuple(ward.faults for ward in wards),
    )  # fmt: skip


def _shown(stream: Stream, order: Order, row: int, ward: Ward, old: Records) -> NDArray[np.bool_]:
    """Return which items (n,) the visit may show: in an online stream those of its task that no visit has shown."""
    if not stream.timeline.online or not isinstance(order, TrainOrder | ScoreOrder | StockOrder):
        return np.ones(len(ward.number), np.bool_)
    fresh: NDArray[np.bool_] = ward.number >= old[row]["cursor"][ward.task]
    return fresh if isinstance(order, StockOrder) else fresh | (ward.task != order.tasks[row])


def _timeline(stream: Stream, order: Order) -> Timeline:
    """Return the timeline of a visit, which shows all that it is given; an open one as far as the order tells it."""
    timeline = replace(stream.timeline, online=False)
    if not timeline.open or not isinstance(order, TrainOrder | ScoreOrder):
        return timeline
    begin = np.where(np.arange(timeline.begin.shape[1]) == 0, 0, np.full_like(timeline.begin, timeline.rounds))
    for client, task, clock in zip(order.clients.tolist(), order.tasks.tolist(), order.clocks.tolist(), strict=True):
        begin[client, 1 : task + 1] = clock
    return replace(timeline, begin=begin)


def stock(site: Site, order: StockOrder, store: Store) -> StockReply:
    """Say how many items each client has of each task, and how many faults its folder has."""
    assert isinstance(store, Visit)  # such an order is refused where there are no folders to visit
    faults = np.array([len(each) for each in store.faults], np.int64)
    return StockReply(
        round=order.round, cohort=order.cohort, clients=order.clients, table={"faults": faults},
        items=site.stream.train.count[order.clients],
    )  # fmt: skip
