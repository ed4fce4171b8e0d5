"""The whole stream: data, tasks, who has what of them, and when."""

import math
import os
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fedcl import keys
from fedcl.config import Scenario
from fedcl.keys import Purpose
from fedcl.streams.dataset import Dataset, Ints
from fedcl.streams.partition import NOBODY, Cells, Drawn, Partition, deal_class, draw_cells, group
from fedcl.streams.schedule import NO_TASK, Timeline
from fedcl.streams.standard import with_warning
from fedcl.streams.tasks import DOMAIN, Task, class_masks, every_class, input_permutations, make_tasks

# What the draws of Purpose.PARTITION are for.
ASSIGN, DEAL, TRAIN_ORDER, TEST_ORDER, DRAW = 0, 1, 2, 3, 4
# In the place of a task id: all tasks of the client's own stream at once (the joint oracle).
ALL_TASKS = -1


@dataclass(frozen=True, eq=False)
class Stream:
    """What every client meets, as index arrays into one data set."""

    dataset: Dataset
    tasks: tuple[Task, ...]
    train: Cells
    test: Cells  # each client's own test items of each task
    central: tuple[Ints, ...]  # all test items of each task
    timeline: Timeline
    permutations: Ints | None  # (tasks, d) order of the flattened input; None: every task shows it as it is
    masks: NDArray[np.bool_]  # (tasks, classes) True = can be predicted

    @cached_property
    def own(self) -> NDArray[np.bool_]:
        """Which tasks are in a client's own stream at all: (clients, tasks)."""
        own = np.zeros(self.train.count.shape, np.bool_)
        client, position = np.nonzero(self.timeline.order != NO_TASK)
        own[client, self.timeline.order[client, position]] = True
        return own

    @cached_property
    def totals(self) -> Ints:
        """Training items of each client's own stream, every task counted once: (clients,)."""
        totals: Ints = np.where(self.own, self.train.count, 0).sum(axis=1)
        return totals

    def spans(self, clients: Ints, tasks: Ints, clocks: Ints) -> tuple[Ints, Ints]:
        """Return (start, stop), (k,) each: what visits train on within their cells.

        The whole cell; in an online stream slice number (clock - begin) of (length of the position) nearly equal ones,
        so that a position takes every item exactly once and a repeated task starts over.

        Args:
            clients: (k,).
            tasks: (k,) global ids, -1 = all tasks of the client's own stream.
            clocks: (k,) the clients' own clocks.
        """
        everything = tasks == ALL_TASKS
        count = np.where(everything, self.totals[clients], self.train.count[clients, tasks])
        if not self.timeline.online:
            return np.zeros_like(count), count
        slot, length = self.timeline.slots(clients, clocks)
        start, stop = count * slot // length, count * (slot + 1) // length
        return np.where(everything, 0, start), np.where(everything, count, stop)

    def sizes(self, clients: Ints, tasks: Ints, clocks: Ints) -> Ints:
        """Return the number of items (k,) that visits train on; arguments as for `spans`."""
        start, stop = self.spans(clients, tasks, clocks)
        return stop - start

    def span(self, client: int, task: int, clock: int) -> tuple[int, int]:
        """Return (start, stop) of one visit; see `spans`."""
        start, stop = self.spans(np.array([client]), np.array([task]), np.array([clock]))
        return int(start[0]), int(stop[0])

    def visited(self, clients: Ints, tasks: Ints, starts: Ints, stops: Ints) -> tuple[Ints, Ints]:
        """Return the items of several visits (see `items`) and the task of each, (k, w) both, 0 behind the shorter."""
        lengths = stops - starts
        width = max(1, int(lengths.max(initial=0)))
        inside = np.arange(width) < lengths[:, None]
        items, shown = np.zeros(inside.shape, np.int64), np.zeros(inside.shape, np.int64)
        if not (tasks == ALL_TASKS).any():
            places = np.where(inside, starts[:, None] + np.arange(width), 0)
            items[inside] = self.train.take(clients, tasks, places)[inside]
            shown[inside] = np.broadcast_to(tasks[:, None], inside.shape)[inside]
            return items, shown
        columns = (clients.tolist(), tasks.tolist(), starts.tolist(), stops.tolist())
        for row, visit in enumerate(zip(*columns, strict=True)):
            own, task = self.items(*visit)
            items[row, : len(own)], shown[row, : len(own)] = own, task
        return items, shown

    def items(self, client: int, task: int, start: int, stop: int) -> tuple[Ints, Ints]:
        """Return training items [start:stop] of a cell and the task id of each, both (stop - start,).

        Task -1 stands for the cells of the client's own stream one behind another, every task once, by id.
        """
        if task != ALL_TASKS:
            items = self.train.cell(client, task)[start:stop]
            return items, np.full(len(items), task)
        own = np.flatnonzero(self.own[client])
        items = np.concatenate([self.train.cell(client, each) for each in own.tolist()])
        return items[start:stop], np.repeat(own, self.train.count[client, own])[start:stop]


def empty_cells(stream: Stream) -> list[tuple[int, int]]:
    """Return every (client, task) of a client's own stream that has no training item."""
    empty = np.argwhere(stream.own & (stream.train.count == 0))
    return [(client, task) for client, task in empty.tolist()]


