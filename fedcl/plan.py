"""One round's plan: who trains on what, in which cohort. A function of the round, the clients' visits and the keys.

The plan decides the arithmetic, not the machine: clients are sorted by steps (ties by client), cut into cohorts of
fixed size, and totals are added in the order of the cohorts, wherever they were trained.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedcl.streams import Stream
from fedcl.streams.stream import ALL_TASKS

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """The unit of scheduling, reply, retry and summation."""

    number: int
    node: int
    clients: Ints
    tasks: Ints
    clocks: Ints


def available(stream: Stream, round: int, visits: Ints, *, joint: bool) -> Ints:
    """Return the clients that have something to train on in this round, ascending."""
    clocks = stream.timeline.clocks(round, visits)
    tasks = stream.timeline.tasks(stream.timeline.positions(clocks))
    clients = np.flatnonzero(tasks >= 0)
    wanted = np.full_like(clients, ALL_TASKS) if joint else tasks[clients]
    return clients[stream.sizes(clients, wanted, clocks[clients]) > 0]


def plan_round(
    stream: Stream,
    round: int,
    visits: Ints,
    chosen: Ints,
    nodes: Ints,
    *,
    cohort: int,
    epochs: int,
    batch: int,
    joint: bool,
) -> list[Cohort]:
    """Cut the chosen clients into cohorts.

    Args:
        visits: (clients,) visits of every client so far.
        chosen: clients that take part.
        nodes: (clients,) the node that hosts each client.

    Returns:
        Cohorts of at most `cohort` clients of one node, in descending order of steps inside each node and of the first
        client's between them.
    """
    clocks = stream.timeline.clocks(round, visits)[chosen]
    tasks = stream.timeline.tasks(stream.timeline.positions(stream.timeline.clocks(round, visits)))[chosen]
    if joint:
        tasks = np.full_like(tasks, ALL_TASKS)
    steps = epochs * -(-stream.sizes(chosen, tasks, clocks) // batch)
    order = np.lexsort((chosen, -steps))
    parts: list[Ints] = []
    for node in np.unique(nodes[chosen]):
        mine = np.flatnonzero(nodes[chosen][order] == node)  # places in the order
        parts += [mine[begin : begin + cohort] for begin in range(0, len(mine), cohort)]
    # By the place of their first clients: with one client a node, sums are formed in the order of one node's cohort.
    parts.sort(key=lambda part: int(part[0]))
    cohorts = []
    for number, rows in enumerate(order[part] for part in parts):
        node = int(nodes[chosen[rows[0]]])
        cohorts.append(Cohort(number=number, node=node, clients=chosen[rows], tasks=tasks[rows], clocks=clocks[rows]))
    return cohorts


def leavers(stream: Stream, round: int, before: Ints, after: Ints) -> tuple[Ints, Ints]:
    """Return the clients whose time at a task ends with this round, and that task of each.

    Args:
        before, after: (clients,) visits of every client before and after the round.
    """
    timeline = stream.timeline
    old = timeline.positions(timeline.clocks(round, before))
    new = timeline.positions(timeline.clocks(round + 1, after))
    clients = np.flatnonzero(timeline.finished(old, new))
    return clients, timeline.order[clients, old[clients]]


def completed(stream: Stream, round: int, visits: Ints) -> NDArray[np.bool_]:
    """Return which tasks (tasks,) nobody who has them will meet again after this round."""
    timeline = stream.timeline
    position = timeline.positions(timeline.clocks(round + 1, visits))
    ahead = (timeline.order >= 0) & (np.arange(timeline.order.shape[1]) >= position[:, None])
    open_tasks = np.zeros(len(stream.tasks), np.bool_)
    open_tasks[timeline.order[ahead]] = True
    return ~open_tasks
