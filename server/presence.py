"""Who can be asked in a round: hosted by a node, and with something to train on.

Where clients have their own folders (`stream.dataset.elsewhere`) only their nodes know what they have. Each round
begins with asking them (`query.stock`), and the federation's stream is what they say: how many items of which task. An
open timeline (`stream.schedule.kind = arrival`) moves on whom newer data has reached; what it has come to is part of
the state, so that a run that is resumed goes on with it.
"""

from dataclasses import replace
from functools import partial

import numpy as np

from fedcl import plan
from fedcl.orders import Ints, StockOrder, StockReply
from fedcl.streams import Cells
from server.acceptance import MOST
from server.exchange import Size
from server.federation import Federation
from server.roster import AGAIN
from server.state import State

Leavers = tuple[Ints, Ints]  # clients, and the task that each has left


def nobody() -> Leavers:
    """Return that no client has left a task."""
    return np.zeros(0, np.int64), np.zeros(0, np.int64)


def present(federation: Federation, state: State, round: int) -> tuple[Ints, State, Leavers]:
    """Return who can be asked in a round, the state that knows where they are, and who has left a task since the last.

    Waits for `server.min_clients` of them; nodes that have come since the last round are taken in.
    """
    if federation.stream.dataset.elsewhere:
        return _with_data(federation, state, round)
    there = plan.available(federation.stream, round, state.visits, joint=federation.scenario.stream.joint)
    _meet(federation, round, there, min(federation.scenario.server.min_clients, len(there)))
    return there[federation.roster.reachable[there]], state, nobody()


def _meet(federation: Federation, round: int, wanted: Ints, least: int) -> None:
    """Look who is there, and wait until `least` of the wanted clients are."""
    federation.roster = federation.roll.meet(
        wanted, least, federation.stop, waiting=partial(_waiting, federation, round, least)
    )
    federation.roll.announce(federation.journal, round, federation.roster)


def _waiting(federation: Federation, round: int, needed: int, here: int, why: str = "nodes") -> None:
    federation.journal.write({"event": "waiting", "round": round, "needed": needed, "here": here, "for": why})


def _with_data(federation: Federation, state: State, round: int) -> tuple[Ints, State, Leavers]:
    """Ask for stocks until enough clients have something to train on."""
    everyone, least, told = np.arange(len(state.visits)), federation.scenario.server.min_clients, False
    left = [nobody()]
    while True:
        _meet(federation, round, everyone, least)
        state, moved = _look(federation, state, round)
        left.append(moved)
        there = plan.available(federation.stream, round, state.visits, joint=False)
        if len(there) >= least:
            return (
                there,
                state,
                (np.concatenate([each[0] for each in left]), np.concatenate([each[1] for each in left])),
            )
        if not told:
            told = True
            _waiting(federation, round, least, len(there), "data")
        federation.stop.pause(AGAIN)


def _look(federation: Federation, state: State, round: int) -> tuple[State, Leavers]:
    """Ask every client that is there what it has, and let the federation's stream be that."""
    stream, shape = federation.stream, (len(state.visits), len(federation.stream.tasks))
    if stream.timeline.open:
        stream = replace(stream, timeline=replace(stream.timeline, begin=state.begin))
    items, faults = np.zeros(shape, np.int64), np.zeros(shape[0], np.int64)
    now = stream.timeline.tasks(stream.timeline.positions(stream.timeline.clocks(round, state.visits)))
    clients = np.flatnonzero(federation.roster.reachable)
    orders = [
        StockOrder(
            round=round, cohort=number, clients=clients[rows], tasks=now[clients[rows]],
            **federation.records(state, clients[rows]), weights=np.zeros(0, np.float32),
        )
        for number, rows in enumerate(federation.cohorts(clients))
    ]  # fmt: skip
    problem, size = partial(_problem, tasks=shape[1]), Size(each=1 + shape[1])
    for _, reply in federation.ask("query.stock", orders, state, StockReply, problem, size, weights=False):
        items[reply.clients], faults[reply.clients] = reply.items, reply.table["faults"]
    left = nobody()
    if stream.timeline.open:
        timeline, who, which = stream.timeline.moved(state.visits, items, federation.scenario.stream.schedule.least)
        stream, state, left = replace(stream, timeline=timeline), replace(state, begin=timeline.begin), (who, which)
    federation.stream = replace(stream, train=Cells.counted(items))
    _tell(federation, round, items, faults)
    return state, left


def _problem(reply: StockReply, tasks: int) -> str | None:
    """Return why a stock cannot be, None if it can."""
    faults = reply.table.get("faults")
    if reply.items.shape[1] != tasks or faults is None or faults.dtype != np.int64:
        return f"it does not tell of {tasks} tasks and of faults"
    wrong = (reply.items < 0).any() or (reply.items > MOST).any() or (faults < 0).any() or (faults > MOST).any()
    return "a number of items or faults that cannot be" if wrong else None


def _tell(federation: Federation, round: int, items: Ints, faults: Ints) -> None:
    """Write the stocks down, where they are not what they were."""
    clients = np.flatnonzero(items.any(axis=1) | (faults > 0))
    by_task = [_by_task(items[each]) for each in clients]
    stock = {"clients": clients.tolist(), "items": by_task, "faults": faults[clients].tolist()}
    if stock != federation.stock:
        federation.stock = stock
        federation.journal.write({"event": "stock", "round": round, **stock})


def _by_task(items: Ints) -> dict[str, int]:
    """Return the tasks with items and how many."""
    return {str(task): int(items[task]) for task in np.flatnonzero(items)}