def _assign(partition: Partition, labels: Ints, task: Ints, tasks: int, clients: int, seed: int) -> Ints:
    """Return the owner (n,) of each training item, shared out task by task."""
    owner = np.empty(len(labels), np.int64)
    for number in range(tasks):
        items = np.flatnonzero(task == number)
        if len(items):
            rng = keys.generator(seed, Purpose.PARTITION, ASSIGN, number)
            owner[items] = partition.assign(labels[items], clients, rng)
    return owner


def _deal(dataset: Dataset, owner: Ints, seed: int) -> Ints:
    """Return the owner of each test item: every class by the shares of its training items, -1 if nobody has any."""
    test_owner = np.full(len(dataset.test_y), NOBODY)
    for label in np.unique(dataset.test_y).tolist():
        items = np.flatnonzero(dataset.test_y == label)
        rng = keys.generator(seed, Purpose.PARTITION, DEAL, label)
        test_owner[items] = deal_class(len(items), owner[dataset.y == label], rng)
    return test_owner


def _task_of_class(tasks: tuple[Task, ...], classes: int) -> Ints:
    """Return the task (classes,) of each class; if several have it, the first."""
    task_of = np.zeros(classes, np.int64)
    for task in reversed(tasks):
        task_of[list(task.classes)] = task.id
    return task_of


def _share_out(scenario: Scenario, dataset: Dataset, tasks: tuple[Task, ...]) -> tuple[Cells, Cells]:
    """Return training and test cells. Tasks that differ in their inputs only are shared out once, for all of them."""
    config, seed = scenario.stream, scenario.seed
    once, clients = config.kind == DOMAIN, config.clients
    n, task_of = 1 if once else len(tasks), _task_of_class(tasks, dataset.classes)
    task, test_task = task_of[dataset.y], task_of[dataset.test_y]
    if isinstance(config.partition, Drawn):
        each = config.partition.samples, config.partition.test_samples
        drawn = keys.bits(keys.key(seed, Purpose.PARTITION, DRAW), 2)
        parts: list[Cells] = []
        for which, number, key in zip((task, test_task), each, drawn, strict=True):
            parts.append(draw_cells(which, clients, n, number, key))
        train, test = (cells.shared(len(tasks)) if once else cells for cells in parts)
        return train, test
    owner = _assign(config.partition, dataset.y, task, n, clients, seed)
    test_owner = _deal(dataset, owner, seed)
    train = group(owner, task, clients, n, keys.generator(seed, Purpose.PARTITION, TRAIN_ORDER))
    test = group(test_owner, test_task, clients, n, keys.generator(seed, Purpose.PARTITION, TEST_ORDER))
    return (train.shared(len(tasks)), test.shared(len(tasks))) if once else (train, test)


def _central(dataset: Dataset, tasks: tuple[Task, ...]) -> tuple[Ints, ...]:
    """Return the test items of each task, ascending; tasks with all classes share one array."""
    everything = np.arange(len(dataset.test_y))
    return tuple(
        everything if len(task.classes) == dataset.classes else np.flatnonzero(np.isin(dataset.test_y, task.classes))
        for task in tasks
    )


def load_dataset(scenario: Scenario) -> Dataset:
    """Load a scenario's data, below data.root or FEDCL_DATA.

    Raises:
        ConfigError: they are not there, or damaged.
    """
    found: Dataset = scenario.stream.dataset.load(scenario.data.root or os.environ.get("FEDCL_DATA") or None)
    return found


def build_stream(scenario: Scenario, dataset: Dataset | None = None) -> Stream:
    """Load the data and lay out the whole stream of a scenario.

    Args:
        scenario: its seed, data, stream and clients_per_round are read.
        dataset: data already loaded, or of one's own; default: the scenario's, below data.root or FEDCL_DATA.

    Raises:
        ConfigError: the data cannot be loaded, or tasks, clients and schedule do not fit each other.
    """
    config, seed = scenario.stream, scenario.seed
    own = hasattr(config.dataset, "standardize") and not dataset
    remedy = "set stream.dataset.standardize=true" if own else "bring every column to about mean 0 and deviation 1"
    dataset = with_warning(load_dataset(scenario) if dataset is None else dataset, remedy)
    open_ended = getattr(config.dataset, "elsewhere", False)  # any client may have any class in any task
    tasks = every_class(config, dataset.classes) if open_ended else make_tasks(config, dataset.classes, seed)
    per_round = scenario.server.clients_per_round or config.clients
    timeline = config.schedule.timeline(config.clients, config.tasks, per_round, seed)
    if dataset.elsewhere:
        train = test = Cells.counted(np.zeros((config.clients, config.tasks), np.int64))
    else:
        train, test = _share_out(scenario, dataset, tasks)
    if timeline.clock == "participations" and not timeline.open:
        timeline = timeline.skipping(train.count)
    return Stream(
        dataset=dataset,
        tasks=tasks,
        train=train,
        test=test,
        central=_central(dataset, tasks),
        timeline=timeline,
        permutations=input_permutations(config, math.prod(dataset.x.shape[1:]), seed),
        masks=class_masks(config, tasks, dataset.classes),
    )
