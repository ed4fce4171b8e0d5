"""Which figures of a client's data may leave its node: those that rest on at least so many samples (`--min-count`).

A figure is a class, with its rows in every sum; a task: its accuracy, and statistics that tell no classes apart; or a
visit: the client's update, or its score. One that rests on fewer is withheld and named; the client's other figures
leave. What is withheld of a class waits: it joins the class's samples in the client's next task, and leaves as soon as
they are enough together.

Pure functions of a stream and of that number: the node withholds by them, and the server, where it knows the stream,
expects by them what a node says that it has withheld.
"""

from dataclasses import dataclass

import numpy as np

from fedcl.orders import Ints
from fedcl.streams import Stream

LEAST = 5  # samples that a figure must rest on, unless a node's operator says otherwise
BY_CLASS = ("class_sums", "ridge")  # statistics that tell a task's classes apart


@dataclass(frozen=True, kw_only=True)
class Admitted:
    """The samples that a client's statistics of a task may rest on."""

    items: Ints  # (n,) in the stream
    tasks: Ints  # (n,) of which task each of them is, and so how it is shown
    withheld: list[str]  # figures that rest on too few


def of_task(stream: Stream, client: int, task: int, least: int, *, by_class: bool) -> Admitted:
    """Return what statistics of a client's task may rest on.

    Args:
        least: samples that a figure must rest on.
        by_class: whether the statistics tell classes apart.
    """
    items, tasks = _cell(stream, client, task)
    if not by_class:
        lacks = 0 < len(items) < least
        return Admitted(items=items[:0] if lacks else items, tasks=tasks[:0] if lacks else tasks,
                        withheld=[f"task {task}"] if lacks else [])  # fmt: skip
    if least <= 1:
        return Admitted(items=items, tasks=tasks, withheld=[])
    own = list(dict.fromkeys(stream.timeline.order[client].tolist()))
    waiting = items[:0], tasks[:0]
    for each in [*(own[: own.index(task)] if task in own else []), task]:
        pool = [np.concatenate(pair) for pair in zip(waiting, _cell(stream, client, each), strict=True)]
        labels = stream.dataset.y[pool[0]]
        counts = np.bincount(labels, minlength=1)
        enough = (counts >= least)[labels]
        leaving, waiting = (pool[0][enough], pool[1][enough]), (pool[0][~enough], pool[1][~enough])
    few = np.flatnonzero((counts > 0) & (counts < least)).tolist()
    return Admitted(items=leaving[0], tasks=leaving[1], withheld=[f"class {each}" for each in few])


def _cell(stream: Stream, client: int, task: int) -> tuple[Ints, Ints]:
    return stream.items(client, task, 0, int(stream.train.count[client, task]))


def of_tests(items: Ints, least: int) -> tuple[Ints, list[str]]:
    """Return a client's test items (tasks,) without those of tasks that have too few, and the names of these."""
    few = (items > 0) & (items < least)
    return np.where(few, 0, items), [f"task {task}" for task in np.flatnonzero(few).tolist()]
